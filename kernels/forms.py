"""Which form of a kernel runs: Triton on CUDA devices, plain torch everywhere else."""

import importlib.util
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Form = Literal["torch", "triton"]
"""Who computes: plain torch, in pieces that stay in a cache, or Triton's kernels on CUDA."""


def choose_form(tensor: Tensor, form: Form | None = None) -> Form:
    """Return the requested form, or the best one for a tensor's device and dtype.

    Raises:
        ValueError: If there is no such form, or Triton is requested where it cannot run.
    """
    check_form(form, tensor.device)
    if form is None:
        is_fit = tensor.is_cuda and tensor.element_size() <= 4  # float64 is plain torch's
        return "triton" if is_fit and has_triton() else "torch"
    if form == "triton" and tensor.element_size() > 4:
        raise ValueError("form 'triton' computes in float32, got float64; take form 'torch'")
    return form


def check_form(form: Form | None, device: torch.device) -> None:
    """Raise ValueError where there is no such form, or it cannot run on a device."""
    if form is not None and form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    if form != "triton":
        return
    if not has_triton():
        raise ValueError("form 'triton' needs the package triton (Linux only), which is missing")
    if device.type != "cuda" and not _has_interpreter():
        raise ValueError(
            f"form 'triton' needs a CUDA device, got {device}; to try it on a CPU, slowly, set "
            "TRITON_INTERPRET=1"
        )


def _has_interpreter() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def has_triton() -> bool:
    """Return whether Triton is installed; it is not imported."""
    return importlib.util.find_spec("triton") is not None
