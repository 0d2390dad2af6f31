"""Write and read a reference's output head: a safetensors file, stored once.

With the hidden states of tier ``hidden`` it gives the reference's whole distribution. The file
holds ``weight`` and ``bias`` in the reference's own dtype, and beside them, as one JSON text,
``scale`` and ``softcap``. The same head gives the same bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offpref.kernels.head import OutputHead
from offpref.stores.errors import ShardCorruptError, StoreReadError
from offpref.stores.files.regular import unreadable
from offpref.stores.keys import canonical_json
from offpref.stores.store import Store

from .hidden_states import DTYPES

_LARGEST = 1e300  # of a scale or a softcap
_METADATA = "head"  # one entry only: safetensors writes several in no fixed order


def head_content(head: OutputHead) -> bytes:
    """Return the file of a head; if it is split over processes, all of them must call this."""
    tensors = {"weight": _whole(head.weight)}
    if head.bias is not None:
        tensors["bias"] = _whole(head.bias)
    numbers = canonical_json({"scale": head.scale, "softcap": head.softcap})
    return save(tensors, {_METADATA: numbers})


def read_head(store: Store, scorer: str, device: torch.device | str = "cpu") -> OutputHead:
    """Return the head of a scorer.

    Its bytes are checked against its commit before they are used.

    Raises:
        ShardMissingError: If the store has none.
        ShardCorruptError: If its bytes are not those of its commit, or hold no head.
        StoreReadError: If the file system refuses.
    """
    path = store.verify_head(scorer)
    tensors, numbers = _read(path, str(device))
    weight, bias = tensors.get("weight"), tensors.get("bias")
    scale, softcap = numbers.get("scale"), numbers.get("softcap")
    is_head = (
        weight is not None
        and weight.ndim == 2
        and weight.numel() > 0
        and weight.dtype in DTYPES.values()
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype in DTYPES.values()))
        and _is_factor(scale)
        and (softcap is None or _is_factor(softcap))
    )
    if not is_head:
        raise ShardCorruptError(
            f"{path}: expected weight [V, H], bias [V] or none, scale and softcap greater than 0;"
            " offpref did not write this"
        )
    assert weight is not None
    assert scale is not None
    return OutputHead(weight=weight, bias=bias, scale=float(scale), softcap=softcap)


def shared_head(stored: OutputHead, policy: OutputHead) -> OutputHead:
    """Return the policy's own head if it is frozen and equal to the stored one, to the bit.

    This is the case under LoRA: then one copy and one product serve both policy and reference.
    """
    same = (
        type(policy.weight) in (Tensor, torch.nn.Parameter)  # not split over processes
        and not policy.weight.requires_grad
        and policy.weight.dtype == stored.weight.dtype
        and torch.equal(policy.weight, stored.weight)
        and (policy.scale, policy.softcap) == (stored.scale, stored.softcap)
        and _equal(policy.bias, stored.bias)
    )
    return policy if same else stored


def _is_factor(value: object) -> bool:
    """Whether a value is a number that logits can be multiplied by."""
    return type(value) in (int, float) and 0 < value < _LARGEST  # type: ignore[operator] # a number


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return not one.requires_grad and torch.equal(one, other)


def _whole(tensor: Tensor) -> Tensor:
    gathered: Any = tensor  # a DTensor under FSDP2
    whole = gathered.full_tensor() if hasattr(gathered, "full_tensor") else tensor
    return whole.detach().cpu().contiguous()


def _read(path: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # theirs
            return tensors, dict(json.loads(file.metadata()[_METADATA]))
    except OSError as error:
        raise StoreReadError(unreadable(path, error)) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ShardCorruptError(
            f"{path} cannot be read: {error}; run `offpref store verify`"
        ) from error
