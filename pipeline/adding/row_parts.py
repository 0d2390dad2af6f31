"""The parts of a source's rows: texts, messages, ids, and what stands beside them.

A part that cannot be read leaves its row's reason in ``problem``.
"""

import ast
import json
from math import isfinite
from typing import Any

import pyarrow as pa

from offpref.pipeline.tokenization.chat_templates import TemplateInputs
from offpref.stores.sources import columns_of, id_lists

from .forms import Form
from .messages import Messages, is_messages, kind_name, read_inputs, read_messages, with_system


class RowParts:
    """One table of rows, part by part; one value for each row."""

    def __init__(self, rows: pa.Table, form: Form) -> None:
        """Take the columns of a form out of rows, as `stores.sources.read_rows` yields them."""
        self.form, self.rows = form, rows
        self.taken = columns_of(rows, list(form.columns.values()))
        self.problem: list[str | None] = rows["problem"].to_pylist()
        self.num_rows = rows.num_rows
        self._columns: dict[str, list[Any]] = {}

    def raw(self, part: str) -> list[Any]:
        """Return a part as it stands there, as text; nulls where there is no such column."""
        name = self.form.columns.get(part)
        return [None] * self.num_rows if name is None else self._column(f"value/{name}")

    def kinds(self, part: str) -> list[Any]:
        """Return the JSON type of a part of every row; None where a row lacks it."""
        return self._column(f"type/{self.form.columns[part]}")

    def _column(self, name: str) -> list[Any]:
        if name not in self._columns:
            self._columns[name] = self.taken[name].to_pylist()
        return self._columns[name]

    def set_problem(self, i: int, problem: str) -> None:
        """Give a row its reason, unless it has one."""
        if self.problem[i] is None:
            self.problem[i] = problem

    def part(self, part: str) -> list[object]:
        """Return a part of every row as text, messages or ids."""
        value = self.form.value
        if value == "ids":
            return self._id_part(part)
        texts: list[object] = list(self.raw(part))
        kinds = self.kinds(part)
        for i, kind in enumerate(kinds):
            if self.problem[i] is not None:
                continue
            if value == "messages":
                try:
                    texts[i] = read_messages(texts[i], kind, part)
                except ValueError as error:
                    self.problem[i] = str(error)
            elif kind != "VARCHAR":
                if part == "prompt" and kind == "OBJECT" and (text := _only_text(texts[i])):
                    texts[i] = text
                else:
                    self.problem[i] = f"{part}: expected text, got {kind_name(kind)}"
        return texts

    def _id_part(self, part: str) -> list[object]:
        name = self.form.columns[part]
        lists: list[object] = id_lists(self.taken[f"value/{name}"]).to_pylist()
        for i, ids in enumerate(lists):
            if ids is None:
                kind = kind_name(self.kinds(part)[i])
                self.set_problem(i, f"{part}: expected a list of token ids, got {kind}")
        return lists

    def prompts(self) -> list[object]:
        """Return the prompts, with what other columns add to them."""
        return self.extended(self.plain_prompts())

    def plain_prompts(self) -> list[object]:
        """Return the prompts as they stand there."""
        return self.part("prompt" if "prompt" in self.form.columns else "conversation")

    def extended(self, prompts: list[object]) -> list[object]:
        """Return prompts with their system turn, their input and the turns before them."""
        if not {"system", "input", "history"} & self.form.columns.keys():
            return prompts
        for part in {"system", "input"} & self.form.columns.keys():
            for i, kind in enumerate(self.kinds(part)):
                if kind not in (None, "NULL", "VARCHAR"):
                    self.set_problem(i, f"{part}: expected text, got {kind_name(kind)}")
        added = zip(self.raw("system"), self.raw("input"), self.raw("history"), strict=True)
        for i, (system, text, history) in enumerate(added):
            if self.problem[i] is not None:
                continue
            try:
                prompts[i] = _extended(prompts[i], system, text, history)
            except ValueError as error:
                self.problem[i] = str(error)
        return prompts

    def inputs(self) -> list[TemplateInputs | None]:
        """Return what each row gives its template besides the messages."""
        found: list[TemplateInputs | None] = [None] * self.num_rows
        if not {"tools", "chat_template_kwargs"} & self.form.columns.keys():
            return found
        given = zip(self.raw("tools"), self.raw("chat_template_kwargs"), strict=True)
        for i, (tools, arguments) in enumerate(given):
            try:
                found[i] = read_inputs(tools, arguments)
                if found[i] is not None and self.form.value != "messages":
                    what = "tools" if tools else "chat_template_kwargs"
                    raise ValueError(f"{what}: beside a text they need --apply-chat-template")
            except ValueError as error:
                self.set_problem(i, str(error))
        return found

    def weights(self) -> list[float]:
        """Return the weight of each row, 1 where it says none."""
        weights = [1.0] * self.num_rows
        for i, value in enumerate(self.raw("weight")):
            if value is None:
                continue
            try:
                weights[i] = float(str(value))
            except ValueError:
                weights[i] = -1.0
            if not 0 <= weights[i] < float("inf"):
                weights[i] = 0.0
                self.set_problem(i, "weight: expected a number of at least 0")
        return weights


def number_of(value: object) -> float | None:
    """Return a finite number; None for anything else, "N/A" among them."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if isfinite(number) else None


def _only_text(value: object) -> str | None:
    """Return the text of an object that holds one, such as WebGPT's questions."""
    found = json.loads(str(value))
    texts = [found[name] for name in ("full_text", "text", "content") if name in found]
    return texts[0] if texts and isinstance(texts[0], str) else None


def _extended(prompt: object, system: Any, text: Any, history: Any) -> object:
    """Return a prompt, text or messages, with a system turn, an input and the turns before it.

    Raises:
        ValueError: If there are turns before a text.
    """
    words, before = str(text or "").strip(), str(system or "").strip()
    turns = _history(history)
    if isinstance(prompt, list):
        if words and prompt and isinstance(prompt[-1].get("content"), str):
            last = {**prompt[-1], "content": f"{prompt[-1]['content']}\n{text}"}
            prompt = [*prompt[:-1], last]
        return with_system([*turns, *prompt], str(system) if before else None)
    if turns:
        raise ValueError("history: turns before a text need --apply-chat-template")
    whole = f"{prompt}\n{text}" if words else prompt
    return f"{system}\n\n{whole}" if before else whole


def _history(value: Any) -> Messages:
    """Return the turns of a column of pairs, a question and an answer each."""
    if not str(value or "").strip():
        return []
    found = _listed(str(value))
    if not isinstance(found, list):
        raise ValueError("history: expected pairs of a question and an answer")
    if found and is_messages(found):
        return read_messages(json.dumps(found), "ARRAY", "history")
    turns: Messages = []
    for each in found:
        if not isinstance(each, list) or len(each) != 2:
            raise ValueError("history: expected pairs of a question and an answer")
        turns += [{"role": "user", "content": each[0]}, {"role": "assistant", "content": each[1]}]
    return turns


def _listed(text: str) -> object:
    """Return what a text holds, as JSON or as Python write it; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            found: object = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found
    return None
