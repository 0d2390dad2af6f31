"""Tables: plain text in a pipe, and on a terminal one that fits it, with colours and a pager."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from row_store import put, put_runs, step
from terminals import read_to_end

from offpref.pipeline.commands.tables import terminal_text
from offpref.stores.query.texttable import text_table, vertical_table
from offpref.stores.store import Store

KEY = "0123456789abcdef0123456789abcdef"
RUN = "sigmoid-beta0.1-lr5e-7-seed1"


def shown(
    columns: list[str], kinds: list[str], *rows: tuple[object, ...], width: int, **more: bool
) -> list[str]:
    """The lines of a table without colours and what fills them up."""
    text = terminal_text(columns, kinds, rows, width=width, **{"is_vertical": False, **more})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in plain
    return [line.rstrip() for line in plain.splitlines()]


def test_keys_are_cut_first_and_a_run_never() -> None:
    lines = shown(["run", "pair_key", "prompt"], ["VARCHAR", "UUID", "VARCHAR"],
                  (RUN, KEY, "a short text"), width=52)  # fmt: skip

    assert lines == [
        f"{'run':28}  pair_key  prompt",
        f"{RUN}  0123456\u2026  a short text",
    ]


def test_long_headings_take_several_lines_before_texts_do() -> None:
    lines = shown(["run", "mean_forward_kl", "text"], ["VARCHAR", "DOUBLE", "VARCHAR"],
                  ("dpo", 0.5, "one two three four"), width=33)  # fmt: skip

    assert lines[-1] == "dpo       0.5  one two three four"
    assert [line.split() for line in lines[:-1]] == [["mean_"], ["forward_"], ["run", "kl", "text"]]


def test_long_texts_are_wrapped_and_end_in_an_ellipsis() -> None:
    lines = shown(["run", "prompt"], ["VARCHAR", "VARCHAR"], ("dpo", "word " * 100), width=40)

    assert len(lines) == 1 + 5
    assert all(len(line) <= 40 for line in lines)
    assert lines[-1].endswith("\u2026")


def test_long_columns_end_up_alike() -> None:
    text = "word " * 100
    lines = shown(["run", "chosen", "rejected"], ["VARCHAR"] * 3, ("dpo", text, text), width=65)

    chosen, rejected = lines[0].index("chosen"), lines[0].index("rejected")
    assert abs((rejected - chosen - 2) - (65 - rejected)) <= 1


def test_lines_end_without_blanks() -> None:
    row = ("dpo", 0.5, "a")
    for is_vertical in (False, True):
        text = terminal_text(["run", "loss", "n"], ["VARCHAR", "DOUBLE", "VARCHAR"], [row],
                             width=60, is_vertical=is_vertical)  # fmt: skip
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert all(line == line.rstrip() for line in plain.splitlines())


def test_what_does_not_fit_gets_a_line_for_each_value() -> None:
    columns = [f"number_{n}" for n in range(20)]
    lines = shown(columns, ["DOUBLE"] * 20, tuple(range(20)), width=60)

    assert lines[:3] == ["row 1", "  number_0   0", "  number_1   1"]


def test_vertical_shows_whole_texts_with_their_lines() -> None:
    row = ("dpo", "first\nsecond \x1b[31m", None)
    kinds = ["VARCHAR", "VARCHAR", "DOUBLE"]

    expected = ["row 1", "  run     dpo", "  prompt  first", "          second \\x1b[31m",
                "  kl      \u2013"]  # fmt: skip
    assert shown(["run", "prompt", "kl"], kinds, row, width=60, is_vertical=True) == expected
    assert vertical_table(["run", "prompt", "kl"], kinds, [row]) == expected


def test_a_width_is_counted_in_cells_of_the_terminal() -> None:
    """A Chinese character takes two."""
    lines = shown(["text", "n"], ["VARCHAR", "INTEGER"], ("\u4f60" * 10, 1), ("a", 2), width=80)

    assert lines[1] == "\u4f60" * 10 + "  1"
    assert lines[2] == "a" + " " * 19 + "  2"


def test_text_of_the_data_commands_no_terminal_and_is_no_markup() -> None:
    lines = shown(["text"], ["VARCHAR"], ("\x1b]0;owned\x07[bold]x[/bold] :smile:",), width=60)

    assert lines[1] == "\\x1b]0;owned\\x07[bold]x[/bold] :smile:"


def test_settings_are_columns() -> None:
    rows = [("a", {"beta": "0.1", "seed": "1"}, 0.5), ("b", {"beta": "0.5"}, 0.25)]

    lines = text_table(
        ["run", "settings", "loss"], ["VARCHAR", "MAP(VARCHAR, VARCHAR)", "DOUBLE"], rows
    )

    assert lines == ["run  beta  seed  loss", "a    0.1   1      0.5", "b    0.5         0.25"]


@pytest.fixture
def store_with_runs(store: Store) -> Path:
    put_runs(store, *(f"run-{n}" for n in range(4)))
    put(store, "steps", [step(n, 0.5) for n in range(1, 40)])
    return store.path


def in_terminal(*arguments: object, width: int = 100, height: int = 20, **more: str) -> str:
    """What a command writes to a terminal of that size."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    code = "from offpref.pipeline.commands.main import main; main()"
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=follower, stdout=follower,
        env=environment | {"TERM": "xterm"} | more,
    )  # fmt: skip
    os.close(follower)
    found = read_to_end(leader)
    assert process.wait(60) == 0
    return found.replace("\r\n", "\n")


def test_a_terminal_gets_colours_unless_they_are_not_wanted(store_with_runs: Path) -> None:
    ask = ("query", store_with_runs, "select run, run_id from latest_runs order by 1")

    coloured, plain = in_terminal(*ask), in_terminal(*ask, NO_COLOR="1")

    assert "\x1b[36mrun-0" in coloured
    assert "\x1b" not in plain
    assert "run-0  72727272-7272-7272-7272-727272727272" in plain


def test_more_lines_than_the_terminal_has_go_through_the_pager(store_with_runs: Path) -> None:
    ask = ("query", store_with_runs, "select step, loss from steps", "--limit", "39")
    numbered = {"PAGER": "cat -n"}

    paged = in_terminal(*ask, height=20, **numbered)
    fitting = in_terminal(*ask, height=60, **numbered)

    assert re.search(r"^ +1\t", paged)
    assert not re.search(r"^ +1\t", fitting)
    assert len(paged.splitlines()) == len(fitting.splitlines()) == 40
