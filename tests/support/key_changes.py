"""Change one field of a model's folder at a time, and see whether key and value go together.

A key holds everything if, whatever field is changed, the key changes, or the value stays, or the
change is refused.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from safetensors.numpy import load_file, save_file

LEAST_MEASURED = 0.15
"""Share of the changes that must give a value: refusing everything would hold any promise."""
MOST_CHILDREN = 3  # of a long list or a vocabulary that are looked at
WORDS = {
    "hidden_act": "relu", "hidden_activation": "relu", "model_type": "mistral", "type": "Lowercase",
    "bos_token": "film", "eos_token": "book", "pad_token": "song", "unk_token": "play",
}  # fmt: skip
"""What a text becomes where any other text would be refused."""

ADDED: dict[str, dict[str, Any]] = {
    "config.json": {
        "final_logit_softcapping": None, "attn_logit_softcapping": None, "logit_scale": 2.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "sliding_window": 2,
        "problem_type": "regression", "tie_word_embeddings": None, "partial_rotary_factor": 0.5,
        "pad_token_id": 2, "dtype": "bfloat16", "quantization_config": None,
        "is_decoder": True, "chunk_size": 3,
    },
    "generation_config.json": {
        "eos_token_id": [2, 5, 9, 11, 14, 17], "repetition_penalty": 9.0, "suppress_tokens": [5, 6],
        "temperature": 0.1, "top_k": 1, "do_sample": False, "min_new_tokens": 6, "max_length": 4,
        "forced_eos_token_id": 2, "bad_words_ids": [[7]], "no_repeat_ngram_size": 1,
        "stop_strings": ["the"], "begin_suppress_tokens": [5], "pad_token_id": 5,
    },
    "tokenizer_config.json": {
        "split_special_tokens": True, "add_bos_token": False, "add_eos_token": True,
        "add_prefix_space": True, "clean_up_tokenization_spaces": True, "padding_side": "left",
        "truncation_side": "left", "model_max_length": 3, "legacy": False, "do_lower_case": True,
        "bos_token": "film", "eos_token": "book", "chat_template": "{{ messages }}",
        "extra_special_tokens": {"more_token": "was"}, "additional_special_tokens": ["good"],
        "use_default_system_prompt": True, "fix_mistral_regex": True, "return_token_type_ids": True,
    },
}  # fmt: skip
"""Options that a file may have, beside those that it has."""
ALWAYS = ("softcapping", "eos_token_id", "pad_token_id", "split_special_tokens", "rms_norm_eps")
"""Names of which every change is tried: they were in no key before."""

Measure = Callable[[Path], tuple[str, list[Any]]]
"""Gives the key of a computation on a folder, and its value."""

_opened: set[Path] | None = None


def _note_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | Path):
        _opened.add(Path(arguments[0]))


sys.addaudithook(_note_open)  # it cannot be taken away again, so it looks whether it is asked


@contextmanager
def noting_opened() -> Iterator[set[Path]]:
    """Collect the files that are opened meanwhile."""
    global _opened
    _opened = found = set()
    try:
        yield found
    finally:
        _opened = None


def changes(
    folder: Path, *, share: float, always: Sequence[str] = ALWAYS
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield changes of a folder with a name each: fields of JSON, texts, one tensor.

    Args:
        folder: What is changed; each change is to be made in a copy.
        share: Of the changes of fields, chosen by their names: the same every time.
        always: Names of fields of which every change is tried.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            for place in _places(content):
                for kind, change in _ways(place, content):
                    name = f"{path.name}: {'.'.join(map(str, place))} {kind}"
                    if _is_chosen(name, share, always):
                        yield name, _of_json(path.name, change)
            for added, value in ADDED.get(path.name, {}).items():
                name = f"{path.name}: {added} is {json.dumps(value)} now"
                if _is_chosen(name, share, always):
                    yield name, _of_json(path.name, partial(_put, (added,), value))
        elif path.suffix == ".jinja":
            yield f"{path.name}: longer", _of_text(path.name)
        elif path.suffix == ".safetensors":
            yield f"{path.name}: a tensor", _of_tensor(path.name)


def broken_keys(
    folder: Path,
    measure: Measure,
    work: Path,
    *,
    share: float,
    expect: set[str],
    always: Sequence[str] = ALWAYS,
) -> list[str]:
    """Return the changes by which a value changes and its key does not.

    Args:
        folder: A model's, or a tokenizer's.
        measure: The computation.
        work: An empty folder.
        share: Of the changes that are tried.
        expect: Names of the files that are changed: the computation may open no others.
        always: Names of fields of which every change is tried.
    """
    copy = Path(shutil.copytree(folder, work / folder.name))
    with noting_opened() as opened:
        key, value = measure(copy)
    names = {path.name for path in opened if path.parent == copy and path.exists()}
    # Weights and tokenizer.json are opened by libraries that Python does not see.
    found = [f"{name} is opened and not changed" for name in sorted(names - expect)]
    num_tried = num_measured = 0
    for number, (name, change) in enumerate(changes(folder, share=share, always=always)):
        changed = Path(shutil.copytree(folder, work / str(number) / folder.name))
        change(changed)
        num_tried += 1
        try:
            other_key, other_value = measure(changed)
        except BaseException as error:  # a panic of a library in Rust is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            continue  # refused, not in silence
        num_measured += 1
        if other_key == key and not is_same(value, other_value):
            found.append(f"{name}: another value under the same key")
        shutil.rmtree(work / str(number))
    if num_measured < LEAST_MEASURED * num_tried:
        found.append(f"{num_tried - num_measured} of {num_tried} changes were refused")
    return found


def is_same(one: list[Any], other: list[Any]) -> bool:
    """Whether two values are equal, numbers up to rounding."""
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        is_number = isinstance(a, float | np.ndarray)
        if is_number and (np.shape(a) != np.shape(b) or not np.allclose(a, b, 1e-6, 1e-6, True)):
            return False
        if not is_number and a != b:
            return False
    return True


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where values lie in JSON, those of long lists and dictionaries in part."""
    if isinstance(content, dict):
        parts = list(content.items())
    elif isinstance(content, list):
        parts = list(enumerate(content))
    else:
        return
    kept = parts if len(parts) <= 60 else parts[:MOST_CHILDREN]
    for name, value in kept:
        yield (*place, name)
        yield from _places(value, (*place, name))


def _ways(
    place: tuple[Any, ...], content: Any
) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """Yield ways to change a value: another one of its type, null, nothing."""
    value = content
    for name in place:
        value = value[name]

    def drop(other: dict[str, Any]) -> None:
        del _parent(other, place)[place[-1]]

    if not isinstance(value, dict | list) or not value:
        new = _another(place[-1], value)
        yield f"is {json.dumps(new)}", partial(_put, place, new)
    if value is not None:
        yield "is null", partial(_put, place, None)
    yield "is absent", drop


def _is_chosen(name: str, share: float, always: Sequence[str]) -> bool:
    number = int(blake3(name.encode()).hexdigest()[:8], 16)
    return number < share * 2**32 or any(each in name for each in always)


def _put(place: tuple[Any, ...], new: object, content: Any) -> None:
    _parent(content, place)[place[-1]] = new


def _parent(content: Any, place: tuple[Any, ...]) -> Any:
    for name in place[:-1]:
        content = content[name]
    return content


def _another(name: object, value: Any) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5 + 0.1
    if isinstance(value, str):
        return WORDS.get(str(name), f"{value} x")
    return 1 if value is None else [1]


def _of_json(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def _of_text(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text() + " film")

    return apply


def _of_tensor(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        first = sorted(tensors)[0]
        tensors[first] = tensors[first] + np.float32(0.5)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return apply
