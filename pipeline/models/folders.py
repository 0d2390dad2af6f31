"""Folders of models and runs: a run's ``run.json``, and the files of the tokenizer."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from offpref.stores.errors import StoreFormatError
from offpref.stores.files.placing import (
    clear_write_errors,
    make_folder,
    move_synced,
    write_synced,
)

RUN_FILE = "run.json"
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "chat_template*", "generation_config.json", "additional_chat_templates/*",
)  # fmt: skip
"""Patterns of the files in a model's folder other than its weights and configuration."""


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files of a model's folder into another, byte for byte."""
    for pattern in TOKENIZER_FILES:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.suffix != ".safetensors":
                place = target / path.relative_to(source)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place)


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """Return the content of ``run.json``; None if the folder has none.

    Raises:
        StoreFormatError: If it is damaged.
    """
    path = output_dir / RUN_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreFormatError(f"{path} is damaged: {error}") from error


def write_run(output_dir: Path, run: Mapping[str, Any]) -> None:
    """Write ``run.json``, replacing the one before.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    path = output_dir / RUN_FILE
    with clear_write_errors(path):
        make_folder(output_dir)
        partial = output_dir / f".run-{uuid4().hex}"
        write_synced((json.dumps(dict(run), indent=2) + "\n").encode(), partial)
        move_synced(partial, path)
