"""Turn the rows of a source into sequences: rendered, tokenised, checked, truncated and keyed.

A row that cannot be used gets its reason in ``Examples.problem``; no row is dropped here.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offpref.pipeline.pairs.sequences import Ids, Sequence, Span
from offpref.pipeline.tokenization.chat_templates import NO_INPUTS, Message, TemplateInputs
from offpref.pipeline.tokenization.common_beginning import common_length
from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.pipeline.tokenization.turns import Turn, completion_turns
from offpref.stores import keys
from offpref.stores.errors import SourceError

from .examples import Examples, as_text, prompt_text
from .messages import is_empty_message

KEEP_END = "keep-end"
"""The truncation that cuts off the beginning of the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """Prompt and completion as they are tokenised."""

    prompt: str
    completion: str
    whole: str | None = None
    """Both together, where the completion does not simply follow its prompt."""
    turns: tuple[Turn, ...] = ()
    """Whose turn the characters of a rendered completion are; empty for texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prompt:
    """The ids of a prompt, and why they do not spell it; None if they do."""

    ids: list[int]
    tail: list[int]
    """Of its end alone."""
    difference: str | None


class Encoder:
    """Turns examples into sequences, with one tokenizer and one truncation rule."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int | None, truncation: str) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._truncation = truncation
        # Both sides of a chunk have the same prompts, which are its longest texts.
        self._examples: Examples | None = None
        self._prompts: dict[str, _Prompt] = {}
        self._rendered: dict[tuple[int, bool], str] = {}  # by the number of the row
        self._sides: dict[str, tuple[dict[int, Written], dict[int, tuple[Any, Any]]]] = {}

    def sequences(self, examples: Examples, side: str) -> dict[int, Sequence]:
        """Tokenise one side of the chunk; reasons for unusable rows go to ``examples.problem``."""
        if examples is not self._examples:
            self._examples, self._prompts, self._rendered = examples, {}, {}
            self._sides.clear()
        longest: dict[int, int] = {}
        if self._truncation == KEEP_END and self._max_length is not None:
            if examples.form.is_list:
                raise SourceError(
                    f"--truncation {KEEP_END} cuts the prompt of a pair, the data holds lists: "
                    "expected drop or keep-start"
                )
            for each in ("chosen", "rejected"):  # the prompt is cut for the longer of both
                for i, (_, completion) in self._encoded(examples, each)[1].items():
                    longest[i] = max(longest.get(i, 0), len(np.asarray(completion)))
        written, ids = self._encoded(examples, side)
        ids = {i: each for i, each in ids.items() if examples.problem[i] is None}
        kept = self._keep(examples, side, ids, longest)
        if examples.form.value != "ids":
            self._describe(kept, written, ids)
        for i in kept.keys() & longest.keys():
            if len(np.asarray(ids[i][0])) > kept[i].num_prompt_tokens:
                kept[i].findings = (*kept[i].findings, CUT)
        return kept

    def _encoded(
        self, examples: Examples, side: str
    ) -> tuple[dict[int, Written], dict[int, tuple[Any, Any]]]:
        """Return what is tokenised of a side, and the ids of prompts and completions; once."""
        if side not in self._sides:
            values = examples.chosen if side == "chosen" else examples.rejected
            rows = [
                i for i, value in enumerate(values)
                if examples.problem[i] is None and value is not None
            ]  # fmt: skip
            if examples.form.value == "ids":
                self._sides[side] = {}, {i: (examples.prompt[i], values[i]) for i in rows}
            else:
                written = self._written(examples, side, values, rows)
                is_text = examples.form.value == "text"
                self._sides[side] = written, dict(self._ids(written, is_text=is_text))
        return self._sides[side]

    def _written(
        self, examples: Examples, side: str, values: list[object], rows: list[int]
    ) -> dict[int, Written]:
        """Return prompt and completion of each usable row as text."""
        written = {}
        for i in rows:
            prompt, completion = examples.prompt[i], values[i]
            if isinstance(prompt, list) and isinstance(completion, list):
                if not completion or is_empty_message(completion[-1]):
                    examples.problem[i] = f"{side}: empty completion"
                    continue
                try:
                    inputs = examples.inputs[i] or NO_INPUTS
                    written[i] = self._render(i, prompt, completion, inputs)
                except ValueError as error:
                    examples.problem[i] = str(error)
                    continue
            else:
                written[i] = Written(prompt=str(prompt), completion=str(completion))
            if not written[i].completion.strip():
                examples.problem[i] = f"{side}: empty completion"
        return {i: texts for i, texts in written.items() if examples.problem[i] is None}

    def _render(
        self,
        number: int,
        prompt: list[Message],
        completion: list[Message],
        inputs: TemplateInputs,
    ) -> Written:
        """Return prompt and completion, lists of messages, as the chat template writes them.

        Args:
            number: Of the example, whose other side has the same prompt.
            prompt: The messages before the completion.
            completion: The completion's messages.
            inputs: What the template is given besides.

        Raises:
            ValueError: If the template refuses the messages, or writes nothing for a completion.
        """
        template = self._tokenizer.template

        def write(messages: Iterable[Message], prompts: bool) -> str:
            return template.text(list(messages), inputs, prompts=prompts)

        key = number, completion[0].get("role") == "assistant"
        before = self._rendered.get(key)
        if before is None:
            before = self._rendered[key] = write(prompt, key[1])
        whole = write([*prompt, *completion], False)
        is_split = whole.startswith(before)
        start = len(before) if is_split else common_length(before, whole)
        said = str(prompt[-1].get("content") or "").strip()
        if not is_split and said in before and said not in whole[:start]:
            raise ValueError("chat template: writes another prompt before a completion")
        turns = completion_turns(write, prompt, completion, whole, start)
        if is_split:
            return Written(prompt=before, completion=whole[start:], turns=tuple(turns))
        # The whole is tokenised, so turns are counted from its beginning; the first one takes a
        # token that begins before the place where the texts part.
        shifted = [Turn(turn.start + start, turn.end + start, turn.role) for turn in turns]
        shifted[0] = Turn(0, shifted[0].end, shifted[0].role)
        return Written(prompt=before, completion=whole, whole=whole, turns=tuple(shifted))

    def _ids(
        self, written: Mapping[int, Written], *, is_text: bool
    ) -> dict[int, tuple[list[int], list[int]]]:
        """Return the ids of prompt and completion of each row."""
        plain = {i: each for i, each in written.items() if each.whole is None}
        parted = {i: each for i, each in written.items() if each.whole is not None}
        tokenizer = self._tokenizer
        self._encode_prompts([each.prompt for each in plain.values()], is_text=is_text)
        encode = tokenizer.completion_ids if is_text else tokenizer.rendered_completion_ids
        completion_ids = encode([each.completion for each in plain.values()])
        found = {
            i: (self._prompts[each.prompt].ids, ids)
            for (i, each), ids in zip(plain.items(), completion_ids, strict=True)
        }
        if parted:
            prompts = [each.prompt for each in parted.values()]
            wholes = [str(each.whole) for each in parted.values()]
            found |= zip(parted, tokenizer.parted_ids(prompts, wholes), strict=True)
        return dict(sorted(found.items()))

    def _encode_prompts(self, prompts: Iterable[str], *, is_text: bool) -> None:
        """Tokenise the prompts that the chunk's other side did not have."""
        new = [each for each in dict.fromkeys(prompts) if each not in self._prompts]
        tokenizer = self._tokenizer
        encode = tokenizer.prompt_ids if is_text else tokenizer.rendered_prompt_ids
        for prompt, ids, tail in zip(new, encode(new), tokenizer.tail_ids(new), strict=True):
            difference = tokenizer.difference(ids, prompt, is_prompt=True)
            self._prompts[prompt] = _Prompt(ids=ids, tail=tail, difference=difference)

    def _describe(
        self,
        kept: Mapping[int, Sequence],
        written: Mapping[int, Written],
        ids: Mapping[int, tuple[list[int], list[int]]],
    ) -> None:
        """Add to sequences whose turns they hold, and what is to be counted of them."""
        plain = [i for i in kept if written[i].whole is None]
        prompts = [written[i].prompt for i in plain]
        merges = self._tokenizer.merges(
            prompts,
            [self._prompts[each].tail for each in prompts],
            [written[i].completion for i in plain],
            [ids[i][1][0] for i in plain],
        )
        for i, merged in zip(plain, merges, strict=True):
            prompt, completion = written[i].prompt, written[i].completion
            kept[i].merges = merged
            own = self._tokenizer.difference(ids[i][1], completion, is_prompt=False)
            if own and self._tokenizer.decode_together(*ids[i], prompt, completion):
                own = None
            kept[i].findings = _findings(self._prompts[prompt].difference, own)
        for i, each in kept.items():
            num_tokens = len(each.ids) - each.num_prompt_tokens
            each.spans = self._spans(written[i], len(ids[i][1]), num_tokens)
            if written[i].whole is not None:
                each.findings = (PARTED,)
            if any(span.role == "unknown" for span in each.spans):
                each.findings = (*each.findings, UNTOLD_TURNS)

    def _spans(self, written: Written, num_whole: int, num_tokens: int) -> tuple[Span, ...]:
        """Return the tokens of each turn, of the ``num_tokens`` that truncation left."""
        turns = written.turns
        if len(turns) <= 1:
            return tuple(Span(start=0, end=num_tokens, role=turn.role) for turn in turns)
        starts = self._tokenizer.token_starts(written.completion, num_whole)
        found = []
        before = 0  # where the turn before ends, in characters
        for turn in turns:
            start, end = bisect_left(starts, turn.start), bisect_left(starts, turn.end)
            # A token may begin in what the template writes between turns, such as a space.
            if (
                start
                and starts[start - 1] >= before
                and turn.start not in starts[start : start + 1]
            ):
                start = bisect_left(starts, starts[start - 1])
            before = turn.end
            if start < (end := min(end, num_tokens)):
                found.append(Span(start=start, end=end, role=turn.role))
        return tuple(found)

    def _keep(
        self,
        examples: Examples,
        side: str,
        ids: Mapping[int, tuple[object, object]],
        longest: Mapping[int, int],
    ) -> dict[int, Sequence]:
        """Check, truncate and key the ids of each row.

        ``longest`` has the tokens of the longer completion, where the prompt is to be cut for it.
        """
        values = examples.chosen if side == "chosen" else examples.rejected
        kept = {}
        for i, (prompt, completion) in ids.items():
            prompt_ids = np.asarray(prompt, np.int64)
            completion_ids = np.asarray(completion, np.int64)
            problem = self._id_problem(prompt_ids, completion_ids, side)
            if problem is None and i in longest:
                prompt_ids, problem = self._cut(prompt_ids, longest[i])
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
            )
        return kept

    def _cut(self, prompt: Ids, num_completion: int) -> tuple[Ids, str | None]:
        """Return the end of a prompt that fits before a completion, and what is wrong if none does.

        A token that begins every sequence stays.
        """
        assert self._max_length is not None  # the caller has looked
        room = self._max_length - num_completion
        num_head = int(prompt[0] == self._tokenizer.bos_token_id)
        if room >= len(prompt):
            return prompt, None
        if room <= num_head:
            return prompt, "completion: longer than the limit without its prompt"
        return np.concatenate([prompt[:num_head], prompt[len(prompt) - room + num_head :]]), None

    def _id_problem(self, prompt: Ids, completion: Ids, side: str) -> str | None:
        if not len(prompt):
            return "prompt: no token ids"
        if not len(completion):
            return f"{side}: empty completion"
        if max(prompt.max(), completion.max()) >= self._tokenizer.size:
            return f"{side}: a token id beyond the tokenizer's"
        return None


PARTED = "completions that begin where the ids of prompt and whole part"
"""The template writes the prompt differently before a completion."""
CUT = "prompts that lost their beginning to truncation"
UNTOLD_TURNS = "completions of which the template does not tell whose turn a token is"
NOT_SPELLED = "do not decode to their text:"


def _findings(prompt: str | None, completion: str | None) -> tuple[str, ...]:
    found = {"prompts": prompt, "completions": completion}
    return tuple(f"{name} that {NOT_SPELLED} {why}" for name, why in found.items() if why)


def _text_key(examples: Examples, i: int, completion: object) -> bytes | None:
    """Return the key of the row's text; None where the source gives ids."""
    if examples.form.value == "ids":
        return None
    return keys.text_key(prompt_text(examples, i), as_text(completion), examples.text_form)
