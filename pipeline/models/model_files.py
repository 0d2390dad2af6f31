"""Models from local folders, as transformers reads them: only safetensors, without randomness."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from offpref.stores.errors import ModelError

_NAMED_TENSORS = 3
# What earlier versions of transformers saved beside the weights: functions of the configuration.
_BUFFERS = re.compile(r"(^|\.)(masked_bias|rotary_emb\.(inv_freq|cos_cached|sin_cached))$")


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
        raise ModelError(f"{model_dir} is not a model folder: it has no config.json")
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
        without_dropout(config)
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
    check_tensors(model_dir, found)
    return model


def check_tensors(
    model_dir: Path, found: Mapping[str, Collection[Any]], *, without: Collection[str] = ()
) -> None:
    """Refuse a folder whose tensors are not those of the model that was made from it.

    transformers drops tensors that a model does not take: biases that the configuration does not
    mention, layers beyond its number, scales of quantised weights. The rest is another model.

    Args:
        model_dir: The folder.
        found: transformers' report of the loading.
        without: Names of tensors that may be in the folder and are not used.

    Raises:
        ModelError: If tensors are missing, of another shape, or not taken by the model.
    """
    if absent := sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"])):
        raise ModelError(
            f"{model_dir} lacks {len(absent)} of the model's tensors, {absent[0]} among them"
        )
    unknown = set(found["unexpected_keys"]) - set(without)
    if left := sorted(name for name in unknown if not _BUFFERS.search(name)):
        more = f" and {len(left) - _NAMED_TENSORS} more" if len(left) > _NAMED_TENSORS else ""
        raise ModelError(
            f"{model_dir}: expected the tensors of the model in its config.json alone, found "
            f"{len(left)} that it does not take: {', '.join(left[:_NAMED_TENSORS])}{more}; correct "
            "config.json, or convert the weights"
        )


def language_head(model_dir: Path, *, trust_remote_code: bool = False) -> set[str]:
    """Return the names of a language model's tensors that a classifier with its layers lacks."""
    auto: Any = transformers.AutoModelForCausalLM  # untyped
    config = transformers.AutoConfig.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=trust_remote_code
    )
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError:  # a classifier without a corresponding language model
        return set()
    return {name for name in model.state_dict() if not name.startswith(_layers(model))}


def without_new_head(model: Any, found: Mapping[str, Any]) -> dict[str, Any]:  # transformers'
    """Return the loading report without the missing tensors of a newly made head."""
    layers = _layers(model)
    missing = {
        name for name in found["missing_keys"] if name.startswith(layers) and "pooler" not in name
    }
    return {**found, "missing_keys": missing}


def _layers(model: Any) -> str:  # transformers'
    """Return the prefix of the names of all tensors but the head's."""
    return f"{model.base_model_prefix}."


def without_dropout(config: Any) -> None:
    """Set every dropout of a configuration to 0, so that scores are not random."""
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
