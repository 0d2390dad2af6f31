"""How a person names a mask: which tokens of a completion count. Nothing here imports numpy."""

from offpref.pipeline.settings import nearest

ALL, ASSISTANT, LAST_TURN, DIFF = "all", "assistant", "last-turn", "diff"
MASK_NAMES = (ALL, ASSISTANT, LAST_TURN, DIFF)
SQL_PREFIX = "sql:"
_MOST_SHOWN = 60
SHOWN_MASKS = "|".join((*MASK_NAMES, "sql:SELECT...", "sql:FILE.sql"))


def check_mask(mask: str) -> None:
    """Check the form of a mask; whether a query can be asked, the store knows.

    Raises:
        ValueError: If it is neither a name nor a query.
    """
    is_query = mask.startswith(SQL_PREFIX) and mask.removeprefix(SQL_PREFIX).strip()
    if mask not in MASK_NAMES and not is_query:
        raise ValueError(
            f"mask must be one of {', '.join(MASK_NAMES)}, or sql: with a SELECT or a file, got "
            f"{shown_mask(mask)!r}{nearest(mask, MASK_NAMES)}"
        )


def shown_mask(mask: str) -> str:
    """Return a mask for a line of text: of a long query its beginning.

    >>> shown_mask("sql:select  sequence_key, position from masks")
    'sql:select sequence_key, position from masks'
    """
    line = " ".join(mask.split())
    return line if len(line) <= _MOST_SHOWN else f"{line[: _MOST_SHOWN - 3]}..."
