import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import ModelError
from offpref.stores.store import Store

peft = pytest.importorskip("peft")
Settings = Callable[..., TrainSettings]

# peft itself warns of what it will do some day.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_adapter_learns_and_comes_merged_and_alone(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    summary = train(
        plan_training(scored, train_settings(lora_r=4, num_epochs=3, learning_rate=1e-2))
    )

    assert summary.first is not None
    assert summary.last is not None
    assert summary.first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert summary.last.loss < 0.65
    ids = torch.arange(4, 20)[None]
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter"))
        beside = adapted(ids).logits
    torch.testing.assert_close(after, beside, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.01
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in names if "lora" in name]


def test_adapter_alone_is_written_if_asked_for(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    settings = train_settings(
        lora_r=2, lora_output="adapter", lora_target_modules=("q_proj", "v_proj"), max_steps=2
    )
    train(plan_training(scored, settings))

    assert not (tmp_path / "out" / "model.safetensors").exists()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_resumed_adapter_equals_an_unbroken_one(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    given = {"lora_r": 2, "lora_dropout": 0.2, "max_steps": 4, "save_every": 2, "keep": 2}
    train(plan_training(scored, train_settings(**given)))
    output = tmp_path / "out"
    whole = load_file(output / "model.safetensors")
    last = output / "checkpoints" / "step-00000004"
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    entry = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(entry | {"is_finished": False}))

    train(plan_training(scored, train_settings(**given, resume=True)))

    again = load_file(output / "model.safetensors")
    assert all(again[name].numpy().tobytes() == whole[name].numpy().tobytes() for name in whole)


def test_adapter_on_the_output_head_is_refused(scored: Store, train_settings: Settings) -> None:
    with pytest.raises(ModelError, match="output head"):
        train(plan_training(
            scored, train_settings(lora_r=2, lora_target_modules=("lm_head",))
        ))  # fmt: skip
