"""The group of commands: how the errors and the interrupts of a command end it."""

import os
import signal
import sys
from contextlib import suppress

import click

from offpref.pipeline.settings import nearest
from offpref.stores.errors import OffprefError, OwnCodeError
from offpref.stores.printable import printable

from .terminal import say

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
VERBOSE = "offpref.verbose"
"""Key of a context's `meta`: whether tracebacks are shown."""

_KEPT = ": what was done is kept; run the same command to continue"
_RESUMED = ": what was saved is kept; run the same command with --resume to continue"
_STATES = {"query": "", "report": "", "export": "", "train": _RESUMED, "sft": _RESUMED}
"""What the message says after the word, for commands that do not just continue when run again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is computed is committed first."""

    exit_code = TERMINATED


class NearestGroup(click.Group):
    """Answers an unknown command with the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that was named; see click."""
        name = args[0]
        is_known = self.get_command(ctx, name) is not None
        if not is_known and not ctx.resilient_parsing and not name.startswith("-"):
            known = self.list_commands(ctx)
            guess = nearest(name, known) or f"; there are: {', '.join(known)}"
            raise click.UsageError(f"unknown command {name!r}{guess}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands in whole sentences."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(n, each.get_short_help_str(limit=1000)) for n, each in commands if each]
            )


class StageGroup(NearestGroup):
    """Shows the errors a user can fix as one line, and lets every other error through.

    Exit codes: 0 done, 1 an error of files, 2 wrong usage, 130 interrupted, 143 terminated.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OffprefError as error:
            _show_traceback(ctx, error)
            is_hidden = isinstance(error, OwnCodeError) and not ctx.meta.get(VERBOSE)
            more = "; --verbose shows the traceback" if is_hidden else ""
            raise click.ClickException(printable(f"{error}{more}", "\n")) from error
        except click.ClickException as error:
            _show_traceback(ctx, error.__cause__)
            vars(error)["message"] = printable(error.message, "\n")
            raise
        except OSError as error:
            if (
                error.errno is None
                or error.filename is not None
                or isinstance(error, BrokenPipeError)
            ):
                raise
            # Our own errors name their files; an error without a file name is a standard stream's.
            raise click.ClickException(unwritable(error)) from error
        except KeyboardInterrupt as interrupt:
            code = getattr(interrupt, "exit_code", INTERRUPTED)
            word = "terminated" if code == TERMINATED else "interrupted"
            said = str(interrupt) or word + _STATES.get(ctx.invoked_subcommand or "", _KEPT)
            with suppress(OSError):
                say(said, err=True)
            if _is_stuck(interrupt):
                os._exit(INTERRUPTED)  # a thread inside a library does not end
            raise SystemExit(code) from None


def _show_traceback(ctx: click.Context, error: BaseException | None) -> None:
    """Print where an error comes from, for one who asked for it with `--verbose`."""
    if error is not None and ctx.meta.get(VERBOSE):
        from traceback import format_exception

        say("".join(format_exception(error)).rstrip(), err=True)


def unwritable(error: OSError) -> str:
    """Return what is said where standard output cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"standard output cannot be written: {reason}; what was committed is safe"


def _is_stuck(interrupt: KeyboardInterrupt) -> bool:
    limits = sys.modules.get("offpref.stores.query.query_limits")  # only where a question was asked
    return limits is not None and isinstance(interrupt, limits.StuckQuery)
