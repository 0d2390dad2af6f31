"""Turn texts and messages into token ids, by one rule for policy and reference.

Prompt and completion are tokenised separately, the completion behind an anchor (`anchors`), so that
their ids decode to them. A sequence has a beginning-of-sequence token if the tokenizer adds one to
the prompt and the prompt does not begin with it, or if the prompt has no ids at all. The
end-of-sequence token is appended to a text that lacks it; in messages it is where the chat template
puts it (the generation prompt belongs to the prompt). Where a template writes the prompt
differently before a completion, the completion begins where the ids of both part.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offpref.stores.errors import ModelError
from offpref.stores.keys import canonical_json

from .anchors import AnchoredEncoder
from .chat_templates import ChatTemplate, check_template
from .common_beginning import common_length
from .specs import (
    TokenizerSpec,
    clear_tokenizer_errors,
    file_states,
    hash_of,
    slow_algorithm,
    template_hash,
)
from .token_bytes import TokenBytes

if TYPE_CHECKING:
    from offpref.stores.store import Store

MERGE_WINDOW = 32  # characters looked at on each side of the boundary


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


class Tokenizer:
    """A tokenizer of transformers that follows the rule above."""

    def __init__(
        self,
        folder: Path,
        day: date | None = None,
        *,
        chat_template: str | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        """Load the tokenizer in ``folder``; nothing is fetched and no code in it is run.

        Args:
            folder: Folder of the tokenizer, or of a model with one.
            day: Date given to a chat template that asks; None for today.
            chat_template: A template, or the name of one of the tokenizer's; None for its own.
            arguments: Arguments for the template of every conversation.

        Raises:
            ModelError: If the folder holds no tokenizer, or one that needs its own code.
        """
        from transformers import AutoTokenizer

        if not folder.is_dir():
            raise ModelError(f"{folder}: expected a folder with a tokenizer, found no folder")
        self._folder, self._day = folder, day
        self._given, self._arguments = chat_template, arguments
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
        if chat_template is not None:
            check_template(self._tokenizer, chat_template, folder)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token spells."""
        return TokenBytes(self._tokenizer, self._backend)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, as the user gave it or the tokenizer has it."""
        return ChatTemplate(
            self._tokenizer, day=self._day, given=self._given, arguments=self._arguments
        )

    @cached_property
    def _completions(self) -> AnchoredEncoder:
        return AnchoredEncoder(
            lambda texts: self._encode(texts, special=False), self.token_bytes.spelled
        )

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, a text, with the tokens that the tokenizer prepends."""
        encoded = self._encode(prompts, special=True)
        if self._adds_eos:
            encoded = [ids[:-1] for ids in encoded]
        bos = self.bos_token_id
        if bos is not None:  # the text may begin with it
            encoded = [ids[1:] if ids[:2] == [bos, bos] else ids for ids in encoded]
        return [ids or self._first_ids() for ids in encoded]

    def completion_ids(self, completions: Sequence[str]) -> list[list[int]]:
        """Return the ids of each completion, a text, followed by the end-of-sequence token."""
        eos = cast(int, self.eos_token_id)
        encoded = self._completions(completions)
        return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in encoded]

    def rendered_prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of prompts as a chat template rendered them: nothing is added."""
        return [ids or self._first_ids() for ids in self._encode(prompts, special=False)]

    def rendered_completion_ids(self, completions: Sequence[str]) -> list[list[int]]:
        """Return the ids of completions as a chat template rendered them: nothing is added."""
        return self._completions(completions)

    def parted_ids(
        self, prompts: Sequence[str], wholes: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Return prompt and completion of rendered texts that do not begin with their prompt.

        The completion begins where the ids of prompt and whole part.
        """
        before = self._encode(prompts, special=False)
        found = []
        for prompt, whole in zip(before, self._encode(wholes, special=False), strict=True):
            length = common_length(prompt, whole)
            found.append((whole[:length] or self._first_ids(), whole[length:]))
        return found

    def token_starts(self, completion: str, num_tokens: int) -> list[int]:
        """Return where each token of a rendered completion begins in it, in characters."""
        anchor = self._completions.anchor(completion)
        if self._backend is not None:
            encoding = self._backend.encode(anchor + completion, add_special_tokens=False)
            offsets = encoding.offsets[len(encoding.offsets) - num_tokens :]
            return [max(0, start - len(anchor)) for start, _ in offsets]
        starts, place = [], 0
        table = self.token_bytes.table
        for i in self._completions([completion])[0][:num_tokens]:
            starts.append(place)
            place += len(table[i].decode(errors="ignore"))
        return starts

    def difference(self, ids: Sequence[int], text: str, *, is_prompt: bool) -> str | None:
        """Return why ids do not spell a text, in few words; None if they do.

        Args:
            ids: Of a prompt or a completion, as this class returned them.
            text: What they should spell.
            is_prompt: Whether it is a prompt, before whose text tokens may have been prepended.
        """
        own = self._own_of_prompt(ids, text) if is_prompt else self._own_of_completion(ids, text)
        may_begin = is_prompt and (self._completions.is_used or self.bos_token_id is not None)
        return self.token_bytes.difference(own, text, may_begin_with_space=may_begin)

    def decode_together(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], prompt: str, completion: str
    ) -> bool:
        """Whether ids of prompt and completion decode to both, one behind the other.

        Of words that a tokenizer puts spaces between, they do even where the completion does not
        alone.
        """
        if not self.token_bytes.joins_words:
            return False
        whole = [
            *self._own_of_prompt(prompt_ids, prompt),
            *self._own_of_completion(completion_ids, completion),
        ]
        return self.token_bytes.decoded(whole) == prompt + completion

    def _own_of_prompt(self, ids: Sequence[int], text: str) -> list[int]:
        """Return a prompt's ids without a token that was put before its text."""
        own = list(ids)
        is_added = own[:1] == self._first_ids() and not self._begins(text, own[0])
        return own[1:] if is_added else own

    def _own_of_completion(self, ids: Sequence[int], text: str) -> list[int]:
        """Return a completion's ids without an end that was put behind its text."""
        own = list(ids)
        is_added = own[-1:] == [self.eos_token_id] and not self._ends(text, own[-1])
        return own[:-1] if is_added else own

    def _begins(self, text: str, token: int) -> bool:
        return text.encode("utf-8", "replace").startswith(self.token_bytes.table[token])

    def _ends(self, text: str, token: int) -> bool:
        return text.encode("utf-8", "replace").endswith(self.token_bytes.table[token])

    def tail_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the end of each prompt, for `merges`."""
        return self._encode([_tail(prompt) for prompt in prompts], special=False)

    def merges(
        self,
        prompts: Sequence[str],
        tails: Sequence[Sequence[int]],
        completions: Sequence[str],
        first_ids: Sequence[int],
    ) -> list[bool]:
        """Return whether joint tokenisation would merge across each boundary.

        Only a window around the boundary is examined, because merges do not cross words.

        Args:
            prompts: The prompts.
            tails: Their ends, as `tail_ids` returns them.
            completions: The completions.
            first_ids: The first id of each.
        """
        windows = zip(prompts, completions, strict=True)
        joint = self._encode([_tail(p) + _head(c) for p, c in windows], special=False)
        return [
            ids[: len(tail) + 1] != [*tail, first]
            for ids, tail, first in zip(joint, tails, first_ids, strict=True)
        ]

    def vocabulary(self) -> tuple[list[int], list[bytes], list[bool]]:
        """Return all ids, the bytes that each stands for in a text, and whether each is special."""
        table, special = self.token_bytes.table, self.token_bytes.special_ids
        return list(table), list(table.values()), [i in special for i in table]

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

    def _spec(self) -> TokenizerSpec:
        template = self._tokenizer.chat_template
        return TokenizerSpec(
            vocabulary=hash_of(self._tokenizer.get_vocab()),
            algorithm=hash_of(self._algorithm()),
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
            return slow_algorithm(self._tokenizer, self._folder)
        parts: dict[str, Any] = json.loads(self._backend.to_str())
        kept = {k: v for k, v in parts.items() if k not in ("truncation", "padding", "version")}
        if self._backend.encode_special_tokens:
            kept["encode_special_tokens"] = True
        return kept


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
