"""What every view and every question holds, column by column: names, types, meanings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from offpref.stores.schema import TABLES

from .catalog import Catalog
from .questions import Parameter, Question, read_comments, read_question
from .run_names import SELECTORS
from .views import OF_STEPS, SQL, view_names

_OF_THE_STORE: dict[str, tuple[str, dict[str, str]]] = {
    "shards": (
        "a live file of a table",
        {
            "table_name": "the table",
            "partition": "the folder below the table's",
            "shard": "the file's name, the hash of its bytes",
            "num_rows": "its rows",
            "num_bytes": "its size",
        },
    ),
    "specs": (
        "what a fingerprint stands for",
        {
            "fingerprint": "the hash of the spec",
            "name": "the name that a person gave it; null if there is none",
            "spec": "the declared settings as JSON",
        },
    ),
    "scorers": ("the spec of a reference that has scored sequences", {}),
}
_PARTITIONS = {
    "reference": "fingerprint of the scorer",
    "tokenizer": "fingerprint of the tokenizer",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedColumn:
    """A column of a view or of an answer."""

    owner: str
    """Name of the view or the question."""
    name: str
    kind: str
    """Its type as DuckDB calls it."""
    meaning: str


def row_of(view: str) -> str:
    """Return what a row of a view is."""
    if view in _OF_THE_STORE:
        return _OF_THE_STORE[view][0]
    table = view.removesuffix("_of_all_attempts")
    if table in TABLES:
        which = " (of its newest attempt)" if view in OF_STEPS else ""
        which = " (of every attempt)" if table != view else which
        return TABLES[table].row + which
    return read_comments((SQL / f"view_{view}.sql").read_text(encoding="utf-8"))[0]


def view_columns(catalog: Catalog) -> Iterator[DescribedColumn]:
    """Yield the columns of all views of a store, view by view, tables first."""
    for view in view_names():
        meanings = _meanings(view)
        for name, kind in _kinds(catalog, view):
            yield DescribedColumn(owner=view, name=name, kind=kind, meaning=meanings[name])


def question_columns(catalog: Catalog, question: Question) -> Iterator[DescribedColumn]:
    """Yield the columns of the answer to a question."""
    found = catalog.answer(question.name, limit=0)
    meanings = _inherited(question.sql) | dict(question.columns)
    for name, kind in zip(found.columns, found.kinds, strict=True):
        yield DescribedColumn(owner=question.name, name=name, kind=kind, meaning=meanings[name])


def question_lines(name: str) -> list[str]:
    """Return what a person reads of a question: its name, what it answers, its parameters."""
    question = read_question(name)
    lines = [f"{name}: {question.answers}"]
    for each in _own_parameters(question):
        default = "" if each.default is None else f" = {each.default}"
        lines.append(f"    {each.name} ({each.kind}){default}: {each.meaning}")
    return lines


def selector_lines() -> list[str]:
    """Return what a person reads of the parameters that every question about runs has."""
    lines = ["every question that has the parameter run also has:"]
    return lines + [f"    {name} (text): {meaning}" for name, meaning in SELECTORS.items()]


def _own_parameters(question: Question) -> list[Parameter]:
    """Return a question's parameters without those that all about runs have."""
    return [each for each in question.parameters if each.name not in SELECTORS]


def _kinds(catalog: Catalog, view: str) -> list[tuple[str, str]]:
    found = catalog.answer(f"select column_name, column_type from (describe {view})")
    return [(row[0], row[1]) for row in found.rows]


def _meanings(view: str) -> dict[str, str]:
    """Return the meanings of a view's columns; those of the views that it reads are among them."""
    if view in _OF_THE_STORE:
        return _OF_THE_STORE["specs" if view == "scorers" else view][1]
    table = view.removesuffix("_of_all_attempts")
    if table in TABLES:
        docs = {each.name: each.doc for each in TABLES[table].columns}
        return _PARTITIONS | docs
    text = (SQL / f"view_{view}.sql").read_text(encoding="utf-8")
    pairs = (re.fullmatch(r"column (\w+): (.+)", note) for note in read_comments(text)[1])
    own = {found[1]: found[2] for found in pairs if found}
    return _inherited(text, view) | own


def _inherited(sql: str, besides: str | None = None) -> dict[str, str]:
    """Return the meanings of the columns of the views that ``sql`` reads, the first one's first."""
    code = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    views = dict.fromkeys(re.findall(r"\b(?:from|join) (\w+)", code))
    meanings: dict[str, str] = {}
    for view in views:
        if view in view_names() and view != besides:
            meanings = _meanings(view) | meanings
    return meanings


def question_section(catalog: Catalog, name: str) -> str:
    """Return what the page on questions says of one, in Markdown, without its answer."""
    question = read_question(name)
    lines = [f"### {name}", "", question.answers, ""]
    for parameter in _own_parameters(question):
        default = "" if parameter.default is None else f" (default {parameter.default})"
        lines.append(f"- `--set {parameter.name}=...`{default}: {parameter.meaning}")
    if question.parameters:
        lines.append("")
    lines += ["| column | type | meaning |", "| --- | --- | --- |"]
    for column in question_columns(catalog, question):
        meaning = column.meaning.replace("|", "\\|")
        lines.append(f"| `{column.name}` | {column.kind} | {meaning} |")
    return "\n".join(lines)
