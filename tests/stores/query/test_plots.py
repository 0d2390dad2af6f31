"""Pictures of answers: what is drawn is what the answer says, and nothing of it is obeyed."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from report_cases import ATTACK, RUN_NAME, attack, put

from offpref.pipeline.commands.main import main
from offpref.stores.errors import ReportError
from offpref.stores.query.catalog import open_catalog
from offpref.stores.query.plots import draw, plot, plottable
from offpref.stores.store import Store

# Matplotlib draws in a process of many tests: no window, and no state of its own is used.


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked") / "store"
    store = Store.create(folder)
    attack(store)
    common = {"pair_set": "reviews", "split": "eval", "num_prompts": 10, "num_samples": 4}
    for number, kl in enumerate((1.0, 2.0)):
        rewards = [("helpful", 0.25 + number), ("harmless", 0.5 - number), ("short", 1.0)]
        row = {
            "evaluation_id": bytes([number]) * 16, "name": f"$policy_{number}^", "reverse_kl": kl,
            "rewards": rewards, "reward_errors": [(name, 0.1) for name, _ in rewards],
        }  # fmt: skip
        put(store, "evaluations", [row | common])
    return folder


def answer(store: Path, question: str) -> pa.Table:
    with open_catalog(store) as catalog:
        return catalog.select(question)


@pytest.mark.parametrize("name", plottable())
def test_every_picture_is_a_legible_png_with_units_on_its_axes(
    name: str, attacked: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.png"

    done = CliRunner().invoke(main, ["query", str(attacked), name, "--plot", str(path)])

    assert done.exit_code == 0, done.output
    rows = answer(attacked, name)
    assert done.output == f"plot       {path}: {name}, {rows.num_rows:,} rows\n"
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") >= 800  # pixels across
    for axes in draw(name, rows).axes:
        assert axes.get_xlabel()
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert axes.get_ylabel() or all(names)


def test_curves_have_the_answers_points(attacked: Path) -> None:
    rows = answer(attacked, "curves").to_pylist()

    loss = draw("curves", pa.Table.from_pylist(rows)).axes[0]

    drawn = [list(zip(*line.get_data(), strict=True)) for line in loss.lines]
    for run in (RUN_NAME, "simpo"):
        for split in ("train", "eval"):
            points = [
                (r["step"], r["loss"]) for r in rows if (r["run"], r["split"]) == (run, split)
            ]
            assert len(points) == 2
            assert points in drawn
    assert loss.get_title(loc="left") == "Loss"
    assert loss.get_xlabel() == "Optimizer step"


def test_frontier_draws_reward_against_kl_and_marks_the_best(attacked: Path) -> None:
    rows = [
        row for row in answer(attacked, "frontier").to_pylist() if row["objective"] == "harmless"
    ]

    (axes,) = draw("frontier", pa.Table.from_pylist(rows)).axes

    points = {tuple(line.get_data()[i][0] for i in (0, 1)): line for line in axes.lines}
    assert set(points) == {(1.0, 0.5), (2.0, -0.5)}
    white = [place for place, line in points.items() if line.get_markerfacecolor() == "white"]
    assert white == [(2.0, -0.5)]  # less reward at more KL
    assert [text.get_text() for text in axes.texts] == ["$policy_0^", "$policy_1^"]


def test_line_joins_the_best_of_those_measured_alike(attacked: Path) -> None:
    rows = [
        {"policy": name, "measured_on": "samples", "objective": "helpful", "reward": reward,
         "reward_error": 0.0, "kl": kl, "kl_source": "samples", "is_pareto": True,
         "conditions": [("temperature", temperature)], "left_out": "others"}
        for name, temperature, kl, reward in (
            ("a", "1.0", 1.0, 1.0), ("b", "1.0", 3.0, 3.0), ("c", "0.1", 2.0, 5.0),
            ("d", "0.1", 4.0, 7.0),
        )
    ]  # fmt: skip

    figure = draw("frontier", pa.Table.from_pylist(rows))

    (axes,) = figure.axes
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert sorted(list(line.get_xdata()) for line in dotted) == [[1.0, 3.0], [2.0, 4.0]]
    assert "measured in the same way" in figure.get_suptitle()


def test_pareto_has_a_panel_for_each_other_objective(attacked: Path) -> None:
    figure = draw("pareto", answer(attacked, "pareto"))
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == [
        ("Mean reward, harmless", "Mean reward, helpful"),
        ("Mean reward, harmless", "Mean reward, short"),
    ]
    one = pa.Table.from_pylist(
        [{"policy": "p", "rewards": [("helpful", 0.75)], "is_pareto": True}],
        schema=answer(attacked, "pareto").select(["policy", "rewards", "is_pareto"]).schema,
    )
    (bars,) = draw("pareto", one).axes
    assert [bar.get_width() for bar in bars.patches] == [0.75]


def test_margins_are_boxes_of_the_answers_quantiles(attacked: Path) -> None:
    rows = [row for row in answer(attacked, "margins").to_pylist() if row["split"] == "eval"]

    (axes,) = draw("margins", pa.Table.from_pylist(rows)).axes

    boxes = [patch.get_path().vertices[:, 0] for patch in axes.patches]
    assert [(min(box), max(box)) for box in boxes] == [(r["q25"], r["q75"]) for r in rows]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [RUN_NAME[:37] + "...", "simpo"]


def test_displacement_draws_shares_as_bars(attacked: Path) -> None:
    rows = [row for row in answer(attacked, "displacement").to_pylist() if row["split"] == "eval"]
    (axes,) = draw("displacement", pa.Table.from_pylist(rows)).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [
        row[name] for name in ("chosen_fell", "rejected_fell", "both_fell") for row in rows
    ]


def test_overfit_joins_training_and_held_out_of_a_run(attacked: Path) -> None:
    rows = answer(attacked, "overfit").to_pylist()
    loss = draw("overfit", pa.Table.from_pylist(rows)).axes[0]
    assert [tuple(line.get_xdata()) for line in loss.lines] == [
        (row["train_loss"], row["eval_loss"]) for row in rows
    ]


@pytest.mark.parametrize("name", plottable())
def test_empty_answer_has_nothing_to_draw(name: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    done = CliRunner().invoke(main, ["query", str(store.path), name, "--plot", str(path)])
    assert done.exit_code == 1
    assert done.output == f"Error: {name} has nothing to draw: its answer has no values here\n"
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("question", ["runs", "select 1 as one"])
def test_question_without_a_picture_is_told_which_have_one(
    question: str, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    done = CliRunner().invoke(main, ["query", str(store.path), question, "--plot", str(path)])
    assert done.exit_code == 1
    assert done.output == (
        f"Error: {question!r} has no plot; these questions have: curves, displacement, "
        "frontier, kl_by_position, length_bias, margins, overfit, pareto\n"
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--plot", "p.jpg"], "--plot writes PNG: expected a file named *.png, got p.jpg"),
        (["--plot", "p.png", "--limit", "3"], "--limit has no effect with --plot"),
        (["--plot", "p.png", "--format", "csv"], "--format has no effect with --plot"),
        (["--plot", "p.png", "--output", "x"], "--output has no effect with --plot"),
        (["--list", "--plot", "p.png"], "--plot has no effect without a question"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(
    options: list[str], complaint: str, store: Store
) -> None:
    question = [] if "--list" in options else ["margins"]
    done = CliRunner().invoke(main, ["query", str(store.path), *question, *options])
    assert done.exit_code == 2
    assert complaint in done.output


def test_picture_that_is_there_stays_unless_overwrite_is_given(
    attacked: Path, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_text("mine")
    arguments = ["query", str(attacked), "margins", "--plot", str(path)]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    assert path.read_text() == "mine"
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_parameters_choose_what_is_drawn(attacked: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    arguments = ["query", str(attacked), "margins", "--plot", str(path), "--set", "run=simpo"]
    assert CliRunner().invoke(main, arguments).output.endswith("margins, 2 rows\n")


def test_names_that_no_font_has_are_drawn_without_a_word(tmp_path: Path) -> None:
    table = pa.table(
        {
            "run": ["_\u4f60 $x^$ \U0001f600\0\n" + ATTACK], "split": ["train"], "step": [1],
            "loss": [0.5], "reward_margins": [None], "accuracy": [None], "chosen_logps": [None],
        }
    )  # fmt: skip
    plot("curves", table, tmp_path / "p.png")  # a warning would be an error here
    (named,) = draw("curves", table).legends[0].get_texts()
    assert named.get_text().startswith("_\u4f60 $x^$")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"not installed: pip install 'offpref\[plot\]'"):
        draw("margins", pa.table({}))
