"""The random states of a process: saved, restored, and unchanged by measuring."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

RandomStates: TypeAlias = Mapping[str, Tensor]
"""States of generators, by the kind of device."""


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that a model on this device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: RandomStates, device: torch.device) -> None:
    """Restore the states of generators, as :func:`random_states` returned them."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, then restore its mode and the random states.

    Measurements inside are not random, and measuring does not change what is trained: a run draws
    the same numbers with and without it.
    """
    device = next(model.parameters()).device
    in_training = [module for module in model.modules() if module.training]
    states = random_states(device)
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
        restore_random_states(states, device)
