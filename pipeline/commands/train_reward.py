"""The command ``train-reward``: a reward model from pairs."""

from pathlib import Path
from typing import Any

from offpref.pipeline.rewards.settings import RewardTrainSettings

from .options import command, options_of, settings_from
from .terminal import say_lines


@command(options_of(RewardTrainSettings), name="train-reward", takes_config=True)
def train_reward(store: Path, **options: Any) -> None:
    """Train a Bradley-Terry reward model on STORE's pairs, for `reward --from model`."""
    from offpref.pipeline.api.lines import reward_model_lines
    from offpref.pipeline.progress import StepBar
    from offpref.stores.store import Store

    settings = settings_from(RewardTrainSettings, options)
    from offpref.pipeline.rewards.train_model import train_reward as run  # brings torch

    with StepBar("train-reward") as bar:
        summary = run(Store.open(store), settings, bar)
    say_lines(reward_model_lines(summary))
