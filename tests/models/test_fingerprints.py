import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offpref.pipeline.models.fingerprints import (
    default_max_length,
    model_config,
    scorer_fingerprint,
    scorer_spec,
    weights_hash,
)
from offpref.stores.errors import ModelError
from offpref.stores.store import Store


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def fingerprint(folder: Path, store: Store, **options: str) -> str:
    settings = {"precision": "float32", "vocabulary": "v"} | options
    return scorer_fingerprint(scorer_spec(folder, store=store, **settings))  # type: ignore[arg-type]


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_copy_is_the_same_scorer(copy: Path, model_dir: Path, store: Store) -> None:
    assert fingerprint(copy, store) == fingerprint(model_dir, store)


def test_files_of_the_weights_do_not_matter_but_every_value_does(
    copy: Path, model_dir: Path, store: Store
) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, copy / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))

    assert weights_hash(copy, store) == weights_hash(model_dir, store)

    changed = tensors[names[1]].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(9.0))
    save_file({name: tensors[name] for name in names[3::2]} | {names[1]: changed},
              copy / "b.safetensors")  # fmt: skip
    assert weights_hash(copy, store) != weights_hash(model_dir, store)


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
        {"sliding_window": 8},
        {"anything_unknown": 1},  # what is not known to be harmless counts
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_the_forward_pass_count(
    changes: dict[str, object], copy: Path, model_dir: Path, store: Store
) -> None:
    change_config(copy, **changes)
    assert fingerprint(copy, store) != fingerprint(model_dir, store)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_dropout": 0.5},
        {"use_cache": False},
        {"transformers_version": "0"},
        {"new": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_training_and_saving_do_not(
    changes: dict[str, object], copy: Path, model_dir: Path, store: Store
) -> None:
    change_config(copy, **changes)
    assert fingerprint(copy, store) == fingerprint(model_dir, store)


def test_precision_and_vocabulary_count(model_dir: Path, store: Store) -> None:
    plain = fingerprint(model_dir, store)
    assert fingerprint(model_dir, store, precision="bf16") != plain
    assert fingerprint(model_dir, store, vocabulary="w") != plain


def test_remembered_hash_is_forgotten_when_the_file_changes(copy: Path, store: Store) -> None:
    before = weights_hash(copy, store)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, copy / "model.safetensors")
    assert weights_hash(copy, store) != before


def test_max_length_comes_from_the_model(model_dir: Path, chat_dir: Path) -> None:
    assert (default_max_length(model_dir), default_max_length(chat_dir)) == (64, None)


def test_weights_are_those_that_are_loaded(copy: Path, model_dir: Path, store: Store) -> None:
    """What lies beside them, older weights or a stale index, must not hide a change."""
    tensors = load_file(copy / "model.safetensors")
    shutil.copy(copy / "model.safetensors", copy / "model_old.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model_old.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_hash(copy, store) == weights_hash(model_dir, store)

    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, copy / "model.safetensors")

    assert weights_hash(copy, store) != weights_hash(model_dir, store)


def test_folders_that_are_no_model_are_clear_errors(
    copy: Path, chat_dir: Path, store: Store
) -> None:
    with pytest.raises(ModelError, match="found no such folder"):
        fingerprint(copy / "no", store)
    with pytest.raises(ModelError, match=r"expected a model's config\.json"):
        fingerprint(chat_dir, store)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        fingerprint(copy, store)
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="expected weights as model"):
        fingerprint(copy, store)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge it first"):
        fingerprint(copy, store)


def test_an_adapter_alone_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(ModelError, match="found an adapter alone; train with --lora-output merged"):
        model_config(tmp_path)
