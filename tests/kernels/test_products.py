"""Products through oneDNN: what torch's own give, to rounding, with the same gradients."""

import pytest
import torch
from torch import Tensor

from offpref.kernels import torch_products as products
from offpref.kernels.torch_products import (
    even_tokens,
    linear,
    padded_tokens,
    product,
    product_over_tokens,
    wide_product,
)


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MIN_WORK", 0)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def as_near_as_torch(found: Tensor, plain: Tensor, exact: Tensor) -> bool:
    slack = 1e-6 * float(exact.abs().max())
    return bool((found - exact).abs().max() <= 2 * (plain - exact).abs().max() + slack)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 7), (64, 257, 65), (75, 512, 300), (1030, 17, 9)]
)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("layout", ["plain", "transposed", "sliced"])
def test_products_are_as_near_as_torchs(
    shape: tuple[int, int, int], has_bias: bool, layout: str
) -> None:
    num_rows, depth, num_columns = shape
    left, right = draw(num_rows, depth), draw(depth, num_columns, seed=1)
    if layout == "transposed":
        left, right = left.T.contiguous().T, right.T.contiguous().T
    if layout == "sliced":
        left, right = draw(2 * num_rows, depth + 3)[::2, 1:-2], draw(depth, 3 * num_columns)[:, ::3]
    bias = draw(num_columns, seed=2) if has_bias else None
    plain = left @ right if bias is None else torch.addmm(bias, left, right)
    exact = left.double() @ right.double() + (0 if bias is None else bias.double())

    found = product(left, right, bias)

    assert found.shape == (num_rows, num_columns)
    assert as_near_as_torch(found, plain, exact)


@pytest.mark.parametrize("num_tokens", [1, 64, 75, 1030])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_products_over_tokens_are_as_near_as_torchs(num_tokens: int, is_transposed: bool) -> None:
    left, right = draw(num_tokens, 33), draw(num_tokens, 17, seed=1)
    if is_transposed:
        left, right = left.T.contiguous().T, right.T.contiguous().T

    found = product_over_tokens(left, right)

    assert as_near_as_torch(found, left.T @ right, left.double().T @ right.double())


def test_code_is_generated_for_few_numbers_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps half a megabyte for every shape it ever met."""
    if not products._has_onednn():
        pytest.skip("torch has no oneDNN here")
    shapes = set()
    plain = products._onednn

    def watched(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.add((inputs.shape, weight.shape))
        return plain(inputs, weight, bias)

    monkeypatch.setattr(products, "_onednn", watched)
    weight = draw(6, 5).requires_grad_()
    for num_tokens in range(1, 1025):
        linear(draw(num_tokens, 5).requires_grad_(), weight).sum().backward()

    assert len(shapes) == 3 * (1024 // 16 - 3)  # of 64, 80 ... 1024: forward and two gradients


def test_steps_of_tokens() -> None:
    all_tokens = range(1, 8193)
    assert [even_tokens(n) for n in (0, 63, 64, 79, 80, 1023, 1024, 1055, 1056, 8191)] == [
        0, 0, 64, 64, 80, 1008, 1024, 1024, 1056, 8064,
    ]  # fmt: skip
    assert len({even_tokens(n) for n in all_tokens}) <= 64 + 3 * 32
    for n in all_tokens:
        padded = padded_tokens(n, torch.ones(1, 1), torch.float32)
        assert padded in (n, even_tokens(padded))
        assert 0 <= padded - n < max(16, n / 32)
    assert padded_tokens(75, torch.ones(1, 1), torch.float64) == 75


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    taken = []
    monkeypatch.setattr(products, "_onednn", lambda inputs, weight, bias: taken.append(1))
    product(draw(1000, 32), draw(32, 64))
    product_over_tokens(draw(1000, 32), draw(1000, 64))
    assert not taken


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0), (70, 0, 7), (70, 5, 0)])
def test_empty_products(shape: tuple[int, int, int]) -> None:
    num_rows, depth, num_columns = shape

    found = product(torch.ones(num_rows, depth), torch.ones(depth, num_columns))

    assert torch.equal(found, torch.zeros(num_rows, num_columns))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    left, right = draw(3, 5, dtype=dtype), draw(5, 7, dtype=dtype)

    assert torch.equal(product(left, right), left @ right)


def test_wide_product_sums_in_the_dtype_asked_for() -> None:
    left, right = draw(3, 500, dtype=torch.bfloat16), draw(500, 7, dtype=torch.bfloat16)

    found = wide_product(left, right, torch.float32)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("leading", [(4,), (2, 3), (), (3, 45)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_and_its_gradients_are_torchs(leading: tuple[int, ...], has_bias: bool) -> None:
    tensors = [draw(*leading, 33), draw(17, 33, seed=1)]
    if has_bias:
        tensors.append(draw(17, seed=2))
    grad = draw(*leading, 17, seed=3)
    mine = [each.clone().requires_grad_() for each in tensors]
    theirs = [each.clone().requires_grad_() for each in tensors]
    expected = torch.nn.functional.linear(*theirs)

    found = linear(*mine)

    torch.testing.assert_close(found, expected)
    gradients = (
        torch.autograd.grad(found, mine, grad),
        torch.autograd.grad(expected, theirs, grad),
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_factors_have_no_gradient() -> None:
    inputs, weight = draw(4, 3), draw(5, 3, seed=1).requires_grad_()

    linear(inputs, weight).sum().backward()

    assert inputs.grad is None
    torch.testing.assert_close(weight.grad, inputs.sum(0).expand(5, 3))


def test_finite_differences_of_the_float64_fallback() -> None:
    tensors = [draw(*shape, dtype=torch.float64).requires_grad_() for shape in ((4, 3), (5, 3))]

    assert torch.autograd.gradcheck(linear, tensors)


def test_autocast_rounds_as_torch_does() -> None:
    inputs, weight = draw(4, 64), draw(5, 64, seed=1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear(inputs, weight)
        expected = torch.nn.functional.linear(inputs, weight)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
