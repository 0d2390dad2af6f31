"""Read conversations as people write them: as transformers' chat templates expect them.

A message has ``role`` and ``content``, or ShareGPT's ``from`` and ``value``. Its content is a text,
a list of parts that are texts, or nothing where the message holds something else, such as calls of
tools. What else a message holds is handed to the template as it is.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence

from offpref.pipeline.tokenization.chat_templates import RESERVED, TemplateInputs

Messages = list[dict[str, object]]

ROLES = {
    "human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "observation": "tool", "prompter": "user",
}  # fmt: skip
NATIVE = frozenset({"model", "observation"})
"""Roles that some templates know by these names, where a message has `role`."""
CALL = "function_call"
"""ShareGPT's role of an assistant's turn that calls a tool."""
PAYLOADS = (
    "tool_calls", "function_call", "tool_responses",
    "reasoning_content", "reasoning", "thinking",
)  # fmt: skip
"""What a message may hold instead of a content."""


_LISTED_OBJECTS = re.compile(r"""\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
"""How a list of messages begins, written as a text."""


def kind_name(kind: str | None) -> str:
    """Return the everyday name of a JSON type."""
    if kind is None:
        return "nothing"
    known = {"BOOLEAN": "a boolean", "ARRAY": "a list", "OBJECT": "an object", "NULL": "null"}
    return known.get(kind, "text" if kind == "VARCHAR" else "a number")


def read_messages(text: object, kind: str | None, part: str) -> Messages:
    """Return a list of messages.

    Args:
        text: JSON of a list of messages or of one; or a text, which is one turn unless it is such
            JSON itself, as in CSV files.
        kind: Its JSON type.
        part: The part of the row, for the reason.

    Raises:
        ValueError: If it is something else; the message is the row's reason.
    """
    if kind == "VARCHAR":
        found = messages_in(str(text))
        if found is None:  # one turn, written as a text
            if _LISTED_OBJECTS.match(str(text).lstrip()):
                raise ValueError(f"{part}: expected messages, got a text that is not valid JSON")
            return [{"role": "user" if part == "prompt" else "assistant", "content": text}]
    elif kind not in ("ARRAY", "OBJECT"):
        raise ValueError(f"{part}: expected messages, got {kind_name(kind)}")
    else:
        found = json.loads(str(text))
    return [_message(each, part) for each in (found if isinstance(found, list) else [found])]


def messages_in(text: str) -> object | None:
    """Return what a text holds if that is messages as JSON, or as Python writes them; else None.

    >>> messages_in('[{"role": "user", "content": "hi"}]')
    [{'role': 'user', 'content': 'hi'}]
    """
    bare = text.lstrip()
    if not (bare.startswith("[") and bare[1:].lstrip().startswith("{")) and not bare.startswith(
        "{"
    ):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found: object = read(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if is_messages(found) else None
    return None


def is_list_as_text(text: str) -> bool:
    """Whether a text is a list of texts, numbers or objects, as JSON, Python or NumPy write it.

    >>> is_list_as_text("[{'role': 'user', 'content': 'hi'} {'role': 'user'}]")
    True
    """
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return False
    if _LISTED_OBJECTS.match(bare):
        return True
    for read in (json.loads, ast.literal_eval):
        try:
            found: object = read(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        kinds = {type(each) for each in found} if isinstance(found, list) else set()
        return kinds in ({str}, {int})
    return False


def is_messages(value: object) -> bool:
    """Whether a value read from JSON is a message or a list of messages."""
    each = value if isinstance(value, list) else [value]
    return bool(each) and all(
        isinstance(one, dict) and ("role" in one or ("from" in one and "value" in one))
        for one in each
    )


def held_in(value: object) -> str:
    """Return what a value of a column is: text, messages, ids, texts, objects or the like."""
    if isinstance(value, str):
        if messages_in(value) is not None:
            return "messages"
        return "listed" if is_list_as_text(value) else "text"
    if is_messages(value):
        return "messages"
    if isinstance(value, dict):
        return "object"
    if not isinstance(value, list):
        return "text"
    for kind, name in ((int, "ids"), (str, "texts"), (dict, "objects"), (list, "dialogues")):
        if value and all(isinstance(each, kind) for each in value):
            return name
    return "messages"  # an empty list is a conversation without turns


def is_empty_message(message: Mapping[str, object]) -> bool:
    """Whether a message says nothing: no words, no calls, no reasoning."""
    return not str(message.get("content") or "").strip() and not any(
        message.get(name) for name in PAYLOADS
    )


def _message(message: object, part: str) -> dict[str, object]:
    if not isinstance(message, dict):
        raise ValueError(f"{part}: expected messages, got a list of something else")
    if "from" in message and "value" in message and "role" not in message:
        role = str(message["from"])
        others = {k: v for k, v in message.items() if k not in ("from", "value")}
        if role == CALL:
            return {**_call(message["value"], part), **others}
        message = {"role": ROLES.get(role, role), "content": message["value"], **others}
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{part}: expected messages with role and content")
    role = str(message["role"])
    if role in ROLES and role not in NATIVE:
        message = {**message, "role": ROLES[role]}
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": _joined(content, part)}
    if content is None:
        is_assistants = message["role"] == "assistant"  # an empty turn of theirs has its own reason
        if not is_assistants and not any(message.get(name) for name in PAYLOADS):
            raise ValueError(f"{part}: expected messages with role and content")
        return message
    if not isinstance(content, str):
        raise ValueError(f"{part}: expected messages whose content is text")
    return message


def _call(value: object, part: str) -> dict[str, object]:
    """Return an assistant's turn that calls tools, of JSON with their names and arguments."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(each, dict) and "name" in each for each in calls):
        raise ValueError(f"{part}: expected JSON with the name of a function in a function_call")
    called = [{"type": "function", "function": each} for each in calls]
    return {"role": "assistant", "content": "", "tool_calls": called}


def _joined(parts: list[object], part: str) -> str:
    """Return the text of a content that is given as parts."""
    texts = []
    for each in parts:
        text = each.get("text") if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise ValueError(f"{part}: expected messages whose content is text")
        texts.append(text)
    return "".join(texts)


def read_inputs(tools: object, arguments: object) -> TemplateInputs | None:
    """Return what a row gives its template besides the messages; None if that is nothing.

    Args:
        tools: Value of the column ``tools``, as text: a JSON list, or a text that is one.
        arguments: Value of the column ``chat_template_kwargs``, as text: a JSON object.

    Raises:
        ValueError: If one is something else; the message is the row's reason.
    """
    found_tools, found_arguments = _json(tools, "tools"), _json(arguments, "chat_template_kwargs")
    if found_tools is not None and not isinstance(found_tools, list):
        raise ValueError("tools: expected a list of functions as JSON schemas")
    if found_arguments is not None and not isinstance(found_arguments, dict):
        raise ValueError("chat_template_kwargs: expected an object of arguments")
    if taken := sorted(RESERVED & (found_arguments or {}).keys()):
        raise ValueError(f"chat_template_kwargs: {taken[0]} is not an argument of a template")
    if not found_tools and not found_arguments:
        return None
    return TemplateInputs(tools=found_tools or None, arguments=found_arguments or {})


def _json(value: object, name: str) -> object:
    if value is None or not str(value).strip():
        return None
    try:
        return json.loads(str(value))
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON") from error


def with_system(messages: Messages, system: str | None) -> Messages:
    """Return a prompt that begins with a system turn, if there is one and it has none yet."""
    if not system or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def parted(one: Messages, other: Messages) -> tuple[Messages, Messages, Messages] | None:
    """Part two dialogues into their common prompt and two completions.

    The completions begin with the assistant's turn that differs; where a user's turn differs first,
    with the assistant's turn before it, which both share.

    Returns:
        Prompt and completions; None if no prompt is shared.
    """
    start = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    start = min(start, len(one) - 1, len(other) - 1)
    while start > 0 and not _both_answer(one, other, start):
        start -= 1
    if start < 1:
        return None
    return one[:start], one[start:], other[start:]


def _both_answer(
    one: Sequence[Mapping[str, object]], other: Sequence[Mapping[str, object]], at: int
) -> bool:
    return one[at]["role"] == "assistant" == other[at]["role"]


def after_first_prompt(messages: Messages) -> tuple[Messages, Messages]:
    """Part a conversation before the assistant's first turn."""
    first = next(
        (i for i, each in enumerate(messages) if each["role"] == "assistant"), len(messages)
    )
    return messages[:first], messages[first:]
