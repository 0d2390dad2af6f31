"""What survives kill -9, a full disk and a folder that may not be written: real processes die."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from heartbeats import let_heartbeats_age

from offpref.stores.errors import StoreWriteError
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

ROWS_PER_BATCH = 5

FORKS = multiprocessing.get_context("forkserver")
# pyarrow imports pandas at its first array, where it is installed: once here, not in each process.
FORKS.set_forkserver_preload(
    [
        "__main__",
        "pandas",
        "offpref.stores.maintenance.garbage",
        "offpref.stores.maintenance.compact",
    ]
)

# A batch has rows in two tables, so that half of it could be seen; its rows carry its number.
WRITE = """
import os
import pyarrow as pa
from offpref.stores.schema import LOGPS, TOPK
from offpref.stores.store import Store

def write(store, number, rows_per_batch):
    keys = [number.to_bytes(8, "big") + row.to_bytes(8, "big") for row in range(rows_per_batch)]
    ones = [1] * len(keys)
    with store.batch() as batch:
        batch.add("logps", "fp", pa.table(
            [keys, [[-float(number)]] * len(keys)], schema=LOGPS.schema))
        batch.add("topk", "fp", pa.table(
            [keys, pa.array(ones, pa.int32()), [[number]] * len(keys), [[-1.0]] * len(keys),
             [[-2.0]] * len(keys)], schema=TOPK.schema))
"""

WRITE_FOR_EVER = """
store = Store.open(path)
acknowledged = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
number = first
while True:
    write(store, number, rows_per_batch)
    os.write(acknowledged, b"%d\\n" % number)
    number += 1
"""

COMPACT_FOR_EVER = """
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.store import Store
while True:
    compact_store(Store.open(path))
"""


def start(code: str, **names: object) -> BaseProcess:
    """Run ``code`` in a process of its own, in which ``names`` are known."""
    process = FORKS.Process(target=exec, args=(code, dict(names)))
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def batches(store: Store) -> dict[int, tuple[int, int]]:
    """Rows of each batch that are there, in either table."""
    counts: dict[int, list[int]] = {}
    for table, place in (("logps", 0), ("topk", 1)):
        for key in store.read(table, "fp", ["sequence_key"])["sequence_key"].to_pylist():
            counts.setdefault(int.from_bytes(key[:8], "big"), [0, 0])[place] += 1
    return {number: (one, other) for number, (one, other) in counts.items()}


def assert_only_whole_batches(store: Store) -> None:
    assert set(batches(store).values()) <= {(ROWS_PER_BATCH, ROWS_PER_BATCH)}


@pytest.mark.parametrize(
    ("point", "is_there"),
    [
        ("shard-written", False),
        ("shard-placed", False),
        ("shard-placed:1", False),
        ("record-written", False),
        ("record-placed", True),  # not acknowledged, but whole
    ],
)
def test_writer_killed_at_a_point_leaves_all_of_its_batch_or_nothing(
    store: Store, point: str, is_there: bool
) -> None:
    write = {"path": store.path, "rows_per_batch": ROWS_PER_BATCH}
    start(WRITE + "write(Store.open(path), 1, rows_per_batch)", **write).join()
    code = f"import os; os.environ['OFFPREF_CRASH_AT'] = '{point}'" + WRITE

    process = start(code + "write(Store.open(path), 2, rows_per_batch)", **write)
    process.join()

    store.refresh()
    whole = (ROWS_PER_BATCH, ROWS_PER_BATCH)
    assert process.exitcode == -signal.SIGKILL
    assert batches(store) == {1: whole} | ({2: whole} if is_there else {})
    assert verify_store(store.path).problems == []
    let_heartbeats_age(store)
    collect_garbage(store, grace_seconds=0)
    assert verify_store(store.path).notes == []
    assert batches(Store.open(store.path)) == batches(store)


@pytest.mark.parametrize(
    "point",
    [f"{point}:{skip}" for point in ("shard-placed", "record-placed") for skip in (0, 1, 2)]
    + ["shard-written", "record-written:2"],
)
def test_compactor_killed_at_a_point_changes_nothing(store: Store, point: str) -> None:
    write = {"path": store.path, "rows_per_batch": ROWS_PER_BATCH}
    code = WRITE + "for number in range(3): write(Store.open(path), number, rows_per_batch)"
    start(code, **write).join()
    store.refresh()
    before = (store.digest("logps", "fp"), store.digest("topk", "fp"), batches(store))

    code = f"import os; os.environ['OFFPREF_CRASH_AT'] = '{point}'"
    process = start(code + COMPACT_FOR_EVER.replace("while True", "if True"), path=store.path)
    process.join()

    again = Store.open(store.path)
    assert process.exitcode == (0 if point == "shard-placed:2" else -signal.SIGKILL)
    assert (again.digest("logps", "fp"), again.digest("topk", "fp"), batches(again)) == before
    assert verify_store(store.path).problems == []
    let_heartbeats_age(again)
    collect_garbage(again, grace_seconds=0)
    assert batches(Store.open(store.path)) == before[2]


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_writers_and_a_compactor_are_killed_at_random(
    store: Store, tmp_path: Path
) -> None:
    log = tmp_path / "acknowledged"
    chance = random.Random(0)
    stop_at = time.monotonic() + 12

    first = 0
    while time.monotonic() < stop_at:
        names = {"path": store.path, "log": log, "rows_per_batch": ROWS_PER_BATCH}
        processes = [
            start(WRITE + WRITE_FOR_EVER, first=first, **names),
            start(WRITE + WRITE_FOR_EVER, first=first + 500_000, **names),
            start(COMPACT_FOR_EVER, path=store.path),
        ]
        first += 1000
        chance.shuffle(processes)
        for process in processes:
            time.sleep(chance.uniform(0.05, 0.5))
            kill(process)
            store.refresh()
            assert_only_whole_batches(store)  # a reader sees no part of a batch at any time
        acknowledged = {int(line) for line in log.read_text().split()} if log.exists() else set()
        assert acknowledged <= batches(store).keys()

    assert len(acknowledged) > 100
    before = (store.digest("logps", "fp"), batches(store))
    compact_store(store)
    let_heartbeats_age(store)
    collect_garbage(store, grace_seconds=0)
    again = Store.open(store.path)
    assert (again.digest("logps", "fp"), batches(again)) == before
    verified = verify_store(store.path)
    assert (verified.problems, verified.notes) == ([], [])


def test_what_is_acknowledged_is_on_disk_before_a_power_cut(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Follow each fsync and rename: at the end nothing may hang on the page cache."""
    synced: set[str] = set()  # files, by their inode, whose bytes are down
    at_risk: dict[Path, Path] = {}  # folder that must be fsynced for a name in it to survive
    seen_at_record: list[dict[Path, Path]] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "mkdir")}

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.add(str(path.stat().st_ino))
        for name in [name for name, folder in at_risk.items() if folder == path]:
            del at_risk[name]
        real["fsync"](descriptor)

    def rename(source: Path, target: Path) -> None:
        assert str(Path(source).stat().st_ino) in synced, f"{target} is placed before its bytes"
        if Path(target).parent.name == "commits":
            seen_at_record.append(dict(at_risk))
        real["rename"](source, target)
        at_risk[Path(target)] = Path(target).parent

    def mkdir(path: Path, mode: int = 0o777) -> None:
        real["mkdir"](path, mode)
        at_risk[Path(path)] = Path(path).parent

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "mkdir", mkdir)

    names: dict[str, object] = {}
    exec(WRITE + "write(store, 1, 5)", names | {"store": store})

    assert seen_at_record == [{}]  # every shard and folder is down before the record is placed
    assert at_risk == {}  # and the record is, before the batch is acknowledged


def rows(num_rows: int) -> pa.Table:
    values = np.random.default_rng(0).standard_normal((num_rows, 50)).astype(np.float32)
    keys = [row.to_bytes(16, "big") for row in range(num_rows)]
    return pa.table([keys, list(values)], schema=LOGPS.schema)


def write_shards(store: Store, partitions: dict[str, pa.Table]) -> None:
    with store.batch() as batch:
        for partition, table in partitions.items():
            batch.add("logps", partition, table)


def assert_nothing_lost(store: Store, message: str) -> None:
    assert "\n" not in message
    assert "cannot be written" in message
    again = Store.open(store.path)
    assert again.read("logps", "fp").num_rows == 10
    verified = verify_store(store.path)
    assert (verified.problems, verified.notes) == ([], [])


def test_file_that_may_not_grow_is_one_clear_line_and_loses_nothing(store: Store) -> None:
    with store.batch() as batch:
        batch.add("logps", "fp", rows(10))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(StoreWriteError) as caught:
            write_shards(store, {"aa": rows(10), "fp": rows(2000)})  # the first is placed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert_nothing_lost(store, str(caught.value))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", os.fspath(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_clear_line_and_loses_nothing(small_disk: Path) -> None:
    store = Store.create(small_disk / "store")
    with store.batch() as batch:
        batch.add("logps", "fp", rows(10))

    with pytest.raises(StoreWriteError, match="No space left") as caught, store.batch() as batch:
        batch.add("logps", "fp", rows(10_000))

    assert_nothing_lost(store, str(caught.value))
    with store.batch() as batch:  # the failed batch gave its space back
        batch.add("logps", "fp", rows(100))
    assert store.read("logps", "fp").num_rows == 100


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


WRITE_AS_NOBODY = """
import os
if os.geteuid() == 0:
    os.setuid(65534)
from offpref.stores.errors import StoreError
store = Store.open(path)
try:
    write(store, 2, rows_per_batch)
except StoreError as error:
    print(store.read("logps", "fp").num_rows, error, file=open(answer, "w"), flush=True)
"""


def test_read_only_folder_is_read_and_refuses_in_one_clear_line(
    open_folder: Path, tmp_path: Path
) -> None:
    store = Store.create(open_folder / "store")
    with store.batch() as batch:
        batch.add("logps", "fp", rows(10))
    answer = open_folder / "answer"
    answer.touch()
    answer.chmod(0o666)
    folders = [path for path in open_folder.rglob("*") if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)

    names = {"path": store.path, "answer": answer, "rows_per_batch": ROWS_PER_BATCH}
    process = start(WRITE + WRITE_AS_NOBODY, **names)
    process.join()
    for folder in folders:
        folder.chmod(0o755)

    assert process.exitcode == 0
    assert answer.read_text().startswith(f"10 {store.path}")
    assert answer.read_text().count("\n") == 1
    assert_nothing_lost(store, answer.read_text().strip())
