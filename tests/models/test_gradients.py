"""Gradients in memory of their own are torch's, and stay where they are."""

import pytest
import torch
from torch import Tensor, nn

from offpref.pipeline.models.gradients import GradientMemory, SummingEmbedding


class Model(nn.Module):
    def __init__(self, **embedding: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 4, **embedding)
        self.layer = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.embedding(ids)).square().sum()


BATCHES = [torch.tensor(ids) for ids in ([[1, 2, 2]], [[0, 10, 3], [3, 3, 1]], [[5, 6, 7]])]


def kept(model: nn.Module) -> GradientMemory:
    memory = GradientMemory(each for each in model.parameters() if each.requires_grad)
    memory.sum_embeddings(model)
    return memory


@pytest.mark.parametrize("embedding", [{}, {"padding_idx": 3}])
def test_gradients_are_torchs_step_after_step(embedding: dict[str, object]) -> None:
    plain, other = Model(**embedding), Model(**embedding)
    kept(other)
    places = []
    for step in (BATCHES, BATCHES[:1], BATCHES[1:]):
        for model in (plain, other):
            for ids in step:
                model(ids).backward()
        found = {name: p.grad for name, p in other.named_parameters()}
        for name, parameter in plain.named_parameters():
            if parameter.grad is None:
                assert found[name] is None
            else:
                torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-6)
        assert torch.equal(found["layer.weight"], plain.layer.weight.grad)  # to the last bit
        places.append([None if g is None else g.data_ptr() for g in found.values()])
        for model in (plain, other):
            model.zero_grad(set_to_none=True)
        assert all(p.grad is None for p in other.parameters())
    assert places[0] == places[1] == places[2]


def test_what_stays_torchs() -> None:
    class Own(nn.Embedding):
        pass

    model = Model(max_norm=1.0)
    model.own, model.frozen = Own(3, 2), nn.Embedding(3, 2).requires_grad_(False)
    model.sparse = nn.Embedding(3, 2, sparse=True)
    memory = kept(model)
    assert not any(isinstance(module, SummingEmbedding) for module in model.modules())
    assert memory.summed(model.frozen.weight) is None
    assert model.frozen.weight.grad is None


def test_embedding_without_gradient_and_in_half_precision() -> None:
    model = Model().to(torch.bfloat16)
    kept(model)
    assert isinstance(model.embedding, SummingEmbedding)
    with torch.no_grad():
        assert not model.embedding(BATCHES[0]).requires_grad
    model(BATCHES[1]).backward()
    assert model.embedding.weight.grad.dtype == torch.bfloat16
    assert set(model.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == {
        0,
        1,
        3,
        10,
    }
