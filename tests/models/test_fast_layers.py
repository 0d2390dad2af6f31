"""A model whose linear layers take the fast product is the same model, to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from offpref.kernels import torch_products as products
from offpref.pipeline.models.fast_layers import FastConv1D, FastLinear, use_fast_layers

SIZES = {"vocab_size": 67, "bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MIN_WORK", 0)


def llama() -> Any:  # transformers' models are untyped here
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, **SIZES,
        )
    ).eval()  # fmt: skip


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SIZES)
    return GPT2LMHeadModel(config).eval()


MODELS = {"llama": llama, "gpt2": gpt2}


def ids() -> Tensor:
    return torch.randint(67, (2, 45), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_the_plain_models(name: str) -> None:
    plain, fast = MODELS[name](), MODELS[name]()
    use_fast_layers(fast)

    outputs = [model(input_ids=ids()).logits for model in (plain, fast)]
    for output in outputs:
        output.square().mean().backward()

    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_every_plain_layer_is_exchanged_and_no_subclass() -> None:
    class Own(nn.Linear):
        pass

    model = gpt2()
    model.extra = Own(3, 3)

    use_fast_layers(model)

    kinds = {type(module) for module in model.modules()}
    assert {FastLinear, FastConv1D, Own} <= kinds
    assert not {nn.Linear, Conv1D} & kinds


@pytest.mark.parametrize("name", MODELS)
def test_autocast_falls_back(name: str) -> None:
    plain, fast = MODELS[name](), MODELS[name]()
    use_fast_layers(fast)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [model(input_ids=ids()).logits for model in (plain, fast)]

    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_the_plain_model(name: str, tmp_path: Path) -> None:
    plain, fast = MODELS[name](), MODELS[name]()
    use_fast_layers(fast)

    fast.save_pretrained(tmp_path)
    loaded = type(plain).from_pretrained(tmp_path)

    assert list(fast.state_dict()) == list(plain.state_dict())
    assert {type(module) for module in loaded.modules()}.isdisjoint({FastLinear, FastConv1D})
    for key, values in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], values)


def test_activations_may_be_computed_twice() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    use_fast_layers(layers)
    inputs = torch.randn(5, 8, requires_grad=True)
    leaves = [inputs, *layers.parameters()]

    runs = [
        torch.autograd.grad(outputs.square().mean(), leaves)
        for outputs in (layers(inputs), checkpoint(layers, inputs, use_reentrant=False))
    ]

    assert all(map(torch.equal, *runs))
