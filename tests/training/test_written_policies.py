"""The folder that a run writes is the model that was trained, whatever its architecture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import ModelError
from offpref.stores.store import Store

pytest.importorskip("peft")
Settings = Callable[..., TrainSettings]

# peft itself warns of what it will do some day.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SIZES = {"vocab_size": 58, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "head_dim": 8}  # fmt: skip
GPT2 = {"vocab_size": 58, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
OPT = {"vocab_size": 58, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 64,
       "word_embed_proj_dim": 32}  # fmt: skip
NEOX = {"vocab_size": 58, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def write_policy(model_dir: Path, folder: Path, kind: str, sizes: dict[str, object]) -> Path:
    """A random model of that kind with the small world's tokenizer."""
    shutil.copytree(model_dir, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    config = CONFIG_MAPPING[kind](pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def largest_difference(store: Store, output: Path, step: int) -> float:
    """Between the held-out log-probs that a run recorded and those of the folder it wrote."""
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    store.refresh()
    sequences = {row["sequence_key"]: row for row in store.read("sequences").to_pylist()}
    tokens = [
        row
        for row in store.read("tokens").to_pylist()
        if row["split"] == "eval" and row["step"] == step
    ]
    assert tokens
    found = 0.0
    for row in tokens:
        sequence = sequences[row["sequence_key"]]
        ids, start = torch.tensor(sequence["ids"]), sequence["num_prompt_tokens"]
        with torch.no_grad():
            logps = model(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
        own = logps.gather(-1, ids[start:, None])[:, 0]
        found = max(found, float((own - torch.tensor(row["token_logps"])).abs().max()))
    return found


@pytest.mark.parametrize(
    ("kind", "sizes", "targets"),
    [
        ("llama", SIZES | TIED, ()),
        ("llama", SIZES | UNTIED, ()),
        ("llama", SIZES | UNTIED, ("embed_tokens", "q_proj")),
        ("gpt2", GPT2, ()),  # its linear layers are transposed
        ("gpt2", GPT2 | UNTIED, ("wte",)),
        ("opt", OPT, ()),
        ("gpt_neox", NEOX, ()),  # untied, and the head is called embed_out
        ("gpt_neox", NEOX, ("embed_in",)),
        ("gemma2", SIZES, ()),  # softcap, scaled embeddings
        ("qwen3", SIZES | UNTIED, ("embed_tokens",)),
        ("cohere", SIZES, ()),  # scaled logits
    ],
)
def test_merged_folder_is_the_trained_model(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path,
    kind: str, sizes: dict[str, object], targets: tuple[str, ...],
) -> None:  # fmt: skip
    model = write_policy(model_dir, tmp_path / "model", kind, sizes)
    score(scored, ScoreSettings(model=model, pair_set="reviews"))
    settings = train_settings(
        model=model, lora_r=4, lora_target_modules=targets, max_steps=3, eval_every=3,
        learning_rate=3e-2,
    )  # fmt: skip

    train(plan_training(scored, settings))

    assert largest_difference(scored, tmp_path / "out", step=3) < 1e-4
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert max(float((after[k] - before[k]).abs().max()) for k in before) > 1e-3


@pytest.mark.parametrize(
    ("kind", "sizes", "embedding"),
    [
        ("llama", SIZES | TIED, "embed_tokens"),
        ("gpt2", GPT2, "wte"),
        ("opt", OPT, "embed_tokens"),
        ("gpt_neox", NEOX | TIED, "embed_in"),
    ],
)
@pytest.mark.parametrize("output", ["merged", "adapter"])
def test_adapter_on_an_embedding_that_is_the_head_is_refused(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path,
    kind: str, sizes: dict[str, object], embedding: str, output: str,
) -> None:  # fmt: skip
    model = write_policy(model_dir, tmp_path / "model", kind, sizes)
    score(scored, ScoreSettings(model=model, pair_set="reviews"))
    settings = train_settings(
        model=model, lora_r=4, lora_target_modules=(embedding,), lora_output=output
    )

    with pytest.raises(ModelError, match=rf"{embedding} is not supported: it shares its weights"):
        train(plan_training(scored, settings))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("llama", SIZES | TIED), ("llama", SIZES | UNTIED), ("gpt2", GPT2), ("cohere", SIZES)],
)
def test_fully_trained_folder_is_the_trained_model(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path,
    kind: str, sizes: dict[str, object],
) -> None:  # fmt: skip
    model = write_policy(model_dir, tmp_path / "model", kind, sizes)
    score(scored, ScoreSettings(model=model, pair_set="reviews"))

    train(plan_training(scored, train_settings(model=model, max_steps=3, eval_every=3)))

    assert largest_difference(scored, tmp_path / "out", step=3) < 1e-4
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    own = json.loads((model / "config.json").read_text())
    assert written.get("tie_word_embeddings") == own.get("tie_word_embeddings")
