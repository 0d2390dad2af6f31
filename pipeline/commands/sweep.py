"""The command ``sweep``: every run that a file names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offpref.pipeline.settings import AT_LEAST_ONE, check_settings, setting

from .options import command, options_of, settings_from, usage_errors
from .terminal import say


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSettings:
    """Which runs are trained, and how many at a time."""

    config: Path = setting("TOML file of the runs.", is_argument=True, path="existing file")
    jobs: int = setting("Runs at a time.", default=1, range=AT_LEAST_ONE)

    def __post_init__(self) -> None:
        check_settings(self)


@command(options_of(SweepSettings), name="sweep")
def sweep(store: Path, **options: Any) -> None:
    """Stage two: train every run that CONFIG names and that is not trained yet.

    CONFIG is a TOML file: [base] settings of all runs, [grid] lists of values to combine,
    [[points]] settings that change together.
    """
    from offpref.pipeline.training.sweep_plan import read_points

    settings = settings_from(SweepSettings, options)
    with usage_errors():
        points = read_points(settings.config)
    from offpref.pipeline.training.sweep import (  # bring torch: only for settings that can act
        plan_sweep,
        run_sweep,
    )

    with usage_errors():
        plan = plan_sweep(store, points)
    summary = run_sweep(plan, jobs=settings.jobs, say=say)
    say(
        f"done       {len(summary.trained):,} trained, {len(summary.skipped):,} skipped, "
        f"{len(summary.failed):,} failed in {summary.seconds:,.1f} s"
    )
    if summary.failed:
        raise SystemExit(1)
