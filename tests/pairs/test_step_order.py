import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offpref.pipeline.models.packing import LengthSwitch
from offpref.pipeline.pairs.step_order import (
    MIXED,
    cut_microbatches,
    epoch_order,
    epoch_steps,
    pair_sizes,
)
from offpref.pipeline.ranks import shared_parts


def keys(num_pairs: int) -> np.ndarray:
    """Keys as BLAKE3 would give them, trailing zeros among them."""
    chance = np.random.default_rng(7)
    found = chance.integers(0, 256, (num_pairs, 16)).astype(np.uint8)
    found[:: max(1, num_pairs // 5), 12:] = 0
    return np.sort(found.view("S16").reshape(-1))


def lengths(num_pairs: int) -> np.ndarray:
    return np.random.default_rng(8).integers(5, 400, num_pairs)


@given(
    num_pairs=st.integers(0, 300),
    size=st.integers(1, 40),
    window=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_an_epoch_has_every_pair_once_but_for_a_short_last_step(
    num_pairs: int, size: int, window: int, epoch: int
) -> None:
    steps = epoch_steps(
        keys(num_pairs), lengths(num_pairs), seed=3, epoch=epoch, pairs_per_step=size,
        window_steps=window,
    )  # fmt: skip

    assert steps.shape == (num_pairs // size, size)
    assert len(np.unique(steps)) == steps.size


def test_order_differs_by_epoch_and_by_seed() -> None:
    orders = [
        epoch_order(keys(500), seed=seed, epoch=epoch).tolist()
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    ]

    assert len({tuple(order) for order in orders}) == 9
    # Not merely shifted or swapped: two orders agree in about one place.
    agreeing = [sum(a == b for a, b in zip(orders[0], o, strict=True)) for o in orders[1:]]
    assert max(agreeing) < 10


def test_order_does_not_depend_on_storage_order() -> None:
    known, size = keys(200), lengths(200)
    shuffled = np.random.default_rng(1).permutation(200)

    one = epoch_steps(known, size, seed=5, epoch=1, pairs_per_step=8)
    other = epoch_steps(known[shuffled], size[shuffled], seed=5, epoch=1, pairs_per_step=8)

    # Pairs of equal length keep the mixed order, so nothing is left to chance.
    np.testing.assert_array_equal(known[one], known[shuffled][other])


def splitmix(x: int) -> int:
    """The published splitmix64, on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_order_is_that_of_the_published_mix() -> None:
    """A change of the order would change every run: it must be seen."""

    def mixed(key: bytes) -> int:
        high, low = (int.from_bytes(key.ljust(16, bytes(1))[i : i + 8], "big") for i in (0, 8))
        return splitmix(splitmix(high ^ splitmix(splitmix(11) + 2)) ^ low)

    known = keys(50)
    expected = sorted(range(50), key=lambda i: mixed(bytes(known[i])))

    assert epoch_order(known, seed=11, epoch=2).tolist() == expected


def test_neighbours_in_a_step_are_of_similar_length() -> None:
    size = lengths(4096)

    grouped = size[epoch_steps(keys(4096), size, seed=0, epoch=0, pairs_per_step=16)]
    mixed = size[epoch_order(keys(4096), seed=0, epoch=0)].reshape(-1, 16)

    assert np.ptp(grouped, axis=1).mean() < np.ptp(mixed, axis=1).mean() / 3
    # Short and long steps alternate: no drift of length from the first step to the last.
    assert abs(np.corrcoef(np.arange(256), grouped.mean(axis=1))[0, 1]) < 0.2


@given(
    num_pairs=st.integers(1, 64),
    budget=st.integers(50, 3000),
    multiple=st.integers(1, 5),
    packed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_microbatches_hold_each_pair_once_within_the_budget(
    num_pairs: int, budget: int, multiple: int, packed: bool
) -> None:
    sizes = pair_sizes(
        lengths(64), lengths(64)[::-1].copy(), lengths(64), packed=packed, length_switch=None
    )
    pairs = np.random.default_rng(2).permutation(64)[:num_pairs]

    parts = cut_microbatches(pairs, sizes, max_batch_tokens=budget, multiple_of=multiple)

    assert sorted(np.concatenate(parts).tolist()) == sorted(pairs.tolist())
    for part in parts:
        padded = sizes.num_rows[part].sum() * sizes.num_tokens[part].max()
        assert padded <= budget or len(part) == 1
    assert len(parts) % multiple == 0 or all(len(part) == 1 for part in parts)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_get_equally_many_microbatches_and_every_pair_once(world_size: int) -> None:
    parts = [np.array([0, 1]), np.array([2]), np.array([3, 4, 5]), np.array([6])]

    shares = [
        shared_parts(parts, lambda part: part[:1], rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]

    assert len({len(share) for share in shares}) == 1
    kept = [pairs for share in shares for pairs, is_spare in share if not is_spare]
    assert sorted(np.concatenate(kept).tolist()) == list(range(7))


def test_pairs_on_two_sides_of_a_length_switch_are_kept_apart() -> None:
    switch = LengthSwitch(boundary=100)
    prompts, chosen = np.array([50, 90, 10]), np.array([10, 30, 20])

    sizes = pair_sizes(prompts, chosen, chosen, packed=True, length_switch=switch)
    parts = cut_microbatches(np.arange(3), sizes, max_batch_tokens=10**6)

    assert [part.tolist() for part in parts] == [[0, 2], [1]]


@pytest.mark.parametrize("packed", [True, False])
def test_pairs_across_a_length_switch_take_rows_of_their_own(packed: bool) -> None:
    switch = LengthSwitch(boundary=100)
    prompts, chosen, rejected = (
        np.array([50, 90, 10]),
        np.array([10, 30, 20]),
        np.array([60, 20, 9]),
    )

    sizes = pair_sizes(prompts, chosen, rejected, packed=packed, length_switch=switch)
    parts = cut_microbatches(np.arange(3), sizes, max_batch_tokens=10**6)

    assert [part.tolist() for part in parts] == [[0], [2], [1]]  # across, short, long
    assert sizes.length_classes.tolist() == [MIXED, 1, 0]
    assert sizes.num_rows.tolist() == ([2, 1, 1] if packed else [2, 2, 2])
    assert int(sizes.num_tokens[0]) == 110
