"""The report: one HTML page that shows a store's runs and pairs, and opens from disk.

Everything comes from the store; no tokenizer, no model. DuckDB sums up what is large; what remains
is sampled until the page is under 10 MB, and the page says so. The same store gives the same page.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offpref.stores.errors import ReportError
from offpref.stores.files.placing import place_bytes
from offpref.stores.query import run_colours
from offpref.stores.query.catalog import Catalog
from offpref.stores.store import Store

from .measures import distributions, frontiers, seen_pairs
from .packing import packed, rounded, to_json
from .pairs import (
    SampledPairs,
    measured_columns,
    packed_pairs,
    pair_columns,
    read_vocabularies,
    sample_pairs,
)
from .queries import page_rows
from .results import not_ranked, run_results, unlike_objectives
from .runs import ChosenRuns, ReportRun, curves, report_runs
from .settings import ReportSettings
from .template import page_html, plotly_script, printable
from .tokens import MAX_TOKENS, TokenBlocks, read_token_values, token_blocks

MAX_BYTES = 9_800_000
"""Length of the page at most: 10 MB, with room to spare."""
MAX_TEXT_BYTES = 2_800_000
"""Of which for the pairs' texts and columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSummary:
    """What was written."""

    path: Path
    """The page."""
    num_bytes: int
    """Its length."""
    num_runs: int
    """Runs on it."""
    num_pairs: int
    """Pairs that there are."""
    num_pairs_shown: int
    """Pairs on it."""
    num_token_pairs: int
    """Of which with token values."""
    num_token_pairs_left_out: int
    """Pairs on it whose token values did not fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPage:
    """A page before it is written."""

    title: str
    values: Mapping[str, Any]
    """What it needs at once."""
    blocks: Mapping[str, str]
    """What it unpacks when it needs it."""
    summary: ReportSummary
    """What is on it; without its length, which `content` knows."""

    def content(self, watched: Mapping[str, Any] | None) -> bytes:
        """Return the page; ``watched`` tells a page that is written again when, and how often."""
        return page_html(self.title, {**self.values, "watched": watched}, self.blocks).encode()


def write_report(store: Store, path: Path, settings: ReportSettings) -> ReportSummary:
    """Write the page to ``path``, whole or not at all, and return what it shows.

    Cost: DuckDB reads every example once per chart, and the pairs' keys of all token rows.

    Raises:
        ReportError: If the file is there and ``settings`` do not overwrite it, if its folder is
            missing, or if plotly is not installed.
        QueryRefusedError: If the store has no run of a name.
        StoreWriteError: If the file system refuses.
    """
    check_page_path(path, overwrite=settings.overwrite)
    page = read_page(store, path, settings)
    return place_page(page, page.content(None), path, overwrite=settings.overwrite)


def read_page(store: Store, path: Path, settings: ReportSettings) -> ReportPage:
    """Return the page of a store as it is now; arguments and errors are `write_report`'s."""
    plotly_script()  # raises at once if it is missing
    with Catalog(store) as catalog:
        return _page(catalog, path, store.path, settings)


def place_page(page: ReportPage, content: bytes, path: Path, *, overwrite: bool) -> ReportSummary:
    """Write a page's content to ``path`` and return what it shows.

    Raises:
        ReportError: If a file is there and ``overwrite`` is false.
        StoreWriteError: If the file system refuses.
    """
    if not place_bytes(content, path, path.parent, overwrite=overwrite):
        raise _is_there(path)
    return replace(page.summary, num_bytes=len(content))


def _page(catalog: Catalog, path: Path, store_path: Path, settings: ReportSettings) -> ReportPage:
    """The page, and what is on it."""
    has_all = not settings.run_names
    chosen = report_runs(catalog, settings.run_names)
    runs = chosen.runs
    sampled = sample_pairs(catalog, runs, settings.max_pairs, has_all_runs=has_all)
    references, names = _references(catalog, runs)
    values = read_token_values(catalog, runs, sampled, references)
    vocabularies = read_vocabularies(catalog)
    columns = {
        "pairs": pair_columns(sampled),
        "measured": measured_columns(catalog, runs, sampled),
        "sums": _reference_sums(values.logps, references, sampled),
    }
    blocks = {
        "charts": _charts(catalog, runs, has_all_runs=has_all),
        "pairs": packed_pairs(sampled, columns, vocabularies, MAX_TEXT_BYTES),
    }
    title = printable(settings.title or f"{store_path.resolve().name}: preference report")
    shown = {
        "title": title,
        "store": _store_numbers(catalog, store_path),
        **_runs_shown(catalog, chosen),
        "run_reference": [
            references.index(run.reference) if run.reference in references else None for run in runs
        ],
        "references": names,
        "is_part": not has_all,
        "num_pairs": sampled.num_pairs,
        "num_pairs_shown": len(sampled.rows),
    }
    # The page without token values tells how much room they have.
    left = MAX_BYTES - len(page_html(title, {**shown, "tokens": {}}, blocks))
    tokens = token_blocks(values, runs, sampled, references, vocabularies, left)
    blocks["vocabulary"] = tokens.vocabulary
    blocks |= {f"tokens-{number}": block for number, block in enumerate(tokens.blocks)}
    summary = ReportSummary(
        path=path,
        num_bytes=0,
        num_runs=len(runs),
        num_pairs=sampled.num_pairs,
        num_pairs_shown=len(sampled.rows),
        num_token_pairs=len(tokens.block_of_pair),
        num_token_pairs_left_out=tokens.num_left_out,
    )
    values_at_once = {**shown, "tokens": _tokens_shown(tokens)}
    return ReportPage(title=title, values=values_at_once, blocks=blocks, summary=summary)


def _runs_shown(catalog: Catalog, chosen: ChosenRuns) -> dict[str, Any]:
    """The runs with their results, what is left out, and how runs are drawn."""
    results = run_results(catalog, chosen.runs)
    shown = [
        {name: value for name, value in result.items() if name != "measured_as"}
        for result in results
    ]
    return {
        "runs": [
            {**run.shown, "result": result} for run, result in zip(chosen.runs, shown, strict=True)
        ],
        "settings": chosen.settings,
        "left_out": chosen.left_out,
        "not_ranked": not_ranked(chosen.runs, results),
        "unlike_objectives": unlike_objectives(results),
        "looks": {
            "light": run_colours.LIGHT, "dark": run_colours.DARK,
            "dashes": run_colours.DASHES, "symbols": run_colours.SYMBOLS,
        },
    }  # fmt: skip


def _charts(catalog: Catalog, runs: Sequence[ReportRun], *, has_all_runs: bool) -> str:
    seen = seen_pairs(catalog, runs)
    charts = {
        "curves": curves(catalog, runs),
        "distributions": distributions(seen),
        "frontiers": frontiers(catalog, runs, seen, has_all_runs=has_all_runs),
    }
    return packed(to_json(charts).encode())


def _tokens_shown(tokens: TokenBlocks) -> dict[str, Any]:
    return {
        "block_of_pair": {str(pair): block for pair, block in tokens.block_of_pair.items()},
        "num_bits": tokens.num_bits,
        "num_left_out": tokens.num_left_out,
    }


def _references(catalog: Catalog, runs: Sequence[ReportRun]) -> tuple[list[str], list[str]]:
    """Fingerprints and names of the runs' references; where no run has one, of all scorers."""
    named = {
        row["fingerprint"]: row["name"] for row in page_rows(catalog, "references").to_pylist()
    }
    wanted = {run.reference for run in runs if run.reference is not None} or set(named)
    found = sorted(wanted & set(named))
    names = [f"{named[each]}@{each[:12]}" if named[each] else each[:12] for each in found]
    return found, names


def _reference_sums(
    logps: Mapping[tuple[str, str], Any], references: Sequence[str], sampled: SampledPairs
) -> list[dict[str, list[float | None]]]:
    """By reference and side the log-prob of each pair's completion, where all tokens are kept."""
    sums = []
    for reference in references:
        columns: dict[str, list[float | None]] = {}
        for side in ("chosen", "rejected"):
            columns[side] = []
            for row in sampled.rows:
                found = logps.get((reference, row[f"{side}_key"] or ""))
                if found is None or len(found) >= MAX_TOKENS:  # perhaps not the whole of it
                    columns[side].append(None)
                else:
                    columns[side].append(rounded(float(found.sum())))
        sums.append(columns)
    return sums


def _store_numbers(catalog: Catalog, path: Path) -> dict[str, Any]:
    (row,) = page_rows(catalog, "store").to_pylist()
    return {**row, "name": printable(path.resolve().name)}


def check_page_path(path: Path, *, overwrite: bool) -> None:
    """Check that a page can be written to ``path``.

    Raises:
        ReportError: If its folder is missing, or something is there that stays.
    """
    if not path.parent.is_dir():
        raise ReportError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise ReportError(f"{path} is a folder; expected the name of a file")
    if path.exists() and not path.is_file():
        raise ReportError(f"{path} is a device or a pipe; expected the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise _is_there(path)


def _is_there(path: Path) -> ReportError:
    return ReportError(f"{path} is there already; --overwrite replaces it")
