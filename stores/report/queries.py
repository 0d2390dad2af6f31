"""The questions behind the report's page: SQL kept in ``page/``, and values put into it.

A query names its values as ``$run_ids``. Only numbers, truth values and keys can be put in, so no
text of a store or of a user ever becomes SQL.
"""

from collections.abc import Sequence
from pathlib import Path
from string import Template
from uuid import UUID

import pyarrow as pa

from offpref.stores.query.catalog import Catalog

PAGE = Path(__file__).parent / "page"


def page_rows(catalog: Catalog, name: str, **values: bool | int | Sequence[str]) -> pa.Table:
    """Return the answer to the query ``page/<name>.sql``.

    Args:
        catalog: The store's views.
        name: Name of the query.
        values: What the query's names stand for: a number, a truth value, or keys as UUIDs.

    Raises:
        KeyError: If the query names a value that is not given.
        ValueError: If a key is not a UUID.
    """
    text = (PAGE / f"{name}.sql").read_text(encoding="utf-8")
    literals = {key: _literal(value) for key, value in values.items()}
    return catalog.select(Template(text).substitute(literals))


def _literal(value: bool | int | Sequence[str]) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    # An empty list is not valid SQL; nothing equals null.
    return ", ".join(f"'{UUID(key)}'::uuid" for key in value) or "null"
