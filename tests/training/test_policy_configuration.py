"""A run depends on its policy's configuration, also where its reference does not say it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offpref.pipeline.models.folders import read_run, write_run
from offpref.pipeline.training.plan import POLICY_CONFIG, plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import TrainingError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


@pytest.fixture
def policy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(model_dir, tmp_path / "policy"))


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def make_former(output: Path) -> None:
    """Let a run say as little as the former version did."""
    run = read_run(output)
    assert run is not None
    del run["depends_on"][POLICY_CONFIG]
    write_run(output, run)


def test_a_run_is_not_resumed_with_another_configuration(
    scored: Store, policy: Path, train_settings: Settings
) -> None:
    settings = train_settings(model=policy, loss_type=("simpo",), max_steps=1)
    train(plan_training(scored, settings))
    again = train_settings(model=policy, loss_type=("simpo",), max_steps=1, resume=True)
    before = plan_training(scored, again)

    change(policy, rms_norm_eps=0.5)

    changed = plan_training(scored, again)
    assert changed.config_fingerprint != before.config_fingerprint
    with pytest.raises(TrainingError, match="cannot be resumed: policy configuration was"):
        train(changed)


def test_what_the_reference_says_adds_nothing_to_a_runs_configuration(
    scored: Store, model_dir: Path, train_settings: Settings
) -> None:
    """The number is that of the version that did not know the name."""
    from offpref.pipeline.training.settings import ROUNDING_ONLY
    from offpref.stores.keys import fingerprint

    plan = plan_training(scored, train_settings())

    dropped = {*ROUNDING_ONLY, POLICY_CONFIG}
    assert plan.config_fingerprint == fingerprint(
        {name: value for name, value in plan.depends_on.items() if name not in dropped}
    )


def test_a_former_run_is_done_if_what_it_wrote_has_the_configuration(
    scored: Store, policy: Path, train_settings: Settings, tmp_path: Path
) -> None:
    given = {"model": policy, "loss_type": ("simpo",), "max_steps": 1}
    train(plan_training(scored, train_settings(**given)))
    make_former(tmp_path / "out")
    settings = train_settings(**given, resume=True)
    content = json.loads((policy / "config.json").read_text())
    del content["rms_norm_eps"]  # what the file says is the default
    (policy / "config.json").write_text(json.dumps(content))

    found = train(plan_training(scored, settings))

    assert found.num_resumed == found.num_steps == 1
    change(policy, rms_norm_eps=0.5)
    with pytest.raises(TrainingError, match="policy configuration was 'that in"):
        train(plan_training(scored, settings))


def test_a_former_run_that_was_cut_off_goes_on(
    scored: Store, policy: Path, train_settings: Settings, tmp_path: Path
) -> None:
    given = {"model": policy, "loss_type": ("simpo",), "max_steps": 2, "save_every": 1}
    train(plan_training(scored, train_settings(**given)))
    make_former(tmp_path / "out")
    run = read_run(tmp_path / "out")
    assert run is not None
    write_run(tmp_path / "out", {**run, "is_finished": False})
    (tmp_path / "out" / "config.json").unlink()

    found = train(plan_training(scored, train_settings(**given, resume=True)))

    assert (found.num_resumed, found.attempt) == (2, 1)
