"""Fingerprint the model that a score comes from, without loading it.

The weights are hashed tensor by tensor straight from the safetensors files, so that neither the
number of files nor their order matters; what was hashed once is remembered by the file's path,
size, times of change and inode. Nothing here imports torch, and transformers is imported only for
a configuration that the store has not seen.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from offpref.pipeline.notices import say_once
from offpref.stores.errors import ModelError
from offpref.stores.keys import KEY_BYTES, canonical_json, fingerprint
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

from .relevant_config import former_config, relevant_config

PRECISIONS = ("float32", "bf16", "bf16-autocast", "float64")
MASK_RULE = "a completion sees its prompt and itself; window by position"


def model_config(folder: Path) -> dict[str, Any]:
    """Return the model's ``config.json``.

    Raises:
        ModelError: If the folder holds none, or one that cannot be read.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise ModelError(f"{folder}: expected a folder with a model, found no such folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (folder / "adapter_config.json").exists():
            raise ModelError(
                f"{folder}: expected whole weights, found an adapter alone; train with "
                "--lora-output merged, or merge it first"
            ) from error
        raise ModelError(f"{folder}: expected a model's config.json, found none") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: expected a JSON object, got: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return how many positions the model was made for; None if its config does not say."""
    text = config.get("text_config") or config
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        if isinstance(value := text.get(name), int) and value > 0:
            return value
    return None


def default_max_length(folder: Path) -> int | None:
    """Return the number of positions of the model in a tokenizer's folder; None without a model."""
    if not (folder / "config.json").is_file():
        return None
    return max_positions(model_config(folder))


def scorer_spec(
    folder: Path, *, precision: str, vocabulary: str | None, store: Store
) -> dict[str, object]:
    """Return everything that the model's scores depend on; its fingerprint names them.

    Args:
        folder: A model in Hugging Face form, weights in safetensors.
        precision: One of ``PRECISIONS``.
        vocabulary: Hash of its tokenizer's tokens and ids, None if it has no tokenizer.
        store: Remembers the hashes of the weights.

    Raises:
        ModelError: If the folder holds no such model.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    config = model_config(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder}: expected whole weights, found an adapter; merge it first")
    return {
        "kind": "scorer",
        "weights": weights_hash(folder, store),
        "adapter": None,
        "config": relevant_config(config, store),
        "vocabulary": vocabulary,
        "numerics": {"precision": precision, "logits": _logits_dtype(precision)},
        "mask": MASK_RULE,
    }


def scorer_fingerprint(spec: Mapping[str, object]) -> str:
    """Return the fingerprint under which a scorer's scores lie."""
    return fingerprint(spec)


def name_scorer(store: Store, spec: Mapping[str, object], folder: Path) -> None:
    """Keep a scorer's spec under its folder's name, as long as the folder's content is the same."""
    files = [folder / "config.json", *weight_files(folder)]
    store.write_spec(spec, name=folder.resolve().name, files=files)


def is_ambiguous(spec: Mapping[str, Any], store: Store) -> bool:
    """Whether a scorer's spec follows the former rule and could be that of two models.

    That rule treated null as absent. If the two are different models, it is unknown which of them
    the scores come from.
    """
    config: Mapping[str, Any] = spec["config"]
    return relevant_config(config, store) != config


def say_former(store: Store, folder: Path, spec: Mapping[str, object]) -> None:
    """Say once that a model has scores under the former rule, and that they are not used."""
    former = dict(spec) | {"config": former_config(model_config(folder))}
    if former != spec and (name := scorer_fingerprint(former)) in store.partitions(LOGPS.name):
        say_once(store, name, former_message(name))


def former_message(fingerprint: str) -> str:
    """Return the message about scores under the former rule, which could be of two models."""
    return (
        f"scores under @{fingerprint[:12]} were made by a rule that did not tell null from absent "
        "in config.json: they are kept and not used"
    )


def weights_hash(folder: Path, store: Store) -> str:
    """Return the hash of all tensors: their names, dtypes, shapes and bytes."""
    leaves: dict[str, str] = {}
    for path in weight_files(folder):
        known = store.recall("tensors", path)
        if known is None:
            known = canonical_json(_tensor_hashes(path))
            store.remember("tensors", path, known)
        leaves |= json.loads(known)
    return blake3(canonical_json(leaves).encode()).hexdigest(KEY_BYTES)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads: one file, or those that its index names.

    Other safetensors files in the folder, such as a backup, are not part of the model.

    Raises:
        ModelError: If there are none, or one that the index names is missing.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index}: expected an index of weights, got: {error}") from error
        files = [folder / name for name in sorted(names)]
        if missing := [path.name for path in files if not path.exists()]:
            raise ModelError(f"{folder}: its index names {missing[0]}, which is not there")
        return files
    raise ModelError(
        f"{folder}: expected weights as model.safetensors or its index, found none; other formats "
        "are not read because loading them can run code"
    )


def _tensor_hashes(path: Path) -> dict[str, str]:
    """Return the hash of each tensor in a safetensors file."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            return _hash_tensors(data)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: expected a safetensors file, got: {error}") from error


def _hash_tensors(data: memoryview) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("a header longer than the file")
    header = json.loads(bytes(data[8 : 8 + length]))
    hashes = {}
    with data[8 + length :] as body:  # an open view would keep the file mapped
        for name, tensor in sorted(header.items()):
            if name == "__metadata__":
                continue
            start, end = tensor["data_offsets"]
            if end > len(body):
                raise ValueError(f"a file cut short: tensor {name} ends beyond it")
            kind = canonical_json([tensor["dtype"], tensor["shape"]])
            hasher = blake3(kind.encode(), max_threads=blake3.AUTO)
            with body[start:end] as values:
                hasher.update(values)
            hashes[name] = hasher.hexdigest(KEY_BYTES)
    return hashes


def _logits_dtype(precision: str) -> str:
    return "float64" if precision == "float64" else "float32"
