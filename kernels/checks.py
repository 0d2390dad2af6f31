"""Checks of the kernels' arguments: shapes, dtypes, devices and numbers that do not fit.

Every error is a ValueError that says what was expected and what came. On a GPU nothing waits for a
check.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .distributions import HiddenReference, Reference, TopKReference
from .head import Transform
from .inputs import NEEDS_REFERENCE, WANTED, LinearInputs
from .labels import IGNORE_INDEX


def check_linear(inputs: LinearInputs) -> None:
    """Raise ValueError where hidden states, head, labels, reference or wanted names do not fit."""
    hidden, head, labels, reference, want, workspace_bytes = inputs
    weight, bias = head.weight, head.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden [T, H] and the head's weight [V, H] must share H, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    _check_label_tensor(labels, hidden)
    columns = head.vocab_size
    if isinstance(reference, HiddenReference) and want & set(NEEDS_REFERENCE):
        columns = min(columns, reference.head.vocab_size)  # no others carry a probability
    check_labels(labels, columns)
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise ValueError(f"dtypes must be floating, got {hidden.dtype} and {weight.dtype}")
    _check_devices(hidden, weight, bias, labels)
    _check_names(want, WANTED)
    _check_numbers(head.scale, head.softcap)
    if workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes must be greater than 0, got {workspace_bytes}")
    wanted = [name for name in WANTED if name in want and name in NEEDS_REFERENCE]
    if reference is None:
        if wanted:
            raise ValueError(f"reference must be given for {', '.join(wanted)}, got None")
        return
    check_reference(reference, hidden.shape[0], head.vocab_size)
    if isinstance(reference, TopKReference) and "reverse_kl" in wanted:
        raise ValueError("reverse_kl needs the whole reference, got its k most likely tokens")


def check_logits(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor | None,
    *,
    want: Sequence[str],
    transform: Transform,
    ref_transform: Transform,
) -> None:
    """Raise ValueError where given logits, labels, transforms or wanted names do not fit."""
    for name, each in (("logits", logits), ("ref_logits", ref_logits)):
        if each is None:
            continue
        if each.ndim != 2 or not each.is_floating_point() or len(each) != len(logits):
            raise ValueError(
                f"{name} must be floating [T, V], one row per token, got {each.dtype} "
                f"{tuple(each.shape)}"
            )
    _check_label_tensor(labels, logits)
    for each, own in ((logits, transform), (ref_logits, ref_transform)):
        if each is None:
            continue
        _check_numbers(own.scale, own.softcap)
        if own.bias is not None and own.bias.shape != each.shape[1:]:
            raise ValueError(f"bias must be [{each.shape[1]}], got {tuple(own.bias.shape)}")
    _check_devices(logits, labels, ref_logits)
    _check_names(want, WANTED)
    if (wanted := sorted(set(NEEDS_REFERENCE) & set(want))) and ref_logits is None:
        raise ValueError(f"ref_logits must be given for {', '.join(wanted)}, got None")


def check_rows(logits: Tensor, labels: Tensor, transform: Transform, first_column: int = 0) -> None:
    """Raise ValueError where a block of rows does not fit what a Triton kernel expects."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating [T, V], got {logits.dtype} {logits.shape}")
    _check_label_tensor(labels, logits)
    if not labels.is_contiguous():
        raise ValueError(f"labels must be contiguous, got stride {labels.stride()}")
    bias, needed = transform.bias, first_column + logits.shape[1]
    if bias is not None and (bias.ndim != 1 or bias.shape[0] < needed or bias.stride() != (1,)):
        raise ValueError(f"bias must be contiguous [{needed}], got {tuple(bias.shape)}")
    _check_devices(logits, labels, bias)
    _check_numbers(transform.scale, transform.softcap)


def check_labels(labels: Tensor, vocab_size: int) -> None:  # [T] int64
    """Raise ValueError for a label that is not a column; on a GPU nothing waits for the check."""
    if labels.device.type != "cpu" or not labels.numel():
        return
    kept = labels[labels != IGNORE_INDEX]
    if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < vocab_size:
        bad = kept[(kept < 0) | (kept >= vocab_size)][0]
        raise ValueError(
            f"labels must be between 0 and {vocab_size - 1}, or {IGNORE_INDEX} to be ignored, "
            f"got {int(bad)}"
        )


def check_reference(reference: Reference, num_tokens: int, vocab_size: int) -> None:
    """Raise ValueError where shapes or dtypes of a reference do not fit the tokens."""
    if isinstance(reference, HiddenReference):
        hidden, weight = reference.hidden, reference.head.weight
        if hidden.ndim != 2 or hidden.shape != (num_tokens, weight.shape[1]):
            raise ValueError(
                f"the reference's hidden states must be [{num_tokens}, {weight.shape[1]}], "
                f"got {tuple(hidden.shape)}"
            )
        return
    k = reference.ids.shape[-1]
    shapes = [tuple(t.shape) for t in (reference.ids, reference.logps, reference.tail_logps)]
    if shapes != [(num_tokens, k), (num_tokens, k), (num_tokens,)]:
        raise ValueError(
            f"a top-k reference must be [{num_tokens}, k], [{num_tokens}, k] and [{num_tokens}], "
            f"got {', '.join(map(str, shapes))}"
        )
    if reference.ids.dtype != torch.int64 or not 0 < k <= vocab_size:
        raise ValueError(
            f"ids must be int64 and k between 1 and {vocab_size}, got {reference.ids.dtype}, {k}"
        )
    if reference.ids.device.type == "cpu" and num_tokens:  # a GPU would have to be waited for
        lowest, highest = map(int, reference.ids.aminmax())
        if lowest < 0 or highest >= vocab_size:
            bad = lowest if lowest < 0 else highest
            raise ValueError(f"ids must be between 0 and {vocab_size - 1}, got {bad}")


def _check_label_tensor(labels: Tensor, rows: Tensor) -> None:
    if labels.shape != rows.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [{rows.shape[0]}], got {labels.dtype} {tuple(labels.shape)}"
        )


def _check_devices(*tensors: Tensor | None) -> None:
    devices = {str(tensor.device) for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {sorted(devices)}")


def _check_names(want: Collection[str], known: Sequence[str]) -> None:
    if unknown := set(want) - set(known):
        raise ValueError(f"want must be out of {known}, got {sorted(unknown)}")


def _check_numbers(scale: float, softcap: float | None) -> None:
    if not scale > 0:
        raise ValueError(f"scale must be greater than 0, got {scale}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be greater than 0 or None, got {softcap}")
