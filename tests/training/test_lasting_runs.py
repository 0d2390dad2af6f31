"""A run that runs out of memory or disk leaves a training that can be resumed, and says so."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, TrainingArguments

from offpref.pipeline.commands.main import main
from offpref.pipeline.models.out_of_memory import is_out_of_memory
from offpref.pipeline.models.soup import soup
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import num_warmup_steps
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.summary import TrainSummary
from offpref.pipeline.training.train import train
from offpref.stores.errors import StoreFormatError, StoreWriteError, TrainingError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


class Notes(Progress):
    """Keeps what a person would see."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def run(store: Store, settings: TrainSettings) -> tuple[TrainSummary, list[str]]:
    notes = Notes()
    return train(plan_training(store, settings), notes), notes.lines


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    """Let torch fail once, in a step's middle: its gradients are there, its weights as before."""
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise error
        return clip(*arguments, **options)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_could_not_be_had(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) == is_it


@pytest.mark.parametrize("lora", [{}, {"lora_r": 2, "lora_dropout": 0.3}])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_run_without_memory_says_what_to_lower_and_goes_on_bit_for_bit(
    scored: Store, train_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, Any],
) -> None:  # fmt: skip
    given: dict[str, Any] = {"max_steps": 4, **lora}
    run(scored, train_settings(**given, output_dir=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        fail_at(patch, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
        with pytest.raises(TrainingError) as said:
            run(scored, train_settings(**given))

    summary, notes = run(scored, train_settings(**given, resume=True))

    assert str(said.value) == (
        "out of memory in step 3: lower --max-batch-tokens below 1,024, or take "
        "--gradient-checkpointing; step 2 is saved, --resume continues from there"
    )
    assert (summary.num_resumed, notes) == (2, [])
    assert same(tmp_path / "whole", tmp_path / "out")


def test_resumed_run_may_take_smaller_microbatches(
    scored: Store, train_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scored, train_settings(max_steps=4, output_dir=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        fail_at(patch, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
        with pytest.raises(TrainingError):
            run(scored, train_settings(max_steps=4))

    smaller = {"max_batch_tokens": 128, "gradient_checkpointing": True}
    summary, notes = run(scored, train_settings(max_steps=4, **smaller, resume=True))

    assert summary.num_resumed == 2
    assert sorted(line.partition(": from here")[0] for line in notes) == [
        "note: gradient_checkpointing was False and is True",
        "note: max_batch_tokens was None and is 128",
    ]
    whole, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["depends_on"]["max_batch_tokens"] == 128


def test_other_settings_may_not_change(scored: Store, train_settings: Settings) -> None:
    run(scored, train_settings(max_steps=2))

    with pytest.raises(TrainingError, match=r"beta was 0\.1 and is 0\.3"):
        run(scored, train_settings(max_steps=2, beta=0.3, max_batch_tokens=128, resume=True))


def test_command_without_memory_ends_in_one_line(
    scored: Store, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 2, RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"))
    done = CliRunner().invoke(main, [
        "train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
        "--output-dir", str(tmp_path / "out"), "--pairs-per-step", "8", "--max-steps", "3",
    ])  # fmt: skip

    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("Error: out of memory in step 2: lower --max-batch-tokens")
    assert "Traceback" not in done.output


@contextmanager
def room(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: a file system that refuses in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def events(store: Store, output: Path) -> list[str]:
    store.refresh()
    run_id = json.loads((output / "run.json").read_text())["run_id"]
    return [row["event"] for row in store.read("run_events", run_id).to_pylist()]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_trained_adapter_is_kept_where_the_merged_weights_do_not_fit(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"max_steps": 3, "lora_r": 1, "lora_target_modules": ("q_proj",)}
    run(scored, train_settings(**given, output_dir=tmp_path / "whole"))
    with room(60_000), pytest.raises(StoreWriteError) as said:
        run(scored, train_settings(**given))

    summary, _ = run(scored, train_settings(**given, resume=True))

    assert str(said.value).endswith(
        "out cannot be written: File too large; what was committed before is safe; "
        "step 3 is saved, --resume continues from there"
    )
    assert (summary.num_resumed, summary.num_pairs) == (3, 0)
    assert same(tmp_path / "whole", tmp_path / "out")
    assert "failed" in events(scored, tmp_path / "out")


def test_checkpoint_that_does_not_fit_ends_in_one_line(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"max_steps": 4, "save_every": 2}
    run(scored, train_settings(**given, output_dir=tmp_path / "whole"))
    with room(60_000), pytest.raises(StoreWriteError, match=r"step-00000002 cannot be written"):
        run(scored, train_settings(**given))
    left = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]

    summary, _ = run(scored, train_settings(**given, resume=True))

    assert left == []  # the space of half a checkpoint is given back
    assert summary.num_steps == 4
    assert same(tmp_path / "whole", tmp_path / "out")


def test_policy_that_does_not_fit_says_that_nothing_is_saved(
    scored: Store, train_settings: Settings
) -> None:
    with room(60_000), pytest.raises(StoreWriteError, match="no step is saved, --resume starts"):
        run(scored, train_settings(max_steps=1))


def test_a_last_checkpoint_that_nobody_asked_for_may_fail(
    scored: Store,
    train_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The policy is written, and a note says that the run cannot be made longer."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise StoreWriteError("checkpoints/step-00000002 cannot be written: no space")

    monkeypatch.setattr("offpref.pipeline.training.train.save_checkpoint", refuse)
    summary, said = run(scored, train_settings(max_steps=2))

    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert summary.num_steps == 2
    assert any("no space; the run cannot train on from step 2" in line for line in said)


def test_soup_that_does_not_fit_leaves_nothing(model_dir: Path, tmp_path: Path) -> None:
    with room(60_000), pytest.raises(StoreWriteError, match="cannot be written: File too large"):
        soup([model_dir, model_dir], [1.0, 1.0], tmp_path / "soup")

    assert list(tmp_path.iterdir()) == []


def test_damaged_checkpoint_ends_in_one_line(
    scored: Store, train_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 3, MemoryError())
    with pytest.raises(TrainingError):
        run(scored, train_settings(max_steps=4, save_every=2))
    path = tmp_path / "out" / "checkpoints" / "step-00000002" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(StoreFormatError, match=r"step-00000002 cannot be loaded"):
        run(scored, train_settings(max_steps=4, save_every=2, resume=True))


@pytest.mark.parametrize("num_steps", [1, 7, 10, 30, 64, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.15, 0.3, 0.999])
def test_warmup_ratio_rounds_as_transformers_does(
    train_settings: Settings, ratio: float, num_steps: int
) -> None:
    theirs = TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=ratio), num_steps)

    assert num_warmup_steps(train_settings(warmup_ratio=ratio), num_steps) == theirs


def test_run_of_the_former_rule_keeps_it_when_resumed(
    scored: Store, train_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"max_steps": 4, "save_every": 2, "warmup_ratio": 0.3}  # 1.2 steps: now 2, then 1
    with monkeypatch.context() as patch:
        fail_at(patch, 3, MemoryError())
        with pytest.raises(TrainingError):
            run(scored, train_settings(**given))
    path = tmp_path / "out" / "run.json"
    entry = json.loads(path.read_text())
    assert entry.pop("num_warmup_steps") == 2
    path.write_text(json.dumps(entry))

    run(scored, train_settings(**given, resume=True))

    scored.refresh()
    rows = {row["step"]: row["learning_rate"] for row in scored.read("steps").to_pylist()}
    assert [rows[step] for step in (1, 2, 3, 4)] == pytest.approx(
        [0.0, 0.5e-3, 2 / 3 * 1e-3, 1 / 3 * 1e-3]  # steps 1 and 2 with two, then with one
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": "bf16"}, "note: --precision bf16 keeps weights and the optimizer's state"),
        ({"precision": "bf16", "lora_r": 2}, "note: --precision bf16 keeps the adapter's weights"),
        ({"precision": "bf16-autocast"}, None),
        ({"precision": "bf16-autocast", "lora_r": 2}, None),
        ({"precision": "float32"}, None),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_bf16_says_what_it_loses(
    scored: Store, train_settings: Settings, model_dir: Path, given: dict[str, Any],
    said: str | None,
) -> None:  # fmt: skip
    precision = given["precision"]
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", precision=precision))

    _, notes = run(scored, train_settings(max_steps=1, **given))

    assert [line[: len(said or "")] for line in notes] == ([said] if said else [])
    assert all("bf16-autocast" in line for line in notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-reward", "--output-dir", "rm"], "while training: lower --max-batch-tokens below"),
        (["reward", "--objective", "good", "--from", "model"],
         "while scoring texts: lower --max-batch-tokens below 4,096"),
        (["evaluate", "--num-samples", "2", "--max-new-tokens", "4"],
         "while evaluating: lower --batch-size"),
    ],
)  # fmt: skip
def test_every_command_without_memory_names_what_to_lower(
    scored: Store, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    model = model_dir
    if arguments[0] == "reward":
        model = Path(shutil.copytree(model_dir, tmp_path / "classifier"))
        AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(
            model
        )

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [
        arguments[0], str(scored.path), "--pair-set", "reviews", "--model", str(model),
        *arguments[1:],
    ])  # fmt: skip

    assert done.exit_code == 1
    assert f"Error: out of memory {said}" in done.output
