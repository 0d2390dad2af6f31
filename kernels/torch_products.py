"""Matrix products on CPUs, through whichever library is the faster one.

torch sends a float32 product on a CPU to MKL, which does not use all of an AMD processor. oneDNN,
which torch also brings, generates code for the processor it finds; on an AMD with AVX-512 it runs
the products of a transformer at about twice the rate (docs/kernels.md). Both sum in float32.

oneDNN keeps half a megabyte of code for every shape it has met, and batches have a new number
of tokens each time: a training would grow without end. It therefore gets a whole number of steps of
tokens, of which there are few, and the tokens beyond, a hundredth, go to torch.

Letters in shape comments: M, K, N rows, summed and columns of a product; T tokens.
"""

import platform
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_MIN_TOKENS = 64  # below, a product waits for its weight to come from memory: all are as fast
_MIN_WORK = 1 << 22  # multiplications below which cutting off the tokens beyond costs more
_MIN_STEP, _STEPS_TO_DOUBLE = 16, 32


def product(
    left: Tensor,  # [T, K]
    right: Tensor,  # [K, N]
    bias: Tensor | None = None,  # [N]
) -> Tensor:  # [T, N]
    """Return ``left @ right + bias``; any strides, any device, without gradient.

    >>> product(torch.ones(2, 3), torch.ones(3, 4)).sum()
    tensor(24.)
    """
    num_even = _num_for_onednn(len(left), right.numel(), _kind(left), _kind(right))
    if not num_even:
        return left @ right if bias is None else torch.addmm(bias, left, right)
    even = _onednn(left[:num_even], right.t(), bias)
    if num_even == len(left):
        return even
    out = even.new_empty(len(left), right.shape[1])
    out[:num_even] = even
    rest = left[num_even:]
    if bias is None:
        torch.mm(rest, right, out=out[num_even:])
    else:
        torch.addmm(bias, rest, right, out=out[num_even:])
    return out


def product_over_tokens(
    left: Tensor,  # [T, M]
    right: Tensor,  # [T, N]
) -> Tensor:  # [M, N]
    """Return ``left.t() @ right``: the gradient of a weight; any strides, without gradient.

    >>> product_over_tokens(torch.ones(2, 3), torch.ones(2, 4)).sum()
    tensor(24.)
    """
    work = left.shape[1] * right.shape[1]
    num_even = _num_for_onednn(len(left), work, _kind(left), _kind(right))
    if not num_even:
        return left.t() @ right
    out = _onednn(left[:num_even].t(), right[:num_even].t(), None)
    if num_even < len(left):
        out.addmm_(left[num_even:].t(), right[num_even:])
    return out


def even_tokens(num_tokens: int) -> int:
    """Return for how many of some tokens code is generated: all, but for less than a step.

    A step is 16 tokens, from 1,024 tokens on a 32nd to a 64th of them: 64 numbers of tokens up to
    1,024 and 32 for each doubling.
    """
    if num_tokens < _MIN_TOKENS:
        return 0
    step = _step(num_tokens)
    return num_tokens // step * step


def padded_tokens(num_tokens: int, weight: Tensor, dtype: torch.dtype) -> int:
    """Return to how many tokens a product with a weight is best padded.

    Where a weight comes from memory, a few rows of zeros cost less than to read it once more for
    the tokens beyond a step.

    Args:
        num_tokens: T.
        weight: The other factor, on the device of the product.
        dtype: Of the product.
    """
    num_even = _num_for_onednn(num_tokens, weight.numel(), (dtype, weight.device))
    return num_tokens if num_even in (0, num_tokens) else num_even + _step(num_tokens)


def _num_for_onednn(num_tokens: int, work: int, *kinds: tuple[torch.dtype, torch.device]) -> int:
    """Return how many of the tokens oneDNN shall take; 0 where it is better left to torch.

    Args:
        num_tokens: T.
        work: Multiplications of one token.
        kinds: Dtype and device of each factor.
    """
    is_small = not work or num_tokens * work < _MIN_WORK
    if is_small or not all(_fits_onednn(dtype, device) for dtype, device in kinds):
        return 0
    return even_tokens(num_tokens)


def _kind(factor: Tensor) -> tuple[torch.dtype, torch.device]:
    return factor.dtype, factor.device


def _step(num_tokens: int) -> int:
    return max(_MIN_STEP, (1 << (num_tokens.bit_length() - 1)) // _STEPS_TO_DOUBLE)


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
    rows = inputs.reshape(-1, inputs.shape[-1])
    num_even = _num_for_onednn(len(rows), weight.numel(), _kind(inputs), _kind(weight))
    if torch.is_autocast_enabled(inputs.device.type) or not num_even:
        return torch.nn.functional.linear(inputs, weight, bias)
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
        return product(inputs, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight) if needs_inputs else None,
            product_over_tokens(grad, inputs) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator that torch's own compiler calls for a linear layer on a CPU.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return out


def _fits_onednn(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether oneDNN takes such a factor: float32, on an x86 CPU."""
    return dtype == torch.float32 and device.type == "cpu" and _has_onednn()


def _has_onednn() -> bool:
    mkldnn: Any = torch.backends.mkldnn  # its flag is not in the type stubs
    return (
        _IS_X86
        and mkldnn.is_available()
        and mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
