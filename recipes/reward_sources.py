"""Rewards of sampled completions: a weighted sum of functions and reward models.

A source is written NAME=SOURCE[*WEIGHT], where SOURCE is ``python:MODULE:FUNCTION`` (a function of
lists of prompts and completions, as for ``offpref reward --from python``) or ``model:DIR`` (what
``offpref train-reward`` writes). With several sources the weighted sum is what multi-objective
RLHF maximises (MORLHF, arXiv:2310.03708).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from offpref.pipeline.models.fingerprints import max_positions, model_config
from offpref.pipeline.models.model_files import check_tensors, language_head, quiet_transformers
from offpref.pipeline.own_code import OwnErrors, imported_files, load_function
from offpref.pipeline.rewards.texts import TextReader, padded
from offpref.stores.errors import ModelError, OwnCodeError, SourceError

TEXTS_PER_FORWARD = 512

Rewards = Callable[[Sequence[str], Sequence[str]], Tensor]
"""Prompts and completions, [N] each, to float32 [N]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTerm:
    """One source of rewards with its weight, as a person wrote it."""

    name: str
    source: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(
                f"reward must have a name and a finite weight other than 0, got {self.name!r} "
                f"with {self.weight:g}"
            )

    @classmethod
    def parse(cls, text: str) -> "RewardTerm":
        """Return what a text like ``short=python:offpref.pipeline.small_world:brevity*0.5`` says.

        Raises:
            ValueError: If it is not NAME=SOURCE[*WEIGHT].

        >>> RewardTerm.parse("short=python:offpref.pipeline.small_world:brevity*0.5").weight
        0.5
        """
        name, equals, rest = text.partition("=")
        source, star, weight = rest.rpartition("*")
        try:
            value = float(weight) if star else 1.0
        except ValueError as error:
            raise ValueError(f"reward must be NAME=SOURCE[*WEIGHT], got {text!r}") from error
        if not equals or not rest:
            raise ValueError(f"reward must be NAME=SOURCE[*WEIGHT], got {text!r}")
        return cls(name=name, source=source if star else rest, weight=value)


class RewardSum:
    """The weighted sum of several sources, each loaded once."""

    def __init__(self, terms: Sequence[RewardTerm]) -> None:
        """Load all sources.

        Raises:
            ValueError: If there is none, a name comes twice, or a source is unknown.
            ModelError: If a reward model cannot be loaded.
        """
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"rewards must be one or more with different names, got {names}")
        self._terms = terms
        loaded = [_load(term.source) for term in terms]
        self._functions: list[Rewards] = [function for function, _ in loaded]
        self.contents = {
            term.name: content for term, (_, content) in zip(terms, loaded, strict=True)
        }
        """By name, a hash of what each source computes with."""
        self.num_models = sum(term.source.startswith("model:") for term in terms)
        """Sources that cost a forward pass for each text."""

    def by_name(self, prompts: Sequence[str], completions: Sequence[str]) -> dict[str, Tensor]:
        """Return the rewards of each source without its weight, float32 [N].

        Raises:
            OwnCodeError: If a function fails or returns no finite number for each text.
        """
        found = {}
        for term, function in zip(self._terms, self._functions, strict=True):
            rewards = function(prompts, completions)
            if rewards.shape != (len(prompts),) or not bool(rewards.isfinite().all()):
                raise OwnCodeError(
                    f"{term.source} must return a finite number for each of {len(prompts)} texts, "
                    f"got shape {tuple(rewards.shape)} with "
                    f"{int((~rewards.isfinite()).sum())} others"
                )
            found[term.name] = rewards
        return found

    def total(self, by_name: dict[str, Tensor]) -> Tensor:  # [N]
        """Return the weighted sum of what :meth:`by_name` returned."""
        parts = [term.weight * by_name[term.name] for term in self._terms]
        return torch.stack(parts).sum(dim=0)


def folder_hash(folder: Path) -> str:
    """Return the hash of a model folder's configuration, weights and tokenizer."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        if path.name not in ("run.json", "ppo.json", "reward_model.json"):
            found.update(f"{path.name} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _load(source: str) -> tuple[Rewards, str]:
    kind, _, rest = source.partition(":")
    if kind == "python":
        return _function_rewards(rest)
    if kind == "model" and rest:
        return _model_rewards(Path(rest)), folder_hash(Path(rest))
    raise ValueError(f"reward must come from python:MODULE:FUNCTION or model:DIR, got {source!r}")


def _function_rewards(name: str) -> tuple[Rewards, str]:
    function, path = load_function(name)

    def rewards(prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        with OwnErrors(f"function {name!r}"):
            return torch.tensor(function(list(prompts), list(completions)), dtype=torch.float32)

    files = [path, *imported_files(name.partition(":")[0]).values()]
    return rewards, hashlib.sha256(b"\n".join(each.read_bytes() for each in files)).hexdigest()


def _model_rewards(folder: Path) -> Rewards:
    reader = TextReader(folder)
    auto: Any = transformers.AutoModelForSequenceClassification  # untyped
    try:
        with quiet_transformers():
            model, found = auto.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load the reward model in {folder}: {reason}") from error
    check_tensors(folder, found, without=language_head(folder))
    if model.config.num_labels != 1:
        raise ModelError(
            f"{folder}: expected a reward model with one output, got {model.config.num_labels}"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = reader.padding
    model.eval()
    limit = max_positions(model_config(folder))

    @torch.inference_mode()
    def rewards(prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        ids = reader.ids(prompts, completions)
        longest = max(map(len, ids))
        if limit is not None and longest > limit:
            raise SourceError(
                f"{folder}: expected texts of at most {limit} tokens, got one of {longest}; "
                "lower --max-new-tokens"
            )
        total = torch.zeros(len(ids))
        for start in range(0, len(ids), TEXTS_PER_FORWARD):
            part, mask = padded(ids[start : start + TEXTS_PER_FORWARD], model.config.pad_token_id)
            logits = model(input_ids=part, attention_mask=mask).logits
            total[start : start + len(part)] = logits[:, 0]
        return total

    return rewards
