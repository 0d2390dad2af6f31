"""Turn texts and messages into token ids, by one rule for policy and reference.

Prompt and completion are tokenised separately. A sequence has a beginning-of-sequence token if the
tokenizer adds one to the prompt, or if the prompt has no ids at all. The end-of-sequence token is
appended to a text that lacks it; in messages it is where the chat template puts it (the generation
prompt belongs to the prompt). A template that asks for the date is given a fixed one, so that the
same messages have the same ids on every day.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from blake3 import blake3

from offpref.stores.errors import ModelError
from offpref.stores.keys import KEY_BYTES, canonical_json, fingerprint

if TYPE_CHECKING:
    from offpref.stores.store import Store

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "config.json",
)  # fmt: skip
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
"""Endings of files in a tokenizer's folder that it is never read from."""
_ASKS_FOR_DAY = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")
MERGE_WINDOW = 32  # characters looked at on each side of the boundary


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSpec:
    """What ids depend on. Two folders of one tokenizer agree in it, however they were saved."""

    vocabulary: str
    """Hash of every token and its id."""

    algorithm: str
    """Hash of normalisation, splitting, merges and added special tokens."""

    bos_token_id: int | None
    """Beginning of sequence."""

    eos_token_id: int | None
    """End of sequence."""

    template: str | None
    """Hash of the chat template. Only data of messages depends on it."""

    is_dated: bool = False
    """Whether the chat template asks for the date."""

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint under which sequences lie: of all but the template."""
        return fingerprint({"kind": "tokenizer"} | self.without_template())

    def without_template(self) -> dict[str, object]:
        """Return the fields that ids of texts depend on."""
        kept = asdict(self)
        del kept["template"], kept["is_dated"]
        return kept


def tokenizer_spec(folder: Path, store: "Store") -> TokenizerSpec:
    """Return the spec of the tokenizer in ``folder``; loads it only if its files are new.

    Raises:
        ModelError: If the folder holds no tokenizer.
    """
    files = {
        "folder": str(folder.resolve()),
        "files": file_states(folder),
        "fields": [each.name for each in fields(TokenizerSpec)],  # other versions know others
        "transformers": version("transformers"),
    }
    if (known := store.recall_identity("tokenizer spec", files)) is None:
        known = canonical_json(asdict(Tokenizer(folder).spec))
        store.remember_identity("tokenizer spec", files, known)
    return TokenizerSpec(**json.loads(known))


def check_tokenizer(
    folder: Path,
    own: TokenizerSpec,
    pair_set: object,
    theirs: Mapping[str, object],
    template: str | None = None,
) -> None:
    """Refuse a model whose tokenizer gives other ids than a pair set's.

    Args:
        folder: The model's.
        own: The spec of its tokenizer.
        pair_set: Name of the pair set, for the message.
        theirs: The spec of the pair set's tokenizer.
        template: Hash of the chat template that its messages were rendered with; None for texts.

    Raises:
        ModelError: If one differs; the message names what does.
    """
    differing = [
        name for name, value in own.without_template().items() if theirs.get(name) != value
    ]
    if template is not None and own.template not in (None, template):
        differing.append("template")
    if differing:
        raise ModelError(
            f"{folder}: expected the tokenizer of pair set {pair_set}, its "
            f"{', '.join(differing)} differs; add the data with --tokenizer {folder}"
        )


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that a tokenizer is read from.

    Raises:
        ModelError: If the folder holds none.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: expected a folder with a tokenizer, found no folder")
    files = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    if not {path.name for path in files} - {"config.json"}:
        raise ModelError(f"{folder}: expected a folder with a tokenizer, found no file of one")
    return files


def file_states(folder: Path) -> list[list[object]]:
    """Return name, size, times of change and inode of each file that a tokenizer may be read from.

    That is any file except weights: each class of tokenizers has its own names for its files.
    """
    tokenizer_files(folder)  # raises if there is none
    files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    kept = sorted(path for path in files if path.suffix not in WEIGHTS and path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in kept]
    return [
        [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        for name, stat in stats
    ]


class Tokenizer:
    """A tokenizer of transformers that follows the rule above."""

    def __init__(self, folder: Path, day: date | None = None) -> None:
        """Load the tokenizer in ``folder``; nothing is fetched and no code in it is run.

        Args:
            folder: Folder of the tokenizer, or of a model with one.
            day: Date given to a chat template that asks; None for today.

        Raises:
            ModelError: If the folder holds no tokenizer, or one that needs its own code.
        """
        from transformers import AutoTokenizer

        if not folder.is_dir():
            raise ModelError(f"{folder}: expected a folder with a tokenizer, found no folder")
        self._folder, self._day = folder, day
        with clear_tokenizer_errors(folder):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
            if self._backend is not None:
                self._backend.no_padding()
                self._backend.no_truncation()
            self.bos_token_id: int | None = self._tokenizer.bos_token_id
            self.eos_token_id: int | None = self._tokenizer.eos_token_id
            self.spec = self._spec()
            self.size = len(self._tokenizer)
            self._adds_eos = self._encode(["a"], special=True)[0][-1:] == [self.eos_token_id]
        if self.eos_token_id is None:
            raise ModelError(
                f"{folder}: the tokenizer has no end-of-sequence token; "
                "name one as eos_token in its tokenizer_config.json"
            )

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, a text, with the tokens that the tokenizer prepends."""
        encoded = self._encode(prompts, special=True)
        if self._adds_eos:
            encoded = [ids[:-1] for ids in encoded]
        return [ids or self._first_ids() for ids in encoded]

    def completion_ids(self, completions: Sequence[str]) -> list[list[int]]:
        """Return the ids of each completion, a text, followed by the end-of-sequence token."""
        eos = cast(int, self.eos_token_id)
        encoded = self._encode(completions, special=False)
        return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in encoded]

    def rendered_prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of prompts as a chat template rendered them: nothing is added."""
        return [ids or self._first_ids() for ids in self._encode(prompts, special=False)]

    def rendered_completion_ids(self, completions: Sequence[str]) -> list[list[int]]:
        """Return the ids of completions as a chat template rendered them: nothing is added."""
        return self._encode(completions, special=False)

    def render(
        self, prompt: Sequence[Mapping[str, object]], completion: Sequence[Mapping[str, object]]
    ) -> tuple[str, str]:
        """Return prompt and completion, lists of messages, as the chat template writes them.

        Raises:
            ValueError: If the template writes the prompt differently when a completion follows, or
                refuses the messages.
        """
        if self._tokenizer.chat_template is None:
            raise ModelError(
                "the data holds messages and the tokenizer has no chat template; "
                "add one to its folder as chat_template.jinja"
            )
        from jinja2 import TemplateError

        try:
            template = template_on(self._tokenizer, self._day)
            before = self._tokenizer.apply_chat_template(
                list(prompt), tokenize=False, add_generation_prompt=True, chat_template=template
            )
            whole = self._tokenizer.apply_chat_template(
                [*prompt, *completion], tokenize=False, chat_template=template
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"chat template: {' '.join(str(error).split())[:100]}") from error
        if not whole.startswith(before):
            raise ValueError("chat template: the prompt reads otherwise before a completion")
        return before, whole[len(before) :]

    def merges(self, prompts: Sequence[str], completions: Sequence[str]) -> list[bool]:
        """Return whether joint tokenisation would merge across each boundary.

        Only a window around the boundary is examined, because merges do not cross words.
        """
        tails = [_tail(prompt) for prompt in prompts]
        heads = [_head(completion) for completion in completions]
        apart_tails = self._encode(tails, special=False)
        apart_heads = self._encode(heads, special=False)
        joint = self._encode([t + h for t, h in zip(tails, heads, strict=True)], special=False)
        return [
            ids != before + after
            for ids, before, after in zip(joint, apart_tails, apart_heads, strict=True)
        ]

    def vocabulary(self) -> tuple[list[int], list[bytes], list[bool]]:
        """Return all ids, the bytes that each stands for in a text, and whether each is special."""
        special = set(self._tokenizer.all_special_ids)
        to_bytes = _byte_level_decoder() if self._is_byte_level() else None
        entries = sorted((i, token) for token, i in self._tokenizer.get_vocab().items())
        return (
            [i for i, _ in entries],
            [_token_bytes(token, to_bytes, i in special) for i, token in entries],
            [i in special for i, _ in entries],
        )

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if self._backend is None:
            return [self._tokenizer.encode(text, add_special_tokens=special) for text in texts]
        # This is twice as fast: it computes no offsets and masks, and runs no Python in between.
        batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in batch]

    def _first_ids(self) -> list[int]:
        """Return the ids for an empty prompt, since the first token needs a position before it."""
        first = self.bos_token_id if self.bos_token_id is not None else self.eos_token_id
        return [cast(int, first)]

    def special_tokens(self) -> list[str]:
        """Return the contents of added tokens, which options may split if a text contains them."""
        added = self._tokenizer.added_tokens_decoder.values()
        return sorted({each.content for each in added if each.content})

    def _spec(self) -> TokenizerSpec:
        template = self._tokenizer.chat_template
        return TokenizerSpec(
            vocabulary=_hash(self._tokenizer.get_vocab()),
            algorithm=_hash(self._algorithm()),
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            template=None if template is None else template_hash(self._tokenizer),
            is_dated=template is not None and "strftime_now" in json.dumps(template),
        )

    def _algorithm(self) -> dict[str, Any]:
        """Return all that ids depend on besides the vocabulary and options with default values.

        The file of a fast tokenizer holds everything except one option of its backend. A slow
        tokenizer is described by its class, its files and the options that it was made with.
        """
        if self._backend is None:
            return _slow_algorithm(self._tokenizer, self._folder)
        parts: dict[str, Any] = json.loads(self._backend.to_str())
        kept = {k: v for k, v in parts.items() if k not in ("truncation", "padding", "version")}
        if self._backend.encode_special_tokens:
            kept["encode_special_tokens"] = True
        return kept

    def _is_byte_level(self) -> bool:
        if self._backend is None:
            return False
        parts = json.loads(self._backend.to_str())
        return '"ByteLevel"' in json.dumps([parts.get("decoder"), parts.get("pre_tokenizer")])


@contextmanager
def clear_tokenizer_errors(folder: Path) -> Iterator[None]:
    """Turn errors that transformers and tokenizers raise about a tokenizer's files into one line.

    Raises:
        ModelError: If they raise.
    """
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, LookupError, ImportError, TypeError, AttributeError) as error:
        raise ModelError(_unreadable(folder, error)) from error
    except BaseException as error:
        # Rust code raises errors without a class of their own, and panics; a refused configuration
        # is an error of a library that transformers uses.
        told = type(error).__module__ in ("pyo3_runtime", "huggingface_hub.errors")
        if type(error) is not Exception and not told:
            raise
        raise ModelError(_unreadable(folder, error)) from error


def _unreadable(folder: Path, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{folder}: expected a tokenizer, got: {reason}"


def template_on(tokenizer: Any, day: date | None) -> str | None:
    """Return a tokenizer's chat template with a date filled in; None if it asks for none.

    Args:
        tokenizer: A tokenizer of transformers, with a template.
        day: The date; None for today.

    Raises:
        ModelError: If the template does not spell out the form in which it asks for the date.
    """
    template: str = tokenizer.get_chat_template()
    if "strftime_now" not in template:
        return None
    now = datetime.combine(day or date.today(), time())
    told = _ASKS_FOR_DAY.sub(lambda call: json.dumps(now.strftime(call[1][1:-1])), template)
    if re.search(r"strftime_now\s*\(", told):
        raise ModelError(
            "the chat template asks for the day in a form that is not written out: expected "
            "strftime_now and a text in parentheses; write the form there"
        )
    return told


def template_hash(tokenizer: Any) -> str:
    """Return the hash of a chat template and of the tokens that it writes by name.

    Two of these tokens are in a tokenizer's spec by their ids: if the template names no others, the
    result is the template's hash alone.
    """
    template = tokenizer.chat_template
    text = json.dumps(template)
    named = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if name not in ("bos_token", "eos_token") and name in text
    }
    return _hash({"template": template, "tokens": named} if named else template)


def _slow_algorithm(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Return what the ids of a tokenizer without a fast backend depend on."""
    places = {*tokenizer.vocab_files_names, "name_or_path", "special_tokens_map_file"}
    files = [folder / name for name in tokenizer.vocab_files_names.values()]
    options = {
        name: str(value)
        for name, value in tokenizer.init_kwargs.items()
        if name not in places | {"chat_template"}
    }
    return {
        "class": type(tokenizer).__name__,
        "files": {
            path.name: blake3(path.read_bytes()).hexdigest(KEY_BYTES)
            for path in files
            if path.is_file()
        },
        "options": options,
        "added": {str(key): repr(token) for key, token in tokenizer.added_tokens_decoder.items()},
    }


def _hash(value: object) -> str:
    return blake3(canonical_json(value).encode()).hexdigest(KEY_BYTES)


def _tail(text: str) -> str:
    """Return the end of ``text``, starting at a space if there is one nearby."""
    window = text[-2 * MERGE_WINDOW :]
    space = window.rfind(" ", 0, MERGE_WINDOW) if len(text) > len(window) else -1
    return window[space:] if space >= 0 else window


def _head(text: str) -> str:
    """Return the beginning of ``text``, up to a space if there is one nearby."""
    window = text[: 2 * MERGE_WINDOW]
    space = window.find(" ", MERGE_WINDOW) if len(text) > len(window) else -1
    return window[:space] if space >= 0 else window


def _byte_level_decoder() -> dict[str, int]:
    """Return the byte each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _token_bytes(token: str, to_bytes: Mapping[str, int] | None, is_special: bool) -> bytes:
    if is_special:
        return token.encode()
    if to_bytes is not None:
        if all(character in to_bytes for character in token):
            return bytes(to_bytes[character] for character in token)
        return token.encode()
    if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()
