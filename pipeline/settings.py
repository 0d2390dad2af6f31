"""Declare settings: help, default, choices and range, once for the command line, TOML and Python.

The settings of a stage are a frozen dataclass whose fields are made by :func:`setting`. The
command line makes its options from them, and :func:`check_settings` checks the values against them,
so a value from a shell, a TOML file or Python gets the same check and the same message. It also
holds what the settings of several stages share. Python's standard library is all that it needs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from math import inf, isfinite
from typing import Any, Literal

from .nearest_words import nearest_word

PathKind = Literal["folder", "file", "existing file", "any"]

DATA, LOSS, LOSS_OPTIONS, SCHEDULE = "Data", "Loss", "Options of losses", "Schedule"
PRECISION, ADAPTERS = "Precision and memory", "Adapters"
MEASURING, OUTPUT, SOURCE = "Measuring", "Output", "Source of the rewards"
SAMPLING, COLUMNS, TEMPLATES = "Sampling", "Columns of the data", "Chat templates"
LISTING, LIMITS = "Instead of an answer", "Limits"
SECTIONS = (
    DATA, SOURCE, COLUMNS, TEMPLATES, LOSS, LOSS_OPTIONS, SCHEDULE, PRECISION, ADAPTERS, SAMPLING,
    MEASURING, OUTPUT, LIMITS, LISTING,
)  # fmt: skip
"""Sections of help, in the order in which a command with many options shows them."""

PRECISIONS = ("float32", "bf16", "bf16-autocast")
EXACT_PRECISIONS = ("float64",)
"""Accepted as well but not shown in help; for numerical tests."""
DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices, as torch names them."""
CPU_BATCH_TOKENS = 1024
"""On a CPU a batch should fit into the cache: 1024 tokens were a sixth faster than 4096 and a
quarter faster than 8192 (float32 Llama, 40M parameters). A GPU needs more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The numbers that a setting takes: finite ones between two ends, which may be excluded."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    takes_infinity: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a number lies between the ends; nan lies nowhere."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = self.above if self.least is None else self.least
        high = self.below if self.most is None else self.most
        if low is None or high is None:
            word = "at least" if self.above is None else "greater than"
            return "finite" if low is None else f"{word} {low:g}"
        opening, closing = "(["[self.above is None], ")]"[self.below is None]
        return f"in {opening}{low:g}, {high:g}{closing}"


FINITE = Range()
AT_LEAST_ZERO, AT_LEAST_ONE, ABOVE_ZERO = Range(least=0), Range(least=1), Range(above=0)
SHARE, SHARE_BELOW_ONE = Range(least=0, most=1), Range(least=0, below=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTokens:
    """Default number of tokens in a batch, padding included."""

    cpu: int = CPU_BATCH_TOKENS
    cuda: int

    def on(self, device_kind: str) -> int:
        """Return the number for a kind of device, as torch names it."""
        return self.cuda if device_kind == "cuda" else self.cpu

    def __str__(self) -> str:
        return f"{self.cpu} on a CPU, {self.cuda} on a GPU"


SCORE_BATCH_TOKENS = BatchTokens(cuda=65_536)
POLICY_BATCH_TOKENS = BatchTokens(cuda=16_384)
"""For a policy that is trained or compared with its reference: more is kept of each token."""
REWARD_BATCH_TOKENS = BatchTokens(cpu=4096, cuda=65_536)
REWARD_TRAIN_BATCH_TOKENS = 4096


def setting(
    help: str,
    *,
    default: Any = MISSING,  # a field has any type
    choices: Sequence[str] = (),
    unlisted: Sequence[str] = (),
    range: Range | None = None,
    check: Callable[[str], None] | None = None,
    shown: object = None,
    flag: str | None = None,
    short: str | None = None,
    metavar: str | None = None,
    path: PathKind = "folder",
    is_argument: bool = False,
    section: str | None = None,
    is_rare: bool = False,
) -> Any:
    """Return a field of a settings dataclass, which the command line can make an option of.

    Args:
        help: What the option does, as a sentence.
        default: Value if none is given; without one the setting is required.
        choices: Words that it takes.
        unlisted: Words that it takes as well but that help does not show.
        range: Numbers that it takes.
        check: Raises ValueError for a word that it does not take. It replaces the check against
            the choices, which help still shows.
        shown: Words for a default that is None or empty.
        flag: Name of the option, if it differs from the field's.
        short: Another name of the option, one letter long.
        metavar: What help calls the value.
        path: What a path leads to.
        is_argument: Whether the command line takes it by its place.
        section: Heading under which help shows it.
        is_rare: Whether only `--help-all` shows it.
    """
    said = {
        "help": help, "choices": tuple(choices), "unlisted": tuple(unlisted), "range": range,
        "check": check, "shown": shown, "flag": flag, "short": short, "metavar": metavar,
        "path": path, "is_argument": is_argument, "section": section, "is_rare": is_rare,
    }  # fmt: skip
    return field(default=default, metadata=said)


def pair_set_setting(*, default: Any = MISSING) -> Any:  # as `setting`
    """Return the setting that names a pair set of the store."""
    return setting("Name of the pair set, or NAME@FINGERPRINT.", default=default, section=DATA)


def device_setting() -> Any:  # as `setting`
    """Return the setting of the device that computes."""
    return setting(
        "Device, as torch names it.", default=None, check=_check_device,
        shown="a GPU if there is one", section=PRECISION,
    )  # fmt: skip


def _check_device(name: str) -> None:
    """Check the form of a device's name; whether it is there, torch knows."""
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        raise ValueError(
            f"device must be one of {', '.join(DEVICES)}, with a number as cuda:1 where there are "
            f"several, got {name!r}{nearest(kind, DEVICES)}"
        )


def kernels_setting(results: str) -> Any:  # as `setting`
    """Return the setting of the kernels' form; ``results`` says what they compute."""
    return setting(
        f"Form of the kernels for {results}.", default=None, choices=("torch", "triton"),
        shown="triton on a GPU, torch elsewhere", section=PRECISION, is_rare=True,
    )  # fmt: skip


def precision_setting(help: str, *, default: str | None = "float32") -> Any:  # as `setting`
    """Return the setting of a model's precision."""
    return setting(
        help, default=default, choices=PRECISIONS, unlisted=EXACT_PRECISIONS, section=PRECISION
    )


def batch_tokens_setting(help: str, usual: BatchTokens | int) -> Any:  # as `setting`
    """Return the setting of the tokens of a batch.

    Args:
        help: What the batch is for.
        usual: The default: one number, or one for each kind of device.
    """
    if isinstance(usual, int):
        return setting(help, default=usual, range=AT_LEAST_ONE, section=PRECISION)
    return setting(help, default=None, range=AT_LEAST_ONE, shown=usual, section=PRECISION)


def check_name(what: str, name: str) -> None:
    """Check a name that lines and tables will show.

    Raises:
        ValueError: If it holds a line break or another character of control.
    """
    if not name.isprintable():
        raise ValueError(f"{what} must be a name of printable characters, got {name!r}")


def check_settings(settings: Any) -> None:  # an instance of any settings dataclass
    """Check the values of settings against the choices and ranges of their fields.

    Raises:
        ValueError: If one is not a choice, or is out of range.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value is None or not each.metadata:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            check_value(each, one)


def check_value(each: Field[Any], value: Any) -> None:  # of the field's type
    """Check one value against the choices and the range of a field.

    Raises:
        ValueError: If it is not a choice, or is out of range.
    """
    said = each.metadata
    name = said.get("flag") or each.name
    if (check := said.get("check")) is not None:
        check(value)
    elif (choices := said.get("choices")) and value not in (*choices, *said["unlisted"]):
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}"
        )
    elif (range := said.get("range")) is not None:
        if not isfinite(value) and not (range.takes_infinity and value == inf):
            raise ValueError(f"{name} must be finite, got {value}")
        if not range.holds(value):
            raise ValueError(f"{name} must be {range}, got {value}")


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of a message that guesses what was meant; empty if nothing is similar.

    >>> nearest("sigmod", ["sigmoid", "hinge"])
    '; did you mean sigmoid?'
    >>> nearest("lr", ["num_epochs", "learning_rate"])
    '; did you mean learning_rate?'
    """
    found = nearest_word(str(name), known)
    return f"; did you mean {found}?" if found else ""
