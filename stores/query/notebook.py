"""A store in a notebook: its views as DuckDB relations, and answers as Arrow or pandas.

from offpref.stores.query.notebook import Notebook

store = Notebook(Path("store"))
store.view("examples").filter("split = 'eval'").aggregate("run_id, avg(loss)")
store.arrow("accuracy", run="dpo")
store.pandas("select * from latest_runs")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from offpref.stores.closing import Closing
from offpref.stores.live import LiveStore

from .catalog import Catalog
from .views import view_names

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Notebook(Closing):
    """The views of one store as they were when it was opened or refreshed; nothing is written."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``; see `offpref.open`, which most want."""
        self._store = LiveStore.open(path)
        self._catalog = Catalog(self._store)
        self._earlier: list[Catalog] = []  # before a refresh, with relations that still answer
        self._has_relations = False

    @property
    def views(self) -> list[str]:
        """Names of the views, in alphabetical order."""
        return sorted(view_names())

    def view(self, name: str) -> duckdb.DuckDBPyRelation:
        """Return a view as a relation of DuckDB's; nothing is read until rows are fetched.

        Raises:
            ValueError: If there is no such view.
        """
        self._has_relations = True
        return self._catalog.relation(name)

    def sql(self, question: str, **parameters: str) -> duckdb.DuckDBPyRelation:
        """Return the answer as a relation of DuckDB's; arguments and errors are `arrow`'s."""
        self._has_relations = True
        self._catalog.check(question, parameters)
        return self._catalog.sql(question, parameters)

    def arrow(self, question: str, *, limit: int | None = None, **parameters: str) -> "pa.Table":
        """Return the answer to a named question or to one SELECT as an Arrow table; keys are text.

        Args:
            question: Its name, or SQL.
            limit: Rows at most; None for all.
            parameters: As ``offpref query --set`` takes them.

        Raises:
            StoreError: As `Catalog.select` says.
            ValueError: If a parameter is unknown, or its value cannot be one.
        """
        self._catalog.check(question, parameters)
        return self._catalog.select(question, limit, parameters)

    def left_out(self, question: str, columns: Sequence[str], **parameters: str) -> tuple[str, ...]:
        """Return what the answer with these columns leaves out; errors are `arrow`'s."""
        return tuple(self._catalog.left_out(question, columns, parameters))

    def pandas(self, question: str, **parameters: str) -> "pd.DataFrame":
        """Return the same as a pandas data frame.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("pandas is not installed: pip install pandas") from error
        frame = self.arrow(question, limit=None, **parameters).to_pandas()
        assert isinstance(frame, pd.DataFrame)
        return frame

    def refresh(self) -> bool:
        """Look at what was committed since; return whether anything has changed.

        Relations made before stay as they are.
        """
        is_changed = self._store.refresh()
        if is_changed:
            if self._has_relations:
                self._earlier.append(self._catalog)
            else:
                self._catalog.close()
            self._catalog, self._has_relations = Catalog(self._store), False
        return is_changed

    def close(self) -> None:
        """Close all connections: relations end with them."""
        for each in (self._catalog, *self._earlier):
            each.close()
