"""Let go of damaged shards whose rows can be computed again: scores and rewards.

A damaged file is named by a commit, so that readers stop at it instead of returning what it holds.
A record that removes it makes its rows missing: the next `offpref score` or `offpref reward`
computes them. What cannot be computed again (texts, sequences, pairs, what runs measured) stays
named: it can only come from a copy.
"""

from dataclasses import dataclass
from pathlib import Path

from .commits import Record, write_record
from .errors import StoreError
from .schema import HIDDEN, LOGPS, REWARDS, TOPK
from .shards import Shard, file_name
from .store import Store

COMPUTED = (LOGPS.name, TOPK.name, HIDDEN.name, REWARDS.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """What was let go."""

    shards: list[Shard]
    """Damaged or missing, of tables that can be computed again."""

    @property
    def lines(self) -> list[str]:
        """One line for each table, and what to do."""
        lines = []
        for table in COMPUTED:
            own = [shard for shard in self.shards if shard.table == table]
            if own:
                verb = "reward" if table == REWARDS.name else "score"
                lines.append(
                    f"dropped {len(own):,} damaged shards of {table}, "
                    f"{sum(shard.num_rows for shard in own):,} rows: run `offpref {verb}` again"
                )
        return lines or ["dropped nothing: scores and rewards are whole"]


def drop_damaged(root: Path) -> Dropped:
    """Remove damaged shards of scores and rewards from what is live, and their files.

    Raises:
        StoreError: If the store cannot be read or written.
    """
    store = Store.open(root)
    damaged = [shard for table in COMPUTED for shard in store.shards(table) if not _is_whole(shard)]
    if damaged:
        write_record(
            Record(
                adds=frozenset(),
                removes=frozenset(shard.name for shard in damaged),
                provenance={"dropped_as_damaged": len(damaged)},
            ),
            root,
        )
    for shard in damaged:  # after the record: until then a reader shall stop at them
        shard.path.unlink(missing_ok=True)
    return Dropped(shards=damaged)


def _is_whole(shard: Shard) -> bool:
    """Whether a file's bytes are those that its name is the hash of."""
    try:
        return file_name(shard.path) == shard.name
    except (OSError, StoreError):
        return False
