"""`import offpref`: every verb does what the command of its name does, and its result speaks."""

import os
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import offpref
from offpref.pipeline.commands.main import main
from offpref.pipeline.small_world import write_pairs

QUICK = {"pairs_per_step": 8, "max_steps": 3, "learning_rate": 1e-3}


@pytest.fixture
def store(scored: Any) -> offpref.OpenStore:
    return offpref.open(scored.path, progress=False)


def test_a_session_from_data_to_answers(
    pairs_file: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = offpref.open(tmp_path / "store", create=True, progress=False)

    pairs = store.add(pairs_file, pair_set="new", tokenizer=model_dir, eval_fraction=0.2)
    again = store.add([str(pairs_file)], pair_set="new", tokenizer=str(model_dir),
                      eval_fraction=0.2)  # fmt: skip
    scores = store.score(pairs, model=model_dir)
    rewards = store.reward(pairs, objective="brevity", kind="brevity")
    run = store.train(pairs, model=model_dir, output_dir=tmp_path / "dpo", eval_every=3, **QUICK)
    tuned = store.sft(pairs, model=model_dir, output_dir=tmp_path / "sft", **QUICK)
    measures = store.evaluate(pairs, model=run, reference=model_dir, num_samples=0)

    assert (pairs.is_new, again.is_new, str(pairs)) == (True, False, str(again))
    assert scores.num_new == scores.num_sequences > 0
    assert store.score(pairs, model=model_dir).num_new == 0
    assert rewards.num_new > 0
    assert (run.output_dir / "model.safetensors").exists()
    assert (tuned.output_dir / "model.safetensors").exists()
    assert run.metrics["loss"] != pytest.approx(0.693147, abs=1e-5)
    assert "rewards/accuracies" in run.held_out
    assert not any(line.startswith("samples") for line in measures.lines)
    assert measures.accuracy is not None
    assert 0 <= measures.accuracy <= 1
    assert [row["run"] for row in store.runs().rows()] == ["sft", "dpo"]
    assert [str(each) for each in store.pairs()] == [str(pairs)]
    assert capsys.readouterr().out == ""


def test_verbs_print_what_the_commands_print(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    run = store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)
    printed = CliRunner().invoke(
        main, ["train", str(store.path), "--pair-set", "reviews", "--model", str(model_dir),
               "--output-dir", str(tmp_path / "a"), "--pairs-per-step", "8", "--max-steps", "3",
               "--learning-rate", "1e-3", "--resume"],
    ).stdout  # fmt: skip

    again = store.train("reviews", model=model_dir, output_dir=tmp_path / "a", resume=True, **QUICK)

    assert repr(again) == printed.rstrip()
    assert repr(run).splitlines()[0].startswith(f"run        a@{run.run_id[:12]}")
    assert run._repr_html_().startswith("<pre>run ")


def test_answers_are_rows_tables_and_relations(store: offpref.OpenStore) -> None:
    question = "select split, count(*) as n from pairs group by split order by split"

    answer, relation = store.query(question), store.sql(question)

    assert answer.rows() == [{"split": "eval", "n": 10}, {"split": "train", "n": 70}]
    assert relation.fetchall() == [("eval", 10), ("train", 70)]
    assert answer.df()["n"].tolist() == relation.df()["n"].tolist() == [10, 70]
    assert answer.arrow().column_names == answer.columns == ["split", "n"]
    assert len(answer) == 2
    assert repr(answer).splitlines() == ["split   n", "eval   10", "train  70"]
    assert "<td>eval</td><td>10</td>" in answer._repr_html_()


def test_runs_are_labelled_put_away_and_shown_again(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)
    store.train("reviews", model=model_dir, output_dir=tmp_path / "b", **QUICK)

    store.tag("a", add=["best"])
    best = store.query("accuracy", tag="best").rows()
    hidden = store.put_away("run", "a")
    left = [row["run"] for row in store.runs().rows()]
    back = store.restore("run", "a")

    assert {row["run"] for row in best} == {"a"}
    assert repr(hidden) == "put away   run a"
    assert left == ["b"]
    assert repr(back) == "restored   run a"
    assert len(store.runs()) == 2
    with pytest.raises(offpref.OffprefError, match="no run is called 'c'"):
        store.put_away("run", "c")


def test_an_answer_says_what_it_leaves_out(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)

    answer = store.query("kl")

    assert answer.left_out == ("1 run (a) is left out, with nothing of what is asked",)
    assert repr(answer).endswith("note: 1 run (a) is left out, with nothing of what is asked")


def test_a_relation_sees_what_came_since(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    before = store.sql("select count(*) from steps").fetchall()
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)

    assert (before, store.sql("select count(*) from steps").fetchall()) == ([(0,)], [(3,)])


def test_a_named_question_is_a_table(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)
    whole = store.query("margins").rows()

    found = store.sql("select m.* from margins as m join runs as r on r.name = m.run").df()

    assert len(found) == len(whole) > 0
    assert store.query("select count(*) as n from margins").rows() == [{"n": len(whole)}]


@pytest.mark.parametrize("limit", [-1, 2.5, True, "3"])
def test_a_limit_is_a_number_of_rows(store: offpref.OpenStore, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be a whole number of rows"):
        store.query("select * from pairs", limit=limit)


@pytest.mark.parametrize(
    "sql",
    [
        "from margins",
        'select * from "margins"',
        "select m.* from runs r, margins m where r.name = m.run",
        "select * from (margins) m",
        "select * from /* as asked */ MARGINS",
        "table margins",
        "with margins as (select * from margins) select * from margins",
    ],
)
def test_a_question_is_a_table_however_it_is_spelled(
    sql: str, store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)

    assert store.query(sql).rows() == store.query("margins").rows()


def test_parameters_of_ones_own_sql_are_not_the_questions(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    """`compare` has num_steps, `margins` has run, as a list of ids."""
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)
    whole = store.query("select loss from compare").rows()

    one = store.query(
        "-- Losses.\n-- param num_steps integer: x\nselect loss from compare "
        "where $num_steps::int > 0",
        num_steps="1",
    )
    named = store.query(
        "-- Runs.\n-- param run text: x\nselect run from margins where run = $run", run="a"
    )

    assert one.rows() == whole
    assert {row["run"] for row in named.rows()} == {"a"}


@pytest.mark.parametrize(
    "sql",
    ["delete from pairs", "copy pairs to 'x.csv'", "select * from read_csv('/etc/passwd')",
     "select 1; select 2"],
)  # fmt: skip
def test_only_one_select_is_accepted(sql: str, store: offpref.OpenStore) -> None:
    with pytest.raises(offpref.QueryRefusedError, match="expected one SELECT"):
        store.sql(sql)


def test_a_wrong_keyword_names_the_nearest_one(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    common = {"model": model_dir, "output_dir": tmp_path / "out"}

    with pytest.raises(TypeError, match="'learning_rat' is not a setting here; did you mean lear"):
        store.train("reviews", learning_rat=1.0, **common)
    with pytest.raises(ValueError, match="beta must be greater than 0, got -1"):
        store.train("reviews", beta=-1, **common)
    with pytest.raises(ValueError, match="did you mean sigmoid"):
        store.train("reviews", loss_type="sigmod", **common)
    with pytest.raises(offpref.PairSetError, match="unknown pair set 'nothing'"):
        store.train("nothing", **common)
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(offpref.StoreNotFoundError, match="nowhere"):
        offpref.open(tmp_path / "nowhere")
    assert issubclass(offpref.StoreNotFoundError, offpref.StoreError)
    assert issubclass(offpref.ModelError, offpref.OffprefError)
    assert not issubclass(offpref.ModelError, offpref.StoreError)


def test_looking_after_a_store(store: offpref.OpenStore, tmp_path: Path) -> None:
    assert store.verify().is_whole
    assert "shards became" in repr(store.compact())
    assert "files deleted" in repr(store.gc())
    shard = next((store.path / "data" / "logps").rglob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)

    found = store.verify()

    assert not found.is_whole
    assert str(shard) in found.problems[0]
    assert "computes damaged scores" in repr(found)
    dropped = store.verify(drop_damaged=True)
    assert dropped.is_whole
    assert "dropped 1 damaged shards of logps" in dropped.dropped[0]
    assert repr(dropped).startswith(dropped.dropped[0])


def test_verifying_deeply_recomputes_hidden_states(
    store: offpref.OpenStore, model_dir: Path
) -> None:
    store.score("reviews", model=model_dir, tier="hidden")

    found = store.verify(deep=True)

    assert found.is_whole
    assert "recomputed" in found.lines[-1]
    with pytest.raises(ValueError, match="deep must be True or False, got 'yes'"):
        store.verify(deep="yes")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grace_days": 1}, "grace_days must be at least 7 without force, got 1: rows that"),
        ({"grace_days": float("nan")}, "grace_days must be finite, got nan"),
        ({"grace_days": float("nan"), "force": True}, "grace_days must be finite, got nan"),
        ({"grace_days": -1, "force": True}, "grace_days must be at least 0, got -1"),
        ({"force": True}, "force has no effect"),
    ],
)  # fmt: skip
def test_a_grace_is_checked_as_the_command_checks_it(
    given: dict[str, Any], message: str, store: offpref.OpenStore
) -> None:
    with pytest.raises(ValueError, match=message):
        store.gc(**given)


def test_a_short_grace_can_be_forced(store: offpref.OpenStore) -> None:
    left = store.path / "tmp" / "left"
    left.touch()
    os.utime(left, (10**9, 10**9))

    assert "files deleted" in repr(store.gc(grace_days=0, force=True))
    assert not left.exists()


def test_a_sweep_is_checked_before_anything(store: offpref.OpenStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        store.sweep(tmp_path / "nothing.toml", jobs=0)
    with pytest.raises(ValueError, match=r"jobs must be a whole number, got 1\.5"):
        store.sweep(tmp_path / "nothing.toml", jobs=1.5)


def test_pair_sets_are_described(store: offpref.OpenStore) -> None:
    (found,) = store.pairs()

    lines = repr(found).splitlines()

    assert lines[0] == f"pair set   {found}"
    assert lines[3].startswith(f"rows       {found.num_pairs + found.num_rejects}: ")
    assert "nothing was read" not in repr(found)


def test_relations_of_every_moment_end_with_the_store(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    before = store.sql("select count(*) as n from steps")
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)
    after = store.sql("select count(*) as n from steps")

    assert (before.fetchall(), after.fetchall()) == ([(0,)], [(3,)])
    again = [each.filter("n >= 0") for each in (before, after)]
    store.close()

    for relation in again:
        with pytest.raises(duckdb.ConnectionException):
            relation.fetchall()


def test_what_is_written_for_people_and_tools(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    store.train("reviews", model=model_dir, output_dir=tmp_path / "dpo", **QUICK)
    (tmp_path / "sweep.toml").write_text(
        f'[base]\npair_set = "reviews"\nmodel = "{model_dir}"\n'
        f'output_dir = "{tmp_path / "runs"}"\npairs_per_step = 8\nmax_steps = 1\n'
        "[grid]\nbeta = [0.1, 0.5]\n"
    )

    page = store.report(tmp_path / "report.html", title="mine")
    exported = store.export(tmp_path / "parquet", to="parquet", view=("runs", "steps"))
    swept = store.sweep(tmp_path / "sweep.toml")

    assert "<title>mine</title>" in page.path.read_text(encoding="utf-8")
    assert page.path.resolve().as_uri() in page._repr_html_()
    assert (exported.num_written, len(list((tmp_path / "parquet").iterdir()))) == (2, 2)
    assert (len(swept.trained), swept.skipped, dict(swept.failed)) == (2, (), {})
    assert store.sweep(tmp_path / "sweep.toml").skipped == swept.trained


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": "parket"}, "trackio, mlflow, parquet, got 'parket'; did you mean parquet"),
        ({"to": "tensorboard", "view": "steps"}, "view has no effect on tensorboard"),
        ({"to": "parquet", "view": "step"}, "unknown view 'step'"),
        ({"to": "parquet", "runs": ["nothing"]}, "no run is called 'nothing'"),
        ({"to": "parquet", "runs": [""]}, "no run is called ''"),
        ({"to": "parquet", "overwrite": "no"}, "overwrite must be True or False, got 'no'"),
    ],
)  # fmt: skip
def test_an_export_is_checked_as_the_command_checks_it(
    given: dict[str, Any], message: str, store: offpref.OpenStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        store.export(tmp_path / "out", **given)

    assert not (tmp_path / "out").exists()


def test_a_report_takes_the_options_of_the_command_and_says_the_same(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    store.train("reviews", model=model_dir, output_dir=tmp_path / "a", **QUICK)

    page = store.report(path, run="a", max_pairs=5)
    printed = CliRunner().invoke(
        main, ["report", str(store.path), "--output", str(path), "--run", "a", "--max-pairs", "5",
               "--overwrite"],
    ).stdout  # fmt: skip

    assert repr(page) == printed.rstrip()
    assert "1 runs, 5 of" in repr(page)
    with pytest.raises(TypeError, match="'run_names' is not a setting here"):
        store.report(path, run_names=("a",))
    with pytest.raises(ValueError, match="max_pairs must be in"):
        store.report(path, max_pairs=0)


def test_one_run_and_one_view_are_exported_by_their_names(
    store: offpref.OpenStore, model_dir: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        store.train("reviews", model=model_dir, output_dir=tmp_path / name, **QUICK)

    found = store.export(tmp_path / "out", to="parquet", runs="a", view="steps")

    assert repr(found) == f"exported   {tmp_path / 'out'}: 1 views"
    assert pq.read_table(tmp_path / "out" / "steps.parquet").num_rows == 3


def test_a_store_shows_what_it_holds(store: offpref.OpenStore) -> None:
    lines = repr(store).splitlines()

    assert lines[0] == f"offpref store {store.path}"
    assert lines[1].split()[:2] == ["table", "partition"]
    assert store._repr_html_().startswith("<pre>offpref store")


def test_what_is_exported_is_there() -> None:
    assert {name for name in offpref.__all__ if not hasattr(offpref, name)} == set()
    assert offpref.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        offpref.nothing  # noqa: B018


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, num_pairs=60, seed=5)
    return path
