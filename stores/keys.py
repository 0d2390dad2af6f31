"""Content keys and fingerprints: what is equal has an equal name, on every machine, forever.

A key is 16 bytes of BLAKE3 and names a row; a fingerprint is 32 hexadecimal digits (16 bytes) of
BLAKE3 over a canonical JSON text and names a declared set of settings.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY_BYTES = 16


def content_key(*parts: bytes) -> bytes:
    """Return the 16-byte BLAKE3 key of ``parts``, each preceded by its length.

    The lengths keep ``(b"ab", b"c")`` and ``(b"a", b"bc")`` apart.
    """
    hasher = blake3()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest(KEY_BYTES)


def sequence_key(ids: "NDArray[np.int32]", num_prompt_tokens: int) -> bytes:
    """Return the key of a prompt with one completion, from the ids and where the prompt ends.

    Args:
        ids: Token ids of prompt and completion, shape [T].
        num_prompt_tokens: How many of them belong to the prompt.
    """
    return content_key(num_prompt_tokens.to_bytes(4, "little"), _id_bytes(ids))


def prompt_key(ids: "NDArray[np.int32]") -> bytes:
    """Return the key of a prompt, from its token ids, shape [T]."""
    return content_key(b"prompt", _id_bytes(ids))


def text_key(prompt: str, completion: str, form: str) -> bytes:
    """Return the key of a prompt with one completion, as they stand in the source.

    Args:
        prompt: Text, or messages as JSON.
        completion: Text, or messages as JSON.
        form: ``text`` or ``messages``.
    """
    return content_key(form.encode(), prompt.encode(), completion.encode())


def pair_key(chosen_key: bytes | None, rejected_key: bytes | None, occurrence: int) -> bytes:
    """Return the key of a pair.

    Args:
        chosen_key: Key of the chosen sequence; None in unpaired data.
        rejected_key: Key of the rejected sequence; None in unpaired data.
        occurrence: How often the same two keys stood earlier in the pair set, from 0 on; a
            repeated pair stays two rows.
    """
    return content_key(chosen_key or b"", rejected_key or b"", occurrence.to_bytes(8, "little"))


def canonical_json(value: object) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(spec: Mapping[str, object]) -> str:
    """Return the fingerprint of a declared spec: 32 hexadecimal digits.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    return blake3(canonical_json(spec).encode()).hexdigest(KEY_BYTES)


def _id_bytes(ids: "NDArray[np.int32]") -> bytes:
    import numpy as np  # here: most of who imports this module hashes no ids

    return np.ascontiguousarray(ids, dtype="<i4").tobytes()
