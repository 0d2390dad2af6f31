"""The best policies that a reference allows: reward against KL, from samples of the reference.

The policy that maximises E[reward] - KL / tilt is the reference times e^(tilt * reward) (Eq. 4 of
arXiv:2305.18290). Its reward and its KL follow from how the reference's rewards are distributed for
each prompt. Here that is the *model's* own distribution. What it says one time in ten thousand
matters for a large tilt; so samples come from several policies that favour rewards, too, and are
weighted by what the reference gives them: w = reference / (mean of the policies that were drawn
from), the balance heuristic (Veach and Guibas, 1995).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offpref.pipeline.evaluation.sampling import Sampler
from offpref.pipeline.evaluation.settings import SampleSettings

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Weighted samples of one prompt: they stand for the reference's distribution."""

    weights: Numbers  # [N], sum 1
    rewards: dict[str, Numbers]  # [N] each


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best policy at one tilt, over prompts."""

    rewards: dict[str, float]
    kl: float
    effective: float
    """Effective number of samples of the prompt that has the fewest."""


def best(prompts: Sequence[Sampled], tilts: dict[str, float]) -> Best:
    """Return the policy that maximises E[sum of tilt * reward] - KL, per prompt, averaged.

    Args:
        prompts: Weighted samples of each prompt.
        tilts: Of each reward: its weight divided by the price of KL.
    """
    means: list[dict[str, float]] = []
    kls, sizes = [], []
    for each in prompts:
        tilt = np.zeros(len(each.weights))
        for name, value in tilts.items():
            tilt += value * each.rewards[name]
        logs = np.log(np.maximum(each.weights, 1e-300)) + tilt
        log_sum = np.logaddexp.reduce(logs)
        shares = np.exp(logs - log_sum)
        means.append({name: float(shares @ values) for name, values in each.rewards.items()})
        kls.append(float(shares @ (tilt - log_sum)))
        sizes.append(1 / float((shares**2).sum()))
    return Best(
        rewards={name: float(np.mean([m[name] for m in means])) for name in means[0]},
        kl=float(np.mean(kls)),
        effective=min(sizes),
    )


def frontier(
    prompts: Sequence[Sampled], objective: str, tilts: Sequence[float], *, num_resamples: int = 200
) -> list[dict[str, float]]:
    """Return the frontier of one reward with 95 % intervals from resampled samples."""
    chance = np.random.default_rng(0)
    resampled = [[_resample(each, chance) for each in prompts] for _ in range(num_resamples)]
    found = []
    for tilt in tilts:
        here = best(prompts, {objective: tilt})
        again = [best(each, {objective: tilt}) for each in resampled]
        # At the same KL: what reward could be, to first order, is off by (reward - KL / tilt).
        values = [b.rewards[objective] - (b.kl - here.kl) / tilt for b in again]
        low, high = np.quantile(values, (0.025, 0.975))
        found.append(
            {"tilt": tilt, "kl": here.kl, "reward": here.rewards[objective],
             "low": float(low), "high": float(high), "effective": here.effective}
        )  # fmt: skip
    return found


def _resample(sampled: Sampled, chance: np.random.Generator) -> Sampled:
    chosen = chance.integers(0, len(sampled.weights), len(sampled.weights))
    weights = sampled.weights[chosen]
    return Sampled(
        weights=weights / weights.sum(),
        rewards={name: values[chosen] for name, values in sampled.rewards.items()},
    )


def of_model(
    reference: Path, drawn_from: Sequence[Path], prompts: Sequence[str], num_samples: int,
    *, max_new_tokens: int, rewards: Any, keep: Path,
) -> list[Sampled]:  # fmt: skip
    """Sample from policies, weigh by the reference; the work is kept in a file.

    Args:
        reference: The model whose distribution is wanted.
        drawn_from: Policies to draw from, the reference among them.
        prompts: Texts.
        num_samples: Of each policy and prompt.
        max_new_tokens: Of a sample.
        rewards: Function of prompts and completions that returns values by objective.
        keep: File of what was found.
    """
    if not keep.exists():
        rows = _draw(reference, drawn_from, prompts, num_samples, max_new_tokens, rewards)
        keep.with_suffix(".tmp").write_text(json.dumps(rows))
        keep.with_suffix(".tmp").replace(keep)
    return [
        Sampled(
            weights=np.array(row["weights"]) / np.sum(row["weights"]),
            rewards={name: np.array(values) for name, values in row["rewards"].items()},
        )
        for row in json.loads(keep.read_text())
    ]


def _draw(
    reference: Path, drawn_from: Sequence[Path], prompts: Sequence[str], num_samples: int,
    max_new_tokens: int, rewards: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    samples: list[list[list[int]]] = [[] for _ in prompts]
    ids: list[list[int]] = []
    texts_of: Any = None
    for number, folder in enumerate(drawn_from):
        settings = SampleSettings(
            num_samples=num_samples, max_new_tokens=max_new_tokens, seed=1000 + number,
            batch_size=num_samples,
        )  # fmt: skip
        sampler = Sampler(folder, settings)
        texts_of = sampler.texts_of
        ids = [sampler.tokenizer.encode(prompt) for prompt in prompts]
        for place, own in enumerate(ids):
            repeated = [np.array(own, np.int32)] * num_samples
            samples[place] += [list(map(int, c)) for c, _ in sampler.draw(repeated, batch=place)]
    scorers = {folder: Scorer(folder) for folder in (reference, *drawn_from)}
    rows = []
    for prompt, own, completions in zip(prompts, ids, samples, strict=True):
        logps = {folder: scorer(own, completions) for folder, scorer in scorers.items()}
        mixture = np.logaddexp.reduce([logps[folder] for folder in drawn_from]) - np.log(
            len(drawn_from)
        )
        texts = texts_of(completions)
        rows.append(
            {
                "weights": np.exp(logps[reference] - mixture).tolist(),
                "rewards": rewards([prompt] * len(texts), texts),
            }
        )
    return rows


class Scorer:
    """Log-probs of whole completions of one prompt."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def __call__(self, prompt: list[int], completions: Sequence[list[int]]) -> Numbers:
        """Return the log-prob of each completion, nats, [N]."""
        found = np.zeros(len(completions))
        order = sorted(range(len(completions)), key=lambda i: len(completions[i]))
        for start in range(0, len(order), 256):
            part = order[start : start + 256]
            longest = max(len(completions[i]) for i in part)
            rows = torch.zeros(len(part), len(prompt) + longest, dtype=torch.long)
            is_own = torch.zeros(len(part), longest, dtype=torch.bool)
            for row, i in enumerate(part):
                end = len(prompt) + len(completions[i])
                rows[row, :end] = torch.tensor([*prompt, *completions[i]])
                is_own[row, : len(completions[i])] = True
            # Padding stands to the right, where a causal model's earlier tokens do not see it.
            logits = self.model(rows).logits[:, len(prompt) - 1 : -1].double()
            logps = logits.log_softmax(-1).gather(-1, rows[:, len(prompt) :, None])[..., 0]
            found[part] = (logps * is_own).sum(1).numpy()
        return found
