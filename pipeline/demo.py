"""Run everything there is on the embedded small world, offline, into one folder."""

from collections.abc import Callable
from pathlib import Path

from ..stores.store import Store
from .config import AddSettings, ScoreSettings
from .progress import Progress
from .score import ScoreSummary, score
from .small_world import write_model, write_pairs, write_tokenizer

NUM_PAIRS = 2000
SEED = 0


def write_world(folder: Path) -> tuple[Path, Path]:
    """Write the small world's pairs and model unless they are there; return their paths."""
    model, data = folder / "model", folder / "pairs.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not (model / "model.safetensors").exists():
        model.mkdir(exist_ok=True)
        write_model(model, vocab_size=write_tokenizer(model), seed=SEED)
    if not data.exists():
        write_pairs(data, num_pairs=NUM_PAIRS, seed=SEED)
    return model, data


def run_demo(folder: Path, progress: Progress, say: Callable[[ScoreSummary], None]) -> Path:
    """Add and score the small world, and score it again; returns the store.

    Args:
        folder: Where everything goes.
        progress: Shown while scoring.
        say: Called with the summary of each of the two runs.
    """
    model, data = write_world(folder)
    settings = ScoreSettings(
        model=model,
        data=AddSettings(
            data=(str(data),),
            pair_set="small-world",
            tokenizer=model,
            max_length=64,
            eval_fraction=0.1,
        ),
    )
    store = Store.create(folder / "store")
    for _ in range(2):
        say(score(store, settings, progress))
    return store.path
