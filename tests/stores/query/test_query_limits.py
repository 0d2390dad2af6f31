"""A question stays within memory and time, and Ctrl-C ends it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from row_store import key, put
from stopping import send, start_until

from offpref.stores.errors import QueryRefusedError
from offpref.stores.query import repeats
from offpref.stores.query.catalog import Catalog
from offpref.stores.query.query_limits import QueryLimits, call_interruptibly, memory_bytes
from offpref.stores.store import Store

OFFPREF = Path(sys.executable).parent / "offpref"
ENDLESS = "select count(*) from range(1000000) a, range(1000000) b, range(1000) c"


def query(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [OFFPREF, "query", str(store.path), *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("1500MB", 1_500_000_000), ("4GB", 4 * 10**9), ("1.5 GiB", 1610612736), ("64mb", 64_000_000)],
)
def test_memory_is_spelled_as_people_do(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "10", "10MB", "-1GB", "1PB"])
def test_memory_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a memory limit like 4GB, at least 64MB"):
        memory_bytes(text)


@pytest.mark.parametrize(
    "sql",
    ["select len(range(1000000000))", "select list(i) from range(400000000) t(i)"],
    ids=["a value", "an aggregate"],
)
def test_what_does_not_fit_into_memory_is_one_line_that_names_the_limit(
    store: Store, sql: str
) -> None:
    found = query(store, sql, "--memory-limit", "200MB")

    assert found.returncode == 1
    assert found.stderr == (
        "Error: the query does not fit into a memory limit of 200MB: --memory-limit allows more\n"
    )


def test_what_can_spill_needs_no_more_than_its_limit(store: Store) -> None:
    sql = "select count(*) from (select distinct hash(i) from range(8000000) t(i))"

    found = query(store, sql, "--memory-limit", "150MB", "--format", "csv")

    assert (found.returncode, found.stdout.split()[-1]) == (0, "8000000")


def test_many_shards_are_named_as_what_may_help(store: Store) -> None:
    for number in range(10):
        put(store, "pairs", [{"pair_key": key(number)}])

    sql = "select list(i), (select count(*) from pairs) from range(400000000) t(i)"
    found = query(store, sql, "--memory-limit", "200MB")

    assert f"`offpref store compact {store.path}` makes it need less" in found.stderr


def test_a_question_that_takes_too_long_is_one_line(store: Store) -> None:
    found = query(store, ENDLESS, "--timeout", "0.2")

    assert found.returncode == 1
    assert found.stderr == (
        "Error: the query took longer than its timeout; --timeout allows more\n"
    )


@pytest.mark.parametrize("option", [("--timeout", "0"), ("--memory-limit", "10MB")])
def test_limits_that_cannot_be_are_refused_at_the_door(
    store: Store, option: tuple[str, str]
) -> None:
    assert query(store, "runs", *option).returncode == 2


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_question_at_once_and_leaves_nothing(
    store: Store, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    output = tmp_path / "answer.csv"
    process = start_until(
        "question-asked",
        [OFFPREF, "query", str(store.path), ENDLESS, "--output", str(output)],
        TMPDIR=str(spill),
    )

    found, said = send(process, number)

    assert found == code
    assert said == f"{word}\n"  # a question leaves nothing to resume
    assert list(spill.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spill", "store"]


def test_the_time_runs_anew_for_each_question(store: Store) -> None:
    with Catalog(store, QueryLimits(timeout_seconds=0.3)) as catalog:
        with pytest.raises(QueryRefusedError, match="longer than its timeout"):
            catalog.select(ENDLESS)
        assert catalog.select("select 1 as one").to_pylist() == [{"one": 1}]


def test_an_error_of_the_work_is_raised_where_it_was_asked() -> None:
    def fail() -> None:
        raise LookupError("as it was")

    with pytest.raises(LookupError, match="as it was"):
        call_interruptibly(fail, lambda: None, None)


# Rows that are there twice


def counts(store: Store) -> list[int]:
    with Catalog(Store.open(store.path)) as catalog:
        rows = catalog.select("select sum(list_sum(token_logps)) as s, count(*) as n from logps")
    (row,) = rows.to_pylist()
    return [round(row["s"]), row["n"]]


def write_twice(store: Store, num_rows: int, *, repeats_from: int) -> list[int]:
    """Rows in two shards, of which some repeat a key with another value; return what counts."""
    first = [
        {"sequence_key": n.to_bytes(16, "big"), "token_logps": [-1.0]} for n in range(num_rows)
    ]
    other = [{**row, "token_logps": [-3.0]} for row in first[repeats_from:]]
    put(store, "logps", first)
    put(store, "logps", other)
    values = store.read("logps").column("token_logps").to_pylist()
    return [round(sum(value for (value,) in values)), num_rows]


@pytest.mark.parametrize(
    ("num_rows", "repeats_from"),
    [(50, 50), (50, 47), (3000, 100)],
    ids=["none", "a few, listed", "too many to be listed"],
)
def test_views_show_the_row_that_counts_however_many_are_repeated(
    store: Store, num_rows: int, repeats_from: int
) -> None:
    expected = write_twice(store, num_rows, repeats_from=repeats_from)

    assert counts(store) == expected
    assert counts(store) == expected  # from what was remembered


def test_what_was_remembered_of_other_shards_is_not_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_twice(store, 20, repeats_from=10)
    monkeypatch.setattr(repeats, "recall", lambda *_: '[["someone-elses.parquet",0]]')

    assert counts(store) == expected
