"""The policy: loaded for training, given an optimizer and a schedule, and written as a folder.

The folder that comes out is what AutoModelForCausalLM and AutoTokenizer load: weights as
safetensors, the policy's own configuration with the dtype of the weights, and byte for byte
copies of its tokenizer's files.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.folders import copy_tokenizer
from offpref.pipeline.models.loading import load_scoring_model, shard_model
from offpref.pipeline.models.model_files import quiet_transformers
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.stores.errors import ModelError

from .settings import TrainSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """The policy with its optimizer, schedule and device."""

    policy: ScoringModel
    optimizer: torch.optim.Optimizer
    processes: Processes


def load_policy(settings: TrainSettings, processes: Processes) -> ScoringModel:
    """Return the policy in training mode, without dropout, on its device or devices.

    Raises:
        ModelError: If the folder holds no such model, or LoRA cannot be set up.
    """
    torch.manual_seed(settings.seed)
    is_whole = processes.mesh is None or settings.lora_r is None
    policy = load_scoring_model(
        settings.model,
        precision=settings.precision,  # type: ignore[arg-type] # checked by the settings
        device=processes.device,
        mesh=processes.mesh if is_whole else None,
        kernels=settings.kernels,  # type: ignore[arg-type] # checked by the settings
    )
    if settings.lora_r is not None:
        _add_lora(policy, settings)
        if processes.mesh is not None:
            shard_model(policy, processes.mesh)
    if settings.gradient_checkpointing:
        _checkpoint_activations(policy.model)
        if settings.lora_r is not None:
            policy.model.enable_input_require_grads()
    reshard(policy)
    if processes.mesh is None and processes.device.type == "cpu":
        policy.keep_gradients()
    return policy.train()


def reshard(policy: nn.Module) -> None:
    """Free what a forward pass without a backward one keeps whole under FSDP2.

    The root's parameters stay whole after a forward pass, for the backward one to come. Where none
    comes, they would be taken for the parameters that an optimizer or a checkpoint wants.
    """
    if isinstance(policy, FSDPModule):
        policy.reshard()


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name; a tied one once."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def make_optimizer(policy: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW; norms and biases, which are vectors, do not decay."""
    parameters = list(trainable(policy).values())
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,  # one pass over the parameters, on a CPU as well
    )


def num_warmup_steps(settings: TrainSettings, num_steps: int) -> int:
    """Return the steps that warm up; a share of the steps is rounded up, as transformers does."""
    return settings.warmup_steps or math.ceil(num_steps * (settings.warmup_ratio or 0.0))


def learning_rates(
    settings: TrainSettings, num_steps: int, num_warmup: int
) -> Callable[[int], float]:
    """Return the learning rate of each step, from 1 on: a pure function, so nothing to save.

    Raises:
        ValueError: If the schedule refuses the settings.
    """
    from transformers.optimization import get_scheduler

    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule: Any = get_scheduler(settings.lr_scheduler_type, unused, num_warmup, num_steps)
    factor = schedule.lr_lambdas[0]
    return lambda step: settings.learning_rate * float(factor(step - 1))


def write_policy(
    policy: ScoringModel, settings: TrainSettings, folder: Path, weights: dict[str, Any] | None
) -> None:
    """Write the policy into the existing, empty ``folder``.

    Args:
        policy: The trained policy.
        settings: Of the run.
        folder: Where the files go; nothing is fsynced here.
        weights: Its state where it is split over processes, None where it is whole.
    """
    with quiet_transformers():
        if settings.lora_r is None:
            policy.model.save_pretrained(folder, state_dict=weights)
        else:
            _write_lora(policy, settings, folder, weights)
    if (folder / "config.json").exists():
        _write_config(policy, settings.model, folder)
    copy_tokenizer(settings.model, folder)


def _checkpoint_activations(model: Any) -> None:
    """Keep the inputs of layers only; later versions of transformers renamed the method."""
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _write_config(policy: ScoringModel, source: Path, folder: Path) -> None:
    """Write the policy's own configuration: loading it for scoring changed dropout and cache."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(policy.dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _add_lora(policy: ScoringModel, settings: TrainSettings) -> None:
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA needs the package peft: pip install 'offpref[peft]'") from error
    rank = settings.lora_r or 0
    targets = list(settings.lora_target_modules) or "all-linear"
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha or 2 * rank,
        lora_dropout=settings.lora_dropout or 0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(settings.model.resolve()),
    )
    head, tied = policy.model.get_output_embeddings(), _tied_modules(policy.model)
    try:
        policy.model.add_adapter(config)
    except ValueError as error:
        raise ModelError(f"LoRA cannot be set up: {error}") from error
    if policy.model.get_output_embeddings() is not head:
        raise ModelError("LoRA on the output head is not supported: leave it out of the targets")
    for name, module in tied.items():
        if policy.model.get_submodule(name) is not module:
            raise ModelError(
                f"LoRA on {name} is not supported: it shares its weights with the output head, "
                "which would get what is merged into them; leave it out of the targets"
            )


def _tied_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules, by name, that share a parameter with another one."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name.rpartition(".")[0])
    shared = [name for names in owners.values() if len(names) > 1 for name in names]
    return {name: model.get_submodule(name) for name in shared}


def _write_lora(
    policy: ScoringModel, settings: TrainSettings, folder: Path, weights: dict[str, Any] | None
) -> None:
    """Write the adapter, and unless it is wanted alone, whole weights with it merged in."""
    import peft
    from transformers import AutoModelForCausalLM

    is_alone = settings.lora_output == "adapter"
    adapter = folder if is_alone else folder / "adapter"
    policy.model.save_pretrained(adapter, state_dict=weights)
    if is_alone:
        return
    auto: Any = AutoModelForCausalLM  # untyped
    base = auto.from_pretrained(settings.model, dtype=policy.dtype, local_files_only=True)
    merged: Any = peft.PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
