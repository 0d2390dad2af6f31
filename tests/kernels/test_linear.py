import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

from offpref.kernels import reference
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_logits, linear_token_scores

BOTH = ("token_logps", "entropy")
SHAPES = [
    (0, 5, 37),  # no tokens
    (1, 5, 37),  # one token, one block
    (7, 3, 4096),  # exactly one block
    (33, 17, 4097),  # a last block of one column
    (252, 9, 9001),  # several blocks, none full at the end
]
TRANSFORMS = [(1.0, None, False), (0.3, None, True), (2.0, 3.0, False), (0.5, 30.0, True)]


def random_case(
    shape: tuple[int, int, int],
    *,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
    softcap: float | None = None,
    has_bias: bool = False,
) -> tuple[Tensor, OutputHead, Tensor]:
    num_tokens, hidden_size, vocab_size = shape
    generator = torch.Generator().manual_seed(sum(shape))
    hidden = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, hidden_size, generator=generator).to(dtype).requires_grad_()
    bias = (
        torch.randn(vocab_size, generator=generator).to(dtype).requires_grad_()
        if has_bias
        else None
    )
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    edges = torch.tensor([0, vocab_size - 1, vocab_size // 2])
    labels[: num_tokens // 3] = edges.repeat(num_tokens)[: num_tokens // 3]
    return hidden, OutputHead(weight=weight, bias=bias, scale=scale, softcap=softcap), labels


def exact_scores(hidden: Tensor, head: OutputHead, labels: Tensor) -> dict[str, Tensor]:
    logits = reference.head_logits(hidden, head)
    return {
        "token_logps": reference.label_logps(logits, labels),
        "entropy": reference.entropy(logits),
    }


def gradients(
    scores: dict[str, Tensor], hidden: Tensor, head: OutputHead, seed: int = 0
) -> list[Tensor]:
    """Gradients with an upstream gradient of its own for every token and score."""
    generator = torch.Generator().manual_seed(seed)
    upstream = [
        torch.randn(len(hidden), generator=generator, dtype=torch.float64).to(score.dtype)
        for score in scores.values()
    ]
    inputs = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    return list(torch.autograd.grad(list(scores.values()), inputs, upstream))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "softcap", "has_bias"), TRANSFORMS)
@pytest.mark.parametrize("want", [BOTH, ("token_logps",), ("entropy",)])
def test_values_and_gradients_equal_the_reference(
    shape: tuple[int, int, int],
    scale: float,
    softcap: float | None,
    has_bias: bool,
    want: tuple[str, ...],
) -> None:
    case = random_case(shape, scale=scale, softcap=softcap, has_bias=has_bias)
    exact = {name: score for name, score in exact_scores(*case).items() if name in want}

    scores = linear_token_scores(*case, want=want)

    assert scores.keys() == exact.keys()
    for name in want:
        torch.testing.assert_close(scores[name], exact[name], rtol=1e-11, atol=1e-11)
    scores, exact = ({name: found[name] for name in want} for found in (scores, exact))
    for found, expected in zip(
        gradients(scores, *case[:2]), gradients(exact, *case[:2]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finite_differences(has_bias: bool, softcap: float | None) -> None:
    hidden, head, labels = random_case((3, 4, 11), scale=0.7, softcap=softcap, has_bias=has_bias)

    def scores(hidden: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
        given = OutputHead(
            weight=weight, bias=bias[0] if bias else None, scale=0.7, softcap=softcap
        )
        return tuple(linear_token_scores(hidden, given, labels, want=BOTH).values())

    inputs = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    assert torch.autograd.gradcheck(scores, inputs)


@pytest.mark.parametrize("workspace_bytes", [1, 20_000, 1 << 20])
def test_small_workspace_gives_the_same(workspace_bytes: int) -> None:
    case = random_case((40, 9, 5001), has_bias=True, softcap=5.0)
    exact = exact_scores(*case)

    scores = linear_token_scores(*case, want=BOTH, workspace_bytes=workspace_bytes)

    torch.testing.assert_close(scores, exact, rtol=1e-11, atol=1e-11)
    for found, expected in zip(
        gradients(scores, *case[:2]), gradients(exact, *case[:2]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_float32_is_as_near_as_plain_torch() -> None:
    """The slack: one float32 step at the size of the log-normaliser."""
    case = random_case((252, 64, 9001), dtype=torch.float32)
    hidden, head, labels = case
    wide = (hidden.double(), OutputHead(weight=head.weight.double()), labels)
    exact, plain = exact_scores(*wide), exact_scores(*case)

    scores = linear_token_scores(*case, want=BOTH)

    for name in BOTH:
        error = (scores[name] - exact[name]).abs().max()
        assert error <= 2 * (plain[name] - exact[name]).abs().max() + 4e-6


@pytest.mark.parametrize("dtypes", list(product([torch.bfloat16, torch.float32], repeat=2))[:-1])
def test_half_precision_factors_make_float32_logits(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    hidden, head, labels = random_case((33, 17, 4097), dtype=torch.float32)
    hidden = hidden.detach().to(dtypes[0]).requires_grad_()
    weight = head.weight.detach().to(dtypes[1]).requires_grad_()
    exact = exact_scores(hidden.double(), OutputHead(weight=weight.double()), labels)

    scores = linear_token_scores(hidden, OutputHead(weight=weight), labels, want=BOTH)

    for name in BOTH:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], exact[name].float(), rtol=1e-5, atol=1e-5)
    scores["token_logps"].sum().backward()
    exact["token_logps"].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == dtypes[0]
    assert weight.grad is not None
    assert weight.grad.dtype == dtypes[1]


def test_autocast_does_not_round_the_logits() -> None:
    case = random_case((33, 17, 4097), dtype=torch.float32)
    expected = linear_token_scores(*case)["token_logps"]
    expected_gradients = gradients({"token_logps": expected}, *case[:2])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_token_scores(*case)["token_logps"]
        found_gradients = gradients({"token_logps": found}, *case[:2])

    assert torch.equal(found, expected)
    assert all(map(torch.equal, found_gradients, expected_gradients))


def test_extreme_logits_stay_finite_and_right() -> None:
    """One logit 120 above the rest, where exp of the others is 0 in float32."""
    weight = torch.zeros(5000, 1)
    weight[4321] = 60.0
    head = OutputHead(weight=weight.requires_grad_())
    hidden = torch.tensor([[2.0], [-2.0]], requires_grad=True)
    labels = torch.tensor([17, 4321])

    scores = linear_token_scores(hidden, head, labels, want=BOTH)
    scores["token_logps"].sum().backward()

    expected = exact_scores(hidden.double(), OutputHead(weight=weight.double()), labels)
    for name in BOTH:
        torch.testing.assert_close(scores[name], expected[name].float(), rtol=1e-6, atol=1e-6)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_far_below_zero_is_not_the_first_maximum() -> None:
    head = OutputHead(weight=torch.full((4100, 1), -3000.0))

    scores = linear_token_scores(torch.ones(1, 1), head, torch.tensor([4099]), want=BOTH)

    expected = torch.tensor([4100.0]).log()
    torch.testing.assert_close(scores["token_logps"], -expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(scores["entropy"], expected)


def test_same_bits_every_time() -> None:
    case = random_case((252, 9, 9001), dtype=torch.float32, has_bias=True)

    runs = []
    for _ in range(3):
        scores = linear_token_scores(*case, want=BOTH)
        runs.append([*scores.values(), *gradients(scores, *case[:2])])

    assert all(map(torch.equal, runs[0], runs[1]))
    assert all(map(torch.equal, runs[0], runs[2]))


def test_garbage_in_one_token_leaves_the_others_alone() -> None:
    hidden, head, labels = random_case((33, 17, 4097), dtype=torch.float32)
    clean = linear_token_scores(hidden, head, labels, want=BOTH)
    hidden = hidden.detach().clone()
    hidden[5] = torch.nan
    hidden[6] = torch.inf

    scores = linear_token_scores(hidden, head, labels, want=BOTH)

    others = [t for t in range(33) if t not in (5, 6)]
    assert torch.equal(scores["token_logps"][others], clean["token_logps"][others])
    assert torch.equal(scores["entropy"][others], clean["entropy"][others])


def test_strides_that_are_not_one() -> None:
    hidden, head, labels = random_case((33, 18, 4097))
    expected = linear_token_scores(hidden.detach(), head, labels, want=BOTH)
    spread = torch.zeros(18, 66, dtype=torch.float64)
    spread[:, ::2] = hidden.detach().T
    transposed = OutputHead(weight=head.weight.detach().T.contiguous().T)

    scores = linear_token_scores(spread[:, ::2].T, transposed, labels, want=BOTH)

    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


def test_frozen_head_and_frozen_hidden_states() -> None:
    hidden, head, labels = random_case((7, 5, 37))
    (full_hidden, full_weight) = gradients(linear_token_scores(hidden, head, labels), hidden, head)
    frozen = OutputHead(weight=head.weight.detach())

    scores = linear_token_scores(hidden, frozen, labels)
    upstream = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (only_hidden,) = torch.autograd.grad(scores["token_logps"], [hidden], upstream)
    scores = linear_token_scores(hidden.detach(), head, labels)
    (only_weight,) = torch.autograd.grad(scores["token_logps"], [head.weight], upstream)

    torch.testing.assert_close(only_hidden, full_hidden, rtol=0, atol=0)
    torch.testing.assert_close(only_weight, full_weight, rtol=0, atol=0)


def test_whole_logits_equal_the_reference() -> None:
    hidden, head, _ = random_case((7, 5, 9001), scale=0.3, softcap=2.0, has_bias=True)

    torch.testing.assert_close(linear_logits(hidden, head), reference.head_logits(hidden, head))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, r"must share H, got \(3, 5\) and \(8, 4\)"),
        ({"hidden": torch.zeros(3, 1, 4)}, "must share H"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.int64)}, "dtypes must be floating"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be int64 \[3\]"),
        ({"labels": torch.zeros(3)}, r"labels must be int64 \[3\], got torch.float32"),
        ({"bias": torch.zeros(7)}, r"bias must be \[8\], got \(7,\)"),
        ({"softcap": 0.0}, "softcap must be greater than 0 or None, got 0.0"),
        ({"want": ("logps",)}, "want must be out of"),
        ({"workspace_bytes": 0}, "workspace_bytes must be greater than 0"),
        ({"hidden": torch.zeros(3, 4, device="meta")}, "on one device, got"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    given = {"hidden": torch.zeros(3, 4), "labels": torch.zeros(3, dtype=torch.int64)} | changes
    head = OutputHead(
        weight=torch.zeros(8, 4),
        bias=given.pop("bias", None),  # type: ignore[arg-type]
        softcap=given.pop("softcap", None),  # type: ignore[arg-type]
    )

    with pytest.raises(ValueError, match=message):
        linear_token_scores(head=head, **given)  # type: ignore[arg-type]


MEASURE_MEMORY = """
import resource, sys, torch
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import linear_token_scores
torch.set_num_threads(1)
T, H, V = 4096, 16, 60_000
hidden = torch.randn(T, H, requires_grad=True)
head = OutputHead(weight=torch.randn(V, H, requires_grad=True))
labels = torch.randint(V, (T,))
def run(rows, workspace):
    scores = linear_token_scores(
        hidden[:rows], head, labels[:rows], want=("token_logps", "entropy"),
        workspace_bytes=workspace,
    )
    (scores["token_logps"].sum() + scores["entropy"].sum()).backward()
run(8, 1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(T, 16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_stays_within_the_workspace() -> None:
    """Whole logits would be 983 MB; the workspace is 16 MB, the gradients less than 10."""
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY], capture_output=True, text=True, check=True
    ).stdout

    assert int(output) / 1024 < 16 + 24
