"""Whole texts as a reward model reads them: prompt and completion in its own tokenizer.

Letters in shape comments: B texts of a batch, L tokens of the longest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..stores.errors import ModelError
from .model_files import quiet_transformers


class TextReader:
    """Turns prompts and completions, strings or messages, into ids; never truncates."""

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        """Load the tokenizer of a model's folder.

        Raises:
            ModelError: If it cannot be loaded.
        """
        self.folder = folder
        tokenizers: Any = transformers.AutoTokenizer  # untyped
        try:
            with quiet_transformers():
                self._tokenizer: Any = tokenizers.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=trust_remote_code
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"cannot load the tokenizer in {folder}: {reason}") from error

    @property
    def padding(self) -> int:
        """An id to pad with; classifiers look for the last token before it."""
        for token in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def ids(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """Return the ids of each text, the end-of-sequence token included."""
        return [self._ids(p, c) for p, c in zip(prompts, completions, strict=True)]

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, list):
            if self._tokenizer.chat_template is None:
                raise ModelError(
                    f"{self.folder}: expected a chat template for messages, its tokenizer has none"
                )
            whole = self._tokenizer.apply_chat_template(prompt + completion, tokenize=False)
            return list(self._tokenizer(whole, add_special_tokens=False)["input_ids"])
        ids = list(self._tokenizer(prompt + completion)["input_ids"])
        eos = self._tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def padded(texts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:  # [B, L] each
    """Return texts as ids padded on the right, and the mask of what is no padding."""
    rows = torch.full((len(texts), max(map(len, texts))), padding, dtype=torch.int64)
    mask = torch.zeros_like(rows)
    for i, each in enumerate(texts):
        rows[i, : len(each)] = torch.tensor(each)
        mask[i, : len(each)] = 1
    return rows, mask
