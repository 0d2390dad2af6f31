"""Scores from hidden states and head on a GPU: a library's product of a chunk, then Triton.

Forward, chunks of tokens with all columns: one product to float32, one pass of the row kernel.
Backward, blocks of the vocabulary: the product again, the gradient in the place of the logits,
then its products with weight and hidden states; each block of the weight's gradient is written
once, without atomics, so the result is the same every time.

Letters in shape comments: T tokens, V vocabulary, H hidden size, t and v a block of them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .distributions import HiddenReference, Reference, TopKReference
from .head import PLAIN, OutputHead, Transform
from .inputs import LinearInputs
from .labels import label_columns
from .topk import topk_extra, topk_kl
from .torch_blocks import BlockShape, block_shape
from .torch_products import wide_product
from .triton_rows import TritonRowStats, backward_rows, forward_rows

KLS = ("forward_kl", "reverse_kl")


class _Source(NamedTuple):
    """Hidden states and head of one side, over the columns that both sides have."""

    hidden: Tensor
    head: OutputHead
    vocab_size: int

    def raw(self, rows: slice | Tensor, v: slice) -> Tensor:  # [t, v]
        return wide_product(self.hidden[rows], self.head.weight[v].t(), torch.float32)

    @property
    def transform(self) -> Transform:
        head = self.head
        return Transform(
            scale=head.scale, softcap=head.softcap, bias=head.bias, vocab_size=self.vocab_size
        )


def _both(
    policy: _Source, whole: _Source, rows: slice | Tensor, v: slice
) -> tuple[Tensor, Tensor]:  # [t, v], [t, v]
    """Return the raw logits of both; where they have one weight (LoRA), from one product."""
    mine, theirs = policy.head.weight, whole.head.weight
    if mine.data_ptr() != theirs.data_ptr() or mine.shape != theirs.shape:
        return policy.raw(rows, v), whole.raw(rows, v)
    inputs = torch.cat((policy.hidden[rows], whole.hidden[rows].to(policy.hidden.dtype)))
    raw = wide_product(inputs, mine[v].t(), torch.float32)
    return raw[: len(raw) // 2], raw[len(raw) // 2 :]


def forward(
    inputs: LinearInputs,
) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    """Return the results, [T] each, and what the backward pass needs of them."""
    hidden, head, labels, reference, want, workspace_bytes = inputs
    policy, whole = _sources(hidden, head, reference)
    top = reference if isinstance(reference, TopKReference) else None
    exact = want - set(KLS) if whole is None else want
    per_token = 4 * policy.vocab_size * (1 if whole is None else 2)
    shape = BlockShape(max(1, workspace_bytes // per_token), policy.vocab_size)
    parts: list[TritonRowStats] = []
    picked: list[Tensor] = []
    everything = slice(0, policy.vocab_size)
    # Without tokens, one empty chunk gives the results their shape.
    for rows in list(shape.tokens(slice(None), len(labels))) or [slice(0, 0)]:
        if whole is None:
            raw, ref_raw = policy.raw(rows, everything), None
        else:
            raw, ref_raw = _both(policy, whole, rows, everything)
        stats = forward_rows(
            raw, labels[rows], want=exact, transform=policy.transform, ref_logits=ref_raw,
            ref_transform=PLAIN if whole is None else whole.transform,
        )  # fmt: skip
        parts.append(stats)
        if top is not None:
            picked.append(_transformed(raw, top.ids[rows], policy.head))
    together = zip(*parts, strict=True)
    stats = TritonRowStats(
        *(None if fields[0] is None else torch.cat(fields) for fields in together)  # type: ignore[arg-type] # the same are None in all
    )
    results = {name: getattr(stats, name) for name in want}
    top_logits = torch.cat(picked) if picked else None
    if top is not None and "forward_kl" in want:
        assert top_logits is not None
        results["forward_kl"] = topk_kl(
            top, top_logits - stats.max_logits[:, None], stats.log_sums[:, None]
        ).squeeze(1)
    return results, (*stats, top_logits)


def backward(
    inputs: LinearInputs,
    saved: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],  # [T] each
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias, those that are needed."""
    hidden, head, labels, reference, _, workspace_bytes = inputs
    policy, whole = _sources(hidden, head, reference)
    step = _Backward(inputs, (policy, whole), saved, grads)
    sums = _GradientSums(policy, needs)
    shape = _shape(policy, whole, workspace_bytes)
    for v in shape.vocabulary(policy.vocab_size):
        for members, is_reference in step.groups():
            for rows in shape.tokens(members, len(labels)):
                sums.add(rows, v, step.block(rows, v, is_reference=is_reference))
        sums.finish(v)
    return sums.hidden_as(hidden), sums.weight, sums.bias_as(head.bias)


class _Backward:
    """Makes the gradient of a block of raw logits."""

    def __init__(
        self,
        inputs: LinearInputs,
        sources: tuple[_Source, _Source | None],
        saved: tuple[Tensor | None, ...],
        grads: Mapping[str, Tensor | None],
    ) -> None:
        self.policy, self.whole = sources
        self.labels, reference = inputs.labels, inputs.reference
        self.stats = TritonRowStats(*saved[:-1])  # type: ignore[arg-type] # as they went
        self.grads = {name: grads.get(name) for name in ("token_logps", "entropy", *KLS)}
        self.q_coefs: Tensor | None = None
        self.extra = None
        top_logits, kl = saved[-1], self.grads["forward_kl"]
        if isinstance(reference, TopKReference) and top_logits is not None and kl is not None:
            top_logits = top_logits - self.stats.max_logits[:, None]
            log_sums = self.stats.log_sums[:, None]
            self.extra = topk_extra(reference, top_logits, log_sums, kl[:, None])
            logps = self.grads["token_logps"]
            self.q_coefs = (0.0 if logps is None else logps) - self.extra.coefs.squeeze(1)
            self.grads["forward_kl"] = None

    def groups(self) -> Iterator[tuple[slice | Tensor, bool]]:
        """Yield tokens, and whether the reference's product alone gives their gradient (TDPO1)."""
        is_alone = self._needs_only_reference()
        if is_alone is None:
            yield slice(None), False
            return
        for members, flag in ((is_alone, True), (~is_alone, False)):
            numbers = members.nonzero().squeeze(1)
            if len(numbers):
                yield (slice(None) if len(numbers) == len(members) else numbers), flag

    def _needs_only_reference(self) -> Tensor | None:
        logps, kl = self.grads["token_logps"], self.grads["forward_kl"]
        if logps is None or kl is None or self.whole is None:
            return None
        mine, theirs = self.policy.head, self.whole.head
        if mine.softcap is not None or theirs.softcap is not None or mine.scale != theirs.scale:
            return None
        is_alone = logps == kl
        for name in ("entropy", "reverse_kl"):
            if (grad := self.grads[name]) is not None:
                is_alone &= grad == 0
        return is_alone

    def block(self, rows: slice | Tensor, v: slice, *, is_reference: bool) -> Tensor:  # [t, v]
        labels, logps = self.labels[rows].contiguous(), _of(self.grads["token_logps"], rows)
        stats = TritonRowStats(*(_of(each, rows) for each in self.stats))  # type: ignore[arg-type]
        if is_reference:
            assert self.whole is not None
            raw = self.whole.raw(rows, v)
            return backward_rows(
                raw, labels, stats.of_reference(), grad_logps=logps,
                transform=self.whole.transform, first_column=v.start, out=raw,
            )  # fmt: skip
        kls = {f"grad_{name}": _of(self.grads[name], rows) for name in KLS}
        if self.whole is None or not any(grad is not None for grad in kls.values()):
            raw, ref_raw = self.policy.raw(rows, v), None
        else:
            raw, ref_raw = _both(self.policy, self.whole, rows, v)
        extra = self._extra(raw, rows, v)
        out = backward_rows(
            raw, labels, stats, grad_logps=logps, grad_entropy=_of(self.grads["entropy"], rows),
            grad_forward_kl=kls["grad_forward_kl"], grad_reverse_kl=kls["grad_reverse_kl"],
            q_coefs=_of(self.q_coefs, rows), transform=self.policy.transform,
            first_column=v.start, out=raw,
            ref_logits=ref_raw,
            ref_transform=PLAIN if self.whole is None else self.whole.transform,
        )  # fmt: skip
        if extra is not None:
            out.scatter_add_(1, *extra)
        return out

    def _extra(self, raw: Tensor, rows: slice | Tensor, v: slice) -> tuple[Tensor, Tensor] | None:
        """Return what the top k get besides, as columns of the block and values."""
        if self.extra is None:
            return None
        places, is_here = label_columns(self.extra.columns[rows], v)
        values = torch.where(is_here, self.extra.values[rows], 0.0) * self.policy.head.scale
        if (softcap := self.policy.head.softcap) is not None:
            bias = self.policy.head.bias
            logits = raw.gather(1, places)
            logits = logits if bias is None else logits + bias[v][places]
            values = values * (1 - torch.tanh(logits * self.policy.head.scale / softcap) ** 2)
        return places, values


class _GradientSums:
    """Where the gradients of blocks add up, in float32."""

    def __init__(self, policy: _Source, needs: tuple[bool, bool, bool]) -> None:
        needs_hidden, needs_weight, needs_bias = needs
        head = policy.head
        self._policy = policy
        self._hidden = (
            torch.zeros_like(policy.hidden, dtype=torch.float32) if needs_hidden else None
        )
        self.weight = torch.empty_like(head.weight) if needs_weight else None
        self._bias = (
            torch.zeros_like(head.bias, dtype=torch.float32)
            if needs_bias and head.bias is not None
            else None
        )
        self._block: Tensor | None = None
        if self.weight is not None:
            self.weight[policy.vocab_size :] = 0

    def add(self, rows: slice | Tensor, v: slice, grad: Tensor) -> None:  # [t, v]
        """Take the gradient of a block of raw logits."""
        inputs, weight = self._policy.hidden[rows], self._policy.head.weight[v]
        if self._hidden is not None:
            part = wide_product(grad, weight, torch.float32)
            if isinstance(rows, Tensor):
                self._hidden.index_add_(0, rows, part)
            else:
                self._hidden[rows].add_(part)
        if self.weight is not None:
            part = wide_product(grad.t(), inputs, torch.float32)
            self._block = part if self._block is None else self._block.add_(part)
        if self._bias is not None:
            self._bias[v] += grad.sum(0)

    def finish(self, v: slice) -> None:
        """Write the block of the weight's gradient, in the dtype of the weight."""
        if self.weight is not None:
            self.weight[v] = 0 if self._block is None else self._block
            self._block = None

    def hidden_as(self, hidden: Tensor) -> Tensor | None:
        """Return the gradient of the hidden states in their dtype."""
        return None if self._hidden is None else self._hidden.to(hidden.dtype)

    def bias_as(self, bias: Tensor | None) -> Tensor | None:
        """Return the gradient of the bias in its dtype."""
        return None if self._bias is None or bias is None else self._bias.to(bias.dtype)


def _sources(
    hidden: Tensor, head: OutputHead, reference: Reference | None
) -> tuple[_Source, _Source | None]:
    if not isinstance(reference, HiddenReference):
        return _Source(hidden, head, head.vocab_size), None
    common = min(head.vocab_size, reference.head.vocab_size)
    return (
        _Source(hidden, head, common),
        _Source(reference.hidden, reference.head, common),
    )


def _shape(policy: _Source, whole: _Source | None, workspace_bytes: int) -> BlockShape:
    widths = [side.head.hidden_size for side in (policy, whole) if side is not None]
    return block_shape(
        policy.hidden.shape[0], policy.vocab_size, max(widths),
        dtype=torch.float32, workspace_bytes=workspace_bytes,
        num_blocks=2 if whole is None else 3,  # and one rounded to the dtype of the weight
    )  # fmt: skip


def _transformed(raw: Tensor, columns: Tensor, head: OutputHead) -> Tensor:  # [t, V], [t, k]
    logits = raw.gather(1, columns)
    if head.bias is not None:
        logits = logits + head.bias[columns]
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _of(values: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    return None if values is None else values[rows]
