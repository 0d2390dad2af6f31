"""Spans for stores of tests, and a whole training step under a mask, written once more.

The step has no packing, no microbatch and no code under test: each sequence alone through models in
float64, a list of truths per completion, and sums over them. Stored log-probs are float32, so the
reference's are rounded to that.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from offpref.stores.schema import SPANS
from offpref.stores.store import Store

Spans = list[tuple[int, int, str]]
Truths = list[bool]


def sequence_rows(store: Store) -> dict[bytes, dict[str, Any]]:
    """The rows of all sequences of a store with one tokenizer, by key."""
    store.refresh()
    rows = store.read("sequences", store.partitions("sequences")[0]).to_pylist()
    return {row["sequence_key"]: row for row in rows}


def completion_of(row: Mapping[str, Any]) -> list[int]:
    return list(row["ids"][row["num_prompt_tokens"] :])


def some_spans(ids: Sequence[int]) -> Spans:
    """Turns that are a function of a completion's ids; the template's tokens lie between them.

    A quarter of the completions have none of the assistant.
    """
    draw = random.Random(str(list(ids)))
    roles = ["user", ""] if draw.random() < 0.25 else ["assistant", "user", "assistant", ""]
    spans: Spans = []
    at = 0
    while at < len(ids):
        end = min(at + draw.randint(1, 3), len(ids))
        role = draw.choice(roles)
        if role:
            spans.append((at, end, role))
        at = end
    return spans


def put_spans(store: Store, spans: Mapping[tuple[bytes, bytes], Spans]) -> None:
    """Write spans by text and sequence key."""
    rows = [
        {
            "text_key": text, "sequence_key": sequence, "starts": [each[0] for each in own],
            "ends": [each[1] for each in own], "roles": [each[2] for each in own],
        }
        for (text, sequence), own in spans.items()
    ]  # fmt: skip
    with store.batch() as batch:
        table = pa.Table.from_pylist(rows, schema=SPANS.schema)
        batch.add(SPANS.name, store.partitions("sequences")[0], table)
    store.refresh()


def put_some_spans(store: Store) -> None:
    """Write `some_spans` of every sequence that came from a text."""
    rows = sequence_rows(store).values()
    put_spans(
        store,
        {
            (row["text_key"], row["sequence_key"]): some_spans(completion_of(row))
            for row in rows
            if row["text_key"] is not None
        },
    )


def truths(spans: Spans, length: int, mask: str) -> Truths:
    """Whether each token counts."""
    own = [each for each in spans if each[2] == "assistant"]
    own = own[-1:] if mask == "last-turn" else own
    return [any(start <= place < end for start, end, _ in own) for place in range(length)]


@dataclass
class Side:
    """What the models say of one side of N pairs, summed over the tokens that count."""

    logps: list[Tensor] = field(default_factory=list)
    ref: list[Tensor] = field(default_factory=list)
    num: list[int] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    reverse: list[Tensor] = field(default_factory=list)
    ld: list[Tensor] = field(default_factory=list)
    """Policy minus reference, tokens beyond the shorter completion times 0.25."""

    def __getattr__(self, name: str) -> Tensor:
        return torch.stack([torch.as_tensor(each).double() for each in self.__dict__[name[1:]]])


class Step:
    """A step's pairs through both models, under a mask."""

    def __init__(
        self, store: Store, pairs: Any, numbers: np.ndarray, policy: Any, reference: Any,
        counts: Callable[[bytes, bytes, list[int]], Truths],
    ) -> None:  # fmt: skip
        """Compute everything; ``counts`` says which tokens of a pair's sequence count."""
        self._rows = sequence_rows(store)
        self._policy, self._reference, self._counts = policy, reference, counts
        self.chosen, self.rejected = Side(), Side()
        self.mismatched: list[Tensor] = []
        for number in numbers.tolist():
            pair = key(pairs.keys[number])
            keys = [key(each[number]) for each in (pairs.chosen_keys, pairs.rejected_keys)]
            both = [self._tokens(pair, each) for each in keys]
            shorter = min(int(each[-1].sum()) for each in both)
            for side, (own, ref, kl, reverse, squares, is_counted) in zip(
                (self.chosen, self.rejected), both, strict=True
            ):
                side.logps.append(own[is_counted].sum())
                side.ref.append(ref[is_counted].sum())
                side.num.append(int(is_counted.sum()))
                side.kl.append(kl[is_counted].sum())
                side.reverse.append(reverse[is_counted].sum())
                side.squares.append(squares[is_counted].sum())
                delta = (own - ref)[is_counted]
                side.ld.append(delta[:shorter].sum() + 0.25 * delta[shorter:].sum())
            if pairs.kl_keys is not None:
                with torch.no_grad():
                    own, ref, *_, is_counted = self._tokens(pair, key(pairs.kl_keys[number]))
                self.mismatched.append((own - ref)[is_counted].sum())

    def _tokens(self, pair: bytes, sequence: bytes) -> tuple[Tensor, ...]:  # [T] each
        if sequence == bytes(16):
            return (*(torch.zeros(0).double() for _ in range(5)), torch.zeros(0, dtype=torch.bool))
        row = self._rows[sequence]
        ids, start = torch.tensor([row["ids"]]), row["num_prompt_tokens"]
        labels = ids[0, start:, None]
        log_q = self._policy(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        with torch.no_grad():
            log_p = self._reference(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
        own, ref = log_q.gather(-1, labels)[:, 0], log_p.gather(-1, labels)[:, 0].float().double()
        is_counted = torch.tensor(self._counts(pair, sequence, completion_of(row)))
        return own, ref, kl, reverse, (2 * log_q).logsumexp(-1), is_counted

    def loss(self, name: str) -> Tensor:  # [N]
        return LOSSES[name](self.chosen, self.rejected, self)


def key(value: bytes) -> bytes:
    return bytes(value).ljust(16, b"\0")


def over(sums: Tensor, num: Tensor) -> Tensor:
    """Means; 0 where there is no token."""
    return torch.where(num > 0, sums / torch.where(num > 0, num, 1.0), 0.0)


def _h(c: Side, r: Side) -> Tensor:
    return (c._logps - c._ref) - (r._logps - r._ref)


def _means(c: Side, r: Side) -> Tensor:
    return over(c._logps - c._ref, c._num) - over(r._logps - r._ref, r._num)


def _aot(c: Side, r: Side, step: Step) -> Tensor:
    policy, ref = c._logps - r._logps, c._ref - r._ref
    return -logsigmoid(0.1 * (policy.sort().values - ref.sort().values))


def _kto(c: Side, r: Side, step: Step) -> Tensor:
    """Of each pair what its completions lose, so that the mean over pairs is that over those."""
    z = torch.stack(step.mismatched).mean().clamp(min=0)
    has = [(each._num > 0).double() for each in (c, r)]
    lost = (1 - torch.sigmoid(0.1 * (c._logps - c._ref - z))) * has[0]
    lost = lost + (1 - torch.sigmoid(0.1 * (z - (r._logps - r._ref)))) * has[1]
    return lost * len(lost) / (has[0].sum() + has[1].sum())


def _wpo(c: Side, r: Side, step: Step) -> Tensor:
    means = over(c._logps - c._squares, c._num) + over(r._logps - r._squares, r._num)
    return means.exp().detach() * -logsigmoid(0.1 * _h(c, r))


LOSSES: dict[str, Callable[[Side, Side, Step], Tensor]] = {
    "sigmoid": lambda c, r, s: -logsigmoid(0.1 * _h(c, r)),
    "ipo": lambda c, r, s: (_means(c, r) - 5) ** 2,
    "sigmoid_norm": lambda c, r, s: -logsigmoid(0.1 * _means(c, r)),
    "simpo": lambda c, r, s: (
        -logsigmoid(2 * (over(c._logps, c._num) - over(r._logps, r._num)) - 0.5)
    ),
    "tdpo2": lambda c, r, s: -logsigmoid(0.1 * (_h(c, r) - 0.5 * (r._kl - c._kl.detach()))),
    "kto": _kto,
    "aot": _aot,
    "ld_alpha": lambda c, r, s: -logsigmoid(0.1 * (c._ld - r._ld)),
    "use_weighting": _wpo,
    "modpo": lambda c, r, s: -logsigmoid((0.1 * _h(c, r) - 0.3) / 0.5),
    "sft": lambda c, r, s: -over(c._logps, c._num),
    "rdpo": lambda c, r, s: -logsigmoid(0.1 * _h(c, r) + 0.05 * (c._num - r._num)),
}
"""By what is tested. Chosen completions have 3 more of modpo's other reward, at a weight of 0.1."""
