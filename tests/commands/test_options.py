"""Options come from the settings, and a file's values are options."""

from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands import main as module
from offpref.pipeline.commands import query
from offpref.pipeline.commands.options import command, options_of, settings_from
from offpref.pipeline.evaluation.settings import EvaluateSettings, SampleSettings
from offpref.pipeline.losses.settings import LOSS_SETTINGS
from offpref.pipeline.rewards.settings import RewardSettings, RewardTrainSettings
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.settings import Range, check_settings, setting
from offpref.pipeline.training.settings import TrainSettings
from offpref.stores.query import formats


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Some settings."""

    name: str | None = setting("A name.", default=None, shown="none")
    share: float = setting("A share.", default=0.5, range=Range(least=0, below=1))
    kinds: tuple[str, ...] = setting("Kinds.", default=(), choices=("round", "square"))
    day: date | None = setting("A day.", default=None)
    folder: Path = setting("A folder.")

    def __post_init__(self) -> None:
        check_settings(self)


def run(*arguments: str) -> tuple[Sizes | None, str]:
    """Return the settings that a command of these options makes of a command line."""
    made: list[Sizes] = []

    @command(options_of(Sizes), name="size", takes_store=False, takes_config=True)
    def size(**options: object) -> None:
        """Take sizes."""
        made.append(settings_from(Sizes, options))

    result = CliRunner().invoke(size, arguments)
    return (made[0] if made else None), result.output


def test_what_is_given_becomes_settings_and_the_rest_keeps_its_default() -> None:
    found, _ = run("--folder", "x", "--kinds", "round", "--kinds", "square", "--day", "2026-01-02")

    assert found == Sizes(folder=Path("x"), kinds=("round", "square"), day=date(2026, 1, 2))


def test_help_has_required_options_first_with_defaults_choices_and_ranges() -> None:
    _, text = run("--help")

    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert options == [
        "--folder", "--name", "--share", "--kinds", "--day", "--config", "--verbose",
        "--help",
    ]  # fmt: skip
    assert "[required]" in text
    assert "A name.  [default: none]" in text
    assert "[default: 0.5; 0<=x<1]" in text
    assert "[round|square]" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", "1"), "share must be in [0, 1), got 1.0"),
        (("--share", "inf"), "share must be finite, got inf"),
        (
            ("--kinds", "rond"),
            "kinds must be one of round, square, got 'rond'; did you mean round?",
        ),
        (("--day", "soon"), "expected a day as YYYY-MM-DD, got 'soon'"),
    ],
)
def test_values_are_what_the_settings_take(arguments: tuple[str, ...], message: str) -> None:
    found, text = run("--folder", "x", *arguments)

    assert found is None
    assert message in text.splitlines()[-1]


def test_a_file_gives_values_by_the_options_names(tmp_path: Path) -> None:
    config = tmp_path / "size.toml"
    config.write_text('[size]\nfolder = "x"\nkinds = "square"\nday = 2026-01-02\n')

    found, _ = run("--config", str(config), "--share", "0.25")

    assert found == Sizes(folder=Path("x"), kinds=("square",), day=date(2026, 1, 2), share=0.25)


COMMANDS: dict[str, tuple[type, ...]] = {
    "add": (AddSettings,),
    "score": (ScoreSettings,),
    "reward": (RewardSettings,),
    "train": (TrainSettings,),
    "train-reward": (RewardTrainSettings,),
    "evaluate": (EvaluateSettings, SampleSettings),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_and_its_setting_are_one_word(name: str) -> None:
    found = module.main.commands[name].params
    options = {option.name: option.opts[-1] for option in found if isinstance(option, click.Option)}

    for kind in COMMANDS[name]:
        for each in fields(kind):
            if "help" in each.metadata and each.name != "kind":  # --from: a word of Python's own
                assert options[each.name] == f"--{each.name.replace('_', '-')}"


def test_sft_has_the_options_of_train_without_those_of_losses() -> None:
    train, sft = (
        {each.name for each in module.main.commands[name].params} for name in ("train", "sft")
    )

    assert train - sft == {*LOSS_SETTINGS, "reference", "kl_tier", "kl_metrics"}


def test_query_offers_the_formats_that_there_are() -> None:
    assert query.FORMATS == formats.FORMATS
