"""The part of a model's ``config.json`` that a forward pass depends on, with null kept from absent.

An absent field has its configuration class's default; a null field may mean something else. Gemma 2
caps its logits at 30 if ``final_logit_softcapping`` is absent, and not at all if it is null. Where
the two differ, the kept part says which of them the file had. If null and the default are the same,
because the default is null or the class itself replaces one by the other, the field adds nothing.

Asking a class imports transformers, so answers are remembered by the content of the configuration
and by the version of transformers, since another version may have other defaults.
"""

import inspect
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from offpref.stores.keys import canonical_json, fingerprint
from offpref.stores.store import Store

# Fields about training, saving or generating, and others that do not affect a forward pass.
IRRELEVANT = {
    "_name_or_path", "_commit_hash", "architectures", "auto_map", "torch_dtype", "dtype",
    "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "initializer_factor", "id2label", "label2id", "num_labels",
    "problem_type", "output_attentions", "output_hidden_states", "return_dict", "torchscript",
    "gradient_checkpointing", "use_bfloat16", "chunk_size_feed_forward", "task_specific_params",
    "router_aux_loss_coef", "output_router_logits", "pretraining_tp", "finetuning_task",
    "is_encoder_decoder", "cross_attention_hidden_size", "add_cross_attention",
    "tie_encoder_decoder",
}  # fmt: skip
TRAINING_ENDINGS = ("dropout", "_pdrop", "_dropout_prob", "_dropout_rate", "dropout_p")

POSITIONS_BY_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xglm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Kinds of models whose positions are counted from ``pad_token_id``, or differ at it."""


def relevant_config(config: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Return what a forward pass depends on; null only where it differs from the default.

    Args:
        config: A model's configuration, as in its file; its parts may be configurations.
        store: Remembers the answers of the configuration classes.
    """
    told = _without_irrelevant(config)
    identity = {"config": fingerprint(told), "transformers": version("transformers")}
    known = store.recall_identity("null or absent", identity)
    if known is None:
        known = canonical_json(_null_or_absent(told))
        store.remember_identity("null or absent", identity, known)
    return _merged(_without_nulls(told), json.loads(known))


def are_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations make the same model of the same weights, however they spell it."""
    kind, found = _class_of(one), []
    for each in (one, other):
        told = _without_irrelevant(each)
        made = None if kind is None else _built(kind, told)
        found.append(told if made is None else _without_irrelevant(made))
    return kind is _class_of(other) and found[0] == found[1]


def former_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a forward pass depends on by the former rule: no nulls, no padding token."""
    return {
        name: former_config(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if value is not None and _is_always_relevant(name)
    }


def _without_irrelevant(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("model_type")
    return {
        name: _without_irrelevant(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if _is_relevant(name, kind)
    }


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if value is not None
    }


def _is_always_relevant(name: str) -> bool:
    return name not in IRRELEVANT and not name.endswith(TRAINING_ENDINGS)


def _is_relevant(name: str, kind: object) -> bool:
    is_counted = name == "pad_token_id" and kind in POSITIONS_BY_PADDING
    return is_counted or _is_always_relevant(name)


def _null_or_absent(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields for which null and absence differ, each with the value a model loads with.

    The result is empty for a kind of model that transformers does not know: it cannot be loaded.
    """
    kind = _class_of(config)
    return {} if kind is None else _fields(kind, config)


def _class_of(config: Mapping[str, Any]) -> Any:
    """Return transformers' class of a configuration; None if it knows none."""
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    return CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else None  # noqa: SIM401 # get is not lazy


def _fields(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return these fields of one configuration class, and of its parts by the part's name."""
    found: dict[str, Any] = {}
    parts = dict(getattr(kind, "sub_configs", {}))
    for name, part_kind in parts.items():
        if isinstance(part := config.get(name), dict):
            told = _fields(_class_of(part) or part_kind, part)
            found |= {name: told} if told else {}
    for name, parameter in inspect.signature(kind).parameters.items():
        is_told = config.get(name) is not None or name in parts
        if is_told or parameter.default in (None, parameter.empty):
            continue
        if not _is_relevant(name, config.get("model_type")):
            continue
        absent = _built(kind, {key: value for key, value in config.items() if key != name})
        null = _built(kind, {**config, name: None})
        if absent is None or null is None or absent == null:
            continue  # null is impossible here, or means the same
        found[name] = None if name in config else absent[name]
    return found


def _built(kind: Any, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a configuration class's fields for some values; None if it refuses them."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        made: dict[str, Any] = kind.from_dict(dict(values)).to_dict()
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError):
        return None
    return dict(json.loads(json.dumps(made, default=str)))


def _merged(config: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the given values of its fields and of its parts' fields."""
    for name, value in told.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            config[name] = _merged(config[name], value)
        else:
            config[name] = value
    return config
