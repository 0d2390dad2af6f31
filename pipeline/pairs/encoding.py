"""Turn the rows of a source into sequences: rendered, tokenised, checked, truncated and keyed.

A row that cannot be used gets its reason in ``Examples.problem``; no row is dropped here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from offpref.stores import keys
from offpref.stores.schema import SEQUENCES

from .forms import Examples, as_text
from .tokenization import Tokenizer

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(kw_only=True, slots=True)
class Sequence:
    """One completion with its prompt, as the tables store it."""

    key: bytes
    prompt_key: bytes
    text_key: bytes | None
    num_prompt_tokens: int
    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    eos_lost: bool
    merges: bool


class Encoder:
    """Turns examples into sequences, with one tokenizer and one truncation rule."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int | None, truncation: str) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._truncation = truncation

    def sequences(self, examples: Examples, side: str) -> dict[int, Sequence]:
        """Tokenise one side of the chunk; reasons for unusable rows go to ``examples.problem``."""
        values = examples.chosen if side == "chosen" else examples.rejected
        rows = [
            i for i, value in enumerate(values) if examples.problem[i] is None and value is not None
        ]
        if examples.form.value == "ids":
            ids = {i: (examples.prompt[i], values[i]) for i in rows}
            return self._keep(examples, side, ids)
        rendered = self._rendered(examples, side, values, rows)
        rows = list(rendered)
        prompts = [rendered[i][0] for i in rows]
        completions = [rendered[i][1] for i in rows]
        is_text = examples.form.value == "text"
        encode_prompts = (
            self._tokenizer.prompt_ids if is_text else self._tokenizer.rendered_prompt_ids
        )
        encode_completions = (
            self._tokenizer.completion_ids if is_text else self._tokenizer.rendered_completion_ids
        )
        unique = list(dict.fromkeys(prompts))
        prompt_ids = dict(zip(unique, encode_prompts(unique), strict=True))
        completion_ids = encode_completions(completions)
        pairs = zip(rows, prompts, completion_ids, strict=True)
        kept = self._keep(examples, side, {i: (prompt_ids[p], ids) for i, p, ids in pairs})
        merges = self._tokenizer.merges(prompts, completions)
        for i, merged in zip(rows, merges, strict=True):
            if i in kept:
                kept[i].merges = merged
        return kept

    def _rendered(
        self, examples: Examples, side: str, values: list[object], rows: list[int]
    ) -> dict[int, tuple[str, str]]:
        """Return prompt and completion of each usable row as text."""
        rendered = {}
        for i in rows:
            prompt, completion = examples.prompt[i], values[i]
            if isinstance(prompt, list) and isinstance(completion, list):
                try:
                    rendered[i] = self._tokenizer.render(prompt, completion)
                except ValueError as error:
                    examples.problem[i] = str(error)
                    continue
            else:
                rendered[i] = (str(prompt), str(completion))
            if not rendered[i][1].strip():
                examples.problem[i] = f"{side}: empty completion"
        return {i: texts for i, texts in rendered.items() if examples.problem[i] is None}

    def _keep(
        self,
        examples: Examples,
        side: str,
        ids: Mapping[int, tuple[object, object]],
    ) -> dict[int, Sequence]:
        """Check, truncate and key the ids of each row."""
        kept = {}
        values = examples.chosen if side == "chosen" else examples.rejected
        for i, (prompt, completion) in ids.items():
            prompt_ids = np.asarray(prompt, np.int64)
            completion_ids = np.asarray(completion, np.int64)
            problem = self._id_problem(prompt_ids, completion_ids, side)
            length = len(prompt_ids) + len(completion_ids)
            limit = self._max_length or length
            if problem is None and len(prompt_ids) >= limit:
                problem = "prompt: longer than the limit"
            if problem is None and length > limit and self._truncation == "drop":
                problem = f"{side}: longer than the limit with its prompt"
            if problem is not None:
                examples.problem[i] = problem
                continue
            whole = np.concatenate([prompt_ids, completion_ids])[:limit].astype(np.int32)
            kept[i] = Sequence(
                key=keys.sequence_key(whole, len(prompt_ids)),
                prompt_key=keys.prompt_key(whole[: len(prompt_ids)]),
                text_key=_text_key(examples, i, values[i]),
                num_prompt_tokens=len(prompt_ids),
                ids=whole,
                eos_lost=length > limit,
                merges=False,
            )
        return kept

    def _id_problem(self, prompt: Ids, completion: Ids, side: str) -> str | None:
        if not len(prompt):
            return "prompt: no token ids"
        if not len(completion):
            return f"{side}: empty completion"
        if max(prompt.max(), completion.max()) >= self._tokenizer.size:
            return f"{side}: a token id beyond the tokenizer's"
        return None


def sequence_table(sequences: Iterable[Sequence]) -> pa.Table:
    """Return the rows of the table ``sequences``."""
    found = list(sequences)
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum([len(each.ids) for each in found], out=offsets[1:])
    ids = np.concatenate([each.ids for each in found]) if found else np.zeros(0, np.int32)
    prompts = np.array([each.num_prompt_tokens for each in found], np.int32)
    columns = {
        "sequence_key": [each.key for each in found],
        "prompt_key": [each.prompt_key for each in found],
        "text_key": [each.text_key for each in found],
        "num_prompt_tokens": prompts,
        "num_completion_tokens": np.diff(offsets) - prompts,
        "ids": pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(ids), type=SEQUENCES.schema.field("ids").type
        ),
        "eos_lost": [each.eos_lost for each in found],
    }
    return pa.table(columns, schema=SEQUENCES.schema)


def _text_key(examples: Examples, i: int, completion: object) -> bytes | None:
    """Return the key of the row's text; None where the source gives ids."""
    if examples.form.value == "ids":
        return None
    return keys.text_key(as_text(examples.prompt[i]), as_text(completion), examples.text_form)
