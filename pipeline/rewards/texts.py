"""Whole texts as a reward model reads them: prompt and completion in its own tokenizer.

Letters in shape comments: B texts of a batch, L tokens of the longest.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from offpref.pipeline.models.model_files import quiet_transformers
from offpref.pipeline.pairs.completions import template_inputs
from offpref.pipeline.tokenization.chat_templates import ChatTemplate
from offpref.pipeline.tokenization.specs import file_states
from offpref.stores.errors import ModelError
from offpref.stores.keys import canonical_json, fingerprint
from offpref.stores.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """The token that a reward model pads with: it reads a reward from the last other token."""

    id: int
    ends_text: bool
    """Whether a prompt with a completion, both texts, may end with it."""
    ends_messages: bool
    """Whether a chat template may end messages with it."""


def known_padding(folder: Path, store: Store, *, trust_remote_code: bool) -> Padding:
    """Return what a model in a folder pads with; looked up once for each state of its files."""
    identity: dict[str, object] = {
        "folder": str(folder.resolve()),
        "files": file_states(folder),
        "transformers": transformers.__version__,
    }
    if (known := store.recall_identity("padding", identity)) is None:
        found = TextReader(folder, trust_remote_code=trust_remote_code).padding_of_model()
        known = canonical_json(asdict(found))
        store.remember_identity("padding", identity, known)
    return Padding(**json.loads(known))


def code_hash(folder: Path) -> str:
    """Return the hash of the Python code in a model's folder."""
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    return fingerprint(dict(files))


class TextReader:
    """Turns prompts and completions, strings or messages, into ids; never truncates."""

    def __init__(
        self, folder: Path, *, trust_remote_code: bool = False, day: date | None = None
    ) -> None:
        """Load the tokenizer of a model's folder.

        Args:
            folder: The model's.
            trust_remote_code: Whether code in it may run.
            day: What a chat template that asks is told; None tells it today's.

        Raises:
            ModelError: If it cannot be loaded.
        """
        self.folder, self._day = folder, day
        self._trust_remote_code = trust_remote_code
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

    def padding_of_model(self) -> Padding:
        """Return what the model in the folder pads with: what its configuration says, or ours."""
        load: Any = transformers.AutoConfig.from_pretrained  # untyped
        config = load(self.folder, local_files_only=True, trust_remote_code=self._trust_remote_code)
        padding = self.padding if config.pad_token_id is None else int(config.pad_token_id)
        tokenizer = self._tokenizer
        is_special = padding in tokenizer.all_special_ids
        written = str(tokenizer.convert_ids_to_tokens(padding))
        eos = tokenizer.eos_token_id
        return Padding(
            id=padding,
            ends_text=padding == eos or (eos is None and not is_special),
            ends_messages=not is_special or written in json.dumps(tokenizer.chat_template),
        )

    def ids(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[int]]:
        """Return the ids of each text, the end-of-sequence token included."""
        return [self._ids(p, c) for p, c in zip(prompts, completions, strict=True)]

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        if not isinstance(prompt, str):
            messages, inputs = template_inputs(prompt)
            if self._tokenizer.chat_template is None:
                raise ModelError(
                    f"{self.folder}: expected a chat template for messages, its tokenizer has none"
                )
            template = ChatTemplate(self._tokenizer, day=self._day)
            whole = template.text(messages + completion, inputs, prompts=False)
            return list(self._tokenizer(whole, add_special_tokens=False)["input_ids"])
        ids = list(self._tokenizer(prompt + completion)["input_ids"])
        eos = self._tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def padded(texts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:  # [B, L] each
    """Return texts as ids padded on the right, and the mask of all other ids."""
    rows = torch.full((len(texts), max(map(len, texts))), padding, dtype=torch.int64)
    mask = torch.zeros_like(rows)
    for i, each in enumerate(texts):
        rows[i, : len(each)] = torch.tensor(each)
        mask[i, : len(each)] = 1
    return rows, mask
