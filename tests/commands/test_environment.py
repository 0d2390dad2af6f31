"""What the world around a command may do to it: one line, nothing lost, nothing stale left."""

import errno
import os
import shlex
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from row_store import START, ask, put
from stopping import send, start_until

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.pairs.pair_sets import find_pair_set, pair_sets
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.store import Store

OFFPREF = Path(sys.executable).parent / "offpref"


def shell(*arguments: object, streams: str = "") -> tuple[int, str]:
    """Run a command as a shell does, with its streams redirected; return code and what it said."""
    command = shlex.join(str(each) for each in (OFFPREF, *arguments))
    done = subprocess.run(
        ["bash", "-c", f"{command} {streams}"], capture_output=True, text=True,
        env=os.environ,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("store", "ls"), ("query", "runs"), ("query", "--list")])
@pytest.mark.parametrize(
    ("streams", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_output_that_cannot_be_written_is_one_line(
    scored: Store, arguments: tuple[str, ...], streams: str, reason: str
) -> None:
    first, *more = arguments
    words = (first, *more, scored.path) if first == "store" else (first, scored.path, *more)

    code, said = shell(*words, streams=streams)

    assert code == 1
    assert said == (
        f"Error: standard output cannot be written: {reason}; what was committed is safe\n"
    )


def test_help_that_cannot_be_written_is_one_line() -> None:
    code, said = shell("--help", streams=">/dev/full")

    assert code == 1
    assert said.startswith("Error: standard output cannot be written: No space left on device")
    assert said.count("\n") == 1


@pytest.mark.parametrize("streams", ["<&-", "<&- 2>&-", ">/dev/null <&- 2>&-"])
def test_closed_streams_change_nothing_and_nothing_is_printed_into_the_store(
    tmp_path: Path, model_dir: Path, streams: str
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=20, seed=0)
    store = tmp_path / "store"

    code, said = shell(
        "score", store, "--data", tmp_path / "pairs.jsonl", "--pair-set", "p", "--model",
        model_dir, "--eval-fraction", 0.2, streams=streams,
    )  # fmt: skip

    assert (code, "Traceback" in said) == (0, False)
    assert verify_store(store).problems == []
    assert Store.open(store).read("logps").num_rows == 40


def test_closed_output_loses_no_work(tmp_path: Path, model_dir: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=20, seed=0)
    store = tmp_path / "store"

    code, said = shell(
        "score", store, "--data", tmp_path / "pairs.jsonl", "--pair-set", "p", "--model",
        model_dir, streams=">&-",
    )  # fmt: skip

    assert code == 1
    assert said.count("\n") == 1
    assert verify_store(store).problems == []
    assert Store.open(store).read("logps").num_rows == 40


def test_a_reader_that_ends_early_is_no_error_to_talk_of(scored: Store) -> None:
    code, said = shell(
        "query", scored.path, "select * from sequences, range(1000)", "--format", "csv",
        streams="| head -n 1",
    )  # fmt: skip

    assert (code, said.count("\n")) == (0, 1)


NO_LINKS = ["EPERM", "EACCES", "ENOTSUP", "ENOSYS", "EMLINK", "EXDEV"]


@pytest.mark.parametrize("name", NO_LINKS)
def test_a_file_system_without_hard_links_will_do(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(os, "link", refuse)
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=8, seed=0)
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="p", tokenizer=model_dir, max_length=64
    )

    for _ in range(2):
        store = Store.create(tmp_path / "store")
        score(store, ScoreSettings(model=model_dir, data=data, tier=("hidden",)))

    assert verify_store(store.path).problems == []
    assert sorted(path.name for path in (store.path / "tmp").iterdir() if path.suffix != ".alive") \
        == []  # fmt: skip


# Clocks


def event(attempt: int, minutes: int, name: str) -> dict[str, object]:
    return {
        "run_id": b"r" * 16, "attempt": attempt, "happened_at": START + timedelta(minutes=minutes),
        "event": name, "step": attempt, "message": None,
    }  # fmt: skip


def test_the_newest_attempt_tells_the_status_though_its_clock_is_behind(store: Store) -> None:
    put(store, "runs", [
        {"run_id": b"r" * 16, "attempt": number, "name": "dpo", "config": "{}"} for number in (0, 1)
    ])  # fmt: skip
    put(store, "run_events", [
        event(0, 3000, "started"), event(0, 3001, "saved"), event(1, 0, "started"),
        event(1, 1, "finished"),
    ])  # fmt: skip

    (row,) = ask(store, "runs")
    shown = [(each["attempt"], each["event"]) for each in ask(store, "status")]

    assert row["status"] == "finished"
    assert shown == [(1, "finished"), (1, "started"), (0, "saved"), (0, "started")]


def test_a_name_means_the_version_that_was_added_last_though_the_clock_went_back(
    scored: Store, tmp_path: Path, model_dir: Path
) -> None:
    before = find_pair_set(scored, "reviews")
    rows = scored.read("pair_sets").to_pylist()
    ahead = [
        {**row, "pair_set_fingerprint": "f" * 32,
         "created_at": row["created_at"] + timedelta(days=300)} for row in rows
    ]  # fmt: skip
    put(scored, "pair_sets", ahead, partition=before.tokenizer)
    write_pairs(tmp_path / "other.jsonl", num_pairs=6, seed=9)
    data = AddSettings(
        data=(str(tmp_path / "other.jsonl"),), pair_set="reviews", tokenizer=model_dir,
        max_length=64,
    )  # fmt: skip

    added, _ = add_pairs(scored, plan_add(scored, data))

    assert find_pair_set(scored, "reviews").fingerprint == added.fingerprint
    assert len(pair_sets(scored)) == 3


# SIGTERM in every stage


def stages(store: Path, model: Path, folder: Path) -> dict[str, tuple[str, list[object]]]:
    """Where each stage is stopped, and its command."""
    pairs, out = folder / "pairs.jsonl", folder / "out"
    common = ["--pair-set", "reviews", "--model", model]
    short = ["--pairs-per-step", 8, "--max-steps", 4, "--save-every", 2]
    own = ["--data", pairs, "--pair-set", "own"]
    return {
        "add": ("record-placed", ["add", store, *own, "--tokenizer", model]),
        "score": ("record-placed:1", ["score", store, *own, "--model", model,
                                      "--commit-seconds", 0, "--max-batch-tokens", 256]),
        "reward": ("record-placed", ["reward", store, "--pair-set", "reviews", "--objective", "b",
                                     "--from", "brevity"]),
        "evaluate": ("record-placed", ["evaluate", store, *common, "--split", "eval",
                                       "--num-samples", 2, "--num-prompts", 4,
                                       "--max-new-tokens", 6]),
        "train": ("checkpoint-placed", ["train", store, *common, *short, "--output-dir", out,
                                        "--resume"]),
        "sft": ("checkpoint-placed", ["sft", store, *common, *short, "--output-dir", out,
                                      "--resume"]),
        "compact": ("shard-placed", ["store", "compact", store]),
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["add", "score", "reward", "evaluate", "train", "sft", "compact"])
def test_sigterm_commits_what_is_computed_and_the_same_command_goes_on(
    scored: Store, model_dir: Path, tmp_path: Path, stage: str
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=60, seed=5)
    with scored.batch() as batch:  # a second shard, so that there is something to compact
        (partition,) = scored.partitions("logps")
        batch.add("logps", partition, scored.read("logps", partition).slice(0, 3))
    digest = scored.digest("logps")
    point, words = stages(scored.path, model_dir, tmp_path)[stage]
    command = [str(each) for each in (OFFPREF, *words)]

    process = start_until(point, command)
    code, said = send(process, signal.SIGTERM)
    again = subprocess.run(command, capture_output=True, text=True)

    assert code == 143, said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert again.returncode == 0, again.stderr
    found = verify_store(scored.path)
    assert found.problems == []
    assert [note for note in found.notes if f"{scored.path}/tmp/" in note] == []
    scored.refresh()
    assert stage == "score" or scored.digest("logps") == digest
