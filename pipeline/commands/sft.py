"""The command that fine-tunes on demonstrations or on chosen completions."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from .options import (
    add_settings,
    config_option,
    data_options,
    store_argument,
    take_data_options,
)
from .options import train_options as options_of_train
from .terminal import say

_FIRST, _LAST = "loss_type", "kl_metrics"


def _of_losses() -> frozenset[str]:
    """Return the settings of a run that say which loss it has: here it is ``sft``."""
    from offpref.pipeline.training.settings import TrainSettings

    names = [each.name for each in fields(TrainSettings)]
    return frozenset(names[names.index(_FIRST) : names.index(_LAST) + 1]) | {"reference"}


@click.command()
@store_argument
@options_of_train(without=_of_losses(), optional=frozenset({"model"}))
@click.option("--data", multiple=True, help="Add this first; as for add.")
@click.option(
    "--from-scratch",
    "scratch",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CONFIG.json",
    help="Instead of --model: a model of this configuration with random weights, and a tokenizer "
    "trained on --data; kept beside the output folder as NAME-start.",
)
@click.option("--vocab-size", type=int, help="Tokens of that tokenizer.  [default: 512]")
@data_options
@config_option
def sft(
    store: Path,
    data: tuple[str, ...],
    scratch: Path | None,
    vocab_size: int | None,
    **options: Any,
) -> None:
    """Fine-tune on demonstrations, or on the chosen completions of pairs (Preferred-FT)."""
    from offpref.pipeline.progress import RowBar, TokenBar
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.stores.store import Store

    from .printing import pair_set_lines, training_lines

    data_given = take_data_options(options)
    output_dir = options["output_dir"]
    if (options["model"] is None) == (scratch is None):
        raise click.UsageError("give one of --model and --from-scratch")
    if vocab_size is not None and scratch is None:
        raise click.UsageError("--vocab-size takes no effect without --from-scratch")
    if scratch is not None:
        if not data:
            raise click.UsageError("--from-scratch needs --data, to train a tokenizer on")
        options["model"] = output_dir.parent / f"{output_dir.name}-start"
    try:
        if scratch is not None:
            _make_start(options, scratch, data, data_given, vocab_size)
        if data:
            settings = add_settings(data, options["pair_set"], options["model"], data_given)
            from offpref.pipeline.pairs.add import add_pairs, check_sources, plan_add

            check_sources(settings)
            opened = Store.create(store)
            with RowBar("add") as bar:
                found, is_new = add_pairs(opened, plan_add(opened, settings), bar.advance)
            for line in pair_set_lines(opened, found, is_new=is_new):
                say(line)
        opened = Store.open(store)
        from offpref.pipeline.training.plan import plan_training
        from offpref.pipeline.training.train import train as run

        plan = plan_training(opened, TrainSettings(**options, loss_type=("sft",)))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with TokenBar("sft") as bar:
        summary = run(plan, bar)
    if summary.is_first:
        for line in training_lines(summary):
            say(line)


def _make_start(
    options: dict[str, Any],
    config: Path,
    data: tuple[str, ...],
    data_given: dict[str, Any],
    vocab_size: int | None,
) -> None:
    from offpref.pipeline.pairs.settings import AddSettings
    from offpref.pipeline.training.scratch import make_model

    columns = {
        name.removesuffix("_column"): value
        for name, value in data_given.items()
        if name.endswith("_column") and name != "split_column" and value
    }
    described = AddSettings(
        data=data, pair_set=options["pair_set"], tokenizer=options["model"], columns=columns
    )
    if make_model(
        options["model"], config, described, vocab_size=vocab_size or 512, seed=options["seed"]
    ):
        say(f"start      {options['model']}: random weights, a tokenizer of its own")
