"""Ranked lists for stores of tests, and their training written once more without any packing."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from offpref.pipeline.small_world import prompts, rewards, write_answer
from offpref.stores.store import Store

SIZES = (2, 3, 4, 6)


def write_lists(path: Path, *, num_lists: int, seed: int) -> Path:
    """Write prompts with two to six scored completions; some of equal score."""
    draw = random.Random(seed)
    requests = prompts()
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_lists):
            prompt = requests[number % len(requests)]
            answers: dict[str, float] = {}
            while len(answers) < SIZES[number % len(SIZES)]:
                text = write_answer(prompt, draw).text
                answers.setdefault(" " + text, rewards(text)["sentiment"])
            scores = list(answers.values())
            if len(set(scores)) == 1:
                scores[0] += 1.5
            row = {"prompt": prompt, "completions": list(answers), "scores": scores}
            file.write(json.dumps(row) + "\n")
    return path


def plain_plackett_luce(deltas: Tensor, scores: list[float], beta: float) -> Tensor:  # [K] -> []
    terms = []
    for k, score in enumerate(scores):
        worse = [j for j, other in enumerate(scores) if other < score]
        if worse:
            terms.append((beta * deltas)[[k, *worse]].log_softmax(0)[0])
    return -torch.stack(terms).sum()


def plain_lambda_loss(deltas: Tensor, scores: list[float], beta: float) -> Tensor:  # [K] -> []
    shown = (deltas.detach() * 100).round()  # ranked in steps of 0.01 nats
    order = sorted(range(len(scores)), key=lambda k: (-float(shown[k]), k))
    gains = [2 ** ((score - min(scores)) / (max(scores) - min(scores))) - 1 for score in scores]
    discounts = [1 / np.log(2 + order.index(k)) for k in range(len(scores))]
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for i, better in enumerate(scores):
        for j, worse in enumerate(scores):
            if better > worse:
                weight = abs(gains[i] - gains[j]) * abs(discounts[i] - discounts[j])
                total = total - weight * logsigmoid(beta * (deltas[i] - deltas[j]))
                weights += weight
    return total / weights


PLAIN: dict[str, Callable[[Tensor, list[float], float], Tensor]] = {
    "plackett_luce": plain_plackett_luce, "lambda_loss": plain_lambda_loss,
}  # fmt: skip


class PlainLists:
    """Trains on lists the usual way: padded sequences, both models, nothing stored."""

    def __init__(
        self, store: Store, policy: Path, reference: Path,
        counts: Callable[[list[int]], list[bool]] | None = None,
    ) -> None:  # fmt: skip
        """Load both models; ``counts`` says which tokens of a completion count, by default all."""
        self._counts = counts
        dtype = torch.float32
        load: Any = AutoModelForCausalLM.from_pretrained
        self.policy, self._reference = load(policy, dtype=dtype), load(reference, dtype=dtype)
        self._rows = {row["sequence_key"]: row for row in store.read("sequences").to_pylist()}
        self.lists = {row["list_key"]: row for row in store.read("lists").to_pylist()}

    def logps(self, model: Any, keys: list[bytes]) -> Tensor:  # [K]
        """Summed log-probs of some completions, a padded row each."""
        rows = [self._rows[key] for key in keys]
        longest = max(len(row["ids"]) for row in rows)
        ids = torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows])
        lengths = torch.tensor([len(row["ids"]) for row in rows])[:, None]
        mask = torch.arange(longest) < lengths
        logps = model(ids, attention_mask=mask.long()).logits.log_softmax(-1)[:, :-1]
        logps = logps.gather(-1, ids[:, 1:, None])[..., 0]
        starts = torch.tensor([row["num_prompt_tokens"] for row in rows])[:, None]
        is_completion = mask[:, 1:] & (torch.arange(1, longest) >= starts)
        if self._counts is not None:
            for place, row in enumerate(rows):
                start = row["num_prompt_tokens"]
                counted = torch.tensor(self._counts(row["ids"][start:]))
                is_completion[place, start - 1 : len(row["ids"]) - 1] &= counted
        return torch.where(is_completion, logps, 0.0).double().sum(1)

    def measure(self, key: bytes, name: str, beta: float) -> Mapping[str, Any]:
        """The columns of ``examples`` of a list, its loss a tensor, and how many are in order."""
        own = self.lists[key]
        policy = self.logps(self.policy, own["sequence_keys"])
        with torch.no_grad():
            reference = self.logps(self._reference, own["sequence_keys"])
        deltas, scores = policy - reference, own["scores"]
        pairs = [(i, j) for i, a in enumerate(scores) for j, b in enumerate(scores) if a > b]
        return {
            "loss": PLAIN[name](deltas, scores, beta),
            "policy_chosen_logps": float(policy[0].detach()),
            "policy_rejected_logps": float(policy[-1].detach()),
            "ref_chosen_logps": float(reference[0]),
            "ref_rejected_logps": float(reference[-1]),
            "chosen_rewards": beta * float(deltas[0].detach()),
            "rejected_rewards": beta * float(deltas[-1].detach()),
            "num_ordered": sum(bool(deltas[i] > deltas[j]) for i, j in pairs),
            "num_compared": len(pairs),
        }
