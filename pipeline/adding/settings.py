"""How data becomes a pair set, checked when it is built."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from offpref.pipeline.settings import (
    COLUMNS,
    DATA,
    SHARE_BELOW_ONE,
    TEMPLATES,
    Range,
    check_name,
    check_settings,
    setting,
)
from offpref.pipeline.tokenization.chat_templates import read_arguments

TRUNCATIONS = ("drop", "keep-start", "keep-end")
FIRST, SECOND, TIE = "first", "second", "tie"
TIES = ("drop", "keep")
PARTS = (
    "prompt", "chosen", "rejected", "completion", "label", "winner", "score", "system", "input",
    "weight",
)  # fmt: skip
"""The parts of a row of data; the split has a setting of another kind."""


def _column(part: str) -> Any:  # as `setting`
    return setting(
        f"Column of the {part}, if it has another name than usual.", default=None,
        section=COLUMNS, is_rare=part in ("completion", "label", "weight"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class AddSettings:
    """What a pair set is made from, and how."""

    data: tuple[str, ...] = setting(
        "File, folder or address; may be repeated. NAME=0.7 or NAME=5000 is a share, or a number "
        "of pairs, of a pair set in a mixture.",
        section=DATA,
    )
    pair_set: str = setting("Name for the pair set.", section=DATA)
    tokenizer: Path = setting("Folder with the tokenizer, such as a model's folder.", section=DATA)
    split_column: str | None = setting(
        "Column that names the split of each row.", default=None, section=COLUMNS, is_rare=True
    )
    eval_fraction: float = setting(
        "Share of the prompts held out as split 'eval', by a hash of the prompt.", default=0.0,
        range=SHARE_BELOW_ONE,
        section=DATA,
    )  # fmt: skip
    max_length: int | None = setting(
        "Maximum length of a sequence in tokens, prompt and completion.", default=None,
        range=Range(least=2),
        shown="as many as the model in the tokenizer's folder has positions",
        section=DATA,
    )  # fmt: skip
    """None allows any length; the command line asks the model in the tokenizer's folder."""
    truncation: str = setting(
        "What becomes of a longer row: it is dropped, loses the end of its completion, or the "
        "beginning of its prompt.", default="drop",
        choices=TRUNCATIONS,
        section=DATA,
    )  # fmt: skip
    template_date: date | None = setting(
        "Date given to the chat template, if it asks.", default=None, metavar="YYYY-MM-DD",
        shown="that of the existing versions, else today",
        section=TEMPLATES, is_rare=True,
    )  # fmt: skip
    chat_template: str | None = setting(
        "File with a chat template, or the name of one of the tokenizer's.", default=None,
        shown="the tokenizer's own",
        section=TEMPLATES,
    )  # fmt: skip
    chat_template_kwargs: str | None = setting(
        "Arguments for the chat template, as a JSON object; a row's own ones win.", default=None,
        metavar="JSON",
        section=TEMPLATES, is_rare=True,
    )  # fmt: skip
    apply_chat_template: bool = setting(
        "Take texts as turns of a conversation, and write them with the chat template.",
        default=False,
        section=TEMPLATES,
    )
    trajectory: bool = setting(
        "Take everything after a conversation's first prompt as its completion.",
        default=False,
        section=TEMPLATES,
        is_rare=True,
    )
    winner_values: str | None = setting(
        "Which completion the values of the winner's column name: 0=first,1=second,2=tie.",
        default=None, metavar="VALUE=first|second|tie,...",
        section=COLUMNS, is_rare=True,
    )  # fmt: skip
    ties: str = setting(
        "Whether to drop a tie or to keep it, as two pairs of half the weight.", default="drop",
        choices=TIES,
        section=COLUMNS, is_rare=True,
    )  # fmt: skip
    mixture_seed: int = setting(
        "Seed by which the rows of a mixture are drawn.",
        default=0,
        range=Range(least=0),
        section=DATA,
        is_rare=True,
    )
    prompt_column: str | None = _column("prompt")
    chosen_column: str | None = _column("chosen")
    rejected_column: str | None = _column("rejected")
    completion_column: str | None = _column("completion")
    label_column: str | None = _column("label")
    winner_column: str | None = setting(
        "Column that says which of two completions is better.",
        default=None,
        section=COLUMNS,
        is_rare=True,
    )
    score_column: str | None = setting(
        "Column with the scores of completions, or their name in each completion.",
        default=None,
        section=COLUMNS,
        is_rare=True,
    )
    system_column: str | None = setting(
        "Column of the system prompt, if it has another name than usual.",
        default=None,
        section=COLUMNS,
        is_rare=True,
    )
    input_column: str | None = setting(
        "Column that goes behind the prompt, if it has another name than usual.",
        default=None,
        section=COLUMNS,
        is_rare=True,
    )
    weight_column: str | None = _column("weight")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.pair_set or "@" in self.pair_set:
            raise ValueError(f"pair_set must be a name without @, got {self.pair_set!r}")
        check_name("pair_set", self.pair_set)
        named = [*self.columns.values(), *([self.split_column] if self.split_column else [])]
        if len(set(named)) < len(named):
            raise ValueError("two parts cannot come from one column; name another for one of them")
        if self.eval_fraction and self.split_column:
            raise ValueError("eval_fraction has no effect with split_column; give one of them")
        if self.chat_template_kwargs is not None:
            read_arguments(self.chat_template_kwargs)
        read_winners(self.winner_values)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by part."""
        named = {part: getattr(self, f"{part}_column") for part in PARTS}
        return {part: column for part, column in named.items() if column}

    @property
    def template_arguments(self) -> dict[str, object]:
        """The arguments for the template of every conversation."""
        return read_arguments(self.chat_template_kwargs) if self.chat_template_kwargs else {}


FROM_LISTS = ("best-worst", "adjacent", "all", "random")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectSettings:
    """Which pairs are made of a pair set's lists."""

    pair_set: str = setting("Pair set with lists: NAME or NAME@FINGERPRINT.")
    from_lists: str = setting(
        "Which two completions of a list make a pair: its best and worst, neighbours, all, or one"
        " pair drawn at random.",
        choices=FROM_LISTS,
    )
    name: str | None = setting(
        "Name for the new pair set.", default=None, shown="PAIR_SET-FROM_LISTS"
    )
    min_gap: float | None = setting(
        "Smallest difference of scores that makes a pair.", default=None, range=Range(least=0),
        shown="any above 0",
    )  # fmt: skip
    seed: int = setting("Seed for drawing at random.", default=0, range=Range(least=0))

    def __post_init__(self) -> None:
        check_settings(self)
        if self.name is not None and (not self.name or "@" in self.name):
            raise ValueError(f"name must be a name without @, got {self.name!r}")
        check_name("name", self.name or "")
        if self.seed and self.from_lists != "random":
            raise ValueError("seed has no effect without from_lists random")


def read_winners(text: str | None) -> dict[str, str]:
    """Return which completion each value of a winner's column names; none for None.

    Raises:
        ValueError: If the text has not the form ``VALUE=first,VALUE=second,VALUE=tie``.

    >>> read_winners("0=first,1=second")
    {'0': 'first', '1': 'second'}
    """
    found: dict[str, str] = {}
    for each in (text or "").split(","):
        value, equals, name = each.rpartition("=")
        if text is not None and (not equals or name not in (FIRST, SECOND, TIE)):
            raise ValueError(
                f"winner_values must be VALUE=first,VALUE=second,VALUE=tie, got {text!r}"
            )
        if equals:
            found[value.strip()] = name
    return found
