"""The command ``train``: stage two."""

from pathlib import Path
from typing import Any

from offpref.pipeline.training.settings import TrainSettings

from .options import command, options_of, settings_from, usage_errors
from .terminal import say_lines


@command(options_of(TrainSettings), name="train", takes_config=True)
def train(store: Path, **options: Any) -> None:
    """Stage two: train a policy on STORE's pairs against the reference's stored scores."""
    from offpref.pipeline.api.lines import training_lines
    from offpref.pipeline.progress import StepBar
    from offpref.stores.store import Store

    opened = Store.open(store)
    settings = settings_from(TrainSettings, options)
    # These bring torch: only for settings that can act.
    from offpref.pipeline.models.devices import check_kernels
    from offpref.pipeline.training.plan import plan_training

    with usage_errors():
        check_kernels(settings.kernels, settings.device)
        plan = plan_training(opened, settings)
    from offpref.pipeline.training.train import train as run

    with StepBar("train") as bar:
        summary = run(plan, bar)
    if summary.is_first:
        say_lines(training_lines(summary))
