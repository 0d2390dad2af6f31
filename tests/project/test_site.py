"""The site is built strictly and without a network, and needs none to be read."""

import html.parser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import ROOT
from site_pages import write_pages

pytest.importorskip("mkdocs", reason="needs the group `docs`: make docs")

ASSETS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Fetched(html.parser.HTMLParser):
    """Collects what a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ASSETS and given.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(given.get(ASSETS[tag]) or "")


@pytest.mark.slow
def test_site_is_built_strictly_offline_and_fetches_nothing(tmp_path: Path) -> None:
    written = write_pages(tmp_path / "pages")
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: pages\nsite_dir: site\n", encoding="utf-8"
    )
    nowhere = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet"], cwd=tmp_path,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert all((site / name).with_suffix(".html").is_file() for name in written)
    for page in site.rglob("*.html"):
        found = Fetched()
        found.feed(page.read_text(encoding="utf-8"))
        assert not [each for each in found.addresses if each.startswith(("http", "//"))], page
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "reference/commands/train.html" in index
    assert "source/tests" not in index
