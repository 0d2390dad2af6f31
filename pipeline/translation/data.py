"""Where data, model and output of a configuration are found."""

import re
from pathlib import Path
from typing import Any

from .given import Given, shown

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def translate_data(given: Given) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the table of `add`, and what of that of `train` names data, model and output."""
    model = _model(given)
    data = _data(given)
    add: dict[str, Any] = {"data": data} if data else {}
    add |= {"pair_set": _name(data), "tokenizer": model}
    fraction = given.number("eval_fraction")
    if fraction and fraction >= 1:
        given.note("eval_fraction", "is a number of rows there; `--eval-fraction` takes a share")
    elif fraction:
        add["eval_fraction"] = fraction
    length = given.whole("max_length")
    mode = given.word("truncation_mode")
    if length is not None:
        add["max_length"], add["truncation"] = length, "keep-start"
        if mode == "keep_end":
            given.note("truncation_mode", "would cut the prompt off; here the completion's end is")
        elif given.tool.name == "LLaMA-Factory":
            given.note("max_length", "cuts prompt and completion there, here the completion's end")
    output = given.word("output_dir")
    train: dict[str, Any] = {
        "pair_set": add["pair_set"], "model": model, "output_dir": output or f"{model}-dpo",
    }  # fmt: skip
    if not output:
        given.note("output_dir", f"is not given; {train['output_dir']!r} is written here")
    if name := given.word("run_name"):
        train["run_name"] = name
    train |= _splits(given, holds_out="eval_fraction" in add)
    return add, train


def _model(given: Given) -> str:
    """Return the folder of the model."""
    key = "model_name_or_path"
    name = given.word(key)
    if not name:
        raise ValueError("expected a model, got none")
    revision = given.word("model_revision")
    folder = name
    if _HUB_NAME.fullmatch(name) and not Path(name).exists():
        folder = name.rpartition("/")[2]
        at = f" --revision {revision}" if revision and revision != "main" else ""
        given.note(key, f"is on the Hub: hf download {name}{at} --local-dir {folder}")
    reference = given.word("ref_model")
    if reference and reference != name:
        given.note(
            "ref_model",
            f"is another reference: `offpref score --model {reference}` scores it, and "
            f"`offpref train --reference {reference}` takes it",
        )
    return folder


def _data(given: Given) -> list[str]:
    """Return the addresses of the data."""
    many = given.take("datasets")
    one = given.take("dataset_name")
    key = "datasets" if many else "dataset_name"
    if given.tool.name == "LLaMA-Factory" and one:
        given.note(key, "names entries of dataset_info.json: give `offpref add --data` their files")
        return []
    entries = many if isinstance(many, list) else [one] if one else []
    found = []
    for each in entries:
        name = each.get("path") if isinstance(each, dict) else each
        if not isinstance(name, str):
            raise ValueError(f"{key} must name data, got {shown(each)}")
        more = {k: v for k, v in each.items() if k != "path"} if isinstance(each, dict) else {}
        files = more.pop("data_files", None)
        if more:
            given.note(
                key,
                f"says {shown(more)} of {name}: `offpref add` finds columns by their names; "
                "--chosen-column and its like name others, --preview 3 shows rows",
            )
        if isinstance(files, str):
            found.append(files)
        elif isinstance(files, list):
            found += [str(each) for each in files]
        elif _HUB_NAME.fullmatch(name) and not Path(name).exists():
            found.append(f"hf://datasets/{name}")
        else:
            found.append(name)
    if not found:
        given.note(key, "names no data: give `offpref add --data` yourself")
    return found


def _name(data: list[str]) -> str:
    """Return a name for the pair set."""
    last = data[0].rstrip("/").rpartition("/")[2].partition(".")[0] if data else ""
    return re.sub(r"[^\w.-]", "-", last) or "pairs"


def _splits(given: Given, *, holds_out: bool) -> dict[str, Any]:
    """Return the splits, and how often held-out pairs are measured."""
    train, test = given.word("dataset_train_split"), given.word("dataset_test_split")
    found: dict[str, Any] = {"train_split": train} if train and train != "train" else {}
    strategy, steps = given.take("eval_strategy"), given.whole("eval_steps")
    if not holds_out and strategy in (None, "no", False):
        return found
    if not holds_out and test and test != "eval":
        found["eval_split"] = [test]
    if strategy == "epoch":
        given.note("eval_strategy", "is by steps here: give `--eval-every` the steps of an epoch")
    else:
        found["eval_every"] = steps or 10 if strategy == "steps" else steps or 100
        if steps is None:
            given.note("eval_steps", f"is not given; {found['eval_every']} is written here")
    return found
