"""Where the command `offpref` starts, and how it exits.

A question is asked often and answered in a fraction of a second, and so is a `score` that finds
everything in the store: a command starts without the options of all the others.
"""

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

import click

from .group import INTERRUPTED, StageGroup, Terminated, unwritable
from .stages import SENTENCES
from .terminal import open_closed_streams

VERBS = tuple(name for name in SENTENCES if name != "demo")
"""Commands that need no other one; `demo` runs them all."""


def start() -> None:
    """Run the command line, all of it or the questions alone."""
    open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _group(sys.argv[1] if len(sys.argv) > 1 else "").main(prog_name="offpref")
    except SystemExit as error:
        _end(error.code)
    except OSError as error:  # help is printed before a command begins, which would say so
        if error.filename is not None or isinstance(error, BrokenPipeError):
            raise
        click.echo(f"Error: {unwritable(error)}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt as interrupt:  # before a command has begun: nothing was done
        click.echo("interrupted", err=True)
        raise SystemExit(getattr(interrupt, "exit_code", INTERRUPTED)) from None


def _group(verb: str) -> click.Group:
    """Return the group of one command, or of all where what is asked is not one."""
    name = verb.replace("-", "_")
    if verb not in VERBS:
        from .main import main

        return main
    module = import_module(f".{name}", __package__)
    command = module.store_group if verb == "store" else getattr(module, name)
    return StageGroup(commands={verb: command})


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _end(code: object) -> None:
    """Exit with a code, once the printed output is known to have arrived."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 1
    except OSError as error:
        with suppress(OSError):
            click.echo(f"Error: {unwritable(error)}", err=True)
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
