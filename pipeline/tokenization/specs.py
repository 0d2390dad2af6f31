"""What ids depend on, told from the files of a tokenizer, and its hashes."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from offpref.stores.errors import ModelError
from offpref.stores.keys import KEY_BYTES, canonical_json, fingerprint

RULE = 2
"""Version of the rule by which texts are tokenised, part of every pair set's fingerprint. Rule 1
encoded a completion as if it began a text."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "config.json",
)  # fmt: skip
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
"""Endings of files in a tokenizer's folder that it is never read from."""


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


def template_hash(tokenizer: Any, template: Any = None) -> str:
    """Return the hash of a chat template and of the tokens that it writes by name.

    Two of these tokens are in a tokenizer's spec by their ids: if the template names no others, the
    result is the template's hash alone.

    Args:
        tokenizer: A tokenizer of transformers.
        template: A template instead of the tokenizer's own.
    """
    template = tokenizer.chat_template if template is None else template
    text = json.dumps(template)
    named = {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if name not in ("bos_token", "eos_token") and name in text
    }
    return hash_of({"template": template, "tokens": named} if named else template)


def slow_algorithm(tokenizer: Any, folder: Path) -> dict[str, Any]:
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


def hash_of(value: object) -> str:
    """Return the hash of a value that JSON can hold."""
    return blake3(canonical_json(value).encode()).hexdigest(KEY_BYTES)


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
