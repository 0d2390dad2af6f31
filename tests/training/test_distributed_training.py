"""Real torchrun, real gloo: two processes train as one does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from list_cases import write_lists
from mask_cases import put_some_spans
from safetensors.torch import load_file

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.stores.store import Store

SCRIPT = "from offpref.pipeline.commands.start import start\nstart()\n"


def run(processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    start = [*launcher, str(script)] if processes > 1 else [str(script)]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(script.parent)},
    )


def arguments(store: Store, model: Path, output: Path, *more: str) -> list[str]:
    return [
        "train", str(store.path), "--pair-set", "reviews", "--model", str(model),
        "--output-dir", str(output), "--pairs-per-step", "7", "--learning-rate", "1e-3",
        "--max-steps", "6", "--max-batch-tokens", "150", "--eval-every", "3", "--device", "cpu",
        "--log-tokens", "all", *more,
    ]  # fmt: skip


def recorded(store: Store, output: Path, table: str) -> list[dict]:
    store.refresh()
    run_id = json.loads((output / "run.json").read_text())["run_id"]
    return store.read(table, run_id).to_pylist()


def test_two_processes_give_the_losses_of_one(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for number, output in ((1, one), (2, two)):
        done = run(number, tmp_path / "go.py", *arguments(scored, model_dir, output))
        assert done.returncode == 0, done.stderr

    first, second = recorded(scored, one, "steps"), recorded(scored, two, "steps")
    assert len(first) == len(second) == 9
    for a, b in zip(first, second, strict=True):
        assert (a["step"], a["split"], a["num_pairs"]) == (b["step"], b["split"], b["num_pairs"])
        assert a["num_tokens"] == b["num_tokens"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        if a["grad_norm"] is not None:
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        for name, value in dict(a["metrics"]).items():
            if name.startswith("logps"):
                assert value == pytest.approx(dict(b["metrics"])[name], rel=1e-5)
    for table in ("examples", "tokens"):
        sides = [
            [(r["step"], r["split"], r["pair_key"], r.get("sequence_key")) for r in rows]
            for rows in (recorded(scored, one, table), recorded(scored, two, table))
        ]
        assert sides[0] == sides[1]
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)


def test_two_processes_share_losses_that_couple_pairs(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", kl_pairs=True))
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--loss-type", "aot", "--loss-type", "kto", "--beta", "1", "--learning-rate", "3e-3"]
    for number, output in ((1, one), (2, two)):
        done = run(number, tmp_path / "go.py", *arguments(scored, model_dir, output, *more))
        assert done.returncode == 0, done.stderr

    first, second = recorded(scored, one, "steps"), recorded(scored, two, "steps")
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)
        if a["grad_norm"] is not None:
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    losses = [row["loss"] for row in first if row["split"] == "eval"]
    assert losses[-1] != pytest.approx(losses[0], rel=1e-3)  # it did learn something
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("name", ["plackett_luce", "lambda_loss"])
def test_two_processes_train_on_the_lists_of_one(
    store: Store, model_dir: Path, tmp_path: Path, name: str
) -> None:
    data = AddSettings(
        data=(str(write_lists(tmp_path / "lists.jsonl", num_lists=50, seed=6)),),
        pair_set="reviews", tokenizer=model_dir, max_length=64, eval_fraction=0.2,
    )  # fmt: skip
    score(store, ScoreSettings(model=model_dir, data=data))
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--loss-type", name, "--beta", "1", "--learning-rate", "3e-3"]
    for number, output in ((1, one), (2, two)):
        done = run(number, tmp_path / "go.py", *arguments(store, model_dir, output, *more))
        assert done.returncode == 0, done.stderr

    first, second = recorded(store, one, "steps"), recorded(store, two, "steps")
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=5e-6)
        assert a["num_tokens"] == b["num_tokens"]
        found, other = (dict(row["metrics"]).get("rewards/list_accuracies") for row in (a, b))
        assert found == pytest.approx(other, abs=0.02)
    keys = [
        {(r["step"], r["pair_key"]) for r in recorded(store, o, "examples")} for o in (one, two)
    ]
    assert keys[0] == keys[1]
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=3e-5)


def test_two_processes_count_the_tokens_of_one(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    put_some_spans(scored)
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", kl_pairs=True))
    one, two = tmp_path / "one", tmp_path / "two"
    losses = [word for loss in ("kto", "sigmoid_norm") for word in ("--loss-type", loss)]
    more = [*losses, "--beta", "1", "--mask", "last-turn", "--learning-rate", "3e-3"]
    for number, output in ((1, one), (2, two)):
        done = run(number, tmp_path / "go.py", *arguments(scored, model_dir, output, *more))
        assert done.returncode == 0, done.stderr
        assert "mask       last-turn: " in done.stdout

    first, second = recorded(scored, one, "steps"), recorded(scored, two, "steps")
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)
        assert a["num_tokens"] == b["num_tokens"]
        metrics = dict(b["metrics"])
        for name, value in dict(a["metrics"]).items():
            assert value == pytest.approx(metrics[name], rel=1e-3, abs=1e-4)
    masks = [
        [{**row, "run_id": None} for row in recorded(scored, path, "masks")] for path in (one, two)
    ]
    assert masks[0] == masks[1] != []
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=3e-5)


def test_processes_that_count_other_tokens_say_so(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    query = "sql:select sequence_key, 0 as position from sequences where random() < 0.5"

    done = run(2, tmp_path / "go.py", *arguments(scored, model_dir, tmp_path / "out", "--mask",
                                                 query))  # fmt: skip

    assert done.returncode != 0
    assert "the mask's query names other tokens each time it is asked" in done.stderr
    assert not (tmp_path / "out" / "run.json").exists()


def test_two_processes_train_the_adapter_of_one(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    one, two = tmp_path / "one", tmp_path / "two"
    for number, output in ((1, one), (2, two)):
        more = ["--lora-r", "2", "--max-steps", "3"]
        done = run(number, tmp_path / "go.py", *arguments(scored, model_dir, output, *more))
        assert done.returncode == 0, done.stderr

    first, second = recorded(scored, one, "steps"), recorded(scored, two, "steps")
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    base = load_file(model_dir / "model.safetensors")
    weights = [load_file(path / "model.safetensors") for path in (one, two)]
    changes = [(weights[0][key] - base[key]).abs().max() for key in base]
    assert max(changes) > 1e-4  # the adapter is merged into what is written
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=1e-5)


def test_split_run_resumes_from_its_checkpoint(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    output, script = tmp_path / "out", tmp_path / "go.py"
    saving = arguments(scored, model_dir, output, "--save-every", "4", "--keep", "2")
    whole = run(2, script, *saving)
    assert whole.returncode == 0, whole.stderr
    one = load_file(output / "model.safetensors")
    entry = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(entry | {"is_finished": False}))
    (output / "model.safetensors").unlink()
    shutil.rmtree(max((output / "checkpoints").glob("step-*")))  # that of the last step

    done = run(2, script, *saving, "--resume")

    assert done.returncode == 0, done.stderr
    assert "4 of them before" in done.stdout
    two = load_file(output / "model.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-7)


def test_processes_leave_their_group_before_python_ends(tmp_path: Path) -> None:
    """A thread of gloo that still runs then sometimes aborts a process that has done its work."""
    script = tmp_path / "go.py"
    script.write_text(
        "import atexit, os\n"
        "import torch.distributed as dist\n"
        "def say():  # runs last; one write, which another process's cannot cut\n"
        "    os.write(1, f'in a group: {dist.is_initialized()}\\n'.encode())\n"
        "atexit.register(say)\n"
        "from offpref.pipeline.models.devices import join_processes\n"
        "assert join_processes('cpu').world_size == 2\n"
        "assert dist.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(script)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == "in a group: False\n" * 2


def test_a_rank_ends_without_the_threads_that_may_abort_it(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    """Threads of gloo outlive their group: what Python does as it ends must not meet them."""
    script = tmp_path / "go.py"
    script.write_text(
        "import atexit, os, sys\n"
        "atexit.register(os.write, 1, b'Python ended by itself\\n')\n"
        "sys.argv[0] = 'offpref'\n"
        "from offpref.pipeline.commands.start import start\n"
        "start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(script), *arguments(scored, model_dir, tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=240,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "Python ended by itself" not in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
