"""Rows written straight into a store, for tests of what is asked of it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
from versions import complete_versions

from offpref.stores.query.catalog import Catalog
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER = b"r" * 16, b"o" * 16

EMPTY: dict[str, object] = {
    "string": "", "int32": 0, "int64": 0, "float": 0.0, "double": 0.0, "bool": False,
    "map<string, double>": [], "timestamp[us, tz=UTC]": START, "binary": b"", "large_binary": b"",
    "list<element: double not null>": [], "list<element: string not null>": [],
    "list<element: fixed_size_binary[16] not null>": [],
    "list<element: int32 not null>": [], "list<element: float not null>": [],
    "fixed_size_binary[16]": bytes(16),
}  # fmt: skip


def key(number: int) -> bytes:
    return bytes([number]) * 16


def put(
    store: Store, table: str, rows: Sequence[Mapping[str, object]], partition: str = "p"
) -> None:
    """Write rows; columns that a row leaves out are empty in their type's way."""
    schema = TABLES[table].schema
    empty = {
        field.name: None if field.nullable else EMPTY[str(field.type)]
        for field in schema
        if field.nullable or str(field.type) in EMPTY
    }
    filled = pa.Table.from_pylist([empty | dict(row) for row in rows], schema=schema)
    with store.batch() as batch:
        batch.add(table, partition, filled)
        if table == "pairs":
            complete_versions(batch, partition, rows)


def ask(store: Store, question: str, **parameters: str) -> list[dict[str, object]]:
    store.refresh()
    with Catalog(store) as catalog:
        return catalog.select(question, parameters=parameters).to_pylist()  # type: ignore[no-any-return]


def step(number: int, loss: float, split: str = "train", **more: object) -> dict[str, object]:
    accuracy = more.pop("accuracy", 0.5)
    return {
        "run_id": RUN, "step": number, "split": split, "loss": loss, "num_pairs": 4,
        "metrics": [("rewards/accuracies", accuracy), ("rewards/margins", 1.0)], **more,
    }  # fmt: skip


def example(
    pair: int, number: int, chosen: float | None, rejected: float | None, **more: object
) -> dict[str, object]:
    return {
        "run_id": RUN, "step": number, "split": "train", "pair_key": key(pair), "loss": 0.5,
        "chosen_rewards": chosen, "rejected_rewards": rejected, **more,
    }  # fmt: skip


def put_runs(store: Store, *names: str, **more: object) -> None:
    """Write runs with the ids of RUN, OTHER and so on, by place."""
    ids = [RUN, OTHER, b"3" * 16, b"4" * 16]
    rows = [
        {"run_id": run_id, "name": name, "config": "{}", "pair_set_fingerprint": "v1", **more}
        for run_id, name in zip(ids, names, strict=False)
    ]
    put(store, "runs", rows)


def put_pairs(store: Store, *lengths: tuple[int | None, int | None], **more: object) -> None:
    """Write pairs 1, 2, ... of version v1 with texts; a length of None is a side that is absent.

    Pair n has sequences 100 + n (chosen) and 150 + n, whose texts are "c<n>" and "r<n>" of prompt
    "p<n>", and a prompt of two tokens.
    """
    pairs, sequences, texts = [], [], []
    for number, sides in enumerate(lengths, start=1):
        keys = [None, None]
        for side, length in enumerate(sides):
            if length is None:
                continue
            place = 100 + 50 * side + number
            keys[side] = key(place)  # type: ignore[call-overload]
            ids = [0, 0, *range(1, length + 1)]
            sequences.append({
                "sequence_key": key(place), "text_key": key(place), "num_prompt_tokens": 2,
                "num_completion_tokens": length, "ids": ids,
            })  # fmt: skip
            completion = f"{'cr'[side]}{number}"
            texts.append({"text_key": key(place), "prompt": f"p{number}", "completion": completion})
        pairs.append({
            "pair_set": "s", "pair_set_fingerprint": "v1", "pair_key": key(number),
            "chosen_key": keys[0], "rejected_key": keys[1], **more,
        })  # fmt: skip
    put(store, "pairs", pairs, "tok")
    put(store, "sequences", sequences, "tok")
    put(store, "texts", texts)
