"""The loop of docs/python.md sees what `offpref train` sees, and ends at its weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import offpref

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
LOOP = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


def test_the_documented_loop_trains_to_the_weights_of_train(
    scored: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = offpref.open(scored.path, progress=False)
    settings = {"pairs_per_step": 8, "learning_rate": 1e-3}
    run = store.train("reviews", model=model_dir, output_dir=tmp_path / "dpo", **settings)
    code = LOOP.replace('"store"', repr(str(scored.path))).replace('"sft"', repr(str(model_dir)))
    code = code.replace("pairs_per_step=32", "pairs_per_step=8").replace("/ 32", "/ 8")
    monkeypatch.chdir(tmp_path)

    exec(compile(code, "docs/python.md", "exec"), {})

    trained = load_file(run.output_dir / "model.safetensors")
    own = load_file(tmp_path / "mine" / "model.safetensors")
    start = load_file(model_dir / "model.safetensors")
    assert trained.keys() == own.keys()
    assert max(float((trained[k] - start[k]).abs().max()) for k in trained) > 1e-3
    for name, weight in trained.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=2e-5, msg=name)


def test_the_documented_loop_is_25_lines() -> None:
    lines = [line for line in LOOP.splitlines() if line.strip()]

    assert len(lines) <= 25


def test_batches_carry_what_the_store_says(scored: Any, model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model_dir)
    with offpref.open(scored.path) as store:
        batches = store.batches("reviews", model=model_dir, policy=policy, pairs_per_step=8)
        known = {row["sequence_key"]: row["token_logps"] for row in store.query(
            "select sequence_key, token_logps from logps").rows()}  # fmt: skip
        step = next(iter(batches))
        totals = sorted(sum(each) for each in known.values())
        found = []
        for batch in step:
            pairs = batch.pair_scores(torch.zeros(len(batch.labels)))
            found += (pairs.ref_chosen_logps.tolist(), pairs.ref_rejected_logps.tolist())

    sums = [value for part in found for value in part]
    assert len(sums) == 16
    assert all(min(abs(value - each) for each in totals) < 1e-4 for value in sums)
    assert len(batches) == batches.plan.num_steps > 1
