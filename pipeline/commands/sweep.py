"""The command ``sweep``: every run that a file names."""

from pathlib import Path
from typing import Any

from offpref.pipeline.sweeps.points import SweepSettings, read_points

from .options import command, options_of, settings_from, usage_errors
from .terminal import say


@command(options_of(SweepSettings), name="sweep")
def sweep(store: Path, **options: Any) -> None:
    """Stage two: train every run that CONFIG names and that is not trained yet.

    CONFIG is a TOML file: [base] settings of all runs, [grid] lists of values to combine,
    [[points]] settings that change together.
    """
    settings = settings_from(SweepSettings, options)
    with usage_errors():
        points = read_points(settings.config)
    from offpref.pipeline.displays import display
    from offpref.pipeline.sweeps.sweep import (  # bring torch: only for settings that can act
        plan_sweep,
        run_sweep,
    )

    with usage_errors():
        plan = plan_sweep(store, points)
    summary = run_sweep(plan, jobs=settings.jobs, say=say, shown=display())
    say(
        f"done       {len(summary.trained):,} trained, {len(summary.skipped):,} skipped, "
        f"{len(summary.failed):,} failed in {summary.seconds:,.1f} s"
    )
    if summary.failed:
        raise SystemExit(1)
