"""Whose turn each part of a written conversation is.

A template writes a conversation as one text. The end of a turn is found by writing the
conversation up to it once more, followed by a turn of the next role that says something else: the
two texts part where the next turn's own words begin. What the template writes before an assistant's
turn, the generation prompt, belongs to nobody, as in the prompt.
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
    bodies = [start]
    for number in range(1, len(completion)):
        message = completion[number]
        other = {k: v for k, v in message.items() if k in ("role", "name", "tool_call_id")}
        said = write([*prompt, *completion[:number], {**other, "content": _OTHER}], False)
        bodies.append(common_length(whole, said))
    if bodies != sorted(bodies):
        return [Turn(0, length, UNTOLD)]
    bodies.append(len(whole))
    marks = _Marks.of(write, prompt)
    turns: list[Turn] = []
    for number, message in enumerate(completion):
        is_last = number == len(completion) - 1
        before = turns[-1].end + start if turns else start
        turn = _turn(
            whole, before, bodies[number], bodies[number + 1], str(message["role"]), marks,
            is_first=number == 0, is_last=is_last,
        )  # fmt: skip
        turns.append(Turn(turn.start - start, turn.end - start, turn.role))
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


def _turn(
    whole: str, before: int, body: int, next_body: int, role: str, marks: _Marks, *,
    is_first: bool, is_last: bool,
) -> Turn:  # fmt: skip
    """Return one turn, counted from the beginning of the whole.

    Args:
        whole: The conversation.
        before: Where the turn before it ends.
        body: Where its own words begin, at the latest.
        next_body: Where the next turn's words begin, or the conversation ends.
        role: Its role.
        marks: What stands around an assistant's turn.
        is_first: Whether it is the completion's first turn, which the prompt leads to.
        is_last: Whether it is its last.
    """
    if role != ASSISTANT:
        end = next_body
        if marks.before and not is_last:
            found = whole.rfind(marks.before, before, next_body)
            end = found if found >= 0 else next_body
        return Turn(before, end, role)
    begin = before if is_first else body
    if not is_first and marks.before:
        found = whole.rfind(marks.before, before, body)
        # Behind a user's turn the mark stands before its end, which is where that turn ends.
        begin = found + len(marks.before) if found >= 0 else body
    end = next_body
    if not is_last:
        for after in (marks.after, marks.after.rstrip()):
            found = whole.rfind(after, begin, next_body) if after else -1
            if found >= 0:
                end = found + len(after)
                break
    return Turn(begin, end, role)
