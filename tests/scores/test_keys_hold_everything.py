"""No value without its key: each field of each file is changed, one at a time.

For every kind of key the computation is run on a folder and on a copy of which one field is
another one, null, or absent; then the key is another one, or the value is the same, or the change
is refused. A fixed share of the changes is tried, and every one of them (ten minutes) with

    OFFPREF_KEYS=all python -m pytest tests/scores/test_keys_hold_everything.py
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from key_changes import ALWAYS, Measure, broken_keys

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.evaluation.evaluate import evaluate
from offpref.pipeline.evaluation.settings import EvaluateSettings, SampleSettings
from offpref.pipeline.rewards.reward import reward
from offpref.pipeline.rewards.settings import RewardSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs, write_tokenizer
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.schema import LOGPS, PAIRS, REWARDS, SEQUENCES
from offpref.stores.store import Store

TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} {{ pad_token }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja", "model.safetensors"}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models (Gemma 2 and Llama), a reward model, data of texts and of messages, stores."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    )

    root = tmp_path_factory.mktemp("world")
    kinds: dict[str, tuple[Any, Any, dict[str, object]]] = {
        "gemma": (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 4}),
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "judge": (LlamaConfig, LlamaForSequenceClassification, {"num_labels": 1}),
    }
    for name, (config, model, more) in kinds.items():
        (root / name).mkdir()
        size = write_tokenizer(root / name)
        (root / name / "chat_template.jinja").write_text(TEMPLATE)
        torch.manual_seed(0)
        options = {
            "vocab_size": size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "initializer_range": 1.0, **more,
        }  # fmt: skip
        model(config(**options)).save_pretrained(root / name)
    drop_fields(root / "gemma", "final_logit_softcapping", "attn_logit_softcapping")
    write_pairs(root / "pairs.jsonl", num_pairs=6, seed=3)
    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    rows[0]["chosen"] += "</s> the <pad>"  # what options of tokenizers act on
    rows[1]["rejected"] = " The  FILM was\tgood"
    with (root / "pairs.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with (root / "talks.jsonl").open("w") as file:
        for row in rows:
            sides = {
                side: [{"role": "assistant", "content": row[side]}]
                for side in ("chosen", "rejected")
            }
            prompt = [{"role": "user", "content": row["prompt"]}]
            file.write(json.dumps({"prompt": prompt, **sides}) + "\n")
    for name in ("gemma", "llama"):
        store = Store.create(root / f"store-{name}")
        add(store, root, root / name)
    return root


def drop_fields(folder: Path, *names: str) -> None:
    """Take fields out of config.json: then the model has its class's default."""
    content = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in content.items() if name not in names}
    (folder / "config.json").write_text(json.dumps(kept))


def add(store: Store, root: Path, tokenizer: Path) -> list[str]:
    """Add texts and messages, and return the versions."""
    found = []
    for name in ("pairs", "talks"):
        data = AddSettings(
            data=(str(root / f"{name}.jsonl"),), pair_set=name, tokenizer=tokenizer, max_length=64
        )
        found.append(add_pairs(store, plan_add(store, data))[0].fingerprint)
        store.refresh()
    return found


def fresh(root: Path, name: str) -> Store:
    """A copy of a store."""
    return Store.open(Path(shutil.copytree(root / name, root / "stores" / uuid4().hex)))


def measure_scorer(root: Path, name: str) -> Measure:
    def measure(folder: Path) -> tuple[str, list[Any]]:
        store = fresh(root, f"store-{name}")
        found = score(store, ScoreSettings(model=folder, pair_set="pairs"))
        store.refresh()
        rows = store.read(LOGPS.name, found.scorer).to_pylist()
        rows.sort(key=lambda row: row["sequence_key"])
        return found.scorer, [np.concatenate([row["token_logps"] for row in rows])]

    return measure


def measure_pair_set(root: Path) -> Measure:
    def measure(folder: Path) -> tuple[str, list[Any]]:
        store = Store.create(root / "stores" / uuid4().hex)
        key = add(store, root, folder)
        rows = store.read(SEQUENCES.name).to_pylist()
        ids = {row["sequence_key"]: row["ids"] for row in rows}
        pairs = store.read(PAIRS.name).to_pylist()
        pairs.sort(key=lambda row: (row["pair_set"], row["source_row"]))
        return str(key), [[ids[row["chosen_key"]], ids[row["rejected_key"]]] for row in pairs]

    return measure


def measure_rewards(root: Path) -> Measure:
    def measure(folder: Path) -> tuple[str, list[Any]]:
        store = fresh(root, "store-llama")
        found: list[Any] = []
        keys = []
        for name in ("pairs", "talks"):
            settings = RewardSettings(objective=name, pair_set=name, kind="model", model=folder)
            keys.append(reward(store, settings).source)
            store.refresh()
            rows = store.read(REWARDS.name, keys[-1]).to_pylist()
            found.append(
                np.array([row["reward"] for row in sorted(rows, key=lambda r: r["subject_key"])
                          if row["objective"] == name])
            )  # fmt: skip
        return str(keys), found

    return measure


def measure_evaluation(root: Path, *, is_reference: bool) -> Measure:
    def measure(folder: Path) -> tuple[str, list[Any]]:
        store = fresh(root, "store-llama")
        other = root / "llama"
        settings = EvaluateSettings(
            model=other if is_reference else folder,
            reference=folder if is_reference else None,
            pair_set="pairs", split="train", num_prompts=2,
            samples=SampleSettings(num_samples=2, max_new_tokens=6, batch_size=4),
            objective=("short=brevity", "good=python:offpref.pipeline.small_world:sentiment"),
        )  # fmt: skip
        row = evaluate(store, settings).row
        names = ("entropy", "mean_completion_tokens", "reverse_kl", "forward_kl", "accuracy")
        numbers = [row.get(name) for name in names]
        rewards = [value for _, value in [*row["rewards"], *row["metrics"]]]
        store.refresh()
        texts = sorted(each["completion"] for each in store.read("generations").to_pylist())
        return row["evaluation_id"].hex(), [*map(_number, [*numbers, *rewards]), texts]

    return measure


def measure_run(root: Path) -> Measure:
    reference = fresh(root, "store-llama")
    score(reference, ScoreSettings(model=root / "llama", pair_set="pairs"))

    def measure(folder: Path) -> tuple[str, list[Any]]:
        store = Store.open(Path(shutil.copytree(reference.path, root / "stores" / uuid4().hex)))
        given: dict[str, Any] = {
            "pair_set": "pairs", "model": folder, "output_dir": root / "runs" / uuid4().hex,
            "pairs_per_step": 2, "max_steps": 1, "learning_rate": 1e-2,
            "reference": str(root / "llama"),
        }  # fmt: skip
        plan = plan_training(store, TrainSettings(**given))
        found = train(plan)
        assert found.last is not None
        return plan.config_fingerprint, [float(value) for value in found.last.metrics.values()]

    return measure


def _number(value: object) -> float:
    return float("nan") if value is None else float(str(value))


KINDS: dict[str, tuple[str, Callable[[Path], Measure], float]] = {
    "scorer of Gemma 2": ("gemma", lambda root: measure_scorer(root, "gemma"), 0.15),
    "scorer of Llama": ("llama", lambda root: measure_scorer(root, "llama"), 0.05),
    "pair set": ("llama", measure_pair_set, 0.03),
    "rewards": ("judge", measure_rewards, 0.05),
    "samples and evaluation": (
        "llama", lambda root: measure_evaluation(root, is_reference=False), 0.03,
    ),
    "evaluation's reference": (
        "llama", lambda root: measure_evaluation(root, is_reference=True), 0.01,
    ),
    "run": ("llama", measure_run, 0.02),
}  # fmt: skip
"""Folder, computation, and the share of the changes that is tried."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_has_its_key(kind: str, world: Path, tmp_path: Path) -> None:
    folder, make, share = KINDS[kind]
    share = 1.0 if os.environ.get("OFFPREF_KEYS") == "all" else share

    # A reference's own key is the scorer's: few changes show that the evaluation has it.
    always = ("rms_norm_eps is",) if "reference" in kind else ALWAYS
    found = broken_keys(
        world / folder, make(world), tmp_path, share=share, expect=FILES, always=always
    )

    assert found == []
