"""The campaign: flipped bits, kills and refused system calls, at random, with the seed printed.

`make test` runs a short form, `make faults` the long one (minutes): OFFPREF_FAULTS=long, and
OFFPREF_FAULTS_SEED for a seed of one's own. What was found is printed as a table.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fault_writers import PROCESSES, compact_for_ever, rows, write_for_ever
from heartbeats import let_heartbeats_age

from offpref.pipeline.commands.group import StageGroup
from offpref.pipeline.commands.main import main
from offpref.stores.errors import StoreError
from offpref.stores.files import crash
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.questions import query_names
from offpref.stores.reader import RowReader
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

IS_LONG = os.environ.get("OFFPREF_FAULTS") == "long"
SEED = int(os.environ.get("OFFPREF_FAULTS_SEED") or random.SystemRandom().randrange(10**6))
NUM_FLIPS = 1000 if IS_LONG else 60
NUM_WRITER_KILLS = 1000 if IS_LONG else 25
NUM_COMMAND_KILLS = 60 if IS_LONG else 3

OFFPREF = str(Path(sys.executable).parent / "offpref")
pytestmark = pytest.mark.timeout(3600 if IS_LONG else 300)


@dataclass
class Campaign:
    """Counts of what came of each fault."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)

    def say(self) -> None:
        found = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        print(f"\nfaults: {self.name}: {found} (seed {SEED})", file=sys.__stderr__)


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    counted = Campaign(request.node.name)
    yield counted
    counted.say()


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{SEED} {request.node.name}")


def command(*words: object) -> tuple[int, str]:
    arguments = [str(word) for word in words]
    group: object = main
    if arguments[0] == "query":
        from offpref.pipeline.commands.query import query

        group = StageGroup(commands={"query": query})
    found = CliRunner().invoke(group, arguments)  # type: ignore[arg-type] # click's own type
    error = found.exception
    assert error is None or isinstance(error, SystemExit), (SEED, arguments, found.exc_info)
    return found.exit_code, found.output


# Flipped bits


@pytest.fixture(scope="module")
def rich(tiered_once: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all tiers, two runs with token values, rewards and an evaluation."""
    folder = tmp_path_factory.mktemp("rich")
    root = Path(shutil.copytree(tiered_once, folder / "store"))
    common = ("--pair-set", "reviews", "--model", model_dir)
    for loss in ("sigmoid", "tdpo2"):
        assert command(
            "train", root, *common, "--output-dir", folder / loss, "--loss-type", loss,
            "--max-steps", 3, "--pairs-per-step", 16, "--eval-every", 2, "--log-tokens", "all",
        )[0] == 0  # fmt: skip
    assert command(
        "reward", root, "--pair-set", "reviews", "--objective", "short", "--from", "brevity"
    )[0] == 0  # fmt: skip
    assert command(
        "evaluate", root, *common, "--split", "eval", "--num-prompts", 4, "--num-samples", 2,
        "--max-new-tokens", 8, "--objective", "short=brevity", "--objective", "brief=brevity",
    )[0] == 0  # fmt: skip
    return root


NAMED = {"over_optimization": {"proxy": "short", "gold": "brief"}}
"""What a question has to be told, by question."""

Read = Callable[[Path, Path], object]  # of a store, with a folder to write to


def reads(model: Path) -> dict[str, Read]:
    """Everything that answers from disk, by name; equal bytes give equal results."""
    found: dict[str, Read] = {
        f"question {name}": (lambda root, out, name=name: asked(root, name))
        for name in query_names()
    }
    for table in TABLES:
        sql = f"select count(*) as n, bit_xor(hash(row)) as rows from {table} as row"
        found[f"sql {table}"] = lambda root, out, sql=sql: asked(root, sql)
        found[f"read {table}"] = lambda root, out, table=table: Store.open(root).digest(table)
    found["reader logps"] = lambda root, out: looked_up(root, "logps", "token_logps")
    found["reader hidden"] = lambda root, out: looked_up(root, "hidden", "hidden")
    found["export"] = exported
    for loss, more in (("sigmoid", ()), ("tdpo2", ()), ("tdpo2", ("--kl-tier", "topk"))):
        found[f"train {loss} {' '.join(more)}".strip()] = lambda root, out, loss=loss, more=more: (
            trained(root, out, model, loss, more)
        )
    found["report"] = reported
    return found


def asked(root: Path, question: str) -> object:
    with Catalog(Store.open(root)) as catalog:
        return catalog.select(question, parameters=NAMED.get(question)).to_pylist()


def looked_up(root: Path, table: str, column: str) -> object:
    store = Store.open(root)
    keys = store.read(table, columns=["sequence_key"]).column(0).combine_chunks()
    reader = RowReader(store, table, store.partitions(table)[0], columns=[column])
    return reader.rows(keys).column(0).to_pylist()


def exported(root: Path, out: Path) -> object:
    code, said = command("export", root, "--to", "parquet", "--output", out / "exported")
    if code:
        raise StoreError(said)
    # Views without an order of their own come in that of DuckDB's threads.
    return {
        path.name: sorted(map(repr, pq.read_table(path).to_pylist()))
        for path in sorted((out / "exported").rglob("*.parquet"))
    }


def reported(root: Path, out: Path) -> object:
    code, said = command("report", root, "-o", out / "report.html", "--title", "t")
    if code:
        raise StoreError(said)
    return (out / "report.html").read_bytes()


def trained(root: Path, out: Path, model: Path, loss: str, more: tuple[str, ...]) -> object:
    code, said = command(
        "train", root, "--pair-set", "reviews", "--model", model, "--output-dir", out / "policy",
        "--loss-type", loss, "--max-steps", 1, "--pairs-per-step", 64, *more,
    )  # fmt: skip
    if code:
        raise StoreError(said)
    return (out / "policy" / "model.safetensors").read_bytes()


def test_no_flipped_bit_changes_an_answer(
    rich: Path, model_dir: Path, tmp_path: Path, chance: random.Random, campaign: Campaign
) -> None:
    known = reads(model_dir)
    right = {}
    for number, (name, read) in enumerate(known.items()):
        # A training writes to its store, and a page shows the folder's name.
        copy = shutil.copytree(rich, tmp_path / f"whole{number}" / "store")
        right[name] = read(Path(copy), folder(tmp_path / f"right{number}"))
        shutil.rmtree(copy)
    slow = [name for name in known if name.startswith(("train", "report", "export"))]
    quick = [name for name in known if name not in slow]
    files = [
        path for kind in ("data", "heads", "specs", "commits")
        for path in sorted((rich / kind).rglob("*")) if path.is_file()
    ]  # fmt: skip

    for number in range(NUM_FLIPS):
        name = chance.choice(slow if number % 6 == 0 else quick)
        root = Path(shutil.copytree(rich, tmp_path / "flipped" / "store"))
        path = root / chance.choice(files).relative_to(rich)
        content = bytearray(path.read_bytes())
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = known[name](root, folder(tmp_path / "out"))
            outcome = "unharmed" if found == right[name] else "WRONG"
        except StoreError:
            outcome = "refused"
        campaign.outcomes[outcome] += 1
        place_of = (name, str(path.relative_to(root)), place, bit)
        if outcome == "WRONG":
            campaign.wrong.append(place_of)
        shutil.rmtree(root)
        shutil.rmtree(tmp_path / "out")

    assert campaign.wrong == [], SEED
    assert campaign.outcomes["refused"] > NUM_FLIPS / 10  # it did reach what is read


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# Kills


POINTS = ("shard-written", "shard-placed", "record-written", "record-placed")


def test_no_acknowledged_row_is_lost_and_no_batch_is_torn(
    store: Store, chance: random.Random, campaign: Campaign
) -> None:
    acknowledged: set[int] = set()
    for number in range(NUM_WRITER_KILLS):
        work = compact_for_ever if number % 5 == 4 else write_for_ever
        point = f"{chance.choice(POINTS)}:{chance.randrange(4)}" if chance.random() < 0.5 else None
        mine, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=work, args=(store.path, number * 1000, point, theirs))
        process.start()
        theirs.close()
        wanted = chance.randrange(1, 5)
        heard: list[int] = []
        while len(heard) < wanted or point is not None:
            try:
                heard.append(mine.recv())
            except EOFError:
                break
            if len(heard) > 40:  # a compactor that has nothing to do passes no point
                break
        process.kill()
        process.join()
        while mine.poll():  # what was acknowledged before the kill and not yet heard
            try:
                heard.append(mine.recv())
            except EOFError:
                break
        acknowledged |= {each for each in heard if each >= 0}
        campaign.outcomes[f"{work.__name__} killed"] += 1
        if number % 25 == 24 or number == NUM_WRITER_KILLS - 1:
            check_batches(store, acknowledged)

    let_heartbeats_age(store)
    compact_store(Store.open(store.path))
    collect_garbage(Store.open(store.path), grace_seconds=0)
    check_batches(store, acknowledged)
    found = verify_store(store.path)
    assert (found.problems, found.notes) == ([], []), SEED
    campaign.outcomes["batches acknowledged"] = len(acknowledged)


def check_batches(store: Store, acknowledged: set[int]) -> None:
    keys = Store.open(store.path).read("logps", "fp", ["sequence_key"]).column(0).to_pylist()
    counts = Counter(int.from_bytes(key[:8], "big") for key in keys)
    assert set(counts.values()) <= {20}, SEED
    assert acknowledged <= counts.keys(), SEED


def stages(root: Path, model: Path, data: Path, out: Path) -> list[list[object]]:
    return [
        ["add", root, "--data", data, "--pair-set", "own", "--tokenizer", model],
        ["score", root, "--pair-set", "reviews", "--data", data, "--model", model,
         "--max-length", 60, "--commit-seconds", 0, "--max-batch-tokens", 256],
        ["train", root, "--pair-set", "reviews@", "--model", model, "--output-dir", out,
         "--max-steps", 6, "--pairs-per-step", 8, "--save-every", 2, "--resume"],
        ["reward", root, "--pair-set", "reviews@", "--objective", "b", "--from", "brevity"],
        ["store", "compact", root],
    ]  # fmt: skip


def test_killed_commands_lose_nothing_and_go_on(
    scored: Store, model_dir: Path, tmp_path: Path, chance: random.Random, campaign: Campaign
) -> None:
    from offpref.pipeline.small_world import write_pairs

    write_pairs(tmp_path / "pairs.jsonl", num_pairs=40, seed=7)
    version = scored.read("pair_sets").column("pair_set_fingerprint")[0].as_py()
    for number in range(NUM_COMMAND_KILLS):
        root = Path(shutil.copytree(scored.path, tmp_path / "killed"))
        digest = Store.open(root).digest("logps")
        words = chance.choice(stages(root, model_dir, tmp_path / "pairs.jsonl", tmp_path / "out"))
        run = [OFFPREF, *(str(word).replace("reviews@", f"reviews@{version}") for word in words)]
        point = f"{chance.choice((*POINTS, 'checkpoint-placed'))}:{chance.randrange(3)}"

        killed = subprocess.run(run, capture_output=True, env={**os.environ, crash.CRASH: point})
        again = subprocess.run(run, capture_output=True, text=True)

        is_killed = killed.returncode == -signal.SIGKILL
        campaign.outcomes[f"{words[0]} {'killed' if is_killed else 'ended first'}"] += 1
        assert is_killed or killed.returncode == 0, (SEED, number, killed.stderr)
        assert again.returncode == 0, (SEED, number, words, point, again.stderr)
        assert verify_store(root).problems == [], (SEED, number)
        assert words[0] == "score" or Store.open(root).digest("logps") == digest
        shutil.rmtree(root)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


# Refused system calls

CALLS = ("open", "fsync", "rename", "replace", "link", "mkdir", "unlink", "stat", "lstat",
         "scandir", "listdir", "readv", "utime")  # fmt: skip
ERRNOS = ("EIO", "ENOSPC", "EACCES", "EROFS", "ESTALE", "EDQUOT", "EMFILE", "ENOMEM")


class Refusals:
    """Let the n-th call of a function of the operating system, inside a folder, fail."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.patch, self.root = patch, root
        self.num_calls = 0
        self.descriptors: set[int] = set()

    def arm(self, name: str, number: int, error: int) -> None:
        real = getattr(os, name)

        def call(*args: object, **more: object) -> object:
            if args and self._is_inside(args[0]):
                self.num_calls += 1
                if self.num_calls == number:
                    raise OSError(error, os.strerror(error), str(args[0]))
            return real(*args, **more)

        self.patch.setattr(os, name, call)

    def _is_inside(self, place: object) -> bool:
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return False
        return str(place).startswith(str(self.root))


def works(root: Path) -> dict[str, Callable[[], object]]:
    """What is done to a store; each leaves it whole, done or undone."""

    def write() -> None:
        with Store.open(root).batch() as batch:
            batch.add("logps", "fp", rows(99))
            batch.add_head("fp", b"head")

    return {
        "write": write,
        "spec": lambda: Store.open(root).write_spec({"kind": "x"}),
        "compact": lambda: compact_store(Store.open(root)),
        "collect": lambda: collect_garbage(Store.open(root), grace_seconds=0),
        "verify": lambda: verify_store(root),
        "read": lambda: Store.open(root).read("logps"),
        "query": lambda: asked(root, "select count(*) from logps"),
    }


@pytest.mark.parametrize("call", CALLS)
def test_refused_calls_are_one_line_and_lose_nothing(
    tmp_path: Path, call: str, campaign: Campaign
) -> None:
    whole = Store.create(tmp_path / "whole")
    for number in range(3):
        with whole.batch() as batch:
            batch.add("logps", "fp", rows(number))
    for path in (whole.path / "tmp").glob("*.alive"):
        path.unlink()
    names = ERRNOS if IS_LONG else ERRNOS[:2]

    for work in works(tmp_path):
        for name in names:
            number = 1
            while refuse(whole.path, tmp_path / "store", work, call, number, name, campaign):
                number += 1 if IS_LONG and number < 40 else max(1, number // 2)


def refuse(
    whole: Path, root: Path, work: str, call: str, number: int, name: str, campaign: Campaign
) -> bool:
    """Do a work whose n-th call fails; return whether there was an n-th call."""
    from offpref.stores.files import heartbeat

    heartbeat.stop()
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    do = works(root)[work]
    with pytest.MonkeyPatch.context() as patch:
        refusals = Refusals(patch, root)
        refusals.arm(call, number, getattr(errno, name))
        try:
            do()
            outcome = "done all the same"
        except StoreError as error:
            outcome = "refused in one line" if "\n" not in str(error) else "MANY LINES"
    if refusals.num_calls < number:
        return False
    campaign.outcomes[outcome] += 1
    assert outcome != "MANY LINES", (work, call, number, name)
    heartbeat.stop()
    found = verify_store(root)
    counts = Counter(
        int.from_bytes(key[:8], "big")
        for key in Store.open(root).read("logps", "fp", ["sequence_key"]).column(0).to_pylist()
    )
    assert found.problems == [], (work, call, number, name)
    assert {0, 1, 2} <= counts.keys(), (work, call, number, name)
    assert set(counts.values()) == {20}, (work, call, number, name)
    return True
