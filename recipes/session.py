"""What the recipes share: a session of offpref's own commands, worlds to train in, measured rows.

A recipe is a list of commands. Work that was done in its folder is not repeated: a recipe that was
killed resumes, and changing one setting repeats what depends on it.
"""

import contextlib
import io
import json
import math
import random
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offpref.pipeline.commands.main import main
from offpref.pipeline.evaluation.sampling import Sampler
from offpref.pipeline.evaluation.settings import SampleSettings
from offpref.pipeline.small_world import (
    prompts,
    write_demonstrations,
    write_model,
    write_sampled_pairs,
    write_tokenizer,
)
from offpref.stores.query.catalog import open_catalog

EVAL_FRACTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is done: minutes on two cores, or more on a GPU."""

    num_seeds: int
    samples_per_prompt: int
    """Of the first policy, for pairs."""
    num_samples: int
    """Of each policy for each held-out prompt, when it is evaluated."""
    num_epochs: int


SETTINGS = {
    "small": Setting(num_seeds=3, samples_per_prompt=50, num_samples=32, num_epochs=2),
    "large": Setting(num_seeds=5, samples_per_prompt=400, num_samples=256, num_epochs=2),
}


class Session:
    """Commands of offpref in one folder, and what they cost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.store = folder / "store"

    def offpref(self, *arguments: object) -> str:
        """Run a command, show it, and return what it printed."""
        given = [str(each) for each in arguments]
        shown = [each.replace(str(self.folder), ".") for each in given]
        print(f"$ offpref {' '.join(shown)}", flush=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main.main(given, standalone_mode=False)
        return out.getvalue()

    def select(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a question."""
        with open_catalog(self.store) as catalog:
            return catalog.select(sql).to_pylist()


@dataclass
class World:
    """A reference, its pairs in the store, and how policies are measured there."""

    session: Session
    setting: Setting
    reference: Path
    pair_set: str
    objectives: dict[str, str]
    """Sources of rewards by objective."""
    max_new_tokens: int
    train: tuple[object, ...]
    """Options of every training."""
    num_prompts: int | None = None
    """Held-out prompts to sample for; None for all."""
    seeds: range = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = range(self.setting.num_seeds)

    def policy(self, name: str, seed: int, *options: object) -> Path:
        """Train a policy unless it is there; returns its folder."""
        output = self.session.folder / f"{name}-seed{seed}"
        self.session.offpref(
            "train", self.session.store, "--pair-set", self.pair_set, "--model", self.reference,
            "--output-dir", output, "--seed", seed, "--resume", *self.train, *options,
        )  # fmt: skip
        return output

    def measure(self, policy: Path, *, seed: int = 0) -> dict[str, Any]:
        """Sample from a policy and return its row of ``evaluations``, maps as dicts."""
        sources = [f"{name}={source}" for name, source in self.objectives.items()]
        said = self.session.offpref(
            "evaluate", self.session.store, "--model", policy, "--reference", self.reference,
            "--pair-set", self.pair_set, "--num-samples", self.setting.num_samples,
            "--max-new-tokens", self.max_new_tokens, "--seed", seed, "--batch-size", 320,
            "--name", policy.name,
            *(() if self.num_prompts is None else ("--num-prompts", self.num_prompts)),
            *(part for source in sources for part in ("--objective", source)),
        )  # fmt: skip
        # By its id: a policy with equal weights may have been measured under another name.
        found = re.search(r"^evaluation .*@([0-9a-f]{12})", said, re.MULTILINE)
        assert found is not None, said
        rows = self.session.select(
            "select * from evaluations "
            f"where starts_with(replace(evaluation_id::varchar, '-', ''), '{found[1]}')"
        )
        return {
            name: dict(value) if isinstance(value, list) else value
            for name, value in rows[0].items()
            if name not in ("evaluation_id", "run_id", "measured_at")
        }


def small_world(folder: Path, setting: Setting) -> World:
    """Return the demo's world: a policy that imitates a grammar, pairs judged by sentiment."""
    session = Session(folder)
    base, sft = folder / "base", folder / "sft"
    if not (base / "model.safetensors").exists():
        base.mkdir(exist_ok=True)
        write_model(base, vocab_size=write_tokenizer(base), seed=0)
    demonstrations = folder / "demonstrations.jsonl"
    if not demonstrations.exists():
        write_demonstrations(demonstrations, num_rows=4000, seed=0)
    session.offpref(
        "sft", session.store, "--data", demonstrations, "--pair-set", "demonstrations",
        "--model", base, "--output-dir", sft, "--num-epochs", 3, "--learning-rate", 3e-3,
        "--pairs-per-step", 32, "--resume",
    )  # fmt: skip
    pairs = folder / "pairs.jsonl"
    if not pairs.exists():
        drawn = _drawn(sft, prompts(), setting.samples_per_prompt, max_new_tokens=40, seed=1)
        write_sampled_pairs(pairs, dict(zip(prompts(), drawn, strict=True)), seed=1)
    session.offpref(
        "score", session.store, "--data", pairs, "--pair-set", "reviews", "--model", sft,
        "--eval-fraction", EVAL_FRACTION, "--tier", "hidden",
    )  # fmt: skip
    module = "python:offpref.pipeline.small_world"
    return World(
        session=session, setting=setting, reference=sft, pair_set="reviews", max_new_tokens=40,
        objectives={name: f"{module}:{name}" for name in ("sentiment", "brevity", "politeness")},
        train=("--num-epochs", setting.num_epochs, "--learning-rate", 3e-4),
    )  # fmt: skip


def stories_world(folder: Path, model: Path, setting: Setting) -> World:
    """Return a world of stories: a real small model, its own samples, the VADER lexicon as judge.

    Pairs are the best and the worst of eight samples of a prompt.
    """
    session = Session(folder)
    samples = folder / "samples.jsonl"
    if not samples.exists():
        _write_stories(samples, model, num_prompts=120 * setting.num_seeds // 3)
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in story_pairs(folder, "vader")))
    session.offpref(
        "score", session.store, "--data", pairs, "--pair-set", "stories", "--model", model,
        "--eval-fraction", EVAL_FRACTION, "--tier", "hidden",
    )  # fmt: skip
    return World(
        session=session, setting=setting, reference=model, pair_set="stories", max_new_tokens=48,
        objectives={"vader": "python:vader:sentiment", "brevity": "python:vader:brevity"},
        train=("--num-epochs", 3 * setting.num_epochs, "--learning-rate", 3e-4,
               "--pairs-per-step", 16), num_prompts=20,
    )  # fmt: skip


def story_pairs(folder: Path, objective: str) -> list[dict[str, Any]]:
    """Return the best and the worst of each prompt's samples by one objective."""
    rows = []
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        story = json.loads(line)
        ranked = sorted(zip(story[objective], story["texts"], strict=True))
        if ranked[0][0] < ranked[-1][0]:
            rows.append(
                {"prompt": story["prompt"], "chosen": ranked[-1][1], "rejected": ranked[0][1]}
            )
    return rows


def _drawn(
    model: Path, prompts: Sequence[str], num_samples: int, *, max_new_tokens: int, seed: int
) -> list[list[str]]:
    settings = SampleSettings(
        num_samples=num_samples, max_new_tokens=max_new_tokens, seed=seed, batch_size=256
    )
    return Sampler(model, settings).texts(prompts)


def _write_stories(path: Path, model: Path, *, num_prompts: int) -> None:
    import vader

    chance = random.Random(0)
    stories = _drawn(model, ["Once upon a time"], num_prompts, max_new_tokens=64, seed=2)[0]
    openings = [
        " ".join(("Once upon a time" + story).split()[: chance.randint(8, 14)]) for story in stories
    ]
    openings = list(dict.fromkeys(openings))
    drawn = _drawn(model, openings, 8, max_new_tokens=48, seed=3)
    with path.open("w", encoding="utf-8") as file:
        for prompt, texts in zip(openings, drawn, strict=True):
            judged = {
                "vader": vader.sentiment([prompt] * len(texts), texts),
                "brevity": vader.brevity([prompt] * len(texts), texts),
            }
            file.write(json.dumps({"prompt": prompt, "texts": texts} | judged) + "\n")


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean over seeds and the standard deviation; 0 for one value."""
    found = list(values)
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def best_of_n_kl(n: int) -> float:
    """Return the KL of best-of-n from its reference, at most: log n - (n - 1) / n nats."""
    return math.log(n) - (n - 1) / n


def write_results(path: Path, results: dict[str, Any], commands: Sequence[str]) -> None:
    """Write a recipe's results, from which the page is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"commands": list(commands)} | results, indent=1) + "\n")
