"""What a loss needs of the settings of a run, checked when it is built."""

from dataclasses import dataclass, fields

from offpref.pipeline.settings import (
    ABOVE_ZERO,
    AT_LEAST_ZERO,
    FINITE,
    LOSS,
    LOSS_OPTIONS,
    SHARE,
    Range,
    check_settings,
    check_value,
    setting,
)

from .names import DIVERGENCES, LOSS_TYPES, check_loss_type


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """Which loss a run minimises, or which sum of some, and the options that act on them.

    None stands for what is not given: each loss has defaults of its own.
    """

    loss_type: tuple[str, ...] = setting(
        "Loss; may be repeated: the weighted sum of several. docs/losses.md says which answers "
        "which question; python:MODULE:FUNCTION is one of your own.",
        default=("sigmoid",), choices=LOSS_TYPES, check=check_loss_type,
        section=LOSS,
    )  # fmt: skip
    loss_weights: tuple[float, ...] = setting(
        "Weight of a loss, one for each --loss-type.",
        default=(),
        shown="1",
        range=ABOVE_ZERO,
        section=LOSS,
    )
    loss_option: tuple[str, ...] = setting(
        "An option of a loss of one's own; may be repeated.", default=(), metavar="NAME=VALUE",
        shown="as the function has them",
        section=LOSS, is_rare=True,
    )  # fmt: skip
    beta: float | None = setting(
        "Strength of the pull towards the reference.", default=None, shown="0.1; simpo 2.0",
        range=ABOVE_ZERO,
        section=LOSS_OPTIONS,
    )  # fmt: skip
    label_smoothing: float | None = setting(
        "Share of pairs assumed labelled the wrong way round.", default=None, shown="0",
        range=Range(least=0, below=0.5),
        section=LOSS_OPTIONS,
    )  # fmt: skip
    f_divergence_type: str | None = setting(
        "Divergence that keeps the policy near the reference.", default=None,
        choices=DIVERGENCES, shown="reverse_kl",
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    f_alpha_divergence_coef: float | None = setting(
        "Alpha of alpha_divergence.",
        default=None,
        shown="0.5",
        range=FINITE,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    ld_alpha: float | None = setting(
        "Weight of tokens beyond the length of the shorter completion (LD-DPO).", default=None,
        shown="1", range=SHARE,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    use_weighting: bool = setting(
        "Weigh pairs by how likely the policy would be to write them (WPO).",
        default=False,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    preference_weight: float | None = setting(
        "Weight of the pairs' own preference beside the objectives (MODPO).", default=None,
        shown="1", range=ABOVE_ZERO,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    objective: tuple[str, ...] = setting(
        "Another objective and its weight, NAME=0.2; may be repeated. Its rewards are in the "
        "store.", default=(), shown="none",
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    ipo_reduction: str | None = setting(
        "Whether ipo compares means over tokens or sums.", default=None,
        choices=("mean", "sum"), shown="mean",
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    simpo_gamma: float | None = setting(
        "Margin that simpo asks for.", default=None, shown="beta * gamma-beta-ratio",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    gamma_beta_ratio: float | None = setting(
        "The same, divided by beta.",
        default=None,
        shown="0.25",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    link: str | None = setting(
        "How simpo and modpo turn a margin into a loss.", default=None,
        choices=("sigmoid", "hinge"), shown="sigmoid",
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    sft_weight: float | None = setting(
        "Weight of the chosen completion's likelihood in simpo.", default=None, shown="0",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    tdpo_alpha: float | None = setting(
        "Weight of tdpo2's KL term.",
        default=None,
        shown="0.5",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    rdpo_alpha: float | None = setting(
        "Penalty per token of length in rdpo.",
        default=None,
        shown="0.05",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    discopop_tau: float | None = setting(
        "Temperature of discopop.",
        default=None,
        shown="0.05",
        range=ABOVE_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    orpo_lambda: float | None = setting(
        "Weight of orpo's odds ratio.",
        default=None,
        shown="0.1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    cpo_lambda: float | None = setting(
        "Weight of the chosen completion's likelihood in cpo.", default=None, shown="1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    cpo_reduction: str | None = setting(
        "Whether that likelihood is a mean over tokens or a sum.", default=None,
        choices=("mean", "sum"), shown="mean",
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    slic_delta: float | None = setting(
        "Margin that slic asks for, in nats.",
        default=None,
        shown="1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    slic_lambda: float | None = setting(
        "Weight of the chosen completion's likelihood in slic.", default=None, shown="0.1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    rrhf_lambda: float | None = setting(
        "Weight of the chosen completion's likelihood in rrhf.", default=None, shown="1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS, is_rare=True,
    )  # fmt: skip
    kto_desirable_weight: float | None = setting(
        "Weight of chosen completions in kto.",
        default=None,
        shown="1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    kto_undesirable_weight: float | None = setting(
        "Weight of rejected completions in kto.",
        default=None,
        shown="1",
        range=AT_LEAST_ZERO,
        section=LOSS_OPTIONS,
        is_rare=True,
    )
    unlikelihood_alpha: float | None = setting(
        "Weight of the rejected completion in unlikelihood.",
        default=None,
        shown="1",
        range=SHARE,
        section=LOSS_OPTIONS,
        is_rare=True,
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):  # one loss may be given by its name
            object.__setattr__(self, "loss_type", (self.loss_type,))
        check_settings(self)

    def given(self) -> dict[str, object]:
        """Return what was given of the options and modifiers, by name."""
        values = {name: getattr(self, name) for name in LOSS_SETTINGS if name != "loss_type"}
        return {k: v for k, v in values.items() if v is not None and v is not False and v != ()}


LOSS_SETTINGS = tuple(each.name for each in fields(LossSettings))
"""Names of all that a loss needs of the settings."""


def check_option(name: str, value: object) -> None:
    """Check one option of a loss by itself.

    Raises:
        ValueError: If it is not a choice, or is out of range.
    """
    known = LossSettings.__dataclass_fields__.get(name)
    if known is not None:  # a loss of one's own has options of its own
        check_value(known, value)
