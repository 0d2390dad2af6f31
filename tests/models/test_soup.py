import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from offpref.pipeline.commands.main import main
from offpref.pipeline.models.soup import soup
from offpref.pipeline.small_world import write_model, write_tokenizer
from offpref.stores.errors import ModelError


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders):
        write_model(folder, vocab_size=write_tokenizer(folder), seed=seed)
    return folders


def test_tensors_are_weighted_means_and_load_as_a_model(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "soup"
    num_tensors = soup(models, [1.0, 2.0, 5.0], out)

    parts = [load_file(folder / "model.safetensors") for folder in models]
    found = load_file(out / "model.safetensors")
    assert num_tensors == len(found) == len(parts[0])
    for name, tensor in found.items():
        exact = (parts[0][name].double() + 2 * parts[1][name].double()) / 8
        exact += 5 * parts[2][name].double() / 8
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-9)
        assert tensor.dtype == parts[0][name].dtype
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model.get_input_embeddings().weight, found["model.embed_tokens.weight"])
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(models[0]))
    weights = [weight for _, weight in json.loads((out / "soup.json").read_text())["soup"]]
    assert weights == [1 / 8, 2 / 8, 5 / 8]


def test_all_weight_on_one_model_is_that_model(models: list[Path], tmp_path: Path) -> None:
    soup(models[:2], [0.0, 3.0], tmp_path / "soup")

    found, own = (load_file(f / "model.safetensors") for f in (tmp_path / "soup", models[1]))
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_models_that_differ_are_named(models: list[Path], tmp_path: Path) -> None:
    tensors = load_file(models[1] / "model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, "extra": torch.ones(1)}, models[1] / "model.safetensors")
    with pytest.raises(ModelError, match="do not have the same tensors: extra"):
        soup(models[:2], [1, 1], tmp_path / "soup")
    save_file({**tensors, name: torch.ones(2, 2)}, models[1] / "model.safetensors")
    with pytest.raises(ModelError, match="differ in shape"):
        soup(models[:2], [1, 1], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
    assert not list(tmp_path.glob(".soup*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "a=1"], "at least two models"),
        (["--run", "a=1", "--run", "b"], "--run must be DIR=WEIGHT, got 'b'"),
        (["--run", "a=1", "--run", "b=-1"], "finite and not sum to 0"),
        (["--run", "a=1", "--run", "b=nan"], "finite and not sum to 0"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(main, ["soup", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert message in done.output
