"""A session of offpref's own commands in one folder, and how much of everything a setting does.

A recipe is a list of commands. Work that was done in its folder is not repeated: a recipe that was
killed goes on where it was, and changing one setting repeats what depends on it.
"""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offpref.pipeline.commands.main import main
from offpref.stores.query.catalog import open_catalog


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is done: tens of minutes on two cores, or ten minutes of one GPU."""

    num_seeds: int
    samples_per_prompt: int
    """Of the small world's reference, for pairs: two make a pair."""
    num_samples: int
    """Of each policy for each held-out prompt, when it is evaluated."""
    num_steps: int
    """Optimizer steps of every policy of the small world."""
    pairs_per_step: int
    movie_prompts: int
    """Prompts of movie reviews; four pairs are drawn for each."""
    movie_steps: int


SETTINGS = {
    "small": Setting(
        num_seeds=5, samples_per_prompt=536, num_samples=64, num_steps=120, pairs_per_step=64,
        movie_prompts=500, movie_steps=80,
    ),
    "large": Setting(
        num_seeds=5, samples_per_prompt=2144, num_samples=256, num_steps=240, pairs_per_step=256,
        movie_prompts=2000, movie_steps=160,
    ),
    "tiny": Setting(
        num_seeds=2, samples_per_prompt=8, num_samples=8, num_steps=4, pairs_per_step=8,
        movie_prompts=16, movie_steps=2,
    ),
}  # fmt: skip
"""``tiny`` shows in a minute that a recipe runs from one end to the other; it finds nothing."""

TUNING_SEED = 100
"""The seed on which learning rates are chosen; no result has it."""


class Session:
    """Commands of offpref in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"

    def offpref(self, *arguments: object) -> str:
        """Run a command, show it, and return what it printed."""
        given = [str(each) for each in arguments]
        shown = [each.replace(str(self.folder), ".") for each in given]
        print(f"$ offpref {' '.join(shown)}", flush=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main.main(given, standalone_mode=False)
        return out.getvalue()

    def select(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a question."""
        with open_catalog(self.store) as catalog:
            return catalog.select(sql).to_pylist()

    def ask(self, question: str, **values: object) -> list[dict[str, Any]]:
        """Return the rows of a named question."""
        given = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        printed = self.offpref("query", self.store, question, *given, "--format", "json")
        return list(json.loads(printed))


def made(path: Path, made_from: object, write: Callable[[Path], None]) -> Path:
    """Return a file that is written whole, and again if what it is made from has changed.

    Args:
        path: The file.
        made_from: What its content depends on, as JSON; kept beside it.
        write: Writes it to the path it is given.
    """
    note, wanted = path.with_name(f"{path.name}.made"), json.dumps(made_from)
    if not path.exists() or not note.exists() or note.read_text(encoding="utf-8") != wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        unfinished = path.with_name(f"{path.name}.tmp")
        write(unfinished)
        unfinished.replace(path)
        note.write_text(wanted, encoding="utf-8")
    return path


def num_workers() -> int:
    """Return how many policies are trained at a time: one a core, one with a GPU."""
    import torch

    if "RECIPE_WORKERS" in os.environ:
        return int(os.environ["RECIPE_WORKERS"])
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def write_results(path: Path, results: dict[str, Any], setting: str) -> None:
    """Write a recipe's results, from which the page is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"setting": setting, **asdict(SETTINGS[setting]), "tuning_seed": TUNING_SEED} | results
    path.with_suffix(".tmp").write_text(json.dumps(rounded(whole), indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)


def rounded(value: Any) -> Any:
    """Return results with six significant digits: more is noise, and hard to read in a diff."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def world_folder(given: argparse.Namespace, name: str) -> Path:
    """Return the folder of a world; settings that differ have folders that differ."""
    own = name if given.setting == "small" else f"{name}-{given.setting}"
    return Path(given.folder) / own


def say_plan(given: argparse.Namespace, plans: Sequence[str]) -> bool:
    """Print what a recipe will do; returns whether it shall do it."""
    print(f"setting {given.setting}; what was done in {given.folder} is not repeated")
    for each in plans:
        print(f"- {each}")
    return not given.dry_run


def arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what a recipe was asked for: folder, results, setting, movies."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where it works, and what it resumes from")
    parser.add_argument("results", type=Path, help="JSON file of its results")
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--movies", type=Path, help="folder with the movie reviews' files")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    return parser.parse_args(argv)
