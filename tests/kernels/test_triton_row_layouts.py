"""Where rows, labels and padding of the row kernels may lie, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from offpref.kernels import reference

pytest.importorskip("triton", reason="Triton exists for Linux only")

from row_cases import (  # after the line that may skip
    SCORES,
    SMALL,
    assert_same,
    keywords,
    plain_gradient,
    plain_scores,
    random_rows,
    scored_and_differentiated,
    upstream,
)

from offpref.kernels.triton_rows import (
    RESULTS,
    Transform,
    TritonRowStats,
    backward_rows,
    forward_rows,
)


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
    stats = TritonRowStats(*(torch.zeros(3) for _ in TritonRowStats._fields))._replace(
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
