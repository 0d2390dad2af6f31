"""The report's results: the questions' numbers, what is left out and why, and how runs look."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex
from matplotlib.text import Text
from numpy.typing import NDArray
from report_cases import REFERENCE, Page, put_run, report
from report_results import NAMES, put_evaluation, put_results

from offpref.pipeline.commands.main import main
from offpref.stores.errors import QueryRefusedError
from offpref.stores.query.catalog import Catalog, open_catalog
from offpref.stores.query.plots import draw
from offpref.stores.query.run_colours import DARK, LIGHT, SYMBOLS, run_numbers, symbol_of
from offpref.stores.store import Store


@pytest.fixture(scope="module")
def page(results: Store) -> Page:
    return report(results)


def results_of(page: Page) -> dict[str, dict[str, object]]:
    return {run["label"]: run["result"] for run in page.values["runs"]}


def test_colour_and_shape_of_sixty_four_runs_differ() -> None:
    looks = {(LIGHT[n % len(LIGHT)], symbol_of(n)) for n in range(64)}

    assert len(looks) == 64


# Numbers.


def test_results_are_those_of_the_questions(results: Store, page: Page) -> None:
    found = results_of(page)
    assert list(found) == list(NAMES)
    with Catalog(results) as catalog:
        best = {row["run"]: row for row in catalog.select("best").to_pylist()}
        losses = {
            row["run"]: row["loss"]
            for row in catalog.select("accuracy").to_pylist()
            if row["split"] == "eval"
        }
        every = catalog.select("frontier").to_pylist()
    frontier = [row for row in every if row["measured_on"] == "samples"]
    points = {
        each["label"]: each
        for source in page.json("charts")["frontiers"]
        if source["source"] == "held out"
        for each in source["points"]
    }
    for row in every:
        if row["objective"] == "rewards/accuracies" and row["policy"] != "ties":
            point = points[row["policy"]]
            assert point["values"]["accuracy"] == pytest.approx(row["reward"], abs=1e-4)
            if row["reward_error"]:
                error = pytest.approx(row["reward_error"], abs=1e-4)
                assert point["errors"]["accuracy"] == error

    assert {run for run, result in found.items() if "accuracy" in result} == set(best)
    names = ("rank", "accuracy", "accuracy_error", "is_tied")
    for run, row in best.items():
        assert {each: found[run][each] for each in names} == {each: row[each] for each in names}
        if row["pair_set"].startswith("other@"):  # its KL is of pairs alone, as `best` says
            assert found[run]["kl"] == row["kl"]
    assert found["beta-2"]["accuracy"] == 0.75
    assert {run: found[run].get("loss") for run in losses} == losses
    for row in frontier:
        if row["policy"] in found:
            mean, error = found[row["policy"]]["rewards"][row["objective"]]  # type: ignore[index]
            assert (mean, error) == (row["reward"], pytest.approx(row["reward_error"], abs=1e-4))


def test_kl_of_samples_counts_where_all_of_these_runs_have_it(page: Page) -> None:
    found = results_of(page)
    kls = {run: (found[run]["kl"], found[run]["kl_source"]) for run in ("beta-2", "beta-10")}
    assert kls == {"beta-2": (1.5, "samples"), "beta-10": (3.0, "samples")}
    assert found["elsewhere"]["kl_source"] == "exact"


def test_accuracy_that_nothing_tells_is_not_there(page: Page) -> None:
    found = results_of(page)
    assert "accuracy" not in found["ties"]
    assert found["fresh"] == {}


def test_kl_of_the_reference_is_0_by_definition(results: Store, page: Page, store: Store) -> None:
    (points, *_) = page.json("charts")["frontiers"]
    (base,) = [point for point in points["points"] if point["label"] == "base"]
    assert base["is_reference"]
    assert base["values"]["reverse_kl"] == 0
    assert "reverse_kl" not in base["errors"]
    assert [point["is_reference"] for point in points["points"]].count(True) == 1

    put_run(store, b"\x01" * 16, "sft")
    put_evaluation(store, 1, "sft", 0.5, 1e-7, run_id=b"\x01" * 16, policy=REFERENCE)
    (result,) = results_of(report(store)).values()
    assert (result["kl"], result["kl_error"], result["kl_source"]) == (0, None, "definition")


# What is left out.


def test_runs_that_are_left_out_are_named_with_the_reason(results: Store, page: Page) -> None:
    left_out = {each["name"]: each["why"] for each in page.values["left_out"]}
    assert left_out.pop("elsewhere@060606060606") == (
        "a dead attempt, interrupted: a later run has its name"
    )
    assert re.fullmatch(r"put away since \d{4}-\d\d-\d\d \d\d:\d\d", left_out.pop("gone"))
    assert left_out == {}
    assert {each["name"]: each["why"] for each in page.values["not_ranked"]} == {
        "ties": "all held-out margins are ties",
        "fresh": "no held-out pairs were measured",
        "elsewhere": "measured on other pairs, of other@" + "b" * 12,
    }

    part = report(results, run_names=("beta-2",)).values
    reasons = {each["name"]: each["why"] for each in part["left_out"]}
    assert reasons["beta-10"] == "not chosen by --run"
    assert reasons["elsewhere@060606060606"].startswith("a dead attempt")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("beta-*",), ["beta-2", "beta-10", "beta-0.5"]),
        (("beta-2,fresh",), ["beta-2", "fresh"]),
        (("fresh", "0202"), ["beta-10", "fresh"]),
        (("elsewhere@060606060606",), ["elsewhere@060606060606"]),
    ],
    ids=["a pattern", "a list", "the beginning of an id", "a dead attempt by its own name"],
)
def test_runs_are_named_as_questions_name_them(
    results: Store, names: tuple[str, ...], expected: list[str]
) -> None:
    page = report(results, run_names=names)
    assert [run["label"] for run in page.values["runs"]] == expected
    with pytest.raises(QueryRefusedError, match=r"no run is called 'bta-2'.*did you mean beta-2\?"):
        report(results, run_names=("bta-2",))


def test_rewards_that_were_measured_differently_are_named(store: Store) -> None:
    put_results(store)
    assert report(store).values["unlike_objectives"] == []
    put_evaluation(store, 50, "p", 0.5, 1.5, run_id=b"\x01" * 16, num_prompts=9)
    assert report(store).values["unlike_objectives"] == ["brief", "helpful"]


def test_settings_that_tell_most_come_first(page: Page) -> None:
    # The usual ones in their order; then those with the most values.
    assert page.values["settings"] == ["loss_type", "beta", "learning_rate"]
    assert page.values["runs"][1]["differs"] == {
        "loss_type": "sigmoid", "beta": "10", "learning_rate": "0.0001"
    }  # fmt: skip


# Looks.


def test_a_run_keeps_its_look_whichever_runs_are_shown_and_on_pictures(
    results: Store, page: Page, tmp_path: Path
) -> None:
    numbers = {run["label"]: run["number"] for run in page.values["runs"]}
    assert numbers == {run: number for number, run in enumerate(NAMES)}
    (part,) = report(results, run_names=("beta-0.5",)).values["runs"]
    assert part["number"] == 2

    with open_catalog(results.path) as catalog:
        every = run_numbers(catalog.named_runs())
        answer = catalog.select("frontier", parameters={"run": "beta-0.5", "objective": "helpful"})
    assert every["elsewhere@060606060606"] == 6  # a dead attempt takes no colour from others
    (bar,) = draw("frontier", answer, numbers=every).axes[0].containers
    assert to_hex(bar.lines[0].get_color()) == LIGHT[2]
    assert bar.lines[0].get_marker() == "D" == {"diamond": "D"}[SYMBOLS[2]]
    path = tmp_path / "margins.png"
    asked = ["query", str(results.path), "margins", "--set", "run=beta-0.5", "--plot", str(path)]
    assert CliRunner().invoke(main, asked).exit_code == 0
    pixels = _pixels(path)
    wanted = np.array([int(LIGHT[2][at : at + 2], 16) for at in (1, 3, 5)])
    assert (np.abs(pixels - wanted).max(axis=-1) == 0).sum() > 100
    other = np.array([int(LIGHT[0][at : at + 2], 16) for at in (1, 3, 5)])
    assert (np.abs(pixels - other).max(axis=-1) == 0).sum() == 0


def test_names_on_a_picture_do_not_overlap() -> None:
    rows = [
        {"policy": f"policy-with-a-name-{number}", "measured_on": "samples", "objective": "a",
         "reward": number % 3 + number / 1000, "reward_error": 0.1, "kl": number % 3 + number / 500,
         "kl_source": "samples", "is_pareto": number % 2 == 0, "conditions": "", "left_out": None}
        for number in range(9)
    ]  # fmt: skip
    figure = draw("frontier", pa.Table.from_pylist(rows))
    figure.draw_without_rendering()

    names = [Text.get_window_extent(each) for each in figure.axes[0].texts]  # without their lines

    assert len(names) == 9
    for place, one in enumerate(names):
        assert not any(one.overlaps(other) for other in names[place + 1 :])


def _pixels(path: Path) -> NDArray[np.int_]:
    from matplotlib.image import imread

    return np.rint(imread(path)[..., :3] * 255).astype(int)


# Machado, Oliveira and Fernandes 2009, full severity, in linear RGB.
VISIONS = {
    "usual": np.eye(3),
    "no red": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "no green": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                          [-0.011820, 0.042940, 0.968881]]),
    "no blue": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                         [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def _oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                      [0.2119034982, 0.6806995451, 0.1073969566],
                      [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    axes = np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                     [1.9779984951, -2.4285922050, 0.4505937099],
                     [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    found: NDArray[np.float64] = np.cbrt(linear @ cones.T) @ axes.T
    return found


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(
    ("colours", "ground"), [(LIGHT, "#ffffff"), (DARK, "#1a1c20")], ids=["light", "dark"]
)
def test_colours_of_runs_are_told_apart_by_every_reader(
    colours: tuple[str, ...], ground: str, vision: str
) -> None:
    shares = np.array([[int(each[at : at + 2], 16) / 255 for at in (1, 3, 5)]
                       for each in (*colours, ground)])  # fmt: skip
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    *light, behind = linear @ np.array([0.2126, 0.7152, 0.0722]) + 0.05
    assert min(max(each / behind, behind / each) for each in light) >= 3

    seen = _oklab(np.clip(linear[:-1] @ VISIONS[vision].T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
    assert apart.min() >= 0.12  # the colours before had 0.018: three looked alike
