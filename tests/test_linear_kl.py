"""KL, entropy and log-prob from hidden states and a head, in both forms, against float64."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from offpref.kernels import reference
from offpref.kernels.distributions import HiddenReference
from offpref.kernels.forms import Form
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import WANTED, linear_token_scores

SCORES = WANTED[:4]  # those with a gradient
SHAPES = [
    (0, 5, 37),  # no tokens
    (1, 5, 37),  # one token
    (7, 3, 507),  # odd sizes
    (9, 17, 4097),  # a last block of one column
]
TRANSFORMS = [(1.0, None, False), (0.3, None, True), (2.0, 3.0, False), (0.5, 30.0, True)]
MIXES = [
    *((name,) for name in SCORES),
    ("token_logps", "forward_kl"),  # TDPO
    ("token_logps", "forward_kl", "entropy"),
    ("token_logps", "reverse_kl"),
    SCORES,
]


def triton_or_skip() -> None:
    triton = pytest.importorskip("triton", reason="Triton exists for Linux only")
    if not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported, as `make test` sets it")


@pytest.fixture(params=["torch", "triton"])
def form(request: pytest.FixtureRequest) -> Form:
    if request.param == "triton":
        triton_or_skip()
    return request.param  # type: ignore[no-any-return] # pytest does not know its type


class Case:
    """A policy, the reference it drifted from, and labels that include the edges."""

    def __init__(
        self,
        shape: tuple[int, int, int] = (7, 5, 507),
        *,
        dtype: torch.dtype = torch.float64,
        scale: float = 1.0,
        softcap: float | None = None,
        has_bias: bool = False,
        drift: float = 0.3,
        ref_hidden_size: int | None = None,
    ) -> None:
        num_tokens, hidden_size, vocab_size = shape
        generator = torch.Generator().manual_seed(sum(shape))

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        ref_size = ref_hidden_size or hidden_size
        ref_hidden, ref_weight = draw(num_tokens, ref_size), draw(vocab_size, ref_size)
        ref_bias = draw(vocab_size) if has_bias else None
        if ref_hidden_size is None:
            hidden = ref_hidden + drift * draw(num_tokens, hidden_size)
            weight = ref_weight + drift * draw(vocab_size, hidden_size)
        else:
            hidden, weight = draw(num_tokens, hidden_size), draw(vocab_size, hidden_size)
        bias = None if ref_bias is None else (ref_bias + drift * draw(vocab_size)).requires_grad_()
        self.hidden = hidden.requires_grad_()
        self.head = OutputHead(
            weight=weight.requires_grad_(), bias=bias, scale=scale, softcap=softcap
        )
        ref_head = OutputHead(weight=ref_weight, bias=ref_bias, scale=scale, softcap=softcap)
        self.reference = HiddenReference(hidden=ref_hidden, head=ref_head)
        self.labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
        edges = torch.tensor([0, vocab_size - 1, vocab_size // 2])[: max(0, num_tokens - 1)]
        self.labels[: len(edges)] = edges

    def scores(self, form: Form, want: Sequence[str], **options: int) -> dict[str, Tensor]:
        return linear_token_scores(
            self.hidden, self.head, self.labels, self.reference, want=want, form=form, **options
        )

    def gradients(self, scores: dict[str, Tensor], grads: dict[str, Tensor]) -> list[Tensor]:
        inputs = [
            each for each in (self.hidden, self.head.weight, self.head.bias) if each is not None
        ]
        given = [grads[name].to(score.dtype) for name, score in scores.items() if name in grads]
        outputs = [score for name, score in scores.items() if name in grads]
        return list(torch.autograd.grad(outputs, inputs, given))


def wide(tensor: Tensor) -> Tensor:
    return tensor.double()


def exact_scores(case: Case) -> dict[str, Tensor]:
    def logits(hidden: Tensor, head: OutputHead) -> Tensor:
        bias = None if head.bias is None else wide(head.bias)
        return reference.head_logits(
            wide(hidden), replace(head, weight=wide(head.weight), bias=bias)
        )

    z, r = logits(case.hidden, case.head), logits(case.reference.hidden, case.reference.head)
    width = min(z.shape[1], r.shape[1])
    z, r = z[:, :width], r[:, :width]
    return {
        "token_logps": reference.label_logps(z, case.labels),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "entropy": reference.entropy(z),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }


def upstream(num_tokens: int, want: Sequence[str] = SCORES) -> dict[str, Tensor]:
    """A gradient of its own for every token and score."""
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(num_tokens, generator=generator) for name in SCORES}
    return {name: drawn[name] for name in want}


def tolerance(form: Form) -> dict[str, float]:
    """Triton computes in float32; relative to sums of a few hundred terms of size 1."""
    return {"rtol": 1e-10, "atol": 1e-10} if form == "torch" else {"rtol": 3e-5, "atol": 3e-5}


def assert_near(found: Tensor, exact: Tensor, form: Form) -> None:
    torch.testing.assert_close(found.double(), exact.double(), **tolerance(form))


def as_form_takes(case: Case, form: Form) -> Case:
    """Float64 for the torch form; the same numbers in float32 for Triton."""
    if form == "triton":
        case.hidden = case.hidden.detach().float().requires_grad_()
        case.head = as_float(case.head)
        case.reference = HiddenReference(
            hidden=case.reference.hidden.float(), head=as_float(case.reference.head)
        )
    return case


def as_float(head: OutputHead) -> OutputHead:
    bias = None if head.bias is None else head.bias.detach().float()
    weight = head.weight.detach().float()
    if head.weight.requires_grad:
        weight.requires_grad_()
        bias = None if bias is None else bias.requires_grad_()
    return replace(head, weight=weight, bias=bias)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "softcap", "has_bias"), TRANSFORMS)
def test_values_and_gradients_equal_the_reference(
    shape: tuple[int, int, int], scale: float, softcap: float | None, has_bias: bool, form: Form
) -> None:
    case = as_form_takes(Case(shape, scale=scale, softcap=softcap, has_bias=has_bias), form)
    exact, grads = exact_scores(case), upstream(shape[0])

    scores = case.scores(form, WANTED)

    assert tuple(scores) == WANTED
    for name in WANTED:
        assert_near(scores[name], exact[name], form)
    for found, expected in zip(
        case.gradients(scores, grads), case.gradients(exact, grads), strict=True
    ):
        assert_near(found, expected, form)


@pytest.mark.parametrize("want", MIXES)
def test_each_result_has_its_own_gradient(want: tuple[str, ...], form: Form) -> None:
    case = as_form_takes(Case(has_bias=True), form)
    exact, grads = exact_scores(case), upstream(7, want)

    scores = case.scores(form, want)

    for name in want:
        assert_near(scores[name], exact[name], form)
    expected = case.gradients({name: exact[name] for name in want}, grads)
    for found, one in zip(case.gradients(scores, grads), expected, strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_tdpo_gradients(alpha: float, softcap: float | None, form: Form) -> None:
    """Of TDPO1 (alpha 1) every token, of TDPO2 the chosen ones take KL and log-prob unalike."""
    case = as_form_takes(Case((9, 5, 507), softcap=softcap, has_bias=True), form)
    logps = upstream(9)["token_logps"]
    logps[5] = 0.0
    kl = alpha * logps
    kl[:3] = 0.0 if alpha < 1 else kl[:3]  # stopped on the chosen side
    grads = {"token_logps": logps, "forward_kl": kl}
    expected = case.gradients(exact_scores(case), grads)

    scores = case.scores(form, ("token_logps", "forward_kl"))

    for found, one in zip(case.gradients(scores, grads), expected, strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize("want", [("token_logps",), ("forward_kl",), SCORES])
def test_tokens_without_upstream_gradient_get_exact_zeros(
    want: tuple[str, ...], form: Form
) -> None:
    case = as_form_takes(Case(), form)
    grads = upstream(7, want)
    for grad in grads.values():
        grad[[2, 6]] = 0.0

    hidden_grad, *_ = case.gradients(case.scores(form, want), grads)

    assert (hidden_grad[[2, 6]] == 0).all()
    assert (hidden_grad[[0, 1, 3, 4, 5]] != 0).all()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finite_differences(softcap: float | None) -> None:
    case = Case((3, 4, 11), scale=0.7, softcap=softcap, has_bias=True)

    def scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        head = replace(case.head, weight=weight, bias=bias)
        found = linear_token_scores(hidden, head, case.labels, case.reference, want=SCORES)
        return tuple(found.values())

    assert torch.autograd.gradcheck(scores, [case.hidden, case.head.weight, case.head.bias])


def test_reference_of_another_hidden_size(form: Form) -> None:
    case = as_form_takes(Case((7, 5, 507), ref_hidden_size=9), form)
    exact, grads = exact_scores(case), upstream(7)

    scores = case.scores(form, SCORES)

    assert_near(scores["forward_kl"], exact["forward_kl"], form)
    for found, one in zip(case.gradients(scores, grads), case.gradients(exact, grads), strict=True):
        assert_near(found, one, form)


@pytest.mark.parametrize(("padding", "ref_padding"), [(5, 21), (21, 5)])
def test_padding_of_one_side_carries_no_probability(
    padding: int, ref_padding: int, form: Form
) -> None:
    """Columns that both have, padding or not, count; those of one alone get a gradient of 0."""
    case = as_form_takes(Case((7, 5, 540)), form)
    widths = (500 + padding, 500 + ref_padding)
    case.labels.clamp_(max=499)
    weight = case.head.weight.detach()[: widths[0]].requires_grad_()
    case.head = replace(case.head, weight=weight)
    ref_head = replace(case.reference.head, weight=case.reference.head.weight[: widths[1]])
    case.reference = replace(case.reference, head=ref_head)
    exact, grads = exact_scores(case), upstream(7)

    scores = case.scores(form, SCORES)

    for name in SCORES:
        assert_near(scores[name], exact[name], form)
    found = case.gradients(scores, grads)
    for one, expected in zip(found, case.gradients(exact, grads), strict=True):
        assert_near(one, expected, form)
    assert (found[1][min(widths) :] == 0).all()


def test_a_shared_head_is_the_same_as_two(form: Form) -> None:
    """LoRA: one product for both, no gradient of the head."""
    case = as_form_takes(Case(has_bias=True, scale=0.9), form)
    head = replace(case.head, weight=case.head.weight.detach(), bias=case.reference.head.bias)
    case.head = head
    grads = list(upstream(7).values())
    runs = []

    for ref_head in (head, replace(head, weight=head.weight.clone())):
        case.reference = replace(case.reference, head=ref_head)
        scores = case.scores(form, SCORES)
        given = [grad.to(score.dtype) for grad, score in zip(grads, scores.values(), strict=True)]
        runs.append(
            [*scores.values(), *torch.autograd.grad(list(scores.values()), case.hidden, given)]
        )

    for shared, separate in zip(*runs, strict=True):
        torch.testing.assert_close(shared, separate, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "softcap", "has_bias"), TRANSFORMS)
@pytest.mark.parametrize("shift", [0.0, 200.0])
def test_same_logits_have_no_kl_at_all(
    scale: float, softcap: float | None, has_bias: bool, shift: float, form: Form
) -> None:
    """Where the policy is the reference, KL and its gradient are 0, not about 0."""
    case = Case((7, 64, 4500), dtype=torch.float32, scale=scale, softcap=softcap, has_bias=has_bias)
    if case.head.bias is not None:
        case.head = replace(case.head, bias=(case.head.bias.detach() + shift).requires_grad_())
    case.reference = HiddenReference(
        hidden=case.hidden.detach().clone(),
        head=replace(
            case.head,
            weight=case.head.weight.detach().clone(),
            bias=None if case.head.bias is None else case.head.bias.detach().clone(),
        ),
    )
    grads = upstream(7, ("forward_kl", "reverse_kl"))

    scores = case.scores(form, WANTED)

    assert (scores["forward_kl"] == 0).all()
    assert (scores["reverse_kl"] == 0).all()
    for found in case.gradients(scores, grads):
        assert (found == 0).all()


def logits_as_head(logits: Tensor, ref_logits: Tensor) -> Case:
    """A case whose logits are these: hidden states are rows of the identity, or one after one."""
    case = Case((len(logits), 1, logits.shape[1]), dtype=torch.float32)
    eye = torch.eye(len(logits), dtype=logits.dtype)
    case.hidden = eye.clone().requires_grad_()
    case.head = OutputHead(weight=logits.T.contiguous().requires_grad_())
    head = OutputHead(weight=ref_logits.T.contiguous())
    case.reference = HiddenReference(hidden=eye.clone(), head=head)
    return case


def long_double_kl(logits: Tensor, ref_logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || policy) and q - p of float32 logits, in numpy's 80-bit numbers."""
    z, r = (tensor.numpy().astype(np.longdouble) for tensor in (logits, ref_logits))
    z, r = (each - each.max(axis=1, keepdims=True) for each in (z, r))
    logq, logp = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (z, r))
    return (np.exp(logp) * (logp - logq)).sum(1), np.exp(logq) - np.exp(logp)


def random_logits(shape: tuple[int, int], spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("drift", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("shift", [0.0, 1.375])
def test_small_kl_keeps_its_digits(drift: float, shift: float, form: Form) -> None:
    """At the least drift the KL is 5e-9; the usual forms give 2e-6 or -2e-6 for it."""
    ref_logits = random_logits((6, 5000))
    logits = ref_logits + drift * random_logits((6, 5000), 1.0, seed=1) + shift
    case = logits_as_head(logits, ref_logits)
    exact, difference = long_double_kl(logits, ref_logits)

    scores = case.scores(form, ("forward_kl", "reverse_kl"))

    backwards, _ = long_double_kl(ref_logits, logits)
    for name, one in (("forward_kl", exact), ("reverse_kl", backwards)):
        np.testing.assert_allclose(scores[name].detach(), one.astype(float), rtol=5e-5)
    _, weight_grad = case.gradients(scores, {"forward_kl": torch.ones(6)})
    expected = difference.astype(float).T
    error = np.abs(weight_grad.numpy() - expected).max(0) / np.abs(expected).max(0)
    assert error.max() < 1e-5


@pytest.mark.parametrize("shift", [4096.0, -4096.0])
def test_shift_of_all_logits_changes_nothing(shift: float, form: Form) -> None:
    """On a grid that float32 holds at both heights; the policy's logits shifted alone."""
    ref_logits, logits = ((256 * random_logits((6, 5000), seed=s)).round() / 256 for s in (0, 1))
    grads, runs = upstream(6), []

    for each in (logits, logits + shift):
        case = logits_as_head(each, ref_logits)
        scores = case.scores(form, WANTED)
        runs.append([*scores.values(), case.gradients(scores, grads)[1]])

    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rise", [1e-4, 0.12, 2.0, -2.0, 12.0])
@pytest.mark.parametrize("is_likely", [False, True])
def test_only_the_label_moved(rise: float, is_likely: bool, form: Form) -> None:
    """Training moves one logit: from KL 4e-9 on, and where the label has most of the mass."""
    ref_logits = random_logits((6, 5000))
    labels = torch.tensor([0, 277, 2500, 2777, 4998, 4999])  # columns that set the scale, too
    rows = torch.arange(6)
    if is_likely:
        ref_logits[rows, labels] = torch.logsumexp(ref_logits, 1) + 2
    logits = ref_logits.clone()
    logits[rows, labels] += rise
    case = logits_as_head(logits, ref_logits)
    case.labels = labels
    exact, difference = long_double_kl(logits, ref_logits)

    scores = case.scores(form, ("token_logps", "forward_kl"))

    found = scores["forward_kl"].detach().numpy()
    np.testing.assert_allclose(found, exact.astype(float), rtol=5e-5, atol=1e-12)
    _, weight_grad = case.gradients(scores, {"forward_kl": torch.ones(6)})
    expected = difference.astype(float).T
    np.testing.assert_allclose(weight_grad, expected, rtol=2e-4, atol=3e-6 * abs(expected).max())


@pytest.mark.parametrize("height", [60.0, 104.0, 300.0])
def test_point_masses_stay_finite_and_right(height: float, form: Form) -> None:
    """Where softmax and then log gives NaN; one float32 step at the height is the slack."""
    logits, ref_logits = torch.zeros(4, 300), torch.zeros(4, 300)
    logits[0, 7], ref_logits[0, 250] = height, height
    logits[1, 7] = height
    ref_logits[2, 7] = height
    logits[3], ref_logits[3] = -height, -height
    logits[3, 299], ref_logits[3, 299] = height, height
    case = logits_as_head(logits, ref_logits)
    case.labels = torch.tensor([250, 7, 0, 299])
    exact, grads = exact_scores(case), upstream(4)

    scores = case.scores(form, WANTED)

    for name in WANTED:
        expected = exact[name].detach().float()
        torch.testing.assert_close(scores[name].detach(), expected, rtol=2e-6, atol=1e-5)
    weight_grads = case.gradients(scores, grads)[1], case.gradients(exact, grads)[1]
    torch.testing.assert_close(*weight_grads, rtol=1e-5, atol=1e-6 * height)


@pytest.mark.parametrize(
    ("centre", "spread"),
    [
        (-100.0, 3.0),  # all far below 0: a shift
        (5000.0, 3.0),  # far above, where exp is infinite
        (0.0, 40.0),  # a maximum that nine columns do not show: done again
        (-300.0, 80.0),
    ],
)
def test_far_off_logits(centre: float, spread: float, form: Form) -> None:
    """One float32 step of the largest logit is the slack."""
    ref_logits = centre + random_logits((6, 4500), spread)
    logits = centre + random_logits((6, 4500), spread, seed=1)
    case = logits_as_head(logits, ref_logits)
    exact, grads = exact_scores(case), upstream(6)
    step = 2e-7 * float(logits.abs().max())

    scores = case.scores(form, WANTED)

    for name in WANTED:
        expected = exact[name].detach().float()
        torch.testing.assert_close(scores[name].detach(), expected, rtol=1e-6, atol=4 * step)
    weight_grads = case.gradients(scores, grads)[1], case.gradients(exact, grads)[1]
    torch.testing.assert_close(*weight_grads, rtol=1e-4, atol=20 * step)


@pytest.mark.parametrize("other", [torch.nan, torch.inf, 1e30, 1e4])
def test_what_one_token_holds_leaves_the_others_alone(other: float, form: Form) -> None:
    """Bit for bit, where the others need no shift and where they do; forward and backward."""
    case = Case((9, 17, 4097), dtype=torch.float32, has_bias=True)
    with torch.no_grad():
        case.hidden[4] *= 20  # far off, too
    grads = upstream(9)
    clean = case.scores(form, WANTED)
    clean_grad = case.gradients(clean, grads)[0]
    case.hidden = case.hidden.detach().clone()
    case.hidden[5] = other
    case.hidden.requires_grad_()

    scores = case.scores(form, WANTED)
    hidden_grad = case.gradients(scores, grads)[0]

    kept = [0, 1, 2, 3, 6, 7, 8]
    for name in WANTED:
        assert torch.equal(scores[name][kept], clean[name][kept]), name
        torch.testing.assert_close(scores[name][4], clean[name][4])
    assert torch.equal(hidden_grad[kept], clean_grad[kept])
    torch.testing.assert_close(hidden_grad[4], clean_grad[4])


@pytest.mark.parametrize("ignored", [[1, 4], list(range(7))])
def test_ignored_tokens_are_exact_zeros_whatever_they_hold(ignored: list[int], form: Form) -> None:
    case = as_form_takes(Case(has_bias=True), form)
    grads = upstream(7)
    kept = [t for t in range(7) if t not in ignored]
    few = as_form_takes(Case(has_bias=True), form)
    few.hidden = few.hidden.detach()[kept].requires_grad_()
    few.labels, few.reference = few.labels[kept], few.reference.rows(torch.tensor(kept).long())
    expected = few.scores(form, WANTED)
    expected_grads = few.gradients(expected, {name: grad[kept] for name, grad in grads.items()})
    case.labels[ignored] = -100
    with torch.no_grad():
        case.hidden[ignored] = torch.nan
        case.reference.hidden[ignored] = torch.inf
        for grad in grads.values():
            grad[ignored] = torch.nan

    scores = case.scores(form, WANTED)
    hidden_grad, *head_grads = case.gradients(scores, grads)

    for name in WANTED:
        assert (scores[name][ignored] == 0).all()
        assert torch.equal(scores[name][kept], expected[name])
    assert (hidden_grad[ignored] == 0).all()
    assert torch.equal(hidden_grad[kept], expected_grads[0])
    assert all(map(torch.equal, head_grads, expected_grads[1:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_make_float32_logits(dtype: torch.dtype, form: Form) -> None:
    case = Case((7, 16, 507), dtype=torch.float32)
    case.hidden = case.hidden.detach().to(dtype).requires_grad_()
    case.head = replace(case.head, weight=case.head.weight.detach().to(dtype).requires_grad_())
    case.reference = HiddenReference(
        hidden=case.reference.hidden.to(dtype),
        head=replace(case.reference.head, weight=case.reference.head.weight.to(dtype)),
    )
    exact, grads = exact_scores(case), upstream(7)

    scores = case.scores(form, WANTED)

    for name in WANTED:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], exact[name].float(), rtol=1e-5, atol=1e-5)
    for found, one in zip(case.gradients(scores, grads), case.gradients(exact, grads), strict=True):
        assert found.dtype == dtype
        size = float(one.abs().max())
        torch.testing.assert_close(found.float(), one.float(), rtol=2e-2, atol=1e-2 * size)


def test_strides_that_are_not_one(form: Form) -> None:
    case = Case((7, 6, 507), dtype=torch.float32)
    expected = case.scores(form, SCORES)
    expected_grads = case.gradients(expected, upstream(7))
    spread = torch.zeros(6, 14)
    spread[:, ::2] = case.hidden.detach().T
    case.hidden = spread[:, ::2].T.requires_grad_()
    weight = case.head.weight.detach().T.contiguous().T.requires_grad_()
    case.head = replace(case.head, weight=weight)
    ref_hidden = case.reference.hidden.T.contiguous().T
    case.reference = replace(case.reference, hidden=ref_hidden)

    scores = case.scores(form, SCORES)

    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    for found, one in zip(case.gradients(scores, upstream(7)), expected_grads, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


def test_same_bits_every_time(form: Form) -> None:
    case = Case((12, 9, 4500), dtype=torch.float32, has_bias=True)
    grads = upstream(12)
    grads["forward_kl"][:4] = grads["token_logps"][:4]  # some tokens each way
    grads["reverse_kl"][:8] = grads["entropy"][:8] = 0

    runs = []
    for _ in range(3):
        scores = case.scores(form, WANTED)
        runs.append([*scores.values(), *case.gradients(scores, grads)])

    assert all(map(torch.equal, runs[0], runs[1]))
    assert all(map(torch.equal, runs[0], runs[2]))


@pytest.mark.parametrize("workspace_bytes", [1, 20_000])
def test_small_workspace_gives_the_same(workspace_bytes: int, form: Form) -> None:
    case = as_form_takes(Case((9, 5, 700), has_bias=True, softcap=5.0), form)
    exact, grads = exact_scores(case), upstream(9)

    scores = case.scores(form, WANTED, workspace_bytes=workspace_bytes)

    for name in WANTED:
        assert_near(scores[name], exact[name], form)
    for found, one in zip(case.gradients(scores, grads), case.gradients(exact, grads), strict=True):
        assert_near(found, one, form)


def test_float32_is_as_near_as_plain_torch(form: Form) -> None:
    """The slack: one float32 step at the size of the log-normaliser, one of each KL."""
    case = Case((12, 64, 4500), dtype=torch.float32)
    exact = exact_scores(case)
    z = reference.head_logits(case.hidden, case.head)
    r = reference.head_logits(case.reference.hidden, case.reference.head)
    plain = {
        "token_logps": reference.label_logps(z, case.labels),
        "forward_kl": reference.forward_kl(z, r),
        "reverse_kl": reference.reverse_kl(z, r),
        "entropy": reference.entropy(z),
        "log_sum_sq_probs": reference.log_sum_sq_probs(z),
    }

    scores = case.scores(form, WANTED)

    for name in WANTED:
        error = (scores[name] - exact[name]).abs().max()
        assert error <= 2 * (plain[name] - exact[name]).abs().max() + 8e-6, name


@pytest.mark.parametrize(
    ("name", "label"), [("forward_kl", 500), ("token_logps", 507), ("entropy", -1)]
)
def test_labels_that_are_no_columns_are_refused(name: str, label: int) -> None:
    """A column that the reference lacks is none where a KL is wanted."""
    case = Case()
    ref_head = replace(case.reference.head, weight=case.reference.head.weight[:500])
    case.reference = replace(case.reference, head=ref_head)
    case.labels.clamp_(max=499)
    case.labels[3] = label

    with pytest.raises(ValueError, match=rf"labels must be between 0 and \d+, .* got {label}"):
        case.scores("torch", (name,))


@pytest.mark.parametrize(
    ("form", "dtype", "message"),
    [
        ("cuda", torch.float32, "form must be one of torch, triton, got 'cuda'"),
        ("triton", torch.float64, "form 'triton' computes in float32, got float64"),
    ],
)
def test_impossible_forms_are_refused(form: Form, dtype: torch.dtype, message: str) -> None:
    case = Case(dtype=dtype)

    with pytest.raises(ValueError, match=message):
        case.scores(form, ("token_logps",))


def test_a_kl_of_its_definition_at_a_size_to_check_by_hand(form: Form) -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4)."""
    logits = torch.tensor([[0.0, math.log(3.0)]])
    case = logits_as_head(logits, torch.zeros(1, 2))
    case.labels = torch.zeros(1, dtype=torch.int64)

    scores = case.scores(form, WANTED)

    expected = {
        "token_logps": math.log(1 / 4),
        "forward_kl": math.log(2 / math.sqrt(3)),
        "reverse_kl": 0.75 * math.log(3) - math.log(2),
        "entropy": 2 * math.log(2) - 0.75 * math.log(3),
        "log_sum_sq_probs": math.log(10 / 16),
    }
    for name, value in expected.items():
        assert scores[name].item() == pytest.approx(value, rel=1e-6)
