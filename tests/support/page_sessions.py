"""Runs the examples of pages, as a reader would who types them one after the other.

A block whose first line is a comment with a file's name is written to that file. Other blocks of
Python are run, in one namespace for each page; the commands of a console's session are run, and
have to print what is shown. What differs between machines is masked: ids, numbers, spaces.

    python tests/support/page_sessions.py FOLDER docs/start_from_trl.md

runs pages in a folder, and writes what their commands print into them.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from page_blocks import ROOT, RUN, Block, blocks, commands_of

from offpref.pipeline.commands.main import main

BINARIES = Path(sys.executable).parent
_SHELL = re.compile(r"[|>&;$*]")


class Session:
    """A folder in which examples are run."""

    def __init__(self, folder: Path) -> None:
        """Run everything in a folder, which may hold what earlier sessions left."""
        self.folder = folder
        self._namespaces: dict[str, dict[str, Any]] = {}

    def run_page(self, page: str) -> list[str]:
        """Run the examples of a page; return what is wrong with them, as lines."""
        problems: list[str] = []
        for block in blocks(page):
            if block.language in RUN and block.declared is None and not problems:
                problems += self.run(block)
        return problems

    def run(self, block: Block) -> list[str]:
        """Run one block."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
            return []
        if block.language == "python":
            return self._run_python(block)
        if block.language == "console":
            return self._run_console(block)
        return [f"{block.where}: expected a first line that names the file, such as `# a.toml`"]

    def printed(self, command: str) -> tuple[int, str]:
        """Return a command's exit code and what it prints: its errors if it fails.

        A command of offpref alone runs in this process, everything else in a shell.
        """
        words = shlex.split(command.replace("\\\n", ""))
        if words[0] == "offpref" and not _SHELL.search(
            re.sub(r"(\"[^\"]*\"|'[^']*')", "", command)
        ):
            with chdir(self.folder):
                result = CliRunner().invoke(main, words[1:], prog_name="offpref")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.exit_code, result.stdout if not result.exit_code else result.stderr
        done = subprocess.run(
            command, shell=True, cwd=self.folder, capture_output=True, text=True, check=False,
            env=os.environ | {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        return done.returncode, done.stdout if not done.returncode else done.stderr

    def _run_python(self, block: Block) -> list[str]:
        namespace = self._namespaces.setdefault(block.page, {"__name__": "__main__"})
        source = "\n" * block.line + block.text  # so that a traceback names the page's line
        with chdir(self.folder):
            exec(compile(source, ROOT / block.page, "exec"), namespace)
        return []

    def _run_console(self, block: Block) -> list[str]:
        problems = []
        for command, shown in commands_of(block.text):
            code, printed = self.printed(command)
            is_error = "Error: " in shown
            wanted, found = without_measurements(shown), without_measurements(printed)
            if wanted.endswith("\n..."):
                wanted = wanted.removesuffix("\n...")
                found = found[: len(wanted)]
            if (code != 0) != is_error or wanted != found:
                problems.append(
                    f"{block.where}: $ {command}\nexit code {code}, printed\n{printed}\n"
                    f"but is shown to print\n{shown}"
                )
        return problems


def without_measurements(text: str) -> str:
    """Mask what differs between runs and machines: names drawn at random, times, roundings."""
    text = re.sub(r"\b([0-9a-f]{32}|[0-9a-f]{12})\b", "ID", text)
    text = re.sub(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?", "N", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def runs_in_demo(page: str) -> bool:
    """Say whether a page's examples use what `make demo` leaves."""
    run = [each for each in blocks(page) if each.language in RUN and each.declared is None]
    return any(".demo" in block.text for block in run)


def write_outputs(page: str, folder: Path) -> None:
    """Run a page in a folder and write what its commands print into the page."""
    session = Session(folder)
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in blocks(page):
        if block.declared is not None or block.language not in RUN:
            continue
        if block.language != "console":
            session.run(block)
            continue
        parts = []
        for command, shown in commands_of(block.text):
            start = time.perf_counter()
            code, printed = session.printed(command)
            print(f"{time.perf_counter() - start:6.1f} s  {command}", file=sys.stderr)
            if code and "Error: " not in shown:
                raise SystemExit(f"{block.where}: exit code {code}\n{printed}")
            printed = printed.rstrip()
            parts.append(f"$ {command}\n{printed}\n" if printed else f"$ {command}\n")
        text = text.replace(block.text, "\n".join(parts), 1)
    (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for each in sys.argv[2:]:
        write_outputs(each, place)
