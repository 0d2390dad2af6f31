"""The command ``reward``: margin rewards of one objective."""

from pathlib import Path
from typing import Any

from offpref.pipeline.rewards.settings import RewardSettings

from .options import command, options_of, settings_from, usage_errors
from .terminal import say_lines


@command(options_of(RewardSettings), name="reward", takes_config=True)
def reward(store: Path, **options: Any) -> None:
    """Stage one: write margin rewards of one objective, for completions that have none."""
    from offpref.pipeline.api.lines import reward_lines
    from offpref.pipeline.progress import TokenBar
    from offpref.pipeline.rewards.reward import plan_reward, run_reward
    from offpref.stores.store import Store

    settings = settings_from(RewardSettings, options)
    with TokenBar("reward") as bar:
        with usage_errors():
            plan = plan_reward(Store.open(store), settings)
        summary = run_reward(plan, bar)
    say_lines(reward_lines(summary))
