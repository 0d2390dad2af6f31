"""A folder whose tensors are not those of its model is refused, whoever loads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPTNeoXConfig, GPTNeoXForCausalLM

from offpref.pipeline.models.loading import load_scoring_model
from offpref.pipeline.rewards.reward import reward
from offpref.pipeline.rewards.settings import RewardSettings, RewardTrainSettings
from offpref.pipeline.rewards.train_model import train_reward
from offpref.stores.errors import ModelError
from offpref.stores.store import Store

Tensors = dict[str, torch.Tensor]


def changed(source: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a model's folder with other tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def add_biases(tensors: Tensors) -> None:
    """Biases of a model that the configuration says has none."""
    for layer in (0, 1):
        for name in ("q_proj", "k_proj"):
            tensors[f"model.layers.{layer}.self_attn.{name}.bias"] = torch.ones(32)


def add_scales(tensors: Tensors) -> None:
    """Scales of weights in FP8, without which the weights are other numbers."""
    tensors["model.layers.0.mlp.down_proj.weight_scale_inv"] = torch.ones(1, 1)


def add_layer(tensors: Tensors) -> None:
    """A layer beyond the configuration's number."""
    tensors["model.layers.2.input_layernorm.weight"] = torch.ones(32)


def add_head(tensors: Tensors) -> None:
    """The head once more, as torch's own files have it."""
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def add_buffers(tensors: Tensors) -> None:
    """What earlier versions saved: functions of the configuration."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            add_biases,
            "found 4 that it does not take: model.layers.0.self_attn.k_proj.bias, "
            "model.layers.0.self_attn.q_proj.bias, model.layers.1.self_attn.k_proj.bias and 1 more",
        ),
        (add_scales, "found 1 that it does not take: model.layers.0.mlp.down_proj.weight_scale"),
        (add_layer, "found 1 that it does not take: model.layers.2.input_layernorm.weight"),
    ],
)
def test_tensors_that_a_model_does_not_take_are_named(
    scored: Store, model_dir: Path, tmp_path: Path, change: Callable[[Tensors], None], named: str
) -> None:
    folder = changed(model_dir, tmp_path / "model", change)

    with pytest.raises(ModelError) as language_model:
        load_scoring_model(folder)
    with pytest.raises(ModelError) as start_of_classifier:
        train_reward(
            scored,
            RewardTrainSettings(pair_set="reviews", model=folder, output_dir=tmp_path / "rm"),
        )

    assert named in str(language_model.value)
    assert named in str(start_of_classifier.value)
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize("change", [add_head, add_buffers])
def test_tensors_that_change_nothing_are_taken(
    model_dir: Path, tmp_path: Path, change: Callable[[Tensors], None]
) -> None:
    folder = changed(model_dir, tmp_path / "model", change)

    model, plain = load_scoring_model(folder), load_scoring_model(model_dir)

    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_masks_of_an_early_gpt_neox_are_taken(tmp_path: Path) -> None:
    sizes = {"vocab_size": 58, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).save_pretrained(tmp_path / "plain")

    def add_masks(tensors: Tensors) -> None:
        for layer in (0, 1):
            prefix = f"gpt_neox.layers.{layer}.attention."
            tensors[prefix + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
            tensors[prefix + "masked_bias"] = torch.tensor(-1e9)
            tensors[prefix + "rotary_emb.inv_freq"] = torch.ones(4)

    load_scoring_model(changed(tmp_path / "plain", tmp_path / "masks", add_masks))


def test_reward_model_with_tensors_it_does_not_take(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_dir, tmp_path / "plain")
    classifier = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=1)
    classifier.save_pretrained(tmp_path / "plain")
    folder = changed(tmp_path / "plain", tmp_path / "changed", add_biases)
    with_head = changed(tmp_path / "plain", tmp_path / "with-head", add_head)

    def rewards(model: Path) -> None:
        reward(
            scored, RewardSettings(objective="goal", pair_set="reviews", kind="model", model=model)
        )

    rewards(with_head)  # a language model's head: a classifier has another one
    with pytest.raises(ModelError, match="found 4 that it does not take"):
        rewards(folder)


def test_classifier_starts_from_an_untied_language_model(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    folder = changed(model_dir, tmp_path / "untied", add_head)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))

    found = train_reward(
        scored, RewardTrainSettings(pair_set="reviews", model=folder, output_dir=tmp_path / "rm")
    )

    assert found.num_steps > 0


def test_classifier_does_not_start_from_random_layers(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    missing = "model.layers.1.self_attn.q_proj.weight"
    folder = changed(model_dir, tmp_path / "model", lambda tensors: tensors.pop(missing))

    with pytest.raises(ModelError, match=f"lacks 1 of the model's tensors, {missing}"):
        train_reward(
            scored,
            RewardTrainSettings(pair_set="reviews", model=folder, output_dir=tmp_path / "rm"),
        )
