"""The command line. Parsing and printing only; the work is in the stages' own modules.

Each command imports what it needs when it runs: help and queries start without torch, and so does
a ``score`` that finds everything in the store.
"""

import click

from .add import add
from .completion import completion
from .config import config
from .demo import demo
from .evaluate import evaluate
from .export import export
from .group import StageGroup
from .losses import losses
from .push_policy import push_policy
from .query import query
from .report import report
from .reward import reward
from .score import score
from .select import select
from .sft import sft
from .soup import soup
from .stages import STAGES
from .store import store_group
from .sweep import sweep
from .train import train
from .train_reward import train_reward

COLUMN = 22
"""Where the sentences of the list of commands begin."""


class WholeGroup(StageGroup):
    """The group of all commands, whose help lists them by stage."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands on one screen."""
        formatter.write(f"Usage: {ctx.command_path} COMMAND [ARGS]...    {self.help}\n\n")
        for stage, commands in STAGES.items():
            formatter.write_dl(
                [
                    (f"{'' if number else stage:6}  {name}", sentence)
                    for number, (name, sentence) in enumerate(commands.items())
                ],
                col_spacing=COLUMN - max(len(f"{'':6}  {name}") for name in commands),
            )
        formatter.write(
            f"\n{ctx.command_path} COMMAND --help shows its options, --version the version.\n"
        )


@click.group(cls=WholeGroup)
@click.version_option(package_name="offpref")
def main() -> None:
    """Score once, train from disk, ask in SQL."""


for each in (
    add, select, score, reward, train, train_reward, sweep, soup, demo, losses, sft, evaluate,
    export, query, report, store_group, config, push_policy, completion,
):  # fmt: skip
    main.add_command(each)
