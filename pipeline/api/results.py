"""What the verbs of an open store return: small values that show themselves in a notebook.

Each holds what a command prints, as its lines, and the numbers that a program asks for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from offpref.pipeline.pairs.pair_sets import PairSet


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """What was done, in the words of the command that does it."""

    lines: tuple[str, ...]
    """What the command prints."""

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Pairs(Result):
    """A version of a pair set; stands for it wherever one is asked for."""

    name: str
    fingerprint: str
    num_pairs: int
    num_rejects: int
    is_new: bool
    """Whether this call has added it."""

    @classmethod
    def of(cls, found: PairSet, lines: Sequence[str], *, is_new: bool) -> "Pairs":
        """Return what describes a version."""
        return cls(
            lines=tuple(lines), name=found.name, fingerprint=found.fingerprint,
            num_pairs=found.num_pairs, num_rejects=found.num_rejects, is_new=is_new,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.name}@{self.fingerprint[:12]}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores(Result):
    """The reference's scores of a pair set."""

    pairs: str
    """The version that was scored, ``NAME@FINGERPRINT``."""
    reference: str
    """Fingerprint of the reference, which `train` takes as ``reference``."""
    num_sequences: int
    num_new: int
    """Sequences that were computed now; the others were there."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ObjectiveRewards(Result):
    """The rewards of one objective."""

    objective: str
    source: str
    """Fingerprint of where they come from."""
    num_new: int
    mean: float
    std: float
    agreement: float | None
    """Share of pairs whose chosen completion has the higher reward; None without pairs."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Run(Result):
    """A trained policy; stands for its folder wherever a model is asked for."""

    name: str
    run_id: str
    output_dir: Path
    num_steps: int
    metrics: Mapping[str, float]
    """Of the last step of this call, ``loss`` among them; empty where nothing was trained."""
    held_out: Mapping[str, float]
    """The same of the last evaluation of held-out pairs; of several splits under SPLIT/NAME."""

    def __fspath__(self) -> str:
        return str(self.output_dir)


@dataclass(frozen=True, kw_only=True, repr=False)
class RewardModel(Result):
    """A trained reward model; stands for its folder."""

    output_dir: Path
    accuracies: Mapping[str, float]
    """Share of the pairs of each split whose chosen text has the higher reward."""

    def __fspath__(self) -> str:
        return str(self.output_dir)


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepRuns(Result):
    """What a sweep did, by the names of its runs."""

    trained: tuple[str, ...]
    skipped: tuple[str, ...]
    """Runs that were finished before."""
    failed: Mapping[str, str]
    """What the runs said that did not finish."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PolicyMeasures(Result):
    """What was measured of a policy."""

    name: str
    rewards: Mapping[str, float]
    """Mean reward of its samples, by objective."""
    reverse_kl: float | None
    """KL(policy || reference) in nats per completion; None without a reference."""
    entropy: float | None
    accuracy: float | None
    """Share of held-out pairs whose chosen completion has the higher implicit reward."""
    row: Mapping[str, Any]  # of the table `evaluations`, whose columns have many types
    """The whole row of the table ``evaluations``."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Page(Result):
    """A report; a notebook links to it."""

    path: Path

    def _repr_html_(self) -> str:
        href = escape(self.path.resolve().as_uri(), quote=True)
        return f'<a href="{href}">{escape(str(self.path))}</a><pre>{escape(repr(self))}</pre>'


@dataclass(frozen=True, kw_only=True, repr=False)
class Exported(Result):
    """What was written for other tools."""

    path: Path
    num_written: int
    """Runs or views."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Checked(Result):
    """What verifying found."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    """What ``drop_damaged`` has removed."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.problems
