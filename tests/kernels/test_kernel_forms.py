"""Which form of the kernels runs: forced by --kernels, part of the record, of no key."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.pipeline.training.plan import TrainingPlan, plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.store import Store


def scored_by(form: str | None, model_dir: Path, folder: Path) -> tuple[Store, str, str]:
    """Return the store, the scorer, and the form that the provenance of its scores names."""
    folder.mkdir()
    write_pairs(folder / "pairs.jsonl", num_pairs=6, seed=3)
    data = AddSettings(
        data=(str(folder / "pairs.jsonl"),), pair_set="few", tokenizer=model_dir, max_length=64
    )
    store = Store.create(folder / "store")
    summary = score(store, ScoreSettings(model=model_dir, data=data, kernels=form))
    forms = {record.provenance.get("kernels") for record in store.records().values()} - {None}
    (named,) = forms
    return store, summary.scorer, str(named)


def test_both_forms_score_alike_and_under_one_key(
    model_dir: Path, tmp_path: Path, interpreter: None
) -> None:
    plain, plain_scorer, plain_form = scored_by(None, model_dir, tmp_path / "plain")

    forced, scorer, form = scored_by("triton", model_dir, tmp_path / "triton")

    assert (plain_form, form) == ("torch", "triton")
    assert scorer == plain_scorer
    logps = [
        {row["sequence_key"]: row["token_logps"] for row in rows}
        for rows in (store.read("logps", scorer).to_pylist() for store in (plain, forced))
    ]
    assert logps[0].keys() == logps[1].keys()
    for key, values in logps[0].items():
        assert logps[1][key] == pytest.approx(values, abs=1e-5)


def run_record(plan: TrainingPlan, store: Store) -> dict[str, str]:
    train(plan)
    store.refresh()
    (row,) = store.read("runs").to_pylist()
    versions: dict[str, str] = json.loads(row["versions"])
    return versions


def test_the_run_names_the_form_and_its_key_does_not(
    scored: Store, train_settings: Callable[..., TrainSettings], interpreter: None
) -> None:
    settings = [
        train_settings(max_steps=2, kernels=form, log_tokens="none") for form in (None, "triton")
    ]
    plain, forced = (plan_training(scored, each) for each in settings)

    versions = run_record(forced, scored)

    assert forced.config_fingerprint == plain.config_fingerprint
    assert versions["kernels"] == "triton"


@pytest.mark.parametrize("stage", ["score", "train"])
def test_triton_without_a_gpu_is_one_clear_error(
    stage: str, scored: Store, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--output-dir", str(tmp_path / "out")] if stage == "train" else []
    command = [
        stage, str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
        "--kernels", "triton", "--device", "cpu", *options,
    ]  # fmt: skip

    result = CliRunner().invoke(main, command)

    assert result.exit_code == 2
    assert "form 'triton' needs a CUDA device, got cpu" in result.output
    assert not (tmp_path / "out").exists()
