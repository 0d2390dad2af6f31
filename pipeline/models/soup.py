"""Rewarded soups: the weighted mean of the weights of several policies (arXiv:2306.04488).

A baseline for MODPO: policies trained on one objective each, interpolated without training.
"""

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from offpref.stores.errors import ModelError
from offpref.stores.files.placing import whole_folder

from .fingerprints import model_config, weight_files
from .folders import copy_tokenizer
from .tensor_files import tensor_errors


def soup(folders: Sequence[Path], weights: Sequence[float], output_dir: Path) -> int:
    """Write the weighted mean of some models, and return how many tensors it has.

    Sums are float64, rounded once to the dtype of the first model's tensor. Configuration and
    tokenizer are the first model's.

    Args:
        folders: Models of one architecture, at least two.
        weights: One per model, of any sign, with a sum other than 0; they are divided by their sum.
        output_dir: New or empty folder.

    Raises:
        ValueError: If weights or the output folder do not fit.
        ModelError: If the models' tensors differ in name or shape.
        StoreWriteError: If the file system refuses.
    """
    check_soup(folders, weights, output_dir)
    total = sum(weights)
    tensors = _mean([_Tensors(folder) for folder in folders], [w / total for w in weights])
    with whole_folder(output_dir) as folder, tensor_errors():
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config: dict[str, Any] = model_config(folders[0])
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(folders[0], folder)
        note = {"soup": [[str(f), w / total] for f, w in zip(folders, weights, strict=True)]}
        (folder / "soup.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return len(tensors)


def check_soup(folders: Sequence[Path], weights: Sequence[float], output_dir: Path) -> None:
    """Check the arguments of :func:`soup`.

    Raises:
        ValueError: If weights or the output folder do not fit.
    """
    if len(folders) < 2 or len(folders) != len(weights):
        raise ValueError(f"expected at least two models with one weight each, got {len(folders)}")
    if not all(map(isfinite, weights)) or abs(sum(weights)) < 1e-9:
        raise ValueError(f"weights must be finite and not sum to 0, got {list(weights)}")
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"output_dir {output_dir} is not empty")


class _Tensors:
    """The tensors of a model's safetensors files, one at a time."""

    def __init__(self, folder: Path) -> None:
        model_config(folder)  # raises if the folder is not a model
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def names(self) -> set[str]:
        return set(self._files)

    def get(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def _mean(models: Sequence[_Tensors], weights: Sequence[float]) -> dict[str, Tensor]:
    first = models[0]
    for other in models[1:]:
        if differing := sorted(first.names() ^ other.names()):
            raise ModelError(
                f"{other.folder} and {first.folder} do not have the same tensors: "
                f"{differing[0]} is in one of them only"
            )
    found: dict[str, Tensor] = {}
    for name in sorted(first.names()):
        parts = [model.get(name) for model in models]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1:
            raise ModelError(f"the models' tensors {name} differ in shape: {sorted(shapes)}")
        if not parts[0].is_floating_point():
            found[name] = parts[0]
            continue
        mean = torch.zeros_like(parts[0], dtype=torch.float64)
        for part, weight in zip(parts, weights, strict=True):
            mean.add_(part.double(), alpha=weight)
        found[name] = mean.to(parts[0].dtype)
    return found
