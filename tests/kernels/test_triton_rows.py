"""Numbers of the row kernels against float64: interpreted, and on a GPU (`make test-gpu`)."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton exists for Linux only")

from row_cases import (  # after the line that may skip
    SCORES,
    SMALL,
    assert_same,
    keywords,
    largest,
    long_double_kl,
    plain_gradient,
    plain_scores,
    random_rows,
    upstream,
)

from offpref.kernels.triton_rows import RESULTS, Transform, backward_rows, forward_rows

SHAPES = [
    (0, 37),  # no rows
    (1, 37),  # one row, most of the block empty
    (7, 507),  # odd sizes
    (252, 1000),  # more rows than a GPU has multiprocessors
    (3, 32000),  # a last block that is not full
    (2, 50257),  # no power of 2 in its factors: rows start anywhere
]


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
