"""Named questions as views: what each answers without parameters.

A question whose name a table has (``runs``, ``pair_sets``) is no view: the table is.
"""

import re
from functools import cache

from .questions import Value, query_names, read_question
from .views import quoted, view_names


@cache
def question_views() -> tuple[str, ...]:
    """Return the names of the questions that are views."""
    return tuple(name for name in query_names() if name not in view_names())


def view_code(name: str) -> str:
    """Return the SQL of a question in which the views that it needs are named."""
    return read_question(name).code


@cache
def question_view(name: str) -> str:
    """Return the SELECT of a question's view: its own, with its parameters' defaults in it."""
    question = read_question(name)
    defaults = {each.name: each.value(None) for each in question.parameters}
    return re.sub(r"\$(\w+)", lambda found: _literal(defaults[found[1]]), question.sql)


def _literal(value: Value) -> str:
    if value is None:
        return "null"
    return quoted([value]) if isinstance(value, str) else repr(value)
