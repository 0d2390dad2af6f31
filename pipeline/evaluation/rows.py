"""What an evaluation found, as rows of the tables ``evaluations`` and ``generations``.

Letters in shape comments: P prompts, N samples of each; M = P N samples, prompt after prompt.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from offpref.pipeline.pairs.completions import load_texts
from offpref.pipeline.pairs.splits import key_array
from offpref.stores.key_index import Keys
from offpref.stores.reader import RowReader
from offpref.stores.schema import GENERATIONS, SEQUENCES
from offpref.stores.store import Store

from .diversity import best_of_n, distinct, self_bleu
from .sample_sets import SampleSet, sample_keys
from .settings import SampleSettings

if TYPE_CHECKING:
    from .policy_scores import PolicyScores

Numbers = NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class Measured:
    """Everything that was measured; what was not is None or empty."""

    samples: SampleSettings | None
    keys: Keys = field(default_factory=lambda: np.empty(0, "S16"))  # [M]
    completions: list[NDArray[Any]] = field(default_factory=list)  # [M]
    """Ids of each sample, its prompt left out."""
    prompt_keys: list[bytes] = field(default_factory=list)  # [M]
    text_keys: list[bytes | None] = field(default_factory=list)  # [M]
    has_ended: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))  # [M]
    num_without_room: int = 0
    rewards: dict[str, Numbers] = field(default_factory=dict)  # [M] each
    reward_sources: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each objective's source: sources of one name are not comparable."""
    own: "PolicyScores | None" = None
    """The policy on its own samples, [M] each."""
    ref_logps: Numbers | None = None  # [M]
    on_reference: "PolicyScores | None" = None
    """The policy on the reference's samples."""
    accuracy: float | None = None

    def read_samples(self, store: Store, samples: SampleSet) -> None:
        """Take the samples from the store."""
        self.keys = sample_keys(store, samples.pair_set)
        self.num_without_room = samples.num_without_room
        columns = ["ids", "num_prompt_tokens", "prompt_key", "text_key"]
        reader = RowReader(store, SEQUENCES.name, samples.pair_set.tokenizer, columns=columns)
        rows = reader.rows(key_array(self.keys))
        splits = rows["num_prompt_tokens"].to_pylist()
        ids = [np.asarray(each) for each in rows["ids"].to_pylist()]
        self.completions = [each[split:] for each, split in zip(ids, splits, strict=True)]
        self.prompt_keys = rows["prompt_key"].to_pylist()
        self.text_keys = rows["text_key"].to_pylist()
        # Not from `eos_lost`: samples with other end tokens share a row with the same ids.
        self.has_ended = np.isin([each[-1] for each in ids], samples.end_token_ids)


def evaluation_row(found: Measured) -> dict[str, Any]:
    """Return the columns of ``evaluations`` that hold measurements."""
    row: dict[str, Any] = {
        "settings": "{}", "seed": 0, "num_prompts": 0, "num_samples": 0, "rewards": [],
        "reward_errors": [], "best_of_n": [], "mean_completion_tokens": math.nan, "metrics": [],
        "accuracy": found.accuracy,
    }  # fmt: skip
    if found.samples is None:
        return row
    num_samples = found.samples.num_samples
    lengths = np.array([len(each) for each in found.completions], np.float64)
    row |= {
        "settings": json.dumps(asdict(found.samples) | {"reward_sources": found.reward_sources}),
        "seed": found.samples.seed,
        "num_prompts": len(found.keys) // num_samples,
        "num_samples": num_samples,
        "mean_completion_tokens": float(lengths.mean()),
    }
    row |= _reward_columns(found.rewards, num_samples) | _diversity(found.completions, num_samples)
    metrics = {
        "share_ended": float(found.has_ended.mean()),
        "num_without_room": float(found.num_without_room),
    }
    if found.own is not None:
        row["entropy"] = float(found.own.entropy.sum() / found.own.num_tokens.sum())
    if found.own is not None and found.ref_logps is not None:
        mean, error = mean_and_error(found.own.reverse_kl, num_samples)
        row |= {"reverse_kl": mean, "reverse_kl_error": error}
        row["on_policy_forward_kl"] = float(found.own.forward_kl.mean())
        # The usual estimate uses the samples' log-ratios alone: same mean, higher variance.
        log_ratios, spread = mean_and_error(found.own.logps - found.ref_logps, num_samples)
        metrics |= {"mean_log_ratio": log_ratios, "mean_log_ratio_error": spread}
    if found.on_reference is not None:
        mean, error = mean_and_error(found.on_reference.forward_kl, num_samples)
        row |= {"forward_kl": mean, "forward_kl_error": error}
    row["metrics"] = list(metrics.items())
    return row


def generation_rows(store: Store, tokenizer: str, found: Measured, evaluation: str) -> pa.Table:
    """Return the rows of ``generations``, one per sample."""
    assert found.samples is not None
    rows = []
    texts = _texts(store, found)
    for i, key in enumerate(found.keys):
        rows.append(
            {
                "evaluation_id": bytes.fromhex(evaluation),
                "prompt_key": found.prompt_keys[i],
                "sample": i % found.samples.num_samples,
                "sequence_key": bytes(key).ljust(16, b"\0"),
                "completion": texts[i],
                "num_completion_tokens": len(found.completions[i]),
                "has_ended": bool(found.has_ended[i]),
                "rewards": [(name, float(values[i])) for name, values in found.rewards.items()],
                "policy_logps": None if found.own is None else float(found.own.logps[i]),
                "ref_logps": None if found.ref_logps is None else float(found.ref_logps[i]),
                "reverse_kl": float(found.own.reverse_kl[i])
                if found.own is not None and found.ref_logps is not None
                else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=GENERATIONS.schema)


def mean_and_error(values: Numbers, num_samples: int) -> tuple[float, float]:  # [M]
    """Return the mean and its standard error; samples of one prompt are not independent draws."""
    by_prompt = values.reshape(-1, num_samples).mean(axis=1)
    if len(by_prompt) < 2:
        return float(values.mean()), math.nan
    return float(by_prompt.mean()), float(by_prompt.std(ddof=1) / math.sqrt(len(by_prompt)))


def _reward_columns(rewards: dict[str, Numbers], num_samples: int) -> dict[str, Any]:
    measured = {name: mean_and_error(values, num_samples) for name, values in rewards.items()}
    best = [
        (f"{name}/{n}", best_of_n(values.reshape(-1, num_samples), n))
        for name, values in rewards.items()
        for n in range(1, num_samples + 1)
    ]
    return {
        "rewards": [(name, mean) for name, (mean, _) in measured.items()],
        "reward_errors": [(name, error) for name, (_, error) in measured.items()],
        "best_of_n": best,
    }


def _diversity(completions: list[NDArray[Any]], num_samples: int) -> dict[str, float | None]:
    by_prompt = [completions[i : i + num_samples] for i in range(0, len(completions), num_samples)]
    return {
        "distinct_1": _or_none(distinct(completions, 1)),
        "distinct_2": _or_none(distinct(completions, 2)),
        "self_bleu": float(np.mean([self_bleu(each) for each in by_prompt]))
        if num_samples > 1
        else None,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _texts(store: Store, found: Measured) -> list[str]:
    """Return the text of each sample; empty where its prompt was given as ids."""
    known = sorted({key for key in found.text_keys if key is not None})
    keys = np.array(known, "S16") if known else np.empty(0, "S16")
    _, completions = load_texts(store, keys)
    by_key = {
        key: each if isinstance(each, str) else str(each[-1]["content"])
        for key, each in zip(known, completions, strict=True)
    }
    return ["" if key is None else by_key[key] for key in found.text_keys]
