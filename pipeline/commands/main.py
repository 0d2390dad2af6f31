"""The command line. Parsing and printing only; the work is in the stages' own modules.

Each command imports what it needs when it runs: help and queries start without torch, and so does
a ``score`` that finds everything in the store.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .evaluate import evaluate
from .options import (
    PRECISIONS,
    add_settings,
    config_option,
    data_options,
    store_argument,
    take_data_options,
    train_options,
)
from .query import export, query
from .report import report
from .sft import sft
from .start import StageGroup
from .store import store_group
from .terminal import say


@click.group(cls=StageGroup)
@click.version_option(package_name="offpref")
def main() -> None:
    """Score preference pairs once, train from the scores, ask questions in SQL."""


@main.command()
@store_argument
@click.option(
    "--data", required=True, multiple=True, help="File, folder or address; may be repeated."
)
@click.option("--pair-set", required=True, help="Name for the pairs.")
@click.option(
    "--tokenizer",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with the tokenizer; a model's folder will do.",
)
@data_options
@config_option
def add(store: Path, data: tuple[str, ...], pair_set: str, tokenizer: Path, **options: Any) -> None:
    """Put pairs, prompts with completions, or unpaired labels into STORE."""
    from offpref.pipeline.pairs.add import add_pairs, check_sources, plan_add
    from offpref.pipeline.progress import RowBar
    from offpref.stores.store import Store

    from .printing import pair_set_lines

    settings = add_settings(data, pair_set, tokenizer, options)
    check_sources(settings)
    opened = Store.create(store)
    try:
        planned = plan_add(opened, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with RowBar("add") as bar:
        found, is_new = add_pairs(opened, planned, bar.advance)
    _echo(pair_set_lines(opened, found, is_new=is_new))


@main.command()
@store_argument
@click.option("--pair-set", required=True, help="Name of the pairs, or NAME@FINGERPRINT.")
@click.option(
    "--model",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the reference, in Hugging Face form with safetensors.",
)
@click.option("--data", multiple=True, help="Add this first; as for add.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Of weights and activations; logits are float32 always.",
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens of a batch, padding included.  [default: 1024 on a CPU, 65536 on a GPU]",
)
@click.option("--device", help="As torch names it.  [default: a GPU if there is one]")
@click.option(
    "--kernels",
    type=click.Choice(["torch", "triton"]),
    help="Form of the kernels for log-probs and entropy.  [default: triton on a GPU, torch "
    "elsewhere]",
)
@click.option(
    "--shard-model",
    is_flag=True,
    help="Under torchrun: split the model over the processes (FSDP2), for one that fits no device.",
)
@click.option(
    "--commit-seconds",
    type=click.FloatRange(min=0, max=45),
    default=20.0,
    show_default=True,
    help="Seconds of work between commits: what a kill can cost.",
)
@click.option(
    "--tier",
    multiple=True,
    type=click.Choice(["logps", "topk", "hidden"]),
    help="How much to keep of what the reference says of each token; may be repeated. logps always "
    "is; topk and hidden serve tdpo and KLs (docs/tiers.md).  [default: logps]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Most likely tokens that tier topk keeps.  [default: 64]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what it would cost, measured on a few batches, and write nothing.",
)
@click.option(
    "--kl-pairs",
    is_flag=True,
    help="Score what kto needs as well: each prompt with the next prompt's completion.",
)
@data_options
@config_option
def score(store: Path, pair_set: str, model: Path, data: tuple[str, ...], **options: Any) -> None:
    """Stage one: write the reference's scores of every sequence that lacks them."""
    from offpref.pipeline.models.fingerprints import model_config
    from offpref.pipeline.pairs.add import check_sources
    from offpref.pipeline.progress import TokenBar
    from offpref.pipeline.scores.score import dry_run
    from offpref.pipeline.scores.score import score as run
    from offpref.pipeline.scores.settings import ScoreSettings
    from offpref.stores.store import Store

    from .printing import dry_run_lines, pair_set_lines, score_lines

    is_dry_run = options.pop("dry_run")
    options["tiers"] = options.pop("tier")
    added = take_data_options(options)
    source = click.get_current_context().get_parameter_source
    given = [name for name in added if source(name) is not ParameterSource.DEFAULT]
    if given and not data:
        raise click.UsageError(f"--{given[0].replace('_', '-')} takes no effect without --data")
    try:
        settings = ScoreSettings(
            model=model,
            pair_set=None if data else pair_set,
            data=add_settings(data, pair_set, model, added) if data else None,
            **options,
        )
        if settings.kernels is not None:  # brings torch
            from offpref.pipeline.models.devices import check_kernels

            check_kernels(settings.kernels, settings.device)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if settings.data is not None:
        model_config(model)  # says so if the folder is no model
        check_sources(settings.data)
    opened = Store.create(store) if data and not is_dry_run else Store.open(store)
    if is_dry_run:
        try:
            found = dry_run(opened, settings)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        _echo(dry_run_lines(found))
        if not found.fits:
            raise click.ClickException(
                "the disk cannot hold it: ask for fewer tiers or a smaller --top-k"
            )
        return
    with TokenBar("score") as bar:
        try:
            summary = run(opened, settings, bar)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    _echo(pair_set_lines(opened, summary.pair_set, is_new=summary.is_added))
    _echo(score_lines(summary))


@main.command()
@store_argument
@click.option("--pair-set", required=True, help="Name of the pairs, or NAME@FINGERPRINT.")
@click.option("--objective", required=True, help="Name of the objective.")
@click.option(
    "--from",
    "kind",
    required=True,
    type=click.Choice(["column", "model", "implicit", "brevity", "python", "file"]),
    help="Where the rewards come from.",
)
@click.option("--chosen-column", help="column: the data's column with the chosen one's reward.")
@click.option("--rejected-column", help="column: the same for the rejected one.")
@click.option(
    "--model",
    type=click.Path(file_okay=False, path_type=Path),
    help="model: folder of a sequence classifier; implicit: of a trained policy.",
)
@click.option("--head", type=int, help="model: which output, if it has several.")
@click.option("--implicit-beta", type=float, help="implicit: what log-ratios are multiplied by.")
@click.option("--reference", help="implicit: fingerprint.  [default: what the policy's run says]")
@click.option("--function", help="python: module:function of lists of prompts and completions.")
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="file: Parquet with reward and sequence_key or text_key.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of the model.")
@click.option("--device", help="As torch names it.  [default: a GPU if there is one]")
@click.option("--max-batch-tokens", type=click.IntRange(min=1), help="model: tokens of a batch.")
@click.option("--trust-remote-code", is_flag=True, help="model: run Python code in its folder.")
@click.option("--standardize", is_flag=True, help="Mean 0, deviation 1 over the pair set.")
@config_option
def reward(store: Path, **options: Any) -> None:
    """Stage one: write margin rewards of one objective, for completions that have none."""
    from offpref.pipeline.progress import TokenBar
    from offpref.pipeline.rewards.reward import reward as run
    from offpref.pipeline.rewards.settings import RewardSettings
    from offpref.stores.store import Store

    from .printing import reward_lines

    try:
        settings = RewardSettings(**options)
        with TokenBar("reward") as bar:
            summary = run(Store.open(store), settings, bar)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _echo(reward_lines(summary))


@main.command()
@store_argument
@train_options()
@config_option
def train(store: Path, **options: Any) -> None:
    """Stage two: train a policy on STORE's pairs against the reference's stored scores."""
    from offpref.pipeline.progress import TokenBar
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.stores.store import Store

    from .printing import training_lines

    opened = Store.open(store)
    try:
        settings = TrainSettings(**options)
        from offpref.pipeline.models.devices import (
            check_kernels,  # these bring torch: only for settings that can act
        )
        from offpref.pipeline.training.plan import plan_training

        check_kernels(settings.kernels, settings.device)
        plan = plan_training(opened, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    from offpref.pipeline.training.train import train as run

    with TokenBar("train") as bar:
        summary = run(plan, bar)
    if summary.is_first:
        _echo(training_lines(summary))


@main.command(name="train-reward")
@store_argument
@click.option("--pair-set", required=True, help="Name of the pairs, or NAME@FINGERPRINT.")
@click.option(
    "--model",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to start from: a language model or a classifier.",
)
@click.option(
    "--output-dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the reward model; new or empty.",
)
@click.option("--learning-rate", type=float, default=1e-5, show_default=True, help="Of AdamW.")
@click.option("--num-epochs", type=int, default=1, show_default=True, help="Passes over the pairs.")
@click.option("--pairs-per-step", type=int, default=16, show_default=True, help="Pairs of a step.")
@click.option(
    "--max-batch-tokens", type=int, default=4096, show_default=True, help="Of a microbatch."
)
@click.option("--max-grad-norm", type=float, default=1.0, show_default=True, help="Clip beyond.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Of AdamW.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of order and new weights.")
@click.option("--device", help="As torch names it.  [default: a GPU if there is one]")
@config_option
def train_reward(store: Path, **options: Any) -> None:
    """Train a Bradley-Terry reward model on STORE's pairs, for `reward --from model`."""
    from offpref.pipeline.progress import TokenBar
    from offpref.pipeline.rewards.train_model import RewardTrainSettings
    from offpref.pipeline.rewards.train_model import train_reward as run
    from offpref.stores.store import Store

    from .printing import reward_model_lines

    try:
        settings = RewardTrainSettings(**options)
        with TokenBar("train-reward") as bar:
            summary = run(Store.open(store), settings, bar)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _echo(reward_model_lines(summary))


@main.command()
@store_argument
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time."
)
def sweep(store: Path, config: Path, jobs: int) -> None:
    """Stage two: train every run that CONFIG names and that is not trained yet.

    CONFIG is a TOML file: [base] settings of all runs, [grid] lists of values to combine,
    [[points]] settings that change together.
    """
    from offpref.pipeline.training.sweep_plan import read_points

    try:
        points = read_points(config)
        from offpref.pipeline.training.sweep import (
            sweep as run,  # brings torch: only for settings that can act
        )

        summary = run(store, points, jobs=jobs, say=say)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    say(
        f"done       {len(summary.trained):,} trained, {len(summary.skipped):,} skipped, "
        f"{len(summary.failed):,} failed in {summary.seconds:,.1f} s"
    )
    if summary.failed:
        raise SystemExit(1)


@main.command()
@click.argument("output_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--run",
    "runs",
    multiple=True,
    required=True,
    metavar="DIR=WEIGHT",
    help="A model's folder and its weight; at least two.",
)
def soup(output_dir: Path, runs: tuple[str, ...]) -> None:
    """Write the weighted mean of the weights of several policies (rewarded soups)."""
    folders, weights = [], []
    for each in runs:
        folder, _, weight = each.rpartition("=")
        try:
            weights.append(float(weight))
        except ValueError as error:
            raise click.UsageError(f"--run must be DIR=WEIGHT, got {each!r}") from error
        folders.append(Path(folder))
    from offpref.pipeline.models.soup import soup as run

    try:
        num_tensors = run(folders, weights, output_dir)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    say(f"soup       {output_dir}: {num_tensors:,} tensors of {len(folders)} models")


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def demo(folder: Path) -> None:
    """Run every stage on an embedded small world, offline, into FOLDER."""
    from .demo import run_demo

    def run(arguments: Sequence[str]) -> None:
        say(f"\n$ offpref {' '.join(arguments)}")
        main.main(list(arguments), standalone_mode=False)

    run_demo(folder, run, say)


for command in (sft, evaluate, export, query, report, store_group):
    main.add_command(command)


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)
