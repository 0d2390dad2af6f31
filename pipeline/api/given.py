"""Settings from keywords: what a person gives in Python, as the settings of a stage have it."""

import operator
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from datetime import date
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.settings import nearest

from .results import Pairs

if TYPE_CHECKING:
    from offpref.pipeline.training.settings import TrainSettings

Settings = TypeVar("Settings")

_ADDING = {each.name for each in fields(AddSettings)} - {"pair_set"}
_MOST_SHOWN = 80
"""Characters of a refused value in a message."""


def settings_of(
    kind: type[Settings], given: Mapping[str, Any], *, without: Collection[str] = ()
) -> Settings:
    """Return settings made of keywords; arguments and errors are `values_of`'s.

    Raises:
        ValueError: If the settings refuse a value.
    """
    return kind(**values_of((kind,), given, without=without))


def values_of(
    kinds: tuple[type, ...], given: Mapping[str, Any], *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of keywords as the fields of settings have them.

    Folders may be text, several values a list or one value, and a result of an earlier call stands
    for its pair set or its folder. The keywords are those fields that a command has as options.

    Args:
        kinds: Classes of settings.
        given: What a person gave.
        without: Fields that are not keywords here.

    Raises:
        TypeError: If a keyword is not a setting; the message names the nearest one.
        ValueError: If a value is not of the field's type.
    """
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    names = [
        each.name
        for kind in kinds
        for each in fields(kind)
        if "help" in each.metadata and each.name not in without
    ]
    for name in given:
        if name not in names and name in _ADDING:
            raise TypeError(f"{name!r} is not a setting here: call store.add first, which takes it")
        if name not in names:
            raise TypeError(
                f"{name!r} is not a setting here{nearest(name, names)}; there are: "
                f"{', '.join(names)}"
            )
    return {name: _fitted(name, value, hints[name]) for name, value in given.items()}


def training_settings(
    given: Mapping[str, Any], *, without: Collection[str] = (), **own: Any
) -> "TrainSettings":
    """Return the settings of a training, whose losses may be functions; errors are `settings_of`'s.

    Args:
        given: What a person gave.
        without: Fields that are not keywords here.
        own: Settings that the verb itself gives.
    """
    from offpref.pipeline.training.settings import TrainSettings

    losses = given.get("loss_type")
    several = losses if isinstance(losses, list | tuple) else [losses]
    if "loss_type" not in without and any(callable(each) for each in several):
        from offpref.pipeline.losses.own import named_loss  # brings torch

        names = [named_loss(each) if callable(each) else each for each in several]
        given = {**given, "loss_type": names}
    return TrainSettings(**values_of((TrainSettings,), given, without=without), **own)


def _fitted(name: str, value: Any, hint: Any) -> Any:
    """Return a value as a field of this type has it.

    Raises:
        ValueError: If it is of another type.
    """
    kinds = [each for each in get_args(hint) if each is not Ellipsis]
    if get_origin(hint) is tuple:
        several = value if isinstance(value, list | tuple) else (value,)
        return tuple(_fitted(name, each, kinds[0]) for each in several)
    if value is None and NoneType in kinds:
        return None
    kind = next((each for each in kinds if each is not NoneType), hint)
    words, read = _READERS[kind]
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError) as error:
        shown = " ".join(repr(value).split())
        if len(shown) > _MOST_SHOWN:
            shown = f"{shown[:_MOST_SHOWN]}..."
        raise ValueError(f"{name} must be {words}, got {shown}") from error


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _whole_number(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)  # an integer of numpy's too


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if isinstance(value, Pairs):
        return str(value)
    text = os.fspath(value)  # some words name a file or a folder
    if not isinstance(text, str):
        raise TypeError
    return text


def _day(value: Any) -> date:
    return value if type(value) is date else date.fromisoformat(value)


_READERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("True or False", _flag),
    int: ("a whole number", _whole_number),
    float: ("a number", _number),
    str: ("text", _text),
    Path: ("a path", lambda value: Path(_text(value))),
    date: ("a day as YYYY-MM-DD", _day),
}
"""What values of a type are called, and what reads one."""
