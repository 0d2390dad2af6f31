"""The loop of docs/python.md sees what `offpref train` sees, and ends at its weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mask_cases import put_some_spans
from safetensors.torch import load_file

import offpref
from offpref.pipeline.losses.pair_scores import PairScores

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
LOOP = re.findall(r"```python\n(import torch\n.*?)```", PAGE, re.DOTALL)[0]


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


@pytest.fixture
def policy(model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir)


@offpref.loss(takes_ld_alpha=True)
def own_loss(scores: PairScores, *, beta: float = 0.5) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(beta * scores.logratio_margins)


def test_batches_take_a_function_as_train_does(scored: Any, model_dir: Path, policy: Any) -> None:
    with offpref.open(scored.path) as store:
        batches = store.batches(
            "reviews",
            model=model_dir,
            policy=policy,
            loss_type=own_loss,
            ld_alpha=0.25,
            max_steps=1,
        )
        (step,) = batches
    batch = step[0]

    pairs = batch.pair_scores(torch.full((len(batch.labels),), -1.0))

    short = pairs.shortened
    assert short is not None
    least = torch.minimum(pairs.num_chosen_tokens, pairs.num_rejected_tokens)
    expected = -(least + 0.25 * (pairs.num_chosen_tokens - least))
    torch.testing.assert_close(short.policy_chosen_logps, expected)
    margins = short.logratio_margins
    torch.testing.assert_close(
        batches.plan.loss.losses(pairs), -torch.nn.functional.logsigmoid(0.5 * margins)
    )


def test_batches_say_which_tokens_count_and_sum_over_them(
    scored: Any, model_dir: Path, policy: Any
) -> None:
    put_some_spans(scored)
    with offpref.open(scored.path) as store:
        asked = {"model": model_dir, "policy": policy, "max_steps": 1, "pairs_per_step": 8}
        ((masked, *_),) = store.batches("reviews", mask="last-turn", **asked)
        ((whole, *_),) = store.batches("reviews", **asked)
    some = torch.arange(len(masked.labels)).double()

    pairs = masked.pair_scores(some)

    assert whole.is_counted is None
    assert 0 < masked.is_counted.sum() < len(masked.labels)
    both = pairs.policy_chosen_logps + pairs.policy_rejected_logps
    assert float(both.sum()) == float(some[masked.is_counted].sum())
    counts = pairs.num_chosen_tokens + pairs.num_rejected_tokens
    assert int(counts.sum()) == int(masked.is_counted.sum())


def test_batches_give_what_weights_need(scored: Any, model_dir: Path, policy: Any) -> None:
    with offpref.open(scored.path) as store:
        batches = store.batches(
            "reviews", model=model_dir, policy=policy, use_weighting=True, max_steps=1
        )
        (step,) = batches
    some = torch.full((len(step[0].labels),), -1.0)

    pairs = step[0].pair_scores(some, log_sum_sq_probs=some)

    assert pairs.shortened is None
    assert torch.equal(batches.plan.loss.losses(pairs).isfinite(), step[0].weights > 0)


@pytest.mark.parametrize(
    "given",
    [
        {"learning_rate": 1.0}, {"lr_scheduler_type": "cosine"}, {"warmup_steps": 1},
        {"adam_beta1": 0.5}, {"weight_decay": 0.1}, {"max_grad_norm": 2.0}, {"lora_r": 2},
        {"resume": True}, {"overwrite": True}, {"report_to": "tensorboard"}, {"eval_every": 1},
        {"save_every": 1}, {"keep": 2}, {"log_tokens": "all"}, {"run_name": "a"},
        {"output_dir": "a"}, {"kernels": "torch"}, {"device": "cpu"}, {"eval_split": "test"},
        {"gradient_checkpointing": True},
    ],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
def test_settings_without_effect_on_batches_are_refused(
    given: dict[str, Any], scored: Any, model_dir: Path
) -> None:
    store = offpref.open(scored.path)

    with pytest.raises(ValueError, match=f"^{next(iter(given))} has no effect on batches$"):
        store.batches("reviews", model=model_dir, policy=torch.nn.Module(), **given)


def test_batches_name_the_nearest_of_their_own_settings(scored: Any, model_dir: Path) -> None:
    store = offpref.open(scored.path)

    with pytest.raises(TypeError, match="did you mean pairs_per_step") as caught:
        store.batches("reviews", model=model_dir, policy=torch.nn.Module(), pairs_per_stp=8)

    assert "learning_rate" not in str(caught.value)


def test_batches_say_what_they_are(scored: Any, model_dir: Path, policy: Any) -> None:
    with offpref.open(scored.path) as store:
        batches = store.batches("reviews", model=model_dir, policy=policy, pairs_per_step=8)
        batch = next(iter(batches))[0]

    (start, end) = repr(batches).split(": ")
    assert start == f"<{len(batches)} steps of 8 pairs"
    assert end == f"{batches.plan.pair_set}, reference {batches.plan.reference}>"
    assert repr(batch) == f"<{len(batch.weights)} pairs, {len(batch.labels)} completion tokens>"


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
