"""Whether SQL is one statement that reads views, and nothing else."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb

from offpref.stores.errors import QueryRefusedError

# Since DuckDB 2.0 a CTE may be an INSERT or a COPY, and COPY writes even to files that are allowed
# for reading only by our intent. So the parsed tree may hold these nodes and no others.
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# Table functions that look at nothing but their arguments, or at the views' own names. All others
# are refused by name, before DuckDB's settings would refuse what most of them do.
_TABLE_FUNCTIONS = {
    "range", "generate_series", "unnest", "json_each", "json_tree", "duckdb_columns",
    "duckdb_views", "duckdb_functions", "duckdb_keywords", "duckdb_types",
}  # fmt: skip


def check_reads(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """Return the tables that one statement reads, in lower case, if it only reads views.

    Raises:
        QueryRefusedError: If it is not.
    """
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryRefusedError(f"the query is not SQL: {explained(error)}") from error
    kinds = [_kind(statement) for statement in statements]
    if kinds != ["SELECT"]:
        raise QueryRefusedError(f"expected one SELECT, got {', '.join(kinds) or 'nothing'}")
    found = connection.execute("select json_serialize_sql(?)", [sql]).fetchone()
    assert found is not None
    tree = json.loads(found[0])
    if tree["error"]:
        raise QueryRefusedError(f"expected one SELECT, got {tree['error_message']}")
    tables = set()
    for node in _nodes(tree):
        _check_node(node)
        if node.get("type") == "BASE_TABLE":
            tables.add(str(node["table_name"]).lower())
    return tables


def explained(error: Exception) -> str:
    """Return an error's message as DuckDB has it: what is near, and the place in the SQL."""
    lines = [line.rstrip() for line in str(error).strip().splitlines() if line.strip()]
    return "\n".join(lines) or type(error).__name__


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type).removeprefix("StatementType.")
    except ValueError:  # DuckDB has kinds of statements that its Python package has no name for
        return "another statement"


def _check_node(node: Mapping[str, Any]) -> None:
    """Raise QueryRefusedError if a node of the parsed tree does more than read views."""
    kind, function = str(node.get("type", "")), node.get("function_name")
    if kind.endswith("_NODE") and kind not in _READING_NODES:
        what = kind.removesuffix("_NODE").removesuffix("_QUERY")
        raise QueryRefusedError(f"expected one SELECT, got {what} inside it")
    if kind == "TABLE_FUNCTION":
        name = str(node["function"]["function_name"]).lower()
        if name not in _TABLE_FUNCTIONS:
            raise QueryRefusedError(f"expected one SELECT over the views, got the function {name}")
    if kind == "BASE_TABLE" and re.search(r"[/.:*]", str(node.get("table_name"))):
        raise QueryRefusedError(f"expected one SELECT over the views, got {node['table_name']!r}")
    if isinstance(function, str) and function.lower() == "json_execute_serialized_sql":
        raise QueryRefusedError(f"expected one SELECT, got the function {function}")


def _nodes(tree: object) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
