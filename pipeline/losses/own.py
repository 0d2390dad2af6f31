"""Losses of one's own: a function of pair scores that says what it needs.

    import offpref

    @offpref.loss(takes_objectives=True)
    def mine(scores, *, beta=0.1):
        return -logsigmoid(beta * scores.logratio_margins)

`offpref train --loss-type python:MODULE:mine` imports MODULE because the command names it; a store,
a run.json or a checkpoint never makes anything be imported. The keywords of the function are its
options, with their defaults. Its source is a part of the run's configuration: a run is resumed
with the code that it began with.

Letters in shape comments: N pairs.
"""

import inspect
import sys
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TypeVar

import torch
from blake3 import blake3
from torch import Tensor

from offpref.pipeline.own_code import imported_files, load_function
from offpref.stores.errors import TrainingError
from offpref.stores.keys import KEY_BYTES

from .names import OWN_PREFIX, Sides
from .pair_scores import PairScores
from .registry import LOSSES, Loss, Option, Rewards

Function = TypeVar("Function", bound=Callable[..., Tensor])

_DECLARED = "__offpref_loss__"
_GIVEN: dict[str, Callable[..., Tensor]] = {}  # functions that Python has handed over, by name


def loss(
    *,
    needs_reference: bool = True,
    sides: Sides = "both",
    needs_forward_kl: bool = False,
    needs_kl_pairs: bool = False,
    couples: bool = False,
    takes_divergence: bool = False,
    takes_objectives: bool = False,
    takes_ld_alpha: bool = False,
    rewards: Rewards | None = "logratios",
) -> Callable[[Function], Function]:
    """Return a decorator that declares what a loss needs and takes.

    The function gets a `PairScores`, whose fields have names and shapes, and its options as
    keywords; it returns the loss of each pair, [N].

    Args:
        needs_reference: Whether it reads the reference's stored scores.
        sides: Completions that a pair must have: ``both``, ``chosen`` or ``any``; or ``list``,
            where it reads ``policy_list_logps`` and its kin, of whole lists.
        needs_forward_kl: Whether it reads the forward KLs: tier ``hidden`` or ``topk``.
        needs_kl_pairs: Whether it reads ``kl_logratios``: scores of mismatched sequences.
        couples: Whether the loss of a pair depends on the other pairs of its step.
        takes_divergence: Whether it reads ``chosen_scores`` and ``rejected_scores``, so that
            another f-divergence acts on it.
        takes_objectives: Whether it reads ``score_margins``, so that other objectives act on it.
        takes_ld_alpha: Whether tokens beyond the shorter completion may weigh less.
        rewards: What times beta is logged as rewards; None for nothing.
    """

    def declare(function: Function) -> Function:
        if not inspect.isfunction(function):
            raise TypeError(f"offpref.loss: expected a function, got {function!r}")
        declared = Loss(
            function=function, options=_options(function), needs_reference=needs_reference,
            sides=sides, needs_forward_kl=needs_forward_kl, needs_kl_pairs=needs_kl_pairs,
            couples=couples, takes_divergence=takes_divergence,
            takes_objectives=takes_objectives, takes_ld_alpha=takes_ld_alpha, rewards=rewards,
        )  # fmt: skip
        setattr(function, _DECLARED, declared)
        return function

    return declare


def is_own(name: str) -> bool:
    """Return whether a loss is one of the user's own, by its name."""
    return name.startswith(OWN_PREFIX)


def find_loss(name: str) -> Loss:
    """Return what a loss needs; the module of one's own loss is imported.

    Raises:
        ValueError: If there is no such function, or it does not declare a loss.
    """
    if not is_own(name):
        return LOSSES[name]
    function = _function(name)
    declared = getattr(function, _DECLARED, None)
    if not isinstance(declared, Loss):
        raise ValueError(
            f"{name}: expected a function under the decorator offpref.loss(...), which says what "
            "it needs; this one has none"
        )
    return declared


def named_loss(function: Callable[..., Tensor]) -> str:
    """Return the name by which settings know a function that Python hands over.

    Raises:
        TypeError: If it is not a function, or closes over values, which its source does not say.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"loss_type must be names or functions, got {function!r}")
    if function.__closure__:
        names = ", ".join(function.__code__.co_freevars)
        raise TypeError(
            f"{function.__qualname__}: a loss is known by its source, and this one takes {names} "
            "from around it; make them options: keywords with defaults"
        )
    module = sys.modules.get(function.__module__)
    if getattr(module, "__file__", None) and vars(module).get(function.__name__) is function:
        return f"{OWN_PREFIX}{function.__module__}:{function.__name__}"
    name = f"{OWN_PREFIX}{function.__module__}:<{function.__qualname__}>"
    _GIVEN[name] = function
    return name


def source_of(name: str) -> str:
    """Return a hash of the source of a loss of one's own, and of the own modules it imports.

    Of a function that is at the top of no file, as in a notebook, it covers its own text.

    Raises:
        ValueError: If the source is not available.
    """
    hasher = blake3()
    function = _GIVEN.get(name)
    if function is not None:
        try:
            hasher.update(inspect.getsource(function).encode())
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{name}: its source is not available; put it into a module"
            ) from error
    module = name.removeprefix(OWN_PREFIX).partition(":")[0]
    files = imported_files(module)
    path = getattr(sys.modules.get(module), "__file__", None)
    for each in (*([] if path is None else [Path(path)]), *files.values()):
        hasher.update(each.read_bytes())
    return hasher.hexdigest(KEY_BYTES)


def check_losses(name: str, losses: object, scores: PairScores) -> None:
    """Check what a loss of one's own has returned.

    Raises:
        TrainingError: If it is not a number for each pair, or has lost its gradient.
    """
    num_pairs = len(scores.policy_chosen_logps)
    expected = f"{name}: expected a loss for each of {num_pairs} pairs, floating [{num_pairs}]"
    if not isinstance(losses, Tensor):
        raise TrainingError(f"{expected}, got {type(losses).__name__}")
    if losses.shape != (num_pairs,) or not losses.is_floating_point():
        raise TrainingError(f"{expected}, got {losses.dtype} {list(losses.shape)}")
    needs_gradient = torch.is_grad_enabled() and scores.policy_chosen_logps.requires_grad
    if needs_gradient and not losses.requires_grad:
        raise TrainingError(f"{name}: expected losses with a gradient, got detached ones")


def as_option(name: str, text: str, default: Option | None) -> Option:
    """Return the value of an option of a loss of one's own, of the kind of its default.

    Raises:
        ValueError: If it is of another kind, or is not finite.
    """
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"loss_option {name} must be true or false, got {text!r}")
        return text.lower() == "true"
    kind = int if isinstance(default, int) else float
    try:
        value = kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"loss_option {name} must be {what}, got {text!r}") from error
    if not isfinite(value):
        raise ValueError(f"loss_option {name} must be finite, got {text}")
    return value


def _function(name: str) -> Callable[..., Tensor]:
    if name in _GIVEN:
        return _GIVEN[name]
    function, _ = load_function(name.removeprefix(OWN_PREFIX))
    return function


def _options(function: Callable[..., Tensor]) -> dict[str, Option | None]:
    """Return the keywords of a loss with their defaults; None where one has to be given.

    Raises:
        TypeError: If the function takes anything but scores and keywords, or a default is neither
            number nor text.
    """
    _, *others = inspect.signature(function).parameters.values()
    options: dict[str, Option | None] = {}
    for each in others:
        if each.kind is not each.KEYWORD_ONLY:
            raise TypeError(
                f"{function.__name__}: expected (scores, *, option=default, ...), got {each}"
            )
        if each.default is each.empty:
            options[each.name] = None
        elif isinstance(each.default, int | float | str):
            options[each.name] = each.default
        else:
            raise TypeError(
                f"{function.__name__}: option {each.name} must have a number or text as its "
                f"default, or none, which requires it; got {each.default!r}"
            )
    return options
