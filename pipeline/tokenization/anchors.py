"""Encode completions so that their ids spell them, and nothing that a tokenizer puts before texts.

SentencePiece and ``add_prefix_space`` begin every text with a space, because they take it for the
beginning of a document. A completion is none: it stands behind a prompt. It is encoded behind a
fixed anchor, whose ids are cut off again, so that its ids depend on no prompt. An anchor counts if
its own ids come back unchanged before the completion's; otherwise the next one is tried. Tokenizers
that put nothing before texts use no anchor.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]

ANCHORS = ("\n", ":", "a", "1", ".", "\u00e9", "\u4e00")
"""Tried in this order: what seldom merges with letters first."""
PROBES = ("a", "It", "1", "(", "b c")


class AnchoredEncoder:
    """Encodes completions with one tokenizer."""

    def __init__(self, encode: Encode, spelled: Callable[[Sequence[int]], bytes]) -> None:
        """Find out whether the tokenizer puts a space before texts.

        Args:
            encode: Returns the ids of texts, without special tokens around them.
            spelled: Returns the bytes that ids spell.
        """
        self._encode = encode
        anchors = zip(ANCHORS, encode(ANCHORS), strict=True)
        self._anchors = [(anchor, ids) for anchor, ids in anchors if ids]
        plain = encode(PROBES)
        behind = self._behind_anchors(PROBES)
        self.is_used = any(
            spelled(ids)[:1] == b" " and i in behind and behind[i][1] != ids
            for i, ids in enumerate(plain)
        )
        """Whether the tokenizer puts something before texts, so that anchors are needed."""

    def __call__(self, completions: Sequence[str]) -> list[list[int]]:
        """Return the ids of completions."""
        if not self.is_used:
            return self._encode(completions)
        found = self._behind_anchors(completions)
        left = [i for i in range(len(completions)) if i not in found]
        alone = self._encode([completions[i] for i in left])
        found |= {i: ("", ids) for i, ids in zip(left, alone, strict=True)}
        return [found[i][1] for i in range(len(completions))]

    def anchor(self, completion: str) -> str:
        """Return what a completion is encoded behind; an empty text where it is encoded alone."""
        found = self._behind_anchors([completion]) if self.is_used else {}
        return found[0][0] if found else ""

    def _behind_anchors(self, completions: Sequence[str]) -> dict[int, tuple[str, list[int]]]:
        """Return anchor and ids of each completion by its number, where one of them counts."""
        found: dict[int, tuple[str, list[int]]] = {
            i: ("", []) for i, text in enumerate(completions) if not text
        }
        for anchor, ids in self._anchors:
            left = [i for i in range(len(completions)) if i not in found]
            if not left:
                break
            wholes = self._encode([anchor + completions[i] for i in left])
            for i, whole in zip(left, wholes, strict=True):
                if whole[: len(ids)] == ids:
                    found[i] = anchor, whole[len(ids) :]
        return found
