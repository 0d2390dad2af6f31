"""The row kernels against float64: in Triton's interpreter, and on a GPU (`make test-gpu`)."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from offpref.kernels import reference

triton = pytest.importorskip("triton", reason="Triton exists for Linux only")

from offpref.kernels.triton_rows import (  # noqa: E402 # after the line that may skip
    RESULTS,
    RowConfig,
    RowStats,
    Transform,
    backward_rows,
    forward_rows,
)

SCORES = RESULTS[:4]  # those with a gradient
SHAPES = [
    (0, 37),  # no rows
    (1, 37),  # one row, most of the block empty
    (7, 507),  # odd sizes
    (252, 1000),  # more rows than a GPU has multiprocessors
    (3, 32000),  # a last block that is not full
    (2, 50257),  # no power of 2 in its factors: rows start anywhere
]
AS_THEY_ARE = Transform()
SMALL = RowConfig(128, 4)  # so that a few hundred columns are several blocks


def cuda_or_skip() -> str:
    if triton.knobs.runtime.interpret or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and no TRITON_INTERPRET")
    return "cuda"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        return cuda_or_skip()
    if not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported, as `make test` sets it")
    return "cpu"


@pytest.fixture
def gpu() -> str:
    return cuda_or_skip()


def random_rows(
    shape: tuple[int, int],
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    drift: float = 0.3,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, of the reference that it drifted from, and labels with the edges."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, vocab_size = shape
    ref_logits = 3 * torch.randn(shape, generator=generator)
    logits = ref_logits + drift * torch.randn(shape, generator=generator)
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    edges = torch.tensor([0, vocab_size - 1, vocab_size // 2])[: max(0, num_tokens - 1)]
    labels[: len(edges)] = edges
    return logits.to(device, dtype), ref_logits.to(device, dtype), labels.to(device)


def as_logits(raw_logits: Tensor, transform: Transform) -> Tensor:
    bias = None if transform.bias is None else transform.bias.to(raw_logits.dtype)
    return reference.transformed(
        raw_logits,
        bias=bias,
        scale=transform.scale,
        softcap=transform.softcap,
        vocab_size=transform.vocab_size,
    )


def plain_scores(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor,
    transform: Transform = AS_THEY_ARE,
    ref_transform: Transform = AS_THEY_ARE,
) -> dict[str, Tensor]:
    z, r = as_logits(logits, transform), as_logits(ref_logits, ref_transform)
    return {
        "token_logps": reference.label_logps(z, labels),
        "entropy": reference.entropy(z),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }


def upstream(num_tokens: int, device: str, want: Iterable[str] = SCORES) -> dict[str, Tensor]:
    """A gradient of its own for every row and score."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(num_tokens, generator=generator) for name in SCORES}
    return {name: drawn[name].to(device) for name in want}


def plain_gradient(logits: Tensor, scores: dict[str, Tensor], grads: dict[str, Tensor]) -> Tensor:
    return torch.autograd.grad(
        [scores[name] for name in grads], logits, [grad.to(logits.dtype) for grad in grads.values()]
    )[0]


def keywords(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"grad_{name.removeprefix('token_')}": grad for name, grad in grads.items()}


def assert_same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """In the interpreter every bit; on a GPU, rows that lie otherwise add up in another order."""
    for one, other in zip(found, expected, strict=True):
        if one.is_cuda:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=4e-6)
        else:
            assert torch.equal(one, other)


def largest(error: Tensor) -> float:
    return float(error.abs().max()) if error.numel() else 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_as_near_as_plain_torch(shape: tuple[int, int], device: str) -> None:
    """The slack: one float32 step at the size of the log-normaliser, one of each KL."""
    logits, ref_logits, labels = random_rows(shape, device)
    exact = plain_scores(logits.double(), labels, ref_logits.double())
    plain = plain_scores(logits, labels, ref_logits)

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits)

    for name in RESULTS:
        found = getattr(stats, name)
        assert found.dtype == torch.float32
        slack = 1e-6 if name.endswith("kl") else 2e-6
        assert largest(found - exact[name]) <= 2 * largest(plain[name] - exact[name]) + slack, name
    for name in ("forward_kl", "reverse_kl"):
        torch.testing.assert_close(getattr(stats, name), exact[name].float(), rtol=1e-5, atol=0)
    lse = torch.logsumexp(logits.double(), 1)
    torch.testing.assert_close(stats.lse, lse.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_as_near_as_plain_torch(shape: tuple[int, int], device: str) -> None:
    """The slack: two float32 steps at the size of the largest upstream gradient."""
    logits, ref_logits, labels = random_rows(shape, device)
    grads = upstream(shape[0], device)
    wide, plain = (logits.to(dtype).requires_grad_() for dtype in (torch.float64, torch.float32))
    exact = plain_gradient(wide, plain_scores(wide, labels, ref_logits.double()), grads)
    rounded = plain_gradient(plain, plain_scores(plain, labels, ref_logits), grads)

    stats = forward_rows(logits, labels, want=SCORES, ref_logits=ref_logits)
    found = backward_rows(logits, labels, stats, ref_logits=ref_logits, **keywords(grads))

    assert largest(found - exact) <= 2 * largest(rounded - exact) + 1e-6


@pytest.mark.parametrize("name", SCORES)
def test_each_score_has_its_own_gradient(name: str, device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device)
    grads = upstream(5, device, [name])
    wide = logits.double().requires_grad_()
    exact = plain_gradient(wide, plain_scores(wide, labels, ref_logits.double()), grads)

    stats = forward_rows(logits, labels, want=[name], ref_logits=ref_logits, config=SMALL)
    found = backward_rows(
        logits, labels, stats, ref_logits=ref_logits, config=SMALL, **keywords(grads)
    )

    torch.testing.assert_close(found, exact.float(), rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype, device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device, dtype=dtype)
    as_float = (logits.float(), labels)
    grads = keywords(upstream(5, device))

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits)
    out = torch.empty_like(logits, dtype=torch.float32)
    found = backward_rows(logits, labels, stats, ref_logits=ref_logits, out=out, **grads)
    rounded = backward_rows(logits, labels, stats, ref_logits=ref_logits, **grads)

    expected = forward_rows(*as_float, want=RESULTS, ref_logits=ref_logits.float())
    exact = backward_rows(*as_float, expected, ref_logits=ref_logits.float(), **grads)
    assert_same((*stats, found), (*expected, exact))  # type: ignore[arg-type]
    assert rounded.dtype == dtype
    # The interpreter cuts bfloat16 off where a GPU rounds it.
    torch.testing.assert_close(rounded, exact.to(dtype), rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize(
    ("scale", "softcap", "has_bias"),
    [
        (0.125, None, False),  # Granite divides by 8
        (0.0625, None, True),  # Cohere
        (1.0, 30.0, False),  # Gemma 2
        (2.5, 4.0, True),  # many logits at the cap
    ],
)
def test_transforms_of_policy_and_reference(
    scale: float, softcap: float | None, has_bias: bool, device: str
) -> None:
    logits, ref_logits, labels = random_rows((6, 507), device)
    bias = torch.linspace(-1, 1, 507, device=device) if has_bias else None
    transform = Transform(scale=scale, softcap=softcap, bias=bias, vocab_size=500)
    ref_transform = Transform(scale=scale * 1.1, softcap=softcap, vocab_size=500)
    labels.clamp_(max=499)
    grads = upstream(6, device)
    wide = logits.double().requires_grad_()
    scores = plain_scores(wide, labels, ref_logits.double(), transform, ref_transform)
    both = {"transform": transform, "ref_logits": ref_logits, "ref_transform": ref_transform}

    stats = forward_rows(logits, labels, want=RESULTS, config=SMALL, **both)  # type: ignore[arg-type]
    found = backward_rows(logits, labels, stats, **both, **keywords(grads))  # type: ignore[arg-type]

    for name in RESULTS:
        torch.testing.assert_close(getattr(stats, name), scores[name].float(), rtol=3e-6, atol=2e-6)
    exact = plain_gradient(wide, scores, grads)
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-6)
    assert (found[:, 500:] == 0).all()


def long_double_kl(logits: Tensor, ref_logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || policy) and q - p of float32 logits, in numpy's 80-bit numbers."""
    z, r = (tensor.cpu().numpy().astype(np.longdouble) for tensor in (logits, ref_logits))
    z, r = (each - each.max(axis=1, keepdims=True) for each in (z, r))
    logq, logp = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (z, r))
    return (np.exp(logp) * (logp - logq)).sum(1), np.exp(logq) - np.exp(logp)


@pytest.mark.parametrize("drift", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("shift", [0.0, 1.375])
def test_small_kl_keeps_its_digits(drift: float, shift: float, device: str) -> None:
    """At the least drift the KL is 5e-9; the usual forms give 2e-6 or -2e-6 for it."""
    logits, ref_logits, labels = random_rows((6, 1000), device, drift=drift)
    logits += shift
    exact_kl, exact_difference = long_double_kl(logits, ref_logits)

    stats = forward_rows(
        logits, labels, want=["forward_kl", "reverse_kl"], ref_logits=ref_logits, config=SMALL
    )
    ones = torch.ones(6, device=device)
    found = backward_rows(logits, labels, stats, ref_logits=ref_logits, grad_forward_kl=ones)

    assert stats.forward_kl is not None
    assert stats.reverse_kl is not None
    backwards, _ = long_double_kl(ref_logits, logits)
    np.testing.assert_allclose(stats.forward_kl.cpu(), exact_kl.astype(float), rtol=5e-5)
    np.testing.assert_allclose(stats.reverse_kl.cpu(), backwards.astype(float), rtol=5e-5)
    difference = exact_difference.astype(float)
    error = np.abs(found.cpu().numpy() - difference).max(1) / np.abs(difference).max(1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("rise", [2.0, -2.0, 12.0])
def test_only_the_label_moved(rise: float, device: str) -> None:
    """Training moves one logit; where the label is one of the nine columns, too."""
    _, ref_logits, _ = random_rows((9, 513), device)
    labels = torch.tensor([(2 * i + 1) * 513 // 18 for i in range(9)], device=device)
    logits = ref_logits.clone()
    logits[torch.arange(9), labels] += rise
    exact, _ = long_double_kl(logits, ref_logits)

    stats = forward_rows(logits, labels, want=["forward_kl"], ref_logits=ref_logits, config=SMALL)

    assert stats.forward_kl is not None
    np.testing.assert_allclose(stats.forward_kl.cpu(), exact.astype(float), rtol=5e-6)
    assert stats.gaps is not None
    assert (stats.gaps == 0).all()


@pytest.mark.parametrize(
    "transform", [Transform(), Transform(scale=0.7, softcap=30.0, vocab_size=500)]
)
def test_same_logits_have_no_kl_at_all(transform: Transform, device: str) -> None:
    logits, _, labels = random_rows((6, 507), device)
    labels.clamp_(max=499)
    both = {"transform": transform, "ref_logits": logits.clone(), "ref_transform": transform}
    grads = keywords(upstream(6, device, ["forward_kl", "reverse_kl"]))

    stats = forward_rows(logits, labels, want=RESULTS, config=SMALL, **both)  # type: ignore[arg-type]
    found = backward_rows(logits, labels, stats, **both, **grads)  # type: ignore[arg-type]

    assert stats.forward_kl is not None
    assert stats.reverse_kl is not None
    assert (stats.forward_kl == 0).all()
    assert (stats.reverse_kl == 0).all()
    assert (found == 0).all()


@pytest.mark.parametrize("height", [60.0, 104.0, 300.0])
def test_point_masses_stay_finite_and_right(height: float, device: str) -> None:
    """Where softmax and then log gives NaN; a row of one mass against another, or against none.

    The slack: one float32 step at the height.
    """
    logits = torch.zeros(4, 300, device=device)
    ref_logits = torch.zeros(4, 300, device=device)
    logits[0, 7], ref_logits[0, 250] = height, height
    logits[1, 7] = height
    ref_logits[2, 7] = height
    logits[3], ref_logits[3] = -height, -height
    logits[3, 299], ref_logits[3, 299] = height, height
    labels = torch.tensor([250, 7, 0, 299], device=device)
    grads = upstream(4, device)
    wide = logits.double().requires_grad_()
    scores = plain_scores(wide, labels, ref_logits.double())

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits, config=SMALL)
    found = backward_rows(logits, labels, stats, ref_logits=ref_logits, **keywords(grads))

    for name in RESULTS:
        torch.testing.assert_close(getattr(stats, name), scores[name].float(), rtol=1e-6, atol=1e-6)
    exact = plain_gradient(wide, scores, grads)
    torch.testing.assert_close(found, exact.float(), rtol=1e-6, atol=1e-7 * height)


def test_first_block_far_below_the_rest(device: str) -> None:
    """The sums of the first block are large on its own scale and nothing on the row's."""
    logits, ref_logits, labels = random_rows((6, 512), device, drift=2.0)
    ref_logits[:3, :128] -= 200
    logits[3:, 128:] -= 1e9  # as a mask does
    exact = plain_scores(logits.double(), labels, ref_logits.double())

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits, config=SMALL)

    for name in RESULTS:
        torch.testing.assert_close(getattr(stats, name), exact[name].float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("label", [0, 127, 128, 506])
def test_label_at_the_edges_of_blocks(label: int, device: str) -> None:
    logits, _, _ = random_rows((2, 507), device)
    labels = torch.full((2,), label, device=device)
    exact = torch.log_softmax(logits.double(), 1)

    stats = forward_rows(logits, labels, config=SMALL)
    ones = torch.ones(2, device=device)
    found = backward_rows(logits, labels, stats, grad_logps=ones, config=SMALL)

    torch.testing.assert_close(stats.token_logps, exact[:, label].float(), rtol=0, atol=2e-6)
    expected = -exact.exp()
    expected[:, label] += 1
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ignored", [[1, 4], [0, 1, 2, 3, 4]])
def test_ignored_rows_are_exact_zeros_whatever_they_hold(ignored: list[int], device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device)
    grads = upstream(5, device)
    clean = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits)
    clean_gradient = backward_rows(logits, labels, clean, ref_logits=ref_logits, **keywords(grads))
    labels[ignored] = -100
    logits[ignored], ref_logits[ignored] = torch.nan, torch.inf
    for grad in grads.values():
        grad[ignored] = torch.nan

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits)
    out = torch.full_like(logits, torch.nan)
    backward_rows(logits, labels, stats, ref_logits=ref_logits, out=out, **keywords(grads))

    kept = [row for row in range(5) if row not in ignored]
    for found, expected in zip((*stats, out), (*clean, clean_gradient), strict=True):
        assert found is not None
        assert expected is not None
        assert (found[ignored] == 0).all()
        assert torch.equal(found[kept], expected[kept])


def test_labels_without_a_column_read_nothing(device: str) -> None:
    logits, _, _ = random_rows((3, 37), device)

    stats = forward_rows(logits, torch.tensor([37, -1, 1 << 40], device=device))

    assert (stats.token_logps == -torch.inf).all()


def test_shift_of_all_logits_changes_nothing(device: str) -> None:
    """On a grid that float32 holds at both heights, not one bit; the policy's shift alone."""
    logits, ref_logits, labels = random_rows((5, 507), device)
    logits, ref_logits = ((256 * each).round() / 256 for each in (logits, ref_logits))
    grads = keywords(upstream(5, device))
    runs = []

    for shifted in (logits, logits + 4096, logits - 4096):
        stats = forward_rows(shifted, labels, want=RESULTS, ref_logits=ref_logits, config=SMALL)
        found = backward_rows(shifted, labels, stats, ref_logits=ref_logits, **grads)
        runs.append([*(getattr(stats, name) for name in RESULTS), found])

    assert all(map(torch.equal, runs[0], runs[1]))
    assert all(map(torch.equal, runs[0], runs[2]))


def scored_and_differentiated(
    logits: Tensor, labels: Tensor, ref_logits: Tensor, grads: dict[str, Tensor]
) -> list[Tensor]:
    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits, config=SMALL)
    found = backward_rows(logits, labels, stats, ref_logits=ref_logits, **keywords(grads))
    return [*(tensor for tensor in stats if tensor is not None), found]


def test_strides_that_are_not_one(device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device)
    grads = upstream(5, device)
    expected = scored_and_differentiated(logits, labels, ref_logits, grads)
    spread = torch.zeros(10, 1014, device=device)[::2, ::2]
    spread.copy_(logits)
    transposed = ref_logits.T.contiguous().T
    expanded = {name: grads[name][:1].expand(5) for name in grads}
    again = {name: expanded[name].contiguous() for name in grads}

    found = scored_and_differentiated(spread, labels, transposed, grads)
    from_scalar = scored_and_differentiated(spread, labels, transposed, expanded)

    assert_same(found, expected)
    assert_same(from_scalar, scored_and_differentiated(logits, labels, ref_logits, again))


def test_same_bits_every_time_and_in_any_company(device: str) -> None:
    logits, ref_logits, labels = random_rows((7, 507), device)
    grads = upstream(7, device)
    case = (logits, labels, ref_logits)

    runs = [scored_and_differentiated(*case, grads) for _ in range(3)]
    alone = scored_and_differentiated(
        *(tensor[4:5] for tensor in case), {name: grad[4:5] for name, grad in grads.items()}
    )

    assert all(map(torch.equal, runs[0], runs[1]))
    assert all(map(torch.equal, runs[0], runs[2]))
    assert all(torch.equal(one[0], many[4]) for one, many in zip(alone, runs[0], strict=True))


def test_padding_carries_no_probability(device: str) -> None:
    """Policy and reference padded to other widths, with garbage: as if there were no padding."""
    logits, ref_logits, labels = random_rows((5, 500), device)
    grads = upstream(5, device)
    expected = scored_and_differentiated(logits, labels, ref_logits, grads)
    padded = torch.nn.functional.pad(logits, (0, 12), value=torch.nan)
    ref_padded = torch.nn.functional.pad(ref_logits, (0, 140), value=torch.inf)
    real = Transform(vocab_size=500)
    both = {"transform": real, "ref_logits": ref_padded, "ref_transform": real}

    stats = forward_rows(padded, labels, want=RESULTS, config=SMALL, **both)  # type: ignore[arg-type]
    found = backward_rows(padded, labels, stats, **both, **keywords(grads))  # type: ignore[arg-type]

    assert_same([*stats, found[:, :500]], expected)  # type: ignore[list-item]
    assert (found[:, 500:] == 0).all()


@pytest.mark.parametrize(("width", "ref_width"), [(507, 480), (480, 507)])
def test_columns_that_one_side_lacks(width: int, ref_width: int, device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device)
    logits, ref_logits = logits[:, :width], ref_logits[:, :ref_width]
    labels.clamp_(max=479)
    exact = plain_scores(logits.double(), labels, ref_logits.double())

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits, config=SMALL)

    for name in RESULTS:
        torch.testing.assert_close(getattr(stats, name), exact[name].float(), rtol=3e-6, atol=2e-6)
    infinite = stats.forward_kl if width < ref_width else stats.reverse_kl
    assert infinite is not None
    assert (infinite == torch.inf).all()


def test_gradient_of_a_narrower_reference(device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device)
    narrow = ref_logits[:, :480]
    grads = upstream(5, device, ["token_logps", "entropy", "forward_kl"])
    wide = logits.double().requires_grad_()
    exact = plain_gradient(wide, plain_scores(wide, labels, narrow.double()), grads)

    stats = forward_rows(logits, labels, want=grads, ref_logits=narrow)
    found = backward_rows(logits, labels, stats, ref_logits=narrow, **keywords(grads))

    torch.testing.assert_close(found, exact.float(), rtol=3e-6, atol=1e-6)


def test_blocks_of_the_vocabulary_in_place_are_the_whole_gradient(device: str) -> None:
    logits, ref_logits, labels = random_rows((5, 507), device)
    bias = torch.linspace(-1, 1, 507, device=device)
    transform = Transform(scale=0.9, softcap=20.0, bias=bias, vocab_size=450)
    ref_transform = replace(transform, vocab_size=470)
    labels = labels.clamp(max=449)
    grads = keywords(upstream(5, device, ["token_logps", "entropy", "forward_kl"]))
    options = {"transform": transform, "ref_transform": ref_transform}
    stats = forward_rows(
        logits,
        labels,
        want=SCORES,
        ref_logits=ref_logits,
        **options,  # type: ignore[arg-type]
    )
    whole = backward_rows(
        logits,
        labels,
        stats,
        ref_logits=ref_logits,
        **options,
        **grads,  # type: ignore[arg-type]
    )

    for start in (0, 150, 300, 450, 500):  # the last two hold padding only
        block, ref_block = (each[:, start : start + 150] for each in (logits, ref_logits))
        backward_rows(
            block, labels, stats, ref_logits=ref_block, first_column=start, out=block,
            **options, **grads,  # type: ignore[arg-type]
        )  # fmt: skip

    assert_same([logits], [whole])


def test_coefficients_of_q_make_the_tail_of_a_top_k_gradient(device: str) -> None:
    """The kernel writes the tail's gradient everywhere; the caller mends the k columns."""
    logits, ref_logits, labels = random_rows((5, 507), device)
    grads = upstream(5, device, ["token_logps", "forward_kl"])
    grad_logps, grad_kl = grads.values()
    sorted_logps, ids = torch.log_softmax(ref_logits.double(), 1).sort(descending=True)
    ids, ref_logps, tail = ids[:, :9], sorted_logps[:, :9], sorted_logps[:, 9:].logsumexp(1)
    wide = logits.double().requires_grad_()
    scores = {
        "token_logps": reference.label_logps(wide, labels),
        "forward_kl": reference.topk_forward_kl(wide, ids, ref_logps, tail),
    }
    exact = plain_gradient(wide, scores, grads)
    logq = torch.log_softmax(logits.double(), 1).gather(1, ids)
    tilt = (tail - torch.log1p(-logq.exp().sum(1))).exp()  # p_T / q_T

    stats = forward_rows(logits, labels)
    q_coefs = grad_logps - grad_kl * (1 - tilt)
    found = backward_rows(
        logits, labels, stats, grad_logps=grad_logps, q_coefs=q_coefs.float(), config=SMALL
    )
    mend = grad_kl[:, None] * (logq.exp() * tilt[:, None] - ref_logps.exp())
    found.scatter_add_(1, ids, mend.float())

    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-6)


def test_equal_gradients_need_the_reference_alone(device: str) -> None:
    """TDPO1: with g_kl = g_logps the gradient is g (e - p), and the policy's logits cancel."""
    logits, ref_logits, labels = random_rows((5, 507), device)
    grad = upstream(5, device, ["token_logps"])["token_logps"]
    stats = forward_rows(logits, labels, want=["forward_kl"], ref_logits=ref_logits)
    both = backward_rows(
        logits, labels, stats, ref_logits=ref_logits, grad_logps=grad, grad_forward_kl=grad
    )

    found = backward_rows(ref_logits, labels, stats.of_reference(), grad_logps=grad)

    torch.testing.assert_close(found, both, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(3)}, "logits must be floating"),
        ({"logits": torch.zeros(3, 8, dtype=torch.int64)}, "logits must be floating"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be int64 \[3\]"),
        ({"labels": torch.zeros(6, dtype=torch.int64)[::2]}, "labels must be contiguous"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, "on one device"),
        ({"want": ["logps"]}, "want must be out of"),
        ({"want": ["forward_kl"], "ref_logits": None}, "ref_logits must be given"),
        ({"transform": Transform(scale=0.0)}, "scale must be greater than 0, got 0.0"),
        ({"transform": Transform(softcap=0.0)}, "softcap must be greater than 0 or None"),
        ({"transform": Transform(bias=torch.zeros(7))}, r"bias must be contiguous \[8\]"),
        ({"ref_transform": Transform(scale=-1.0)}, "scale must be greater than 0, got -1.0"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "logits": torch.zeros(3, 8),
        "labels": torch.zeros(3, dtype=torch.int64),
        "ref_logits": torch.zeros(3, 8),
    }

    with pytest.raises(ValueError, match=message):
        forward_rows(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_forward_kl": torch.zeros(3), "ref_logits": None}, "ref_logits must be given"),
        ({"grad_reverse_kl": torch.zeros(3)}, "reverse_kl must be wanted of forward_rows"),
        ({"grad_entropy": torch.zeros(3)}, "entropy must be wanted of forward_rows"),
        ({"grad_logps": torch.zeros(2)}, r"gradients must be \(3,\) on cpu, got \(2,\)"),
        ({"out": torch.zeros(3, 7)}, r"out must be like logits \(3, 8\), got \(3, 7\)"),
    ],
)
def test_wrong_gradients_are_named(changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "logits": torch.zeros(3, 8),
        "labels": torch.zeros(3, dtype=torch.int64),
        "ref_logits": torch.zeros(3, 8),
    }
    stats = RowStats(*(torch.zeros(3) for _ in RowStats._fields))._replace(
        entropy=None, reverse_kl=None
    )

    with pytest.raises(ValueError, match=message):
        backward_rows(stats=stats, **(given | changes))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("is_transposed", [False, True])
def test_more_than_2_to_the_31_logits(is_transposed: bool, gpu: str) -> None:
    """4.5 GB of bfloat16; the last rows are where a 32-bit offset would have gone round."""
    shape = (17_000, 132_000)
    generator = torch.Generator(gpu).manual_seed(0)
    logits = torch.empty(shape[::-1] if is_transposed else shape, device=gpu, dtype=torch.bfloat16)
    logits = logits.normal_(generator=generator)
    logits = logits.T if is_transposed else logits
    labels = torch.arange(shape[0], device=gpu)
    few = logits[-3:].contiguous()
    grad = torch.ones(shape[0], device=gpu)

    stats = forward_rows(logits, labels, want=("token_logps", "entropy"))
    found = backward_rows(logits, labels, stats, grad_logps=grad, out=logits)

    alone = forward_rows(few, labels[-3:], want=("token_logps", "entropy"))
    expected = backward_rows(few, labels[-3:], alone, grad_logps=grad[-3:])
    assert_same([stats.token_logps[-3:], found[-3:]], [alone.token_logps, expected])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4097, 1000), (252, 128_256), (33, 151_937)])
def test_large_shapes_on_a_gpu(shape: tuple[int, int], dtype: torch.dtype, gpu: str) -> None:
    logits, ref_logits, labels = random_rows(shape, gpu, dtype=dtype)
    grads = upstream(shape[0], gpu)
    wide = logits.double().requires_grad_()
    scores = plain_scores(wide, labels, ref_logits.double())
    exact = plain_gradient(wide, scores, grads)

    stats = forward_rows(logits, labels, want=RESULTS, ref_logits=ref_logits)
    out = torch.empty_like(logits, dtype=torch.float32)
    backward_rows(logits, labels, stats, ref_logits=ref_logits, out=out, **keywords(grads))

    for name in RESULTS:
        torch.testing.assert_close(getattr(stats, name), scores[name].float(), rtol=1e-5, atol=4e-6)
    torch.testing.assert_close(out, exact.float(), rtol=1e-4, atol=2e-6)
