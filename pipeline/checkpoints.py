"""Checkpoints of a run: written whole or not at all, and read back to the last bit.

    output/run.json                         the run: its id, its attempt, what it depends on
    output/checkpoints/step-00000020/       state.json, model.safetensors, optimizer.safetensors,
                                            random.safetensors; or, where the model is split over
                                            processes, what torch.distributed.checkpoint writes

A checkpoint is written beside, fsynced and renamed. The position in the data is the step number;
the learning rate is a function of it. There is no pickle in a checkpoint of one process.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..stores.errors import StoreFormatError
from ..stores.placing import (
    clear_write_errors,
    make_folder,
    move_synced,
    sync_file,
    sync_folder,
    write_synced,
)
from .devices import Processes
from .models import ScoringModel
from .policies import trainable

RUN_FILE, FOLDER, STATE_FILE = "run.json", "checkpoints", "state.json"


def save_checkpoint(
    output_dir: Path,
    policy: ScoringModel,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    processes: Processes,
    keep: int,
) -> Path:
    """Write a checkpoint of ``state["step"]`` and return it; older ones beyond ``keep`` go.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    folder = output_dir / FOLDER
    path = folder / f"step-{state['step']:08d}"
    partial = folder / f".partial-{path.name}"
    with clear_write_errors(path):
        if processes.is_first:
            make_folder(folder)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        processes.wait()
        if processes.mesh is None:
            _save_whole(partial, policy, optimizer)
        else:
            state_dict_saver.save(_split_state(policy, optimizer), checkpoint_id=partial)
        processes.wait()
        if processes.is_first:
            write_synced(json.dumps(dict(state)).encode(), partial / STATE_FILE)
            place_folder(partial, path)
            for old in sorted(folder.glob("step-*"))[:-keep]:
                shutil.rmtree(old)
    processes.wait()
    return path


def newest_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run; None if it has none."""
    found = sorted((output_dir / FOLDER).glob("step-*"))
    return found[-1] if found else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what was given as ``state`` when the checkpoint was written.

    Raises:
        StoreFormatError: If it is damaged.
    """
    try:
        return dict(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StoreFormatError(f"{checkpoint} is damaged: {error}") from error


def load_checkpoint(
    checkpoint: Path,
    policy: ScoringModel,
    optimizer: torch.optim.Optimizer,
    *,
    processes: Processes,
) -> None:
    """Put weights, optimizer and random states back.

    Raises:
        StoreFormatError: If the checkpoint is damaged, or does not fit the policy.
    """
    is_split = (checkpoint / ".metadata").exists()
    if is_split != (processes.mesh is not None):
        raise StoreFormatError(
            f"{checkpoint} was written by {'several processes' if is_split else 'one process'}; "
            "resume in the same way"
        )
    try:
        if is_split:
            _load_split(checkpoint, policy, optimizer)
        else:
            _load_whole(checkpoint, policy, optimizer)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreFormatError(f"{checkpoint} cannot be loaded: {error}") from error


def read_run(output_dir: Path) -> dict[str, Any] | None:
    """Return what ``run.json`` says; None if the folder has none.

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


def place_folder(partial: Path, path: Path) -> None:
    """Fsync a folder with all its files and rename it to ``path``, which it replaces."""
    for root, _, names in os.walk(partial):
        for name in names:
            sync_file(Path(root) / name)
        sync_folder(Path(root))
    if path.exists():
        shutil.rmtree(path)
    move_synced(partial, path)


def whole_state(policy: ScoringModel) -> dict[str, Any]:
    """Return the state of a model that is split over processes, whole, on the first of them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(policy, options=options)
    return {name.removeprefix("model."): value for name, value in state.items()}


def _save_whole(folder: Path, policy: ScoringModel, optimizer: torch.optim.Optimizer) -> None:
    weights = trainable(policy)
    save_file(
        {k: v.detach().contiguous() for k, v in weights.items()}, folder / "model.safetensors"
    )
    moments = {
        f"{key}/{name}": value.contiguous()
        for name, parameter in weights.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / "optimizer.safetensors")
    save_file(_random_states(policy), folder / "random.safetensors")


def _load_whole(folder: Path, policy: ScoringModel, optimizer: torch.optim.Optimizer) -> None:
    weights = trainable(policy)
    saved = load_file(folder / "model.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    if saved.keys() != weights.keys():
        raise ValueError("its tensors are not those of the policy")
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(saved[name])
    for key, value in moments.items():
        kind, _, name = key.partition("/")
        # AdamW keeps its count of steps on the CPU unless it is fused on a GPU.
        optimizer.state[weights[name]][kind] = value.to(weights[name].device)
    random = load_file(folder / "random.safetensors")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and policy.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], policy.device)


def _random_states(policy: ScoringModel) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if policy.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(policy.device)
    return states


def _split_state(policy: ScoringModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(policy),
        "optimizer": get_optimizer_state_dict(policy, optimizer),
    }


def _load_split(folder: Path, policy: ScoringModel, optimizer: torch.optim.Optimizer) -> None:
    state = _split_state(policy, optimizer)
    state_dict_loader.load(state, checkpoint_id=folder)
    set_model_state_dict(policy, state["model"])
    set_optimizer_state_dict(policy, optimizer, state["optimizer"])
