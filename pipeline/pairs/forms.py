"""Find prompts and completions in the rows of a source, for each of the known forms.

    prompt, chosen, rejected        explicit pairs
    chosen, rejected                implicit prompt: dialogues that differ in their last turn
    prompt, completion              demonstrations (chosen alone)
    prompt, completion, label       unpaired: true is chosen alone, false is rejected alone
    messages [, label]              a conversation whose last turn is the completion

Each of prompt and completion is a text, a list of messages (``role``/``content``, or ShareGPT's
``from``/``value``), or a list of token ids. The spellings are TRL's.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from offpref.stores.errors import SourceError
from offpref.stores.keys import canonical_json
from offpref.stores.sources import columns_of, id_lists, row_names

Messages = list[dict[str, object]]

SPELLINGS = {
    "prompt": ("prompt", "prompt_ids", "prompt_input_ids"),
    "chosen": ("chosen", "chosen_ids", "chosen_input_ids"),
    "rejected": ("rejected", "rejected_ids", "rejected_input_ids"),
    "completion": ("completion", "completion_ids", "completion_input_ids"),
    "label": ("label",),
    "conversation": ("messages", "conversations"),
    "split": (),
    "weight": ("weight",),
}
ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}
LAST_TURN = "\n\nAssistant:"
NUMBERS = re.compile(r"\[\s*\d")
TRUE, FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a source names its prompts and completions, and their type."""

    name: str
    """``pairs``, ``implicit pairs``, ``demonstrations`` or ``unpaired``."""

    value: str
    """``text``, ``messages`` or ``ids``."""

    columns: Mapping[str, str]
    """The source's column for each part."""

    def __str__(self) -> str:
        return f"{self.name} ({self.value}): {', '.join(self.columns.values())}"


@dataclass(kw_only=True, slots=True)
class Examples:
    """Rows of a source, split into parts; parallel lists with one entry per row."""

    source_row: list[int]
    row: list[str]
    rest: list[str | None]
    problem: list[str | None]
    prompt: list[object]
    chosen: list[object]
    rejected: list[object]
    split: list[str]
    weight: list[float]
    form: Form
    text_form: str = field(init=False)

    def __post_init__(self) -> None:
        self.text_form = "messages" if self.form.value == "messages" else "text"


def find_form(rows: pa.Table, named: Mapping[str, str]) -> Form:
    """Return the form of a source from a first batch of its rows.

    Args:
        rows: As `stores.sources.read_rows` yields them.
        named: Columns the user named, by part.

    Raises:
        SourceError: If the columns do not have a form that this version knows.
    """
    kinds = row_names(rows)
    if not kinds:
        raise SourceError(f"expected JSON objects, found none in the first {rows.num_rows:,} rows")
    if unknown := sorted(name for name in named.values() if name not in kinds):
        raise SourceError(
            f"expected a column called {unknown[0]!r}, the source has: {', '.join(kinds)}"
        )
    found = {part: named[part] for part in SPELLINGS if part in named}
    for part, spellings in SPELLINGS.items():
        if part not in named and (known := [name for name in spellings if name in kinds]):
            found[part] = known[0]
    name, parts = _parts(found, kinds)
    judged = found[next(p for p in ("chosen", "completion", "conversation") if p in parts)]
    value = _value(rows, judged, kinds[judged])
    columns = {part: found[part] for part in (*parts, "split", "weight") if part in found}
    return Form(name=name, value=value, columns=columns)


def _parts(found: Mapping[str, str], kinds: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the name of the form and the parts it is made of."""
    prompt = "prompt" if "prompt" in found else "conversation" if "conversation" in found else None
    if "chosen" in found and "rejected" in found:
        is_list = kinds[found["chosen"]] == "ARRAY"
        if prompt == "prompt" and is_list and kinds[found["prompt"]] == "VARCHAR":
            prompt = None  # the lists hold the whole conversations, the prompt among them
        if prompt is None:
            return "implicit pairs", ("chosen", "rejected")
        return "pairs", (prompt, "chosen", "rejected")
    label = ("label",) if "label" in found else ()
    form = "unpaired" if label else "demonstrations"
    if prompt is not None and "completion" in found:
        return form, (prompt, "completion", *label)
    if "conversation" in found:
        return form, ("conversation", *label)
    raise SourceError(
        "expected columns prompt/chosen/rejected, chosen/rejected, prompt/completion[/label] or "
        f"messages[/label], got: {', '.join(kinds)}; name them with --prompt-column, "
        "--chosen-column, --rejected-column, --completion-column or --label-column"
    )


def _value(rows: pa.Table, name: str, kind: str) -> str:
    """Return what a column of JSON type ``kind`` holds: text, messages or ids."""
    if kind not in ("ARRAY", "OBJECT"):
        return "text"
    values = columns_of(rows, [name])[f"value/{name}"].drop_null().to_pylist()
    return "ids" if any(NUMBERS.match(value) for value in values) else "messages"


def widened(form: Form, rows: pa.Table) -> Form:
    """Return the form of a source with columns that only appear in a later batch of its rows.

    Raises:
        SourceError: If labels first appear there: they would change what earlier rows mean.
    """
    kinds = row_names(rows)
    if form.name == "demonstrations" and "label" in kinds:
        first = rows["source_row"][0].as_py()
        raise SourceError(
            f"expected a label in every row or in none, got the first ones after row {first}"
        )
    if "weight" in form.columns or "weight" not in kinds:
        return form
    return replace(form, columns={**form.columns, "weight": "weight"})


def read_examples(rows: pa.Table, form: Form) -> Examples:
    """Return the rows split into parts, each with the problem that makes it unusable, if any.

    Args:
        rows: As `stores.sources.read_rows` yields them.
        form: As `find_form` found it.
    """
    taken = columns_of(rows, list(form.columns.values()))
    problem = rows["problem"].to_pylist()
    parts = {part: _part(taken, part, name, form, problem) for part, name in form.columns.items()}
    prompt, chosen, rejected = _assign(parts, form, problem, len(problem))
    splits = parts.get("split", [None] * len(problem))
    return Examples(
        source_row=rows["source_row"].to_pylist(),
        row=rows["row"].to_pylist(),
        rest=taken["rest"].to_pylist(),
        problem=problem,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        split=["train" if name is None else str(name) for name in splits],
        weight=_weights(parts.get("weight"), problem),
        form=form,
    )


def _part(
    taken: pa.Table, part: str, name: str, form: Form, problem: list[str | None]
) -> list[object]:
    """Return one part of every row; if it is not as expected, describe that in ``problem``."""
    values = taken[f"value/{name}"]
    kinds = taken[f"type/{name}"].to_pylist()
    if part in ("label", "split", "weight"):
        return list(values.to_pylist())
    if form.value == "ids":
        lists = id_lists(values).to_pylist()
        for i, ids in enumerate(lists):
            if ids is None and problem[i] is None:
                problem[i] = f"{part}: expected a list of token ids, got {_kind(kinds[i])}"
        return list(lists)
    texts: list[object] = list(values.to_pylist())
    for i, kind in enumerate(kinds):
        if problem[i] is not None:
            continue
        if form.value == "messages":
            try:
                texts[i] = _messages(texts[i], kind, part)
            except ValueError as error:
                problem[i] = str(error)
        elif kind != "VARCHAR":
            problem[i] = f"{part}: expected text, got {_kind(kind)}"
    return texts


def _kind(kind: str | None) -> str:
    """Return the everyday name of a JSON type."""
    if kind is None:
        return "nothing"
    known = {"BOOLEAN": "a boolean", "ARRAY": "a list", "OBJECT": "an object", "NULL": "null"}
    return known.get(kind, "text" if kind == "VARCHAR" else "a number")


def _messages(text: object, kind: str | None, part: str) -> Messages:
    """Return a list of messages in the form that transformers' chat templates expect."""
    if kind == "VARCHAR":  # one turn, written as a text
        return [{"role": "user" if part == "prompt" else "assistant", "content": text}]
    if kind not in ("ARRAY", "OBJECT"):
        raise ValueError(f"{part}: expected messages, got {_kind(kind)}")
    found = json.loads(str(text))
    messages = []
    for message in found if isinstance(found, list) else [found]:
        if not isinstance(message, dict):
            raise ValueError(f"{part}: expected messages, got a list of something else")
        if "from" in message and "value" in message:
            role = str(message["from"])
            message = {"role": ROLES.get(role, role), "content": message["value"]}
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"{part}: expected messages with role and content")
        if not isinstance(message["content"], str):
            raise ValueError(f"{part}: expected messages whose content is text")
        messages.append(message)
    return messages


def _assign(
    parts: Mapping[str, list[object]], form: Form, problem: list[str | None], num_rows: int
) -> tuple[list[object], list[object], list[object]]:
    """Return prompts, chosen and rejected completions; None if a row lacks that side."""
    empty: list[object] = [None] * num_rows
    if form.name == "pairs":
        prompts = parts["prompt"] if "prompt" in parts else parts["conversation"]
        return prompts, parts["chosen"], parts["rejected"]
    if form.name == "implicit pairs":
        return _shared_prompts(parts["chosen"], parts["rejected"], form, problem)
    prompts, completions = _demonstrations(parts, problem)
    if form.name == "demonstrations":
        return prompts, completions, empty
    chosen, rejected = list(empty), list(empty)
    for i, label in enumerate(parts["label"]):
        if (word := str(label).strip().lower()) in TRUE:
            chosen[i] = completions[i]
        elif word in FALSE:
            rejected[i] = completions[i]
        elif problem[i] is None:
            problem[i] = "label: expected true or false"
    return prompts, chosen, rejected


def _demonstrations(
    parts: Mapping[str, list[object]], problem: list[str | None]
) -> tuple[list[object], list[object]]:
    """Return prompts and completions; a single conversation is split before its last turn."""
    if "completion" in parts:
        return parts.get("prompt", parts.get("conversation", [])), parts["completion"]
    prompts: list[object] = []
    completions: list[object] = []
    for i, messages in enumerate(parts["conversation"]):
        turns = messages if isinstance(messages, list) else []
        if problem[i] is None and (len(turns) < 2 or turns[-1]["role"] != "assistant"):
            problem[i] = "messages: expected a conversation that ends with the assistant's turn"
        prompts.append(turns[:-1])
        completions.append(turns[-1:])
    return prompts, completions


def _shared_prompts(
    chosen: Iterable[object], rejected: Iterable[object], form: Form, problem: list[str | None]
) -> tuple[list[object], list[object], list[object]]:
    """Split each two dialogues before their last assistant turn, the only turn that may differ.

    A common prefix of characters would split a completion wherever both happen to begin alike;
    the two dialogues share whole turns.
    """
    prompts: list[object] = []
    chosen_ends: list[object] = []
    rejected_ends: list[object] = []
    for i, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if problem[i] is not None:
            halves: tuple[object, object, object] = (None, None, None)
        elif form.value == "text":
            halves = _shared_text(str(one), str(other))
        elif form.value == "messages" and isinstance(one, list) and isinstance(other, list):
            halves = _shared_messages(one, other)
        else:
            raise SourceError("expected a prompt column beside tokenised chosen and rejected")
        if halves[0] is None and problem[i] is None:
            problem[i] = "chosen and rejected do not share the dialogue before the last turn"
        prompts.append(halves[0])
        chosen_ends.append(halves[1])
        rejected_ends.append(halves[2])
    return prompts, chosen_ends, rejected_ends


def _shared_text(one: str, other: str) -> tuple[str | None, str, str]:
    prompt, turn, completion = one.rpartition(LAST_TURN)
    other_prompt, _, other_completion = other.rpartition(LAST_TURN)
    if not turn or prompt != other_prompt or LAST_TURN not in other:
        return None, one, other
    return prompt + turn, completion, other_completion


def _shared_messages(one: Messages, other: Messages) -> tuple[object, Messages, Messages]:
    if one[:-1] != other[:-1] or not one[:-1]:
        return None, one, other
    if one[-1]["role"] != "assistant" or other[-1]["role"] != "assistant":
        return None, one, other
    return one[:-1], one[-1:], other[-1:]


def _weights(values: list[object] | None, problem: list[str | None]) -> list[float]:
    weights = [1.0] * len(problem)
    for i, value in enumerate(values or []):
        if value is None:
            continue
        try:
            weights[i] = float(str(value))
        except ValueError:
            weights[i] = -1.0
        if not 0 <= weights[i] < float("inf"):
            weights[i] = 0.0
            problem[i] = problem[i] or "weight: expected a number of at least 0"
    return weights


def as_text(value: object) -> str:
    """Return a prompt or completion as the ``texts`` table keeps it: text, or messages as JSON."""
    return value if isinstance(value, str) else canonical_json(value)
