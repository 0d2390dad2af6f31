"""A probe at load time shows which way of computing rows is correct; no list of models is trusted.

A probe pair, one prompt with two completions, is scored the plain way (each sequence alone,
``model(input_ids).logits``), as separate rows through the output head, and as one packed row. The
fastest route that agrees with the plain one is taken. Two comparisons decide: the mean difference
per token against a bound for the dtype, and the same against the difference that a row without the
mask would give, so that a small model whose context hardly matters cannot pass by accident.
"""

import numpy as np
import torch
from torch import Tensor

from offpref.stores.errors import ModelError

from .batches import PackedBatch, collate_rows, separate_rows
from .heads import HeadConvention, head_conventions
from .out_of_memory import is_out_of_memory
from .packing import PackedRow
from .routes import PackingReport, Route, Way
from .scoring_model import ScoringModel

# Mean difference per token, in nats: below the first number it is rounding, above the second it is
# not.
_BOUNDS = {
    torch.float64: (1e-9, 1e-5),  # eager attention takes its softmax in float32
    torch.float32: (1e-5, 1e-3),
    torch.bfloat16: (1e-3, 1e-1),
}
_HEAD_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of max |logit|
_SHARE_OF_NAIVE = 0.1
_LONGEST_PROBE = {"cpu": 512, "cuda": 8192}
_COMPLETION_LENGTHS = (5, 9)


def check_packing(scoring_model: ScoringModel) -> PackingReport:
    """Return the fastest way of computing rows that agrees with the model's own logits.

    The model is left as it was. Under FSDP2 all processes have to call it.

    Raises:
        ModelError: If the model cannot score the probe in any way.
    """
    was_training = scoring_model.training
    scoring_model.eval()
    with torch.no_grad():
        report = _compare(scoring_model, _probe(scoring_model))
    scoring_model.train(was_training)
    return report


def _compare(model: ScoringModel, row: PackedRow) -> PackingReport:
    """Run the probe in every way, and report on the fastest one that is correct."""
    packed, alone = collate_rows([row]), [collate_rows([one]) for one in separate_rows([row])]
    together = collate_rows(separate_rows([row]))
    usual = head_conventions(model.config)[0]
    plain = [_scores(model, Way("logits", usual), batch) for batch in alone]
    if not all(plain):
        raise ModelError(f"{_name(model)} cannot be run on token ids alone")
    logps, logits = (torch.cat(tensors) for tensors in zip(*filter(None, plain), strict=True))
    if not torch.isfinite(logps).all():
        raise ModelError(f"{_name(model)} gives log-probs that are not finite")
    convention = _head_convention(model, together, logits)

    def difference(route: Route, batch: PackedBatch) -> float | None:
        if convention is None:
            return None
        scores = _scores(model, Way(route, convention), batch)
        return None if scores is None else float((scores[0] - logps).abs().mean())

    separate, naive = difference("separate", together), difference("separate", packed)
    by_mask = None if model.mask_rule is None else difference("packed", packed)
    route, message = _fastest(model, by_mask, naive, separate)
    return PackingReport(
        way=Way(route, convention or head_conventions(model.config)[-1]),
        message=message,
        num_probe_tokens=len(row.prompt),
        covers_window=not model.windows or len(row.prompt) > max(model.windows),
        packed_difference=by_mask,
        separate_difference=separate,
        naive_difference=naive,
    )


def _fastest(
    model: ScoringModel, by_mask: float | None, naive: float | None, separate: float | None
) -> tuple[Route, str | None]:
    """Return the fastest route that is correct, and a message if it is not ``packed``."""
    bounds = _BOUNDS[_numerics(model)]
    if by_mask is not None and _is_right(by_mask, naive, bounds):
        return "packed", None
    if separate is not None and separate <= bounds[1]:
        why = "its layers take no such mask" if by_mask is None else f"off by {by_mask:.1e} nats"
        return "separate", (
            f"{_name(model)} cannot keep completions in one row apart ({why}): "
            f"each completion is computed with its own prompt"
        )
    return "logits", (
        f"{_name(model)} has an output head of its own: whole logits are computed, slowly"
    )


def _is_right(difference: float, naive: float | None, bounds: tuple[float, float]) -> bool:
    rounding, most = bounds
    limit = most if naive is None else min(most, _SHARE_OF_NAIVE * naive)
    return difference <= max(rounding, limit)


def _head_convention(
    model: ScoringModel, batch: PackedBatch, logits: Tensor
) -> HeadConvention | None:
    """Return the first convention whose logits are the model's own; None if there is none."""
    bound = _HEAD_BOUNDS[_numerics(model)] * max(float(logits.abs().max()), 1e-6)
    for convention in head_conventions(model.config):
        scores = _scores(model, Way("separate", convention), batch)
        if scores is None or scores[1].shape != logits.shape:
            continue
        if float((scores[1] - logits).abs().max()) <= bound:
            return convention
    return None


def _scores(model: ScoringModel, way: Way, batch: PackedBatch) -> tuple[Tensor, Tensor] | None:
    """Return log-probs [T] and logits [T, V] in float64; None if the model cannot run this way."""
    try:
        scores = model(batch.to(model.device), want=("token_logps", "logits"), way=way)
    except (ModelError, AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return None  # Another way may work; if none does, the caller raises.
    return scores.token_logps.double().cpu(), scores.logits.double().cpu()


def _probe(model: ScoringModel) -> PackedRow:
    """Return a prompt, longer than the sliding window if possible, and two completions of it."""
    first, second = _COMPLETION_LENGTHS
    limits = [_LONGEST_PROBE.get(model.device.type, 512)]
    if model.max_positions is not None:
        limits.append(model.max_positions)
    if model.length_switch is not None:
        limits.append(model.length_switch.boundary)
    limit = min(limits)
    if limit <= second:
        first, second = 1, 2
    wanted = max([24, *(window + 8 for window in model.windows)])
    fitting = wanted if wanted + second <= limit else 24
    num_prompt_tokens = max(1, min(fitting, limit - second))
    generator = np.random.default_rng(0)
    ids = generator.integers(model.vocab_size, size=num_prompt_tokens + first + second)
    return PackedRow(
        prompt=ids[:num_prompt_tokens],
        completions=(ids[num_prompt_tokens:-second], ids[-second:]),
        sequence_indices=(0, 1),
    )


def _numerics(model: ScoringModel) -> torch.dtype:
    return torch.bfloat16 if model.precision == "bf16-autocast" else model.dtype


def _name(model: ScoringModel) -> str:
    return type(model.model).__name__
