"""Models from local folders, as transformers reads them: only safetensors, nothing by chance."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from ..stores.errors import ModelError


def load_model(
    model_dir: Path,
    dtype: torch.dtype,
    attention: str | None,
    experts: str | None,
    trust_remote_code: bool,
) -> Any:  # transformers' models have no common type with what is used of them
    """Return a causal language model from a local folder, without dropout.

    Raises:
        ModelError: If configuration or weights are missing or do not fit.
    """
    if not (model_dir / "config.json").is_file():
        raise ModelError(f"{model_dir} is no model folder: it has no config.json")
    if not any(model_dir.glob("*.safetensors")):
        other = (
            " (its *.bin files are not read: convert them)" if any(model_dir.glob("*.bin")) else ""
        )
        raise ModelError(f"{model_dir} has no weights as *.safetensors{other}")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    if experts is not None:
        options["experts_implementation"] = experts
    try:
        config = transformers.AutoConfig.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=trust_remote_code
        )
        _without_dropout(config)
        auto: Any = transformers.AutoModelForCausalLM  # typed without output_loading_info
        model, found = auto.from_pretrained(
            model_dir,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the model in {model_dir}: {reason}") from error
    if absent := sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"])):
        raise ModelError(
            f"{model_dir} lacks {len(absent)} of the model's tensors, {absent[0]} among them"
        )
    return model


def _without_dropout(config: Any) -> None:
    """Set every dropout of a configuration to 0: a score is not a matter of chance."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
                setattr(part, name, 0.0)
            if name == "layerdrop":
                setattr(part, name, 0.0)
        part.use_cache = False


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and notes off stderr."""
    log: Any = transformers.utils.logging  # untyped
    verbosity, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if has_bars:
            log.enable_progress_bar()
