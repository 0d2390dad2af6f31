"""Keep gradients on a CPU in memory of their own; sum those of the widest matrices in place.

torch allocates a gradient among the activations of a backward pass, and the gradient outlives them.
That leaves holes in the heap, which after some steps take as much as the activations themselves.
Here each gradient has one place, from the first step to the last.

Embedding and output head are the widest matrices of a small model. For every microbatch, torch
writes each of their gradients as a whole and adds it to the sum; but a microbatch has a thousand
tokens, so an embedding's gradient has as many rows, and the head's comes block by block.

Letters in shape comments: V vocabulary, H hidden size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GradientMemory:
    """Where the gradients of some parameters are kept; for one process, on a CPU.

    Values are those that torch would have left in ``grad``, to the last bit, except for an
    embedding and a head tied to one, whose terms are summed in another order. If a parameter had
    no gradient in a step, ``grad`` is None as usual.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Provide memory for all gradients, each from its first use on.

        Args:
            parameters: Leaves that require a gradient.
        """
        self._kept: dict[Tensor, Tensor] = {}
        for parameter in parameters:
            self._kept[parameter] = torch.empty_like(parameter, requires_grad=False)
            parameter.register_post_accumulate_grad_hook(self._keep)  # type: ignore[no-untyped-call] # torch

    def summed(self, weight: Tensor) -> Tensor | None:
        """Return the tensor that a weight's gradient is added to; None if torch adds it."""
        if weight.grad is None and weight in self._kept:
            weight.grad = self._kept[weight].zero_()
        return weight.grad if weight in self._kept else None

    def sum_embeddings(self, model: nn.Module) -> None:
        """Let every plain embedding of a model add its gradient in place.

        Only the class of a layer changes. Hooks on the weight are no longer called.
        """
        embeddings: list[Any] = [each for each in model.modules() if type(each) is nn.Embedding]
        for embedding in embeddings:
            if embedding.weight in self._kept and not _is_special(embedding):
                embedding.__class__ = SummingEmbedding
                embedding.memory = self

    def _keep(self, parameter: Tensor) -> None:
        kept, gradient = self._kept[parameter], parameter.grad
        if gradient is not None and gradient is not kept:  # the first microbatch of a step
            parameter.grad = kept.copy_(gradient)


class SummingEmbedding(nn.Embedding):
    """torch's embedding; a backward pass adds only the rows it used to the weight's gradient."""

    memory: GradientMemory

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the weight that ``input`` names."""
        if not torch.is_grad_enabled():
            return super().forward(input)
        outputs: Tensor = _Rows.apply(self.weight, input, self.padding_idx, self.memory)  # type: ignore[no-untyped-call] # torch
        return outputs


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch gives the context no public type
        weight: Tensor,  # [V, H]
        ids: Tensor,
        padding_id: int | None,
        memory: GradientMemory,
    ) -> Tensor:  # [..., H]
        ctx.weight, ctx.padding_id, ctx.memory = weight, padding_id, memory
        ctx.save_for_backward(ids)
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        (ids,) = ctx.saved_tensors
        ids, grad = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding_id is not None:
            is_kept = ids != ctx.padding_id
            ids, grad = ids[is_kept], grad[is_kept]
        ctx.memory.summed(ctx.weight).index_add_(0, ids, grad.to(ctx.weight.dtype))
        return None, None, None, None


def _is_special(embedding: nn.Embedding) -> bool:
    """Return whether an embedding does more than look up rows."""
    has_norm = embedding.max_norm is not None
    return has_norm or embedding.scale_grad_by_freq or embedding.sparse
