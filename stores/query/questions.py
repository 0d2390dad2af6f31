"""The named questions kept in ``sql/``: what each answers, its parameters and its columns.

A question is a file ``sql/<name>.sql`` that begins with comments:

    -- How often the chosen completion has the higher reward.
    -- param run runs: the runs to show; all if not given
    -- param num_buckets integer = 5: how many buckets
    -- column accuracy: share of pairs that the run has right

The first sentence, which may span several lines, says what it answers. ``param`` gives a name
that the SQL spells ``$name``, a type and, after ``=``, a default; without one it is null. Types are
``integer``, ``number``, ``share`` (between 0 and 1), ``text`` and ``runs``: names of runs, or
beginnings of their ids, which the SQL sees as ``uuid[]``; a question with one called ``run`` has
those of `run_names.SELECTORS`, too, which choose among runs before DuckDB is asked. ``column`` says
what a column means; those of the same name as a column of a table need no words of their own.
``leaves out`` says what an answer does not count, so that a person can be told how much that was
(left_out.py).

Values are handed to DuckDB beside the SQL, as prepared parameters; none becomes a part of its text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from offpref.stores.errors import UnknownQueryError
from offpref.stores.schema import TABLES

from .run_names import SELECTORS

SQL = Path(__file__).parent / "sql"

Value: TypeAlias = "str | int | float | bool | list[str] | None"

COUNTS = ("num_", "min_")
"""Beginnings of names of numbers that are at least 1."""

_PARAM = re.compile(r"param (\w+) (integer|number|share|text|runs)(?: = (\S.*?))?: (.+)")
_LEAVES_OUT = re.compile(r"leaves out (unpaired|unmatched)")
_COLUMN = re.compile(r"column (\w+): (.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A parameter of a question."""

    name: str
    kind: str
    """``integer``, ``number``, ``share``, ``text`` or ``runs``."""
    default: str | None
    """As a person would spell it; None for null."""
    meaning: str

    def value(self, text: str | None) -> Value:
        """Return what DuckDB is given for a value as it was spelled; None stands for the default.

        Raises:
            ValueError: If it is not of the parameter's kind, or not in its range.
        """
        text = self.default if text is None else text
        if text is None:
            return None
        if self.kind in ("text", "runs"):
            return text
        try:
            number = int(text) if self.kind == "integer" else float(text)
        except ValueError:
            raise ValueError(f"{self.name} must be of type {self.kind}, got {text!r}") from None
        if self.name.startswith(COUNTS) and number < 1:
            raise ValueError(f"{self.name} must be at least 1, got {number}")
        if self.kind == "share" and not 0 < number < 1:
            raise ValueError(f"{self.name} must be in (0, 1), got {number:g}")
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A named question."""

    name: str
    answers: str
    """The sentence that says what it answers."""
    parameters: tuple[Parameter, ...]
    columns: Mapping[str, str]
    """Meanings of columns, by name."""
    leaves_out: tuple[str, ...]
    """What it leaves out beside runs: ``unpaired``, pairs with one completion, or ``unmatched``,
    comparisons with too few common seeds."""
    sql: str

    @property
    def code(self) -> str:
        """The SQL without comments and literals: what views it names is named here."""
        return re.sub(r"--[^\n]*|'[^']*'", "", self.sql)

    def check_parameters(self, given: Mapping[str, object]) -> None:
        """Check that every name in ``given`` is a parameter.

        Raises:
            ValueError: If one is not; the message lists those that are.
        """
        known = [each.name for each in self.parameters]
        for name in given:
            if name not in known:
                there_are = f"it has: {', '.join(known)}" if known else "it has none"
                raise ValueError(f"{self.name} has no parameter {name!r}; {there_are}")


def query_names() -> list[str]:
    """Return the names of the questions, in alphabetical order."""
    return sorted(p.stem for p in SQL.glob("*.sql") if not p.stem.startswith("view_"))


def read_question(name: str) -> Question:
    """Return the question called ``name``.

    Raises:
        UnknownQueryError: If there is none.
    """
    path = SQL / f"{name}.sql"
    if name.startswith("view_") or not re.fullmatch(r"\w+", name) or not path.is_file():
        from difflib import get_close_matches  # only where something is wrong

        known = query_names()
        near = get_close_matches(name, known, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        if (SQL / f"view_{name}.sql").is_file() or name in TABLES:
            guess = f'; it is a view: "select * from {name}"'
        raise UnknownQueryError(
            f"no query is called {name!r}; there are: {', '.join(known)}{guess}"
        )
    return parse_question(name, path.read_text(encoding="utf-8"))


def parse_question(name: str, text: str) -> Question:
    """Return the question that SQL with comments before it asks; without any it has no parameters.

    Raises:
        ValueError: If a comment begins like a parameter or a column and then differs.
    """
    answers, notes = read_comments(text)
    parameters, columns, leaves_out = [], {}, []
    for note in notes:
        if found := _PARAM.fullmatch(note):
            parameters.append(
                Parameter(
                    name=found[1], kind=found[2], default=_unquoted(found[3]), meaning=found[4]
                )
            )
            if (found[1], found[2]) == ("run", "runs"):
                parameters += [
                    Parameter(name=name, kind="text", default=None, meaning=meaning)
                    for name, meaning in SELECTORS.items()
                ]
        elif found := _COLUMN.fullmatch(note):
            columns[found[1]] = found[2]
        elif found := _LEAVES_OUT.fullmatch(note):
            leaves_out.append(found[1])
        else:
            raise ValueError(
                "expected a comment like `param NAME integer|number|share|text|runs = DEFAULT:"
                f" meaning` or `column NAME: meaning`, got {note!r}"
            )
    return Question(
        name=name,
        answers=answers,
        parameters=tuple(parameters),
        columns=columns,
        leaves_out=tuple(leaves_out),
        sql=text,
    )


def read_comments(text: str) -> tuple[str, Sequence[str]]:
    """Return the sentence that a file of SQL begins with, and the notes that follow it.

    A note begins with ``param``, ``column`` or ``leaves out`` and may continue on indented lines.
    """
    notes = [""]
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        comment = line.removeprefix("--").removeprefix(" ")
        if re.match(r"(param|column|leaves out) \w+", comment):
            notes.append(comment)
        else:
            notes[-1] = f"{notes[-1]} {comment.strip()}".strip()
    return notes[0], notes[1:]


def _unquoted(default: str | None) -> str | None:
    return None if default is None else default.removeprefix("'").removesuffix("'")
