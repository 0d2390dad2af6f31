"""Where the command `offpref` starts, and how its errors end.

A question is asked often and answered in a fraction of a second: `offpref query` starts without the
options of all the other commands.
"""

import os
import signal
import sys
from contextlib import suppress

import click

from offpref.stores.errors import StoreError
from offpref.stores.printable import printable

from .terminal import open_closed_streams, say

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT

_KEPT = ": what was done is kept; the same command goes on"
_RESUMED = ": what was saved is kept; the same command with --resume goes on"
_STATES = {"query": "", "report": "", "export": "", "train": _RESUMED, "sft": _RESUMED}
"""What is said behind the word, where it is not that the same command goes on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is computed is committed first."""

    exit_code = TERMINATED


def start() -> None:
    """Run the command line, all of it or the questions alone."""
    open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if sys.argv[1:2] == ["query"]:
            from .query import query

            StageGroup(commands={"query": query}).main(prog_name="offpref")
        from .main import main

        main(prog_name="offpref")
    except SystemExit as error:
        _end(error.code)
    except KeyboardInterrupt as interrupt:  # before a command has begun: nothing was done
        click.echo("interrupted", err=True)
        raise SystemExit(getattr(interrupt, "exit_code", INTERRUPTED)) from None


class StageGroup(click.Group):
    """Shows the errors a user can fix as one line, and lets every other error through.

    Exit codes: 0 done, 1 an error of files, 2 wrong usage, 130 interrupted, 143 terminated.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except StoreError as error:
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
            # Files of ours are named by their errors; what has no name is a standard stream.
            raise click.ClickException(_unwritable(error)) from error
        except KeyboardInterrupt as interrupt:
            code = getattr(interrupt, "exit_code", INTERRUPTED)
            word = "terminated" if code == TERMINATED else "interrupted"
            said = str(interrupt) or word + _STATES.get(ctx.invoked_subcommand or "", _KEPT)
            with suppress(OSError):
                say(said, err=True)
            if _is_stuck(interrupt):
                os._exit(INTERRUPTED)  # a thread inside a library does not end
            raise SystemExit(code) from None


def _is_stuck(interrupt: KeyboardInterrupt) -> bool:
    limits = sys.modules.get("offpref.stores.query.query_limits")  # only where a question was asked
    return limits is not None and isinstance(interrupt, limits.StuckQuery)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _end(code: object) -> None:
    """Leave with a code, once it is known that what was printed has arrived."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 1
    except OSError as error:
        with suppress(OSError):
            click.echo(f"Error: {_unwritable(error)}", err=True)
        code = code or 1
    else:
        _leave_group(code)
        raise SystemExit(code)
    # Python would try again, and say so in many lines.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(code)


def _leave_group(code: object) -> None:
    """End now if this process is one of several that were joined.

    Threads of gloo outlive their group, and one that wants a tensor's Python object while Python
    ends aborts the process: rarely, and after all its work is done.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return
    distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _unwritable(error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"standard output cannot be written: {reason}; what was committed is safe"
