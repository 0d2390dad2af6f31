"""Rewards of a reward model: a sequence classifier on whole texts, batched by length.

The model sees prompt and completion as its own tokenizer and template have them, never truncated;
a text longer than the model's positions gets no reward, and is counted.

Letters in shape comments: B texts of a batch, L tokens of the longest, N outputs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from offpref.pipeline.adding.template_days import template_day
from offpref.pipeline.models.devices import default_device
from offpref.pipeline.models.fingerprints import (
    max_positions,
    model_config,
    scorer_spec,
    weight_files,
)
from offpref.pipeline.models.model_files import check_tensors, language_head, quiet_transformers
from offpref.pipeline.models.out_of_memory import clear_memory_errors
from offpref.pipeline.pairs.completions import load_texts
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.progress import Progress
from offpref.pipeline.settings import REWARD_BATCH_TOKENS
from offpref.pipeline.tokenization.tokenizer import tokenizer_spec
from offpref.stores.errors import ModelError
from offpref.stores.key_index import Keys, lookup
from offpref.stores.store import Store

from .former_rewards import remember_rewards, settled_spec
from .settings import RewardSettings
from .sources import Rewards, TextRewards
from .texts import Padding, TextReader, code_hash, known_padding, padded

CHUNK_TEXTS = 4096  # among which texts are grouped by length
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}


class ModelRewards(TextRewards):
    """One output of an ``AutoModelForSequenceClassification``."""

    def __init__(
        self, store: Store, settings: RewardSettings, pair_set: PairSet, only: Keys | None = None
    ) -> None:
        super().__init__(store, settings, pair_set, only)
        assert settings.model is not None
        self._folder = settings.model
        self._precision = settings.precision or "float32"
        self._config = model_config(self._folder)
        self._head = _head(self._folder, self._config, settings.head)
        self.name = self._folder.resolve().name
        self._model: Any = None
        self._reader: Any = None

    def details(self) -> dict[str, object]:
        """Return weights, configuration, tokenizer, template, precision and output."""
        tokenizer = tokenizer_spec(self._folder, self.store)
        spec = scorer_spec(
            self._folder, precision=self._precision, vocabulary=tokenizer.vocabulary,
            store=self.store,
        )  # fmt: skip
        return {
            "weights": spec["weights"],
            "config": spec["config"],
            "tokenizer": tokenizer.without_template(),
            "template": tokenizer.template,
            "precision": self._precision,
            "head": self._head,
        }

    def settled_spec(self) -> dict[str, object]:
        """Return the spec with what else the rewards depend on, where they do."""
        return settled_spec(
            self.store, self.spec(), own=self._own(), usual=self._usual(), compute=self._again
        )

    def remember(self, fingerprint: str) -> None:
        """Keep that the rewards are those of the model as it is now."""
        remember_rewards(self.store, fingerprint, self._own())

    def files(self) -> list[Path]:
        """Return configuration and weights."""
        return [self._folder / "config.json", *weight_files(self._folder)]

    def _own(self) -> dict[str, object]:
        """Return what rewards may depend on beside what a former version named them by."""
        day = template_day(self.pair_set).isoformat() if self._is_dated() else None
        code = code_hash(self._folder) if self.settings.trust_remote_code else None
        return {"pad_token_id": self._padding().id, "template_date": day, "code": code}

    def _usual(self) -> dict[str, object]:
        """Return the same where no reward depends on it: padding that can end no text."""
        padding = self._padding()
        ends = padding.ends_messages if self.pair_set.has_messages else padding.ends_text
        pad_token_id = None if ends else padding.id
        return {"pad_token_id": pad_token_id, "template_date": None, "code": None}

    def _padding(self) -> Padding:
        trust = self.settings.trust_remote_code
        return known_padding(self._folder, self.store, trust_remote_code=trust)

    def _is_dated(self) -> bool:
        return self.pair_set.has_messages and tokenizer_spec(self._folder, self.store).is_dated

    def _again(self, keys: Keys) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the rewards of some texts as the model gives them now."""
        found = Rewards.together(list(self.rewards("text", keys, Progress())))
        return found.rewards[lookup(keys, found.keys)[0]]

    def provenance(self) -> dict[str, object]:
        """Return what is recorded of how the rewards were made, but names none of them."""
        more = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {**super().provenance(), "model": self.name, **more}

    def rewards(self, subject: str, keys: Keys, progress: Progress) -> Iterator[Rewards]:
        """Yield the rewards of some texts; NaN for one that is too long for the model."""
        if not len(keys):
            return
        self._load()
        longest = max_positions(self._config)
        progress.begin("texts")
        for start in range(0, len(keys), CHUNK_TEXTS):
            chunk = keys[start : start + CHUNK_TEXTS]
            ids = self._reader.ids(*load_texts(self.store, chunk))
            fits = np.array([longest is None or len(each) <= longest for each in ids])
            if not fits.all():
                reason = f"longer than the model's {longest} positions"
                self.reasons[reason] = self.reasons.get(reason, 0) + int((~fits).sum())
                progress.advance(int((~fits).sum()), len(keys))
                yield Rewards(chunk[~fits], np.full(int((~fits).sum()), np.nan))
            for members in self._batches(ids, np.flatnonzero(fits)):
                values = self._score([ids[i] for i in members])
                progress.advance(len(members), len(keys))
                yield Rewards(chunk[members], values)

    def _batches(
        self, ids: Sequence[Sequence[int]], numbers: np.ndarray[Any, np.dtype[np.int64]]
    ) -> Iterator[list[int]]:
        """Yield the texts of each batch, longest first, within the budget of padded tokens."""
        budget = self._budget
        batch: list[int] = []
        for number in sorted(numbers.tolist(), key=lambda i: (-len(ids[i]), i)):
            if batch and (len(batch) + 1) * len(ids[batch[0]]) > budget:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    @property
    def _budget(self) -> int:
        """Tokens of a batch."""
        device = next(self._model.parameters()).device.type
        return self.settings.max_batch_tokens or REWARD_BATCH_TOKENS.on(device)

    def _score(self, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float64]]:  # [B]
        device = next(self._model.parameters()).device
        rows, mask = padded(ids, self._model.config.pad_token_id)
        advice = f"while scoring texts: lower --max-batch-tokens below {self._budget:,}"
        with torch.no_grad(), clear_memory_errors(advice):
            logits: Tensor = self._model(
                input_ids=rows.to(device), attention_mask=mask.to(device)
            ).logits
        return logits[:, self._head].double().cpu().numpy()

    def _load(self) -> None:
        auto: Any = transformers.AutoModelForSequenceClassification  # untyped
        options = {
            "local_files_only": True,
            "trust_remote_code": self.settings.trust_remote_code,
        }
        remote = self.settings.trust_remote_code
        self._reader = TextReader(
            self._folder, trust_remote_code=remote, day=template_day(self.pair_set)
        )
        try:
            with quiet_transformers():
                model, found = auto.from_pretrained(
                    self._folder, dtype=_DTYPES[self._precision], use_safetensors=True,
                    output_loading_info=True, **options,
                )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"cannot load the reward model in {self._folder}: {reason}") from error
        if absent := sorted(found["missing_keys"]):
            raise ModelError(
                f"{self._folder} is not a reward model: it lacks {absent[0]}; "
                "expected a sequence classifier"
            )
        head = language_head(self._folder, trust_remote_code=remote)
        check_tensors(self._folder, found, without=head)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._reader.padding
        self._model = model.eval().to(default_device(self.settings.device))


def _head(folder: Path, config: dict[str, Any], head: int | None) -> int:
    """Return which output is meant.

    Raises:
        ModelError: If there is no such output, or several and none is named.
    """
    named = [str(each) for each in config.get("architectures") or ()]
    if named and not any(each.endswith("ForSequenceClassification") for each in named):
        raise ModelError(
            f"{folder} is not a reward model: expected ...ForSequenceClassification, found "
            f"{named[0]}; offpref train-reward makes one"
        )
    labels = config.get("id2label") or {}
    count = len(labels) or int(config.get("num_labels", 2))
    if head is None:
        if count == 1:
            return 0
        names = ", ".join(f"{number} ({name})" for number, name in labels.items())
        raise ModelError(f"{folder} has {count} outputs, choose one with --head: {names or count}")
    if not 0 <= head < count:
        raise ModelError(f"{folder} has {count} outputs, expected --head from 0 on, got {head}")
    return head
