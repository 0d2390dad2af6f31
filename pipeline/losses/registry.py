"""The losses by name: what each needs, and which options act on it.

``LOSSES`` is the registry; the functions are in :mod:`pair_losses` and :mod:`list_losses`, the
options with their ranges and help in :mod:`settings`. A new loss is a function, an entry here, its
name in ``names.LOSS_TYPES``, and a row of docs/losses.md. What a run minimises, one loss or
several, is :mod:`training_loss`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from . import list_losses, pair_losses
from .names import Sides, check_loss_type
from .pair_scores import PairScores
from .settings import check_option

Option = float | str
PairLoss = Callable[..., Tensor]
Rewards = Literal["logratios", "forward_kl", "logps", "mean_logps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a loss needs, and what acts on it."""

    function: PairLoss
    """Takes a :class:`PairScores` and the options, returns [N]."""
    options: Mapping[str, Option | None]
    """The options that act, with their defaults."""
    needs_reference: bool = True
    """Whether stored scores of a reference are needed."""
    sides: Sides = "both"
    """Completions that a pair must have: both, the chosen one (the other is not computed), any;
    or ``list``: all completions of a ranked list take a pair's place."""
    needs_forward_kl: bool = False
    """Whether the reference's whole distribution is needed: tier ``hidden`` or ``topk``."""
    needs_kl_pairs: bool = False
    """Whether mismatched sequences and their stored scores are needed."""
    couples: bool = False
    """Whether the loss of a pair depends on the other pairs of its step."""
    takes_divergence: bool = False
    """Whether another f-divergence can take the reverse KL's place."""
    takes_objectives: bool = False
    """Whether margin rewards of other objectives enter it."""
    takes_ld_alpha: bool = False
    """Whether tokens beyond the shorter completion's length can weigh less."""
    rewards: Rewards | None = "logratios"
    """What times beta, or 1 where there is none, is logged as rewards; None for nothing.
    ``forward_kl`` is Delta + D."""

    @property
    def needs(self) -> str:
        """What it needs of the store, for a person."""
        if not self.needs_reference:
            return f"nothing but {'lists' if self.sides == 'list' else 'pairs'}"
        more = [("tier hidden or topk", self.needs_forward_kl), ("KL pairs", self.needs_kl_pairs)]
        first = "scores of lists" if self.sides == "list" else "scores"
        return ", ".join([first, *(what for what, is_needed in more if is_needed)])

    @property
    def shown_options(self) -> list[str]:
        """The options that act, each with its default."""
        return [k if v is None else f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                for k, v in self.options.items()]  # fmt: skip


def _dpo(function: PairLoss, **options: Option | None) -> Loss:
    """Return a loss on the difference of two scores, which may be f'(exp Delta) and have margins.

    A term of the prompt alone cancels there. It does not in a loss of single completions.
    """
    return Loss(
        function=function, options={"beta": 0.1, **options},
        takes_divergence=True, takes_objectives=True, takes_ld_alpha=True,
    )  # fmt: skip


def _single(function: PairLoss) -> Loss:
    """Return a loss on Delta of each completion by itself."""
    return Loss(function=function, options={"beta": 0.1}, takes_ld_alpha=True)


def _aot(function: PairLoss) -> Loss:
    options = {"beta": 0.1, "label_smoothing": 0.0}
    return Loss(function=function, options=options, couples=True, takes_ld_alpha=True)


def _tdpo(function: PairLoss, **options: Option | None) -> Loss:
    return Loss(
        function=function, options={"beta": 0.1, **options}, needs_forward_kl=True,
        takes_objectives=True, rewards="forward_kl",
    )  # fmt: skip


def _free(function: PairLoss, rewards: Rewards | None, **options: Option | None) -> Loss:
    """Return a loss that needs no reference."""
    return Loss(function=function, options=options, needs_reference=False, rewards=rewards)


def _list(function: PairLoss) -> Loss:
    """Return a loss on Delta of all completions of a list."""
    return Loss(function=function, options={"beta": 0.1}, sides="list")


LOSSES: dict[str, Loss] = {
    "sigmoid": _dpo(pair_losses.sigmoid, label_smoothing=0.0),
    "ipo": _dpo(pair_losses.ipo, ipo_reduction="mean"),
    "hinge": _dpo(pair_losses.hinge),
    "robust": _dpo(pair_losses.robust, label_smoothing=0.0),
    "exo_pair": _dpo(pair_losses.exo_pair, label_smoothing=None),
    "nca_pair": _single(pair_losses.nca_pair),
    "bco_pair": _single(pair_losses.bco_pair),
    "sppo_hard": _single(pair_losses.sppo_hard),
    "aot": _aot(pair_losses.aot),
    "aot_unpaired": _aot(pair_losses.aot_unpaired),
    "apo_zero": _single(pair_losses.apo_zero),
    "apo_down": _single(pair_losses.apo_down),
    "discopop": _dpo(pair_losses.discopop, discopop_tau=0.05),
    "sigmoid_norm": Loss(
        function=pair_losses.sigmoid_norm, options={"beta": 0.1},
        takes_divergence=True, takes_ld_alpha=True,
    ),
    "tdpo1": _tdpo(pair_losses.tdpo1),
    "tdpo2": _tdpo(pair_losses.tdpo2, tdpo_alpha=0.5),
    "modpo": _dpo(pair_losses.modpo, label_smoothing=0.0, link="sigmoid"),
    "simpo": _free(
        pair_losses.simpo, "mean_logps", beta=2.0, simpo_gamma=None, gamma_beta_ratio=0.25,
        label_smoothing=0.0, link="sigmoid", sft_weight=0.0,
    ),
    "orpo": _free(pair_losses.orpo, "mean_logps", orpo_lambda=0.1),
    "cpo": _free(
        pair_losses.cpo, "logps", beta=0.1, label_smoothing=0.0, cpo_lambda=1.0,
        cpo_reduction="mean",
    ),
    "slic": _free(pair_losses.slic, "logps", slic_delta=1.0, slic_lambda=0.1),
    "rrhf": _free(pair_losses.rrhf, "mean_logps", rrhf_lambda=1.0),
    "kto": Loss(
        function=pair_losses.kto,
        options={"beta": 0.1, "kto_desirable_weight": 1.0, "kto_undesirable_weight": 1.0},
        sides="any", needs_kl_pairs=True, couples=True,
    ),
    "rdpo": _dpo(pair_losses.rdpo, rdpo_alpha=0.05),
    "sft": Loss(
        function=pair_losses.sft, options={}, needs_reference=False, sides="chosen", rewards=None
    ),
    "unlikelihood": _free(pair_losses.unlikelihood, "logps", unlikelihood_alpha=1.0),
    "plackett_luce": _list(list_losses.plackett_luce),
    "lambda_loss": _list(list_losses.lambda_loss),
}  # fmt: skip

OPTION_NAMES = tuple(dict.fromkeys(name for loss in LOSSES.values() for name in loss.options))


def loss_options(
    name: str, given: Mapping[str, Option | None], loss: Loss | None = None
) -> dict[str, Option]:
    """Return the arguments of a loss: its defaults, and what was given instead.

    Args:
        name: A key of ``LOSSES``.
        given: Options by name; None where an option was not given.
        loss: What a loss of one's own declares; None for one of ``LOSSES``.

    Raises:
        ValueError: If there is no such loss, an option cannot act on it or is missing, or a value
            is out of range.

    >>> loss_options("sigmoid", {"beta": 0.5})
    {'beta': 0.5, 'label_smoothing': 0.0}
    """
    check_loss_type(name)
    known = LOSSES[name] if loss is None else loss
    wanted = {key: value for key, value in given.items() if value is not None}
    for key in wanted:
        if key not in known.options:
            acting = ", ".join(known.options) or "none"
            raise ValueError(f"{key} has no effect on {name}; options that do: {acting}")
    options = {**known.options, **wanted}
    for key, value in options.items():
        if value is not None:
            check_option(key, value)
        elif loss is not None:
            raise ValueError(f"{name} needs {key}: --loss-option {key}=VALUE")
    _settle_options(name, options, wanted)
    return {key: value for key, value in options.items() if value is not None}


def implicit_rewards(
    loss: Loss, scores: PairScores, options: Mapping[str, Option]
) -> tuple[Tensor, Tensor] | None:  # [N], [N]
    """Return the rewards of chosen and rejected that are logged, detached; None if there are none.

    That is b Delta; b a without a reference and with means over tokens; b (Delta + D) for TDPO,
    which is its authors' convention and knows no alpha; MODPO's r where there are objectives.
    """
    kind = loss.rewards
    if kind is None:
        return None
    beta = float(options.get("beta", 1.0))
    if kind == "mean_logps":
        chosen, rejected = scores.chosen_mean_logps, scores.rejected_mean_logps
    elif kind == "logps":
        chosen, rejected = scores.policy_chosen_logps, scores.policy_rejected_logps
    else:
        chosen, rejected = scores.chosen_logratios, scores.rejected_logratios
    if kind == "forward_kl" and scores.chosen_forward_kl is not None:
        assert scores.rejected_forward_kl is not None
        chosen, rejected = chosen + scores.chosen_forward_kl, rejected + scores.rejected_forward_kl
    chosen, rejected = beta * chosen.detach(), beta * rejected.detach()
    return (
        scores.subtract_objectives(chosen, "chosen"),
        scores.subtract_objectives(rejected, "rejected"),
    )


def _settle_options(
    name: str, options: dict[str, Option | None], wanted: Mapping[str, Option]
) -> None:
    """Replace simpo's ratio by gamma itself, and refuse what is missing or cannot act together.

    Args:
        name: Of the loss.
        options: Its options, changed in place; None where one has neither value nor default.
        wanted: What was given.

    Raises:
        ValueError: If an option is missing, or two cannot act together.
    """
    if name == "exo_pair" and not options["label_smoothing"]:
        raise ValueError(
            "exo_pair needs label_smoothing above 0, got "
            f"{options['label_smoothing'] or 'none'}; its authors take 0.001"
        )
    if options.get("link") == "hinge" and wanted.get("label_smoothing"):
        raise ValueError("label_smoothing has no effect with link hinge")
    if name == "simpo":
        _settle_simpo(options, wanted)


def _settle_simpo(options: dict[str, Option | None], wanted: Mapping[str, Option]) -> None:
    if "simpo_gamma" in wanted and "gamma_beta_ratio" in wanted:
        raise ValueError("simpo_gamma and gamma_beta_ratio set the same thing; give one of them")
    ratio, beta = options.pop("gamma_beta_ratio"), options["beta"]
    if options["simpo_gamma"] is None:
        assert isinstance(ratio, float | int)
        assert isinstance(beta, float | int)
        options["simpo_gamma"] = ratio * beta
