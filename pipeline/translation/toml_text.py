"""Values as TOML writes them."""

import json
from collections.abc import Mapping
from typing import Any


def toml_table(name: str, values: Mapping[str, Any]) -> str:
    """Return a table of TOML.

    >>> print(toml_table("train", {"beta": 0.1, "loss_type": ["sigmoid", "sft"]}))
    [train]
    beta = 0.1
    loss_type = ["sigmoid", "sft"]
    """
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines])


def toml_value(value: Any) -> str:  # of any type that TOML has
    """Return a value of TOML: a text, a number, a truth value, or a list of such.

    >>> print(toml_value(True), toml_value(1e-6), toml_value(["a", "b"]))
    true 1e-06 ["a", "b"]
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(each) for each in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
