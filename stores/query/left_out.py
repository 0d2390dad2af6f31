"""What an answer to a named question leaves out, and how much: lines for a person.

Nothing is left out in silence: dead attempts, runs without a row in the answer, pairs with one
completion, methods without common seeds, and rows beyond a number that the question takes as a
parameter.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .questions import Question, Value
from .run_names import NamedRun

Ask = Callable[[str, Mapping[str, Value]], list[tuple[Any, ...]]]
"""Answers SQL that may name views."""

LIMITS = ("num_pairs", "num_tokens")
"""Parameters that say how many rows are shown at most."""

NAMING = ("run", "other_run", "policy")
"""Columns that name runs."""

MAX_NAMES = 5

_UNPAIRED = """
select latest_runs.run, count(*)
from last_examples
join latest_runs using (run_id)
where reward_margins is null and ($split::varchar is null or last_examples.split = $split)
group by latest_runs.run
"""


def left_out(
    question: Question,
    values: Mapping[str, Value],
    columns: Sequence[str],
    runs: Sequence[NamedRun],
    ask: Ask,
    *,
    named: Collection[str] | None = None,
) -> Iterator[str]:
    """Yield what the answer to a question leaves out.

    Args:
        question: A named one.
        values: What its parameters were.
        columns: The columns of its answer.
        runs: The runs of the store.
        ask: Answers SQL.
        named: The runs that the whole answer names, where that is known: it is not asked again.
    """
    shown: Collection[str] = [each.run for each in runs]
    if "is_superseded" in question.code:
        meant = _meant(runs, values["run"])
        dead = [each.run for each in runs if each.is_superseded]
        if dead and values["run"] is None:
            yield f"{_named(dead, 'dead attempt')} left out; --set status=superseded shows them"
        is_whole = named is not None and not any(values.get(name) for name in LIMITS)
        shown = named if is_whole and named else _shown(question, values, columns, meant, ask)
        if absent := [run for run in meant if run not in shown]:
            yield f"{_named(absent, 'run')} left out, with nothing of what is asked"
    if "unpaired" in question.leaves_out:
        counts = ask(_UNPAIRED, {"split": values.get("split")})
        if count := sum(count for run, count in counts if run in shown):
            yield f"{count:,} pair{'s' * (count > 1)} with one completion left out"
    if "unmatched" in question.leaves_out:
        yield from _unmatched(question, values, ask)
    for name in LIMITS:
        if values.get(name) is not None:
            (num_shown,), (num_all,) = (
                ask(f"select count(*) from ({question.sql})", {**values, name: limit})[0]
                for limit in (values[name], None)
            )
            if num_all > num_shown:
                what = name.removeprefix("num_")
                yield f"{num_shown:,} of {num_all:,} {what} are shown; --set {name}=... shows more"


def _unmatched(question: Question, values: Mapping[str, Value], ask: Ask) -> Iterator[str]:
    """Yield how many comparisons have fewer common seeds than the question wants."""
    (num_shown,), (num_all,) = (
        ask(f"select count(*) from ({question.sql})", {**values, "min_seeds": least})[0]
        for least in (values["min_seeds"], None)
    )
    if not num_all:
        yield "what was measured is of one method at most: there is nothing to compare it with"
    elif count := num_all - num_shown:
        has_one = count == 1
        yield (
            f"{count:,} comparison{'' if has_one else 's'} of methods with fewer than "
            f"{values['min_seeds']} common seeds {'is' if has_one else 'are'} left out"
        )


def named_in(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> set[str]:
    """Return the runs that rows name."""
    places = [place for place, name in enumerate(columns) if name in NAMING]
    return {str(row[place]) for row in rows for place in places}


def _meant(runs: Sequence[NamedRun], chosen: Value) -> list[str]:
    """Return the names of the runs that a question is about."""
    if isinstance(chosen, list):
        return [each.run for each in runs if each.run_id in chosen]
    return [each.run for each in runs if not each.is_superseded]


def _shown(
    question: Question,
    values: Mapping[str, Value],
    columns: Sequence[str],
    meant: Sequence[str],
    ask: Ask,
) -> Sequence[str]:
    """Return the runs in the answer, whatever it is cut to; all where it names none."""
    naming = [name for name in NAMING if name in columns]
    if not naming or not meant:
        return meant
    uncut = {name: None if name in LIMITS else value for name, value in values.items()}
    listed = f"select distinct unnest([{', '.join(naming)}]) from ({question.sql})"
    return [run for (run,) in ask(listed, uncut)]


def _named(names: Sequence[str], what: str) -> str:
    """Return how many there are, and the names of some."""
    some = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    is_one = len(names) == 1
    return f"{len(names):,} {what}{'' if is_one else 's'} ({some}) {'is' if is_one else 'are'}"
