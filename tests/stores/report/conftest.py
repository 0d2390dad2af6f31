"""What tests of the report's page in a real browser share."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_reader import Reader
from report_results import put_results

from offpref.stores.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Open = Callable[..., Reader]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of runs with results."""
    store = Store.create(tmp_path_factory.mktemp("results") / "store")
    put_results(store)
    return store


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Debian's chromium; without it, or without playwright, tests of the page are skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's package chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened_pages(browser: "Browser") -> Iterator[Open]:
    """Open pages; at the end, no browser may have complained or asked for anything else."""
    readers = []

    def open_path(path: Path, width: int = 1280, **context: object) -> Reader:
        opened = browser.new_context(viewport={"width": width, "height": 900}, **context)
        readers.append(Reader(opened.new_page(), path))
        return readers[-1]

    yield open_path
    for reader in readers:
        hacked = reader.page.evaluate("window.hacked")
        reader.page.context.close()
        assert hacked is None
        assert reader.complaints == []
        assert [url for url in reader.requests if not url.startswith("data:")] == [
            reader.requests[0]
        ]


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Opens a page of its own."""
    with opened_pages(browser) as open_path:
        yield open_path


@pytest.fixture(scope="module")
def open_shared(browser: "Browser") -> Iterator[Open]:
    """Opens a page that the tests of a module share: each finds what the others left."""
    with opened_pages(browser) as open_path:
        yield open_path
