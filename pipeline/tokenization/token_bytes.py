"""The bytes that a tokenizer's tokens stand for in a text, and whether ids spell a text.

A token of a byte-level vocabulary is spelled in a table of characters, one for each byte;
SentencePiece writes a space as U+2581 and single bytes as ``<0x0A>``. Added tokens are spelled as
they are, whatever the vocabulary.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

SPACE = "\u2581"

UNKNOWN = "characters that have no token"
SPACES_BESIDE_TOKENS = "spaces beside special tokens"
SPACES = "spaces that the tokenizer adds or drops"
NORMALISED = "characters that the tokenizer normalises"
OTHERWISE = "other characters than the text's"


class TokenBytes:
    """What each token of a tokenizer of transformers spells."""

    def __init__(self, tokenizer: Any, backend: Any) -> None:
        """Read nothing yet.

        Args:
            tokenizer: The tokenizer of transformers.
            backend: Its fast backend; None where it has none.
        """
        self._tokenizer, self._backend = tokenizer, backend
        self._unknown_id: int | None = tokenizer.unk_token_id

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which are no part of a text."""
        added = self._tokenizer.added_tokens_decoder.items()
        marked = {i for i, token in added if token.special}
        return frozenset({*self._tokenizer.all_special_ids, *marked})

    @cached_property
    def table(self) -> dict[int, bytes]:
        """The bytes of each token, by id."""
        spell = self._speller()
        found = {i: spell(token) for token, i in self._tokenizer.get_vocab().items()}
        for i, token in self._tokenizer.added_tokens_decoder.items():
            found[i] = token.content.encode()
        return dict(sorted(found.items()))

    @cached_property
    def joins_words(self) -> bool:
        """Whether decoding puts spaces between tokens that no token spells, as between words."""
        if self._backend is None:
            return True
        parts = json.loads(self._backend.to_str())
        kinds = json.dumps([parts.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
        return not any(mark in kinds for mark in ('"ByteLevel"', '"Metaspace"', "\\u2581"))

    def spelled(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that ids spell together."""
        table = self.table
        return b"".join([table[i] for i in ids])

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text that the tokenizer decodes ids to, special tokens included."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def difference(
        self, ids: Sequence[int], text: str, *, may_begin_with_space: bool
    ) -> str | None:
        """Return why ids do not spell a text, in few words; None if they do.

        Args:
            ids: The ids.
            text: What they should spell.
            may_begin_with_space: Whether a space before the text is dropped when ids are decoded,
                as at the beginning of a whole text.
        """
        found, wanted = self.spelled(ids), text.encode("utf-8", "replace")
        if found == wanted or (may_begin_with_space and found == b" " + wanted):
            return None
        if self.joins_words and text == self.decoded(ids):
            return None
        if self._unknown_id is not None and self._unknown_id in ids:
            return UNKNOWN
        if b"".join(found.split()) == b"".join(wanted.split()):
            has_special = not self.special_ids.isdisjoint(ids)
            return SPACES_BESIDE_TOKENS if has_special else SPACES
        normalizer = None if self._backend is None else self._backend.normalizer
        if normalizer is not None:
            normalised = _plain(normalizer.normalize_str(text))
            if normalised != _plain(text) and normalised == _plain(found.decode(errors="replace")):
                return NORMALISED
        return OTHERWISE

    def _speller(self) -> Any:  # a function from token to bytes
        parts = {} if self._backend is None else json.loads(self._backend.to_str())
        kinds = [parts.get("decoder"), parts.get("pre_tokenizer")]
        if '"ByteLevel"' in json.dumps(kinds):
            table = _byte_level_table()
            return lambda token: _from_table(token, table)
        decoders = _flat(parts.get("decoder"))
        if (found := decoders.get("WordPiece")) is not None:
            prefix = str(found.get("prefix", "##"))
            return lambda token: _word_piece(token, prefix)
        if (found := decoders.get("BPEDecoder")) is not None:
            suffix = str(found.get("suffix", "</w>"))
            return lambda token: _with_suffix(token, suffix)
        metaspace = decoders.get("Metaspace") or _flat(parts.get("pre_tokenizer")).get("Metaspace")
        space = str((metaspace or {}).get("replacement", SPACE))
        return lambda token: _sentence_piece(token, space)


def _plain(text: str) -> str:
    """Return a text without white space and the characters that stand for it."""
    return "".join(text.replace(SPACE, " ").split())


def _flat(part: Any) -> dict[str, Mapping[str, Any]]:
    """Return the parts of a decoder or pre-tokenizer, which may be a sequence, by type."""
    if not isinstance(part, dict):
        return {}
    inner = [*part.get("decoders", ()), *part.get("pretokenizers", ())]
    found: dict[str, Mapping[str, Any]] = {str(part.get("type")): part}
    for each in inner:
        found |= _flat(each)
    return found


def _byte_level_table() -> dict[str, int]:
    """Return the byte each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _from_table(token: str, table: Mapping[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()


def _word_piece(token: str, prefix: str) -> bytes:
    """A piece that goes on is marked; another begins a word, behind a space."""
    goes_on = token.startswith(prefix)
    return token[len(prefix) :].encode() if goes_on else f" {token}".encode()


def _with_suffix(token: str, suffix: str) -> bytes:
    is_end = bool(suffix) and token.endswith(suffix)
    return f"{token.removesuffix(suffix)} ".encode() if is_end else token.encode()


def _sentence_piece(token: str, space: str) -> bytes:
    if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        return bytes([int(byte[1], 16)])
    return token.replace(space, " ").encode("utf-8", "replace")
