"""The points of a sweep: what a TOML file names, each with the settings of its run.

[base]                  settings of every run, by the names of `offpref train`'s options
pair_set = "reviews"
model = "sft"
output_dir = "sweep"    gets one folder per run

[grid]                  every combination of these values
beta = [0.1, 0.5]
seed = [0, 1, 2]

[[points]]              settings that change together; each is combined with the whole grid
loss_type = "sigmoid"
[[points]]
loss_type = "simpo"
"""

import json
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from offpref.pipeline.settings import AT_LEAST_ONE, check_settings, nearest, setting
from offpref.pipeline.training.settings import TrainSettings

TABLES = ("base", "grid", "points")
OWN = ("output_dir", "run_name", "resume", "overwrite")
"""Settings that the sweep gives each run itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSettings:
    """Which runs are trained, and how many at a time."""

    config: Path = setting("TOML file of the runs.", is_argument=True, path="existing file")
    jobs: int = setting("Runs at a time.", default=1, range=AT_LEAST_ONE)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One run of a sweep."""

    name: str
    """Says what sets it apart from the others; the run's name and its folder's."""
    given: Mapping[str, Any]
    """Its settings as the file and the sweep give them."""
    settings: TrainSettings


def read_points(path: Path) -> list[Point]:
    """Return the runs that a sweep's file names, in its order.

    Raises:
        ValueError: If the file cannot be read, names an unknown setting or a value that is out of
            range, or two of its runs are the same.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a TOML file, got: {error}") from error
    if unknown := sorted(set(tables) - set(TABLES)):
        raise ValueError(
            f"{path}: expected the tables {', '.join(TABLES)}, got {', '.join(unknown)}"
            f"{nearest(unknown[0], TABLES)}"
        )
    base, grid = tables.get("base", {}), tables.get("grid", {})
    variants = tables.get("points", [{}])
    tabled = [base, grid, *variants] if variants and isinstance(variants, list) else [None]
    if not all(isinstance(each, dict) for each in tabled):
        raise ValueError(f"{path}: expected [base] and [grid] as tables, and [[points]]")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            hint = "" if isinstance(values, list | dict) else f"; write {name} = [{_toml(values)}]"
            raise ValueError(f"{path}: grid.{name} must be a list of values, got {values!r}{hint}")
    found: dict[str, Point] = {}
    for variant in variants:
        for values in product(*grid.values()):
            own = {**variant, **dict(zip(grid, values, strict=True))}
            point = _point(path, base, own)
            if point.name in found:
                raise ValueError(f"{path}: two runs are the same: {point.name}")
            found[point.name] = point
    return list(found.values())


def option_words(given: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command line."""
    words: list[str] = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value else []
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [option, str(each)]
    return words


def _point(path: Path, base: Mapping[str, Any], own: Mapping[str, Any]) -> Point:
    name = "-".join(_label(key, value) for key, value in own.items()) or "run"
    merged = {key.replace("-", "_"): value for key, value in {**base, **own}.items()}
    hints = get_type_hints(TrainSettings)
    for key in merged:
        if key not in hints or (key in OWN and key != "output_dir") or (key in own and key in OWN):
            known = [each.name for each in fields(TrainSettings) if each.name not in OWN]
            there_are = f"; there are: {', '.join(known)}"
            raise ValueError(
                f"{path}: {key!r} is not a setting of a run{nearest(key, known) or there_are}"
            )
    if "output_dir" not in merged:
        raise ValueError(f"{path}: expected base.output_dir, the folder that the runs lie in")
    for key, value in merged.items():
        kind = tuple if get_origin(hints[key]) is tuple else hints[key]
        if not isinstance(_typed(hints[key], value), kind):
            raise ValueError(
                f"{path}: {name}: {key} must be {_expected(hints[key])}, got {value!r}"
                f"{_without_quotes(hints[key], value)}"
            )
    merged |= {"output_dir": str(Path(merged["output_dir"]) / name), "run_name": name}
    if "save_every" not in merged:  # many runs, whose lengths are the file's
        merged.setdefault("no_last_checkpoint", True)
    arguments = {key: _typed(hints[key], value) for key, value in merged.items()}
    try:
        settings = TrainSettings(**arguments, resume=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name}: {error}") from error
    return Point(name=name, given=merged, settings=settings)


def _typed(hint: Any, value: Any) -> Any:
    """Return a value of TOML as the settings have it."""
    if get_origin(hint) is tuple:
        return tuple(value) if isinstance(value, list) else (value,)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, int) and not isinstance(value, bool) and "float" in str(hint):
        return float(value)
    return value


def _expected(hint: Any) -> str:
    """Return what a setting takes, in words."""
    words = {"bool": "true or false", "int": "a whole number", "float": "a number"}
    kinds = [kind for kind in get_args(hint) or (hint,) if kind not in (NoneType, Ellipsis)]
    return " or ".join(
        dict.fromkeys(words.get(getattr(kind, "__name__", ""), "text") for kind in kinds)
    )


def _without_quotes(hint: Any, value: Any) -> str:
    """Return the end of a message about a number in quotes; empty where it is none."""
    if isinstance(value, str) and {int, float} & {hint, *get_args(hint)}:
        with suppress(ValueError):
            float(value)
            return "; write it without quotes"
    return ""


def _toml(value: Any) -> str:
    """Return a value as a TOML file has it."""
    return json.dumps(value) if isinstance(value, bool | int | float | str) else str(value)


def _label(key: str, value: Any) -> str:
    """Return what a setting adds to a run's name."""
    values = value if isinstance(value, list) else [value]
    text = "+".join(str(each) for each in values)
    text = text if key in ("loss_type", "objective") else f"{key.replace('_', '-')}={text}"
    return re.sub(r"[^A-Za-z0-9._=+@-]", "_", text)
