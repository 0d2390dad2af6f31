"""A store that somebody sent harms nobody: no command leaves it, hangs, or ends in a traceback."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile import ESCAPE, VARIANTS

from offpref.pipeline.commands.group import StageGroup
from offpref.pipeline.commands.main import main
from offpref.stores.store import Store

RUNNER = CliRunner()

# Every command that opens a store, in the order of what they could do; the last ones write.
COMMANDS: dict[str, tuple[str, ...]] = {
    "ls": ("store", "ls", "STORE"),
    "verify": ("store", "verify", "STORE"),
    "deep": ("store", "verify", "STORE", "--deep"),
    "runs": ("query", "STORE", "runs"),
    "worst": ("query", "STORE", "worst_pairs"),
    "sql": ("query", "STORE", "select count(*), sum(list_sum(token_logps)) from logps"),
    "texts": ("query", "STORE", "select sum(length(prompt)) from texts"),
    "specs": ("query", "STORE", "select fingerprint, name, spec from specs"),
    "schema": ("query", "STORE", "--schema"),
    "setup": ("query", "STORE", "--print-setup"),
    "export": ("export", "STORE", "--to", "parquet", "--output", "OUT/exported"),
    "report": ("report", "STORE", "-o", "OUT/report.html"),
    "train": (
        "train", "STORE", "--pair-set", "reviews", "--model", "MODEL", "--output-dir", "OUT/dpo",
        "--max-steps", "1", "--pairs-per-step", "64",
    ),
    "tdpo2": (
        "train", "STORE", "--pair-set", "reviews", "--model", "MODEL", "--output-dir", "OUT/tdpo",
        "--max-steps", "1", "--pairs-per-step", "64", "--loss-type", "tdpo2",
    ),
    "topk": (
        "train", "STORE", "--pair-set", "reviews", "--model", "MODEL", "--output-dir", "OUT/topk",
        "--max-steps", "1", "--pairs-per-step", "64", "--loss-type", "tdpo2", "--kl-tier", "topk",
    ),
    "reward": (
        "reward", "STORE", "--pair-set", "reviews", "--objective", "short", "--from", "brevity",
    ),
    "compact": ("store", "compact", "STORE"),
    "gc": ("store", "gc", "STORE"),
    "hasty gc": ("store", "gc", "STORE", "--grace-days", "0", "--force"),
    "drop": ("store", "verify", "STORE", "--drop-damaged"),
    "score": (
        "score", "STORE", "--pair-set", "reviews", "--model", "MODEL", "--tier", "hidden",
        "--tier", "topk", "--top-k", "6",
    ),
}  # fmt: skip
QUICK = ("ls", "verify", "runs", "sql", "texts", "compact", "hasty gc", "drop")
"""What every variant is tried with in the usual run of the tests."""


def invoke(command: tuple[str, ...], **places: Path) -> tuple[int, str]:
    """Run a command as the shell does, and return its exit code and all that it printed."""
    arguments = [
        "/".join([str(places.get(part, part)) for part in word.split("/")])
        if word.split("/")[0] in places
        else word
        for word in command
    ]
    if arguments[0] == "query":
        from offpref.pipeline.commands.query import query

        found = RUNNER.invoke(StageGroup(commands={"query": query}), arguments)
    else:
        found = RUNNER.invoke(main, arguments)
    error = found.exception
    assert error is None or isinstance(error, SystemExit), (arguments, error, found.exc_info)
    return found.exit_code, found.output


def snapshot(folder: Path) -> dict[str, object]:
    """Everything below a folder: kinds, times of modification, bytes; links are not followed."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_size, content)
    return found


@pytest.fixture(scope="session")
def rich_once(tiered_once: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every tier, a run with token values, and rewards."""
    folder = tmp_path_factory.mktemp("rich")
    store = Path(shutil.copytree(tiered_once, folder / "store"))
    places = {"STORE": store, "MODEL": model_dir, "OUT": folder}
    train = (*COMMANDS["tdpo2"], "--log-tokens", "all", "--eval-every", "1")
    assert invoke(train, **places)[0] == 0
    assert invoke(COMMANDS["reward"], **places)[0] == 0
    return store


@pytest.fixture
def world(rich_once: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the store, and beside it a folder with things that are the user's."""
    outside = tmp_path / "outside"
    (outside / "ab").mkdir(parents=True)
    shard = Store.open(rich_once).shards("logps")[0].path
    for path in (outside / "victim.parquet", outside / "ab" / f"ab{'c' * 30}.parquet"):
        shutil.copy(shard, path)
    (outside / "thesis.txt").write_text("years of work")
    (outside / "model.safetensors").write_bytes(b"weights")
    for path in outside.rglob("*"):
        if path.is_file():
            os.utime(path, (10**9, 10**9))  # older than any grace
    return Path(shutil.copytree(rich_once, tmp_path / "store")), outside


def check(
    name: str, commands: tuple[str, ...], world: tuple[Path, Path], model_dir: Path, tmp_path: Path
) -> None:
    root, outside = world
    VARIANTS[name](root, outside)
    before = snapshot(outside)

    for number, command in enumerate(commands):
        out = tmp_path / f"out{number}"
        out.mkdir()
        code, output = invoke(COMMANDS[command], STORE=root, MODEL=model_dir, OUT=out)

        assert code in (0, 1, 2), (command, code, output)
        assert "Traceback" not in output, (command, output)
        assert "\x1b" not in output, (command, output)
        assert snapshot(outside) == before, command


@pytest.mark.parametrize("name", VARIANTS)
def test_no_command_harms_anything_outside_of_a_hostile_store(
    name: str, world: tuple[Path, Path], model_dir: Path, tmp_path: Path
) -> None:
    check(name, QUICK, world, model_dir, tmp_path)


IN_DEPTH = [name for name in VARIANTS if not name.startswith(("record:", "STORE.json:"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_DEPTH)
def test_no_stage_harms_anything_outside_of_a_hostile_store(
    name: str, world: tuple[Path, Path], model_dir: Path, tmp_path: Path
) -> None:
    """In `make faults` every stage on every store; else a third of them on each, in turn."""
    rest = [each for each in COMMANDS if each not in QUICK]
    every = 1 if os.environ.get("OFFPREF_FAULTS") == "long" else 3
    check(name, tuple(rest[IN_DEPTH.index(name) % every :: every]), world, model_dir, tmp_path)


def test_what_is_odd_is_named_and_the_rest_is_listed(
    world: tuple[Path, Path],
) -> None:
    root, outside = world
    for name in ("record: no fields", "link: beside the shards", "kind: pipe for a spec"):
        VARIANTS[name](root, outside)

    code, output = invoke(COMMANDS["verify"], STORE=root)

    assert code == 1
    assert "expected a list called adds, got None" in output
    assert output.count("is not part of a store: expected a file") == 4
    assert "found a pipe" in output


@pytest.mark.parametrize(
    "name", ["shard: token_logps one token short", "shard: token_logps one token long"]
)
def test_lengths_that_do_not_fit_are_found_before_they_are_used(
    name: str, world: tuple[Path, Path], model_dir: Path, tmp_path: Path
) -> None:
    VARIANTS[name](*world)
    places = {"STORE": world[0], "MODEL": model_dir, "OUT": tmp_path}

    trained = invoke(COMMANDS["train"], **places)
    verified = invoke(COMMANDS["verify"], **places)

    assert trained[0] == verified[0] == 1
    assert "one for each completion token" in trained[1]
    assert "one for each completion token" in verified[1]


@pytest.mark.parametrize("name", ["bomb: a text that is repeated", "bomb: a long list"])
def test_small_file_that_unpacks_to_much_is_refused_and_the_limit_named(
    name: str, world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    VARIANTS[name](*world)
    places = {"STORE": world[0]}

    refused = invoke(COMMANDS["verify"], **places)
    monkeypatch.setenv("OFFPREF_MAX_UNPACKED_BYTES", str(10**9))
    raised = invoke(COMMANDS["verify"], **places)

    assert "set OFFPREF_MAX_UNPACKED_BYTES to more" in refused[1]
    assert "OFFPREF_MAX_UNPACKED_BYTES" not in raised[1]


@pytest.mark.parametrize("value", ["\u00b2", "-1", "much", "9" * 5000])
def test_limit_that_is_no_number_is_one_line(
    value: str, scored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFPREF_MAX_UNPACKED_BYTES", value)

    code, output = invoke(COMMANDS["verify"], STORE=scored.path)

    assert code == 1
    assert "OFFPREF_MAX_UNPACKED_BYTES must be a number of bytes, got" in output


def test_whole_head_that_fits_nothing_is_refused_before_it_is_used(
    world: tuple[Path, Path], model_dir: Path, tmp_path: Path
) -> None:
    VARIANTS["head: fewer tokens than there are ids"](*world)

    code, output = invoke(COMMANDS["tdpo2"], STORE=world[0], MODEL=model_dir, OUT=tmp_path)

    assert code == 1
    assert "expected token ids from 0 to 9, the vocabulary of policy and reference" in output


def test_time_and_text_that_python_cannot_take_are_named(world: tuple[Path, Path]) -> None:
    VARIANTS["shard: a pair set of no year"](*world)
    VARIANTS["shard: splits that are not UTF-8"](*world)

    code, output = invoke(COMMANDS["verify"], STORE=world[0])

    assert code == 1
    assert "expected times of the years 1 to 9998 in column created_at" in output
    assert "expected texts in UTF-8 in column split" in output


def test_names_of_a_store_reach_the_terminal_escaped(world: tuple[Path, Path]) -> None:
    root, outside = world
    VARIANTS["name: commands a terminal"](root, outside)
    VARIANTS["shard: names that command a terminal"](root, outside)

    for command in ("specs", "runs"):
        _, output = invoke(COMMANDS[command], STORE=root)
        assert r"\x1b[31mX" in output
        assert ESCAPE not in output


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_files_that_are_none_are_refused_though_nothing_is_hashed(
    kind: str, world: tuple[Path, Path]
) -> None:
    VARIANTS[f"kind: {kind} for a shard"](*world)

    code, output = invoke((*COMMANDS["sql"], "--verify", "never"), STORE=world[0])

    assert code == 1
    assert "expected a file, found a" in output
