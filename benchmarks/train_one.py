"""One side of the training benchmark, in a process of its own; prints a line of JSON.

    python benchmarks/train_one.py offpref|trl MODEL PAIRS OUT STEPS

TRL gets the pairs in the order in which offpref took them, which is read from offpref's store.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

PAIRS_PER_STEP = 8
LEARNING_RATE = 1e-5
BETA = 0.1


class Outputs:
    """Times what is written of a training: rows handed over, and the thread that commits them."""

    def __init__(self) -> None:
        from offpref.pipeline.training.run_records import RunRecords

        self.seconds = 0.0
        for name, clock in (
            ("add_step", time.perf_counter),
            ("add_pairs", time.perf_counter),
            ("_commit", time.thread_time),  # fsync waits beside the step, arithmetic does not
        ):
            setattr(RunRecords, name, self._timed(getattr(RunRecords, name), clock))

    def _timed(self, function: Callable[..., None], clock: Callable[[], float]) -> object:
        def timed(*arguments: object, **more: object) -> None:
            start = clock()
            function(*arguments, **more)
            self.seconds += clock() - start

        return timed


def by_offpref(model: Path, pairs: Path, out: Path, num_steps: int) -> dict[str, object]:
    """Train with offpref from scored pairs; scoring is not timed."""
    from offpref.pipeline.adding.settings import AddSettings
    from offpref.pipeline.scores.score import score
    from offpref.pipeline.scores.settings import ScoreSettings
    from offpref.pipeline.training.plan import plan_training
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.pipeline.training.train import train
    from offpref.stores.query.catalog import Catalog
    from offpref.stores.store import Store

    store = Store.create(out / "store")
    added = AddSettings(data=(str(pairs),), pair_set="bench", tokenizer=model)
    score(store, ScoreSettings(model=model, data=added))
    settings = TrainSettings(
        pair_set="bench", model=model, output_dir=out / "policy", beta=BETA,
        pairs_per_step=PAIRS_PER_STEP, max_steps=num_steps, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", log_tokens="all",
    )  # fmt: skip
    outputs = Outputs()
    start = time.perf_counter()
    train(plan_training(store, settings))
    seconds = time.perf_counter() - start
    store.refresh()
    with Catalog(store) as catalog:
        steps = catalog.select(
            "select step, loss, seconds, data_wait_seconds from steps where split = 'train' "
            "order by step"
        ).to_pylist()
        rows = catalog.select(
            "select step, source_row from examples join pairs using (pair_key) order by step, 2"
        ).to_pylist()
    in_steps = sum(step["seconds"] for step in steps)
    return {
        "seconds": in_steps,
        "losses": [step["loss"] for step in steps],
        "order": [row["source_row"] for row in rows],
        "data_wait_share": sum(step["data_wait_seconds"] for step in steps) / in_steps,
        "outputs_share": outputs.seconds / in_steps,
        "outside_steps_seconds": seconds - in_steps,
    }


def by_trl(model: Path, pairs: Path, out: Path, num_steps: int) -> dict[str, object]:
    """Train with TRL's DPOTrainer on precomputed log-probs; precomputing is not timed."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    order = json.loads((out / "order.json").read_text())

    class InOrder(DPOTrainer):
        """Takes the rows as they come."""

        def _get_train_sampler(self, dataset: object = None) -> SequentialSampler:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    class Clock(TrainerCallback):
        """Times the steps alone."""

        def on_step_begin(self, *arguments: object, **more: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *arguments: object, **more: object) -> None:
            self.seconds = getattr(self, "seconds", 0.0) + time.perf_counter() - self.start

    clock = Clock()
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(
            output_dir=str(out / "trl"), precompute_ref_log_probs=True, beta=BETA,
            per_device_train_batch_size=PAIRS_PER_STEP, max_steps=num_steps,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.0,
            max_length=None, use_cpu=True, bf16=False, report_to=[], logging_steps=1,
            save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": clock.seconds, "losses": losses}


def main() -> None:
    """Run one side and print what it took."""
    which, model, pairs, out = sys.argv[1], *map(Path, sys.argv[2:5])
    result = {"offpref": by_offpref, "trl": by_trl}[which](model, pairs, out, int(sys.argv[5]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"peak_bytes": peak}))


if __name__ == "__main__":
    main()
