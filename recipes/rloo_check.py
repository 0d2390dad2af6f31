"""A cross-check of PPO: the same objective from the same reference by TRL's RLOOTrainer.

    python recipes/rloo_check.py MODEL OUTPUT --prompts FILE.jsonl --reward NAME=SOURCE --beta B

RLOO (arXiv:2402.14740) has no value network: the baseline of a completion is the mean of the other
completions of its prompt. Needs ``pip install --group recipes``.

TRL's beta needs no translation here: RLOOTrainer subtracts beta times the log-ratio, summed over
the tokens of a completion, from the completion's reward, which is E[reward] - beta KL of whole
completions, as in PPO. (GRPOTrainer would need one: it adds beta times the k3 estimate of each
token to a loss that is a mean over tokens.) What had to be set is precision (TRL's default is
bfloat16), gradient checkpointing (on by default), and minibatches: TRL counts forward passes as
steps, so that a step of PPO is ``num_epochs * num_minibatches`` of its steps.
"""

import argparse
import copy
import dataclasses
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ppo import add_options, parser_of, settings_of
from ppo_states import finished, write_policy
from reward_sources import RewardSum, RewardTerm, folder_hash
from rollouts import LanguageModel, measure

from offpref.stores.errors import OffprefError
from offpref.stores.keys import fingerprint

RECORD_FILE = "rloo.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RLOOSettings:
    """What a policy depends on, named as PPO's."""

    model: Path
    prompts: tuple[str, ...]
    rewards: tuple[RewardTerm, ...]
    beta: float
    num_steps: int = 80
    samples_per_step: int = 256
    samples_per_prompt: int = 8
    max_new_tokens: int = 40
    learning_rate: float = 1e-3
    num_epochs: int = 2
    num_minibatches: int = 4
    clip: float = 0.2
    max_grad_norm: float = 1.0
    seed: int = 0
    num_measured: int = 2000
    """Fresh samples of the trained policy."""

    def __post_init__(self) -> None:
        for name in ("beta", "num_steps", "learning_rate", "num_epochs", "clip", "num_measured"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if self.samples_per_prompt < 2 or self.samples_per_step % self.samples_per_prompt:
            raise ValueError("samples_per_step must be a multiple of samples_per_prompt, from 2 on")
        if self.num_minibatches < 1 or self.samples_per_step % self.num_minibatches:
            raise ValueError("samples_per_step must be a multiple of num_minibatches")
        if self.samples_per_step // self.samples_per_prompt > len(self.prompts):
            raise ValueError(
                f"samples_per_step must be at most samples_per_prompt times {len(self.prompts)} "
                f"prompts, got {self.samples_per_step}"
            )

    def identity(self, reward_contents: dict[str, str]) -> dict[str, Any]:
        """Return what names the result."""
        return dataclasses.asdict(self) | {
            "model": folder_hash(self.model),
            "prompts": fingerprint({"prompts": list(self.prompts)}),
            "reward_contents": reward_contents,
        }


def train_rloo(settings: RLOOSettings, output: Path) -> dict[str, Any]:
    """Train a policy with TRL, write its folder, and return its record, ``rloo.json``.

    Args:
        settings: Of the training.
        output: New folder of the policy.

    Returns:
        ``settings``, ``measured`` as `rollouts.measure` returns it, ``num_sequences`` sampled,
        ``num_forwards`` of sequences through any model, ``seconds`` of the training.

    Raises:
        TrainingError: If the folder is there and of other settings.
        ModelError: If a model cannot be loaded.
    """
    rewards = RewardSum(settings.rewards)
    identity = settings.identity(rewards.contents)
    if (record := finished(output, identity, record_file=RECORD_FILE)) is not None:
        return record
    started = time.monotonic()
    reference = LanguageModel.load(settings.model)
    policy = dataclasses.replace(reference, model=_trained(settings, reference, rewards))
    seconds = time.monotonic() - started
    num_sequences = settings.num_steps * settings.samples_per_step
    passes = 3 + rewards.num_models + settings.num_epochs  # 3: draw, old log-probs, reference
    record = {
        "settings": identity,
        "model": str(settings.model),
        "num_sequences": num_sequences,
        "num_forwards": num_sequences * passes,
        "seconds": seconds,
        "measured": measure(
            policy, reference, settings.prompts, rewards, beta=settings.beta,
            num_samples=settings.num_measured, max_new_tokens=settings.max_new_tokens,
            seed=settings.seed + 1,
        ),
    }  # fmt: skip
    write_policy(output, policy.model, settings.model, record, record_file=RECORD_FILE)
    return record


def _trained(
    settings: RLOOSettings, reference: LanguageModel, rewards: RewardSum
) -> Any:  # transformers' model
    datasets: Any = importlib.import_module("datasets")  # untyped, as is what is used of trl
    trl: Any = importlib.import_module("trl")
    reference.prompt_ids(settings.prompts, room=settings.max_new_tokens)  # they have to fit
    tokenizer = copy.deepcopy(reference.tokenizer)
    tokenizer.padding_side = "left"

    def reward(*, prompts: Sequence[str], completion_ids: Any, **_: Any) -> list[float]:
        # From ids: TRL's own texts have lost a space where the tokenizer puts one before texts.
        by_name = rewards.by_name(prompts, reference.texts_of(completion_ids))
        found: list[float] = rewards.total(by_name).tolist()
        return found

    with tempfile.TemporaryDirectory() as scratch:
        config = trl.RLOOConfig(
            output_dir=scratch, beta=settings.beta, seed=settings.seed, use_cpu=True, bf16=False,
            max_steps=settings.num_steps * settings.num_epochs * settings.num_minibatches,
            per_device_train_batch_size=settings.samples_per_step // settings.num_minibatches,
            steps_per_generation=settings.num_minibatches, gradient_accumulation_steps=1,
            num_iterations=settings.num_epochs, num_generations=settings.samples_per_prompt,
            max_completion_length=settings.max_new_tokens, normalize_advantages=True,
            learning_rate=settings.learning_rate, lr_scheduler_type="linear", weight_decay=0.0,
            max_grad_norm=settings.max_grad_norm, epsilon=settings.clip, temperature=1.0,
            top_p=1.0, top_k=0, gradient_checkpointing=False, save_strategy="no",
            report_to="none", logging_steps=50, disable_tqdm=True,
            model_init_kwargs={"dtype": torch.float32, "local_files_only": True},
        )  # fmt: skip
        trainer = trl.RLOOTrainer(
            model=str(settings.model), reward_funcs=reward, args=config,
            train_dataset=datasets.Dataset.from_dict({"prompt": list(settings.prompts)}),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
    return trainer.model.eval()


def main() -> None:
    """Run the command line."""
    parser: argparse.ArgumentParser = parser_of(__doc__)
    add_options(parser, RLOOSettings)
    given = parser.parse_args()
    try:
        record = train_rloo(settings_of(given, RLOOSettings), given.output)
    except (OffprefError, ValueError) as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        sys.exit(f"error: {error}; install it with: pip install --group recipes")
    kl, kl_error = record["measured"]["kl"]
    rewards = record["measured"]["rewards"].items()
    print(
        f"{given.output}: {record['num_sequences']:,} sequences, {record['seconds']:.0f} s; KL "
        f"{kl:.3f} +- {kl_error:.3f} nats; "
        + "; ".join(f"{name} {mean:.3f} +- {std:.3f}" for name, (mean, std) in rewards)
    )


if __name__ == "__main__":
    main()
