"""Worlds in which the true reward is known: the demo's small grammar, and movie reviews."""

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import movies
from session import Session, Setting, made

from offpref.pipeline.evaluation.sampling import Sampler
from offpref.pipeline.evaluation.settings import SampleSettings
from offpref.pipeline.small_world import (
    JUDGEMENT,
    prompts,
    write_demonstrations,
    write_model,
    write_sampled_pairs,
    write_tokenizer,
)

EVAL_FRACTION = 0.25
MOVIE_JUDGEMENT = 8.0
"""How much the judge of movie reviews is moved, in log-odds, by a probability of praise of 1."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A reference, its pairs in the store, and how policies are trained and measured there."""

    name: str
    session: Session
    setting: Setting
    reference: Path
    pair_set: str
    objective: str
    """The true reward by which pairs are labelled."""
    judgement: float
    """A judge prefers by sigmoid(judgement * difference of rewards), Bradley and Terry's model."""
    sources: dict[str, str]
    """Sources of rewards by objective."""
    max_new_tokens: int
    num_steps: int
    learning_rates: tuple[float, ...]
    beta: float
    """Of methods that are compared at one beta."""
    num_prompts: int | None = None
    """Held-out prompts to sample for; None for all."""

    def on(self, pair_set: str) -> "World":
        """Return the world with another of its pair sets."""
        return replace(self, pair_set=pair_set)


def small_world(folder: Path, setting: Setting) -> World:
    """Return the demo's world: a policy that imitates a grammar, pairs judged by sentiment."""
    session = Session(folder)
    base, sft = folder / "base", folder / "sft"
    if not (base / "model.safetensors").exists():
        base.mkdir(parents=True, exist_ok=True)
        write_model(base, vocab_size=write_tokenizer(base), seed=0)
    demonstrations = made(
        folder / "demonstrations.jsonl", ["grammar", 8000, 0],
        lambda path: write_demonstrations(path, num_rows=8000, seed=0),
    )  # fmt: skip
    session.offpref(
        "sft", session.store, "--data", demonstrations, "--pair-set", "demonstrations",
        "--model", base, "--output-dir", sft, "--num-epochs", 3, "--learning-rate", 3e-3,
        "--pairs-per-step", 32, "--resume",
    )  # fmt: skip

    def write_pairs(path: Path) -> None:
        drawn = draw(sft, prompts(), setting.samples_per_prompt, max_new_tokens=40, seed=1)
        write_sampled_pairs(path, dict(zip(prompts(), drawn, strict=True)), seed=1)

    pairs = made(folder / "pairs.jsonl", ["samples", setting.samples_per_prompt, 1], write_pairs)
    session.offpref(
        "score", session.store, "--data", pairs, "--pair-set", "reviews", "--model", sft,
        "--eval-fraction", EVAL_FRACTION, "--tier", "hidden", "--kl-pairs",
    )  # fmt: skip
    return small_outline(folder, setting)


def small_outline(folder: Path, setting: Setting) -> World:
    """Return the demo's world as it would be; nothing is done."""
    module = "python:offpref.pipeline.small_world"
    return World(
        name="small", session=Session(folder), setting=setting, reference=folder / "sft",
        pair_set="reviews", objective="sentiment", judgement=JUDGEMENT, max_new_tokens=40,
        beta=1.0, sources={name: f"{module}:{name}" for name in ("sentiment", "brevity")},
        num_steps=setting.num_steps, learning_rates=(5e-4, 1e-3, 2e-3),
    )  # fmt: skip


def movie_world(folder: Path, data: Path, setting: Setting) -> World:
    """Return the world of movie reviews: a small model of their sentences, judged by a classifier.

    The model is trained here from random weights, within an hour of two cores. Pairs are its own
    samples, labelled by Bradley and Terry's model with the classifier's probability of praise.
    """
    session = Session(folder)
    movies.write_judge(folder, data)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # for python:judge:positive
    demonstrations = made(
        folder / "demonstrations.jsonl", movies.files_of(data),
        lambda path: movies.write_demonstrations(path, data),
    )  # fmt: skip
    model = json.dumps(movies.MODEL, indent=1) + "\n"
    config = made(folder / "config.json", movies.MODEL, lambda path: _write(path, model))
    reference = folder / "sft"
    session.offpref(
        "sft", session.store, "--data", demonstrations, "--pair-set", "demonstrations",
        "--from-scratch", config, "--vocab-size", 2048, "--eval-fraction", 0.02,
        "--eval-every", 500, "--output-dir", reference, "--num-epochs", 4,
        "--learning-rate", 2e-3, "--pairs-per-step", 64, "--warmup-steps", 100,
        "--lr-scheduler-type", "cosine", "--save-every", 200, "--resume",
    )  # fmt: skip
    openings = movies.openings(data, setting.movie_prompts)
    pairs = made(
        folder / "pairs.jsonl", ["samples", openings],
        lambda path: _write_movie_pairs(path, reference, openings),
    )  # fmt: skip
    session.offpref(
        "score", session.store, "--data", pairs, "--pair-set", "reviews", "--model", reference,
        "--eval-fraction", EVAL_FRACTION, "--tier", "hidden",
    )  # fmt: skip
    return movie_outline(folder, setting)


def movie_outline(folder: Path, setting: Setting) -> World:
    """Return the world of movie reviews as it would be; nothing is done."""
    return World(
        name="movies", session=Session(folder), setting=setting, reference=folder / "sft",
        pair_set="reviews", objective="positive", judgement=MOVIE_JUDGEMENT, max_new_tokens=40,
        beta=1.0, num_prompts=32,
        sources={"positive": "python:judge:positive", "brevity": "python:judge:brevity"},
        num_steps=setting.movie_steps, learning_rates=(5e-4, 1e-3),
    )  # fmt: skip


def draw(
    model: Path, prompts: Sequence[str], num_samples: int, *, max_new_tokens: int, seed: int
) -> list[list[str]]:
    """Return the texts of a model's samples of each prompt."""
    settings = SampleSettings(
        num_samples=num_samples, max_new_tokens=max_new_tokens, seed=seed, batch_size=256
    )
    return Sampler(model, settings).texts(prompts)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_movie_pairs(path: Path, model: Path, openings: Sequence[str]) -> None:
    from judge import positive  # type: ignore[import-not-found] # of the world's folder

    chance = random.Random(1)
    drawn = draw(model, openings, 8, max_new_tokens=40, seed=1)
    with path.open("w", encoding="utf-8") as file:
        for prompt, texts in zip(openings, drawn, strict=True):
            rewards = positive([prompt] * len(texts), texts)
            both = list(zip(rewards, texts, strict=True))
            for one, other in zip(both[::2], both[1::2], strict=True):
                gap = MOVIE_JUDGEMENT * (one[0] - other[0])
                better, worse = (one, other)
                if chance.random() > 1 / (1 + math.exp(-gap)):
                    better, worse = worse, better
                row = {"prompt": prompt, "chosen": better[1], "rejected": worse[1]}
                file.write(json.dumps(row) + "\n")
