"""Keywords in Python: each value has the type of its setting, whatever else Python would take."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offpref
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.api.given import settings_of
from offpref.pipeline.evaluation.settings import EvaluateSettings
from offpref.pipeline.training.settings import TrainSettings

PLACE = {"pair_set": "reviews", "model": "sft", "output_dir": "out"}
ADDED = {"pair_set": "p", "tokenizer": "sft", "data": "a.jsonl"}


@pytest.fixture
def store(scored: Any) -> offpref.OpenStore:
    return offpref.open(scored.path, progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use_weighting": "no"}, "use_weighting must be True or False, got 'no'"),
        ({"resume": 1}, "resume must be True or False, got 1"),
        ({"max_steps": 1.5}, "max_steps must be a whole number, got 1.5"),
        ({"pairs_per_step": True}, "pairs_per_step must be a whole number, got True"),
        ({"pairs_per_step": None}, "pairs_per_step must be a whole number, got None"),
        ({"beta": "0.1"}, "beta must be a number, got '0.1'"),
        ({"beta": True}, "beta must be a number, got True"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"loss_weights": [1, "2"]}, "loss_weights must be a number, got '2'"),
        ({"loss_type": None}, "loss_type must be text, got None"),
        ({"run_name": 7}, "run_name must be text, got 7"),
        ({"model": 7}, "model must be a path, got 7"),
        ({"output_dir": b"out"}, "output_dir must be a path, got b'out'"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_in_one_line(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        settings_of(TrainSettings, {**PLACE, **given})

    assert str(caught.value) == message


def test_rows_are_not_taken_for_a_file() -> None:
    rows = [{"prompt": "a\nb", "chosen": "c" * 100}]

    with pytest.raises(ValueError, match=r"^data must be text, got \{'prompt': .{,70}\.\.\.$"):
        settings_of(AddSettings, {**ADDED, "data": rows})


def test_values_become_what_the_command_would_have() -> None:
    given = {
        "beta": 1, "max_steps": np.int64(3), "learning_rate": np.float32(0.5),
        "loss_type": "sigmoid", "warmup_ratio": None, "reference": Path("a"),
    }  # fmt: skip

    found = settings_of(TrainSettings, {**PLACE, **given})
    added = settings_of(AddSettings, {**ADDED, "data": [Path("a"), "b"], "template_date": date.max})

    assert found == TrainSettings(
        pair_set="reviews", model=Path("sft"), output_dir=Path("out"), beta=1.0, max_steps=3,
        learning_rate=0.5, loss_type=("sigmoid",), reference="a",
    )  # fmt: skip
    assert (type(found.beta), type(found.max_steps)) == (float, int)
    assert (added.data, added.template_date) == (("a", "b"), date.max)


def test_a_refused_value_leaves_the_former_policy(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": model_dir, "output_dir": tmp_path / "a", "max_steps": 1}
    store.train("reviews", pairs_per_step=8, **given)

    with pytest.raises(ValueError, match="learning_rate must be a number, got None"):
        store.train("reviews", overwrite=True, learning_rate=None, **given)

    assert (tmp_path / "a" / "model.safetensors").exists()


def test_evaluate_samples_as_the_command_does_by_default(
    store: offpref.OpenStore, model_dir: Path
) -> None:
    quick = {"max_new_tokens": 2, "num_prompts": 2}

    sampled = store.evaluate("reviews", model=model_dir)
    same = store.evaluate("reviews", model=model_dir, num_samples=4)
    fewer = store.evaluate("reviews", model=model_dir, num_samples=1, **quick)

    assert (sampled.row["num_samples"], fewer.row["num_samples"]) == (4, 1)
    assert same.row["evaluation_id"] == sampled.row["evaluation_id"]


def test_evaluate_names_the_nearest_keyword_of_both_its_settings(
    store: offpref.OpenStore, model_dir: Path
) -> None:
    with pytest.raises(TypeError, match="'num_sample' is not a setting here; did you mean num_s"):
        store.evaluate("reviews", model=model_dir, num_sample=2)
    with pytest.raises(TypeError, match="'samples' is not a setting here"):
        store.evaluate("reviews", model=model_dir, samples=None)
    with pytest.raises(ValueError, match="without samples only the accuracy is measured"):
        store.evaluate("reviews", model=model_dir, num_samples=0)
    assert EvaluateSettings.__dataclass_fields__["samples"].metadata == {}


@pytest.mark.parametrize("name", ["loss_type", "beta", "reference", "kl_tier", "kl_metrics"])
def test_sft_takes_the_options_of_its_command_alone(
    name: str, store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=f"'{name}' is not a setting here") as caught:
        store.sft("reviews", model=model_dir, output_dir=tmp_path / "a", **{name: "sigmoid"})

    listed = str(caught.value).partition("there are: ")[2].split(", ")
    assert "learning_rate" in listed
    assert not {"loss_type", "beta", "reference"} & set(listed)


@pytest.mark.parametrize("name", ["data", "eval_fraction"])
def test_data_is_added_first(name: str, store: offpref.OpenStore, model_dir: Path) -> None:
    with pytest.raises(TypeError, match=f"^'{name}' is not a setting here: call store.add first"):
        store.score("reviews", model=model_dir, **{name: "pairs.jsonl"})
