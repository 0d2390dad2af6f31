"""Where the command `offpref` starts, and how its errors end.

A question is asked often and answered in a fraction of a second: `offpref query` starts without the
options of all the other commands.
"""

import sys

import click

from ..stores.errors import StoreError


def start() -> None:
    """Run the command line, all of it or the questions alone."""
    if sys.argv[1:2] == ["query"]:
        from .question_commands import query

        StageGroup(commands={"query": query}).main(prog_name="offpref")
    from .cli import main

    main(prog_name="offpref")


class StageGroup(click.Group):
    """Shows the errors a user can fix as one line, and lets every other error through.

    Exit codes: 0 done, 1 an error of files, 2 wrong usage, 130 interrupted.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except StoreError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as interrupt:
            said = str(interrupt) or "interrupted: what was done is kept; the same command goes on"
            click.echo(said, err=True)
            raise SystemExit(130) from None
