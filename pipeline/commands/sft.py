"""The command ``sft``: fine-tuning on demonstrations or on chosen completions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.settings import DATA, setting
from offpref.pipeline.training.settings import NOT_OF_SFT, TrainSettings

from .add import add_data, add_options, added_settings
from .options import (
    command,
    options_of,
    settings_from,
    usage_errors,
)
from .terminal import say, say_lines

_VOCAB_SIZE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class ScratchSettings:
    """A model made from scratch to start from, in place of an existing one."""

    from_scratch: Path | None = setting(
        "Instead of --model: a model of this configuration with random weights, and a tokenizer "
        "trained on --data; kept beside the output folder as NAME-start.", default=None,
        metavar="CONFIG.json", path="existing file", section=DATA,
    )  # fmt: skip
    vocab_size: int | None = setting(
        "Size of its vocabulary.", default=None, shown=_VOCAB_SIZE, section=DATA
    )

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.from_scratch is None:
            raise ValueError("--vocab-size has no effect without --from-scratch")


@command(
    options_of(
        TrainSettings,
        without=NOT_OF_SFT,
        optional={"model": "Folder of the policy to start from."},
    ),
    options_of(ScratchSettings),
    add_options(),
    name="sft",
    takes_config=True,
)
def sft(store: Path, **options: Any) -> None:
    """Fine-tune on demonstrations, or on the chosen completions of pairs (Preferred-FT)."""
    from offpref.pipeline.api.lines import training_lines
    from offpref.pipeline.progress import StepBar
    from offpref.stores.store import Store

    scratch = settings_from(ScratchSettings, options)
    settings = settings_from(TrainSettings, _with_start(options), loss_type=("sft",))
    data = added_settings(options, tokenizer=settings.model)
    if scratch.from_scratch is not None:
        if data is None:
            raise click.UsageError("--from-scratch needs --data, to train a tokenizer on")
        _make_start(settings, scratch.from_scratch, scratch.vocab_size or _VOCAB_SIZE, data)
    if data is not None:
        add_data(store, data)
    opened = Store.open(store)
    from offpref.pipeline.training.plan import plan_training  # brings torch

    with usage_errors():
        plan = plan_training(opened, settings)
    from offpref.pipeline.training.train import train as run

    with StepBar("sft") as bar:
        summary = run(plan, bar)
    if summary.is_first:
        say_lines(training_lines(summary))


def _with_start(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the folder of the model that training starts from."""
    if (options["model"] is None) == (options["from_scratch"] is None):
        raise click.UsageError("give one of --model and --from-scratch")
    if options["model"] is not None:
        return options
    output: Path = options["output_dir"]
    return {**options, "model": output.parent / f"{output.name}-start"}


def _make_start(settings: TrainSettings, config: Path, vocab_size: int, data: AddSettings) -> None:
    from offpref.pipeline.training.scratch import check_vocab_size, make_model

    with usage_errors():
        check_vocab_size(vocab_size)
    folder = settings.model
    if make_model(folder, config, data, vocab_size=vocab_size, seed=settings.seed):
        say(f"start      {folder}: random weights, a tokenizer of its own")
