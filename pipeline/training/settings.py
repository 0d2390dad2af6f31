"""How a policy is trained, checked when it is built."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from offpref.pipeline.losses.names import DIVERGENCES, LOSS_TYPES


def _option(default: Any, help: str, **extra: Any) -> Any:  # a field of any type
    """Return a field whose help the command line shows; ``shown`` words a default of None."""
    return field(default=default, metadata={"help": help, **extra})


SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
)  # fmt: skip
OUTPUT_ONLY = (
    "model", "output_dir", "run_name", "reference", "device", "eval_every", "log_tokens",
    "save_every", "keep", "lora_output", "resume", "overwrite", "kl_tier", "kl_metrics",
    "report_to",
)  # fmt: skip
"""Settings that may change when a run is resumed: no parameter depends on them, or their content
is compared instead (the policy's weights, the reference's fingerprint and scores)."""
ROUNDING_ONLY = ("max_batch_tokens", "gradient_checkpointing", "kernels")
"""Settings on which results depend by no more than rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How a policy is trained. The field's help is the command line's."""

    pair_set: str = field(metadata={"help": "Name of the pairs, or NAME@FINGERPRINT."})
    model: Path = field(metadata={"help": "Folder of the policy to start from."})
    output_dir: Path = field(metadata={"help": "Folder for the trained policy; new or empty."})
    run_name: str | None = _option(
        None, "Name of the run in the store.", shown="name of the output folder"
    )
    reference: str | None = _option(
        None,
        "Whose stored scores to use: a model's folder, or the beginning of a fingerprint.",
        shown="the policy itself, else the only one that has scored the pairs",
    )
    loss_type: tuple[str, ...] = _option(
        ("sigmoid",), "Loss; may be repeated: the weighted sum of several. docs/losses.md says "
        "which answers which question.", choices=LOSS_TYPES,
    )  # fmt: skip
    loss_weights: tuple[float, ...] = _option(
        (), "Weight of a loss, one for each --loss-type.", shown="1"
    )
    beta: float | None = _option(
        None, "Strength of the pull towards the reference.", shown="0.1; simpo 2.0"
    )
    label_smoothing: float | None = _option(
        None, "Share of pairs assumed labelled the wrong way round.", shown="0"
    )
    f_divergence_type: str | None = _option(
        None, "Divergence that keeps the policy near the reference.", choices=DIVERGENCES,
        shown="reverse_kl",
    )  # fmt: skip
    f_alpha_divergence_coef: float | None = _option(None, "Alpha of alpha_divergence.", shown="0.5")
    ld_alpha: float | None = _option(
        None, "Weight of tokens beyond the length of the shorter completion (LD-DPO).", shown="1"
    )
    use_weighting: bool = _option(
        False, "Weigh pairs by how likely the policy would be to write them (WPO)."
    )
    preference_weight: float | None = _option(
        None, "Weight of the pairs' own preference beside the objectives (MODPO).", shown="1"
    )
    objective: tuple[str, ...] = _option(
        (), "Another objective and its weight, NAME=0.2; may be repeated. Its rewards are in the "
        "store.", shown="none",
    )  # fmt: skip
    ipo_reduction: str | None = _option(
        None, "Whether ipo compares means over tokens or sums.", choices=("mean", "sum"),
        shown="mean",
    )  # fmt: skip
    simpo_gamma: float | None = _option(
        None, "Margin that simpo asks for.", shown="beta * gamma-beta-ratio"
    )
    gamma_beta_ratio: float | None = _option(None, "The same, divided by beta.", shown="0.25")
    link: str | None = _option(
        None, "How simpo and modpo turn a margin into a loss.", choices=("sigmoid", "hinge"),
        shown="sigmoid",
    )  # fmt: skip
    sft_weight: float | None = _option(
        None, "Weight of the chosen completion's likelihood in simpo.", shown="0"
    )
    tdpo_alpha: float | None = _option(None, "Weight of tdpo2's KL term.", shown="0.5")
    rdpo_alpha: float | None = _option(None, "What a token of length costs in rdpo.", shown="0.05")
    discopop_tau: float | None = _option(None, "Temperature of discopop.", shown="0.05")
    orpo_lambda: float | None = _option(None, "Weight of orpo's odds ratio.", shown="0.1")
    cpo_lambda: float | None = _option(
        None, "Weight of the chosen completion's likelihood in cpo.", shown="1"
    )
    cpo_reduction: str | None = _option(
        None, "Whether that likelihood is a mean over tokens or a sum.", choices=("mean", "sum"),
        shown="mean",
    )  # fmt: skip
    slic_delta: float | None = _option(None, "Margin that slic asks for, in nats.", shown="1")
    slic_lambda: float | None = _option(
        None, "Weight of the chosen completion's likelihood in slic.", shown="0.1"
    )
    rrhf_lambda: float | None = _option(
        None, "Weight of the chosen completion's likelihood in rrhf.", shown="1"
    )
    kto_desirable_weight: float | None = _option(
        None, "Weight of chosen completions in kto.", shown="1"
    )
    kto_undesirable_weight: float | None = _option(
        None, "Weight of rejected completions in kto.", shown="1"
    )
    unlikelihood_alpha: float | None = _option(
        None, "Weight of the rejected completion in unlikelihood.", shown="1"
    )
    kl_tier: str | None = _option(
        None, "Stored scores that KLs are taken from: hidden gives them exactly, topk a lower "
        "bound.", choices=("hidden", "topk"), shown="hidden if there, else topk",
    )  # fmt: skip
    kl_metrics: bool = _option(
        False,
        "Measure KLs to the reference and entropy at every step, for any loss; the "
        "reference must have scored tier hidden or topk.",
    )
    train_split: str = _option("train", "Split that is trained on.")
    eval_split: str = _option("eval", "Split that is held out.")
    pairs_per_step: int = _option(32, "Pairs of an optimizer step, on all processes together.")
    num_epochs: float | None = _option(None, "Times that every pair is seen.", shown="1")
    max_steps: int | None = _option(None, "Optimizer steps.", shown="those of num-epochs")
    seed: int = _option(0, "Seed of the order of pairs and of new weights.")
    learning_rate: float = _option(5e-6, "Highest learning rate.")
    lr_scheduler_type: str = _option("linear", "Schedule of transformers.", choices=SCHEDULES)
    warmup_ratio: float | None = _option(None, "Share of the steps that warm up.", shown="0")
    warmup_steps: int | None = _option(None, "Steps that warm up.", shown="0")
    adam_beta1: float = _option(0.9, "AdamW's first beta.")
    adam_beta2: float = _option(0.999, "AdamW's second beta.")
    adam_epsilon: float = _option(1e-8, "AdamW's epsilon.")
    weight_decay: float = _option(0.0, "AdamW's weight decay; norms and biases have none.")
    max_grad_norm: float = _option(1.0, "Longest gradient; 'inf' clips nothing.")
    precision: str = _option(
        "float32", "Of weights and activations; the reference's too. Logits are float32 always.",
        choices=("float32", "bf16", "bf16-autocast"),
    )  # fmt: skip
    max_batch_tokens: int | None = _option(
        None, "Tokens of a microbatch, padding included.", shown="1024 on a CPU, 16384 on a GPU"
    )
    gradient_checkpointing: bool = _option(
        False, "Compute activations twice instead of keeping them."
    )
    lora_r: int | None = _option(None, "Rank of LoRA's matrices (extra peft).", shown="no LoRA")
    lora_alpha: int | None = _option(None, "LoRA's alpha.", shown="twice the rank")
    lora_dropout: float | None = _option(None, "LoRA's dropout.", shown="0")
    lora_target_modules: tuple[str, ...] = _option(
        (), "Modules that get LoRA; may be repeated.", shown="all linear ones but the head"
    )
    lora_output: str | None = _option(
        None, "Write whole weights with the adapter beside them, or the adapter alone.",
        choices=("merged", "adapter"), shown="merged",
    )  # fmt: skip
    eval_every: int | None = _option(
        None, "Measure the held-out split before, every so many steps, and after.", shown="never"
    )
    log_tokens: str = _option(
        "eval", "Of which pairs to keep every token's log-prob.", choices=("all", "eval", "none")
    )
    save_every: int | None = _option(
        None, "Write a checkpoint every so many steps; Ctrl-C writes one too.", shown="never"
    )
    keep: int = _option(1, "Checkpoints that are kept, the newest ones.")
    report_to: str | None = _option(
        None, "Write what is measured as event files into the output folder, too (extra "
        "tensorboard).", choices=("tensorboard",), shown="the store alone",
    )  # fmt: skip
    device: str | None = _option(None, "As torch names it.", shown="a GPU if there is one")
    kernels: str | None = _option(
        None, "Form of the kernels for log-probs, KL and entropy.", choices=("torch", "triton"),
        shown="triton on a GPU, torch elsewhere",
    )  # fmt: skip
    resume: bool = _option(
        False, "Go on with the run in the output folder: start it if there is none, leave it if it "
        "is finished.",
    )  # fmt: skip
    overwrite: bool = _option(False, "Replace an earlier run in the output folder.")

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):  # one loss may be given by its name
            object.__setattr__(self, "loss_type", (self.loss_type,))
        for name in ("pairs_per_step", "max_steps", "max_batch_tokens", "lora_r", "lora_alpha",
                     "eval_every", "save_every", "keep"):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("learning_rate", "num_epochs", "adam_epsilon", "max_grad_norm"):
            value, is_bounded = getattr(self, name), name != "max_grad_norm"
            if value is not None and not (value > 0 and (value < float("inf") or not is_bounded)):
                raise ValueError(f"{name} must be greater than 0, got {value}")
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio", "lora_dropout"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if self.weight_decay < 0 or self.seed < 0 or (self.warmup_steps or 0) < 0:
            raise ValueError("weight_decay, seed and warmup_steps must be at least 0")
        self._check_choices()
        self._check_effects()

    def _check_choices(self) -> None:
        for each in fields(self):
            choices, value = each.metadata.get("choices"), getattr(self, each.name)
            is_known = each.name == "precision" and value == "float64"  # for tests of the numbers
            if not choices or value is None or is_known:
                continue
            for one in value if isinstance(value, tuple) else (value,):
                if one not in choices:
                    names = ", ".join(choices)
                    raise ValueError(f"{each.name} must be one of {names}, got {one!r}")

    def _check_effects(self) -> None:
        """Refuse what takes no effect."""
        if self.lora_r is None:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "lora_output"):
                if getattr(self, name):
                    raise ValueError(f"{name} takes no effect without lora_r")
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio and warmup_steps say the same; give one of them")
        if self.num_epochs is not None and self.max_steps is not None:
            raise ValueError("num_epochs and max_steps contradict each other; give one of them")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            raise ValueError(
                "a warm-up takes no effect on lr_scheduler_type constant; take constant_with_warmup"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other; give one of them")
        if self.eval_every is not None and self.train_split == self.eval_split:
            raise ValueError("train_split and eval_split are the same; hold another one out")

    def loss_settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the loss's options as given, None where not."""
        return {name: getattr(self, name) for name in names}

    def described(self) -> dict[str, Any]:
        """Return all settings as JSON knows them; several losses as one name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["loss_type"] = "+".join(self.loss_type)
        return {
            name: str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in values.items()
        }

    def results_depend_on(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with the run it goes on with."""
        return {k: v for k, v in self.described().items() if k not in OUTPUT_ONLY}
