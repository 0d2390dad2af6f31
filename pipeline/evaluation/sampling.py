"""Draw completions from a policy, reproducibly: transformers' own ``generate``, in batches.

Letters: N prompts.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offpref.pipeline.pairs.sequences import Ids
from offpref.pipeline.tokenization.completion_texts import CompletionTexts

from .end_tokens import end_tokens
from .settings import SampleSettings


class Sampler:
    """Draws completions of prompts given as ids; a batch depends on its seed alone."""

    def __init__(
        self,
        model_dir: Path,
        settings: SampleSettings,
        *,
        limit: int | None = None,
        device: str | None = None,
        precision: str = "float32",
    ) -> None:
        """Load a model.

        Args:
            model_dir: A model with its tokenizer, in Hugging Face form.
            settings: How to draw.
            limit: The model's positions; None for no limit.
            device: As torch names it; None for a GPU if there is one.
            precision: ``float32``, ``bf16`` or ``bf16-autocast``.
        """
        from transformers import AutoTokenizer

        from offpref.pipeline.models.devices import default_device
        from offpref.pipeline.models.loading import load_scoring_model

        tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self.tokenizer = tokenizer
        self.texts_of = CompletionTexts(tokenizer)
        """Turns the ids of completions into texts."""
        self._settings, self._limit, self._precision = settings, limit, precision
        self._device = default_device(device)
        loaded = load_scoring_model(
            model_dir,
            precision=precision,  # type: ignore[arg-type] # checked there
            device=self._device,
            check=False,
        )
        self._model = loaded.model
        self._ends = end_tokens(model_dir, tokenizer.eos_token_id)
        # Other settings of its file (a repetition penalty, banned tokens) are not the policy's.
        self._model.generation_config = type(self._model.generation_config)()

    def draw(self, prompts: Sequence[NDArray[np.int32]], *, batch: int) -> list[tuple[Ids, bool]]:
        """Return a completion's ids for each prompt, and whether it ended with an end token.

        Args:
            prompts: Ids of the prompts, [N]; a repeated prompt gets several completions.
            batch: Number of the batch; with the settings' seed it seeds the draws.
        """
        import torch

        most, limit = self._settings.max_new_tokens, self._limit
        rooms = [most if limit is None else min(most, limit - len(each)) for each in prompts]
        found: dict[int, tuple[Ids, bool]] = {}
        devices = [self._device] if self._device.type == "cuda" else []
        seed = np.random.SeedSequence((self._settings.seed, batch))
        with torch.random.fork_rng(devices=devices), torch.inference_mode(), self._autocast():
            torch.manual_seed(int(seed.generate_state(1)[0]))
            for room in sorted(set(rooms)):  # a long prompt takes no room from the others
                members = [i for i, each in enumerate(rooms) if each == room]
                ids = self._generate([prompts[i] for i in members], room)
                found |= dict(zip(members, map(self._cut, ids), strict=True))
        return [found[i] for i in range(len(prompts))]

    def texts(self, prompts: Sequence[str]) -> list[list[str]]:
        """Return the settings' number of completions of each prompt, without control tokens.

        All draws use one seed: the same prompts and batch size give the same completions.

        Args:
            prompts: The prompts, [N].
        """
        import torch

        each, size = self._settings.num_samples, self._settings.batch_size
        ids = [np.asarray(self.tokenizer(prompt).input_ids, np.int32) for prompt in prompts]
        repeated = [prompt for prompt in ids for _ in range(each)]
        texts: list[str] = []
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode(), self._autocast():
            torch.manual_seed(self._settings.seed)
            for start in range(0, len(repeated), size):
                drawn = self._generate(
                    repeated[start : start + size], self._settings.max_new_tokens
                )
                cut = [self._cut(completion)[0] for completion in drawn]
                texts += self.texts_of(cut)
        return [texts[i : i + each] for i in range(0, len(texts), each)]

    def _generate(self, prompts: Sequence[NDArray[np.int32]], room: int) -> NDArray[np.int64]:
        """Return what the model writes after each prompt, padded where a completion ends."""
        import torch
        import transformers

        make_config: Any = transformers.GenerationConfig  # untyped
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # a completion begins right after its prompt
            ids[row, longest - len(prompt) :] = torch.from_numpy(np.asarray(prompt, np.int64))
            mask[row, longest - len(prompt) :] = 1
        settings = self._settings
        choice: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            choice = {
                "do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p,
                "top_k": 0,
            }  # fmt: skip
        config = make_config(
            **choice, max_new_tokens=room, eos_token_id=self._ends or None,
            pad_token_id=self._ends[0] if self._ends else 0,
        )  # fmt: skip
        found = self._model.generate(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device),
            generation_config=config,
        )  # fmt: skip
        whole: NDArray[np.int64] = found[:, longest:].cpu().numpy()
        return whole

    def _cut(self, ids: Ids) -> tuple[Ids, bool]:
        """Return a completion up to and including the token that ends it, and whether one does."""
        ends = np.flatnonzero(np.isin(ids, self._ends))
        return (ids[: ends[0] + 1], True) if len(ends) else (ids, False)

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        if self._precision != "bf16-autocast":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)
