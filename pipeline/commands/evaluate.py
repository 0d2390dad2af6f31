"""The command that samples from a policy and measures it."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from .options import PRECISIONS, config_option, store_argument
from .terminal import say


@click.command()
@store_argument
@click.option(
    "--model",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the policy.",
)
@click.option("--pair-set", required=True, help="Whose prompts, NAME or NAME@FINGERPRINT.")
@click.option(
    "--reference",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the reference, for KLs and accuracy.",
)
@click.option("--name", help="What to call the policy.  [default: name of its folder]")
@click.option("--split", default="eval", show_default=True, help="Split of prompts and pairs.")
@click.option("--num-prompts", type=int, help="Prompts to sample for.  [default: all]")
@click.option(
    "--objective",
    multiple=True,
    metavar="NAME=SOURCE",
    help="Reward of the samples; may be repeated. SOURCE is brevity, python:MODULE:FUNCTION, "
    "model:DIR, implicit:DIR:BETA or file:PATH.",
)
@click.option(
    "--num-samples", type=click.IntRange(min=0), default=4, show_default=True,
    help="Samples of each prompt; 0 measures the accuracy alone.",
)  # fmt: skip
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Longest sample.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the draws.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus of the draws.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Samples at once.")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True,
    help="Of both models.",
)  # fmt: skip
@click.option("--device", help="As torch names it.  [default: a GPU if there is one]")
@config_option
def evaluate(store: Path, **options: Any) -> None:
    """Sample from a policy; measure rewards, KL to the reference, entropy and diversity."""
    from offpref.pipeline.evaluation.sample_sets import SampleSettings
    from offpref.pipeline.evaluation.settings import EvaluateSettings
    from offpref.pipeline.progress import TokenBar
    from offpref.stores.store import Store

    from .printing import evaluation_lines

    drawn = {each.name: options.pop(each.name) for each in fields(SampleSettings)}
    try:
        samples = SampleSettings(**drawn) if drawn["num_samples"] else None
        settings = EvaluateSettings(samples=samples, **options)
        from offpref.pipeline.evaluation.evaluate import evaluate as run

        with TokenBar("evaluate") as bar:
            summary = run(Store.open(store), settings, bar)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for line in evaluation_lines(summary):
        say(line)
