"""How far the KL against the top k is from the exact one, on real text; prints a line of JSON.

    python benchmarks/topk_error.py MODEL PAIRS OUT

The reference is MODEL; the policy is MODEL after a few epochs of DPO on PAIRS, at two learning
rates. Both are given the completions of PAIRS.
"""

import json
import sys
from pathlib import Path

KS = (8, 32, 64, 128)
LEARNING_RATES = (1e-4, 1e-3)
CHUNK = 16  # sequences of a forward pass


def trained(model: Path, pairs: Path, out: Path, learning_rate: float) -> Path:
    """Return a policy that has left its reference."""
    from offpref.pipeline.adding.settings import AddSettings
    from offpref.pipeline.scores.score import score
    from offpref.pipeline.scores.settings import ScoreSettings
    from offpref.pipeline.training.plan import plan_training
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.pipeline.training.train import train
    from offpref.stores.store import Store

    store = Store.create(out / "store")
    added = AddSettings(data=(str(pairs),), pair_set="hh", tokenizer=model, max_length=512)
    score(store, ScoreSettings(model=model, data=added))
    policy = out / f"policy-{learning_rate}"
    settings = TrainSettings(
        pair_set="hh", model=model, output_dir=policy, pairs_per_step=8, num_epochs=3,
        learning_rate=learning_rate,
    )  # fmt: skip
    train(plan_training(store, settings))
    return policy


def errors(model: Path, policy_dir: Path, out: Path) -> dict[str, object]:
    """Return KLs per token: exact, and against the top k."""
    import numpy as np
    import torch

    from offpref.kernels.distributions import HiddenReference
    from offpref.kernels.topk import linear_top_tokens
    from offpref.pipeline.models.loading import load_scoring_model
    from offpref.pipeline.models.packing import PackedRow
    from offpref.stores.store import Store

    store = Store.open(out / "store")
    rows = store.read("sequences", store.partitions("sequences")[0]).to_pylist()
    reference, policy = load_scoring_model(model), load_scoring_model(policy_dir)
    exact: list[float] = []
    rest: dict[int, list[float]] = {k: [] for k in KS}
    bounds: dict[int, list[float]] = {k: [] for k in KS}
    for start in range(0, len(rows), CHUNK):
        packed = []
        for i, row in enumerate(rows[start : start + CHUNK]):
            ids, split = np.array(row["ids"]), row["num_prompt_tokens"]
            completions = (ids[split:],)
            packed.append(
                PackedRow(prompt=ids[:split], completions=completions, sequence_indices=(i,))
            )
        batch = reference.collate(packed)
        with torch.no_grad():
            hidden = reference(batch, ("hidden",)).hidden
            whole = HiddenReference(hidden=hidden, head=reference.head)
            exact += policy(batch, ("forward_kl",), reference=whole).forward_kl.tolist()
            for k in KS:
                top = linear_top_tokens(hidden, reference.head, k)
                bounds[k] += policy(batch, ("forward_kl",), reference=top).forward_kl.tolist()
                rest[k] += top.tail_logps.exp().tolist()
    kl = np.array(exact)
    return {
        "num_tokens": len(kl),
        "exact": float(kl.mean()),
        "by_k": {
            k: {
                "bound": float(np.mean(bounds[k])),
                "share_missed": float(1 - np.mean(bounds[k]) / kl.mean()),
                "largest_missed_nats": float((kl - np.array(bounds[k])).max()),
                "mean_rest": float(np.mean(rest[k])),
            }
            for k in KS
        },
    }


def main() -> None:
    """Train the policies and print how far the bounds are."""
    model, pairs, out = map(Path, sys.argv[1:])
    found = {}
    for rate in LEARNING_RATES:
        found[f"{rate:g}"] = errors(model, trained(model, pairs, out, rate), out)
    print(json.dumps({"by_learning_rate": found}))


if __name__ == "__main__":
    main()
