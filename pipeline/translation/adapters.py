"""LoRA of a configuration."""

from typing import Any

from .given import Given

_PEFT_DEFAULT = ["q_proj", "v_proj"]
_ALL = ("all", "all-linear")


def translate_adapter(given: Given) -> dict[str, Any]:
    """Return the settings of LoRA; empty where all weights are trained.

    Raises:
        ValueError: If the adapter is of another kind.
    """
    rank, alpha = given.whole("lora_r"), given.number("lora_alpha")
    dropout, modules = given.number("lora_dropout"), given.take("lora_target_modules")
    is_linear = given.truth("lora_target_linear")
    if not _has_adapter(given):
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            if given.says(name):
                given.note(name, "has no effect there: no LoRA is asked for")
        return {}
    if rank is None:
        raise ValueError("expected lora_r, the rank of LoRA, got none")
    found: dict[str, Any] = {"lora_r": rank}
    found["lora_alpha"] = int(alpha) if alpha is not None else 2 * rank
    if dropout:
        found["lora_dropout"] = dropout
    if not is_linear and modules not in _ALL:
        named = modules.split(",") if isinstance(modules, str) else modules
        if named is None:
            named = _PEFT_DEFAULT
            given.note(
                "lora_target_modules",
                "is not given: peft takes q_proj and v_proj of most models, as is written here; "
                "without it all linear modules get LoRA",
            )
        found["lora_target_modules"] = [str(each).strip() for each in named]
    found["lora_output"] = "adapter"
    return found


def _has_adapter(given: Given) -> bool:
    """Return whether LoRA is asked for, however the tool says it."""
    kind = given.take("adapter") or given.take("finetuning_type")
    if kind in ("qlora",):
        given.note("adapter", "has no counterpart here: weights are not quantised; LoRA is written")
        return True
    if kind not in (None, "lora", "full"):
        raise ValueError(f"expected LoRA or all weights, got {kind!r}; it has no counterpart here")
    return kind == "lora" or given.truth("use_peft")
