"""Write conversations with a tokenizer's chat template, as transformers and TRL do.

A template is given the messages, and what a row or the user gives it besides: tools, and arguments
such as ``enable_thinking``. A template that asks for the date is given a fixed one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, TypeAlias

from offpref.stores.errors import ModelError

Message: TypeAlias = Mapping[str, object]

_ASKS_FOR_DAY = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")
RESERVED = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "tokenize",
     "add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length",
     "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)  # fmt: skip
"""Arguments of transformers' own, which are not the template's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateInputs:
    """What a template is given besides the messages."""

    tools: Sequence[object] | None = None
    """Descriptions of functions, as JSON schemas."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the template's own."""


NO_INPUTS = TemplateInputs()


class ChatTemplate:
    """A template with the tokenizer whose special tokens it may name."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        day: date | None = None,
        given: str | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        """Render nothing yet.

        Args:
            tokenizer: A tokenizer of transformers.
            day: Date given to a template that asks; None for today.
            given: The template, or the name of one of the tokenizer's; None for its own.
            arguments: Arguments for every conversation; its own ones win.
        """
        self._tokenizer, self._day, self._given = tokenizer, day, given
        self._arguments = dict(arguments or {})

    def check_arguments(self) -> None:
        """Check that the template writes what it is given by name for every conversation.

        Raises:
            ModelError: If it does not know one of the names.
        """
        if not (texts := self._templates()):  # messages say so themselves
            return
        for name in self._arguments:
            if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
                raise ModelError(
                    f"chat_template_kwargs: {name} has no effect, the chat template does not use it"
                )

    def _templates(self) -> list[str]:
        """Return the templates that conversations may be written with."""
        own = self._tokenizer.chat_template
        known = own if isinstance(own, dict) else {}
        if self._given is not None:
            return [known.get(self._given, self._given)]
        return list(known.values()) or ([own] if own else [])

    def _check_written(self, messages: Sequence[Message], inputs: TemplateInputs) -> None:
        """Check that the template writes tools and calls, if there are any.

        Raises:
            ValueError: If it does not.
        """
        given = {
            "tools": bool(inputs.tools),
            "tool_calls": any(m.get("tool_calls") for m in messages),
        }
        for name, is_given in given.items():
            if is_given and not any(name in text for text in self._templates()):
                raise ValueError(f"it does not write {name}; --chat-template names one that does")

    def text(self, messages: Sequence[Message], inputs: TemplateInputs, *, prompts: bool) -> str:
        """Return a conversation as the template writes it.

        Args:
            messages: The conversation.
            inputs: What the template is given besides.
            prompts: Whether the generation prompt follows.

        Raises:
            ModelError: If there is no template.
            ValueError: If the template refuses the messages.
        """
        if self._given is None and self._tokenizer.chat_template is None:
            raise ModelError(
                "the data holds messages and the tokenizer has no chat template; "
                "add one to its folder as chat_template.jinja, or name one with --chat-template"
            )
        with clear_template_errors():
            # A list of templates picks one by the tools, so it is asked for each conversation.
            template = template_on(self._tokenizer, self._day, self._given, tools=inputs.tools)
            self._check_written(messages, inputs)
            tools: Any = None if inputs.tools is None else list(inputs.tools)
            written: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompts, tools=tools,
                chat_template=template, **{**self._arguments, **inputs.arguments},
            )  # fmt: skip
        return written


@contextmanager
def clear_template_errors() -> Iterator[None]:
    """Turn what a template or transformers raises about a conversation into one line.

    Raises:
        ValueError: If they raise.
    """
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"chat template: {' '.join(str(error).split())[:100]}") from error


def template_on(
    tokenizer: Any,
    day: date | None,
    given: str | None = None,
    *,
    tools: Sequence[object] | None = None,
) -> str | None:
    """Return a template with a date filled in; None for the tokenizer's own that asks for none.

    Args:
        tokenizer: A tokenizer of transformers, with a template.
        day: The date; None for today.
        given: A template, or the name of one of the tokenizer's; None for its own.
        tools: Tools of the conversation; a tokenizer may have a template of its own for them.

    Raises:
        ModelError: If the template does not spell out the form in which it asks for the date.
    """
    template: str = tokenizer.get_chat_template(given, tools)
    if "strftime_now" not in template:
        return given
    now = datetime.combine(day or date.today(), time())
    told = _ASKS_FOR_DAY.sub(lambda call: json.dumps(now.strftime(call[1][1:-1])), template)
    if re.search(r"strftime_now\s*\(", told):
        raise ModelError(
            "the chat template asks for the day in a form that is not written out: expected "
            "strftime_now and a text in parentheses; write the form there"
        )
    return told


def find_template(given: str) -> str:
    """Return the template that a user gave: the content of a file, or the name as it is.

    Raises:
        ModelError: If it looks like a path, and no file is there.
    """
    path = Path(given)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix or len(path.parts) > 1:
        raise ModelError(f"{given}: expected a file with a chat template, found none")
    return given


def check_template(tokenizer: Any, given: str, folder: Path) -> None:
    """Check that a name is one of the tokenizer's templates.

    Raises:
        ModelError: If it is not; the message lists those that there are.
    """
    own = tokenizer.chat_template
    names = sorted(own) if isinstance(own, dict) else []
    if "{" not in given and given not in names:
        raise ModelError(
            f"{folder}: expected a chat template called {given!r}, or a file of that name; the"
            f" tokenizer's named ones: {', '.join(names) or 'none'}"
        )


def read_arguments(text: str) -> dict[str, object]:
    """Return arguments of a template, given as a JSON object.

    Raises:
        ValueError: If the text is something else, or names an argument of transformers' own.

    >>> read_arguments('{"enable_thinking": false}')
    {'enable_thinking': False}
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f'chat_template_kwargs must be a JSON object such as {{"enable_thinking": false}}, '
            f"got {text!r}"[:300]
        )
    if taken := sorted(RESERVED & found.keys()):
        raise ValueError(f"chat_template_kwargs: {taken[0]} is not an argument of a template")
    return found
