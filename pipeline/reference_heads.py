"""A reference's output head on its way into the store and back: a safetensors file, kept once.

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

from ..kernels.head import OutputHead
from ..stores.errors import ShardCorruptError, ShardMissingError
from ..stores.keys import canonical_json
from ..stores.store import Store

_METADATA = "head"  # one entry only: safetensors writes several in no fixed order


def head_content(head: OutputHead) -> bytes:
    """Return the file of a head; where it is split over processes all of them must ask."""
    tensors = {"weight": _whole(head.weight)}
    if head.bias is not None:
        tensors["bias"] = _whole(head.bias)
    numbers = canonical_json({"scale": head.scale, "softcap": head.softcap})
    return save(tensors, {_METADATA: numbers})


def read_head(store: Store, scorer: str, device: torch.device | str = "cpu") -> OutputHead:
    """Return the head of a scorer.

    Raises:
        ShardMissingError: If the store has none.
        ShardCorruptError: If it cannot be read.
    """
    path = store.head_path(scorer)
    if not path.exists():
        raise ShardMissingError(
            f"{path} is gone, though rows of tier hidden need it; run `offpref store verify`"
        )
    tensors, numbers = _read(path, str(device))
    return OutputHead(
        weight=tensors["weight"],
        bias=tensors.get("bias"),
        scale=float(numbers["scale"]),
        softcap=numbers["softcap"],
    )


def shared_head(stored: OutputHead, policy: OutputHead) -> OutputHead:
    """Return the policy's own head where it is frozen and equal to the stored one, to the bit.

    That is so under LoRA: then one copy is enough, and one product serves policy and reference.
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
            return tensors, json.loads(file.metadata()[_METADATA])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ShardCorruptError(
            f"{path} cannot be read: {error}; run `offpref store verify`"
        ) from error
