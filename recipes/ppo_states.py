"""What a PPO run keeps on disk: its state while it trains, the policy and ``ppo.json`` at its end.

The state is one file beside the output, replaced whole by a rename. All chance depends on the seed
and the step, so that weights, optimizer and step are all that a run needs to continue.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from offpref.pipeline.models.folders import copy_tokenizer
from offpref.pipeline.models.model_files import quiet_transformers
from offpref.stores.errors import StoreFormatError, TrainingError
from offpref.stores.files.placing import clear_write_errors, move_synced, whole_folder, write_synced

RECORD_FILE = "ppo.json"


@dataclass(kw_only=True)
class Progress:
    """How far a run has come, and what it has cost."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    """A row for each step that is done."""
    num_sequences: int = 0
    """Sampled."""
    num_forwards: int = 0
    """Forward passes of sequences through any model."""
    seconds: float = 0.0


def state_path(output: Path) -> Path:
    """Return where the state of a run that is to write ``output`` is."""
    return output.absolute().with_name(f".{output.absolute().name}.ppo-state.safetensors")


def save_state(
    output: Path,
    identity: dict[str, Any],
    progress: Progress,
    networks: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the state of a run by the present one.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    tensors = {f"weights/{name}": value.detach() for name, value in networks.named_parameters()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
    header = {"settings": identity, "progress": vars(progress)}
    path = state_path(output)
    partial = path.with_suffix(".partial")
    with clear_write_errors(path):
        partial.unlink(missing_ok=True)  # of a process that was killed here
        write_synced(save(tensors, {"ppo": json.dumps(header)}), partial)
        move_synced(partial, path)


def load_state(
    output: Path,
    identity: dict[str, Any],
    networks: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Restore a run where its state says that it was; a run without one begins.

    Raises:
        TrainingError: If the state is of other settings.
        StoreFormatError: If it is damaged.
    """
    path = state_path(output)
    if not path.exists():
        return Progress()
    state: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["ppo"])
            check_identity(path, header["settings"], identity)
            with torch.no_grad():
                for name, parameter in networks.named_parameters():
                    parameter.copy_(file.get_tensor(f"weights/{name}"))
            for key in file.keys():  # noqa: SIM118 # safetensors' own
                kind, *rest = key.split("/")
                if kind == "optimizer":
                    state.setdefault(int(rest[0]), {})[rest[1]] = file.get_tensor(key)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreFormatError(f"{path} is damaged: {error}; remove it to begin again") from error
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return Progress(**header["progress"])


def finished(
    output: Path, identity: dict[str, Any], *, record_file: str = RECORD_FILE
) -> dict[str, Any] | None:
    """Return the record of a run that wrote ``output``; None if nothing is there.

    Raises:
        TrainingError: If something else is there, or a run of other settings wrote it.
    """
    if not output.exists():
        return None
    path = output / record_file
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{output}: expected a new folder or one with a {record_file}; take another"
        ) from error
    check_identity(path, record["settings"], identity)
    return record


def check_identity(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse what was made with other settings.

    Raises:
        TrainingError: It names the first setting that differs.
    """
    wanted = json.loads(json.dumps(wanted))  # tuples as lists
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise TrainingError(
                f"{path} was made with {name} {found.get(name)}, got {wanted.get(name)}; "
                "remove it or take another output folder"
            )


def write_policy(
    output: Path,
    model: Any,  # transformers'
    reference: Path,
    record: dict[str, Any],
    *,
    record_file: str = RECORD_FILE,
) -> None:
    """Write a policy's folder with its record; it appears whole.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    with whole_folder(output) as folder:
        with quiet_transformers():
            model.save_pretrained(folder)
        copy_tokenizer(reference, folder)
        text = json.dumps(record, indent=1) + "\n"
        (folder / record_file).write_text(text, encoding="utf-8")
