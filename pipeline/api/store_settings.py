"""The settings of verbs whose work is done in `stores`, for the command line and for Python."""

from dataclasses import dataclass
from pathlib import Path

from offpref.pipeline.settings import AT_LEAST_ZERO, Range, check_settings, setting
from offpref.stores.maintenance.grace import GRACE_DAYS
from offpref.stores.report.settings import MAX_PAIRS, MOST_PAIRS, ReportSettings
from offpref.stores.schema import HIDEABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSettings:
    """Where the page goes and what is on it."""

    output: Path = setting("File to write, as report.html.", short="-o", path="any")
    overwrite: bool = setting("Replace the file if it is there.", default=False)
    run: tuple[str, ...] = setting(
        "Name of a run to show, a pattern such as 'sigmoid*', or the beginning of an id; may be"
        " repeated.",
        default=(),
        shown="all that count",
    )
    max_pairs: int = setting(
        "Maximum number of pairs to show; of more, a sample by the hash of the pair.",
        default=MAX_PAIRS,
        range=Range(least=1, most=MOST_PAIRS),
    )  # fmt: skip
    title: str | None = setting(
        "Title of the page.", default=None, shown="from the name of the store's folder"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def page(self) -> ReportSettings:
        """The same as the store's reports take it."""
        return ReportSettings(
            title=self.title, run_names=self.run, max_pairs=self.max_pairs,
            overwrite=self.overwrite,
        )  # fmt: skip


WATCH_SECONDS = 10.0
"""Time between two looks at a store that is watched, unless something else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedPageSettings(PageSettings):
    """The same, and whether the page is written again while the store changes."""

    watch: bool = setting("Write the page again whenever the store changes.", default=False)
    interval: float | None = setting(
        "Seconds between two looks at the store, with --watch.", default=None,
        shown=f"{WATCH_SECONDS:g}", range=Range(least=0.1),
    )  # fmt: skip

    def __post_init__(self) -> None:
        PageSettings.__post_init__(self)
        if self.interval is not None and not self.watch:
            raise ValueError("interval has no effect without --watch; leave it out, or add --watch")

    @property
    def interval_seconds(self) -> float:
        """Time between two looks."""
        return WATCH_SECONDS if self.interval is None else self.interval


@dataclass(frozen=True, kw_only=True, slots=True)
class ListSettings:
    """What is listed."""

    hidden: bool = setting("List what is put away instead.", default=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifySettings:
    """What is verified beside every byte."""

    deep: bool = setting(
        "Also recompute log-probs from a sample of the hidden states and compare.", default=False
    )
    drop_damaged: bool = setting(
        "Remove damaged scores, rewards and output heads first, so that they are computed again.",
        default=False,
    )  # fmt: skip


class _Graceful:
    """What two verbs have in common: a grace, and the word that allows a shorter one."""

    grace_days: float
    force: bool

    @property
    def grace_seconds(self) -> float:
        """The grace as stores take it."""
        return self.grace_days * 86400

    def check_grace(self, risk: str) -> None:
        """Refuse a short grace without force, and force without one; ``risk`` is what it costs."""
        is_short = self.grace_days < GRACE_DAYS
        if is_short and not self.force:
            raise ValueError(
                f"grace_days must be at least {GRACE_DAYS:g} without force, got"
                f" {self.grace_days:g}: {risk}"
            )
        if self.force and not is_short:
            raise ValueError("force has no effect with a grace that is not below the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactSettings(_Graceful):
    """What is dropped."""

    grace_days: float = setting(
        "Days that what was put away can still be restored; older is dropped for good.",
        default=GRACE_DAYS, range=AT_LEAST_ZERO,
    )  # fmt: skip
    force: bool = setting(
        "Accept a grace below the default: what is dropped cannot come back.", default=False
    )

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_grace("what was put away since could not be restored")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamesSettings:
    """What is put away, or shown again."""

    kind: str = setting("What is named.", is_argument=True, choices=tuple(HIDEABLE))
    name: tuple[str, ...] = setting(
        "Names, patterns such as 'try*', or beginnings of ids.", is_argument=True
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.name:
            raise ValueError(f"expected at least one name of a {self.kind}, got none")


@dataclass(frozen=True, kw_only=True, slots=True)
class PutAwaySettings(NamesSettings):
    """What is put away."""

    yes: bool = setting("Do not ask first.", default=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class TagSettings:
    """Which runs get which labels."""

    run: tuple[str, ...] = setting(
        "Names of runs, patterns such as 'sigmoid*', or beginnings of ids.", is_argument=True
    )
    add: tuple[str, ...] = setting("Label to give; may be repeated.", default=(), metavar="TAG")
    drop: tuple[str, ...] = setting("Label to take; may be repeated.", default=(), metavar="TAG")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.run or not (self.add or self.drop):
            raise ValueError(
                "expected names of runs, and labels to add or drop, as in"
                " `offpref store tag STORE 'sigmoid*' --add best`"
            )
        if both := set(self.add) & set(self.drop):
            raise ValueError(f"expected a label to be added or dropped, got both for {min(both)!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GarbageSettings(_Graceful):
    """Which files are deleted."""

    grace_days: float = setting(
        "Days that a file no longer named by any commit is kept, for readers that still use it.",
        default=GRACE_DAYS, range=AT_LEAST_ZERO,
    )  # fmt: skip
    force: bool = setting(
        "Accept a grace below the default. Nobody may be writing, and readers may miss a file.",
        default=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_grace(
            "rows that a writer has placed and not yet committed could be lost, and readers may"
            " miss files; force does it, unless a writer is at work"
        )
