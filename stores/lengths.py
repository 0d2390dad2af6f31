"""Whether the lists of scores are as long as the completions that they belong to.

Kernels and segment sums rely on lengths. So they are compared when rows are joined: when a store
is verified, and before a training uses them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.stores.files.commits import Shard
from offpref.stores.files.shards import clear_read_errors, open_shard, to_memory
from offpref.stores.files.unpacking import read_groups

from .errors import ShardCorruptError
from .key_index import Keys, find_keys, to_keys
from .schema import HIDDEN, LISTS, LOGPS, MASKS, SEQUENCES, SPANS, TABLES, TOKENS, TOPK

Counts = NDArray[np.int64]

# Lists that have an element, or k, for each completion token of their row's sequence.
_LISTS = {
    LOGPS.name: ("token_logps",),
    TOPK.name: ("ids", "logps", "tail_logps"),
    TOKENS.name: ("token_logps", "forward_kl", "entropy"),
}


# Starts and ends of stretches of a sequence's completion tokens, and what else is a list beside.
_STRETCHES = {SPANS.name: ("starts", "ends", "roles"), MASKS.name: ("starts", "ends")}


def check_lengths(table: str, keys: Keys, found: Counts, expected: Counts) -> None:
    """Check that each sequence has as many values as it has completion tokens.

    Args:
        table: Name of the table that the values are from.
        keys: Keys of the sequences, [N].
        found: Number of values of each, [N].
        expected: Number of completion tokens of each, [N].

    Raises:
        ShardCorruptError: If one has not; the message names table and sequence.
    """
    differs = np.flatnonzero(found != expected)
    if len(differs):
        first = differs[0]
        raise ShardCorruptError(
            f"{table}: expected {expected[first]:,} values of sequence {_hex(keys[first])}, one for"
            f" each completion token, found {found[first]:,}; run `offpref store verify`"
        )


def check_sequences(rows: pa.Table, keys: Keys) -> None:
    """Check that sequences have as many ids as they say, and at least one on either side.

    Args:
        rows: Rows with the columns ids, num_prompt_tokens and num_completion_tokens.
        keys: Their keys, [N].

    Raises:
        ShardCorruptError: If one has not; the message names it.
    """
    wrong = np.flatnonzero(_wrong_sequences(rows))
    if len(wrong):
        raise ShardCorruptError(
            f"{SEQUENCES.name}: sequence {_hex(keys[wrong[0]])} has other numbers of tokens than"
            " of ids; run `offpref store verify`"
        )


def check_ids(ids: Sequence[NDArray[np.integer[Any]]], vocab_size: int) -> None:
    """Check that every id has an embedding and an output.

    Raises:
        ShardCorruptError: If one has not.
    """
    every = np.concatenate([np.zeros(1, np.int64), *ids])
    if every.min() < 0 or every.max() >= vocab_size:
        raise ShardCorruptError(
            f"{SEQUENCES.name}: expected ids from 0 to {vocab_size - 1:,}, found {every.min():,} to"
            f" {every.max():,}; run `offpref store verify`"
        )


def length_problems(shards: Sequence[Shard]) -> list[str]:
    """Return what does not fit between sequences and what was scored of them, one line per shard.

    Args:
        shards: Live shards whose bytes are right; others are not looked at.
    """
    keys, counts, problems = _completions(shards)
    for shard in shards:
        if shard.table in _LISTS or shard.table == HIDDEN.name:
            problems += _shard_problems(shard, keys, counts)
        elif shard.table in _STRETCHES:
            problems += _stretch_problems(shard, keys, counts)
        elif shard.table == LISTS.name:
            problems += _ranking_problems(shard)
    return problems


def _completions(shards: Sequence[Shard]) -> tuple[Keys, Counts, list[str]]:
    """The sorted keys of all sequences, their completion tokens, and what is wrong with ids."""
    all_keys, all_counts, problems = [np.empty(0, "S16")], [np.empty(0, np.int64)], []
    names = ["sequence_key", "num_prompt_tokens", "num_completion_tokens", "ids"]
    for shard in shards:
        if shard.table != SEQUENCES.name:
            continue
        for rows in _groups(shard, names):
            wrong = _wrong_sequences(rows)
            if wrong.any():
                key = to_keys(rows.column("sequence_key"))[np.flatnonzero(wrong)[0]]
                problems.append(
                    f"{shard.path}: sequence {_hex(key)} has other numbers of tokens than of ids"
                )
            all_keys.append(to_keys(rows.column("sequence_key")))
            all_counts.append(_numbers(rows.column("num_completion_tokens")))
    keys, counts = np.concatenate(all_keys), np.concatenate(all_counts)
    order = np.argsort(keys, kind="stable")
    return keys[order], counts[order], problems


def _wrong_sequences(rows: pa.Table) -> NDArray[np.bool_]:
    prompts = _numbers(rows.column("num_prompt_tokens"))
    completions = _numbers(rows.column("num_completion_tokens"))
    lengths = _numbers(pc.list_value_length(rows.column("ids")))
    wrong: NDArray[np.bool_] = (
        (lengths != prompts + completions) | (prompts < 1) | (completions < 1)
    )
    return wrong


def _shard_problems(shard: Shard, keys: Keys, counts: Counts) -> list[str]:
    table = TABLES[shard.table]
    lists = _LISTS.get(shard.table, ())
    more = [name for name in ("k", "num_rows") if name in table.schema.names]
    for rows in _groups(shard, ["sequence_key", *lists, *more]):
        own = to_keys(rows.column("sequence_key"))
        places, is_there = find_keys(own, keys)
        if not len(keys) or not is_there.any():
            continue
        expected = np.where(is_there, counts[places], 0)
        for name in (*lists, *(("num_rows",) if "num_rows" in more else ())):
            found, has_value = _lengths(rows, name)
            wrong = np.flatnonzero(has_value & is_there & (found != expected))
            if len(wrong):
                first = wrong[0]
                return [
                    f"{shard.path}: {name} of sequence {_hex(own[first])} has {found[first]:,}"
                    f" values, expected {expected[first]:,}: one for each completion token"
                ]
    return []


def _stretch_problems(shard: Shard, keys: Keys, counts: Counts) -> list[str]:
    """What is wrong with stretches of tokens: they lie in their completion, one after the other."""
    lists = _STRETCHES[shard.table]
    for rows in _groups(shard, ["sequence_key", *lists]):
        own = to_keys(rows.column("sequence_key"))
        places, is_there = find_keys(own, keys)
        limits = counts[places] if len(keys) else np.zeros(len(own), np.int64)
        columns = [rows.column(name).to_pylist() for name in lists]
        for key, limit, is_known, *values in zip(own, limits, is_there, *columns, strict=True):
            bounds = [each for pair in zip(*values[:2], strict=False) for each in pair]
            is_right = len({len(each) for each in values}) == 1 and bounds == sorted(bounds)
            is_inside = not bounds or (bounds[0] >= 0 and (not is_known or bounds[-1] <= limit))
            if not (is_right and is_inside):
                return [
                    f"{shard.path}: expected stretches of the {limit:,} tokens of sequence "
                    f"{_hex(key)}, in order, found others"
                ]
    return []


def _ranking_problems(shard: Shard) -> list[str]:
    """What is wrong with ranked lists: a score for each sequence, best first."""
    for rows in _groups(shard, ["list_key", "sequence_keys", "scores"]):
        for row in rows.to_pylist():
            scores = row["scores"]
            is_ranked = scores == sorted(scores, reverse=True)
            if len(scores) != len(row["sequence_keys"]) or len(scores) < 2 or not is_ranked:
                return [
                    f"{shard.path}: expected two sequences or more and their scores, best first, in"
                    f" list {_hex(row['list_key'])}, found others"
                ]
    return []


def _lengths(rows: pa.Table, name: str) -> tuple[Counts, NDArray[np.bool_]]:
    """Tokens that a column has values for, row by row, and whether it has any."""
    column = rows.column(name)
    if pa.types.is_integer(column.type):
        return _numbers(column), np.ones(len(rows), np.bool_)
    lengths = _numbers(pc.fill_null(pc.list_value_length(column), 0))
    has_value = np.asarray(pc.is_valid(column))
    if "k" in rows.schema.names and name != "tail_logps":
        ks = np.maximum(_numbers(rows.column("k")), 1)
        # A rest of the division is as wrong as another number of tokens.
        lengths = np.where(lengths % ks == 0, lengths // ks, -1)
    return lengths, has_value


def _groups(shard: Shard, columns: Sequence[str]) -> Iterable[pa.Table]:
    with clear_read_errors(shard), open_shard(shard) as file:
        for group in range(file.num_row_groups):
            yield to_memory(read_groups(file, shard.path, [group], columns))


def _numbers(column: Any) -> Counts:  # pyarrow has no types
    return np.asarray(column).astype(np.int64)


def _hex(key: bytes) -> str:
    return bytes(key).ljust(16, b"\0").hex()
