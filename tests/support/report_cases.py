"""A small store whose numbers can be checked by hand and whose texts attack whoever shows them."""

import base64
import gzip
import json
import re
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from versions import complete_versions

from offpref.stores.report.html import write_report
from offpref.stores.report.settings import ReportSettings
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
TOKENIZER, REFERENCE = "7" * 32, "f" * 32
DPO, SIMPO = b"\x01" * 16, b"\x02" * 16

ATTACK = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">'
ODD = (
    "quote \" ' & nul\0 rtl\u202eevil\u202c sep\u2028 " + "w" * 3000 + " \U0001f468\u200d\U0001f469"
)
RUN_NAME = 'dpo <b onmouseover="window.hacked=3">&amp;</b> %{x} <a href="javascript:1">'

# Bytes of tokens: id 3 and 4 are the halves of one character, 5 is special.
VOCABULARY = [b"good", b" bad", b"\n", b"\xe2\x9c", b"\x93", b"</s>", b"<img src=x>", b" the"]
SPECIAL = {5}

EMPTY: dict[str, object] = {
    "string": "", "int32": 0, "int64": 0, "float": 0.0, "double": 0.0, "bool": False,
    "map<string, double>": [], "timestamp[us, tz=UTC]": START,
    "list<element: int32 not null>": [], "list<element: float not null>": [],
    "fixed_size_binary[16]": bytes(16),
}  # fmt: skip


def key(number: int, kind: int = 0) -> bytes:
    """A key that sorts by its number."""
    return bytes([number, kind]) * 8


def name(number: int, kind: int = 0) -> str:
    """The same as the catalog and the page spell it."""
    return str(UUID(bytes=key(number, kind)))


def put(
    store: Store, table: str, rows: Sequence[Mapping[str, object]], partition: str = "p"
) -> None:
    """Write rows in one commit; columns that a row leaves out are empty in their type's way."""
    schema = TABLES[table].schema
    empty = {f.name: None if f.nullable else EMPTY.get(str(f.type)) for f in schema}
    filled = pa.Table.from_pylist([empty | dict(row) for row in rows], schema=schema)
    with store.batch() as batch:
        batch.add(table, partition, filled)
        if table == "pairs":
            complete_versions(batch, partition, rows)


def put_pairs(
    store: Store,
    numbers: Sequence[int],
    texts: Mapping[tuple[int, int], Mapping[str, str] | None] | None = None,
    **more: object,
) -> None:
    """Write pairs whose completions are `tokens_of` ids; number 9 has no rejected one.

    ``texts`` are columns of a completion's text, by pair and kind; None means it came as ids.
    """
    given = texts or {}
    pairs, sequences, rows = [], [], []
    for number in numbers:
        has_rejected = number != 9
        sides = {"chosen": 1, **({"rejected": 2} if has_rejected else {})}
        pairs.append(
            {
                "pair_set": "reviews", "pair_set_fingerprint": "a" * 32, "pair_key": key(number),
                "chosen_key": key(number, 1),
                "rejected_key": key(number, 2) if has_rejected else None,
                "split": "eval" if number % 2 else "train", "weight": 1.0,
                "source_file": "pairs.jsonl", "source_row": number, **more,
            }
        )  # fmt: skip
        for side, kind in sides.items():
            ids = tokens_of(number, kind)
            text = given.get((number, kind), {})
            sequences.append(
                {
                    "sequence_key": key(number, kind), "prompt_key": key(number, 3),
                    "text_key": key(number, kind) if text is not None else None,
                    "num_prompt_tokens": 1,
                    "num_completion_tokens": len(ids), "ids": [7, *ids],
                }
            )  # fmt: skip
            if text is not None:
                usual = {"prompt": f"prompt {number}", "completion": f"{side} {number}"}
                rows.append({"text_key": key(number, kind), "form": "text", **usual, **text})
    put(store, "pairs", pairs, TOKENIZER)
    put(store, "sequences", sequences, TOKENIZER)
    put(store, "texts", rows, "shared")


def tokens_of(number: int, kind: int) -> list[int]:
    """The ids of a completion: chosen ones hold a character in halves and the end of sequence."""
    return [0, 3, 4, 2, 5] if kind == 1 else [6, 1, 5]


def ref_logps(number: int, kind: int) -> list[float]:
    """What the reference says of them."""
    return [-1.0 - number / 8 - place / 4 for place in range(len(tokens_of(number, kind)))]


def policy_logps(number: int, kind: int, step: int) -> list[float]:
    """What the policy says of them: signs of the log-ratios alternate."""
    return [
        each + (-1) ** place * 0.125 * step for place, each in enumerate(ref_logps(number, kind))
    ]


def put_scores(store: Store, numbers: Sequence[int]) -> None:
    """Write the vocabulary and the reference's scores."""
    rows = [
        {"id": place, "bytes": content, "is_special": place in SPECIAL}
        for place, content in enumerate(VOCABULARY)
    ]
    put(store, "vocabulary", rows, TOKENIZER)
    scores = [
        {"sequence_key": key(number, kind), "token_logps": ref_logps(number, kind)}
        for number in numbers
        for kind in (1, 2)
        if (number, kind) != (9, 2)
    ]
    put(store, "logps", scores, REFERENCE)


def put_run(store: Store, run_id: bytes, run: str, attempt: int = 0, **config: object) -> None:
    """Write an attempt at a run."""
    reference = config.pop("reference", REFERENCE)
    how = config.pop("event", "finished")
    pair_set = config.pop("pair_set", "reviews")
    version = config.pop("pair_set_fingerprint", "a" * 32)
    settings = {"train_split": "train", "eval_split": "eval", "seed": 0} | config
    row = {
        "run_id": run_id, "attempt": attempt, "name": run, "config": json.dumps(settings),
        "pair_set": pair_set, "pair_set_fingerprint": version, "reference": reference,
        "started_at": START + timedelta(hours=run_id[0]),
    }  # fmt: skip
    put(store, "runs", [row], run_id.hex())
    event = {"run_id": run_id, "attempt": attempt, "happened_at": START + timedelta(days=attempt),
             "event": how, "step": 2}  # fmt: skip
    put(store, "run_events", [event], run_id.hex())


def put_steps(store: Store, run_id: bytes, steps: Sequence[int], attempt: int = 0) -> None:
    """Write training steps, and an evaluation after each."""
    rows = [
        {
            "run_id": run_id, "attempt": attempt, "step": step, "split": split,
            "loss": 1.0 / (step + 1) + attempt,
            "metrics": [("rewards/margins", 0.5 * step), ("rewards/accuracies", 0.75)],
            "learning_rate": 1e-3,
        }
        for step in steps
        for split in ("train", "eval")
    ]  # fmt: skip
    put(store, "steps", rows, run_id.hex())


def put_examples(
    store: Store, run_id: bytes, numbers: Sequence[int], step: int, attempt: int = 0,
    has_reference: bool = True,
) -> None:  # fmt: skip
    """Write what a step measured of pairs: the margin is ``(number - 4) * step``."""
    rows = []
    for number in numbers:
        row = {
            "run_id": run_id, "attempt": attempt, "step": step, "pair_key": key(number),
            "split": "eval" if number % 2 else "train", "loss": 0.5,
            "policy_chosen_logps": sum(policy_logps(number, 1, step)),
            "chosen_rewards": (number - 4.0) * step + attempt,
        }  # fmt: skip
        if number != 9:
            row |= {"policy_rejected_logps": -7.0, "rejected_rewards": 0.0}
        if has_reference:
            row |= {"ref_chosen_logps": sum(ref_logps(number, 1)),
                    "ref_rejected_logps": -6.0 - number / 4, "chosen_forward_kl": 0.25 * step,
                    "rejected_forward_kl": 0.75 * step if number != 9 else None,
                    "kl_source": "exact"}  # fmt: skip
        rows.append(row)
    put(store, "examples", rows, run_id.hex())


def put_tokens(
    store: Store, run_id: bytes, numbers: Sequence[int], step: int, attempt: int = 0,
    has_reference: bool = True,
) -> None:  # fmt: skip
    """Write the tokens of a step."""
    rows = []
    for number in numbers:
        for kind in (1, 2):
            if (number, kind) == (9, 2):
                continue
            logps = policy_logps(number, kind, step + attempt)
            row = {
                "run_id": run_id, "attempt": attempt, "step": step, "pair_key": key(number),
                "split": "eval" if number % 2 else "train", "sequence_key": key(number, kind),
                "token_logps": logps, "entropy": [0.5 + place for place in range(len(logps))],
            }  # fmt: skip
            if has_reference:
                row["forward_kl"] = [0.0625 * place for place in range(len(logps))]
            rows.append(row)
    put(store, "tokens", rows, run_id.hex())


def attack(store: Store) -> None:
    """Fill a store: ten pairs, one of them unpaired; texts, names and columns that attack.

    A run is resumed: its second attempt does step 2 again. The other has no reference.
    """
    numbers = range(10)
    texts = {
        (0, 1): {"prompt": ATTACK, "completion": ODD},
        (0, 2): {"prompt": ATTACK, "completion": ATTACK},
    }
    put_pairs(store, numbers, texts, source=json.dumps({ATTACK: ATTACK, "odd": "\ud800"}))
    put_scores(store, numbers)
    put_run(store, DPO, RUN_NAME, beta=0.1, model=ATTACK)
    put_run(store, DPO, RUN_NAME, attempt=1, beta=0.1, model=ATTACK)
    put_steps(store, DPO, [1, 2])
    put_steps(store, DPO, [2], attempt=1)
    put_examples(store, DPO, numbers, step=1)
    put_examples(store, DPO, numbers, step=2)
    put_examples(store, DPO, numbers, step=2, attempt=1)
    put_tokens(store, DPO, numbers, step=1)
    put_tokens(store, DPO, numbers, step=2)
    put_tokens(store, DPO, numbers, step=2, attempt=1)
    put_run(store, SIMPO, "simpo", reference=None, beta=2.0, loss_type="simpo")
    put_steps(store, SIMPO, [1, 2])
    put_examples(store, SIMPO, numbers, step=2, has_reference=False)
    put_tokens(store, SIMPO, [0, 1, 2], step=2, has_reference=False)


class Page:
    """A report as a reader without a browser sees it."""

    def __init__(self, path: Path) -> None:
        self.html = path.read_text(encoding="utf-8")
        found = re.search(r'id="values">(.*?)</script>', self.html, re.DOTALL)
        assert found is not None
        self.values: dict[str, Any] = json.loads(found[1])

    def block(self, block: str) -> bytes:
        """The content of a compressed block."""
        found = re.search(f'id="block-{block}">(.*?)</script>', self.html)
        assert found is not None, block
        return gzip.decompress(base64.b64decode(found[1]))

    def json(self, block: str) -> Any:
        """The values of a compressed block."""
        return json.loads(self.block(block))

    def tokens(self, pair: str) -> dict[str, Any]:
        """The token values of a pair, arrays as numbers."""
        place = self.json("pairs")["pairs"]["pair_key"].index(pair)
        content = self.block(f"tokens-{self.values['tokens']['block_of_pair'][str(place)]}")
        (length,) = struct.unpack("<I", content[:4])
        bits = self.values["tokens"]["num_bits"]
        numbers = np.frombuffer(content[4 + length :], np.dtype(f"<i{bits // 8}"))
        header = json.loads(content[4 : 4 + length])[str(place)]
        largest = 2 ** (bits - 1) - 1

        def unpack(value: Any, field: str) -> Any:
            if isinstance(value, list) and field not in ("ids", "counted"):
                first, count, scale = value
                whole = numbers[first : first + count].astype(float)
                return (np.sign(whole) * (whole / largest) ** 2 * scale).tolist()
            if isinstance(value, dict):
                return {inner: unpack(each, inner) for inner, each in value.items()}
            return value

        found: dict[str, Any] = unpack(header, "")
        return found


def report(store: Store, **settings: object) -> Page:
    """Write the report of a store beside it and read it."""
    path = store.path.parent / "report.html"
    store.refresh()
    write_report(store, path, ReportSettings(overwrite=True, **settings))  # type: ignore[arg-type]
    return Page(path)


def places(page: Page) -> list[str]:
    """The keys of the pairs on a page."""
    return list(page.json("pairs")["pairs"]["pair_key"])
