"""A model card from what the store says of a run.

Names come from data and folders of others: in the card they are text, whatever they contain.
"""

import html
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from offpref.pipeline.sweeps.points import option_words
from offpref.pipeline.training.settings import TrainSettings
from offpref.stores.printable import printable

from .facts import RunFacts
from .settings import PushSettings

MARK = "<!-- written by offpref push-policy -->"
CURVE_ROWS = 10
_METRICS = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
_OF_MACHINE = (
    "device",
    "resume",
    "overwrite",
    "report_to",
    "callback",
    "save_every",
    "keep",
    "no_last_checkpoint",
)
"""Settings that are no part of the command that makes the same policy."""
_PATHS = ("model", "output_dir", "reference")


def model_card(facts: RunFacts, settings: PushSettings) -> str:
    """Return the card of a run, as Markdown with YAML before it."""
    parts = [
        _front_matter(facts, settings), MARK, f"# {_text(settings.repo.partition('/')[2])}",
        f"A policy trained by preference optimisation with [offpref](https://pypi.org/project/"
        f"offpref), run `{_text(facts.name)}`.",
        "## Data", _table(("", ""), _data_rows(facts, settings)),
        "## Loss", _table(("setting", "value"), _loss_rows(facts)),
        "## Settings", _table(("setting", "value"), _setting_rows(facts)),
        "## Measurements", _measurements(facts),
        "## Command", f"    {_command(facts)}",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: RunFacts, settings: PushSettings) -> str:
    losses = str(facts.config.get("loss_type", "sigmoid")).split("+")
    names = ["dpo" if each == "sigmoid" else each for each in losses if ":" not in each]
    has_adapter = (settings.folder / "adapter_config.json").exists()
    matter: dict[str, Any] = {"library_name": "peft" if has_adapter else "transformers"}
    matter["pipeline_tag"] = "text-generation"
    matter["tags"] = ["offpref", "preference-optimization", *dict.fromkeys(names)]
    if settings.base_model:
        matter["base_model"] = settings.base_model
    if settings.dataset:
        matter["datasets"] = list(settings.dataset)
    # A value of JSON is one of YAML.
    lines = [f"{name}: {json.dumps(value)}" for name, value in matter.items()]
    return "\n".join(["---", *lines, "---"])


def _data_rows(facts: RunFacts, settings: PushSettings) -> Iterator[tuple[str, str]]:
    yield "pair set", f"{facts.pair_set}@{facts.pair_set_fingerprint[:12]}"
    yield "form", facts.form
    yield "pairs", ", ".join(f"{number:,} {split}" for split, number in facts.splits.items())
    yield "sources (SHA-256)", ", ".join(each[:12] for each in facts.sources) or "none"
    yield "started from", settings.base_model or Path(str(facts.config["model"])).name
    yield "reference's scores", facts.reference[:12] if facts.reference else "none"


def _loss_rows(facts: RunFacts) -> Iterator[tuple[str, str]]:
    from offpref.pipeline.losses.settings import LOSS_SETTINGS

    for name in LOSS_SETTINGS:
        value = facts.config.get(name)
        if not _is_off(value):
            yield name, _shown(value)


def _setting_rows(facts: RunFacts) -> Iterator[tuple[str, str]]:
    from offpref.pipeline.losses.settings import LOSS_SETTINGS

    hidden = {*LOSS_SETTINGS, *_OF_MACHINE, *_PATHS, "pair_set", "run_name"}
    for each in fields(TrainSettings):
        value = facts.config.get(each.name)
        if each.name not in hidden and not _is_off(value):
            yield each.name, _shown(value)
    for name in ("torch", "transformers"):
        yield name, str(facts.versions.get(name, "unknown"))


def _measurements(facts: RunFacts) -> str:
    """Return a table of the last measurement of each split, and a curve of each."""
    parts = []
    for split in sorted({str(each["split"]) for each in facts.steps}):
        own = [each for each in facts.steps if each["split"] == split]
        there = [dict(each["metrics"]) for each in own]
        names = [name for name in _METRICS if any(name in each for each in there)]
        rows = [
            (str(each["step"]), _number(each["loss"]), *(_number(m.get(name)) for name in names))
            for each, m in _thinned(list(zip(own, there, strict=True)))
        ]
        parts.append(f"Split `{_text(split)}`:")
        parts.append(_table(("step", "loss", *names), rows))
    return "\n\n".join(parts) or "None."


def _thinned(rows: Sequence[Any]) -> list[Any]:
    """Return some rows over the whole run, the first and the last among them."""
    if len(rows) <= CURVE_ROWS:
        return list(rows)
    last = len(rows) - 1
    places = sorted({round(last * each / (CURVE_ROWS - 1)) for each in range(CURVE_ROWS)})
    return [rows[place] for place in places]


def _command(facts: RunFacts) -> str:
    """Return the command line that trains the same policy, on one line."""
    verb = "sft" if facts.config.get("loss_type") == "sft" else "train"
    words = ["offpref", verb, "STORE", *option_words(_given(facts, verb))]
    return shlex.join(printable(each) for each in words)


def _given(facts: RunFacts, verb: str) -> Mapping[str, Any]:
    given: dict[str, Any] = {}
    for each in fields(TrainSettings):
        value = facts.config.get(each.name)
        default = None if each.default is MISSING else each.default
        is_default = _is_off(value) or value == default or (value,) == default
        if is_default or each.name in _OF_MACHINE or (verb == "sft" and each.name == "loss_type"):
            continue
        if each.name == "loss_type":
            value = str(value).split("+")
        if each.name in _PATHS and "/" in str(value):
            value = Path(str(value)).name
        given[each.name] = value
    fingerprint = facts.pair_set_fingerprint[:12]
    return {**given, "pair_set": f"{facts.pair_set}@{fingerprint}"}


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(each if each == '---' else _text(each) for each in line)} |"
        for line in lines
    )


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_off(value: object) -> bool:
    """Whether a setting says nothing; 0 says something."""
    return value is None or value is False or value == []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    escaped = html.escape(printable(text), quote=False)
    return "".join(f"\\{each}" if each in r"\`*[]|#!~" else each for each in escaped)
