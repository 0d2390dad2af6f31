"""Losses of one's own: the page's DPO is the built-in; nothing is imported that is not named."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

import offpref
from offpref.pipeline.commands.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_losses.md").read_text(encoding="utf-8")
MODULE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
STEPS = ("--pairs-per-step", "8", "--max-steps", "3", "--learning-rate", "1e-3", "--device", "cpu")


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the page's loss in this folder; every test has its own."""
    name = f"losses_{re.sub(r'[^a-z0-9]', '_', tmp_path.name)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return f"python:{name}:dpo"


def train(store: Any, model: Path, output: Path, *options: str) -> Any:
    return CliRunner().invoke(
        main, ["train", str(store.path), "--pair-set", "reviews", "--model", str(model),
               "--output-dir", str(output), *STEPS, *options],
    )  # fmt: skip


def measured(store: Any, output: Path) -> list[tuple[float, float]]:
    store.refresh()
    run = json.loads((output / "run.json").read_text())["run_id"]
    rows = sorted(store.read("steps", run).to_pylist(), key=lambda row: row["step"])
    return [(row["loss"], dict(row["metrics"])["rewards/margins"]) for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--beta", "0.3", "--label-smoothing", "0.1"),
        ("--ld-alpha", "0.5"),
        ("--f-divergence-type", "js_divergence"),
    ],
    ids=["plain", "options", "ld_alpha", "divergence"],
)
def test_the_pages_dpo_is_the_built_in_to_the_last_bit(
    scored: Any, model_dir: Path, tmp_path: Path, named: str, options: tuple[str, ...]
) -> None:
    built_in, own = tmp_path / "built-in", tmp_path / "own"

    first = train(scored, model_dir, built_in, "--loss-type", "sigmoid", *options)
    second = train(scored, model_dir, own, "--loss-type", named, *options)

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert measured(scored, own) == measured(scored, built_in)
    for name, weight in load_file(built_in / "model.safetensors").items():
        assert load_file(own / "model.safetensors")[name].equal(weight), name


def test_one_of_several_with_options_of_its_own(
    scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    module = Path(f"{named.split(':')[1]}.py")
    module.write_text(MODULE.replace("label_smoothing=0.0", "label_smoothing=0.0, scale=1.0")
                      .replace("beta * scores", "scale * beta * scores"))  # fmt: skip
    options = ("--loss-type", named, "--loss-type", "sft", "--loss-weights", "1",
               "--loss-weights", "0.5")  # fmt: skip

    done = train(scored, model_dir, tmp_path / "a", *options, "--loss-option", "scale=2")
    same = train(scored, model_dir, tmp_path / "b", *options, "--beta", "0.2")
    wrong = train(scored, model_dir, tmp_path / "c", *options, "--loss-option", "scal=2")

    assert done.exit_code == 0, done.output
    assert [x for x, _ in measured(scored, tmp_path / "a")] == pytest.approx(
        [x for x, _ in measured(scored, tmp_path / "b")]
    )
    assert same.exit_code == 0
    assert wrong.exit_code == 2
    assert "did you mean scale?" in wrong.output.splitlines()[-1]


def test_a_run_is_resumed_with_the_code_that_it_began_with(
    scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    """In processes of their own: a module that was imported stays as it was."""
    output, module = tmp_path / "run", Path(f"{named.split(':')[1]}.py")
    command = [
        sys.executable, "-P", "-c",
        "from offpref.pipeline.commands.start import start; start()",
        "train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
        "--output-dir", str(output), *STEPS, "--loss-type", named, "--resume",
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    module.write_text(MODULE.replace("-(1 - label_smoothing)", "-1.0 * (1 - label_smoothing)"))

    changed = subprocess.run(command, capture_output=True, text=True, check=False)

    assert first.returncode == 0, first.stderr
    assert "finished before, nothing was done" in again.stdout
    assert changed.returncode == 1
    assert f"{named} source was" in changed.stderr


def test_what_a_run_or_a_store_names_is_never_imported(
    scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    """A run of such a loss is resumed as another one, asked about, and shown in the report."""
    assert train(scored, model_dir, tmp_path / "own", "--loss-type", named).exit_code == 0
    module = named.split(":")[1]
    Path(f"{module}.py").write_text("open('imported', 'w').close()\n")
    commands = [
        ["train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
         "--output-dir", "own", *STEPS, "--resume"],
        ["query", str(scored.path), "runs"],
        ["query", str(scored.path), "accuracy"],
        ["store", "ls", str(scored.path)],
        ["store", "verify", str(scored.path)],
        ["export", str(scored.path), "--to", "parquet", "--output", "exported"],
    ]  # fmt: skip
    code = "from offpref.pipeline.commands.start import start; start()"

    for command in commands:
        subprocess.run(
            [sys.executable, "-P", "-c", code, *command], capture_output=True, check=False
        )

    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:nowhere:mine", "module 'nowhere' cannot be imported"),
        ("python:json:loads", "expected a function under the decorator offpref.loss"),
        ("python:json:no", "json has no function 'no'"),
        ("python:json", "loss_type must be python:MODULE:FUNCTION"),
        ("python:.ok:f", "loss_type must be python:MODULE:FUNCTION"),
        ("python:my+x:f", "loss_type must be python:MODULE:FUNCTION"),
        ("sigmod", "did you mean sigmoid?"),
    ],
)
def test_what_is_no_loss_is_one_line(
    name: str, message: str, scored: Any, model_dir: Path, tmp_path: Path
) -> None:
    result = train(scored, model_dir, tmp_path / "out", "--loss-type", name)

    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(beta * scores.logratio_margins).mean()", r"got torch.float64 \[\]"),
        ("scores.logratio_margins > 0", r"got torch.bool \[\d\]"),
        ("scores.logratio_margins.detach()", "with a gradient, got detached ones"),
        ("0.5", "got float"),
    ],
)
def test_a_loss_that_returns_no_number_per_pair_says_so(
    body: str, message: str, scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    result = train(scored, model_dir, tmp_path / "out", "--loss-type", write(named, body))

    assert result.exit_code == 1
    assert re.search(message, result.output.splitlines()[-1])


def write(named: str, body: str, *, more: str = "", options: str = "beta=0.1") -> str:
    """Write a module with a loss of this body, in place of the page's."""
    Path(f"{named.split(':')[1]}.py").write_text(
        f"import offpref\n{more}\n@offpref.loss()\ndef dpo(scores, *, {options}):\n"
        f"    return {body}\n"
    )
    return named


def test_a_bug_in_a_loss_is_one_line_and_its_traceback_can_be_seen(
    scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    wrong = ["--loss-type", write(named, "{}['nothing']")]

    result = train(scored, model_dir, tmp_path / "out", *wrong)
    told = train(scored, model_dir, tmp_path / "told", *wrong, "--verbose")

    assert result.exit_code == 1
    assert f"Error: loss '{named}' raised KeyError: 'nothing' (" in result.output
    assert "Traceback" not in result.output
    assert "\nKeyError: 'nothing'\n" in told.output


def test_options_are_of_the_kind_of_their_defaults(
    scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    body = "(beta if flag and name == 'x' and type(k) is int and k == 3 else 0) * "
    write(named, body + "scores.logratio_margins",
          options="beta=0.1, k=4, flag=False, name='y', needed")  # fmt: skip
    right = ["--loss-option", "k=3", "--loss-option", "flag=true", "--loss-option", "name=x",
             "--loss-option", "needed=1"]  # fmt: skip

    done = train(scored, model_dir, tmp_path / "a", "--loss-type", named, *right)
    messages = [
        train(scored, model_dir, tmp_path / "b", "--loss-type", named, *more).output
        for more in (
            [*right[:-2], "--loss-option", "needed=nan"], ["--loss-option", "k=1.5"],
            ["--loss-option", "flag=1"], ["--beta", "0.2", "--loss-option", "beta=0.5"], right[:6],
        )
    ]  # fmt: skip

    assert done.exit_code == 0, done.output
    assert measured(scored, tmp_path / "a")[-1][0] != 0
    for message, part in zip(
        messages,
        ("needed must be finite", "k must be a whole number", "flag must be true or false",
         "beta is given twice", "needs needed"),
        strict=True,
    ):  # fmt: skip
        assert part in message.splitlines()[-1]


def test_what_a_module_imports_is_part_of_the_run_wherever_it_is_asked(
    scored: Any, model_dir: Path, tmp_path: Path, named: str
) -> None:
    """Inside a function too, and by whatever else is loaded: command and Python agree."""
    helper = f"helper_{named.split(':')[1]}"
    Path(f"{helper}.py").write_text("scale = 1.0\n")
    write(named, f"__import__('{helper}').scale * beta * scores.logratio_margins",
          more=f"def lazy():\n    import {helper}\n")  # fmt: skip
    store = offpref.open(scored.path, progress=False)
    common = {"model": model_dir, "output_dir": tmp_path / "run", "pairs_per_step": 8,
              "max_steps": 3, "learning_rate": 1e-3, "device": "cpu"}  # fmt: skip
    assert train(scored, model_dir, tmp_path / "run", "--loss-type", named).exit_code == 0
    store.query("runs")

    again = store.train("reviews", loss_type=named, resume=True, **common)
    Path(f"{helper}.py").write_text("scale = 2.0\n")

    assert "finished before" in repr(again)
    with pytest.raises(offpref.TrainingError, match="source was"):
        store.train("reviews", loss_type=named, resume=True, **common)


def test_a_function_is_known_by_its_module_or_refused(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from offpref.pipeline.losses.own import named_loss, source_of

    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(named.split(":")[1])
    strength = 2.0

    @offpref.loss()
    def closes(scores: Any) -> Any:
        return strength * scores.logratio_margins

    assert named_loss(module.dpo) == named
    assert source_of(named) == source_of(named_loss(module.dpo))
    with pytest.raises(TypeError, match="this one takes strength from around it"):
        named_loss(closes)
    with pytest.raises(TypeError, match="expected a function"):
        offpref.loss()(object())  # type: ignore[type-var]


def test_a_loss_is_found_once_not_at_every_microbatch(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offpref.pipeline.losses import own
    from offpref.pipeline.losses.settings import LossSettings
    from offpref.pipeline.losses.training_loss import training_loss

    loss = training_loss(LossSettings(loss_type=(named,)))

    def again(name: str) -> Any:
        raise AssertionError(f"{name} was imported again")

    monkeypatch.setattr(own, "load_function", again)
    assert loss.needs_reference
    assert not loss.couples
    assert loss.parts[0].loss.options["beta"] == 0.1


def test_a_mean_in_python_says_so(scored: Any, model_dir: Path, tmp_path: Path) -> None:
    @offpref.loss()
    def mean(scores: Any, *, beta: float = 0.1) -> Any:
        return (beta * scores.logratio_margins).mean()

    store = offpref.open(scored.path, progress=False)

    with pytest.raises(offpref.TrainingError, match=r"expected a loss for each of \d+ pairs"):
        store.train("reviews", model=model_dir, output_dir=tmp_path / "out", loss_type=mean,
                    pairs_per_step=8, max_steps=1)  # fmt: skip


def test_a_function_will_do_in_python_and_may_couple_pairs(
    scored: Any, model_dir: Path, tmp_path: Path
) -> None:
    """What couples pairs is computed over the whole step: the same for every cut."""

    @offpref.loss(couples=True)
    def centred(scores: Any, *, beta: float = 0.1) -> Any:
        margins = beta * scores.logratio_margins
        return (1 - (margins - margins.mean())) ** 2

    store = offpref.open(scored.path, progress=False)
    common = {"model": model_dir, "loss_type": centred, "pairs_per_step": 8, "max_steps": 2,
              "learning_rate": 1e-3}  # fmt: skip

    whole = store.train("reviews", output_dir=tmp_path / "a", max_batch_tokens=10_000, **common)
    cut = store.train("reviews", output_dir=tmp_path / "b", max_batch_tokens=64, **common)

    assert whole.metrics["loss"] == pytest.approx(cut.metrics["loss"], rel=1e-6)
    assert store.query("runs").rows()[0]["loss_type"].startswith("python:")


def test_losses_lists_what_each_needs(named: str) -> None:
    every = CliRunner().invoke(main, ["losses"]).output
    own = CliRunner().invoke(main, ["losses", "--loss-type", named]).output

    assert len(every.splitlines()) == 29
    assert re.search(r"^tdpo2 +scores, tier hidden or topk +both +beta=0.1, tdpo_alpha=0.5$",
                     every, re.M)  # fmt: skip
    assert own.splitlines()[1].split() == [named, "scores", "both", "beta=0.1,",
                                           "label_smoothing=0"]  # fmt: skip
