"""Which pairs form which step, and how a step is cut: pure functions of keys, lengths and settings.

The order of an epoch is a sort by a seeded hash of the pair keys; then neighbours are grouped by
length inside windows. Nothing depends on the order in which pairs are stored, on the number of
processes, or on what ran before: the position in the data is given by the step number alone.

Letters in shape comments: P pairs, S steps, N pairs of a step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offpref.pipeline.models.packing import Indices, LengthSwitch, length_classes

Hashes = NDArray[np.uint64]
PairKeys = NDArray[np.bytes_]

WINDOW_STEPS = 8
"""Steps among which pairs are grouped by length: more steps give less padding and less mixing."""


def epoch_order(pair_keys: PairKeys, *, seed: int, epoch: int) -> Indices:  # [P] -> [P]
    """Return the pairs in the order of an epoch, before grouping by length.

    Args:
        pair_keys: Key of each pair, 16 bytes; all different.
        seed: Of the run.
        epoch: From 0 on; each epoch has an order of its own.
    """
    halves = np.ascontiguousarray(pair_keys).view(">u8").reshape(-1, 2).astype(np.uint64)
    start = _mix(_mix(np.array([seed], np.uint64)) + np.array([epoch], np.uint64))
    mixed = _mix(_mix(halves[:, 0] ^ start) ^ halves[:, 1])
    return np.lexsort((halves[:, 1], halves[:, 0], mixed))  # the key decides between equal mixes


def epoch_steps(
    pair_keys: PairKeys,  # [P]
    num_tokens: Indices,  # [P]
    *,
    seed: int,
    epoch: int,
    pairs_per_step: int,
    window_steps: int = WINDOW_STEPS,
) -> Indices:  # [S, N]
    """Return the pairs of each step of an epoch; the last pairs, too few for a step, are dropped.

    Args:
        pair_keys: Key of each pair.
        num_tokens: Length of each pair's row.
        seed: Of the run.
        epoch: From 0 on.
        pairs_per_step: N.
        window_steps: Steps among which pairs are grouped by length.
    """
    num_steps = len(pair_keys) // pairs_per_step
    if not num_steps:
        return np.empty((0, pairs_per_step), np.int64)
    order = epoch_order(pair_keys, seed=seed, epoch=epoch)[: num_steps * pairs_per_step]
    places = np.arange(len(order))
    windows = places // (window_steps * pairs_per_step)
    grouped = np.lexsort((places, num_tokens[order], windows))
    steps = grouped.reshape(num_steps, pairs_per_step)
    # Short and long steps alternate as the hash gives it: a step stands where its first pair would.
    turn = np.lexsort((steps.min(axis=1), windows[steps].min(axis=1)))
    return order[steps[turn]]


MIXED = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSizes:
    """The size of each of P pairs in a forward pass."""

    num_rows: Indices  # [P]
    """Rows of the pair: 1 if completions share their prompt's row, else one per completion."""
    num_tokens: Indices  # [P]
    """Length of its longest row."""
    length_classes: Indices  # [P]
    """Pairs of different classes never share a microbatch. ``MIXED`` marks those whose completions
    are computed differently because of their lengths; each completion takes a row and a pass."""


def pair_sizes(
    num_prompt_tokens: Indices,  # [P]
    num_chosen_tokens: Indices,  # [P]
    num_rejected_tokens: Indices,  # [P]
    *,
    num_kl_tokens: Indices | None = None,  # [P]
    num_member_tokens: Indices | None = None,  # [K, P]
    packed: bool,
    length_switch: LengthSwitch | None,
) -> PairSizes:
    """Return the sizes of pairs; a completion of 0 tokens means that there is none.

    Mismatched sequences take passes of their own, one row per pair, and count if they are longer.
    Of lists, all K completions take the place of chosen and rejected.
    """
    both = np.stack((num_chosen_tokens, num_rejected_tokens))
    if num_member_tokens is not None:
        both = num_member_tokens
    num_completions = (both > 0).sum(axis=0)
    longest = num_prompt_tokens + both.max(axis=0)
    every = both if num_kl_tokens is None else np.stack((*both, num_kl_tokens))
    classes = _pair_classes(num_prompt_tokens + every, every > 0, length_switch)
    shares_row = packed & (classes != MIXED)
    num_tokens = np.where(shares_row, num_prompt_tokens + both.sum(axis=0), longest)
    if num_kl_tokens is not None:
        num_tokens = np.maximum(num_tokens, num_prompt_tokens + num_kl_tokens)
    return PairSizes(
        num_rows=np.where(shares_row, 1, num_completions),
        num_tokens=num_tokens,
        length_classes=classes,
    )


def cut_microbatches(
    pairs: Indices,  # [N]
    sizes: PairSizes,
    *,
    max_batch_tokens: int,
    multiple_of: int = 1,
) -> list[Indices]:
    """Return the pairs of each microbatch, similar lengths together, longest first.

    The padded size of a microbatch stays within the budget, unless a single pair is larger.

    Args:
        pairs: Hashes of the step's pairs.
        sizes: Sizes of all pairs, indexed by number.
        max_batch_tokens: Rows times longest row, at most.
        multiple_of: Large microbatches are halved until their number is a multiple of this (the
            number of processes), or none can be halved.
    """
    lengths, classes = sizes.num_tokens[pairs], sizes.length_classes[pairs]
    parts: list[Indices] = []
    size = 0
    for pair in pairs[np.lexsort((np.arange(len(pairs)), -lengths, classes))]:
        first = parts[-1][0] if parts else pair
        is_near = sizes.length_classes[first] == sizes.length_classes[pair]
        room = max_batch_tokens // int(sizes.num_tokens[first])
        rows = int(sizes.num_rows[pair])
        if parts and is_near and size + rows <= room:
            parts[-1] = np.append(parts[-1], pair)
            size += rows
        else:
            parts.append(np.array([pair]))
            size = rows
    while len(parts) % multiple_of and max(map(len, parts)) > 1:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = (len(parts[largest]) + 1) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts


def _pair_classes(
    num_tokens: NDArray[np.int64],  # [S, P], S completions that share a pass
    is_there: NDArray[np.bool_],  # [S, P]
    switch: LengthSwitch | None,
) -> Indices:  # [P]
    classes = length_classes(num_tokens, switch)
    first: Indices = classes[is_there.argmax(axis=0), np.arange(classes.shape[1])]
    differs = (is_there & (classes != first)).any(axis=0)
    return np.where(differs, MIXED, first)


def _mix(numbers: Hashes) -> Hashes:
    """Return splitmix64 of each number: every bit of the result depends on every bit given."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
