"""How data becomes a pair set, checked when it is built."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

TRUNCATIONS = ("drop", "keep-start")


@dataclass(frozen=True, kw_only=True, slots=True)
class AddSettings:
    """What a pair set is made from, and how."""

    data: tuple[str, ...]
    """Files, folders or addresses."""

    pair_set: str
    """Name of the pair set."""

    tokenizer: Path
    """Folder with the tokenizer; a model's folder will do."""

    max_length: int | None = None
    """Longest sequence in tokens, prompt and completion together; None for any."""

    truncation: str = "drop"
    """What becomes of a longer one: ``drop`` rejects the row, ``keep-start`` cuts the completion's
    end off."""

    split_column: str | None = None
    """Column that names the split of each row."""

    eval_fraction: float = 0.0
    """Share of the prompts that go to the split ``eval``, by a hash of the prompt."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns by part, where they are not called as usual."""

    template_date: date | None = None
    """Day that a chat template is told if it asks; None for that of the versions that are there,
    else today."""

    def __post_init__(self) -> None:
        if not self.pair_set or "@" in self.pair_set:
            raise ValueError(f"pair_set must be a name without @, got {self.pair_set!r}")
        if self.truncation not in TRUNCATIONS:
            raise ValueError(
                f"truncation must be one of {', '.join(TRUNCATIONS)}, got {self.truncation!r}"
            )
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("two parts cannot come from one column; name another for one of them")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be in [0, 1), got {self.eval_fraction}")
        if self.eval_fraction and self.split_column:
            raise ValueError("eval_fraction takes no effect beside split_column; give one of them")
