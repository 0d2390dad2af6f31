"""How data becomes a pair set, checked when it is built."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from offpref.pipeline.settings import SHARE_BELOW_ONE, Range, check_settings, setting

TRUNCATIONS = ("drop", "keep-start")
PARTS = ("prompt", "chosen", "rejected", "completion", "label", "weight")
"""The parts of a row of data; the split has a setting of another kind."""


def _column(part: str) -> Any:  # as `setting`
    return setting(f"Column of the {part}, if it has another name than usual.", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class AddSettings:
    """What a pair set is made from, and how."""

    data: tuple[str, ...] = setting("File, folder or address; may be repeated.")
    pair_set: str = setting("Name for the pair set.")
    tokenizer: Path = setting("Folder with the tokenizer, such as a model's folder.")
    split_column: str | None = setting("Column that names the split of each row.", default=None)
    eval_fraction: float = setting(
        "Share of the prompts held out as split 'eval', by a hash of the prompt.", default=0.0,
        range=SHARE_BELOW_ONE,
    )  # fmt: skip
    max_length: int | None = setting(
        "Maximum length of a sequence in tokens, prompt and completion.", default=None,
        range=Range(least=2),
        shown="as many as the model in the tokenizer's folder has positions",
    )  # fmt: skip
    """None allows any length; the command line asks the model in the tokenizer's folder."""
    truncation: str = setting(
        "Whether to drop a longer row or to cut off the end of its completion.", default="drop",
        choices=TRUNCATIONS,
    )  # fmt: skip
    template_date: date | None = setting(
        "Date given to the chat template, if it asks.", default=None, metavar="YYYY-MM-DD",
        shown="that of the existing versions, else today",
    )  # fmt: skip
    prompt_column: str | None = _column("prompt")
    chosen_column: str | None = _column("chosen")
    rejected_column: str | None = _column("rejected")
    completion_column: str | None = _column("completion")
    label_column: str | None = _column("label")
    weight_column: str | None = _column("weight")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.pair_set or "@" in self.pair_set:
            raise ValueError(f"pair_set must be a name without @, got {self.pair_set!r}")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("two parts cannot come from one column; name another for one of them")
        if self.eval_fraction and self.split_column:
            raise ValueError("eval_fraction has no effect with split_column; give one of them")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by part."""
        named = {part: getattr(self, f"{part}_column") for part in PARTS}
        return {part: column for part, column in named.items() if column}
