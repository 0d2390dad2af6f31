"""Write a store's page again whenever the store has changed, until somebody stops it.

Looking costs one listing of the commits. A run that dies writes nothing any more: while runs are
alive, their statuses are asked for, too. A moment in which the store cannot be read, or the page
not be written, ends nothing: it is said once, and what was missed is done at the next look.
"""

import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from offpref.stores.errors import OffprefError
from offpref.stores.query.catalog import Catalog
from offpref.stores.store import Store

from .html import ReportPage, ReportSummary, check_page_path, place_page, read_page
from .settings import ReportSettings


def watch_report(
    store: Store, path: Path, settings: ReportSettings, interval_seconds: float
) -> Generator[ReportSummary | str, None, None]:
    """Write the page now and after each change, and yield what it shows, or what went wrong.

    It never ends by itself. Closing it, or an interrupt, leaves the page as it was last written,
    without the script that loads it anew.

    Args:
        store: The store.
        path: The file; what is there is replaced, except at first where ``settings`` forbid it.
        settings: What the page shows.
        interval_seconds: Time between two looks.

    Raises:
        As `write_report`, before the first page is written; later such errors are yielded.
    """
    check_page_path(path, overwrite=settings.overwrite)
    page = read_page(store, path, settings)
    statuses = _statuses(store)
    written = _place(page, path, interval_seconds, overwrite=settings.overwrite)
    complaint, is_due = "", False
    try:
        yield written
        while True:
            time.sleep(interval_seconds)
            try:
                is_due |= store.refresh()
                if not is_due and not _has_live(statuses):
                    continue
                now = _statuses(store)
                if not is_due and now == statuses:
                    continue
                page = read_page(store, path, replace(settings, overwrite=True))
                written = _place(page, path, interval_seconds, overwrite=True)
            except (OffprefError, OSError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    yield complaint
                continue
            complaint, is_due, statuses = "", False, now
            yield written
    finally:
        place_page(page, page.content(None), path, overwrite=True)


def _place(
    page: ReportPage, path: Path, interval_seconds: float, *, overwrite: bool
) -> ReportSummary:
    watched = {
        "interval_seconds": interval_seconds,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return place_page(page, page.content(watched), path, overwrite=overwrite)


def _statuses(store: Store) -> Mapping[str, str | None]:
    """What is said of each run now; of one that writes nothing any more it changes with time."""
    with Catalog(store) as catalog:
        return {run.run_id: run.status for run in catalog.named_runs()}


def _has_live(statuses: Mapping[str, str | None]) -> bool:
    return any(status in ("started", "alive", "saved") for status in statuses.values())
