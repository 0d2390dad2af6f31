"""The command ``evaluate``: samples of a policy, and what they measure."""

from pathlib import Path
from typing import Any

from offpref.pipeline.evaluation.settings import (
    EvaluateSettings,
    SampleSettings,
    evaluate_settings,
)

from .options import command, options_of, usage_errors
from .terminal import say_lines


@command(
    options_of(EvaluateSettings), options_of(SampleSettings), name="evaluate", takes_config=True
)
def evaluate(store: Path, **options: Any) -> None:
    """Sample from a policy; measure rewards, KL to the reference, entropy and diversity."""
    from offpref.pipeline.api.lines import evaluation_lines
    from offpref.pipeline.progress import TokenBar
    from offpref.stores.store import Store

    with usage_errors():
        settings = evaluate_settings(options)
    from offpref.pipeline.evaluation.evaluate import plan_evaluation, run_evaluation

    with TokenBar("evaluate") as bar:
        with usage_errors():
            plan = plan_evaluation(Store.open(store), settings, bar)
        summary = run_evaluation(plan)
    say_lines(evaluation_lines(summary))
