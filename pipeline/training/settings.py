"""How a policy is trained, checked when it is built."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from offpref.pipeline.boards.board import report_to_setting
from offpref.pipeline.losses.names import OWN_PREFIX
from offpref.pipeline.losses.settings import LOSS_SETTINGS, LossSettings
from offpref.pipeline.pairs.mask_names import ALL, SHOWN_MASKS, check_mask
from offpref.pipeline.settings import (
    ABOVE_ZERO,
    ADAPTERS,
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    DATA,
    MEASURING,
    OUTPUT,
    POLICY_BATCH_TOKENS,
    PRECISION,
    SCHEDULE,
    SHARE_BELOW_ONE,
    Range,
    batch_tokens_setting,
    check_name,
    device_setting,
    kernels_setting,
    pair_set_setting,
    precision_setting,
    setting,
)

SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
)  # fmt: skip
OUTPUT_ONLY = (
    "model", "output_dir", "run_name", "reference", "device", "eval_every", "log_tokens",
    "save_every", "keep", "lora_output", "resume", "overwrite", "kl_tier", "kl_metrics",
    "report_to", "no_last_checkpoint", "callback",
)  # fmt: skip
"""Settings that may change when a run is resumed: no parameter depends on them, or their content
is compared instead (the policy's weights, the reference's fingerprint and scores)."""
ROUNDING_ONLY = ("max_batch_tokens", "gradient_checkpointing", "kernels")
"""Settings on which results depend by no more than rounding."""
MEASURED_ONLY = ("eval_split",)
"""Settings that say what is measured, and may change when a run is resumed; they are a part of its
configuration."""
NOT_OF_SFT = (*LOSS_SETTINGS, "reference", "kl_tier", "kl_metrics")
"""Settings that sft does not take: its loss has neither options nor a reference."""
READ_SETTINGS = (
    *LOSS_SETTINGS, "pair_set", "model", "reference", "kl_tier", "kl_metrics", "mask",
    "train_split", "pairs_per_step", "num_epochs", "max_steps", "seed", "precision",
    "max_batch_tokens",
)  # fmt: skip
"""Settings that say what is read for training, and in which order."""


def check_callback(name: str) -> None:
    """Check the form of a callback's name; nothing is imported.

    Raises:
        ValueError: If it has another one.
    """
    module, colon, function = name.removeprefix(OWN_PREFIX).partition(":")
    if not name.startswith(OWN_PREFIX) or not colon or not module or not function.isidentifier():
        raise ValueError(f"callback must be python:MODULE:FUNCTION, got {name!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings(LossSettings):
    """How a policy is trained: its loss, from `LossSettings`, and everything else."""

    pair_set: str = pair_set_setting()
    model: Path = setting("Folder of the policy to start from.", section=DATA)
    output_dir: Path = setting("Folder for the trained policy; new or empty.", section=OUTPUT)
    run_name: str | None = setting(
        "Name of the run in the store.",
        default=None,
        shown="name of the output folder",
        section=OUTPUT,
    )
    reference: str | None = setting(
        "Reference to use: a model's folder, or the beginning of a scorer's fingerprint.",
        default=None, shown="the policy itself, else the only one that has scored the pairs",
        section=DATA,
    )  # fmt: skip
    kl_tier: str | None = setting(
        "Stored scores that KLs are computed from: hidden gives exact KLs, topk a lower bound.",
        default=None, choices=("hidden", "topk"), shown="hidden if there, else topk",
        section=MEASURING, is_rare=True,
    )  # fmt: skip
    kl_metrics: bool = setting(
        "Measure KLs to the reference and entropy at every step, for any loss; the reference must "
        "have scored tier hidden or topk.", default=False,
        section=MEASURING,
    )  # fmt: skip
    mask: str = setting(
        "Completion tokens that count: all, the assistant's own, those of its last turn, only what "
        "differs between chosen and rejected, or those that a query names (sql:FILE.sql too).",
        default=ALL, check=check_mask, metavar=SHOWN_MASKS,
        section=DATA,
    )  # fmt: skip
    train_split: str = setting(
        "Split that is trained on.", default="train", section=DATA, is_rare=True
    )
    eval_split: tuple[str, ...] = setting(
        "Split that is held out; may be repeated, and each is measured by itself.",
        default=("eval",),
        section=DATA,
        is_rare=True,
    )
    pairs_per_step: int = setting(
        "Pairs per optimizer step, over all processes.",
        default=32,
        range=AT_LEAST_ONE,
        section=SCHEDULE,
    )
    num_epochs: float | None = setting(
        "Passes over the training pairs.",
        default=None,
        shown="1",
        range=ABOVE_ZERO,
        section=SCHEDULE,
    )
    max_steps: int | None = setting(
        "Number of optimizer steps.",
        default=None,
        shown="those of num-epochs",
        range=AT_LEAST_ONE,
        section=SCHEDULE,
    )
    seed: int = setting(
        "Seed of the order of pairs and of new weights.",
        default=0,
        range=AT_LEAST_ZERO,
        section=SCHEDULE,
    )
    learning_rate: float = setting(
        "Peak learning rate.", default=5e-6, range=ABOVE_ZERO, section=SCHEDULE
    )
    lr_scheduler_type: str = setting(
        "Learning rate schedule, as transformers names it.",
        default="linear",
        choices=SCHEDULES,
        section=SCHEDULE,
    )
    warmup_ratio: float | None = setting(
        "Share of the steps used for warm-up.",
        default=None,
        shown="0",
        range=SHARE_BELOW_ONE,
        section=SCHEDULE,
    )
    warmup_steps: int | None = setting(
        "Number of warm-up steps.",
        default=None,
        shown="0",
        range=AT_LEAST_ZERO,
        section=SCHEDULE,
        is_rare=True,
    )
    adam_beta1: float = setting(
        "AdamW's first beta.", default=0.9, range=SHARE_BELOW_ONE, section=SCHEDULE, is_rare=True
    )
    adam_beta2: float = setting(
        "AdamW's second beta.", default=0.999, range=SHARE_BELOW_ONE, section=SCHEDULE, is_rare=True
    )
    adam_epsilon: float = setting(
        "AdamW's epsilon.", default=1e-8, range=ABOVE_ZERO, section=SCHEDULE, is_rare=True
    )
    weight_decay: float = setting(
        "AdamW's weight decay; norms and biases have none.",
        default=0.0,
        range=AT_LEAST_ZERO,
        section=SCHEDULE,
        is_rare=True,
    )
    max_grad_norm: float = setting(
        "Maximum gradient norm; 'inf' clips nothing.", default=1.0,
        range=Range(above=0, takes_infinity=True),
        section=SCHEDULE, is_rare=True,
    )  # fmt: skip
    precision: str = precision_setting(
        "Precision of weights and activations, the reference's too. Logits are always float32."
    )
    max_batch_tokens: int | None = batch_tokens_setting(
        "Tokens per microbatch, padding included.", POLICY_BATCH_TOKENS
    )
    gradient_checkpointing: bool = setting(
        "Recompute activations in the backward pass instead of keeping them.",
        default=False,
        section=PRECISION,
    )
    lora_r: int | None = setting(
        "Rank of LoRA's matrices (extra peft).",
        default=None,
        shown="no LoRA",
        range=AT_LEAST_ONE,
        section=ADAPTERS,
    )
    lora_alpha: int | None = setting(
        "LoRA's alpha.",
        default=None,
        shown="twice the rank",
        range=AT_LEAST_ONE,
        section=ADAPTERS,
    )
    lora_dropout: float | None = setting(
        "LoRA's dropout.",
        default=None,
        shown="0",
        range=SHARE_BELOW_ONE,
        section=ADAPTERS,
        is_rare=True,
    )
    lora_target_modules: tuple[str, ...] = setting(
        "Modules that get LoRA; may be repeated.", default=(),
        shown="all linear ones but the head",
        section=ADAPTERS, is_rare=True,
    )  # fmt: skip
    lora_output: str | None = setting(
        "Write whole weights with the adapter beside them, or the adapter alone.", default=None,
        choices=("merged", "adapter"), shown="merged",
        section=ADAPTERS, is_rare=True,
    )  # fmt: skip
    eval_every: int | None = setting(
        "Evaluate on the held-out split every so many steps, before training and after it.",
        default=None,
        shown="never", range=AT_LEAST_ONE,
        section=MEASURING,
    )  # fmt: skip
    log_tokens: str = setting(
        "Pairs for which every token's log-prob is kept.", default="eval",
        choices=("all", "eval", "none"),
        section=MEASURING, is_rare=True,
    )  # fmt: skip
    save_every: int | None = setting(
        "Write a checkpoint every so many steps; Ctrl-C writes one too.", default=None,
        shown="never", range=AT_LEAST_ONE,
        section=OUTPUT,
    )  # fmt: skip
    no_last_checkpoint: bool = setting(
        "Keep no checkpoint of the last step (the optimizer's state, twice the size of the weights "
        "in float32): the run cannot train on with a larger --max-steps. A sweep keeps none.",
        default=False, section=OUTPUT, is_rare=True,
    )  # fmt: skip
    keep: int = setting(
        "Number of checkpoints to keep, the newest ones.",
        default=1,
        range=AT_LEAST_ONE,
        section=OUTPUT,
        is_rare=True,
    )
    report_to: tuple[str, ...] = report_to_setting(MEASURING)
    callback: tuple[str, ...] = setting(
        "Function of your own that sees each step and may stop the run (docs/training.md); may be "
        "repeated.", default=(), metavar="python:MODULE:FUNCTION", check=check_callback,
        section=MEASURING, is_rare=True,
    )  # fmt: skip
    device: str | None = device_setting()
    kernels: str | None = kernels_setting("log-probs, KL and entropy")
    resume: bool = setting(
        "Resume the run in the output folder; start it if there is none, leave it if it is "
        "finished.", default=False,
        section=OUTPUT,
    )  # fmt: skip
    overwrite: bool = setting(
        "Replace an earlier run in the output folder.", default=False, section=OUTPUT
    )

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):  # one board may be given by its name
            object.__setattr__(self, "report_to", (self.report_to,))
        LossSettings.__post_init__(self)  # not super(): with slots this class is made anew
        self._check_effects()

    def _check_effects(self) -> None:
        """Refuse settings that have no effect."""
        if self.lora_r is None:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "lora_output"):
                if getattr(self, name):
                    raise ValueError(f"{name} has no effect without lora_r")
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio and warmup_steps set the same thing; give one of them")
        check_name("run_name", self.run_name or self.output_dir.name)
        if self.num_epochs is not None and self.max_steps is not None:
            raise ValueError("num_epochs and max_steps contradict each other; give one of them")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            raise ValueError(
                "warm-up has no effect with lr_scheduler_type constant; use constant_with_warmup"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other; give one of them")
        if self.eval_every is not None and self.train_split in self.eval_split:
            raise ValueError("train_split and eval_split are the same; hold another one out")
        if len(set(self.report_to)) < len(self.report_to):
            raise ValueError(f"report_to must name each board once, got {self.report_to}")
        if not self.eval_split or len(set(self.eval_split)) < len(self.eval_split):
            raise ValueError(
                f"eval_split must name each split once, got {', '.join(self.eval_split) or 'none'}"
            )

    def described(self) -> dict[str, Any]:
        """Return all settings as JSON knows them; several losses as one name.

        A mask is one of them where it is not ``all``.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.mask == ALL:
            del values["mask"]
        if not self.callback:
            del values["callback"]
        values["loss_type"] = "+".join(self.loss_type)
        for name in ("eval_split", "report_to"):  # as they were before there could be several
            if len(values[name]) < 2:
                values[name] = next(iter(values[name]), None)
        return {
            name: str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in values.items()
        }

    def results_depend_on(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed."""
        return {k: v for k, v in self.described().items() if k not in OUTPUT_ONLY}
