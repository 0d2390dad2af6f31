"""Checkpoints of a run: written whole or not at all, and read back to the last bit.

    output/run.json                         the run: its id, its attempt, what it depends on
    output/checkpoints/step-00000020/       state.json, model.safetensors, optimizer.safetensors,
                                            random.safetensors; or, where the model is split over
                                            processes, what torch.distributed.checkpoint writes

A checkpoint is written beside, fsynced and renamed. The position in the data is the step number;
the learning rate is a function of it. A checkpoint of one process contains no pickle.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)

from offpref.pipeline.models.random_states import random_states, restore_random_states
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.models.tensor_files import tensor_errors
from offpref.stores.errors import StoreFormatError
from offpref.stores.files.crash import crash_at
from offpref.stores.files.placing import (
    clear_write_errors,
    make_folder,
    place_folder,
    write_synced,
)

from .policies import Learner, trainable

FOLDER, STATE_FILE = "checkpoints", "state.json"


def save_checkpoint(
    output_dir: Path, learner: Learner, state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint of ``state["step"]`` and return it; keep only the newest ``keep`` ones.

    Raises:
        StoreWriteError: If the file system refuses.
    """
    policy, optimizer, processes = learner.policy, learner.optimizer, learner.processes
    folder = output_dir / FOLDER
    path = folder / f"step-{state['step']:08d}"
    partial = folder / f".partial-{path.name}"
    with clear_write_errors(path), tensor_errors(), _gone_after_an_error(partial):
        if processes.is_first:
            make_folder(folder)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        processes.wait()
        if processes.mesh is None:
            _save_whole(partial, policy, optimizer)
        else:
            tensors = _split_state(policy, optimizer, processes.rank)
            state_dict_saver.save(tensors, checkpoint_id=partial)
        processes.wait()
        if processes.is_first:
            write_synced(json.dumps(dict(state)).encode(), partial / STATE_FILE)
            place_folder(partial, path)
            crash_at("checkpoint-placed")
            for old in sorted(folder.glob("step-*"))[:-keep]:
                shutil.rmtree(old)
    processes.wait()
    return path


@contextmanager
def _gone_after_an_error(partial: Path) -> Iterator[None]:
    """Remove a half-written checkpoint after an error: the disk may be full."""
    try:
        yield
    except BaseException:  # Ctrl-C as well
        shutil.rmtree(partial, ignore_errors=True)
        raise


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


def load_checkpoint(checkpoint: Path, learner: Learner) -> None:
    """Put weights, optimizer and random states back.

    Raises:
        StoreFormatError: If the checkpoint is damaged, or does not fit the policy.
    """
    policy, optimizer, processes = learner.policy, learner.optimizer, learner.processes
    is_split = (checkpoint / ".metadata").exists()
    if is_split != (processes.mesh is not None):
        raise StoreFormatError(
            f"{checkpoint} was written by {'several processes' if is_split else 'one process'}; "
            "resume in the same way"
        )
    try:
        with tensor_errors():
            if is_split:
                _load_split(checkpoint, policy, optimizer, processes.rank)
            else:
                _load_whole(checkpoint, policy, optimizer)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreFormatError(f"{checkpoint} cannot be loaded: {error}") from error


def whole_state(policy: ScoringModel) -> dict[str, Any]:
    """Return the state of a model that is split over processes, whole, on the first of them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(policy, options=options)
    once = {name for name, _ in policy.named_parameters()}
    every = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    return {  # a tied tensor comes once, under the name that the model's own folder has
        name.removeprefix("model."): value
        for name, value in state.items()
        if name not in every - once
    }


def _save_whole(folder: Path, policy: ScoringModel, optimizer: torch.optim.Optimizer) -> None:
    weights = {k: v.detach().contiguous() for k, v in trainable(policy).items()}
    save_file(weights, folder / "model.safetensors")
    save_file(_moments(policy, optimizer), folder / "optimizer.safetensors")
    save_file(random_states(policy.device), folder / "random.safetensors")


def _load_whole(folder: Path, policy: ScoringModel, optimizer: torch.optim.Optimizer) -> None:
    weights = {k: v.detach() for k, v in trainable(policy).items()}
    _copy(load_file(folder / "model.safetensors"), weights)
    _copy(load_file(folder / "optimizer.safetensors"), _moments(policy, optimizer))
    restore_random_states(load_file(folder / "random.safetensors"), policy.device)


def _copy(saved: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    if saved.keys() != places.keys():
        raise ValueError("its tensors are not those of the policy")
    for name, place in places.items():
        place.copy_(saved[name])


def _split_state(
    policy: ScoringModel, optimizer: torch.optim.Optimizer, rank: int
) -> dict[str, Any]:
    return {
        "model": {k: v.detach() for k, v in trainable(policy).items()},
        "optimizer": _moments(policy, optimizer),
        "random": {f"{kind}/{rank}": state for kind, state in random_states(policy.device).items()},
    }


def _load_split(
    folder: Path, policy: ScoringModel, optimizer: torch.optim.Optimizer, rank: int
) -> None:
    state = _split_state(policy, optimizer, rank)
    state_dict_loader.load(state, checkpoint_id=folder)  # into the tensors that are there
    random = {name.partition("/")[0]: value for name, value in state["random"].items()}
    restore_random_states(random, policy.device)


def _moments(policy: ScoringModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state by the names of the parameters; made where there is none yet."""
    moments: dict[str, Tensor] = {}
    for name, parameter in trainable(policy).items():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter).detach()
            state["exp_avg_sq"] = torch.zeros_like(parameter).detach()
        moments |= {f"{kind}/{name}": value for kind, value in state.items()}
    return moments
