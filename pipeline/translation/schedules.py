"""Steps, learning rate and precision of a configuration, with checkpoints and boards."""

from typing import Any

from offpref.pipeline.training.settings import SCHEDULES

from .given import Given
from .keys import COPIED

_NUMBERS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
)  # fmt: skip
BOARDS = ("tensorboard", "wandb", "trackio", "mlflow")


def translate_schedule(given: Given, num_processes: int) -> dict[str, Any]:
    """Return the steps of a run, what each takes, and what is written after some."""
    found: dict[str, Any] = _batch(given, num_processes)
    steps = given.number("max_steps")
    epochs = given.number("num_train_epochs")
    if steps is not None and steps > 0:
        found["max_steps"] = int(steps)
        if given.says("num_train_epochs"):
            given.note("num_train_epochs", "has no effect beside max_steps")
    else:
        found["num_epochs"] = epochs
    seed = given.whole("seed")
    found["seed"] = 0 if seed is None else seed
    for name in _NUMBERS:
        value = given.number(name)
        if value is not None:
            found[COPIED[name]] = float(value)
    if "learning_rate" not in found:
        raise ValueError("expected learning_rate, which has no default there, got none")
    _optimizer(given)
    found |= _rates(given)
    return found | _saved(given)


def _batch(given: Given, num_processes: int) -> dict[str, Any]:
    """Return the pairs of a step."""
    each = given.whole("per_device_train_batch_size") or 1
    accumulated = given.whole("gradient_accumulation_steps") or 1
    pairs = each * accumulated * num_processes
    given.note(
        "per_device_train_batch_size",
        f"{each} x gradient_accumulation_steps {accumulated} x processes {num_processes} = "
        f"{pairs} pairs per step; `--num-processes` says how many there were, and "
        "`--max-batch-tokens` what fits a device",
    )
    return {"pairs_per_step": pairs}


def _optimizer(given: Given) -> None:
    name = given.take("optim")
    if name is not None and not str(name).startswith("adamw_torch"):
        given.note("optim", "has no counterpart here: the optimizer is AdamW")


def _rates(given: Given) -> dict[str, Any]:
    """Return the schedule of the learning rate and its warm-up."""
    name = given.word("lr_scheduler_type") or "linear"
    found: dict[str, Any] = {}
    if name in SCHEDULES:
        found["lr_scheduler_type"] = name
    else:
        given.note(
            "lr_scheduler_type",
            f"has no counterpart here; linear is written, and there are: {', '.join(SCHEDULES)}",
        )
        found["lr_scheduler_type"] = name = "linear"
    steps, ratio = given.number("warmup_steps"), given.number("warmup_ratio")
    if steps and steps >= 1:
        found["warmup_steps"] = int(steps)
    elif steps:  # transformers 5 takes a share of the steps there
        found["warmup_ratio"] = steps
    elif ratio:
        found["warmup_ratio"] = ratio
    if name == "constant" and (steps or ratio):
        found.pop("warmup_steps", None)
        found.pop("warmup_ratio", None)
        key = "warmup_steps" if given.says("warmup_steps") else "warmup_ratio"
        given.note(key, "has no effect on a constant rate; constant_with_warmup is a schedule")
    return found


def _saved(given: Given) -> dict[str, Any]:
    """Return checkpoints and boards."""
    found: dict[str, Any] = {}
    strategy, steps = given.take("save_strategy"), given.number("save_steps")
    if steps and steps < 1:
        given.note("save_steps", "is a share of the steps there; give `--save-every` a number")
    elif strategy == "steps" or given.says("save_steps"):
        found["save_every"] = int(steps or 500)
    elif strategy in ("epoch", "best") and given.says("save_strategy"):
        given.note("save_strategy", "is by steps here: give `--save-every`")
    keep = given.whole("save_total_limit")
    if keep:
        found["keep"] = keep
    boards = given.take("report_to")
    wanted = [str(each) for each in (boards if isinstance(boards, list) else [boards]) if each]
    known = [each for each in wanted if each in BOARDS]
    if known:
        found["report_to"] = known
    if strangers := [each for each in wanted if each not in (*BOARDS, "none")]:
        given.note("report_to", f"{', '.join(strangers)} has no counterpart: {', '.join(BOARDS)}")
    return found


def translate_precision(given: Given) -> dict[str, Any]:
    """Return the precision, and whether activations are recomputed."""
    dtype = str(given.take("dtype") or given.take("torch_dtype") or "").removeprefix("torch.")
    bf16, fp16 = given.take("bf16"), given.truth("fp16")
    # axolotl loads weights in bf16, and keeps an adapter's in float32.
    loads_bf16 = given.tool.name == "axolotl" and not given.says("adapter")
    is_pure = given.truth("pure_bf16") or dtype == "bfloat16" or loads_bf16
    if given.tool.name == "TRL" and bf16 is None:
        bf16 = not fp16  # its own default
    if fp16:
        given.note("fp16", "has no counterpart here; bf16-autocast is written instead")
        precision = "bf16-autocast"
    elif is_pure and (bf16 or dtype == "bfloat16"):
        precision = "bf16"
        given.note(
            "bf16" if given.says("bf16") else "dtype",
            "with weights in bfloat16 loses updates below half a weight's last bit: bf16-autocast "
            "keeps weights in float32",
        )
    else:
        precision = "bf16-autocast" if bf16 else "float32"
    found: dict[str, Any] = {"precision": precision}
    if precision == "bf16-autocast":
        given.note(
            "bf16", "is autocast there: bf16-autocast here, for `score` as well as for `train`"
        )
    if given.truth("gradient_checkpointing") and not given.truth("disable_gradient_checkpointing"):
        found["gradient_checkpointing"] = True
    return found
