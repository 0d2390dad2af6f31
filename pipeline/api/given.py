"""Settings from keywords: what a person gives in Python, as the settings of a stage have it."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from offpref.pipeline.settings import nearest

Settings = TypeVar("Settings")


def settings_of(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Return settings made of keywords.

    Folders may be text, several values a list or one value, and a result of an earlier call stands
    for its pair set or its folder.

    Raises:
        TypeError: If a keyword is not a setting; the message names the nearest one.
        ValueError: If the settings refuse a value.
    """
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type] # a dataclass
    for name in given:
        if name not in names:
            raise TypeError(
                f"{name!r} is not a setting here{nearest(name, names)}; there are: "
                f"{', '.join(names)}"
            )
    hints = get_type_hints(kind)
    return kind(**{name: _fitted(value, hints[name]) for name, value in given.items()})


def _fitted(value: Any, hint: Any) -> Any:
    """Return a value as a field of this type has it."""
    if value is None:
        return None
    kinds = [each for each in get_args(hint) if each not in (NoneType, Ellipsis)]
    if get_origin(hint) is tuple:
        several = value if isinstance(value, list | tuple) else (value,)
        return tuple(_fitted(each, kinds[0]) for each in several)
    kind = kinds[0] if kinds else hint
    if kind is Path:
        return Path(os.fspath(value))
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is str and not isinstance(value, str | bool | int | float):
        return str(value)
    return value
