"""One side of the TDPO benchmark, in a process of its own; prints a line of JSON.

    python benchmarks/tdpo_one.py prepare|dpo|hidden|topk|resident MODEL PAIRS OUT STEPS

``prepare`` scores once, all tiers, into OUT/store. ``dpo`` is our own DPO step, ``hidden`` and
``topk`` are TDPO2 from the store. ``resident`` is TDPO2 as its authors wrote it: both completions
padded into one batch, policy and reference both run, whole logits and softmaxes of both; on the
batches of ``hidden``, from the same start.
"""

import json
import resource
import sys
import time
from pathlib import Path

PAIRS_PER_STEP = 8
LEARNING_RATE = 1e-5
BETA, ALPHA = 0.1, 0.5


def prepare(model: Path, pairs: Path, out: Path, num_steps: int) -> dict[str, object]:
    """Score every tier and say what each takes."""
    import pyarrow.compute as pc

    from offpref.pipeline.adding.settings import AddSettings
    from offpref.pipeline.scores.score import score
    from offpref.pipeline.scores.settings import ScoreSettings
    from offpref.stores.store import Store

    store = Store.create(out / "store")
    added = AddSettings(data=(str(pairs),), pair_set="bench", tokenizer=model)
    settings = ScoreSettings(model=model, data=added, tier=("topk", "hidden"))
    summary = score(store, settings)
    lengths = store.read("sequences", summary.pair_set.tokenizer, ["num_completion_tokens"])
    num_tokens = pc.sum(lengths.column(0)).as_py()
    tiers = ("logps", "topk", "hidden")
    return {
        "num_completion_tokens": num_tokens,
        "bytes_per_token": {
            tier: sum(shard.num_bytes for shard in store.shards(tier)) / num_tokens
            for tier in tiers
        },
        "head_bytes": sum(head.num_bytes for head in store.heads()),
    }


def by_offpref(which: str, model: Path, out: Path, num_steps: int) -> dict[str, object]:
    """Train from the store."""
    from offpref.pipeline.training.plan import plan_training
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.pipeline.training.train import train
    from offpref.stores.store import Store

    store = Store.open(out / "store")
    settings = TrainSettings(
        pair_set="bench", model=model, output_dir=out / f"{which}-{time.time_ns()}", beta=BETA,
        pairs_per_step=PAIRS_PER_STEP, max_steps=num_steps, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", loss_type=("sigmoid",) if which == "dpo" else ("tdpo2",),
        kl_tier=None if which == "dpo" else which,
    )  # fmt: skip
    plan = plan_training(store, settings)
    summary = train(plan)
    store.refresh()
    steps = sorted(store.read("steps", summary.run_id).to_pylist(), key=lambda row: row["step"])
    seconds = [row["seconds"] for row in steps]
    return {
        "seconds": sum(seconds),
        "losses": [row["loss"] for row in steps],
        "data_wait_share": sum(row["data_wait_seconds"] for row in steps) / sum(seconds),
    }


def by_resident(model_dir: Path, out: Path, num_steps: int) -> dict[str, object]:
    """Train with both models in memory."""
    import torch
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM

    from offpref.pipeline.training.plan import plan_training
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.stores.store import Store

    store = Store.open(out / "store")
    settings = TrainSettings(
        pair_set="bench", model=model_dir, output_dir=out / "unused", loss_type=("tdpo2",),
        pairs_per_step=PAIRS_PER_STEP, max_steps=num_steps,
    )  # fmt: skip
    plan = plan_training(store, settings)
    rows = {
        row["sequence_key"]: row
        for row in store.read("sequences", plan.pair_set.tokenizer).to_pylist()
    }
    policy, reference = (AutoModelForCausalLM.from_pretrained(model_dir) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def padded(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        keys = [plan.pairs.chosen_keys[n] for n in numbers]
        keys += [plan.pairs.rejected_keys[n] for n in numbers]
        found = [rows[bytes(key).ljust(16, b"\0")] for key in keys]
        ids = torch.zeros(len(found), max(len(row["ids"]) for row in found), dtype=torch.long)
        attention, is_completion = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(found):
            ids[i, : len(row["ids"])] = torch.tensor(row["ids"])
            attention[i, : len(row["ids"])] = 1
            is_completion[i, row["num_prompt_tokens"] : len(row["ids"])] = True
        return ids, attention, is_completion[:, 1:]

    def step(numbers: list[int]) -> float:
        ids, attention, mask = padded(numbers)
        labels = ids[:, 1:, None]
        logits = policy(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        with torch.no_grad():
            ref_logits = reference(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
        kl = (ref_logps.exp() * (ref_logps - logps)).sum(-1)
        deltas = (logps - ref_logps).gather(-1, labels)[..., 0]
        (chosen, rejected) = (deltas * mask).sum(-1).chunk(2)
        (chosen_kl, rejected_kl) = (kl * mask).sum(-1).chunk(2)
        margins = chosen - rejected - ALPHA * (rejected_kl - chosen_kl.detach())
        loss = -logsigmoid(BETA * margins).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    seconds, losses = 0.0, []
    for numbers in plan.epoch(0)[:num_steps]:
        started = time.perf_counter()
        losses.append(step(numbers.tolist()))
        seconds += time.perf_counter() - started
    return {"seconds": seconds, "losses": losses}


def main() -> None:
    """Run one side and print what it took."""
    which, model, pairs, out = sys.argv[1], *map(Path, sys.argv[2:5])
    num_steps = int(sys.argv[5])
    if which == "prepare":
        result = prepare(model, pairs, out, num_steps)
    elif which == "resident":
        result = by_resident(model, out, num_steps)
    else:
        result = by_offpref(which, model, out, num_steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"peak_bytes": peak}))


if __name__ == "__main__":
    main()
