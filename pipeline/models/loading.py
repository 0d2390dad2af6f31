"""Load a language model from a folder as a scorer, on one device or split over several.

The self-check decides here how the model's rows are computed.
"""

from pathlib import Path
from typing import get_args

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from offpref.kernels.forms import Form, check_form

from .fast_layers import use_fast_layers
from .model_files import load_model, quiet_transformers
from .routes import Precision
from .scoring_model import ScoringModel
from .selfcheck import check_packing

_DTYPES = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16-autocast": torch.float32,
    "float64": torch.float64,
}


def load_scoring_model(
    model_dir: str | Path,
    *,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    attention: str | None = None,
    trust_remote_code: bool = False,
    experts: str | None = None,
    mesh: DeviceMesh | None = None,
    kernels: Form | None = None,
    check: bool = True,
) -> ScoringModel:
    """Return a model from a local folder, without dropout, ready to score.

    Args:
        model_dir: A folder with ``config.json`` and weights as safetensors.
        precision: Dtype of weights and activations; logits are float32 in any case.
        device: Where the model goes; ignored where ``mesh`` is given.
        attention: ``sdpa`` or ``eager``; None takes sdpa where the model supports it.
        trust_remote_code: Whether Python code in the folder may run.
        experts: Implementation of mixtures of experts, None for transformers' choice.
        mesh: Devices to split the weights over with FSDP2, None for one device.
        kernels: Form of the kernels, ``torch`` or ``triton``; None for the best one there.
        check: Whether the self-check decides how rows are computed; without it the packed route
            is taken without a check.

    Raises:
        ModelError: If folder, configuration or weights are missing or do not fit.
        ValueError: If the precision is unknown, or the kernels cannot run on the device.
    """
    if precision not in _DTYPES:
        raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    check_form(kernels, torch.device(device if mesh is None else mesh.device_type))
    with quiet_transformers():
        model = load_model(
            Path(model_dir), _DTYPES[precision], attention, experts, trust_remote_code
        )
        use_fast_layers(model)
        scoring_model = ScoringModel(model, precision=precision, kernels=kernels).eval()
        if mesh is None:
            scoring_model.to(device)
        else:
            shard_model(scoring_model, mesh)
        if check:
            scoring_model.take(check_packing(scoring_model))
    return scoring_model


def shard_model(scoring_model: ScoringModel, mesh: DeviceMesh) -> None:
    """Split the weights over the devices of a mesh, layer by layer, with FSDP2.

    Each process then holds one layer and the root's embeddings whole, and its share of the rest.
    All processes have to run the same number of forward passes.
    """
    names = set(getattr(scoring_model.model, "_no_split_modules", None) or ())
    for module in list(scoring_model.model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(scoring_model, mesh=mesh)
