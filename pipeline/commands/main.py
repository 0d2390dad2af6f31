"""The command line. Parsing and printing only; the work is in the stages' own modules.

Each command imports what it needs when it runs: help and queries start without torch, and so does
a ``score`` that finds everything in the store.
"""

import click

from .add import add
from .demo import demo
from .evaluate import evaluate
from .export import export
from .group import StageGroup
from .losses import losses
from .query import query
from .report import report
from .reward import reward
from .score import score
from .select import select
from .sft import sft
from .soup import soup
from .store import store_group
from .sweep import sweep
from .train import train
from .train_reward import train_reward


@click.group(cls=StageGroup)
@click.version_option(package_name="offpref")
def main() -> None:
    """Score preference pairs once, train from the scores, ask questions in SQL."""


for each in (
    add, select, score, reward, train, train_reward, sweep, soup, demo, losses, sft, evaluate,
    export, query, report, store_group,
):  # fmt: skip
    main.add_command(each)
