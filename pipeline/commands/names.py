"""Names in a store that a shell completes: pair sets, runs, objectives, and the named questions.

The store is the one that the line names before. Nothing is written there, and whatever is wrong
with it, there are simply no names.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import click

from offpref.stores.query.run_names import STATUSES

Completer = Callable[[click.Context, click.Parameter, str], list[str]]

TIMEOUT_SECONDS = 3.0
_PAIR_SETS = "select distinct pair_set from pair_sets order by 1"
_RUNS = "select run from latest_runs order by started_at desc, run"
_TAGS = "select distinct unnest(tags) from run_tags order by 1"
_EVALUATIONS = "select distinct name from evaluations order by 1"
_PUT_AWAY = "select name from put_away where kind = '{kind}' order by hidden_at desc"
_OBJECTIVES = "select distinct objective from rewards order by 1"


def _from_store(sql: str, form: str = "{}") -> Completer:
    """Return what completes names that a query finds, each in a form."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        names = (form.format(each) for each in _names(ctx.params.get("store"), sql))
        return _beginning(names, incomplete)

    return complete


def _names(store: object, sql: str) -> list[str]:
    """Return the names that a query finds; none if there is no store that can be asked."""
    found: list[str] = []
    # A shell asks in the middle of a line: an error of any kind is no answer there.
    with suppress(Exception):
        if isinstance(store, str | Path):
            from offpref.stores.query.catalog import open_catalog
            from offpref.stores.query.query_limits import QueryLimits

            limits = QueryLimits(timeout_seconds=TIMEOUT_SECONDS)
            with open_catalog(Path(store), limits) as catalog:
                found = [str(row[0]) for row in catalog.answer(sql).rows]
    return found


def _questions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from offpref.stores.query.questions import query_names

    return _beginning(query_names(), incomplete)


def _named(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return what can be put away, or shown again, of the kind that stands before."""
    kind = str(ctx.params.get("kind"))
    if kind not in _OF_KIND:
        return []
    is_back = ctx.info_name == "restore"
    sql = _PUT_AWAY.format(kind=kind) if is_back else _OF_KIND[kind]
    return _beginning(_names(ctx.params.get("store"), sql), incomplete)


def _parameters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return values of parameters: runs, and the names of a question's others."""
    names = _values(ctx.params.get("store"), incomplete.partition("=")[0])
    with suppress(Exception):  # as in `_names`: the question may be SQL
        from offpref.stores.query.questions import read_question

        question = read_question(str(ctx.params.get("question")))
        known = [each.name for each in question.parameters]
        names = [each for each in names if each.partition("=")[0] in known]
        given = {each.partition("=")[0] for each in names}
        names += [f"{each}=" for each in known if each not in given]
    return [each for each in _beginning(names, incomplete) if each != incomplete]


def _values(store: object, parameter: str) -> list[str]:
    """Return the values of a parameter; of `run`, if no parameter is named yet."""
    if parameter == "status":
        return [f"status={each}" for each in STATUSES]
    name, sql = ("tag", _TAGS) if parameter == "tag" else ("run", _RUNS)
    return [f"{name}={each}" for each in _names(store, sql)]


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin so, and that a line can hold."""
    return [each for each in names if each.startswith(incomplete) and each.isprintable()]


_OF_KIND = {"run": _RUNS, "pair-set": _PAIR_SETS, "evaluation": _EVALUATIONS}

COMPLETED: Mapping[str, Completer] = {
    "pair_set": _from_store(_PAIR_SETS),
    "objective": _from_store(_OBJECTIVES, "{}="),
    "run": _from_store(_RUNS),
    "runs": _from_store(_RUNS, "run={}"),
    "set": _parameters,
    "name": _named,
    "add": _from_store(_TAGS),
    "drop": _from_store(_TAGS),
    "question": _questions,
}
"""What completes the values of a setting, by its name."""
