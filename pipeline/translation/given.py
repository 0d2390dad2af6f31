"""What a configuration says, by TRL's names: read once, with a note of what is not taken."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tools import Tool


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a person should know of a key."""

    key: str
    """As the file spells it."""
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class Given:
    """The keys of a file, each of which is taken once."""

    def __init__(self, tool: Tool, raw: Mapping[str, Any]) -> None:
        """Take the keys of a file.

        Raises:
            ValueError: If two keys mean one thing.
        """
        self.tool = tool
        self.notes: list[Note] = []
        self._values: dict[str, Any] = {}
        self._spelled: dict[str, str] = {}
        self._taken: set[str] = set()
        for key, value in raw.items():
            name = tool.names.get(key, key)
            if name in self._values:
                raise ValueError(f"{self._spelled[name]} and {key} are the same; give one of them")
            self._values[name], self._spelled[name] = value, key

    def take(self, name: str) -> Any:
        """Return what is said by TRL's name, else the tool's default, else None."""
        self._taken.add(name)
        value = self._values.get(name)
        return self.tool.defaults.get(name) if value is None else value

    def says(self, name: str) -> bool:
        """Return whether the file itself says it."""
        return self._values.get(name) is not None

    def is_set(self, name: str) -> bool:
        """Return whether a key says anything but that it is off."""
        return self._values.get(name) not in (None, False, "no", "none", "None", [], {})

    def untaken(self) -> list[str]:
        """Return the keys that nothing has asked for, in the file's order."""
        return [name for name in self._values if name not in self._taken]

    def note(self, name: str, text: str) -> None:
        """Note something of a key, in the file's spelling; of a default too."""
        is_shown = self.says(name) and "token" not in name
        value = f" = {shown(self._values[name])}" if is_shown else ""
        self.notes.append(Note(key=f"{self._spelled.get(name, name)}{value}", text=text))

    def number(self, name: str) -> float | None:
        """Return a number, which YAML may have as text: 1e-6 without a point is text there.

        Raises:
            ValueError: If it is none.
        """
        value = self.take(name)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._spelled[name]} must be a number, got {value!r}") from error

    def whole(self, name: str) -> int | None:
        """Return a whole number.

        Raises:
            ValueError: If it is none.
        """
        value = self.number(name)
        if value is None or value == int(value):
            return None if value is None else int(value)
        raise ValueError(f"{self._spelled[name]} must be a whole number, got {shown(value)}")

    def word(self, name: str) -> str | None:
        """Return a text.

        Raises:
            ValueError: If it is none.
        """
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value
        raise ValueError(f"{self._spelled[name]} must be a text, got {shown(value)}")

    def truth(self, name: str) -> bool:
        """Return whether something is on; absent is off.

        Raises:
            ValueError: If it is neither on nor off.
        """
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise ValueError(f"{self._spelled[name]} must be true or false, got {shown(value)}")


def shown(value: object) -> str:
    """Return a value of a file as one short line."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
