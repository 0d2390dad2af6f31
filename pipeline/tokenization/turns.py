"""Whose turn each part of a written conversation is.

A template writes a conversation as one text. A turn ends where the conversation up to it, written
alone, ends; some templates write it differently then (without the thoughts of earlier turns), and
there the mark that ends an assistant's turn is looked for. The next turn's own words begin where
the text parts from one in which that turn says something else. What the template writes before an
assistant's turn, the generation prompt, belongs to nobody, as in the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .chat_templates import Message
from .common_beginning import common_length

Write: TypeAlias = Callable[[Sequence[Message], bool], str]
"""Writes messages, with the generation prompt after them or without."""

_OTHER = "\ue000"  # a character for private use: no message begins with it
ASSISTANT, UNTOLD = "assistant", "unknown"


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of characters, and the role of the message that it belongs to."""

    start: int
    end: int
    role: str


def completion_turns(
    write: Write,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    whole: str,
    start: int,
) -> list[Turn]:
    """Return whose turn each character of a completion is, in order.

    Args:
        write: Writes messages with the template.
        prompt: The messages before the completion.
        completion: The completion's messages.
        whole: Both, written.
        start: Where the completion begins in it.

    Returns:
        Turns within the completion, counted from its beginning; characters in none are the
        template's. One turn of role ``unknown`` if the template does not tell.
    """
    length = len(whole) - start
    if len(completion) == 1:
        return [Turn(0, length, str(completion[0]["role"]))]
    bodies, ends = [start], []
    for number in range(1, len(completion)):
        message = completion[number]
        before = write([*prompt, *completion[:number]], False)
        ends.append(len(before) if whole.startswith(before) else None)
        other = {k: v for k, v in message.items() if k in ("role", "name", "tool_call_id")}
        said = write([*prompt, *completion[:number], {**other, "content": _OTHER}], False)
        bodies.append(common_length(whole, said))
    if bodies != sorted(bodies):
        return [Turn(0, length, UNTOLD)]
    bodies.append(len(whole))
    ends.append(len(whole))
    marks = _Marks.of(write, prompt)
    turns: list[Turn] = []
    for number, message in enumerate(completion):
        role = str(message["role"])
        at = turns[-1].end + start if turns else start
        if number and role == ASSISTANT:
            at = _after(whole, marks.before, at, bodies[number])
        end = ends[number]
        if end is None:
            end = _end(whole, at, bodies[number + 1], role, marks)
            if role == ASSISTANT and end == bodies[number + 1]:
                header = _header(write, completion[number + 1])
                end -= _common_end(whole[at:end], header)
        turns.append(Turn(at - start, end - start, role))
    return turns


@dataclass(frozen=True, slots=True)
class _Marks:
    """What a template writes around an assistant's turn."""

    before: str
    after: str

    @classmethod
    def of(cls, write: Write, prompt: Sequence[Message]) -> "_Marks":
        plain, prompted = write(prompt, False), write(prompt, True)
        before = prompted[len(plain) :] if prompted.startswith(plain) else ""
        said = write([*prompt, {"role": ASSISTANT, "content": _OTHER}], False)
        return cls(before, said.rpartition(_OTHER)[2])


def _header(write: Write, message: Message) -> str:
    """Return what a template writes before the words of a turn that begins a conversation."""
    try:
        return write([{"role": message["role"], "content": _OTHER}], False).partition(_OTHER)[0]
    except ValueError:  # it begins with other turns only
        return ""


def _common_end(one: str, other: str) -> int:
    """Return the length of the common end of two texts."""
    return common_length(one[::-1], other[::-1])


def _after(whole: str, mark: str, start: int, end: int) -> int:
    """Return the place behind a mark in a stretch of a text; the stretch's end if it has none."""
    found = whole.rfind(mark, start, end) if mark else -1
    return end if found < 0 else found + len(mark)


def _end(whole: str, start: int, next_body: int, role: str, marks: _Marks) -> int:
    """Return where a turn ends that the template would write differently if it were the last.

    Args:
        whole: The conversation.
        start: Where the turn begins.
        next_body: Where the next turn's words begin.
        role: Its role.
        marks: What stands around an assistant's turn.
    """
    if role != ASSISTANT:
        found = whole.rfind(marks.before, start, next_body) if marks.before else -1
        return next_body if found < 0 else found
    for mark in (marks.after, marks.after.rstrip()):
        if mark and (found := whole.rfind(mark, start, next_body)) >= 0:
            return found + len(mark)
    return next_body
