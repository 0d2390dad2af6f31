"""Bytes are checked against their names before they are used, once for each state of a file."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from offpref.pipeline.commands.main import main
from offpref.pipeline.scores.reference_heads import read_head
from offpref.stores.errors import SettingError, ShardCorruptError, StoreError, StoreReadError
from offpref.stores.files import verified
from offpref.stores.files.verified import VerifiedFiles, identity_of
from offpref.stores.maintenance.repair import drop_damaged
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.query.catalog import Catalog
from offpref.stores.reader import RowReader
from offpref.stores.store import Store

SEQUENCES = "select sum(list_sum(ids)) as ids from sequences"
LOGPS = "select sum(list_sum(token_logps)) as logps from logps"


def flip(path: Path, place: int, bit: int = 3) -> None:
    """Flip one bit in place, as a disk would: the file keeps its inode."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: a test does not wait for a clock."""
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1.0)


def answer(store: Store, sql: str) -> object:
    with Catalog(Store.open(store.path)) as catalog:
        return catalog.select(sql).to_pylist()


@pytest.mark.parametrize("table", ["logps", "sequences", "pairs", "texts", "vocabulary"])
def test_a_flipped_bit_anywhere_never_changes_an_answer(scored: Store, table: str) -> None:
    sql = f"select count(*), bit_xor(hash(all_columns)) as rows from {table} as all_columns"
    right = answer(scored, sql)
    (shard,) = scored.shards(table)
    chance = random.Random(table)

    for _ in range(25):
        place, bit = chance.randrange(shard.num_bytes), chance.randrange(8)
        flip(shard.path, place, bit)
        with pytest.raises(ShardCorruptError, match="do not match its name"):
            answer(scored, sql)
        flip(shard.path, place, bit)

    assert answer(scored, sql) == right


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.read("logps"),
        lambda store: store.missing("logps", store.partitions("logps")[0],
                                    store.read("logps").column(0).combine_chunks()),
        lambda store: RowReader(store, "logps", store.partitions("logps")[0],
                                columns=["token_logps"]),
        lambda store: store.digest("logps"),
    ],
    ids=["read", "missing", "reader", "digest"],
)  # fmt: skip
def test_a_flipped_bit_of_a_footer_is_found_by_every_read(
    scored: Store, read: Callable[[Store], object]
) -> None:
    """Pages have checksums of their own; a footer has none."""
    (shard,) = scored.shards("logps")
    flip(shard.path, shard.num_bytes - 60)

    with pytest.raises(ShardCorruptError):
        read(Store.open(scored.path))


def test_a_flipped_bit_of_a_row_that_is_read_singly_is_found_when_it_is_read(
    tiered: Store,
) -> None:
    (shard,) = tiered.shards("hidden")
    keys = tiered.read("hidden", columns=["sequence_key"]).column(0).combine_chunks()
    chance = random.Random(0)
    outcomes = set()

    for _ in range(60):
        place, bit = chance.randrange(shard.num_bytes), chance.randrange(8)
        flip(shard.path, place, bit)
        try:
            reader = RowReader(
                Store.open(tiered.path), "hidden", shard.partition, columns=["hidden"]
            )
            rows = [reader.rows(keys.slice(i, 1)).column(0)[0].as_py() for i in range(len(keys))]
            outcomes.add("right" if rows == _hidden(tiered, keys, flip, shard, place, bit)
                         else "wrong")  # fmt: skip
        except StoreError:
            outcomes.add("refused")
        flip(shard.path, place, bit)

    assert "wrong" not in outcomes
    assert "refused" in outcomes


def _hidden(
    store: Store, keys: object, undo: Callable[..., None], shard: object, place: int, bit: int
) -> list[bytes]:
    """The rows of the whole file, which is left as it was found."""
    path = shard.path  # type: ignore[attr-defined] # a shard
    undo(path, place, bit)
    try:
        reader = RowReader(
            Store.open(store.path), "hidden", store.partitions("hidden")[0], columns=["hidden"]
        )
        found: list[bytes] = reader.rows(keys).column("hidden").to_pylist()
        return found
    finally:
        undo(path, place, bit)


opened: list[str] = []  # by Python; what pyarrow and DuckDB open is not seen


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        opened.append(str(arguments[0]))


@pytest.fixture
def hashed() -> list[str]:
    """Paths that are opened to be hashed, from now on."""
    if not getattr(sys, "_offpref_watches", False):  # a hook cannot be taken away again
        sys.addaudithook(_watch)
        sys._offpref_watches = True  # type: ignore[attr-defined] # a mark of this test's
    opened.clear()
    return opened


def shards_in(paths: list[str]) -> list[str]:
    return [path for path in paths if path.endswith(".parquet")]


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_hashed_once_by_a_user_and_a_changed_one_again(
    scored: Store, hashed: list[str]
) -> None:
    answer(scored, LOGPS)
    first = shards_in(hashed)
    hashed.clear()
    answer(scored, LOGPS)
    again = shards_in(hashed)
    os.utime(scored.shards("logps")[0].path)
    answer(scored, LOGPS)

    assert len(first) == 1
    assert again == []
    assert shards_in(hashed) == first


@pytest.mark.usefixtures("settled")
def test_only_the_tables_of_a_question_are_hashed(scored: Store, hashed: list[str]) -> None:
    answer(scored, SEQUENCES)

    assert {path.split("/data/")[1].split("/")[0] for path in shards_in(hashed)} == {"sequences"}


@pytest.mark.usefixtures("settled")
def test_always_hashes_again_and_never_does_not(
    scored: Store, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(scored, LOGPS)
    hashed.clear()

    monkeypatch.setenv("OFFPREF_VERIFY", "always")
    answer(scored, LOGPS)
    always = len(shards_in(hashed))
    hashed.clear()
    monkeypatch.setenv("OFFPREF_VERIFY", "never")
    os.utime(scored.shards("logps")[0].path)
    answer(scored, LOGPS)

    assert (always, shards_in(hashed)) == (1, [])


@pytest.mark.usefixtures("settled")
def test_rot_that_changes_no_time_is_found_by_always_alone(
    scored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = scored.shards("logps")
    flip(shard.path, shard.num_bytes - 60)
    marks = VerifiedFiles(scored.uuid)
    marks.add(shard.name, identity_of(shard.path))  # as if its times were those of the whole file
    marks.save(1)

    Store.open(scored.path).verify_shards([shard])  # says nothing
    monkeypatch.setenv("OFFPREF_VERIFY", "always")
    with pytest.raises(ShardCorruptError):
        Store.open(scored.path).verify_shards([shard])


def test_a_file_that_was_just_written_is_not_trusted_for_its_times(scored: Store) -> None:
    """A write within the same tick of the clock leaves every time as it was."""
    (shard,) = scored.shards("logps")
    os.utime(shard.path)
    marks = VerifiedFiles("00000000-0000-0000-0000-000000000000")

    marks.add(shard.name, identity_of(shard.path))

    assert not marks.holds(scored.path, shard.path, shard.name)


def test_marks_of_many_files_that_are_gone_are_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFPREF_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(verified, "_MAX_STALE_MARKS", 10)
    for number in range(30):
        marks = VerifiedFiles("u")
        marks.add(f"{number:032x}", (1, 1, 1, number))
        marks.save(2)

    (log,) = (tmp_path / "verified").iterdir()
    assert len(log.read_text().splitlines()) <= 15


@pytest.mark.usefixtures("settled")
def test_pipe_in_place_of_marks_is_not_waited_for(
    scored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFPREF_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "verified").mkdir(parents=True)
    os.mkfifo(tmp_path / "cache" / "verified" / f"{scored.uuid}.marks")

    found = answer(scored, LOGPS)

    assert found == answer(scored, LOGPS)


def test_an_unknown_policy_is_refused(scored: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFPREF_VERIFY", "sometimes")

    with pytest.raises(SettingError, match="one of once, always, never, got 'sometimes'"):
        Store.open(scored.path)


def test_spec_with_a_flipped_bit_is_never_used(scored: Store) -> None:
    scorer = scored.partitions("logps")[0]
    path = scored.path / "specs" / f"{scorer}.json"

    for place in range(0, path.stat().st_size, 7):
        flip(path, place, 0)
        with pytest.raises(StoreError, match="do not match its name"):
            scored.read_spec(scorer)
        flip(path, place, 0)


# Heads and tiers are had again


def cli(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(main, [str(each) for each in arguments])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exc_info
    return found.exit_code, found.output


def test_a_damaged_head_is_never_used(tiered: Store) -> None:
    (scorer,) = tiered.partitions("hidden")
    path = tiered.head_path(scorer)
    chance = random.Random(0)

    for _ in range(25):
        place = chance.randrange(path.stat().st_size)
        flip(path, place)
        with pytest.raises(ShardCorruptError, match="do not match its commit"):
            read_head(Store.open(tiered.path), scorer)
        flip(path, place)

    assert read_head(Store.open(tiered.path), scorer).vocab_size > 0


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 200)])
def test_a_lost_or_damaged_head_is_had_again_by_the_same_command(
    tiered: Store, model_dir: Path, harm: Callable[[Path], None]
) -> None:
    (scorer,) = tiered.partitions("hidden")
    path = tiered.head_path(scorer)
    whole = path.read_bytes()
    harm(path)
    score = ("score", tiered.path, "--pair-set", "reviews", "--model", model_dir)

    done = cli(*score, "--tier", "hidden")

    assert done[0] == 0, done[1]
    assert ": 0 new, 160 cached" in done[1]
    assert "the output head was damaged or missing, and is written again" in done[1]
    assert path.read_bytes() == whole
    assert verify_store(tiered.path).problems == []


def test_a_lost_head_is_had_again_though_nothing_is_hashed(tiered: Store, model_dir: Path) -> None:
    (scorer,) = tiered.partitions("hidden")
    path = tiered.head_path(scorer)
    whole = path.read_bytes()
    path.unlink()
    score = ("score", tiered.path, "--pair-set", "reviews", "--model", model_dir)

    done = cli(*score, "--tier", "hidden", "--verify", "never")

    assert done[0] == 0, done[1]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("table", ["logps", "topk", "hidden"])
def test_a_damaged_tier_is_had_again_by_the_same_command(
    tiered: Store, model_dir: Path, table: str
) -> None:
    (shard,) = tiered.shards(table)
    flip(shard.path, shard.num_bytes // 2)
    tiers = ("--tier", "hidden", "--tier", "topk", "--top-k", 6)

    done = cli("score", tiered.path, "--pair-set", "reviews", "--model", model_dir, *tiers)

    assert done[0] == 0, done[1]
    assert "1 damaged shards of this scorer, 160 rows, were removed" in done[1]
    assert verify_store(tiered.path).problems == []
    again = Store.open(tiered.path)
    assert again.read(table, columns=["sequence_key"]).num_rows == 160


# What cannot be read is not damaged


@pytest.fixture
def io_error(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Let the operating system refuse one file, as a failing disk or a lost mount does."""

    def refuse(refused: Path, number: int) -> None:
        real = os.open

        def fails(path: object, *args: object, **kwargs: object) -> int:
            if str(path) == str(refused):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", fails)

    return refuse


@pytest.mark.parametrize("name", ["EACCES", "EIO", "ESTALE", "ENOMEM", "EMFILE"])
def test_what_cannot_be_read_is_neither_called_damaged_nor_deleted(
    scored: Store, io_error: Callable[[Path, int], None], name: str
) -> None:
    import errno

    (shard,) = scored.shards("logps")
    os.utime(shard.path)  # it has to be looked at again
    io_error(shard.path, getattr(errno, name))

    with pytest.raises(StoreReadError, match="its bytes may still be intact"):
        drop_damaged(scored.path)
    problems = verify_store(scored.path).problems

    assert shard.path.exists()
    assert len(problems) == 1
    assert "cannot be read" in problems[0]
    assert "damaged" not in problems[0]


def test_unreadable_spec_is_no_damage(scored: Store, io_error: Callable[[Path, int], None]) -> None:
    import errno

    scorer = scored.partitions("logps")[0]
    io_error(scored.path / "specs" / f"{scorer}.json", errno.EIO)

    with pytest.raises(StoreReadError, match="Input/output error"):
        scored.read_spec(scorer)


def test_damage_is_still_dropped_where_all_can_be_read(scored: Store) -> None:
    (shard,) = scored.shards("logps")
    flip(shard.path, 100)

    dropped = drop_damaged(scored.path)

    assert [each.name for each in dropped.shards] == [shard.name]
    assert not shard.path.exists()


# The user's cache folder


def test_marks_of_one_store_do_not_count_for_a_copy(
    scored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1.0)
    answer(scored, LOGPS)
    copy = Store.open(Path(shutil.copytree(scored.path, tmp_path / "copy")))
    (shard,) = copy.shards("logps")
    flip(shard.path, 100)

    with pytest.raises(ShardCorruptError):
        answer(copy, LOGPS)


def test_a_command_hands_its_policy_on_and_takes_it_back(scored: Store) -> None:
    code = (
        "import os, sys, json; from click.testing import CliRunner;"
        "from offpref.pipeline.commands.main import main;"
        "before = os.environ.get('OFFPREF_VERIFY');"
        f"found = CliRunner().invoke(main, ['store', 'ls', {str(scored.path)!r}, '--verify', 'x']);"
        f"done = CliRunner().invoke(main, ['store', 'ls', {str(scored.path)!r},"
        " '--verify', 'always']);"
        "print(json.dumps([before, found.exit_code, done.exit_code,"
        " os.environ.get('OFFPREF_VERIFY')]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OFFPREF_VERIFY"}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )

    assert json.loads(said.stdout) == [None, 2, 0, None]


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    from blake3 import blake3

    content = np.random.default_rng(0).bytes(9 * 2**20 + 7)  # more than a buffer
    path = tmp_path / "file"
    path.write_bytes(content)

    name, identity = verified.hash_regular(tmp_path, path)

    assert name == blake3(content).hexdigest(16)
    assert identity == identity_of(path)
