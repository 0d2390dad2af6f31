"""Translate a DPO configuration of another tool into tables of `add`, `score` and `train`.

What a file leaves out means its tool's default, so every default that differs from ours is written
out. Nothing is passed over: each key that nothing stands for, or that means something else here,
has a note. Nothing is downloaded, and nothing of the file is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.losses.settings import LOSS_SETTINGS
from offpref.pipeline.losses.training_loss import training_loss
from offpref.pipeline.nearest_words import nearest_word
from offpref.pipeline.training.settings import TrainSettings
from offpref.stores.printable import printable

from .adapters import translate_adapter
from .data import translate_data
from .given import Given, Note
from .keys import COMPUTED, COPIED, NEEDLESS, WITHOUT
from .losses import translate_losses
from .schedules import translate_precision, translate_schedule
from .settings import TranslateSettings
from .toml_text import toml_table
from .tools import which_tool


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation:
    """A configuration in our words."""

    tool: str
    """Whose it was."""
    tables: Mapping[str, Mapping[str, Any]]
    """Options by command."""
    notes: tuple[Note, ...]
    """What has no counterpart, and what means something else here."""

    def toml(self) -> str:
        """Return a file that `--config` takes, with the notes as comments."""
        head = [
            f"# Translated from a configuration of {self.tool}. Use it as",
            *(f"#     offpref {name} STORE --config FILE" for name in self.tables),
        ]
        notes = [f"# {printable(str(note))}" for note in self.notes]
        tables = [toml_table(name, values) for name, values in self.tables.items()]
        parts = ["\n".join(each) for each in (head, notes) if each]
        return "\n\n".join([*parts, *tables]) + "\n"


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Raises:
        ValueError: If it cannot be read, or is not a mapping of names.
    """
    import yaml  # transformers brings it

    try:
        found = yaml.safe_load(path.read_bytes())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a YAML file, got: {said}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: expected a YAML file, got values in too many others") from error
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{path}: expected names with values, got {type(found).__name__}")
    return found


def translate(settings: TranslateSettings) -> Translation:
    """Return a configuration in our words.

    Raises:
        ValueError: If the file cannot be read, is no DPO configuration of one of the tools, or a
            value is not one that our settings take.
    """
    raw = read_configuration(settings.file)
    try:
        tool = which_tool(raw)
        given = Given(tool, raw)
        add, train = translate_data(given)
        train |= translate_losses(given)
        train |= translate_schedule(given, settings.num_processes)
        train |= translate_precision(given)
        train |= translate_adapter(given)
        given.take("stage")
        _note_others(given)
        _check(add, train)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{settings.file}: {error}") from error
    score = {name: train[name] for name in ("pair_set", "model", "precision")}
    return Translation(
        tool=tool.name,
        tables={"add": add, "score": score, "train": _in_order(train)},
        notes=tuple(given.notes),
    )


def _note_others(given: Given) -> None:
    """Note every key that no rule has taken."""
    for name in given.untaken():
        if name in given.tool.without or name in WITHOUT:
            advice = given.tool.without.get(name, WITHOUT.get(name, ""))
            if advice and given.is_set(name):
                given.note(name, f"has no counterpart here: {advice}")
        elif name in given.tool.needless or name in NEEDLESS:
            reason = given.tool.needless.get(name, NEEDLESS.get(name, ""))
            if reason and given.is_set(name):
                given.note(name, f"is not needed here: {reason}")
        elif given.is_set(name):
            known = [*COPIED, *COMPUTED, *NEEDLESS, *WITHOUT]
            near = nearest_word(name, known)
            given.note(
                name,
                f"is not known to this translation{f'; did you mean {near}?' if near else ''}",
            )


def _check(add: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """Build the settings that commands will build of the tables.

    Raises:
        ValueError: If they refuse a value.
    """
    folder = Path("folder")
    AddSettings(**{**add, "data": tuple(add.get("data", ("data",))), "tokenizer": folder})
    values: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in train.items()
    }
    settings = TrainSettings(**{**values, "model": folder, "output_dir": folder})
    training_loss(settings)


def _in_order(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in the order in which help has them."""
    names = [each.name for each in fields(TrainSettings)]
    of_losses = set(LOSS_SETTINGS)
    order = [*(n for n in names if n not in of_losses), *LOSS_SETTINGS]
    return {name: train[name] for name in order if name in train}
