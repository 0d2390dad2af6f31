"""Scores from whole logits, in both forms, against float64 autograd of the definitions."""

import pytest
import torch
from torch import Tensor

from offpref.kernels import reference
from offpref.kernels.forms import Form
from offpref.kernels.head import PLAIN, Transform
from offpref.kernels.logits import WANTED, label_logps, token_scores

SCORES = WANTED[:4]  # those with a gradient
SHAPES = [
    (0, 37),  # no tokens
    (1, 37),  # one token
    (7, 507),  # odd sizes
    (5, 4097),  # a last block of one column
]


def random_rows(
    shape: tuple[int, int] = (7, 507), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, labels with the edges, and logits of the reference it drifted from."""
    generator = torch.Generator().manual_seed(0)
    ref_logits = 3 * torch.randn(shape, generator=generator)
    logits = ref_logits + 0.3 * torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], shape[:1], generator=generator)
    edges = torch.tensor([0, shape[1] - 1, shape[1] // 2])[: max(0, shape[0] - 1)]
    labels[: len(edges)] = edges
    return logits.to(dtype).requires_grad_(), labels, ref_logits.to(dtype)


def as_logits(raw: Tensor, transform: Transform) -> Tensor:
    return reference.transformed(
        raw, bias=transform.bias, scale=transform.scale, softcap=transform.softcap,
        vocab_size=transform.vocab_size,
    )  # fmt: skip


def exact_scores(
    logits: Tensor, labels: Tensor, ref_logits: Tensor, transform: Transform = PLAIN,
    ref_transform: Transform = PLAIN,
) -> dict[str, Tensor]:  # fmt: skip
    z, r = as_logits(logits, transform), as_logits(ref_logits, ref_transform)
    return {
        "token_logps": reference.label_logps(z, labels),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "entropy": reference.entropy(z),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }


def upstream(num_tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(num_tokens, generator=generator) for _ in SCORES]


def gradient(scores: dict[str, Tensor], logits: Tensor, **options: bool) -> Tensor:
    outputs = [scores[name] for name in SCORES if name in scores]
    grads = [
        grad.to(scores[name].dtype)
        for name, grad in zip(SCORES, upstream(len(logits)), strict=True)
        if name in scores
    ]
    return torch.autograd.grad(outputs, logits, grads, **options)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("scale", "softcap", "has_bias"),
    [(1.0, None, False), (0.3, None, True), (2.0, 3.0, False), (0.5, 30.0, True)],
)
def test_values_and_gradients_equal_the_reference(
    shape: tuple[int, int], scale: float, softcap: float | None, has_bias: bool, form: Form
) -> None:
    logits, labels, ref_logits = random_rows(shape)
    bias = torch.linspace(-1, 1, shape[1]) if has_bias else None
    transform = Transform(scale=scale, softcap=softcap, bias=bias)
    ref_transform = Transform(scale=1.1 * scale, softcap=softcap)
    wide = logits.detach().double().requires_grad_()
    exact = exact_scores(wide, labels, ref_logits.double(), transform, ref_transform)

    scores = token_scores(
        logits, labels, ref_logits, want=WANTED, transform=transform,
        ref_transform=ref_transform, form=form,
    )  # fmt: skip

    assert tuple(scores) == WANTED
    for name in WANTED:
        torch.testing.assert_close(scores[name].double(), exact[name], rtol=2e-5, atol=5e-6)
    expected = gradient(exact, wide)
    torch.testing.assert_close(gradient(scores, logits).double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_has_its_own_gradient(name: str, form: Form) -> None:
    logits, labels, ref_logits = random_rows()
    wide = logits.detach().double().requires_grad_()
    exact = {name: exact_scores(wide, labels, ref_logits.double())[name]}

    scores = token_scores(logits, labels, ref_logits, want=[name], form=form)

    torch.testing.assert_close(scores[name].double(), exact[name], rtol=1e-5, atol=4e-6)
    expected = gradient(exact, wide).float()
    torch.testing.assert_close(gradient(scores, logits), expected, rtol=1e-5, atol=1e-6)


def test_finite_differences() -> None:
    logits, labels, ref_logits = random_rows((3, 11), torch.float64)

    def scores(logits: Tensor) -> tuple[Tensor, ...]:
        found = token_scores(logits, labels, ref_logits, want=SCORES)
        return tuple(found[name] for name in SCORES)

    assert torch.autograd.gradcheck(scores, [logits])


def test_label_logps_are_torchs(form: Form) -> None:
    logits, labels, _ = random_rows()

    logps = label_logps(logits, labels, form=form)

    plain = torch.log_softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(logps, plain, rtol=1e-6, atol=4e-6)
    (found,) = torch.autograd.grad(logps.sum(), logits)
    (expected,) = torch.autograd.grad(plain.sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_wanted_by_default() -> None:
    logits, labels, ref_logits = random_rows()

    assert list(token_scores(logits, labels)) == ["token_logps", "entropy"]
    with_reference = token_scores(logits, labels, ref_logits)
    assert list(with_reference) == ["token_logps", "forward_kl", "entropy"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, form: Form) -> None:
    """The label's gradient of a sure token, 1 - q, is not lost in the rounding of q."""
    logits, labels, ref_logits = random_rows(dtype=dtype)
    with torch.no_grad():
        logits[0, labels[0]] = 15.0
    wide = logits.detach().double().requires_grad_()
    exact = exact_scores(wide, labels, ref_logits.double())

    scores = token_scores(logits, labels, ref_logits, want=WANTED, form=form)

    for name in WANTED:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], exact[name].float(), rtol=1e-5, atol=5e-6)
    (found,) = torch.autograd.grad(scores["token_logps"].sum(), logits)
    (expected,) = torch.autograd.grad(exact["token_logps"].sum(), wide)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("num_kept", [300, 507])
def test_overwritten_logits_give_the_same_gradient(num_kept: int, form: Form) -> None:
    """Padded columns and tokens that have no gradient hold zeros, not what was there."""
    transform = Transform(scale=0.9, softcap=20.0, vocab_size=num_kept)
    logits, labels, ref_logits = random_rows()
    labels = labels.clamp(max=num_kept - 1)
    labels[2] = -100
    both = {"transform": transform, "ref_transform": transform, "form": form}
    plain = token_scores(logits, labels, ref_logits, **both)  # type: ignore[arg-type]
    expected = gradient(plain, logits)
    copy = logits * 1

    scores = token_scores(copy, labels, ref_logits, overwrite_logits=True, **both)  # type: ignore[arg-type]
    found = gradient(scores, copy)

    assert torch.equal(found, expected)
    assert found.data_ptr() == copy.data_ptr()
    assert (found[2] == 0).all()
    assert (found[:, num_kept:] == 0).all()


def test_a_second_use_of_overwritten_logits_raises(form: Form) -> None:
    logits, labels, _ = random_rows()
    copy = logits * 1
    scores = token_scores(copy, labels, overwrite_logits=True, form=form)
    gradient(scores, copy, retain_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(scores, copy)


def test_others_who_need_overwritten_logits_hear_of_it(form: Form) -> None:
    logits, labels, _ = random_rows()
    copy = logits * 1
    squares = (copy * copy).sum()
    token_scores(copy, labels, overwrite_logits=True, form=form)["entropy"].sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize("ignored", [[1, 4], list(range(7))])
def test_ignored_rows_are_exact_zeros_whatever_they_hold(ignored: list[int], form: Form) -> None:
    logits, labels, ref_logits = random_rows()
    clean = token_scores(logits, labels, ref_logits, want=WANTED, form=form)
    clean_grad = gradient(clean, logits)
    labels[ignored] = -100
    with torch.no_grad():
        logits[ignored], ref_logits[ignored] = torch.nan, torch.inf

    scores = token_scores(logits, labels, ref_logits, want=WANTED, form=form)
    found = gradient(scores, logits)

    kept = [t for t in range(7) if t not in ignored]
    for name in WANTED:
        assert (scores[name][ignored] == 0).all()
        assert torch.equal(scores[name][kept], clean[name][kept])
    assert (found[ignored] == 0).all()
    assert torch.equal(found[kept], clean_grad[kept])


def test_same_logits_have_no_kl_at_all(form: Form) -> None:
    logits, labels, _ = random_rows()

    scores = token_scores(logits, labels, logits.detach().clone(), want=SCORES[1:3], form=form)

    assert all((each == 0).all() for each in scores.values())
    assert (gradient(scores, logits) == 0).all()


@pytest.mark.parametrize("excluded", ["policy", "both"])
def test_logits_of_minus_infinity_have_no_probability(excluded: str, form: Form) -> None:
    logits, labels, ref_logits = random_rows()
    labels = torch.arange(7) + 1
    labels[6] = 300
    with torch.no_grad():
        logits[:, 300:310] = -torch.inf
        if excluded == "both":
            ref_logits[:, 300:310] = -torch.inf
    exact = exact_scores(logits.detach().double(), labels, ref_logits.double())

    scores = token_scores(logits, labels, ref_logits, want=WANTED, form=form)

    assert scores["token_logps"][6] == -torch.inf
    assert (scores["forward_kl"] == torch.inf).all() == (excluded == "policy")
    for name in ("token_logps", "forward_kl", "entropy", "log_sum_sq_probs"):
        torch.testing.assert_close(scores[name], exact[name].float(), rtol=1e-5, atol=5e-6)
    (found,) = torch.autograd.grad(scores["entropy"].sum(), logits)
    assert found.isfinite().all()
    assert (found[:, 300:310] == 0).all()


def test_strides_and_padding_that_are_not_the_same(form: Form) -> None:
    """Policy and reference padded to other widths with garbage, transposed or every other."""
    logits, labels, ref_logits = random_rows()
    expected = token_scores(logits, labels, ref_logits, want=WANTED, form=form)
    expected_grad = gradient(expected, logits)
    spread = torch.full((14, 1040), torch.nan)[::2, ::2]
    spread[:, :507] = logits.detach()
    spread.requires_grad_()
    ref_wide = torch.nn.functional.pad(ref_logits, (0, 93), value=torch.inf).T.contiguous().T
    transforms = {name: Transform(vocab_size=507) for name in ("transform", "ref_transform")}

    scores = token_scores(spread, labels, ref_wide, want=WANTED, form=form, **transforms)  # type: ignore[arg-type]
    found = gradient(scores, spread)

    for name in WANTED:
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(found[:, :507], expected_grad, rtol=1e-5, atol=1e-6)
    assert (found[:, 507:] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(3)}, r"logits must be floating \[T, V\]"),
        ({"logits": torch.zeros(3, 8, dtype=torch.int64)}, "logits must be floating"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be int64 \[3\]"),
        ({"labels": torch.tensor([0, 8, 1])}, "labels must be between 0 and 7, .* got 8"),
        ({"labels": torch.tensor([0, 7, 1])}, "labels must be between 0 and 5, .* got 7"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, "on one device"),
        ({"ref_logits": torch.zeros(2, 6)}, "ref_logits must be floating"),
        ({"ref_logits": None, "want": ["forward_kl"]}, "ref_logits must be given for forward_kl"),
        ({"want": ["logps"]}, "want must be out of"),
        ({"form": "cuda"}, "form must be one of torch, triton, got 'cuda'"),
        ({"transform": Transform(scale=0.0)}, "scale must be greater than 0, got 0.0"),
        ({"ref_transform": Transform(softcap=0.0)}, "softcap must be greater than 0 or None"),
        ({"transform": Transform(bias=torch.zeros(7))}, r"bias must be \[8\], got \(7,\)"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "logits": torch.zeros(3, 8),
        "labels": torch.zeros(3, dtype=torch.int64),
        "ref_logits": torch.zeros(3, 6),
    }
    if changes.get("labels") is not None and "between 0 and 7" in message:
        given["ref_logits"] = None

    with pytest.raises(ValueError, match=message):
        token_scores(**(given | changes))  # type: ignore[arg-type]
