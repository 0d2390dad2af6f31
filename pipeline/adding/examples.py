"""Split the rows of a source into prompts and completions, as its form says.

A row gives one example; a grid gives one for each of its pairs, a list one for each completion, and
a tie that is kept two. Each has the number of its row, and the reason where it cannot be used.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from offpref.pipeline.tokenization.chat_templates import TemplateInputs
from offpref.stores.keys import canonical_json

from .forms import Form
from .messages import Messages, after_first_prompt, kind_name, parted, read_messages
from .row_parts import RowParts, number_of
from .settings import FIRST, SECOND, TIE

LAST_TURN = "\n\nAssistant:"
TRUE, FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}
WINNERS: Mapping[str, str] = {
    **dict.fromkeys(("a", "model_a", "response_a", "first", "left", "a>b"), FIRST),
    **dict.fromkeys(("b", "model_b", "response_b", "second", "right", "b>a"), SECOND),
    **dict.fromkeys(("tie", "tie (bothbad)", "both", "draw", "equal", "same", "a=b"), TIE),
}
"""Words that say which of two completions is better."""
TIED = "winner: a tie"
NO_SCORE = "no score"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a user said of how rows are read."""

    winners: Mapping[str, str] = field(default_factory=dict)
    """Which completion each value of the winner's column names; empty for the usual words."""
    keeps_ties: bool = False
    """Whether a tie is two pairs of half the weight."""
    is_trajectory: bool = False
    """Whether a completion is everything after a conversation's first prompt."""


@dataclass(kw_only=True, slots=True)
class Examples:
    """Rows of a source, split into parts; parallel lists with one entry per example."""

    source_row: list[int]
    row: list[str]
    rest: list[str | None]
    problem: list[str | None]
    prompt: list[object]
    chosen: list[object]
    rejected: list[object]
    split: list[str | None]
    weight: list[float]
    form: Form
    inputs: list[TemplateInputs | None]
    """What the template is given besides the messages."""
    score: list[float | None] = field(default_factory=list)
    """Of the completion, which is the chosen one; for lists."""
    begins_list: list[bool] = field(default_factory=list)
    """Whether the example is the first of a list; for lists."""
    prompt_texts: dict[int, str] = field(default_factory=dict)
    """What `prompt_text` has returned, by example: both sides and the table ask for it."""
    text_form: str = field(init=False)

    def __post_init__(self) -> None:
        self.text_form = "messages" if self.form.value == "messages" else "text"

    def first(self, number: int) -> "Examples":
        """Return the first examples."""
        kept = range(min(number, len(self.problem)))
        found = _repeated(self, kept)
        found.score, found.begins_list = self.score[:number], self.begins_list[:number]
        return found


def read_examples(rows: pa.Table, form: Form, options: ReadOptions = ReadOptions()) -> Examples:
    """Return the rows split into parts, each with the problem that makes it unusable, if any.

    Args:
        rows: As `stores.sources.read_rows` yields them.
        form: As `find_form` found it.
        options: What the user said of how rows are read.
    """
    return _Reader(rows, form, options).read()


def as_text(value: object) -> str:
    """Return a prompt or completion as the ``texts`` table keeps it: text, or messages as JSON."""
    return value if isinstance(value, str) else canonical_json(value)


def prompt_text(examples: Examples, i: int) -> str:
    """Return a prompt as the ``texts`` table keeps it, with what else its template is given."""
    if i not in examples.prompt_texts:
        examples.prompt_texts[i] = _prompt_text(examples, i)
    return examples.prompt_texts[i]


def _prompt_text(examples: Examples, i: int) -> str:
    inputs = examples.inputs[i]
    if inputs is None or examples.text_form != "messages":
        return as_text(examples.prompt[i])
    whole: dict[str, object] = {"messages": examples.prompt[i]}
    if inputs.tools is not None:
        whole["tools"] = list(inputs.tools)
    if inputs.arguments:
        whole["chat_template_kwargs"] = dict(inputs.arguments)
    return canonical_json(whole)


class _Reader(RowParts):
    """Reads one table of rows."""

    def __init__(self, rows: pa.Table, form: Form, options: ReadOptions) -> None:
        super().__init__(rows, form)
        self._options = options
        self._is_tied: list[bool] = []

    def read(self) -> Examples:
        form = self.form
        if form.is_list:
            return self._lists()
        if form.name == "grid":
            return self._grid()
        inputs = self.inputs()
        weights = self.weights()
        if "compared" in form.name:
            prompts, chosen, rejected = self._compared()
        else:
            prompts, chosen, rejected = self._sides()
        found = self._examples(prompts, chosen, rejected, weights, inputs)
        return self._with_ties(found) if "compared" in form.name else found

    def _examples(
        self,
        prompts: list[object],
        chosen: list[object],
        rejected: list[object],
        weights: list[float],
        inputs: list[TemplateInputs | None],
    ) -> Examples:
        splits = self.raw("split")
        return Examples(
            source_row=self.rows["source_row"].to_pylist(),
            row=self.rows["row"].to_pylist(),
            rest=self.taken["rest"].to_pylist(),
            problem=self.problem,
            prompt=prompts,
            chosen=chosen,
            rejected=rejected,
            split=[None if name is None else str(name) for name in splits],
            weight=weights,
            form=self.form,
            inputs=inputs,
        )

    # Forms of pairs.

    def _sides(self) -> tuple[list[object], list[object], list[object]]:
        """Return prompts, chosen and rejected completions; None if a row lacks that side."""
        name = self.form.name
        if name == "pairs":
            prompts, (chosen, rejected) = self._prompts_before("chosen", "rejected")
            return prompts, chosen, rejected
        if name == "implicit pairs":
            prompts, chosen, rejected = self._shared(self.part("chosen"), self.part("rejected"))
            return self.extended(prompts), chosen, rejected
        empty: list[object] = [None] * self.num_rows
        prompts, completions = self._demonstrations()
        if name == "demonstrations":
            return prompts, completions, empty
        chosen, rejected = list(empty), list(empty)
        for i, label in enumerate(self.raw("label")):
            if (word := str(label).strip().lower()) in TRUE:
                chosen[i] = completions[i]
            elif word in FALSE:
                rejected[i] = completions[i]
            else:
                self.set_problem(i, "label: expected true or false")
        return prompts, chosen, rejected

    def _prompts_before(self, *parts: str) -> tuple[list[object], list[list[object]]]:
        """Return the prompts, and the completions without the prompt that they may begin with."""
        prompts = self.plain_prompts()
        sides = [self.part(part) for part in parts]
        if self.form.value != "messages":
            return self.extended(prompts), sides
        for part, side in zip(parts, sides, strict=True):
            for i, (prompt, turns) in enumerate(zip(prompts, side, strict=True)):
                if not (isinstance(prompt, list) and isinstance(turns, list)):
                    continue
                if prompt and turns[: len(prompt)] == prompt:
                    side[i] = turns = turns[len(prompt) :]
                if turns and turns[0].get("role") in ("user", "system"):
                    role = turns[0]["role"]
                    self.set_problem(i, f"{part}: begins with a turn of the {role}")
        return self.extended(prompts), sides

    def _demonstrations(self) -> tuple[list[object], list[object]]:
        """Return prompts and completions; a single conversation is split before its last turn."""
        if "completion" in self.form.columns:
            given, (answers,) = self._prompts_before("completion")
            return given, answers
        prompts: list[object] = []
        completions: list[object] = []
        for i, messages in enumerate(self.part("conversation")):
            turns: Messages = messages if isinstance(messages, list) else []
            if len(turns) < 2 or turns[-1]["role"] != "assistant":
                self.set_problem(
                    i, "messages: expected a conversation that ends with the assistant's turn"
                )
            halves = (turns[:-1], turns[-1:])
            if self._options.is_trajectory:
                halves = after_first_prompt(turns)
                if not halves[0]:
                    self.set_problem(i, "messages: expected a prompt before the assistant's turn")
            prompts.append(halves[0])
            completions.append(halves[1])
        return self.extended(prompts), completions

    def _shared(
        self, chosen: list[object], rejected: list[object]
    ) -> tuple[list[object], list[object], list[object]]:
        """Part each two dialogues into their common prompt and two completions."""
        prompts: list[object] = []
        chosen_ends: list[object] = []
        rejected_ends: list[object] = []
        for i, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
            halves: tuple[object, object, object] | None = None
            if isinstance(one, str) and isinstance(other, str):
                halves = _shared_text(one, other)
            elif isinstance(one, list) and isinstance(other, list) and one and other:
                halves = _parted_early(one, other) if self._options.is_trajectory else None
                halves = halves or parted(one, other)
            elif self.form.value == "ids":
                self.set_problem(
                    i, "chosen and rejected: expected a prompt column beside token ids"
                )
            if halves is None:
                what = "the dialogue before the last turn" if isinstance(one, str) else "a prompt"
                self.set_problem(i, f"chosen and rejected do not share {what}")
            prompt, first, second = halves or (None, one, other)
            prompts.append(prompt)
            chosen_ends.append(first)
            rejected_ends.append(second)
        return prompts, chosen_ends, rejected_ends

    def _compared(self) -> tuple[list[object], list[object], list[object]]:
        """Return prompts and both completions, the better one first; ties as they stand there."""
        winners = self._winners()
        if self.form.name == "compared pairs":
            prompts, (first, second) = self._prompts_before("chosen", "rejected")
        else:
            prompts, first, second = self._shared(self.part("chosen"), self.part("rejected"))
            prompts = self.extended(prompts)
        for i, winner in enumerate(winners):
            if winner == SECOND:
                first[i], second[i] = second[i], first[i]
            elif winner == TIE and not self._options.keeps_ties:
                self.set_problem(i, TIED)
        self._is_tied = [winner == TIE for winner in winners]
        return prompts, first, second

    def _winners(self) -> list[str | None]:
        """Return which completion of each row is the better one; None if its value is unknown."""
        if "first_score" in self.form.columns:
            return self._scored_winners()
        known = dict(self._options.winners) or WINNERS
        values = [None if v is None else str(v).strip() for v in self.raw("winner")]
        is_signed = self.form.is_signed and not self._options.winners
        found: list[str | None] = []
        for i, value in enumerate(values):
            winner = None
            if value is not None:  # numbers of a column that has nulls in Parquet are floats
                spelled = (value, value.lower(), value.removesuffix(".0"))
                winner = next((known[each] for each in spelled if each in known), None)
            if is_signed and winner is None and value is not None:
                winner = _sign(value)
            if winner is None:
                names = ", ".join(known) if self._options.winners else "model_a, model_b, tie, ..."
                self.set_problem(
                    i, f"winner: expected one of {names}, got {value!r}; --winner-values names them"
                )
            found.append(winner)
        return found

    def _scored_winners(self) -> list[str | None]:
        """Return which completion of each row has the higher score."""
        found: list[str | None] = []
        scores = zip(self.raw("first_score"), self.raw("second_score"), strict=True)
        for i, (one, other) in enumerate(scores):
            first, second = number_of(one), number_of(other)
            if first is None or second is None:
                self.set_problem(i, "score: expected a number for each of two completions")
                found.append(None)
            else:
                found.append(FIRST if first > second else SECOND if second > first else TIE)
        return found

    def _with_ties(self, found: Examples) -> Examples:
        """Return the examples with each tie twice, the other way round and of half the weight."""
        order = [i for i in range(self.num_rows) for _ in range(1 + self._is_tied[i])]
        if len(order) == self.num_rows:
            return found
        again = _repeated(found, order)
        for place, i in enumerate(order):
            if self._is_tied[i]:
                again.weight[place] /= 2
                if place and order[place - 1] == i:
                    again.chosen[place] = found.rejected[i]
                    again.rejected[place] = found.chosen[i]
        return again

    def _grid(self) -> Examples:
        """Return each pair of each row's chosen with its rejected completions."""
        weights = self.weights()
        prompts = self.prompts()
        chosen, rejected = self._text_lists("chosen"), self._text_lists("rejected")
        found = self._examples(prompts, list(chosen), list(rejected), weights, self.inputs())
        places = [
            (i, one, other)
            for i in range(self.num_rows)
            for one in range(max(1, len(chosen[i])))
            for other in range(max(1, len(rejected[i])))
        ]
        again = _repeated(found, [i for i, _, _ in places])
        for place, (i, one, other) in enumerate(places):
            if found.problem[i] is None:
                again.chosen[place] = self._turn(chosen[i][one])
                again.rejected[place] = self._turn(rejected[i][other])
        return again

    def _text_lists(self, part: str) -> list[list[object]]:
        """Return a part that is a list of texts."""
        found: list[list[object]] = []
        for i, (text, kind) in enumerate(zip(self.raw(part), self.kinds(part), strict=True)):
            values = json.loads(text) if kind == "ARRAY" else []
            if not values or not all(isinstance(each, str) for each in values):
                self.set_problem(i, f"{part}: expected a list of texts, got {kind_name(kind)}")
                values = []
            found.append(values)
        return found

    def _turn(self, text: object) -> object:
        """Return a completion that is a text, as a turn where texts are turns."""
        if self.form.value != "messages":
            return text
        return [{"role": "assistant", "content": text}] if isinstance(text, str) else text

    # Lists.

    def _lists(self) -> Examples:
        weights, inputs = self.weights(), self.inputs()
        prompts = self.prompts()
        empty: list[object] = [None] * self.num_rows
        if self.form.name == "scored rows":
            found = self._examples(prompts, self.part("completion"), empty, weights, inputs)
            found.score = [self._score(value) for value in self.raw("score")]
            found.begins_list = [
                i == 0 or prompt != prompts[i - 1] for i, prompt in enumerate(prompts)
            ]
            return found
        members = [self._members(i) for i in range(self.num_rows)]
        found = self._examples(prompts, list(empty), empty, weights, inputs)
        order = [i for i in range(self.num_rows) for _ in range(max(1, len(members[i])))]
        again = _repeated(found, order)
        again.score, again.begins_list = [], []
        number = 0
        for place, i in enumerate(order):
            is_first = place == 0 or order[place - 1] != i
            number = 0 if is_first else number + 1
            value, score = members[i][number] if members[i] else (None, None)
            again.chosen[place] = value
            again.score.append(score)
            again.begins_list.append(is_first)
        return again

    def _members(self, i: int) -> list[tuple[object, float | None]]:
        """Return completions and scores of a row that is a list; none where it cannot be used."""
        if self.problem[i] is not None:
            return []
        kind = self.kinds("completions")[i]
        values = json.loads(self.raw("completions")[i]) if kind == "ARRAY" else None
        if not isinstance(values, list) or not values:
            self.set_problem(i, f"list: expected a list of completions, got {kind_name(kind)}")
            return []
        text, score = self.form.member or (None, None)
        if score is not None:
            scores = [each.get(score) if isinstance(each, dict) else None for each in values]
        else:
            found = self.raw("score")[i]
            given = json.loads(found) if self.kinds("score")[i] == "ARRAY" else None
            if not isinstance(given, list) or len(given) > len(values):
                self.set_problem(i, "score: expected a list with a score for each completion")
                return []
            scores = [*given, *[None] * (len(values) - len(given))]  # the first ones have scores
        numbers = [self._score(each) for each in scores]
        try:
            return [
                (self._completion(each, text), number)
                for each, number in zip(values, numbers, strict=True)
            ]
        except ValueError as error:
            self.set_problem(i, str(error))
            return []

    def _completion(self, value: object, text: str | None) -> object:
        """Return a member of a list as a completion; None if it has no text."""
        if text is not None:
            value = value.get(text) if isinstance(value, dict) else None
        if value is None:
            return None
        if self.form.value == "messages":
            if isinstance(value, str):
                return self._turn(value)
            return read_messages(canonical_json(value), "ARRAY", "list")
        if not isinstance(value, str):
            raise ValueError("list: expected completions that are texts")
        return value

    def _score(self, value: object) -> float | None:
        """Return a score, higher is better; None if the value is no number."""
        number = number_of(value)
        return -number if number is not None and self.form.is_ranked else number


def _repeated(found: Examples, order: Sequence[int]) -> Examples:
    """Return examples with some of them several times."""

    def take(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in order]

    return Examples(
        source_row=take(found.source_row), row=take(found.row), rest=take(found.rest),
        problem=take(found.problem), prompt=take(found.prompt), chosen=take(found.chosen),
        rejected=take(found.rejected), split=take(found.split), weight=take(found.weight),
        form=found.form, inputs=take(found.inputs),
    )  # fmt: skip


def _sign(value: str) -> str | None:
    number = number_of(value)
    if number is None:
        return None
    return TIE if number == 0 else FIRST if number < 0 else SECOND


def _shared_text(one: str, other: str) -> tuple[str, str, str] | None:
    prompt, turn, completion = one.rpartition(LAST_TURN)
    other_prompt, _, other_completion = other.rpartition(LAST_TURN)
    if not turn or prompt != other_prompt or LAST_TURN not in other:
        return None
    return prompt + turn, completion, other_completion


def _parted_early(one: Messages, other: Messages) -> tuple[object, object, object] | None:
    """Part two dialogues after their first prompt; None if they do not share it."""
    prompt, first = after_first_prompt(one)
    again, second = after_first_prompt(other)
    return (prompt, first, second) if prompt and prompt == again and first and second else None
