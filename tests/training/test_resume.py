import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from safetensors.torch import load_file
from stopping import send, start_until

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.progress import Progress
from offpref.pipeline.small_world import write_pairs
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import TrainingError
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.store import Store
from offpref.stores.visibility import Subject, put_away, show_again

Settings = Callable[..., TrainSettings]
OFFPREF = [sys.executable, "-c", "from offpref.pipeline.commands.main import main; main()"]
STEPS = 24  # three epochs of 8; checkpoints every 5 lie inside them


def command(store: Store, model: Path, output: Path, *more: str) -> list[str]:
    return [
        *OFFPREF, "train", str(store.path), "--pair-set", "reviews", "--model", str(model),
        "--output-dir", str(output), "--pairs-per-step", "8", "--learning-rate", "1e-3",
        "--max-steps", str(STEPS), "--save-every", "5", "--keep", "2", "--log-tokens", "all",
        "--eval-every", "6", "--lr-scheduler-type", "cosine", "--warmup-steps", "3", *more,
    ]  # fmt: skip


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def stop_after(arguments: list[str], num_saved: int, kind: signal.Signals) -> int:
    """Start a run, and send a signal once it has saved that often; returns how it ended."""
    process = start_until(f"checkpoint-placed:{num_saved - 1}", arguments)
    return send(process, kind)[0]


def newest(store: Store, run_id: str, table: str) -> dict[tuple, dict]:
    """Rows of a run, of each step and split those of its newest attempt."""
    store.refresh()
    rows = store.read(table, run_id).to_pylist()
    latest: dict[tuple, int] = {}
    for row in rows:
        place = (row["step"], row["split"])
        latest[place] = max(latest.get(place, 0), row["attempt"])
    kept = [row for row in rows if row["attempt"] == latest[row["step"], row["split"]]]
    keys = ("step", "split", "pair_key", "sequence_key")
    found = {tuple(row.get(key) for key in keys): row for row in kept}
    assert len(found) == len(kept), "a step counts twice"
    return found


def measured(rows: dict[tuple, dict]) -> dict[tuple, dict]:
    """Rows without what depends on the run's name or the clock."""
    beside = {"run_id", "attempt", "seconds", "data_wait_seconds", "peak_memory_bytes"}
    return {
        place: {name: str(value) for name, value in row.items() if name not in beside}
        for place, row in rows.items()
    }


def run_id(output: Path) -> str:
    return str(json.loads((output / "run.json").read_text())["run_id"])


def test_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(command(scored, model_dir, whole)).returncode == 0

    ends = [
        stop_after(command(scored, model_dir, broken), 1, signal.SIGKILL),
        stop_after(command(scored, model_dir, broken, "--resume"), 2, signal.SIGKILL),
    ]
    done = run(command(scored, model_dir, broken, "--resume"))

    assert ends == [-signal.SIGKILL] * 2
    assert done.returncode == 0, done.stderr
    assert "attempt 2" in done.stdout
    for name in ("model.safetensors", "checkpoints/step-00000020/optimizer.safetensors"):
        one, other = load_file(whole / name), load_file(broken / name)
        assert one.keys() == other.keys()
        assert all(one[key].numpy().tobytes() == other[key].numpy().tobytes() for key in one)
    for table, number in (("steps", STEPS + 5), ("examples", None), ("tokens", None)):
        one, other = (newest(scored, run_id(path), table) for path in (whole, broken))
        assert measured(one) == measured(other)
        assert number is None or len(one) == number
    attempts = {row["attempt"] for row in newest(scored, run_id(broken), "steps").values()}
    assert attempts == {0, 1, 2}


def test_only_the_newest_checkpoints_are_kept_and_all_are_whole(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    train(plan_training(scored, train_settings(max_steps=5, save_every=1, keep=2)))

    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    for name in names:
        files = sorted(path.name for path in (output / "checkpoints" / name).iterdir())
        assert files == ["model.safetensors", "optimizer.safetensors", "random.safetensors",
                         "state.json"]  # fmt: skip


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_says_so_and_goes_on(
    scored: Store, model_dir: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    output = tmp_path / "out"
    arguments = command(scored, model_dir, output)
    process = start_until("checkpoint-placed", arguments)

    code, said = send(process, kind)

    assert code == 128 + kind, said
    lines = [line for line in said.replace("\r", "\n").splitlines() if "interrupted" in line]
    assert len(lines) == 1
    assert "Traceback" not in said
    assert "--resume continues" in lines[0]
    scored.refresh()
    events = [e["event"] for e in scored.read("run_events", run_id(output)).to_pylist()]
    assert events[-1] == "interrupted"
    if kind is signal.SIGINT:
        assert run([*arguments, "--resume"]).returncode == 0


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"beta": 0.2}, "beta was 0.1 and is 0.2"),
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({"weight_decay": 0.1}, r"weight_decay was 0\.0 and is 0\.1"),
        ({"seed": 1}, "seed was 0 and is 1"),
    ],
)
def test_changed_settings_are_named(
    scored: Store, train_settings: Settings, changed: dict, name: str
) -> None:
    given = {"max_steps": 4, "save_every": 2}
    train(plan_training(scored, train_settings(**given)))

    with pytest.raises(TrainingError, match=name):
        train(plan_training(scored, train_settings(**(given | changed), resume=True)))


def test_changed_pairs_are_named(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    given = {"max_steps": 2, "save_every": 1, "loss_type": "simpo"}
    train(plan_training(scored, train_settings(**given)))
    write_pairs(tmp_path / "new.jsonl", num_pairs=40, seed=9)
    data = AddSettings(
        data=(str(tmp_path / "new.jsonl"),), pair_set="reviews", tokenizer=model_dir, max_length=64
    )
    add_pairs(scored, plan_add(scored, data))

    with pytest.raises(TrainingError, match=r"pairs was '.*' and is"):
        train(plan_training(scored, train_settings(**given, resume=True)))


def test_changed_policy_is_named(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(model_dir, tmp_path / "own"))
    given = {"max_steps": 2, "save_every": 1, "model": own, "loss_type": "simpo"}
    train(plan_training(scored, train_settings(**given)))
    content = bytearray((own / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (own / "model.safetensors").write_bytes(content)
    os.utime(own / "model.safetensors")

    with pytest.raises(TrainingError, match=r"policy was '.*' and is"):
        train(plan_training(scored, train_settings(**given, resume=True)))


def test_resume_starts_what_has_not_begun_and_leaves_what_is_finished(
    scored: Store, train_settings: Settings
) -> None:
    settings = train_settings(max_steps=2, resume=True)
    first = train(plan_training(scored, settings))
    before = (settings.output_dir / "model.safetensors").stat()

    again = train(plan_training(scored, settings))

    assert (first.num_resumed, first.num_steps) == (0, 2)
    assert (again.run_id, again.num_resumed, again.num_pairs) == (first.run_id, 2, 0)
    assert (settings.output_dir / "model.safetensors").stat() == before
    with pytest.raises(TrainingError, match=r"beta was 0\.1 and is 0\.2"):
        train(plan_training(scored, train_settings(max_steps=2, resume=True, beta=0.2)))


def test_folder_that_holds_something_else_is_left(scored: Store, train_settings: Settings) -> None:
    settings = train_settings(resume=True)
    settings.output_dir.mkdir(parents=True)
    (settings.output_dir / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else than a run"):
        plan_training(scored, settings)


def weights(output: Path) -> dict[str, bytes]:
    found = load_file(output / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


def configs(store: Store, run_id: str) -> list[dict]:
    """The configuration of each attempt."""
    store.refresh()
    rows = store.read("runs", run_id).sort_by("attempt").to_pylist()
    return [json.loads(row["config"]) | {"print": row["config_fingerprint"]} for row in rows]


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 2},
    ],
    ids=lambda each: each["lr_scheduler_type"],
)
def test_a_longer_run_equals_an_unbroken_one_where_the_rate_does_not_know_the_end(
    scored: Store, train_settings: Settings, tmp_path: Path, schedule: dict
) -> None:
    whole, output, said = tmp_path / "whole", tmp_path / "out", Notes()
    train(plan_training(scored, train_settings(max_steps=7, output_dir=whole, **schedule)))
    given = {"save_every": 100, "resume": True, **schedule}
    train(plan_training(scored, train_settings(max_steps=4, **given)))

    done = train(plan_training(scored, train_settings(max_steps=7, **given)), said)

    assert (done.attempt, done.num_resumed, done.num_steps) == (1, 4, 7)
    assert said.lines == []
    assert weights(output) == weights(whole)
    first, second = configs(scored, run_id(output))
    (unbroken,) = configs(scored, run_id(whole))
    assert (first["max_steps"], second["max_steps"]) == (4, 7)
    assert first["print"] != second["print"] == unbroken["print"]
    again = train(plan_training(scored, train_settings(max_steps=7, **given)))
    assert (again.attempt, again.num_pairs) == (1, 0)


class Notes(Progress):
    """Keeps what a person should see."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize(
    "schedule",
    [{"lr_scheduler_type": "linear"},
     {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5}],
    ids=["linear", "warmup_ratio"],
)  # fmt: skip
def test_a_longer_run_says_what_it_means_for_a_rate_that_knows_the_end(
    scored: Store, train_settings: Settings, tmp_path: Path, schedule: dict
) -> None:
    given, said = {"save_every": 100, "resume": True, **schedule}, Notes()
    train(plan_training(scored, train_settings(max_steps=4, **given)))

    train(plan_training(scored, train_settings(num_epochs=1, **given)), said)

    (line,) = said.lines
    rates = {"linear": ("0.00025", "0.000625"), "constant_with_warmup": ("0.001", "0.00075")}
    before, now = rates[schedule["lr_scheduler_type"]]
    assert f"the rate of step 4 was {before} of 4 steps and is {now} of 8; from step 5 on" in line
    first, second = configs(scored, run_id(tmp_path / "out"))
    assert "earlier_schedules" not in first
    assert second["earlier_schedules"] == [{"num_steps": 4, "last_step": 4}]
    unbroken = plan_training(scored, train_settings(num_epochs=1, **given)).config_fingerprint
    assert second["print"] not in (first["print"], unbroken)
    rows = newest(scored, run_id(tmp_path / "out"), "steps")
    assert len(rows) == 8
    if schedule["lr_scheduler_type"] == "linear":
        rate = [row["learning_rate"] for place, row in sorted(rows.items(), key=str)]
        assert rate == pytest.approx(
            [1e-3 * x for x in (1, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125)]
        )


def test_steps_that_are_done_are_not_taken_back(scored: Store, train_settings: Settings) -> None:
    given = {"save_every": 100, "resume": True}
    train(plan_training(scored, train_settings(max_steps=4, **given)))
    for number in (3, 2):
        message = f"for {number} steps, it was planned for 4 and has done 4: expected more than 4"
        with pytest.raises(TrainingError, match=f"{message}; --overwrite starts again"):
            train(plan_training(scored, train_settings(max_steps=number, **given)))


def test_a_finished_run_without_its_checkpoint_says_where_it_starts(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    given = {"resume": True, "lr_scheduler_type": "constant"}
    short = {"max_steps": 2, "no_last_checkpoint": True}
    train(plan_training(scored, train_settings(**short, **given)))
    said = Notes()

    done = train(plan_training(scored, train_settings(max_steps=3, **given)), said)

    assert done.num_resumed == 0
    assert said.lines == [
        "note: the run has finished step 2 and kept no checkpoint of it, as with "
        "--no-last-checkpoint and in a sweep: it starts again at step 1"
    ]
    train(
        plan_training(scored, train_settings(max_steps=3, output_dir=tmp_path / "whole", **given))
    )
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_finished_run_trains_on_without_having_been_told_to_save(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    given = {"resume": True, "lr_scheduler_type": "constant"}
    train(plan_training(scored, train_settings(max_steps=2, **given)))

    done = train(plan_training(scored, train_settings(max_steps=3, **given)))

    assert done.num_resumed == 2
    whole = train_settings(max_steps=3, output_dir=tmp_path / "whole", **given)
    train(plan_training(scored, whole))
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_run_that_is_put_away_is_not_resumed_in_the_dark(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    settings = train_settings(max_steps=2, resume=True)
    train(plan_training(scored, settings))
    scored.refresh()
    subject = Subject(kind="run", subject=str(UUID(run_id(tmp_path / "out"))), name="out")
    put_away(scored, [subject])

    finished = train(plan_training(scored, settings))
    state = tmp_path / "out" / "run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"is_finished": False}))

    assert finished.num_steps == 2
    with pytest.raises(TrainingError, match="its run out is put away; `offpref store restore"):
        train(plan_training(scored, settings))


def test_a_finished_run_that_is_put_away_says_so_and_is_not_made_longer(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    train(plan_training(scored, train_settings(max_steps=2, resume=True)))
    subject = Subject(kind="run", subject=str(UUID(run_id(tmp_path / "out"))), name="out")
    put_away(scored, [subject])
    said = Notes()

    train(plan_training(scored, train_settings(max_steps=2, resume=True)), said)

    assert said.lines == ["note: run out is put away: no question shows it"]
    with pytest.raises(TrainingError, match="its run out is put away"):
        train(plan_training(scored, train_settings(max_steps=3, resume=True)))


def test_a_run_whose_first_steps_were_dropped_is_not_resumed(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    train(plan_training(scored, train_settings(max_steps=2, resume=True)))
    subject = Subject(kind="run", subject=str(UUID(run_id(tmp_path / "out"))), name="out")
    put_away(scored, [subject])
    compact_store(scored, grace_seconds=0)
    show_again(scored, [subject])

    with pytest.raises(TrainingError, match="has nothing of its first steps"):
        train(plan_training(scored, train_settings(max_steps=3, resume=True)))


def test_settings_that_change_no_weight_may_change(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    given = {"max_steps": 4, "lr_scheduler_type": "cosine", "train_split": "eval"}
    train(plan_training(scored, train_settings(output_dir=tmp_path / "whole", **given)))
    train(plan_training(scored, train_settings(save_every=2, keep=2, **given)))
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000004")
    entry = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps(entry | {"is_finished": False}))
    changed = {
        "save_every": 1, "keep": 3, "log_tokens": "none", "eval_every": 2, "run_name": "other",
        "eval_split": ("train",),
    }  # fmt: skip

    done = train(plan_training(scored, train_settings(resume=True, **given, **changed)))

    assert done.num_resumed == 2
    assert list(done.held_out) == ["train"]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
