"""How values travel inside the report's page: JSON, numbers of few digits, compressed blocks.

Text of a store stands in the page as JSON without ``<``, ``>`` and ``&``, or inside base64: it
cannot end the element that holds it. Measured values are rounded, arrays of tokens are quantised.
"""

import base64
import gzip
import json
import math

import numpy as np
from numpy.typing import NDArray

DIGITS = 5
"""Significant digits of a number on the page."""


def rounded(value: float | None) -> float | None:
    """Return ``value`` with five significant digits; None stands for values that are not finite.

    >>> rounded(0.123456789), rounded(float("nan"))
    (0.12346, None)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def to_json(value: object) -> str:
    r"""Return compact JSON in ASCII, lone surrogates escaped.

    >>> to_json({"name": "a\ud800"})
    '{"name":"a\\ud800"}'
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def html_json(value: object) -> str:
    r"""Return JSON that may stand inside a script element: nothing in it has a meaning there.

    >>> html_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    escapes = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}
    return to_json(value).translate(escapes)


def packed(content: bytes) -> str:
    """Return ``content`` as gzip in base64; the same bytes for the same content."""
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")


def quantised(
    values: NDArray[np.float32], num_bits: int
) -> tuple[NDArray[np.signedinteger], float]:
    """Return whole numbers q of ``num_bits`` bits and a scale s: a value is sign(q) (q / Q)^2 s.

    Q is the largest whole number of so many bits. The square keeps small values apart, of which
    there are most: near a value v the error is at most sqrt(v s) / Q. What is not finite becomes
    the lowest whole number, -Q - 1.

    Args:
        values: The values, shape [T].
        num_bits: 8 or 16.

    Returns:
        The whole numbers, shape [T], and the largest absolute value.
    """
    kind = np.dtype(f"<i{num_bits // 8}")
    largest = np.iinfo(kind).max
    is_finite = np.isfinite(values)
    exact = np.where(is_finite, values, 0).astype(np.float64)
    scale = float(np.abs(exact).max(initial=0.0))
    if scale == 0.0:
        whole = np.zeros(len(exact), kind)
    else:
        whole = np.rint(np.sign(exact) * np.sqrt(np.abs(exact) / scale) * largest).astype(kind)
    whole[~is_finite] = np.iinfo(kind).min
    return whole, scale
