"""What is put away is shown nowhere and comes back; what compaction drops is gone."""

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from row_store import OTHER, RUN, START, ask, example, key, put, put_pairs, put_runs, step

from offpref.pipeline.commands.main import main
from offpref.pipeline.pairs.pair_sets import find_pair_set, pair_sets
from offpref.stores import visibility
from offpref.stores.errors import PairSetError
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.query.views import view_names
from offpref.stores.schema import HIDEABLE, SUBJECT_COLUMNS, TABLES
from offpref.stores.store import Store

THIRD, FOURTH = b"3" * 16, b"4" * 16
DAY = timedelta(days=1)


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], input=stdin)


def event(run: bytes, name: str, at: datetime) -> dict[str, object]:
    return {"run_id": run, "event": name, "happened_at": at, "step": 5}


@pytest.fixture
def runs(runs_once: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    return Store.open(Path(shutil.copytree(runs_once, tmp_path / "runs")))


@pytest.fixture(scope="module")
def runs_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dead attempts and a finished run called sft, a run called dpo that is at work."""
    store = Store.create(tmp_path_factory.mktemp("runs") / "store")
    ids = (RUN, OTHER, THIRD, FOURTH)
    names = ("sft", "sft", "sft", "dpo")
    put(store, "runs", [
        {"run_id": run, "name": name, "config": "{}", "pair_set": "s",
         "pair_set_fingerprint": "v1", "started_at": START + number * DAY}
        for number, (run, name) in enumerate(zip(ids, names, strict=True))
    ])  # fmt: skip
    put(store, "run_events", [
        event(RUN, "interrupted", START), event(OTHER, "alive", START + DAY),
        event(THIRD, "finished", START + 3 * DAY), event(FOURTH, "alive", datetime.now(UTC)),
    ])  # fmt: skip
    put_pairs(store, (2, 3), (1, 2))
    for run, margin in ((RUN, -1.0), (OTHER, -1.0), (THIRD, 1.0), (FOURTH, 1.0)):
        put(store, "steps", [step(1, 0.7) | {"run_id": run}], run.hex())
        put(store, "examples", [example(1, 1, margin, 0) | {"run_id": run}], run.hex())
    put(store, "evaluations", [
        {"evaluation_id": bytes([7]) * 16, "run_id": FOURTH, "name": "dpo", "rewards": [("r", 1.0)],
         "reward_errors": [("r", 0.1)], "reverse_kl": 1.0, "pair_set_fingerprint": "v1",
         "settings": "{}"},
    ], "07" * 16)  # fmt: skip
    put(store, "generations", [{"evaluation_id": bytes([7]) * 16}], "07" * 16)
    return store.path


def named(store: Store, question: str, **parameters: str) -> list[object]:
    return sorted({row["run"] for row in ask(store, question, **parameters)})  # type: ignore[type-var] # text


def test_a_dead_attempt_counts_nowhere_and_takes_no_name(runs: Store) -> None:
    assert named(runs, "accuracy") == ["dpo", "sft"]
    assert [row["accuracy"] for row in ask(runs, "accuracy")] == [1.0, 1.0]
    assert ask(runs, "label_noise", min_runs="1") == []


def test_a_dead_attempt_is_listed_and_may_be_asked_for(runs: Store) -> None:
    dead = [f"sft@{run.hex()[:12]}" for run in (RUN, OTHER)]

    assert named(runs, "runs") == sorted(["dpo", "sft", *dead])
    assert named(runs, "accuracy", run=dead[0]) == dead[:1]
    assert named(runs, "accuracy", status="superseded") == sorted(dead)
    assert named(runs, "accuracy", run="sft") == ["sft"]
    assert named(runs, "accuracy", run="s*") == ["sft"]


def test_an_unfinished_run_counts_until_another_has_its_name(store: Store) -> None:
    put_runs(store, "sft")
    put(store, "run_events", [event(RUN, "interrupted", START)])
    put(store, "examples", [example(1, 1, 1, 0)])

    assert named(store, "accuracy") == ["sft"]


def test_a_run_that_stopped_without_a_word_is_silent_since_then(runs: Store) -> None:
    status = {row["run"]: row for row in ask(runs, "runs")}
    silent = f"sft@{OTHER.hex()[:12]}"

    assert status[silent]["status"] == "silent"
    assert status[silent]["seen_at"] == "2026-01-02 00:00:00"
    assert status["dpo"]["status"] == "alive"
    assert ask(runs, "status", run=silent) == [
        {"run": silent, "attempt": 0, "event": "silent", "step": 5,
         "happened_at": "2026-01-02 00:00:00", "message": "silent since 2026-01-02 00:00:00 UTC"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"run": "d*"}, ["dpo"]),
        ({"run": "?ft,dpo"}, ["dpo", "sft"]),
        ({"status": "finished"}, ["sft"]),
        ({"status": "alive"}, ["dpo"]),
        ({"run": "*", "status": "finished"}, ["sft"]),
        ({"tag": "best"}, ["dpo"]),
    ],
)
def test_questions_choose_runs(runs: Store, given: dict[str, str], found: list[str]) -> None:
    visibility.set_tags(runs, [FOURTH.hex()], add=["best"], drop=[])

    assert named(runs, "accuracy", **given) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run": "x*"}, "no run is called 'x*'; there are: dpo, sft"),
        ({"run": "dpp"}, "did you mean dpo?"),
        ({"status": "done"}, "no run has status 'done'; there are: alive, finished"),
        ({"tag": "x"}, "no run has the tag 'x'; there are: none"),
    ],
)
def test_a_choice_that_no_run_fits_is_an_error(
    runs: Store, given: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ask(runs, "accuracy", **given)


def test_rm_hides_a_run_with_its_evaluations_and_restore_shows_both(runs: Store) -> None:
    before = {view: ask(runs, f"select count(*) as n from {view}") for view in view_names()}

    said = call("store", "rm", runs.path, "run", "dpo", "--yes")
    hidden = {table: ask(runs, f"select count(*) as n from {table}") for table in before}
    back = call("store", "restore", runs.path, "run", "dpo")

    assert said.output.startswith("put away   1 run, 1 evaluation;")
    assert named(runs, "runs") != []
    assert hidden["runs"] == [{"n": 3}]
    assert hidden["steps"] == hidden["examples"] == hidden["run_events"] == [{"n": 3}]
    assert hidden["evaluations"] == hidden["generations"] == [{"n": 0}]
    assert back.output == "restored   1 run, 1 evaluation\n"
    own = {"visibility", "shards"}
    after = {view: ask(runs, f"select count(*) as n from {view}") for view in view_names()}
    assert {k: v for k, v in after.items() if k not in own} == {
        k: v for k, v in before.items() if k not in own
    }


def test_every_table_with_a_subject_is_hidden_with_it() -> None:
    for kind, column in SUBJECT_COLUMNS.items():
        having = {
            table.name for table in TABLES.values() if any(c.name == column for c in table.columns)
        }
        own = set(HIDEABLE[kind])
        if kind == "run":
            having -= {"evaluations"}  # hidden with their run by a row of their own
        if kind == "pair-set":
            having -= {"runs", "evaluations"}  # they say on which pairs, and stay
        assert own == having


def test_an_evaluation_hidden_before_its_run_stays_hidden(runs: Store) -> None:
    call("store", "rm", runs.path, "evaluation", "dpo", "--yes")
    call("store", "rm", runs.path, "run", "dpo", "--yes")

    call("store", "restore", runs.path, "run", "dpo")

    assert ask(runs, "select * from evaluations") == []
    assert ask(runs, "select kind from put_away") == [{"kind": "evaluation"}]


def test_a_hidden_pair_set_is_found_by_nobody_and_its_name_means_no_older_one(
    store: Store,
) -> None:
    put_pairs(store, (2, 3))
    put_pairs(store, (4, 5), pair_set_fingerprint="v2")
    version = find_pair_set(store, "s").fingerprint

    call("store", "rm", store.path, "pair-set", f"s@{version}", "--yes")
    store.refresh()
    others = {each.fingerprint for each in pair_sets(store)}
    call("store", "rm", store.path, "pair-set", "s", "--yes")
    store.refresh()

    assert version not in others
    assert len(others) == 1
    assert ask(store, "select * from pairs") == []
    with pytest.raises(PairSetError, match="is put away, `offpref store restore` shows it again"):
        find_pair_set(store, "s")


def test_what_is_made_again_is_shown_again(store: Store) -> None:
    put_pairs(store, (2, 3))
    found = find_pair_set(store, "s")
    call("store", "rm", store.path, "pair-set", "s", "--yes")
    store.refresh()

    shown = visibility.show_if_hidden(store, "pair-set", found.fingerprint)

    assert shown is not None
    assert find_pair_set(store, "s") == found


def test_the_last_change_counts_even_if_a_clock_is_behind(
    runs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = visibility.Subject(kind="run", subject=str(UUID(bytes=RUN)), name="sft")
    visibility.put_away(runs, [subject])

    class Behind(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return START

    monkeypatch.setattr(visibility, "datetime", Behind)
    visibility.show_again(runs, [subject])

    assert visibility.hidden(runs) == {}
    assert ask(runs, "select * from put_away") == []


def test_compact_keeps_what_is_hidden_for_less_than_the_grace(runs: Store) -> None:
    call("store", "rm", runs.path, "run", "dpo", "--yes")

    done = call("store", "compact", runs.path)

    assert "dropped" not in done.output
    assert call("store", "restore", runs.path, "run", "dpo").exit_code == 0
    assert named(runs, "accuracy") == ["dpo", "sft"]


def test_compact_asks_for_force_below_the_grace(runs: Store) -> None:
    said = call("store", "compact", runs.path, "--grace-days", 0)
    idle = call("store", "compact", runs.path, "--force")

    assert (said.exit_code, idle.exit_code) == (2, 2)
    assert "what was put away since could not be restored" in said.output
    assert "force has no effect with a grace that is not below the default" in idle.output


def test_compact_drops_what_is_hidden_for_longer_and_nothing_else(runs: Store) -> None:
    tables = ("runs", "run_events", "steps", "examples", "pairs", "sequences")
    call("store", "rm", runs.path, "run", "dpo", "--yes")
    before = {table: ask(runs, f"select * from {table} order by all") for table in tables}

    done = call("store", "compact", runs.path, "--grace-days", 0, "--force")
    runs.refresh()
    after = {table: ask(runs, f"select * from {table} order by all") for table in tables}
    there = runs.read("runs", columns=["run_id"])["run_id"].to_pylist()
    back = call("store", "restore", runs.path, "run", "dpo")

    assert done.output.endswith("; 2 put away are dropped\n")
    assert after == before
    assert FOURTH not in there
    assert (len(there), runs.partitions("generations")) == (3, [])
    assert back.exit_code == 1
    assert "run dpo: its rows were dropped by `offpref store compact`" in back.output
    checked = call("store", "verify", runs.path)
    assert checked.exit_code == 0
    assert re.search(r"^\d+ files, [\d,]+ bytes, are no longer needed", checked.stderr, re.M)


def test_compact_drops_one_of_two_pair_sets_in_a_shard(store: Store) -> None:
    put(store, "pairs", [
        {"pair_set": name, "pair_set_fingerprint": name, "pair_key": key(number),
         "chosen_key": key(number), "split": "train", "weight": 1.0}
        for name in ("kept", "gone") for number in range(3)
    ], "tok")  # fmt: skip
    visibility.put_away(store, [visibility.Subject(kind="pair-set", subject="gone", name="gone@")])

    compact_store(store, grace_seconds=0)

    rows = store.read("pairs", columns=["pair_set"])["pair_set"].to_pylist()
    assert rows == ["kept"] * 3
    assert store.read("pair_sets", columns=["pair_set"])["pair_set"].to_pylist() == ["kept"]


def test_compact_keeps_pairs_that_a_mixture_refers_to(store: Store) -> None:
    put(store, "pairs", [
        {"pair_set": name, "pair_set_fingerprint": name, "pair_key": key(number),
         "chosen_key": key(number), "split": "train", "weight": 1.0}
        for number, name in enumerate(("part", "inner", "mixture"))
    ], "tok")  # fmt: skip
    put(store, "mixtures", [
        {"pair_set_fingerprint": "mixture", "pair_key": key(1), "part": "inner"},
        {"pair_set_fingerprint": "inner", "pair_key": key(0), "part": "part"},
    ], "tok")  # fmt: skip
    for name in ("part", "inner"):
        visibility.put_away(store, [visibility.Subject(kind="pair-set", subject=name, name=name)])

    compact_store(store, grace_seconds=0)

    assert len(store.read("pairs")) == 3
    assert len(store.read("mixtures")) == 2


def test_rm_asks_first_and_says_what_it_would_do(runs: Store) -> None:
    asked = call("store", "rm", runs.path, "run", "dpo", "sft")

    assert asked.exit_code == 2
    assert "expected --yes, since nobody can be asked: 2 runs, 1 evaluation would" in asked.output
    assert ask(runs, "select * from put_away") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rm", "run", "nope", "--yes"], "no run is called 'nope'"),
        (["rm", "pair-set", "nope", "--yes"], "no pair-set is called 'nope'; there are: s@v1"),
        (["rm", "evaluation", "nope", "--yes"], "no evaluation is called 'nope'; there are: dpo"),
        (["rm", "model", "x", "--yes"], "kind must be one of run, pair-set, evaluation"),
        (["restore", "run", "dpo"], "no run 'dpo' is put away; put away: none"),
        (["tag", "dpo"], "labels to add or drop"),
        (["tag", "dpo", "--add", "a,b"], "characters without commas, got 'a,b'"),
        (["tag", "dpo", "--drop", "x"], "run dpo does not have the tag 'x'; it has: none"),
        (["tag", "dpo", "--add", "x", "--drop", "x"], "got both for 'x'"),
    ],
)
def test_what_cannot_be_is_one_line(runs: Store, arguments: list[str], message: str) -> None:
    verb, *others = arguments
    said = call("store", verb, runs.path, *others)

    assert said.exit_code in (1, 2)
    assert message in said.output
    assert "Traceback" not in said.output
    assert ask(runs, "select * from put_away") == []


def test_tags_are_given_and_taken(runs: Store) -> None:
    call("store", "tag", runs.path, "dpo", "sft", "--add", "best", "--add", "week 3")
    call("store", "tag", runs.path, "sft", "--drop", "best")

    tags = {row["run"]: row["tags"] for row in ask(runs, "runs")}

    assert tags["dpo"] == ["best", "week 3"]
    assert tags["sft"] == ["week 3"]
    assert named(runs, "accuracy", tag="best") == ["dpo"]


def test_what_is_put_away_is_listed(runs: Store) -> None:
    call("store", "rm", runs.path, "run", "dpo", "--yes")

    listed = call("store", "ls", runs.path, "--hidden").output.splitlines()

    assert [line.split()[:2] for line in listed] == [["evaluation", "dpo"], ["run", "dpo"]]


def test_two_stores_that_hide_at_once_both_count(runs: Store) -> None:
    one, other = Store.open(runs.path), Store.open(runs.path)
    first, second = (
        visibility.Subject(kind="run", subject=str(UUID(bytes=run)), name="sft")
        for run in (RUN, OTHER)
    )

    visibility.put_away(one, [first])
    visibility.put_away(other, [second])

    assert set(visibility.hidden(Store.open(runs.path))) == {first.subject, second.subject}
