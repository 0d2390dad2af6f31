"""Read sources as examples: the form of each file is told first, then its rows come in chunks."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

import pyarrow as pa

from offpref.stores.errors import SourceError
from offpref.stores.sources import SourceFile, columns_of, read_rows, row_names

from .examples import Examples, ReadOptions, read_examples
from .forms import Form, find_form, unsettled, widened
from .settings import AddSettings, read_winners

CHUNK_ROWS = 1024
MAX_SEARCHED_BATCHES = 64
"""Batches of rows in which the form of a file is looked for."""
NUM_SAMPLE_ROWS = 64


def read_sources(
    files: Sequence[SourceFile], settings: AddSettings
) -> Iterator[tuple[Examples, int]]:
    """Yield the sources' rows in chunks, with the number of the file each came from.

    Raises:
        SourceError: If a file cannot be read as a whole, or its columns have no known form.
    """
    options = ReadOptions(
        winners=read_winners(settings.winner_values),
        keeps_ties=settings.ties == "keep",
        is_trajectory=settings.trajectory,
    )
    # The form of every file is known before a row of the first one is kept.
    first = read_rows(files[0]) if files else iter(())
    told = [_told(files[0], first, settings)] if files else []
    told += [(form_of(file, settings), None) for file in files[1:]]
    check_effect([form for form, _ in told], settings)
    for number, (file, (form, rows_read)) in enumerate(zip(files, told, strict=True)):
        # Of the first file, what its form was told from is not read again.
        goes_on = number == 0 and rows_read is not None
        for rows in chain((rows_read,), first) if goes_on else read_rows(file):
            if rows is None or not rows.num_rows:
                continue
            if rows is not rows_read:
                form = widened(form, rows)
            for start in range(0, rows.num_rows, CHUNK_ROWS):
                yield read_examples(rows.slice(start, CHUNK_ROWS), form, options), number


def check_effect(forms: Sequence[Form], settings: AddSettings) -> None:
    """Check that every option about rows has an effect on a source.

    Raises:
        SourceError: If one has none.
    """
    is_compared = any("winner" in form.columns for form in forms)
    may_tie = is_compared or any("first_score" in form.columns for form in forms)
    has_messages = any(form.value == "messages" for form in forms)
    parted = ("implicit pairs", "implicit compared pairs", "demonstrations", "unpaired")
    has_trajectories = any(
        form.value == "messages" and form.name in parted and "completion" not in form.columns
        for form in forms
    )
    without = {
        "winner_values": settings.winner_values is not None and not is_compared,
        "ties": settings.ties != "drop" and not may_tie,
        "trajectory": settings.trajectory and not has_trajectories,
        "chat_template": settings.chat_template is not None and not has_messages,
        "chat_template_kwargs": settings.chat_template_kwargs is not None and not has_messages,
    }
    for name, has_none in without.items():
        if has_none:
            what = "; ".join(dict.fromkeys(f"{form.name} ({form.value})" for form in forms))
            raise SourceError(f"--{name.replace('_', '-')} has no effect on {what}")


def form_of(file: SourceFile, settings: AddSettings) -> Form:
    """Return the form of a file, told from rows that hold values.

    Raises:
        SourceError: If its columns have no known form; the message names the file.
    """
    return _told(file, read_rows(file), settings)[0]


def _told(
    file: SourceFile, batches: Iterator[pa.Table], settings: AddSettings
) -> tuple[Form, pa.Table | None]:
    """Return the form of a file, and its first batch of rows if that told it.

    Rows whose columns are empty tell nothing: a file may begin with thousands of them.

    Raises:
        SourceError: If its columns have no known form; the message names the file.
    """
    named = _named_columns(settings)
    sample: pa.Table | None = None
    form: Form | None = None
    kinds: Mapping[str, str] = {}
    problem: SourceError | None = None
    for rows in islice((each for each in batches if each.num_rows), MAX_SEARCHED_BATCHES):
        new = rows if form is None else _telling(rows, unsettled(form, kinds))
        is_first = sample is None
        sample = rows if is_first else pa.concat_tables([sample, new.slice(0, NUM_SAMPLE_ROWS)])
        kinds = row_names(sample)
        try:
            form = find_form(sample, named, kinds=kinds, as_messages=settings.apply_chat_template)
        except SourceError as error:
            problem = error
            continue
        if not unsettled(form, kinds):
            return form, rows if is_first else None
    if form is not None:
        return form, None
    if problem is not None:
        raise SourceError(f"{file.address}: {problem}") from problem
    raise SourceError(f"{file.address}: expected rows of data, found none")


def _telling(rows: pa.Table, names: list[str]) -> pa.Table:
    """Return the rows that hold a value in one of some columns."""
    taken = columns_of(rows, names)
    kinds = [taken[f"type/{name}"].to_pylist() for name in names]
    mask = [any(kind not in (None, "NULL") for kind in row) for row in zip(*kinds, strict=True)]
    return rows.filter(pa.array(mask, pa.bool_()))


def _named_columns(settings: AddSettings) -> dict[str, str]:
    split = {"split": settings.split_column} if settings.split_column else {}
    return {**settings.columns, **split}
