"""Help: a screen of commands, sections of options, and what acts on a loss."""

import re
from typing import Any

import click
import pytest
from click.testing import CliRunner

from offpref.pipeline.commands.help import MANY, SettingCommand
from offpref.pipeline.commands.main import main
from offpref.pipeline.commands.stages import SENTENCES
from offpref.pipeline.commands.start import VERBS
from offpref.pipeline.losses.acting import acting_settings
from offpref.pipeline.losses.names import LOSS_TYPES
from offpref.pipeline.losses.settings import LOSS_SETTINGS, LossSettings
from offpref.pipeline.losses.training_loss import training_loss
from offpref.pipeline.nearest_words import ALIASES
from offpref.pipeline.settings import DEVICES, SECTIONS

LONG = [name for name, each in main.commands.items() if len(each.params) > MANY]
TRAIN_SECTIONS = (
    "Data", "Loss", "Options of losses", "Schedule", "Precision and memory", "Adapters",
    "Measuring", "Output",
)  # fmt: skip


def shown(*arguments: str) -> str:
    """Return what a command line prints, at 80 columns."""
    done = CliRunner().invoke(main, arguments, terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.stdout


def options_in(text: str) -> dict[str, list[str]]:
    """Return the options of each section, by its heading."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.splitlines():
        if re.match(r"\w.*:$", line):
            section = line.rstrip(":")
        elif option := re.match(r"  (?:\* |  )?(?:-\w, )?(--[\w-]+)", line):
            found.setdefault(section, []).append(option[1])
    return found


def test_the_list_of_commands_is_a_screen_of_whole_sentences() -> None:
    lines = shown("--help").splitlines()

    assert len(lines) <= 23  # the 24th is the prompt's
    assert max(map(len, lines)) <= 80
    listed = {}
    for line in lines:
        if row := re.fullmatch(r"(?:\w+)? +([a-z-]+) +([A-Z].*)", line):
            listed[row[1]] = row[2]
    assert listed == dict(SENTENCES)
    assert all(re.fullmatch(r"[A-Z][^.]*[^.]\.", each) for each in listed.values())


def test_the_list_has_every_command_and_each_but_the_demo_starts_alone() -> None:
    assert set(SENTENCES) == set(main.commands) == {*VERBS, "demo"}


def test_train_has_its_sections_in_order() -> None:
    assert tuple(options_in(shown("train", "--help"))) == (*TRAIN_SECTIONS, "Common to commands")


@pytest.mark.parametrize("name", LONG)
def test_every_option_of_a_long_command_has_a_section(name: str) -> None:
    command = main.commands[name]
    assert isinstance(command, SettingCommand)
    common = {"verify", "config", "verbose", "help_all"}

    without = [
        each.name for each in command.params
        if isinstance(each, click.Option) and getattr(each, "section", None) not in SECTIONS
        and each.name not in common
    ]  # fmt: skip

    assert not without


@pytest.mark.parametrize("name", LONG)
def test_help_all_has_every_option_once(name: str) -> None:
    found = [each for own in options_in(shown(name, "--help-all")).values() for each in own]

    options = [each for each in main.commands[name].params if isinstance(each, click.Option)]
    wanted = {
        next(o for o in each.opts if o.startswith("--")) for each in options if not each.hidden
    }
    assert sorted(found) == sorted({*wanted, "--help"})


def test_help_says_how_to_see_the_rest() -> None:
    brief, whole = shown("train", "--help"), shown("train", "--help-all")

    num_hidden = sum(map(len, options_in(whole).values())) - sum(
        map(len, options_in(brief).values())
    )
    said = " ".join(brief.split())
    assert f"--help-all also shows the {num_hidden} options that few runs need" in said
    assert "--loss-type NAME --help shows those that act on a loss." in said
    assert "--tdpo-alpha" not in brief
    assert "--tdpo-alpha" in whole


@pytest.mark.parametrize(
    "order", [("--loss-type", "tdpo2", "--help"), ("--help", "--loss-type", "tdpo2")]
)
def test_help_beside_a_loss_marks_what_acts_on_it(order: tuple[str, ...]) -> None:
    text = shown("train", *order)

    marked = re.findall(r"^  \* (--[\w-]+)", text, re.MULTILINE)
    assert {each.lstrip("-").replace("-", "_") for each in marked} == acting_settings(["tdpo2"])
    _, _, wrong = text.partition("An error with tdpo2, on which they have no effect: ")
    names = {each.replace("_", "-") for each in LOSS_SETTINGS}
    assert set(re.findall(r"--([\w-]+)", wrong.replace("\n", "").partition(".")[0])) == {
        each for each in names if f"--{each}" not in marked
    }


def test_help_beside_a_wrong_loss_is_one_line() -> None:
    done = CliRunner().invoke(main, ["train", "--loss-type", "dpo", "--help"])

    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith("got 'dpo'; did you mean sigmoid?")


VALUES: dict[str, Any] = {
    "loss_weights": (2.0,), "loss_option": ("x=1",), "beta": 0.3, "label_smoothing": 0.1,
    "f_divergence_type": "forward_kl", "f_alpha_divergence_coef": 0.3, "ld_alpha": 0.5,
    "use_weighting": True, "preference_weight": 0.7, "objective": ("o=0.1",),
    "ipo_reduction": "sum", "cpo_reduction": "sum", "link": "hinge",
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "f_alpha_divergence_coef": {"f_divergence_type": "alpha_divergence"},
    "preference_weight": {"objective": ("o=0.1",)},
}
NEEDED: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 0.001}, "modpo": {"objective": ("o=0.1",)},
    "ipo": {"ipo_reduction": "sum"},
}  # fmt: skip
"""What a setting, and what a loss, cannot be without."""


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_what_acts_on_a_loss_is_what_training_takes(loss: str) -> None:
    taken = {"loss_type"}
    for name in set(LOSS_SETTINGS) - taken:
        given = {**NEEDED.get(loss, {}), **BESIDE.get(name, {}), name: VALUES.get(name, 0.3)}
        try:
            training_loss(LossSettings(loss_type=(loss,), **given))
        except ValueError:
            continue
        taken.add(name)

    assert acting_settings([loss]) == taken


def test_what_acts_on_a_sum_acts_on_one_of_its_losses() -> None:
    assert "simpo_gamma" in acting_settings(["sigmoid", "simpo"])
    assert "f_divergence_type" in acting_settings(["sigmoid", "sft"])
    assert "f_divergence_type" not in acting_settings(["sigmoid", "kto"])


def test_every_word_of_another_tool_leads_to_one_of_ours() -> None:
    params = [each for command in main.commands.values() for each in command.params]
    values = [word for each in params for word in getattr(each.type, "choices", ())]
    words = {*(str(each.name) for each in params), *values, *main.commands, *DEVICES}
    known = {each.replace("-", "_") for each in words}

    strangers = [
        word for word, ours in ALIASES.items()
        if not all(each.replace("-", "_") in known for each in ours)
    ]  # fmt: skip

    assert not strangers


@pytest.mark.parametrize("name", ["store", "config"])
def test_the_list_of_a_group_has_whole_sentences(name: str) -> None:
    assert "..." not in shown(name, "--help").partition("Commands:")[2]
