"""The reference of the tables and views: every column with its type and its meaning."""

from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from site_commands import escaped

from offpref.stores.query.catalog import open_catalog
from offpref.stores.query.described import row_of, view_columns
from offpref.stores.schema import TABLES
from offpref.stores.store import Store


def tables_page() -> str:
    """Return the page on all views of a store, those of its tables first."""
    lines = [
        "# Tables and columns", "",
        "What `offpref query STORE --schema` lists: the views that a question may read. A "
        "table of the store is a view of its own name; the other views join them. "
        "[Questions](../questions.md) answers the common ones.", "",
    ]  # fmt: skip
    with TemporaryDirectory() as folder, open_catalog(_empty_store(Path(folder))) as catalog:
        for view, columns in groupby(view_columns(catalog), key=lambda each: each.owner):
            kind = "A table" if view in TABLES else "A view"
            lines += [f"## {escaped(view)}", "", f"{kind}; a row is {escaped(row_of(view))}.", ""]
            lines += ["| column | type | meaning |", "|---|---|---|"]
            lines += [f"| `{c.name}` | {c.kind} | {escaped(c.meaning)} |" for c in columns]
            lines.append("")
    return "\n".join(lines)


def _empty_store(folder: Path) -> Path:
    return Store.create(folder / "store").path
