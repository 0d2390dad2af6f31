"""What the commands say when they are done, line by line, for a person."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from offpref.pipeline.pairs.mask_names import shown_mask
from offpref.pipeline.pairs.pair_sets import (
    KEPT,
    SKIPPED,
    PairSet,
    is_of_former_rule,
    other_counts,
    pair_sets,
    reject_counts,
    split_counts,
)
from offpref.stores.store import Store

if TYPE_CHECKING:  # their modules bring torch, or what only some commands need
    from offpref.pipeline.boards.export_settings import ExportSettings
    from offpref.pipeline.evaluation.evaluate import EvaluationSummary
    from offpref.pipeline.rewards.reward import RewardSummary
    from offpref.pipeline.rewards.train_model import RewardTrainSummary
    from offpref.pipeline.scores.dry_run import DryRun
    from offpref.pipeline.scores.score import ScoreSummary
    from offpref.pipeline.training.measurements import StepMeasurement
    from offpref.pipeline.training.summary import MaskSummary, TrainSummary
    from offpref.stores.report.html import ReportSummary

NOTHING = "\u2013"
"""Stands for a number that could not be measured."""


def pair_set_lines(store: Store, found: PairSet, *, is_new: bool) -> Iterator[str]:
    """Yield what was added, and what of it could not be used."""
    state = "added" if is_new else "known, nothing was read"
    yield f"pair set   {found}: {state}"
    if is_new:
        yield from _difference_lines(store, found)
    yield from _content_lines(store, found)


def version_lines(store: Store, found: PairSet) -> Iterator[str]:
    """Yield what a version of a pair set is and holds."""
    yield f"pair set   {found}"
    yield from _content_lines(store, found)


def _content_lines(store: Store, found: PairSet) -> Iterator[str]:
    """Yield what a version holds, and what of its data could not be used."""
    yield f"form       {found.form}"
    counts = other_counts(store, found)
    for name, start in (("kept", KEPT), ("skipped", SKIPPED)):
        for what in counts:
            if what.startswith(start):
                yield f"{name:<11}{what.removeprefix(start)}"
    num_lists = counts.pop("lists", 0)
    made = f"{found.num_pairs:,} pairs" if found.num_pairs or not num_lists else ""
    made += f"{', ' if made and num_lists else ''}{f'{num_lists:,} lists' if num_lists else ''}"
    yield f"rows       {found.num_rows:,}: {made}, {found.num_rejects:,} rejected"
    if splits := split_counts(store, found):
        yield f"splits     {', '.join(f'{name} {number:,}' for name, number in splits.items())}"
    for reason, number in reject_counts(store, found).items():
        yield f"  rejected {number:,}: {reason}"
    if found.num_eos_lost:
        yield f"truncated  {found.num_eos_lost:,} completions lost their end of sequence"
    if found.num_merges:
        yield (
            f"boundary   {found.num_merges:,} completions would begin with another token if "
            "tokenised together with their prompt"
        )
    for what, number in counts.items():
        if what.startswith((KEPT, SKIPPED)):
            continue
        yield f"counted    {number:,} {what}"


def _difference_lines(store: Store, found: PairSet) -> Iterator[str]:
    """Yield what a new version of a pair set differs in from the one that its name meant."""
    others = [
        each for each in pair_sets(store)
        if each.name == found.name and each.fingerprint != found.fingerprint
    ]  # fmt: skip
    if not others:
        return
    before = others[-1]
    old, new = json.loads(before.settings), json.loads(found.settings)
    named = ("sources", "tokenizer", "template", "tokenization")
    differing = [
        f"{name} was {old.get(name)!r}"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name) and name not in named
    ]
    if is_of_former_rule(before):
        differing.append("made by an older rule of tokenisation")
    differing += [f"other {name}" for name in ("sources", "tokenizer", "template")
                  if old.get(name) != new.get(name)]  # fmt: skip
    yield (
        f"version    new beside {before} ({', '.join(differing)}); {found.name} means the new one"
    )


def reward_lines(summary: "RewardSummary") -> Iterator[str]:
    """Yield what a run of `offpref reward` did."""
    cached = summary.num_subjects - summary.num_new - summary.num_unusable
    yield f"pair set   {summary.pair_set}"
    yield f"objective  {summary.objective}@{summary.source[:12]}"
    yield (
        f"rewards    {summary.num_subjects:,} of {summary.subject}: {summary.num_new:,} new, "
        f"{max(cached, 0):,} cached, {summary.num_unusable:,} without"
    )
    for reason, count in summary.reasons.items():
        yield f"  without {count:,}: {reason}"
    yield f"mean       {summary.mean:.4g}, standard deviation {summary.std:.4g}"
    if summary.margin_agreement is not None:
        yield f"agreement  {summary.margin_agreement:.1%} of pairs: the chosen one has more"


def score_lines(summary: "ScoreSummary") -> Iterator[str]:
    """Yield what a run of stage one did."""
    yield f"reference  {summary.model}@{summary.scorer[:12]} ({summary.precision})"
    yield (
        f"sequences  {summary.num_sequences:,}: {summary.num_new:,} new, "
        f"{summary.num_cached:,} cached"
    )
    if len(summary.num_new_rows) > 1:
        counts = [f"{tier} {number:,}" for tier, number in summary.num_new_rows.items()]
        yield f"tiers      new rows: {', '.join(counts)}"
    if not summary.num_new:
        why = "every score was there" if summary.was_loaded else "no model was loaded"
        yield f"computed   nothing: {why}"
        return
    yield (
        f"computed   {summary.num_tokens:,} tokens as {summary.num_computed_tokens:,} "
        f"(shared prompts once) in {summary.seconds:.1f} s: "
        f"{summary.num_tokens / summary.seconds:,.0f} tokens/s"
    )
    yield f"written    {summary.num_bytes:,} bytes"


def dry_run_lines(found: "DryRun") -> Iterator[str]:
    """Yield a table of what each tier would cost."""
    rows = [("tier", "rows", "tokens", "bytes", "bytes/token", "seconds alone")]
    rows += [
        (
            str(cost.tier),
            f"{cost.num_rows:,}",
            f"{cost.num_tokens:,}",
            f"{cost.num_bytes:,}",
            f"{cost.num_bytes / cost.num_tokens:,.1f}" if cost.num_tokens else "",
            f"{cost.seconds:,.1f}",
        )
        for cost in found.costs
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield ("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    yield (
        f"together {found.num_bytes:,} bytes in {found.seconds:,.1f} s, one forward pass for all; "
        f"{found.num_free_bytes:,} bytes are free"
    )


def training_lines(summary: "TrainSummary") -> Iterator[str]:
    """Yield what a training did."""
    attempt = f", attempt {summary.attempt}" if summary.attempt else ""
    yield f"run        {summary.name}@{summary.run_id[:12]}{attempt}"
    yield f"reference  {summary.reference or 'none'}"
    if summary.kl_source is not None:
        yield f"KLs        from tier {summary.kl_source}"
    if summary.mask is not None:
        yield f"mask       {_mask(summary.mask)}"
    resumed = f", {summary.num_resumed:,} of them before" if summary.num_resumed else ""
    if summary.num_resumed == summary.num_steps:
        resumed = ": finished before, nothing was done"
    yield f"steps      {summary.num_steps:,}{resumed}"
    if summary.first is not None and summary.last is not None and summary.seconds:
        yield from _step_lines(summary.first, summary.last)
        for split, found in summary.held_out.items():
            name = "" if len(summary.held_out) == 1 else f"{split}: "
            yield f"held out   {name}{_held_out(found)}"
        if summary.num_resumed == 0 and summary.first.residual is not None:
            mean, largest = summary.first.residual
            yield (
                f"residual   {mean:.1e} nats per token from the reference, at most {largest:.1e}"
            )
            if not summary.is_own_reference:
                yield (
                    "note       the policy does not start from its reference; to score the policy "
                    "itself, give its folder to `offpref score --model`"
                )
        yield (
            f"speed      {summary.num_pairs / summary.seconds:,.2f} pairs/s, "
            f"{summary.num_tokens / summary.seconds:,.0f} tokens/s, "
            f"{summary.data_wait_seconds / summary.seconds:.1%} waiting for data"
        )
    yield f"policy     {summary.output_dir}"


def _step_lines(first: "StepMeasurement", last: "StepMeasurement") -> Iterator[str]:
    """Yield what the first and the last step measured, each before its update."""
    steps = [first] if first is last else [first, last]
    if first is last:
        yield f"loss       {last.loss:z.4f}, before the update of the only step"
    else:
        yield f"loss       {first.loss:z.4f} -> {last.loss:z.4f}"
    for name in dict.fromkeys([*last.metrics, *first.metrics]):
        # A step of ties has no accuracy, one of unpaired data may lack completions of one kind.
        ends = [_number(each.metrics.get(name)) for each in steps]
        yield f"  {name:<20} {' -> '.join(ends)}"


def _number(value: float | None) -> str:
    """Return a measurement as it is shown; a dash where nothing could be measured."""
    return NOTHING if value is None else f"{value:z.4f}"


def _mask(mask: "MaskSummary") -> str:
    """Return how much a mask counts, and which pairs it leaves nothing of."""
    share = mask.num_counted / mask.num_tokens
    text = (
        f"{shown_mask(mask.mask)}: {mask.num_counted:,} of {mask.num_tokens:,} tokens count "
        f"({share:.0%})"
    )
    for num_pairs, split in ((mask.num_left_out, ""), (mask.num_eval_left_out, " held out")):
        if num_pairs:
            text += f", {num_pairs:,} pairs{split} left out"
    return text


def _held_out(found: Sequence["StepMeasurement"]) -> str:
    """Return loss and accuracy of held-out pairs, first and last."""
    text = "loss " + " -> ".join(_number(each.loss) for each in found)
    accuracies = [each.metrics.get("rewards/accuracies") for each in found]
    if all(each is None for each in accuracies):
        return text
    return f"{text}, accuracy {' -> '.join(map(_number, accuracies))}"


def reward_model_lines(summary: "RewardTrainSummary") -> Iterator[str]:
    """Yield what the training of a reward model did."""
    yield f"pair set   {summary.pair_set}"
    yield f"pairs      {summary.num_pairs:,}, {summary.num_left_out:,} too long for the model"
    yield (
        f"steps      {summary.num_steps:,}: loss {summary.first_loss:.4f} -> "
        f"{summary.last_loss:.4f} in {summary.seconds:.1f} s"
    )
    for split, accuracy in summary.accuracies.items():
        yield f"accuracy   {accuracy:.1%} of split {split}"
    yield f"model      {summary.output_dir}"


def evaluation_lines(summary: "EvaluationSummary") -> Iterator[str]:
    """Yield what was measured of a policy."""
    row = summary.row
    state = "" if summary.is_new else ": measured before, nothing was done"
    yield f"evaluation {row['name']}@{row['evaluation_id'].hex()[:12]}{state}"
    yield f"reference  {row['reference'] or 'none: no KL, no accuracy'}"
    yield f"pair set   {row['pair_set']}@{row['pair_set_fingerprint'][:12]}, split {row['split']}"
    if summary.samples is not None:
        yield (
            f"samples    {row['num_prompts'] * row['num_samples']:,} of {row['num_prompts']:,} "
            f"prompts, {summary.num_samples_drawn:,} drawn now"
        )
        if summary.samples.num_without_room:
            yield f"  left out {summary.samples.num_without_room:,} prompts that leave no room"
        ended = dict(row["metrics"])["share_ended"]
        yield f"length     {row['mean_completion_tokens']:.1f} tokens, {ended:.0%} ended themselves"
    errors = dict(row["reward_errors"])
    for name, mean in dict(row["rewards"]).items():
        yield f"reward     {name} {mean:.4g} +- {errors[name]:.2g}"
    if summary.num_chosen is not None:
        yield f"against    {summary.num_chosen:,} chosen completions: ask for win_rate"
    for words, name in (
        ("KL(policy || reference)", "reverse_kl"), ("KL(reference || policy)", "forward_kl"),
    ):  # fmt: skip
        if row.get(name) is not None:
            yield f"{words} {row[name]:.4g} +- {row[f'{name}_error']:.2g} nats per completion"
    for name in ("entropy", "distinct_1", "distinct_2", "self_bleu", "accuracy"):
        if row.get(name) is not None:
            yield f"{name:<10} {row[name]:.4f}"
    yield f"seconds    {summary.seconds:.1f}"


def export_line(settings: "ExportSettings", num_written: int) -> str:
    """Return what was written for other tools."""
    what = "views" if settings.to == "parquet" else "runs"
    return f"exported   {settings.output}: {num_written:,} {what}"


def report_line(summary: "ReportSummary") -> str:
    """Return what is on a page, and what did not fit."""
    left_out = (
        f" ({summary.num_token_pairs_left_out:,} left out to keep it under 10 MB)"
        if summary.num_token_pairs_left_out
        else ""
    )
    return (
        f"report     {summary.path}: {summary.num_bytes:,} bytes, {summary.num_runs:,} runs, "
        f"{summary.num_pairs_shown:,} of {summary.num_pairs:,} pairs, "
        f"{summary.num_token_pairs:,} with token values{left_out}"
    )
