"""`offpref query`: formats, files, parameters, what it lists; and the same views elsewhere."""

import csv
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from row_store import OTHER, RUN, START, example, key, put, put_pairs, put_runs, step

from offpref.pipeline.commands.main import main
from offpref.stores.query.catalog import open_catalog, query_names
from offpref.stores.query.described import question_columns, question_section, view_columns
from offpref.stores.query.formats import json_value
from offpref.stores.query.notebook import Notebook
from offpref.stores.query.questions import read_question
from offpref.stores.query.views import view_names
from offpref.stores.schema import TABLES
from offpref.stores.store import Store

ROOT = Path(__file__).parents[3]

NESTED = (
    "select 1 as id, 'nan'::double as loss, map {'a': 1.5::double} as metrics, [1, null] as list,"
    " {'x': 'a|b'} as struct, '00000000-0000-0000-0000-000000000001'::uuid as key,"
    " sum(i) as total, timestamptz '2026-01-02 03:04:05+00' as at, 'a\"b,\u00e9' as text"
    " from range(3) as t(i)"
)


def query(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["query", *map(str, arguments)], input=stdin)


@pytest.fixture
def measured(store: Store) -> Store:
    """A store with every kind of row: two runs, the second resumed, pairs of every form, KLs."""
    put_runs(store, "dpo", "ipo", reference="fp", pair_set="s")
    put(
        store,
        "runs",
        [
            {
                "run_id": OTHER,
                "attempt": 1,
                "name": "ipo",
                "config": "{}",
                "pair_set": "s",
                "pair_set_fingerprint": "v1",
                "reference": "fp",
            }
        ],
    )
    put_pairs(store, (2, 3), (1, None), (None, 2), source='{"language": "en"}')
    put(store, "vocabulary", [{"id": n, "bytes": b"x\xff"[: n % 2 + 1]} for n in range(4)], "tok")
    put(store, "logps", [{"sequence_key": key(101), "token_logps": [-1.0, -2.0]}], "fp")
    put(store, "steps", [
        step(1, 0.7), step(2, 0.6), step(2, 0.5, "eval"),
        step(1, 0.7) | {"run_id": OTHER}, step(2, 0.6) | {"run_id": OTHER},
        step(2, 0.55, attempt=1) | {"run_id": OTHER},
    ])  # fmt: skip
    put(store, "examples", [
        example(1, 1, 1, 0), example(2, 1, 1, None), example(3, 2, None, 1),
        example(1, 2, 0, 3) | {"run_id": OTHER},
        example(1, 2, 3, 0, attempt=1) | {"run_id": OTHER},
    ])  # fmt: skip
    put(store, "tokens", [
        {"run_id": RUN, "step": 1, "split": "train", "pair_key": key(1), "sequence_key": key(101),
         "token_logps": [-1.5, -2.5], "forward_kl": [0.5, 0.25]},
    ])  # fmt: skip
    put(store, "rewards", [
        {"objective": "brevity", "source_fingerprint": "s1", "subject": "sequence",
         "subject_key": key(101), "reward": -2.0},
        {"objective": "brevity", "source_fingerprint": "s1", "subject": "text",
         "subject_key": key(101), "reward": -9.0},
        {"objective": "human", "source_fingerprint": "s2", "subject": "rejected",
         "subject_key": key(1), "reward": 0.5},
        {"objective": "human", "source_fingerprint": "s3", "subject": "chosen",
         "subject_key": key(1), "reward": 1.5},
    ])  # fmt: skip
    store.refresh()
    return store


def test_examples_with_text_have_run_texts_source_and_rewards(measured: Store) -> None:
    with Notebook(measured.path) as opened:
        rows = opened.arrow(
            "select run, attempt, prompt, chosen, rejected, source->>'language' as language,"
            " reward_margins, num_chosen_tokens, num_rejected_tokens, chosen_objectives,"
            " rejected_objectives from examples_with_text order by run, prompt"
        ).to_pylist()

    dpo, unpaired, undesirable, ipo = (list(row.values()) for row in rows)
    assert dpo == [
        "dpo", 0, "p1", "c1", "r1", "en", 1.0, 2, 3,
        [("brevity", -2.0), ("human@s3", 1.5)], [("human@s2", 0.5)],
    ]  # fmt: skip
    assert unpaired == ["dpo", 0, "p2", "c2", None, "en", None, 1, None, None, None]
    assert undesirable[2:5] == ["p3", None, "r3"]
    assert ipo[:2] == ["ipo", 1]
    assert ipo[6] == 3.0  # of its newest attempt


def test_tokens_with_text_have_a_row_a_token(measured: Store) -> None:
    with Notebook(measured.path) as opened:
        rows = opened.arrow(
            "select run, side, position, id, token, policy_token_logps, ref_token_logps,"
            " forward_kl, entropy from tokens_with_text order by position"
        ).to_pylist()

    assert [list(row.values()) for row in rows] == [
        ["dpo", "chosen", 1, 1, "x\\xFF", -1.5, -1.0, 0.5, None],
        ["dpo", "chosen", 2, 2, "x", -2.5, -2.0, 0.25, None],
    ]


def test_tokens_with_text_say_which_ones_counted(measured: Store) -> None:
    question = "select position, counts from tokens_with_text order by position"
    with Notebook(measured.path) as opened:
        before = opened.arrow(question).to_pylist()
    put(measured, "masks", [
        {"run_id": RUN, "pair_key": key(1), "sequence_key": key(101), "starts": [1], "ends": [2]},
        {"run_id": OTHER, "pair_key": key(1), "sequence_key": key(101), "starts": [0], "ends": [1]},
    ])  # fmt: skip
    with Notebook(measured.path) as opened:
        after = opened.arrow(question).to_pylist()
    put(measured, "tokens", [
        {"run_id": RUN, "step": 1, "split": "train", "pair_key": key(2), "sequence_key": key(102),
         "token_logps": [-1.5]},
    ])  # fmt: skip
    put(measured, "masks", [
        {"run_id": RUN, "pair_key": key(2), "sequence_key": key(102), "starts": [], "ends": []},
    ])  # fmt: skip
    with Notebook(measured.path) as opened:
        nothing = opened.arrow(question + ", pair_key").to_pylist()

    assert [row["counts"] for row in before] == [True, True]  # without a mask all do
    assert [row["counts"] for row in after] == [False, True]
    assert [(row["position"], row["counts"]) for row in nothing] == [
        (1, False), (1, False), (2, True)
    ]  # fmt: skip


def test_step_metrics_are_the_long_form_of_steps(measured: Store) -> None:
    with Notebook(measured.path) as opened:
        rows = opened.arrow(
            "select metric, value from step_metrics where run_id::text like '6f%' and step = 2"
        ).to_pylist()

    values = {row["metric"]: row["value"] for row in rows}
    assert (values["loss"], values["rewards/margins"], values["num_pairs"]) == (0.55, 1.0, 4.0)
    assert "grad_norm" not in values


@pytest.mark.parametrize("table", TABLES)
def test_type_of_a_column_is_the_same_with_and_without_rows(table: str, store: Store) -> None:
    sql = f"select column_name, column_type from (describe {table})"
    with open_catalog(store.path) as catalog:
        before = list(catalog.answer(sql).rows)

    put(store, table, [{}])
    with open_catalog(store.path) as catalog:
        after = list(catalog.answer(sql).rows)

    assert before == after


def test_every_column_of_every_view_and_question_has_a_meaning(store: Store) -> None:
    with open_catalog(store.path) as catalog:
        columns = list(view_columns(catalog))
        for name in query_names():
            question = read_question(name)
            answered = list(question_columns(catalog, question))
            assert set(question.columns) <= {each.name for each in answered}, name
            columns += answered

    assert {each.owner for each in columns} == {*view_names(), *query_names()}
    assert all(each.meaning for each in columns)
    meanings = {(each.owner, each.name): each.meaning for each in columns}
    assert "nats" in meanings["logps", "token_logps"]
    assert meanings["last_examples", "loss"] == "loss of the pair, before its weight"
    assert meanings["frontier", "kl"].endswith("nats")


def test_schema_lists_every_column_with_type_and_meaning(store: Store) -> None:
    shown = query(store.path, "--schema").stdout

    assert "\nlogps: a reference's scores of a sequence, tier logps\n" in shown
    assert re.search(r"^    token_logps +FLOAT\[\] +log-prob of each completion", shown, re.M)
    assert re.search(r"^    run +VARCHAR +the run, as latest_runs names it", shown, re.M)


def test_list_names_questions_and_their_parameters(store: Store) -> None:
    shown = query(store.path, "--list").stdout

    assert [line.partition(":")[0] for line in shown.splitlines() if line[0] != " "] == (
        [*query_names(), "every question that has the parameter run also has"]
    )
    assert "    num_buckets (integer) = 5: number of buckets" in shown


def test_json_is_standard_and_keeps_what_is_nested(store: Store) -> None:
    shown = query(store.path, NESTED, "--format", "json").stdout

    (row,) = json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {
        "id": 1, "loss": None, "metrics": {"a": 1.5}, "list": [1, None], "struct": {"x": "a|b"},
        "key": "00000000-0000-0000-0000-000000000001", "total": 3,
        "at": "2026-01-02 03:04:05+00", "text": 'a"b,\u00e9',
    }  # fmt: skip
    assert query(store.path, "select 1 as a where false", "--format", "json").stdout == "[]\n"
    lines = query(store.path, "from range(2)", "--format", "jsonl").stdout
    assert lines == '{"range": 0}\n{"range": 1}\n'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("10"), 10),
        (Decimal("0.5"), 0.5),
        (float("-inf"), None),
        (b"\x00\xff", "00ff"),
        ({1: {"a": float("nan")}}, {"1": {"a": None}}),
    ],
)
def test_values_become_json(value: object, expected: object) -> None:
    assert json_value(value) == expected


def test_csv_quotes_and_holds_nested_values_as_json(store: Store) -> None:
    shown = query(store.path, NESTED, "--format", "csv").stdout

    header, row = csv.reader(shown.splitlines())
    values = dict(zip(header, row, strict=True))
    assert (values["id"], values["loss"], values["total"]) == ("1", "nan", "3")
    assert (json.loads(values["metrics"]), values["list"]) == ({"a": 1.5}, "[1, null]")
    assert (values["text"], values["at"]) == ('a"b,\u00e9', "2026-01-02 03:04:05+00")


def test_a_pipe_is_not_replaced_by_a_file(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    said = query(
        store.path, "runs", "--format", "csv", "--output", tmp_path / "pipe", "--overwrite"
    )

    assert said.stderr.endswith("pipe is a device or a pipe; name a file\n")
    assert (tmp_path / "pipe").is_fifo()


def test_markdown_aligns_numbers_and_escapes_bars(store: Store) -> None:
    shown = query(store.path, NESTED, "--format", "markdown").stdout.splitlines()

    assert shown[1].split("|")[1:3] == [" ---: ", " ---: "]
    assert "x=a\\|b" in shown[2]
    assert len({line.replace("\\|", "").count("|") for line in shown}) == 1


def test_parquet_is_whole_or_not_at_all_and_replaces_nothing(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "a.parquet"
    write = (store.path, "from range(30) as t(i)", "--format", "parquet", "--output", output)

    first = query(*write)
    again = query(*write)
    limited = query(*write, "--overwrite", "--limit", "2")

    assert (first.exit_code, again.exit_code, limited.exit_code) == (0, 1, 0)
    assert again.stderr == (
        f"Error: {output} exists; give another name, or --overwrite to replace it\n"
    )
    assert pq.read_table(output)["i"].to_pylist() == [0, 1]
    assert query(*write[:1], "select interval 1 day as i", *write[2:], "--overwrite").exit_code == 1
    assert pq.read_table(output)["i"].to_pylist() == [0, 1]
    assert list(tmp_path.glob(".*")) == []


def test_failed_answer_leaves_no_file(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    sql = "select error('stop') from range(10)"
    assert query(store.path, sql, "--format", "csv", "--output", output).exit_code == 1
    assert list(tmp_path.iterdir()) == [store.path]


def test_table_shows_twenty_rows_and_other_formats_all(store: Store) -> None:
    table = query(store.path, "from range(30)").stdout.splitlines()
    assert (len(table), table[-1]) == (22, "... more than 20 rows; --limit shows more")
    assert len(query(store.path, "from range(30)", "--format", "csv").stdout.splitlines()) == 31
    assert len(query(store.path, "from range(30)", "--limit", "0").stdout.splitlines()) == 2


def test_sql_comes_from_a_file_or_standard_input(store: Store, tmp_path: Path) -> None:
    sql = tmp_path / "q.sql"
    sql.write_text("-- a question\nselect $x + 1 as answer;\n")

    by_file = query(store.path, "--file", sql, "--set", "x=41", "--format", "csv")
    by_stdin = query(store.path, "-", "--format", "csv", stdin="select 'a' as b -- end")

    assert by_file.stdout == "answer\n42\n"
    assert by_stdin.stdout == "b\na\n"


def test_own_sql_declares_parameters_as_named_questions_do(measured: Store, tmp_path: Path) -> None:
    sql = tmp_path / "q.sql"
    sql.write_text(
        "-- Which runs there are.\n-- param run runs: runs to show\n"
        "-- param last integer = 2: rows\nselect run, $last::int as last from latest_runs"
        " where $run::uuid[] is null or list_contains($run::uuid[], run_id) order by run"
    )

    every = query(measured.path, "--file", sql, "--format", "csv")
    one = query(measured.path, "--file", sql, "--format", "csv", "--set", "run=ipo")
    wrong = query(measured.path, "--file", sql, "--set", "x=1")

    assert every.stdout == "run,last\ndpo,2\nipo,2\n"
    assert one.stdout == "run,last\nipo,2\n"
    assert wrong.stderr.endswith("the query has no parameter 'x'; it has: run, status, tag, last\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "-- param x date: when\nselect 1"], "expected a comment like `param NAME integer"),
        ([], "expected one question"),
        (["runs", "--file", ROOT / "stores/query/sql/runs.sql"], "expected one question"),
        (["runs", "--list"], "--print-setup alone"),
        (["--list", "--schema"], "--print-setup alone"),
        (["--list", "--limit", "0"], "--limit has no effect without a question"),
        (["--schema", "--format", "csv"], "--format has no effect without a question"),
        (["runs", "--format", "parquet"], "--format parquet needs --output FILE"),
        (["runs", "--overwrite"], "--overwrite has no effect without --output"),
        (["runs", "--set", "x"], "--set must be NAME=VALUE, got 'x'"),
        (["runs", "--set", "x=1"], "runs has no parameter 'x'; it has: run, status, tag"),
        (["runs", "--set", "run=x"], "run: no run is called 'x'; there are: none"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments: list[object], message: str, store: Store) -> None:
    result = query(store.path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


def test_notebook_gives_relations_arrow_and_pandas(measured: Store) -> None:
    with Notebook(measured.path) as opened:
        relation = opened.view("steps").filter("split = 'train'").aggregate("count(*) as n")
        other = opened.view("examples")
        frame = opened.pandas("accuracy", run="dpo")

        assert relation.fetchall() == [(4,)]
        assert len(other.fetchall()) == 4
        assert frame[["run", "num_pairs", "accuracy"]].to_numpy().tolist() == [["dpo", 1, 1.0]]
        assert "examples_with_text" in opened.views
        with pytest.raises(
            ValueError, match=r"no view is called 'exmaples'; there are: .*examples"
        ):
            opened.view("exmaples")


def test_notebook_sees_what_is_committed_when_it_is_refreshed(measured: Store) -> None:
    with Notebook(measured.path) as opened:
        count = "select count(*) as n from steps"
        before = opened.arrow(count)["n"].to_pylist()
        put(measured, "steps", [step(9, 0.1)])

        assert opened.arrow(count)["n"].to_pylist() == before == [5]
        assert opened.refresh()
        assert opened.arrow(count)["n"].to_pylist() == [6]
        assert not opened.refresh()


def test_notebook_example_in_the_docs_runs(
    measured: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    (example_code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(measured.path.parent)

    names: dict[str, object] = {}
    exec(compile(example_code, "docs/questions.md", "exec"), names)

    assert names["store"]


PLAIN = """
import json, sys
import duckdb
setup = open(sys.argv[1], encoding="utf-8").read()
connection = duckdb.connect(config={"autoinstall_known_extensions": "false",
                                    "autoload_known_extensions": "false"})
connection.execute(setup)
print(json.dumps({
    "version": duckdb.__version__,
    "counts": {name: connection.execute(f"select count(*) from {name}").fetchone()[0]
               for name in sys.argv[2:]},
    "runs": connection.execute("select run, attempt from latest_runs order by run").fetchall(),
    "loss": connection.execute("select sum(loss) from steps").fetchone()[0],
    "tokens": connection.execute("select token from tokens_with_text order by position").fetchall(),
}))
"""


def plain_duckdb(version: str) -> dict[str, str]:
    """Return the environment in which `import duckdb` gives this version, or skip the test."""
    if version == "2.0":
        if not duckdb.__version__.startswith("2."):
            pytest.skip(f"needs duckdb 2, has {duckdb.__version__}")
        return dict(os.environ)
    folder = Path(os.environ.get("OFFPREF_DUCKDB_1_4", ROOT / ".venv" / "duckdb-1.4"))
    if not (folder / "duckdb").is_dir():
        pytest.skip(f"needs duckdb 1.4 in {folder}; `make install` puts it there")
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("version", ["1.4", "2.0"])
def test_printed_setup_makes_the_views_in_a_plain_duckdb(
    version: str, measured: Store, tmp_path: Path
) -> None:
    environment = plain_duckdb(version)
    printed = query(measured.path, "--print-setup")
    (tmp_path / "setup.sql").write_text(printed.stdout, encoding="utf-8")

    # Python adds the script's folder to the path, not this one: nothing of offpref is at hand.
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, tmp_path / "setup.sql", *view_names()],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with open_catalog(measured.path) as catalog:
        counts = {
            name: next(catalog.answer(f"select count(*) from {name}").rows)[0]
            for name in view_names()
        }
    assert found["version"].startswith(version)
    assert found["counts"] == counts
    assert found["runs"] == [["dpo", 0], ["ipo", 1]]
    assert round(found["loss"], 6) == round(0.7 + 0.6 + 0.5 + 0.7 + 0.55, 6)
    assert found["tokens"] == [["x\\xFF"], ["x"]]


def test_page_on_questions_is_what_they_are(store: Store) -> None:
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    sections = re.split(r"^(?=### )", page, flags=re.M)[1:]

    with open_catalog(store.path) as catalog:
        for name, section in zip(query_names(), sections, strict=True):
            described, _, shown = section.partition("\n\n```console\n")
            assert described == question_section(catalog, name)
            command, header, *rows = shown.partition("```")[0].splitlines()
            assert command.startswith(f"$ offpref query store {name}")
            columns = list(catalog.answer(name, limit=0).columns)
            if "settings" in columns:  # a table has a column for each setting
                columns.remove("settings")
                header = " ".join(each for each in header.split() if each in columns)
            assert header.split() == columns
            assert rows


def test_rows_of_a_run_that_lie_in_two_shards_count_once(store: Store) -> None:
    """As two processes leave them that resumed one run at once: no shard says so by itself."""
    put_runs(store, "dpo")
    put(store, "steps", [step(n, 0.5) for n in (1, 2, 3)])
    put(store, "steps", [step(n, 0.25) for n in (3, 4)])
    put(store, "steps", [step(5, 0.125)])
    put(store, "examples", [example(1, 1, 1, 0), example(1, 3, 1, 0), example(2, 3, 1, 0)])
    put(store, "examples", [example(1, 3, 2, 0), example(3, 3, 1, 0)])
    moment = {"run_id": RUN, "event": "alive"}
    put(store, "run_events", [moment | {"happened_at": START + timedelta(n)} for n in (0, 2)])
    put(store, "run_events", [moment | {"happened_at": START + timedelta(n)} for n in (1, 2)])
    store.refresh()

    kept = {row["step"]: row["loss"] for row in store.read("steps").to_pylist()}
    with Notebook(store.path) as opened:
        steps = opened.arrow("select step, loss from steps order by step").to_pylist()
        counts = opened.arrow(
            "select (select count(*) from examples) as examples,"
            " (select count(*) from run_events) as events"
        ).to_pylist()

    assert {row["step"]: row["loss"] for row in steps} == kept
    assert len(steps) == len(kept) == 5
    assert counts == [{"examples": 4, "events": 3}]


def test_later_attempts_count_whatever_shard_they_lie_in(store: Store) -> None:
    put_runs(store, "dpo")
    put(store, "steps", [step(n, 0.5) for n in (1, 2, 3)])
    put(store, "steps", [step(2, 0.25, attempt=1)])
    put(store, "steps", [step(3, 0.25, attempt=1), step(3, 0.125, attempt=2)])

    with Notebook(store.path) as opened:
        rows = opened.arrow("select step, loss, attempt from steps order by step").to_pylist()

    assert [tuple(row.values()) for row in rows] == [(1, 0.5, 0), (2, 0.25, 1), (3, 0.125, 2)]


def test_question_needs_neither_pyarrow_nor_numpy(measured: Store) -> None:
    """They would take half of the time from the start of the command to the answer."""
    code = (
        "import sys\n"
        "from offpref.pipeline.commands.main import main\n"
        "main(['query', sys.argv[1], sys.argv[2]], standalone_mode=False)\n"
        "print(sorted({'pyarrow', 'numpy', 'pandas', 'torch', 'fsspec'} & set(sys.modules)))\n"
    )
    for question in query_names():
        done = subprocess.run(
            [sys.executable, "-c", code, measured.path, question],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "[]", question


def test_benchmark_of_questions_measures_time_and_memory(measured: Store) -> None:
    script = ROOT / "benchmarks" / "queries.py"
    done = subprocess.run(
        [sys.executable, script, measured.path, "runs", "--rounds", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["question"] == "runs"
    assert 0 < found["first_byte_seconds"] <= found["seconds"]
    assert found["peak_bytes"] > 10_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["drop view runs"], 1, "Error: expected one SELECT, got DROP"),
        (["nothing"], 1, "Error: no query is called 'nothing'; there are: accuracy"),
        (["runs", "--limit", "x"], 2, "Error: Invalid value for '--limit'"),
    ],
)
def test_installed_command_ends_as_the_others_do_and_builds_none_of_them(
    arguments: list[str], code: int, message: str, store: Store
) -> None:
    start = (
        "import sys\n"
        "from offpref.pipeline.commands.start import start\n"
        "sys.argv = ['offpref', *sys.argv[1:]]\n"
        "try:\n"
        "    start()\n"
        "finally:\n"
        "    assert 'offpref.pipeline.commands.main' not in sys.modules\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", start, "query", store.path, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(message)
    assert done.stderr.startswith(("Error: ", "Usage: offpref query "))
