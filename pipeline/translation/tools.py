"""The tools whose DPO configurations are read: how their files are told apart, names, defaults.

A default that a file leaves out is the tool's own, so all that differ from ours are listed: those
of TRL 1.16 with transformers 5, and what axolotl and LLaMA-Factory document of theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .keys import RENAMED

_TRAINER: Mapping[str, Any] = {
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0,
    "max_grad_norm": 1.0, "seed": 42, "lr_scheduler_type": "linear", "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "save_strategy": "steps", "save_steps": 500, "eval_strategy": "no",
}  # fmt: skip
"""transformers' own."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tool:
    """A tool and its words."""

    name: str
    defaults: Mapping[str, Any]
    """What a file means that does not say it, by TRL's names."""
    names: Mapping[str, str] = field(default_factory=dict)
    """TRL's names of the tool's keys, where they differ."""
    needless: Mapping[str, str] = field(default_factory=dict)
    """Keys of its own that nothing has to stand for, with the reason."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Keys of its own that nothing stands for, with what to do instead."""
    saves_adapter: bool = True
    """Whether a LoRA run of it leaves the adapter alone."""


TRL = Tool(
    name="TRL",
    defaults={
        **_TRAINER, "learning_rate": 1e-6, "beta": 0.1, "loss_type": "sigmoid",
        "max_length": 1024, "truncation_mode": "keep_start", "gradient_checkpointing": True,
        "bf16": None, "dtype": "float32", "dataset_train_split": "train",
        "dataset_test_split": "test", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
    },
    names=RENAMED,
)  # fmt: skip

AXOLOTL = Tool(
    name="axolotl",
    defaults={
        **_TRAINER, "num_train_epochs": 1.0, "per_device_train_batch_size": 1, "beta": 0.1,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "max_length": 512,
        "save_strategy": "epoch", "gradient_checkpointing": False, "lora_dropout": 0.0,
        "eval_fraction": 0.0,
    },
    names={
        "base_model": "model_name_or_path", "sequence_len": "max_length",
        "micro_batch_size": "per_device_train_batch_size", "num_epochs": "num_train_epochs",
        "lr_scheduler": "lr_scheduler_type", "optimizer": "optim", "rl_beta": "beta",
        "dpo_beta": "beta", "dpo_label_smoothing": "label_smoothing",
        "dpo_use_weighting": "use_weighting", "val_set_size": "eval_fraction",
        "dpo_padding_free": "padding_free", "peft_use_rslora": "use_rslora",
        "peft_use_dora": "use_dora",
    },
    needless={
        "sample_packing": "rows are always packed", "pad_to_sequence_len": "rows are packed",
        "flash_attention": "attention is chosen by the model",
        "sdp_attention": "attention is chosen by the model",
        "dataset_prepared_path": "the store holds prepared data",
        "dataset_processes": "`offpref add` needs no processes of its own",
        "train_on_inputs": "prompts never count", "group_by_length": "rows are packed",
        "strict": "unknown keys are always named", "model_type": "the model's folder says it",
        "tokenizer_type": "the model's folder says it", "plugins": "none is needed",
        "auto_resume_from_checkpoints": "give `--resume`",
        "dpo_use_logits_to_keep": "only completions' tokens ever get logits",
        "eval_sample_packing": "rows are always packed",
        "xformers_attention": "attention is chosen by the model",
        "is_mistral_derived_model": "the model's folder says it",
        "save_safetensors": "weights are always safetensors",
        "lora_fan_in_fan_out": "peft finds it out", "local_rank": "it is torchrun's",
    },
    without={
        "tokenizer_config": "give `offpref add --tokenizer DIR`",
        "evals_per_epoch": "give `--eval-every STEPS`",
        "saves_per_epoch": "give `--save-every STEPS`",
        "cosine_min_lr_ratio": "schedules end at 0", "hub_strategy": "push afterwards",
        "lora_model_dir": "merge the adapter into the model first",
        "special_tokens": "set them in the tokenizer's folder",
        "tokens": "set them in the tokenizer's folder",
        "remove_unused_columns": "`offpref add` says which columns it uses",
        "wandb_project": "runs are in the store; `--report-to wandb` reads WANDB_PROJECT",
        "wandb_entity": "runs are in the store; `--report-to wandb` reads WANDB_ENTITY",
        "wandb_name": "`--run-name` names the run", "dpo_norm_loss": "take loss_type sigmoid_norm",
    },
)  # fmt: skip

LLAMA_FACTORY = Tool(
    name="LLaMA-Factory",
    defaults={
        **_TRAINER, "learning_rate": 5e-5, "beta": 0.1, "loss_type": "sigmoid",
        "max_length": 2048, "gradient_checkpointing": True, "finetuning_type": "lora",
        "lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": "all", "eval_fraction": 0.0,
    },
    names={
        **RENAMED, "pref_beta": "beta", "pref_loss": "loss_type", "pref_ftx": "rpo_alpha",
        "dpo_label_smoothing": "label_smoothing", "cutoff_len": "max_length",
        "lora_target": "lora_target_modules", "val_size": "eval_fraction",
        "dataset": "dataset_name", "additional_target": "lora_modules_to_save",
        "flash_attn": "attn_implementation", "enable_liger_kernel": "use_liger_kernel",
    },
    without={
        "pure_bf16": "", "eval_dataset": "add it as a split of the pair set",
        "pref_bco_weight": "take loss_type bco_pair with a weight of its own",
    },
)  # fmt: skip


def which_tool(given: Mapping[str, Any]) -> Tool:
    """Return the tool whose configuration this is, told by its keys.

    Raises:
        ValueError: If it is none's, or of another method than DPO, or could be of two tools.
    """
    marks = {
        AXOLOTL: "base_model" in given or "rl" in given,
        LLAMA_FACTORY: "stage" in given or "finetuning_type" in given,
    }
    found = [tool for tool, is_there in marks.items() if is_there]
    if len(found) > 1 or (AXOLOTL in found and "model_name_or_path" in given):
        raise ValueError(
            "expected the file of one tool, got keys of several: base_model or rl are axolotl's, "
            "stage and finetuning_type LLaMA-Factory's, model_name_or_path TRL's or LLaMA-Factory's"
        )
    tool = found[0] if found else TRL
    if tool is TRL and "model_name_or_path" not in given and "model" not in given:
        raise ValueError(
            "expected a DPO configuration of TRL (model_name_or_path), axolotl (base_model, rl) or "
            f"LLaMA-Factory (stage), got the keys {', '.join(sorted(given)[:8]) or 'none'}"
        )
    for current, key, methods in (
        (AXOLOTL, "rl", ("dpo", "ipo")), (LLAMA_FACTORY, "stage", ("dpo",))
    ):  # fmt: skip
        if tool is current and given.get(key) not in methods:
            raise ValueError(
                f"expected {key}: {' or '.join(methods)}, got {given.get(key, 'none')!r}; other "
                "methods are not translated"
            )
    return tool
