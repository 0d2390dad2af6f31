from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpref.pipeline.models.packing import (
    LengthSwitch,
    PackedRow,
    RowPlan,
    cut_batches,
    fill_rows,
    label_prompts,
    plan_rows,
)


def plan(*sequences: tuple[int, int, int], **settings: object) -> RowPlan:
    """The plan of sequences given as (prompt label, prompt length, completion length)."""
    labels, prompts, completions = np.array(sequences, dtype=np.int64).reshape(-1, 3).T
    return plan_rows(labels, prompts, completions, **settings)  # type: ignore[arg-type]


def members(rows: RowPlan) -> list[list[int]]:
    return [rows.sequences_of(row) for row in range(rows.num_rows)]


def test_sequences_of_one_prompt_share_a_row() -> None:
    rows = plan((7, 10, 1), (5, 20, 2), (7, 10, 3), (5, 20, 4), (6, 30, 5))

    assert members(rows) == [[0, 2], [1, 3], [4]]
    assert rows.num_tokens.tolist() == [14, 26, 35]


def test_separate_rows_hold_one_sequence() -> None:
    rows = plan((7, 10, 1), (5, 20, 2), (7, 10, 3), packed=False)

    assert members(rows) == [[0], [1], [2]]
    assert rows.num_tokens.tolist() == [11, 22, 13]


def test_row_that_is_full_is_followed_by_another() -> None:
    rows = plan(*[(1, 50, 30)] * 5, (2, 9, 9), max_row_tokens=120)

    assert members(rows) == [[0, 1], [2, 3], [4], [5]]
    assert rows.num_tokens.tolist() == [110, 110, 80, 18]


def test_sequence_longer_than_a_row_is_alone() -> None:
    rows = plan((1, 50, 10), (1, 50, 500), (1, 50, 10), max_row_tokens=100)

    assert members(rows) == [[0], [1], [2]]


def test_batches_hold_rows_of_similar_length_within_the_budget() -> None:
    rows = plan((0, 5, 5), (1, 50, 50), (2, 45, 45), (3, 6, 6), (4, 6, 3), (5, 1, 1))

    batches = cut_batches(rows, max_batch_tokens=30)

    assert [batch.tolist() for batch in batches] == [[1], [2], [3, 0], [4, 5]]


def test_rows_on_both_sides_of_a_switch_never_share() -> None:
    rows = plan(
        (0, 30, 30), (0, 30, 40), (1, 10, 54), (1, 10, 55), length_switch=LengthSwitch(boundary=64)
    )

    batches = cut_batches(rows, max_batch_tokens=1000)

    assert members(rows) == [[0], [1], [2], [3]]
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 2], [1, 3]]


def test_gradual_switch_lets_only_equal_lengths_share() -> None:
    switch = LengthSwitch(boundary=64, is_gradual=True)
    rows = plan(
        (0, 30, 40),
        (0, 30, 40),
        (1, 20, 50),
        (1, 20, 51),
        (2, 3, 9),
        (3, 4, 9),
        length_switch=switch,
    )

    batches = cut_batches(rows, max_batch_tokens=1000)

    assert members(rows) == [[0, 1], [2], [3], [4], [5]]
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 1], [2], [3, 4]]


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 40)),
        max_size=40,
    ),
    st.integers(1, 200),
    st.integers(1, 300),
    st.sampled_from([None, LengthSwitch(boundary=30), LengthSwitch(boundary=30, is_gradual=True)]),
    st.booleans(),
)
def test_every_sequence_is_in_one_batch_and_the_budget_holds(
    sequences: list[tuple[int, int]],
    max_row_tokens: int,
    max_batch_tokens: int,
    switch: LengthSwitch | None,
    packed: bool,
) -> None:
    triples = [(label, 3 * label + 1, length) for label, length in sequences]

    rows = plan(*triples, max_row_tokens=max_row_tokens, length_switch=switch, packed=packed)
    batches = cut_batches(rows, max_batch_tokens=max_batch_tokens)

    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(rows.num_rows))
    held = members(rows)
    assert sorted(i for row in held for i in row) == list(range(len(triples)))
    for row, ids in enumerate(held):
        assert len({triples[i][0] for i in ids}) == 1
        assert rows.num_tokens[row] == triples[ids[0]][1] + sum(triples[i][2] for i in ids)
        assert len(ids) == 1 or (packed and rows.num_tokens[row] <= max_row_tokens)
    for batch in batches:
        longest = max(rows.num_tokens[batch])
        assert len(batch) == 1 or len(batch) * longest <= max_batch_tokens
        lengths = {triples[i][1] + triples[i][2] for row in batch for i in held[row]}
        if switch is not None:
            assert len({length > 30 for length in lengths}) == 1
            assert not switch.is_gradual or max(lengths) <= 30 or len(lengths) == 1


def test_batches_do_not_depend_on_anything_but_lengths() -> None:
    rng = np.random.default_rng(0)
    labels, prompts = np.repeat(np.arange(500), 2), np.repeat(rng.integers(1, 300, 500), 2)
    completions = rng.integers(1, 300, 1000)

    first = cut_batches(plan_rows(labels, prompts, completions))
    second = cut_batches(plan_rows(labels * 17 + 4, prompts, completions))

    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]
    assert all(max(a) >= 0 for a, _ in pairwise(first))


def test_half_the_padding_of_the_natural_order_at_most() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, 2000)
    rows = plan_rows(np.arange(2000), lengths, lengths)

    batches = cut_batches(rows, max_batch_tokens=8192)

    padded = sum(len(batch) * int(rows.num_tokens[batch].max()) for batch in batches)
    assert padded < 1.02 * rows.num_tokens.sum()


def test_filled_rows_hold_the_ids() -> None:
    sequences = {0: (np.array([1, 2, 3]), 2), 1: (np.array([9, 8]), 1), 2: (np.array([1, 2, 5]), 2)}
    rows = plan((0, 2, 1), (1, 1, 1), (0, 2, 1))

    first, second = fill_rows(rows, [0, 1], sequences)

    assert first.prompt.tolist() == [1, 2]
    assert [ids.tolist() for ids in first.completions] == [[3], [5]]
    assert (first.sequence_indices, first.num_tokens, first.max_position) == ((0, 2), 4, 2)
    assert (second.prompt.tolist(), second.sequence_indices) == ([9], (1,))


def test_prompts_are_told_apart_by_their_ids_alone() -> None:
    prompts = [np.array([1], dtype=np.int32), np.array([1], dtype=np.int64), np.array([1, 0])]

    assert label_prompts(prompts).tolist() == [0, 0, 1]


def test_nothing_to_plan() -> None:
    assert cut_batches(plan()) == []


@pytest.mark.parametrize(
    ("prompt", "completions", "indices", "message"),
    [
        ([], [[1]], (0,), "a prompt of at least one token"),
        ([1], [], (), "completions of at least one token"),
        ([1], [[1], []], (0, 1), "completions of at least one token"),
        ([1], [[1], [2]], (0,), "one index per completion, got 1 for 2"),
    ],
)
def test_impossible_rows_are_refused(
    prompt: list[int], completions: list[list[int]], indices: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PackedRow(
            prompt=np.array(prompt, dtype=np.int64),
            completions=tuple(np.array(ids, dtype=np.int64) for ids in completions),
            sequence_indices=indices,
        )


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        plan((0, 1, 0))
    with pytest.raises(ValueError, match="equal length, got 2, 1 and 1"):
        plan_rows(np.zeros(2), np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="max_batch_tokens must be at least 1, got 0"):
        cut_batches(plan((0, 1, 1)), max_batch_tokens=0)
