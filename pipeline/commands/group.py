"""The group of commands: how the errors and the interrupts of a command end it."""

import os
import signal
import sys
from contextlib import suppress

import click

from offpref.stores.errors import OffprefError
from offpref.stores.printable import printable

from .terminal import say

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT

_KEPT = ": what was done is kept; run the same command to continue"
_RESUMED = ": what was saved is kept; run the same command with --resume to continue"
_STATES = {"query": "", "report": "", "export": "", "train": _RESUMED, "sft": _RESUMED}
"""What the message says after the word, for commands that do not just continue when run again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is computed is committed first."""

    exit_code = TERMINATED


class StageGroup(click.Group):
    """Shows the errors a user can fix as one line, and lets every other error through.

    Exit codes: 0 done, 1 an error of files, 2 wrong usage, 130 interrupted, 143 terminated.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OffprefError as error:
            raise click.ClickException(printable(str(error), "\n")) from error
        except click.ClickException as error:
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


def unwritable(error: OSError) -> str:
    """Return what is said where standard output cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"standard output cannot be written: {reason}; what was committed is safe"


def _is_stuck(interrupt: KeyboardInterrupt) -> bool:
    limits = sys.modules.get("offpref.stores.query.query_limits")  # only where a question was asked
    return limits is not None and isinstance(interrupt, limits.StuckQuery)
