"""The report's page: template, style, script and values put together into one HTML text.

The page opens from disk and needs no network: its policy forbids access, and allows the two
scripts it brings, by their hashes. Values of a store are in no place where a browser looks for
markup.
"""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from functools import cache
from string import Template
from typing import Any

from offpref.stores.errors import ReportError

from .packing import html_json, packed
from .queries import PAGE

# In the order in which they are put together; each may use what is above it.
_SCRIPTS = (
    "dom",
    "unpack",
    "theme",
    "runs",
    "runs_table",
    "charts",
    "labels",
    "frontier",
    "tokens",
    "change",
    "pair",
    "pairs",
    "watch",
    "main",
)


def page_html(title: str, values: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        title: Its title.
        values: What the page needs at once; becomes JSON.
        blocks: Compressed blocks by name, from `packed`.

    Raises:
        ReportError: If plotly is not installed.
    """
    library, script = plotly_script(), _script()
    template = Template((PAGE / "template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(printable(title)),
        policy=_policy(script, library),
        style=(PAGE / "style.css").read_text(encoding="utf-8"),
        values=html_json(values),
        blocks=_block_elements({**blocks, "plotly": _packed_library(library)}),
        script=script,
    )


def plotly_script() -> str:
    """Return plotly.js.

    Raises:
        ReportError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ReportError(
            "the report draws with plotly, which is not installed: pip install 'offpref[report]'"
        ) from error
    return str(get_plotlyjs())


def printable(text: str) -> str:
    """Return ``text`` without what UTF-8 cannot hold: lone surrogates become question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


@cache
def _packed_library(library: str) -> str:
    return packed(library.encode())


def _script() -> str:
    parts = [(PAGE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();"


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    # plotly writes style attributes, for which there are no hashes.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _block_elements(blocks: Mapping[str, str]) -> str:
    elements: Sequence[str] = [
        f'<script type="application/gzip" id="block-{name}">{content}</script>'
        for name, content in blocks.items()
    ]
    return "\n".join(elements)
