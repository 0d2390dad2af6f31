"""The mismatched sequences on which ``kto`` estimates its KL: a prompt with another's completion.

Which pair gets which completion is a function of the version of the pair set alone: within a split,
prompts are sorted by key, and each pair takes the completion of a pair of the next prompt. The
sequences are written when they are first scored, like any others, and never change.

Letters in shape comments: P pairs.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from offpref.pipeline.models.packing import Indices
from offpref.stores.errors import MissingError, PairSetError
from offpref.stores.key_index import Keys, lookup, to_keys
from offpref.stores.keys import sequence_key, text_key
from offpref.stores.reader import RowReader
from offpref.stores.schema import KL_PAIRS, SEQUENCES, SHARED_PARTITION, TEXTS
from offpref.stores.store import Store

from .lists import check_has_pairs
from .pair_sets import PairSet, pair_rows
from .sequences import Sequence, sequence_table
from .splits import TrainingPairs, key_array, load_pairs, sequence_places

CHUNK_PAIRS = 4096


def fix_kl_pairs(store: Store, pair_set: PairSet) -> None:
    """Write the mismatched sequences of a pair set, all at once, unless the store has them.

    Raises:
        PairSetError: If no split has two prompts, or there are lists instead of pairs.
    """
    if len(mismatched_keys(store, pair_set)):
        return
    check_has_pairs(store, pair_set)
    reader = RowReader(store, SEQUENCES.name, pair_set.tokenizer,
                       columns=["ids", "num_prompt_tokens", "prompt_key", "text_key"])  # fmt: skip
    texts = RowReader(store, TEXTS.name, SHARED_PARTITION,
                      columns=["text_key", "form", "prompt", "completion"])  # fmt: skip
    limit = json.loads(pair_set.settings).get("max_length")  # samples of a policy have none
    num_written = 0
    with store.batch() as batch:
        for keys, own, other in _matches(store, pair_set):
            mixed, spelled = _mixed(reader, texts, own, other, limit)
            unique = {each.key: each for each in mixed}
            for table, partition, rows in (
                (SEQUENCES, pair_set.tokenizer, sequence_table(unique.values())),
                (TEXTS, SHARED_PARTITION, pa.Table.from_pylist(spelled, schema=TEXTS.schema)),
            ):
                is_new = store.missing(table.name, partition, rows.column(0).combine_chunks())
                if (unseen := rows.filter(is_new)).num_rows:
                    batch.add(table.name, partition, unseen)
            columns = {
                "pair_set_fingerprint": [pair_set.fingerprint] * len(keys),
                "pair_key": key_array(keys),
                "sequence_key": [each.key for each in mixed],
            }
            batch.add(KL_PAIRS.name, pair_set.tokenizer, pa.table(columns, schema=KL_PAIRS.schema))
            num_written += len(keys)
    if not num_written:
        raise PairSetError(
            f"{pair_set}: expected two prompts at least in a split, for one's prompt with the "
            "other's completion; kto needs them"
        )


def mismatched_keys(store: Store, pair_set: PairSet) -> pa.Array:
    """Return the keys of a pair set's mismatched sequences, each once; empty if there are none."""
    return pc.unique(_rows(store, pair_set)["sequence_key"])


def find_kl_keys(store: Store, pair_set: PairSet, pairs: TrainingPairs) -> tuple[Keys, Indices]:
    """Return the mismatched sequence of each pair and the tokens of its completion, [P] each.

    Raises:
        MissingError: If they have not been made; which model scores them, the caller knows.
    """
    rows = _rows(store, pair_set)
    places, is_there = lookup(pairs.keys, to_keys(rows["pair_key"]))
    if not is_there.all():
        raise MissingError(
            f"{pair_set}: {int((~is_there).sum()):,} pairs of split {pairs.split} have no "
            "mismatched sequence, which kto needs"
        )
    keys = to_keys(rows["sequence_key"])[places]
    described = store.read(
        SEQUENCES.name, pair_set.tokenizer, ["sequence_key", "num_completion_tokens"]
    )
    found = sequence_places(keys, to_keys(described["sequence_key"]), pair_set)
    return keys, np.asarray(described["num_completion_tokens"])[found].astype(np.int64)


def taken_completions(
    store: Store, pair_set: PairSet, pairs: TrainingPairs
) -> tuple[Indices, NDArray[np.bool_]]:  # [P], [P]
    """Return the number of the pair whose completion each pair takes, and if it is the chosen one.

    Both are empty if none can.

    Args:
        store: The store.
        pair_set: The version of the pair set.
        pairs: All pairs of a split.
    """
    has_chosen, has_rejected = pairs.num_chosen_tokens > 0, pairs.num_rejected_tokens > 0
    other = next_prompts(_prompt_keys(store, pair_set, _own_keys(pairs)), pairs.keys)
    if not len(other):
        return other, np.empty(0, np.bool_)
    # If there are two completions, half of the pairs take the chosen one, by a bit of their keys.
    is_even = np.ascontiguousarray(pairs.keys).view(np.uint8).reshape(-1, 16)[:, 0] % 2 == 0
    return other, has_chosen[other] & (is_even | ~has_rejected[other])


def _own_keys(pairs: TrainingPairs) -> Keys:
    """Return a sequence of each pair, which has its prompt."""
    return np.where(pairs.num_chosen_tokens > 0, pairs.chosen_keys, pairs.rejected_keys)


def next_prompts(prompt_keys: Keys, pair_keys: Keys) -> Indices:  # [P], [P] -> [P]
    """Return for each pair the number of the pair whose completion it takes; empty if none can.

    The j-th pair of a prompt takes that of the j-th pair of the next prompt in key order, starting
    over if the next prompt has fewer pairs; after the last prompt comes the first.
    """
    order = np.lexsort((pair_keys, prompt_keys))
    _, starts, counts = np.unique(prompt_keys[order], return_index=True, return_counts=True)
    if len(starts) < 2:
        return np.empty(0, np.int64)
    prompt = np.repeat(np.arange(len(starts)), counts)
    rank = np.arange(len(order)) - starts[prompt]
    following = (prompt + 1) % len(starts)
    found = np.empty(len(order), np.int64)
    found[order] = order[starts[following] + rank % counts[following]]
    return found


def _rows(store: Store, pair_set: PairSet) -> pa.Table:
    is_own = pc.field("pair_set_fingerprint") == pair_set.fingerprint
    columns = ["pair_key", "sequence_key"]
    return store.read(KL_PAIRS.name, pair_set.tokenizer, columns, is_own)


def _matches(store: Store, pair_set: PairSet) -> Iterator[tuple[Keys, Keys, Keys]]:
    """Yield pairs, and for each a sequence with its prompt and one with the completion it takes."""
    splits = pair_rows(store, pair_set, ["split"])["split"]
    for split in sorted(pc.unique(splits).to_pylist()):
        pairs = load_pairs(store, pair_set, split=split, sides="any")
        other, takes_chosen = taken_completions(store, pair_set, pairs)
        if not len(other):
            continue
        own = _own_keys(pairs)
        taken = np.where(takes_chosen, pairs.chosen_keys[other], pairs.rejected_keys[other])
        for start in range(0, len(pairs), CHUNK_PAIRS):
            part = slice(start, start + CHUNK_PAIRS)
            yield pairs.keys[part], own[part], taken[part]


def _prompt_keys(store: Store, pair_set: PairSet, sequence_keys: Keys) -> Keys:
    described = store.read(SEQUENCES.name, pair_set.tokenizer, ["sequence_key", "prompt_key"])
    places, _ = lookup(sequence_keys, to_keys(described["sequence_key"]))
    return to_keys(described["prompt_key"])[places]


def _mixed(
    reader: RowReader, texts: RowReader, own: Keys, other: Keys, limit: int | None
) -> tuple[list[Sequence], list[dict[str, object]]]:
    """Return the sequences of some prompts with other completions, cut to the limit if needed.

    They come with the rows of their texts, where both have one: a policy may sample the very same
    sequence, and is judged by its text.
    """
    prompts, completions = reader.rows(key_array(own)), reader.rows(key_array(other))
    spelled: dict[bytes, dict[str, object]] = {}
    mixed = []
    own_texts, other_texts = _texts(texts, prompts), _texts(texts, completions)
    for row, number in enumerate(prompts["num_prompt_tokens"].to_pylist()):
        prompt = _ids(prompts, row)[:number]
        start = completions["num_prompt_tokens"][row].as_py()
        whole = np.concatenate([prompt, _ids(completions, row)[start:]]).astype(np.int32)
        ids = whole[:limit]
        text = None
        if len(ids) == len(whole):
            text = _mixed_text(own_texts[row], other_texts[row])
        if text is not None:
            spelled[text["text_key"]] = text
        mixed.append(
            Sequence(
                key=sequence_key(ids, number),
                prompt_key=prompts["prompt_key"][row].as_py(),
                text_key=None if text is None else text["text_key"],
                num_prompt_tokens=number,
                ids=ids,
                eos_lost=len(ids) < len(whole),
                merges=False,
            )
        )
    return mixed, list(spelled.values())


def _texts(texts: RowReader, sequences: pa.Table) -> list[dict[str, Any] | None]:
    """Return the row of ``texts`` of each sequence; None where it was given as ids."""
    known = pc.unique(sequences["text_key"].drop_null())
    rows = texts.rows(known).to_pylist() if len(known) else []
    found = {row["text_key"]: row for row in rows}
    return [found.get(key) for key in sequences["text_key"].to_pylist()]


def _mixed_text(
    own: Mapping[str, Any] | None, other: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the row of one text's prompt with the other's completion; None without one."""
    if own is None or other is None or own["form"] != other["form"]:
        return None
    key = text_key(own["prompt"], other["completion"], own["form"])
    return {**own, "completion": other["completion"], "text_key": key}


def _ids(rows: pa.Table, row: int) -> NDArray[np.int32]:
    ids: NDArray[np.int32] = rows["ids"][row].values.to_numpy()
    return ids
