"""Train a reward model on a pair set: a scalar head under the Bradley-Terry likelihood.

The loss of a pair is -log sigmoid(r_chosen - r_rejected) (Eq. 2 of arXiv:2305.18290, after Bradley
and Terry), on whole texts as :mod:`reward_models` reads them; the loss of a step is the weighted
sum over its pairs, divided by their number. There is no dropout, in training either. The folder
that comes out is what ``offpref reward --from model`` takes. It appears whole, at the end, or not
at all.

Letters in shape comments: P pairs, N pairs of a step, B texts of a batch.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from offpref.pipeline.models.devices import default_device, keep_freed_memory
from offpref.pipeline.models.fingerprints import max_positions, model_config
from offpref.pipeline.models.folders import copy_tokenizer
from offpref.pipeline.models.model_files import (
    check_tensors,
    language_head,
    quiet_transformers,
    without_dropout,
    without_new_head,
)
from offpref.pipeline.models.out_of_memory import LOAD_ADVICE, clear_memory_errors
from offpref.pipeline.models.random_states import measuring
from offpref.pipeline.models.tensor_files import tensor_errors
from offpref.pipeline.pairs.completions import load_completions, load_texts
from offpref.pipeline.pairs.lists import check_has_pairs
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set, pair_rows
from offpref.pipeline.pairs.step_order import epoch_steps
from offpref.pipeline.progress import Progress
from offpref.stores.errors import ModelError, PairSetError, TrainingError
from offpref.stores.files.placing import whole_folder
from offpref.stores.key_index import Keys, find_keys, to_keys
from offpref.stores.store import Store

from .settings import RewardTrainSettings
from .texts import TextReader, padded


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTrainSummary:
    """What a reward model's training did."""

    pair_set: PairSet
    num_pairs: int
    num_left_out: int
    """Pairs with a text longer than the model's positions."""
    num_steps: int
    first_loss: float
    last_loss: float
    accuracies: dict[str, float]
    """Share of the pairs of each split, by weight, whose chosen text has the higher reward."""
    seconds: float
    output_dir: Path


@dataclass(frozen=True, slots=True)
class _Pairs:
    """P pairs as ids of whole texts, sorted by key."""

    keys: Keys
    chosen: list[list[int]]
    rejected: list[list[int]]
    weights: NDArray[np.float64]
    num_left_out: int


def train_reward(
    store: Store, settings: RewardTrainSettings, progress: Progress | None = None
) -> RewardTrainSummary:
    """Train a reward model and write its folder.

    Raises:
        PairSetError: If the store has no such pair set, or it has no pairs of texts.
        ModelError: If the model cannot be loaded.
        TrainingError: If a loss is not finite.
        StoreWriteError: If the file system refuses.
    """
    progress = progress or Progress()
    started = time.monotonic()
    device = default_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    pair_set = find_pair_set(store, settings.pair_set)
    check_has_pairs(store, pair_set)
    reader = TextReader(settings.model)
    splits = {
        split: _load_pairs(store, pair_set, split, reader) for split in _splits(store, pair_set)
    }
    if "train" not in splits or len(splits["train"].keys) < settings.pairs_per_step:
        raise PairSetError(f"{pair_set}: expected a step's pairs of texts in split train")
    with clear_memory_errors(LOAD_ADVICE):
        model = _load(settings, device, reader)
    advice = f"while training: lower --max-batch-tokens below {settings.max_batch_tokens:,}"
    with clear_memory_errors(advice):
        losses = _run(model, splits["train"], settings, progress)
        accuracies = {split: _accuracy(model, pairs, settings) for split, pairs in splits.items()}
    _write(model, settings, accuracies)
    return RewardTrainSummary(
        pair_set=pair_set,
        num_pairs=len(splits["train"].keys),
        num_left_out=sum(pairs.num_left_out for pairs in splits.values()),
        num_steps=len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        accuracies=accuracies,
        seconds=time.monotonic() - started,
        output_dir=settings.output_dir,
    )


def _run(
    model: nn.Module, pairs: _Pairs, settings: RewardTrainSettings, progress: Progress
) -> list[float]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    lengths = np.array([len(a) + len(b) for a, b in zip(pairs.chosen, pairs.rejected, strict=True)])
    losses: list[float] = []
    num_steps = len(pairs.keys) // settings.pairs_per_step * settings.num_epochs
    model.train()
    for epoch in range(settings.num_epochs):
        steps = epoch_steps(
            pairs.keys, lengths, seed=settings.seed, epoch=epoch,
            pairs_per_step=settings.pairs_per_step,
        )  # fmt: skip
        for members in steps:
            total = 0.0
            for part in _batches(pairs, members.tolist(), settings.max_batch_tokens):
                weighed = -logsigmoid(_margins(model, pairs, part)) * _weights(model, pairs, part)
                loss = weighed.sum() / len(members)
                torch.autograd.backward(loss)
                total += float(loss.detach())
            if not np.isfinite(total):
                raise TrainingError(f"step {len(losses) + 1}: expected a finite loss, got {total}")
            nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(total)
            num_tokens = int(lengths[members].sum())
            progress.step(len(losses), num_steps, num_tokens=num_tokens, values={"loss": total})
    return losses


def _margins(model: nn.Module, pairs: _Pairs, members: list[int]) -> Tensor:  # [n] -> [n]
    """Return r_chosen - r_rejected of some pairs, from one forward pass."""
    texts = [pairs.chosen[i] for i in members] + [pairs.rejected[i] for i in members]
    device = next(model.parameters()).device
    ids, mask = padded(texts, int(model.config.pad_token_id))  # type: ignore[union-attr,arg-type] # transformers'
    rewards: Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0]
    count = len(members)
    return rewards[:count].double() - rewards[count:].double()


def _weights(model: nn.Module, pairs: _Pairs, members: list[int]) -> Tensor:  # [n] -> [n]
    """Return the weights of some pairs, on the model's device."""
    return torch.from_numpy(pairs.weights[members]).to(next(model.parameters()).device)


def _accuracy(model: nn.Module, pairs: _Pairs, settings: RewardTrainSettings) -> float:
    """Return the share of pairs, by weight, that the model orders right; a tie is wrong."""
    right = 0.0
    with measuring(model), torch.no_grad():
        for part in _batches(pairs, list(range(len(pairs.keys))), settings.max_batch_tokens):
            is_right = _margins(model, pairs, part) > 0
            right += float((_weights(model, pairs, part) * is_right).sum())
    total = float(pairs.weights.sum())
    return right / total if total else 0.0


def _batches(pairs: _Pairs, members: list[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield pairs of similar length, within the budget of padded tokens."""

    def longest(i: int) -> int:
        return max(len(pairs.chosen[i]), len(pairs.rejected[i]))

    part: list[int] = []
    for i in sorted(members, key=lambda i: (-longest(i), i)):
        if part and 2 * (len(part) + 1) * longest(part[0]) > max_batch_tokens:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _splits(store: Store, pair_set: PairSet) -> list[str]:
    return sorted(set(pair_rows(store, pair_set, ["split"])["split"].to_pylist()))


def _load_pairs(store: Store, pair_set: PairSet, split: str, reader: TextReader) -> _Pairs:
    columns = ["pair_key", "chosen_key", "rejected_key", "weight"]
    rows = pair_rows(store, pair_set, columns, split=split).drop_null()
    keys = to_keys(rows["pair_key"])
    completions = load_completions(store, pair_set)
    sides: list[list[list[int]]] = []
    for side in ("chosen_key", "rejected_key"):
        places, _ = find_keys(to_keys(rows[side]), completions.sequence_keys)
        texts = completions.text_keys[places]
        if (texts == b"").any():
            raise PairSetError(f"{pair_set}: expected texts, its completions were given as ids")
        sides.append(reader.ids(*load_texts(store, texts)))
    longest = max_positions(model_config(reader.folder))
    fits = [
        i
        for i in np.argsort(keys).tolist()
        if longest is None or max(len(sides[0][i]), len(sides[1][i])) <= longest
    ]
    weights = rows["weight"].to_numpy().astype(np.float64)
    return _Pairs(
        keys[fits], [sides[0][i] for i in fits], [sides[1][i] for i in fits], weights[fits],
        len(keys) - len(fits),
    )  # fmt: skip


def _load(settings: RewardTrainSettings, device: torch.device, reader: TextReader) -> nn.Module:
    auto: Any = transformers.AutoModelForSequenceClassification  # untyped
    torch.manual_seed(settings.seed)  # the new head's weights
    try:
        with quiet_transformers():
            config: Any = transformers.AutoConfig.from_pretrained(
                settings.model, num_labels=1, local_files_only=True
            )
            without_dropout(config)
            model, found = auto.from_pretrained(
                settings.model, config=config, dtype=torch.float32, use_safetensors=True,
                local_files_only=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load a classifier from {settings.model}: {reason}") from error
    found = without_new_head(model, found)
    check_tensors(settings.model, found, without=language_head(settings.model))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if model.config.pad_token_id is None:
        model.config.pad_token_id = reader.padding
    moved: nn.Module = model.to(device)
    return moved


def _write(model: nn.Module, settings: RewardTrainSettings, accuracies: dict[str, float]) -> None:
    with whole_folder(settings.output_dir) as folder, tensor_errors():
        with quiet_transformers():
            model.save_pretrained(folder)  # type: ignore[operator] # transformers' models can
        _write_config(settings.model, folder)
        copy_tokenizer(settings.model, folder)
        note = {"pair_set": settings.pair_set, "accuracies": accuracies}
        text = json.dumps(note, indent=2) + "\n"
        (folder / "reward_model.json").write_text(text, encoding="utf-8")


def _write_config(source: Path, folder: Path) -> None:
    """Put the dropout and the cache back into a written configuration: training had neither."""
    own = transformers.AutoConfig.from_pretrained(source, local_files_only=True).to_dict()
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in list(config):
        if name in own and ("drop" in name or name == "use_cache"):
            config[name] = own[name]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
