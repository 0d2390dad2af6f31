"""The random states of a process: kept, put back, and left alone while something is measured."""

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
    """Put the states of generators back, as :func:`random_states` has named them."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and leave it and the random states as they were.

    What is measured inside is no matter of chance, and whether something is measured changes
    nothing of what is trained: a run draws the same numbers with and without it.
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
