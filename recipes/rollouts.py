"""Sample completions of prompts from a causal language model, with exact log-probs, in batches.

Prompts are padded on the left and completions on the right, so that all completions of a batch
begin in the same column. Positions count a row's own tokens and padding is masked: a row's
log-probs are those of the sequence alone, up to rounding. Whatever is drawn depends on a seed and
on nothing that was drawn before.

Letters in shape comments: N completions, P columns of prompts, T columns of completions,
V vocabulary.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from reward_sources import RewardSum
from torch import Tensor, nn

from offpref.pipeline.evaluation.end_tokens import end_tokens
from offpref.pipeline.models.fingerprints import max_positions, model_config
from offpref.pipeline.models.model_files import load_model, quiet_transformers
from offpref.pipeline.tokenization.completion_texts import CompletionTexts
from offpref.stores.errors import ModelError, SourceError

ROWS_PER_FORWARD = 512
"""Rows of a forward pass without gradients; bounds memory and changes no result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completions:
    """N prompts with a completion each, as one padded batch."""

    ids: Tensor  # [N, P + T]
    mask: Tensor  # [N, P + T], 1 for tokens, 0 for padding
    num_prompt_columns: int
    """P."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Self:
        """Return given ids as a batch.

        Args:
            prompts: Ids of the prompts, [N].
            completions: Ids of their completions, [N], none of them empty.
        """
        before, after = max(map(len, prompts)), max(map(len, completions))
        ids = torch.zeros(len(prompts), before + after, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            start, stop = before - len(prompt), before + len(completion)
            ids[row, start:stop] = torch.tensor([*prompt, *completion])
            mask[row, start:stop] = 1
        return cls(ids=ids, mask=mask, num_prompt_columns=before)

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)

    @property
    def is_token(self) -> Tensor:  # [N, T]
        """Which columns of the completions are tokens."""
        return self.mask[:, self.num_prompt_columns :].bool()

    @property
    def tokens(self) -> Tensor:  # [N, T]
        """The ids of the completions; 0 where there is padding."""
        return self.ids[:, self.num_prompt_columns :]

    @property
    def positions(self) -> Tensor:  # [N, P + T]
        """The position of each token in its own row."""
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    def rows(self, members: Tensor) -> "Completions":
        """Return some rows, without columns that none of them needs."""
        mask = self.mask[members]
        used = mask.any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        return Completions(
            ids=self.ids[members, first:last], mask=mask[:, first:last],
            num_prompt_columns=self.num_prompt_columns - first,
        )  # fmt: skip

    def completion_ids(self) -> list[list[int]]:
        """Return each completion's ids without padding."""
        both = zip(self.tokens, self.is_token, strict=True)
        return [tokens[there].tolist() for tokens, there in both]


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model folder as a policy: weights, tokenizer, and what ends a completion."""

    model: Any  # transformers' models have no common type
    tokenizer: Any
    ends: list[int]
    texts_of: CompletionTexts
    limit: int | None
    """Positions of the model."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a folder in Hugging Face form, in float32 and without dropout.

        Raises:
            ModelError: If configuration, weights or tokenizer do not fit, or nothing would end a
                completion.
        """
        with quiet_transformers():
            model = load_model(folder, torch.float32, None, None, False).eval()
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
        ends = end_tokens(folder, tokenizer.eos_token_id)
        if not ends:
            raise ModelError(f"{folder}: expected a token that ends a completion, got none")
        return cls(
            model=model, tokenizer=tokenizer, ends=ends, texts_of=CompletionTexts(tokenizer),
            limit=max_positions(model_config(folder)),
        )  # fmt: skip

    def twin(self) -> "LanguageModel":
        """Return the same model with weights of its own."""
        return dataclasses.replace(self, model=copy.deepcopy(self.model))

    def prompt_ids(self, prompts: Sequence[str], *, room: int) -> list[list[int]]:
        """Return the ids of prompts that leave room for a completion.

        Args:
            prompts: The texts.
            room: Tokens of the longest completion.

        Raises:
            SourceError: If a prompt is empty or too long.
        """
        found = [list(self.tokenizer(prompt).input_ids) for prompt in prompts]
        for prompt, ids in zip(prompts, found, strict=True):
            if not ids or (self.limit is not None and len(ids) + room > self.limit):
                raise SourceError(
                    f"prompt {prompt[:40]!r}: expected 1 to "
                    f"{'any number of' if self.limit is None else self.limit - room} tokens beside "
                    f"{room} of a completion, got {len(ids)}"
                )
        return found

    def texts(self, completions: Completions) -> list[str]:
        """Return the texts of completions, without control tokens."""
        return self.texts_of(completions.completion_ids())


def load_prompts(path: Path) -> list[str]:
    """Return the column ``prompt`` of a file of JSON lines, each prompt once, in their order.

    Raises:
        SourceError: If the file cannot be read, or a line has no prompt that is a text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: expected a file of JSON lines, got: {error}") from error
    found: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{path}:{number}: expected an object with 'prompt'") from error
        if not isinstance(prompt, str):
            raise SourceError(
                f"{path}:{number}: expected a text as prompt, got {type(prompt).__name__}"
            )
        found[prompt] = None
    if not found:
        raise SourceError(f"{path}: expected prompts, the file has none")
    return list(found)


def generator_of(*seeds: int) -> torch.Generator:
    """Return a generator that depends on these numbers alone."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@torch.no_grad()  # inference mode's tensors could not be trained on
def draw(
    policy: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    generator: torch.Generator,
) -> tuple[Completions, Tensor]:
    """Return a completion of each prompt and the log-probs of its tokens.

    Nothing is cut off the distribution: temperature 1, no top-k, no top-p. A completion ends with
    the token that ends it, or after ``max_new_tokens``.

    Args:
        policy: The model to draw from.
        prompts: Ids, [N]; a prompt that comes twice gets two completions.
        max_new_tokens: Of a completion.
        generator: Of the draws.

    Returns:
        The completions, and float32 [N, T], 0 at padding.
    """
    batch = Completions.of(prompts, [[0]] * len(prompts))  # a column that is cut again
    before = batch.num_prompt_columns
    ends = torch.tensor(policy.ends)
    mask, position = batch.mask[:, :before], batch.positions[:, before]
    cache = transformers.DynamicCache(config=policy.model.config)
    inputs, positions = batch.ids[:, :before], batch.positions[:, :before]
    tokens = torch.zeros(len(batch), max_new_tokens, dtype=torch.long)
    logps = torch.zeros(len(batch), max_new_tokens)
    is_token = torch.zeros(len(batch), max_new_tokens, dtype=torch.long)
    alive = torch.arange(len(batch))  # rows of the cache
    for column in range(max_new_tokens):
        found = policy.model(
            input_ids=inputs, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        log_probs = found.logits[:, -1].float().log_softmax(dim=-1)
        drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
        tokens[alive, column] = drawn[:, 0]
        logps[alive, column] = log_probs.gather(1, drawn)[:, 0]
        is_token[alive, column] = 1
        stay = (~torch.isin(drawn[:, 0], ends)).nonzero()[:, 0]
        if not len(stay):
            break
        if len(stay) < len(alive):  # a completion that has ended costs nothing more
            cache.batch_select_indices(stay)
        alive, mask = alive[stay], mask[stay]
        mask = torch.cat([mask, mask.new_ones(len(stay), 1)], dim=1)
        inputs, positions = drawn[stay], position[alive][:, None] + column
    used = int(is_token.any(dim=0).sum())
    whole = Completions(
        ids=torch.cat([batch.ids[:, :before], tokens[:, :used]], dim=1),
        mask=torch.cat([batch.mask[:, :before], is_token[:, :used]], dim=1),
        num_prompt_columns=before,
    )
    return whole, logps[:, :used]


def token_logps(model: nn.Module, completions: Completions) -> tuple[Tensor, Tensor]:
    """Return log-prob and entropy of each token of the completions, float32 [N, T], 0 at padding.

    Args:
        model: A causal language model of transformers.
        completions: What to score.
    """
    length = completions.tokens.shape[1]
    logits = model(
        input_ids=completions.ids, attention_mask=completions.mask,
        position_ids=completions.positions, logits_to_keep=length + 1, use_cache=False,
    ).logits[:, :-1]  # fmt: skip
    log_probs = logits.float().log_softmax(dim=-1)  # [N, T, V]
    logps = log_probs.gather(2, completions.tokens[..., None])[..., 0]
    entropies = -(log_probs.detach().exp() * log_probs.detach()).sum(dim=-1)
    is_token = completions.is_token
    return logps.where(is_token, 0.0), entropies.where(is_token, 0.0)


@torch.no_grad()
def all_token_logps(model: nn.Module, completions: Completions) -> Tensor:  # [N, T]
    """Return `token_logps` of any number of completions, without gradients."""
    found = torch.zeros(completions.tokens.shape)
    for members in chunks(completions):
        part = completions.rows(members)
        logps, _ = token_logps(model, part)
        found[members, : logps.shape[1]] = logps
    return found


def chunks(completions: Completions) -> Sequence[Tensor]:
    """Return the numbers of all rows, in parts that fit a forward pass without gradients."""
    return torch.split(torch.arange(len(completions)), ROWS_PER_FORWARD)


def measure(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[str],
    rewards: RewardSum,
    *,
    beta: float,
    num_samples: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """Return what a policy earns and how far it is from its reference, from fresh samples.

    With w = reference / policy * e^(score / beta), E[w] under the policy is Z, and beta log Z is
    the objective's maximum for one prompt: the estimate is the mean over prompts. It misses what
    the policy never writes, and only then it is much too small.

    Args:
        policy: What is measured.
        reference: The model that it was trained from.
        prompts: Each gets as many samples as the others, or one more.
        rewards: What to measure.
        beta: Price of a nat in the objective.
        num_samples: Completions in all.
        max_new_tokens: Of a completion.
        seed: Of the draws.

    Returns:
        ``kl`` (nats per completion, the mean log-ratio), ``rewards`` by name, ``tokens`` and
        ``objective``, each as a mean with its standard error; ``best_objective``, an estimate;
        ``num_samples``.
    """
    ids = policy.prompt_ids(prompts, room=max_new_tokens)
    numbers = [i % len(prompts) for i in range(num_samples)]
    completions, _ = draw(
        policy, [ids[i] for i in numbers], max_new_tokens=max_new_tokens,
        generator=generator_of(seed),
    )  # fmt: skip
    logratios = all_token_logps(policy.model, completions).double().sum(dim=1)
    logratios -= all_token_logps(reference.model, completions).double().sum(dim=1)
    found = rewards.by_name([prompts[i] for i in numbers], policy.texts(completions))
    earned = rewards.total(found).double() - beta * logratios
    best = [
        float(each.logsumexp(dim=0)) - math.log(len(each))
        for each in (earned[i :: len(prompts)] / beta for i in range(len(prompts)))
        if len(each)
    ]
    return {
        "kl": mean_and_error(logratios),
        "rewards": {name: mean_and_error(values) for name, values in found.items()},
        "objective": mean_and_error(earned),
        "best_objective": beta * sum(best) / len(best),
        "tokens": mean_and_error(completions.is_token.sum(dim=1)),
        "num_samples": num_samples,
    }


def mean_and_error(values: Tensor) -> tuple[float, float]:  # [N]
    """Return the mean and its standard error; 0 for one value."""
    error = float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.double().mean()), error
