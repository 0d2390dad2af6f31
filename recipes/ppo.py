"""RLHF with PPO: maximise E[reward] - beta KL(policy || reference) over whole completions.

    python recipes/ppo.py MODEL OUTPUT --prompts FILE.jsonl --reward NAME=SOURCE[*WEIGHT] --beta B

The optimum is known, reference * exp(reward / beta), normalised (Eq. 4 of arXiv:2305.18290); this
is the method that DPO replaces. As in arXiv:2203.02155, each token pays beta (log policy - log
reference) out of the reward, the last token gets the score, and advantages are GAE's. Values come
from a network of its own, which starts as the reference's trunk with a small head: its loss then
never moves the policy, at the price of a second forward and backward pass.

A run that was killed continues from its last state to the same weights, bit for bit. Asked again
with equal settings, it returns its record at once; with others it refuses.

Letters in shape comments: N completions of a step, P columns of prompts, T of completions.
"""

import argparse
import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from ppo_losses import (
    advantages_and_returns,
    policy_loss,
    token_rewards,
    value_loss,
    whitened,
)
from ppo_states import (
    Progress,
    finished,
    load_state,
    save_state,
    state_path,
    write_policy,
)
from reward_sources import RewardSum, RewardTerm, folder_hash
from rollouts import (
    Completions,
    LanguageModel,
    all_token_logps,
    chunks,
    draw,
    generator_of,
    load_prompts,
    token_logps,
)
from torch import Tensor, nn

from offpref.stores.errors import OffprefError, TrainingError
from offpref.stores.keys import fingerprint

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOSettings:
    """What a policy depends on, and how often its state is saved."""

    model: Path
    """The reference, where the policy starts."""
    prompts: tuple[str, ...]
    rewards: tuple[RewardTerm, ...]
    beta: float
    """Price of a nat of KL from the reference."""
    num_steps: int = 80
    samples_per_step: int = 256
    max_new_tokens: int = 40
    learning_rate: float = 1e-3
    value_learning_rate: float = 3e-3
    schedule: Literal["linear", "constant"] = "linear"
    """Whether learning rates fall to 0 at the last step."""
    num_epochs: int = 2
    """Passes over a step's samples."""
    num_minibatches: int = 4
    """Updates of a pass."""
    clip: float = 0.2
    """How far the probability of a token may go from where it was drawn."""
    value_clip: float = 0.5
    """How far a value may go, in standard deviations of the step's returns."""
    gae_lambda: float = 0.95
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    save_every: int = 20
    """Steps from one saved state to the next; changes no result."""

    def __post_init__(self) -> None:
        positive = ("beta", "num_steps", "samples_per_step", "max_new_tokens", "learning_rate",
                    "value_learning_rate", "num_epochs", "num_minibatches", "clip", "value_clip",
                    "max_grad_norm", "save_every")  # fmt: skip
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda must be 0 to 1, got {self.gae_lambda}")
        if self.weight_decay < 0 or self.seed < 0:
            raise ValueError("weight_decay and seed must not be negative")
        if self.schedule not in ("linear", "constant"):
            raise ValueError(f"schedule must be linear or constant, got {self.schedule!r}")
        if self.num_minibatches > self.samples_per_step:
            raise ValueError("num_minibatches must be at most samples_per_step")
        if not self.prompts:
            raise ValueError("prompts must be one or more")

    def identity(self, reward_contents: dict[str, str]) -> dict[str, Any]:
        """Return what names the result: settings and the content of what they lead to."""
        found = dataclasses.asdict(self)
        del found["save_every"]
        found["model"] = folder_hash(self.model)
        found["prompts"] = fingerprint({"prompts": list(self.prompts)})
        for reward in found["rewards"]:
            if reward["source"].startswith("model:"):
                del reward["source"]  # the content counts, not the folder's name
        return found | {"reward_contents": reward_contents}


class ValueNetwork(nn.Module):
    """Expected reward from each token on: a trunk of its own and a head that starts at 0."""

    def __init__(self, reference: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(reference.base_model)
        size = reference.get_input_embeddings().embedding_dim
        self.hidden, self.out = nn.Linear(size, size), nn.Linear(size, 1)
        with torch.no_grad():
            for parameter in self.hidden.parameters():
                parameter.normal_(std=1 / math.sqrt(size), generator=generator)
            self.out.weight.zero_()
            self.out.bias.zero_()

    def forward(self, completions: Completions) -> Tensor:  # [N, T]
        """Return the value before each token, float32; what it says at padding means nothing."""
        states = self.trunk(
            input_ids=completions.ids, attention_mask=completions.mask,
            position_ids=completions.positions, use_cache=False,
        ).last_hidden_state[:, completions.num_prompt_columns - 1 : -1]  # fmt: skip
        values: Tensor = self.out(torch.tanh(self.hidden(states)))[..., 0]
        return values

    @torch.no_grad()
    def all(self, completions: Completions) -> Tensor:  # [N, T]
        """Return the values of any number of completions, without gradients."""
        found = torch.zeros(completions.tokens.shape)
        for members in chunks(completions):
            values = self(completions.rows(members))
            found[members, : values.shape[1]] = values
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A step's samples with all that the updates need; [N, T] each, fixed during the step."""

    completions: Completions
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, members: Tensor) -> "Batch":
        """Return some rows, without columns that none of them needs."""
        completions = self.completions.rows(members)
        length = completions.tokens.shape[1]
        return Batch(
            completions=completions, logps=self.logps[members, :length],
            values=self.values[members, :length], advantages=self.advantages[members, :length],
            returns=self.returns[members, :length],
        )  # fmt: skip


def train_ppo(settings: PPOSettings, output: Path, report: Report | None = None) -> dict[str, Any]:
    """Train a policy, write its folder, and return its record, the content of ``ppo.json``.

    Args:
        settings: Of the training.
        output: New folder of the policy.
        report: Called with the row of every step.

    Returns:
        ``settings``, ``versions``, a row for each of ``steps``, and ``num_sequences`` sampled,
        ``num_forwards`` of sequences through any model, ``seconds``.

    Raises:
        TrainingError: If the folder is of other settings, or a number is not finite.
        ModelError: If a model cannot be loaded.
        SourceError: If a prompt is too long.
    """
    rewards = RewardSum(settings.rewards)
    identity = settings.identity(rewards.contents)
    if (record := finished(output, identity)) is not None:
        state_path(output).unlink(missing_ok=True)  # of a process that was killed at its end
        return record
    trainer = _Trainer(settings, rewards)
    progress = load_state(output, identity, trainer.networks, trainer.optimizer)
    started = time.monotonic() - progress.seconds
    for step in range(len(progress.steps), settings.num_steps):
        row = trainer.step(step, progress)
        progress.seconds = time.monotonic() - started
        cost = {"num_sequences": progress.num_sequences, "seconds": round(progress.seconds, 3)}
        progress.steps.append({"step": step + 1} | row | cost)
        if report is not None:
            report(progress.steps[-1])
        if (step + 1) % settings.save_every == 0:
            save_state(output, identity, progress, trainer.networks, trainer.optimizer)
    record = {
        "settings": identity,
        "model": str(settings.model),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    } | vars(progress)
    write_policy(output, trainer.policy.model, settings.model, record)
    state_path(output).unlink(missing_ok=True)
    return record


class _Trainer:
    """Networks, optimizer and one step of PPO; what a step draws depends on its number alone."""

    def __init__(self, settings: PPOSettings, rewards: RewardSum) -> None:
        self._settings, self._rewards = settings, rewards
        self._reference = LanguageModel.load(settings.model)
        self._prompt_ids = self._reference.prompt_ids(
            settings.prompts, room=settings.max_new_tokens
        )
        self.policy = self._reference.twin()
        self._value = ValueNetwork(self._reference.model, generator_of(settings.seed))
        self.networks = nn.ModuleDict({"policy": self.policy.model, "value": self._value})
        groups = [
            {"params": list(self.policy.model.parameters()), "base": settings.learning_rate},
            {"params": list(self._value.parameters()), "base": settings.value_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    def step(self, step: int, progress: Progress) -> dict[str, Any]:
        """Sample, then update the networks; returns what is measured."""
        settings = self._settings
        generator = generator_of(settings.seed, step)
        batch, row = self._sample(step, generator)
        share = 1 - step / settings.num_steps if settings.schedule == "linear" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share
        value_clip = settings.value_clip * max(
            float(batch.returns[batch.completions.is_token].std(correction=0)), 1e-8
        )
        losses = []
        for _ in range(settings.num_epochs):
            order = torch.randperm(settings.samples_per_step, generator=generator)
            for members in order.tensor_split(settings.num_minibatches):
                losses.append(self._update(batch.rows(members), value_clip))
        found = np.mean(losses, axis=0)
        if not np.isfinite(found).all():
            raise TrainingError(f"step {step + 1}: expected finite losses, got {found.tolist()}")
        count = settings.samples_per_step
        progress.num_sequences += count
        passes = 3 + self._rewards.num_models + 2 * settings.num_epochs  # 3: draw, reference, value
        progress.num_forwards += count * passes
        names = ("policy_loss", "value_loss", "clip_fraction", "entropy")
        return row | dict(zip(names, found.tolist(), strict=True))

    def _sample(self, step: int, generator: torch.Generator) -> tuple[Batch, dict[str, Any]]:
        settings = self._settings
        count = settings.samples_per_step
        numbers = _prompt_numbers(len(settings.prompts), settings.seed, step * count, count)
        completions, logps = draw(
            self.policy, [self._prompt_ids[i] for i in numbers],
            max_new_tokens=settings.max_new_tokens, generator=generator,
        )  # fmt: skip
        texts = self.policy.texts(completions)
        by_name = self._rewards.by_name([settings.prompts[i] for i in numbers], texts)
        scores = self._rewards.total(by_name)
        logratios = logps - all_token_logps(self._reference.model, completions)
        values = self._value.all(completions)
        is_token = completions.is_token
        advantages, returns = advantages_and_returns(
            token_rewards(scores, logratios, is_token, beta=settings.beta), values, is_token,
            gae_lambda=settings.gae_lambda,
        )  # fmt: skip
        advantages[is_token] = whitened(advantages[is_token])
        kl = float(logratios.sum(dim=1).mean())
        row = {
            "rewards": {name: float(each.mean()) for name, each in by_name.items()},
            "kl": kl,
            "objective": float(scores.mean()) - settings.beta * kl,
            "mean_completion_tokens": float(is_token.sum(dim=1).float().mean()),
        }
        batch = Batch(
            completions=completions, logps=logps, values=values, advantages=advantages,
            returns=returns,
        )  # fmt: skip
        return batch, row

    def _update(self, batch: Batch, value_clip: float) -> tuple[float, float, float, float]:
        """Take one step of the optimizer; returns losses, clip fraction and entropy."""
        settings, is_token = self._settings, batch.completions.is_token
        logps, entropies = token_logps(self.policy.model, batch.completions)
        loss, clip_fraction = policy_loss(
            logps[is_token], batch.logps[is_token], batch.advantages[is_token], clip=settings.clip
        )
        values = self._value(batch.completions)
        error = value_loss(
            values[is_token], batch.values[is_token], batch.returns[is_token], clip=value_clip
        )
        torch.autograd.backward(loss + error)  # the networks share no weights
        for network in self.networks.values():
            nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        entropy = float(entropies[is_token].mean())
        return float(loss.detach()), float(error.detach()), float(clip_fraction), entropy


@cache
def _prompt_order(count: int, seed: int, round_: int) -> list[int]:
    """Return the order in which a round goes through the prompts."""
    return torch.randperm(count, generator=generator_of(seed, round_, 1)).tolist()


def _prompt_numbers(num_prompts: int, seed: int, start: int, count: int) -> list[int]:
    """Return which prompts get the samples from ``start`` on; a round gives each prompt one."""
    places = (divmod(start + i, num_prompts) for i in range(count))
    return [_prompt_order(num_prompts, seed, round_)[place] for round_, place in places]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what PPO and its cross-check are both told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the reference")
    parser.add_argument("output", type=Path, help="new folder of the policy")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with 'prompt'")
    parser.add_argument(
        "--reward", action="append", required=True, metavar="NAME=SOURCE[*WEIGHT]",
        help="python:MODULE:FUNCTION or model:DIR; may repeat, and the weighted sum counts",
    )  # fmt: skip
    return parser


def add_options(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add an option for each setting that is a number or a choice."""
    for each in dataclasses.fields(settings):
        if each.name in ("model", "prompts", "rewards"):
            continue
        is_given = each.default is dataclasses.MISSING
        kind = type(each.default) if not is_given else float
        parser.add_argument(
            f"--{each.name.replace('_', '-')}", type=kind, required=is_given,
            default=None if is_given else each.default, metavar=kind.__name__.upper(),
            help=None if is_given else "default: %(default)s",
        )  # fmt: skip


def settings_of(given: argparse.Namespace, settings: type[Any]) -> Any:
    """Return the settings that a command line gives."""
    names = {each.name for each in dataclasses.fields(settings)} - {"prompts", "rewards"}
    return settings(
        prompts=tuple(load_prompts(given.prompts)),
        rewards=tuple(RewardTerm.parse(each) for each in given.reward),
        **{name: getattr(given, name) for name in names},
    )


def say_step(row: dict[str, Any]) -> None:
    """Print a line of a step's numbers to stderr."""
    rewards = " ".join(f"{name} {value:.3f}" for name, value in row["rewards"].items())
    print(
        f"step {row['step']}: {rewards}, KL {row['kl']:.3f} nats, objective "
        f"{row['objective']:.3f}, {row['seconds']:.0f} s", file=sys.stderr,
    )  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = parser_of(__doc__)
    add_options(parser, PPOSettings)
    given = parser.parse_args()
    try:
        record = train_ppo(settings_of(given, PPOSettings), given.output, say_step)
    except (OffprefError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(
        f"{given.output}: {len(record['steps'])} steps, {record['num_sequences']:,} sequences, "
        f"{record['num_forwards']:,} forward passes, {record['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
