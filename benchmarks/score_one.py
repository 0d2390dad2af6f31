"""One side of the scoring benchmark, in a process of its own; prints a line of JSON.

python benchmarks/score_one.py offpref|trl MODEL PAIRS OUT
"""

import json
import resource
import sys
import time
from pathlib import Path


def by_offpref(model: Path, pairs: Path, out: Path) -> tuple[float, dict[str, list[float]]]:
    """Score with offpref, from file to store; returns seconds and summed log-probs."""
    import pyarrow.compute as pc
    import transformers.generation  # noqa: F401  # imports are timed on neither side

    from offpref.pipeline.adding.settings import AddSettings
    from offpref.pipeline.scores.score import score
    from offpref.pipeline.scores.settings import ScoreSettings
    from offpref.stores.store import Store

    store = Store.create(out)
    added = AddSettings(data=(str(pairs),), pair_set="bench", tokenizer=model)
    start = time.perf_counter()
    summary = score(store, ScoreSettings(model=model, data=added))
    seconds = time.perf_counter() - start
    scores = store.read("logps", summary.scorer)
    sums = {
        key: sum(values)
        for key, values in zip(
            scores["sequence_key"].to_pylist(), scores["token_logps"].to_pylist(), strict=True
        )
    }
    rows = store.read("pairs", summary.pair_set.tokenizer)
    rows = rows.take(pc.sort_indices(rows["source_row"]))
    return seconds, {
        side: [sums[key] for key in rows[f"{side}_key"].to_pylist()]
        for side in ("chosen", "rejected")
    }


def by_trl(model: Path, pairs: Path, out: Path) -> tuple[float, dict[str, list[float]]]:
    """Score with TRL's DPOTrainer; only its pass over the reference is timed."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    spent = [0.0]
    precompute = DPOTrainer._precompute_ref_logps

    def timed(self: DPOTrainer, *arguments: object) -> object:
        start = time.perf_counter()
        result = precompute(self, *arguments)
        spent[0] += time.perf_counter() - start
        return result

    DPOTrainer._precompute_ref_logps = timed
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(
            output_dir=str(out), precompute_ref_log_probs=True, per_device_train_batch_size=8,
            max_length=None, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    scored = trainer.train_dataset
    return spent[0], {side: list(scored[f"ref_{side}_logps"]) for side in ("chosen", "rejected")}


def main() -> None:
    """Run one side and print what it took."""
    which, model, pairs, out = sys.argv[1], *map(Path, sys.argv[2:])
    seconds, logps = {"offpref": by_offpref, "trl": by_trl}[which](model, pairs, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "logps": logps}))


if __name__ == "__main__":
    main()
