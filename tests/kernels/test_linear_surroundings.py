"""Scores from hidden states within what surrounds them: checkpoints, compilers, little memory."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offpref.kernels.distributions import HiddenReference
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores
from offpref.kernels.logits import label_logps
from offpref.kernels.torch_blocks import block_shape

WANT = ("token_logps", "forward_kl", "entropy")


class Scorer(nn.Module):
    """A small network, then the scores of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.weight = nn.Parameter(torch.randn(507, 8))
        self.register_buffer("ref_weight", torch.randn(507, 5))
        self.checkpoints = False

    def scores(self, inputs: Tensor, labels: Tensor, ref_hidden: Tensor) -> Tensor:
        hidden = self.norm(self.first(inputs).tanh())
        whole = HiddenReference(hidden=ref_hidden, head=OutputHead(weight=self.ref_weight))
        head = OutputHead(weight=self.weight)
        scores = linear_token_scores(hidden, head, labels, whole, want=WANT)
        return (torch.stack(tuple(scores.values())) * torch.tensor([[1.0], [0.3], [0.2]])).sum(0)

    def forward(self, inputs: Tensor, labels: Tensor, ref_hidden: Tensor) -> Tensor:
        if self.checkpoints:
            return checkpoint(self.scores, inputs, labels, ref_hidden, use_reentrant=False)
        return self.scores(inputs, labels, ref_hidden)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(507, (9,), generator=generator)
    labels[3] = -100
    return torch.randn(9, 6, generator=generator), labels, torch.randn(9, 5, generator=generator)


def run(module: nn.Module, scorer: Scorer, batch: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    scores = module(*batch)
    return [scores, *torch.autograd.grad(scores.sum(), list(scorer.parameters()))]


def test_activations_computed_twice_give_the_same(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    scorer = Scorer()
    expected = run(scorer, scorer, batch)
    scorer.checkpoints = True

    found = run(scorer, scorer, batch)

    assert all(map(torch.equal, found, expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own, at a graph break
def test_a_compiled_surrounding_module_gives_the_same(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    scorer = Scorer()
    expected = run(scorer, scorer, batch)

    found = run(torch.compile(scorer, backend="eager"), scorer, batch)

    assert all(map(torch.equal, found, expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own, at a graph break
def test_logits_of_a_compiled_module_give_the_same() -> None:
    head, labels = nn.Linear(6, 507), torch.arange(9)
    inputs = torch.randn(9, 6)

    def scores(inputs: Tensor) -> Tensor:
        return label_logps(head(inputs).sigmoid(), labels)

    compiled = torch.compile(scores, backend="eager")

    assert torch.equal(compiled(inputs), scores(inputs))


def test_autocast_does_not_round_the_kl() -> None:
    """Policy and reference are the same, but the network runs in half precision."""
    hidden, weight = torch.randn(9, 8), torch.randn(507, 8)
    head = OutputHead(weight=weight)
    whole = HiddenReference(hidden=hidden + 1e-4, head=head)
    labels = torch.arange(9)
    expected = linear_token_scores(hidden, head, labels, whole, want=WANT)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_token_scores(hidden, head, labels, whole, want=WANT)

    for name in WANT:
        assert torch.equal(found[name], expected[name])


def test_a_second_derivative_is_an_error() -> None:
    hidden = torch.randn(3, 8, requires_grad=True)
    head = OutputHead(weight=torch.randn(50, 8))
    upstream = torch.ones(3, requires_grad=True)
    scores = linear_token_scores(hidden, head, torch.arange(3))["token_logps"]
    (first,) = torch.autograd.grad(scores, hidden, upstream, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


MEASURE_MEMORY = """
import resource, sys, torch
from offpref.kernels.distributions import HiddenReference
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores
from offpref.kernels.logits import label_logps
torch.set_num_threads(1)
T, H, V = 4096, 16, 40_000
want = sys.argv[1].split(",")
hidden = torch.randn(T, H, requires_grad=True)
head = OutputHead(weight=torch.randn(V, H, requires_grad=True))
reference = HiddenReference(hidden=torch.randn(T, H), head=OutputHead(weight=torch.randn(V, H)))
labels = torch.randint(V, (T,))
def run(rows, workspace):
    scores = linear_token_scores(
        hidden[:rows], head, labels[:rows], reference.rows(torch.arange(rows)), want=want,
        workspace_bytes=workspace,
    )
    sum((n + 1) * values.sum() for n, values in enumerate(scores.values())).backward()
run(8, 1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(T, 16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("want", [WANT[:2], (*WANT, "reverse_kl")])
def test_peak_memory_stays_within_the_workspace(want: tuple[str, ...]) -> None:
    """Whole logits would be 655 MB each; the workspace is 16 MB, the gradients 3, results less."""
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, ",".join(want)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert int(output) / 1024 < 16 + 16


@pytest.mark.parametrize(
    ("num_logits", "itemsize"),
    [
        (2, 4),  # of the torch form's log-prob on a GPU: see num_blocks there
        (3, 4),
        (8, 4),  # with a reference, where a piece is a whole block
    ],
)
def test_blocks_of_a_large_vocabulary_fit_a_gigabyte(num_logits: int, itemsize: int) -> None:
    num_tokens, hidden_size, vocab_size = 16_384, 4096, 128_256

    shape = block_shape(
        num_tokens, vocab_size, hidden_size, dtype=torch.float32, workspace_bytes=1 << 30,
        num_blocks=num_logits, copies_weight=True,
    )  # fmt: skip

    rows, columns = shape.num_rows, shape.num_columns
    logits = num_logits * rows * columns
    weights = 3 * columns * hidden_size  # a float32 copy, a gradient, what is added to it
    hidden = 4 * rows * hidden_size
    assert rows >= 256
    assert itemsize * (logits + weights + hidden) <= 1 << 30
