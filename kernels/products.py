"""Matrix products on CPUs, through whichever library is the faster one.

torch sends a float32 product on a CPU to MKL, which does not use all of an AMD processor. oneDNN,
which torch also brings, generates code for the processor it finds; on an AMD with AVX-512 it runs
the products of a transformer at about twice the rate (docs/kernels.md). Both sum in float32.

Letters in shape comments: M, K, N rows, summed and columns of a product.
"""

import platform
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IS_X86 = platform.machine() in ("x86_64", "AMD64")


def product(
    left: Tensor,  # [M, K]
    right: Tensor,  # [K, N]
    bias: Tensor | None = None,  # [N]
) -> Tensor:  # [M, N]
    """Return ``left @ right + bias``; any strides, any device, without gradient.

    >>> product(torch.ones(2, 3), torch.ones(3, 4)).sum()
    tensor(24.)
    """
    if _fits_onednn(left, right):
        return _onednn(left, right.t(), bias)
    return left @ right if bias is None else torch.addmm(bias, left, right)


def wide_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``left @ right``, summed and given out in ``dtype``; [M, K], [K, N] -> [M, N].

    A GPU multiplies half-precision factors exactly and sums them in float32. Where the factors'
    dtypes differ, ``left`` is rounded to that of ``right``.
    """
    if right.dtype == dtype or not right.is_cuda:
        return product(left.to(dtype), right.to(dtype))
    return torch.mm(left.to(right.dtype), right, out_dtype=dtype)


def linear(
    inputs: Tensor,  # [..., K]
    weight: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [N]
) -> Tensor:  # [..., N]
    """Return what :func:`torch.nn.functional.linear` returns, with gradients; once differentiable.

    Under autocast, and wherever oneDNN's float32 product does not apply, it is that function.
    """
    if torch.is_autocast_enabled(inputs.device.type) or not _fits_onednn(inputs, weight):
        return torch.nn.functional.linear(inputs, weight, bias)
    rows = inputs.reshape(-1, inputs.shape[-1])
    outputs: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call] # torch
    return outputs.view(*inputs.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight) if needs_inputs else None,
            product(grad.t(), inputs) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator that torch's own compiler calls for a linear layer on a CPU.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return out


def _fits_onednn(*factors: Tensor) -> bool:
    """Return whether oneDNN takes a product of these: float32, on an x86 CPU, none of it empty."""
    return _has_onednn() and all(
        factor.dtype == torch.float32 and factor.device.type == "cpu" and factor.numel() > 0
        for factor in factors
    )


def _has_onednn() -> bool:
    mkldnn: Any = torch.backends.mkldnn  # its flag is not in the type stubs
    return (
        _IS_X86
        and mkldnn.is_available()
        and mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
