import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from versions import complete_versions

from offpref.stores.errors import (
    QueryRefusedError,
    ShardMissingError,
    StoreNotFoundError,
    UnknownQueryError,
)
from offpref.stores.maintenance.compact import compact_store
from offpref.stores.maintenance.garbage import collect_garbage
from offpref.stores.query.catalog import open_catalog, query_names
from offpref.stores.query.questions import read_question
from offpref.stores.schema import LOGPS, REJECTS, TABLES
from offpref.stores.store import Store


def logps(values: dict[int, float]) -> pa.Table:
    keys = [bytes([number]) * 16 for number in values]
    return pa.table([keys, [[value, -0.5] for value in values.values()]], schema=LOGPS.schema)


def commit(store: Store, values: dict[int, float], partition: str = "fp") -> None:
    with store.batch() as batch:
        batch.add("logps", partition, logps(values))


def answer(store: Store, sql: str) -> list[dict[str, object]]:
    with open_catalog(store.path) as catalog:
        return catalog.select(sql).to_pylist()  # type: ignore[no-any-return]


def test_view_shows_keys_as_uuids_and_the_reference(store: Store) -> None:
    commit(store, {1: -1.0}, "one")
    commit(store, {1: -2.0}, "two")

    rows = answer(store, "select * from logps order by reference")

    uuid = "01010101-0101-0101-0101-010101010101"
    assert rows == [
        {"reference": "one", "sequence_key": uuid, "token_logps": [-1.0, -0.5]},
        {"reference": "two", "sequence_key": uuid, "token_logps": [-2.0, -0.5]},
    ]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_absent_table_is_a_typed_empty_view(store: Store, table: object) -> None:
    name, schema = table.name, table.schema  # type: ignore[attr-defined]

    kinds = {row["column_name"]: row["column_type"] for row in answer(store, f"describe {name}")}

    assert answer(store, f"select * from {name}") == []
    assert [column for column in kinds if column in schema.names] == schema.names
    assert set(kinds) - set(schema.names) <= {"reference", "tokenizer"}
    assert all(kinds[field.name] == "UUID" for field in schema if field.type == pa.binary(16))


def test_columns_of_a_view_are_the_same_with_and_without_rows(store: Store) -> None:
    before = answer(store, "describe logps")
    commit(store, {1: -1.0})

    assert answer(store, "describe logps") == before


def test_view_resolves_duplicates_as_the_store_does(store: Store) -> None:
    for shift in (0.0, 0.25, 0.5, 0.25):
        commit(store, {number: -number - shift for number in range(1, 30)})
    commit(store, {1: -9.0}, "other")
    expected = dict(
        zip(
            [key[0] for key in store.read("logps", "fp")["sequence_key"].to_pylist()],
            [row[0] for row in store.read("logps", "fp")["token_logps"].to_pylist()],
            strict=True,
        )
    )
    sql = (
        "select ('0x' || left(sequence_key::text, 2))::integer as number, token_logps[1] as value"
        " from logps where reference = 'fp' order by number"
    )

    before = answer(store, sql)
    compact_store(store)

    assert {row["number"]: row["value"] for row in before} == expected
    assert len(before) == len(expected)
    assert answer(store, sql) == before
    assert answer(store, "select count(*) as n from logps") == [{"n": 30}]


SELECTS = [
    "select 1 as n",
    "from logps",
    "with x as (select * from logps) select count(*) from x",
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3) from n",
    "select 1 union select 2",
    "values (1), (2)",
    "describe logps",
    "summarize logps",
    "show tables",
    "from (describe logps)",
    "select * from duckdb_columns() where table_name = 'logps'",
    "select unnest(token_logps) from logps",
    "from range(3)",
    "select * from (values (1)) as t(a)",
    "pivot (select 1 as a, 2 as b) on a in (1) using sum(b)",
    "from logps select count(*)",
    "select 1; -- the end",
    "select 1;",
    "-- a comment\nselect 1",
]


@pytest.mark.parametrize("sql", SELECTS)
def test_anything_that_only_reads_is_accepted(store: Store, sql: str) -> None:
    commit(store, {1: -1.0})

    with open_catalog(store.path) as catalog:
        catalog.select(sql)


HOSTILE = [
    "copy logps to '{outside}/x.parquet'",
    "copy (select 1) to '{shard}' (use_tmp_file false)",
    "with x as (copy (select 1) to '{shard}' (use_tmp_file false)) select 1",
    "with x as (copy (select 1) to '{outside}/x.csv') select * from x",
    "select * from query('with x as (copy (select 1) to ''{shard}'') select 1')",
    "select * from query('select 1')",
    "with x as (insert into logps select * from logps returning *) select * from x",
    "with x as (delete from logps returning *) select * from x",
    "with x as (update logps set token_logps = [] returning *) select * from x",
    "select (with x as (copy (select 1) to '{shard}') select 1)",
    "select * from read_csv('{outside}/secret.csv')",
    "select * from '{outside}/secret.csv'",
    "select * from read_text('{outside}/secret.csv')",
    "select * from read_blob('{outside}/*')",
    "select * from glob('{outside}/*')",
    "select * from read_parquet('{outside}/secret.parquet')",
    "select * from '{store}/data/../../outside/secret.parquet'",
    "select * from read_text('{store}/STORE.json')",
    "select * from read_text('/etc/passwd')",
    "select * from read_json('/proc/self/environ')",
    "select * from sniff_csv('{outside}/secret.csv')",
    "select * from parquet_metadata('{outside}/secret.parquet')",
    "select * from read_parquet('https://example.com/x.parquet')",
    "select * from read_parquet('s3://bucket/x.parquet')",
    "select * from secret_table",
    "from '{outside}/secret.parquet'",
    "from read_parquet('{shard}')",
    "from '{shard}'",
    "select (select count(*) from read_text('{outside}/secret.csv'))",
    "with x as materialized (from read_blob('{outside}/secret.csv')) from x",
    "select * from logps join glob('{outside}/*') on true",
    "select * from read_ndjson('{outside}/secret.csv')",
    "select * from read_json_objects('{outside}/secret.csv')",
    "select * from parquet_schema('{outside}/secret.parquet')",
    "select * from parquet_kv_metadata('{shard}')",
    "select * from parquet_file_metadata('{shard}')",
    "select * from read_csv_auto('https://example.com/x.csv')",
    "from 'https://example.com/x.csv'",
    "from 'hf://datasets/a/b.parquet'",
    "select * from query_table(['logps'])",
    "select * from QUERY('select 1')",
    "select * from enable_logging('QueryLog', storage = 'file', storage_path = '{outside}/log')",
    "select * from duckdb_logs()",
    "select * from force_checkpoint()",
    "select * from checkpoint()",
    "select * from which_secret('s3://x', 's3')",
    "select * from duckdb_settings()",
    "select * from duckdb_temporary_files()",
    "select * from pragma_database_size()",
    "select * from python_map_function()",
    "select * from arrow_scan(0, 0, 0)",
    "select * from pandas_scan(0)",
    "select * from json_execute_serialized_sql(json_serialize_sql('select 1'))",
    "select * from sqlite_scan('{outside}/x.db', 'x')",
    "summarize '{outside}/secret.csv'",
    "describe '{outside}/secret.parquet'",
    "summarize select * from read_csv('{outside}/secret.csv')",
    "with recursive x as (select 1 union all select * from read_text('{outside}/x')) from x",
    "select * from (copy (select 1) to '{outside}/x.csv')",
    "values ((select content from read_text('{outside}/secret.csv')))",
    "merge into shards using shards as s on true when matched then delete",
    "create secret x (type s3)",
    "create macro f() as 1",
    "create temp table x as select 1",
    "alter table shards rename to x",
    "truncate shards",
    "set variable x = 1",
    "use memory",
    "detach memory",
    "force install httpfs",
    "update extensions",
    "pragma add_parquet_key('x', '0123456789112345')",
    "explain select * from read_csv('{outside}/secret.csv')",
    "execute x",
    "commit;",
    "analyze;",
    "comment on view logps is 'x'",
    "select getenv('HOME')",
    "select * from duckdb_secrets()",
    "attach '{outside}/x.db'",
    "attach ':memory:' as other",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma enable_profiling",
    "call pragma_version()",
    "create table mine as select 1",
    "create view logps as select 1",
    "drop view logps",
    "insert into shards select * from shards",
    "export database '{outside}'",
    "import database '{outside}'",
    "begin transaction",
    "vacuum;",
    "checkpoint;",
    "explain analyze select 1",
    "prepare x as select 1",
    "select 1; select 2",
    "select 1; drop view logps",
    "",
    "-- nothing",
    "select ;",
    "not sql at all",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_hostile_sql_is_refused_and_touches_nothing(store: Store, tmp_path: Path, sql: str) -> None:
    commit(store, {1: -1.0})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.csv").write_text("secret\n1\n")
    secret_table = pa.table({"secret": [1]})
    pq.write_table(secret_table, outside / "secret.parquet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shard = store.shards("logps")[0].path

    with open_catalog(store.path) as catalog, pytest.raises(QueryRefusedError) as caught:
        catalog.select(sql.format(outside=outside, store=store.path, shard=shard))

    assert "Traceback" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_settings_close_every_other_way_out_and_are_locked(store: Store) -> None:
    closed = (
        "python_enable_replacements",
        "enable_external_access",
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "allow_community_extensions",
    )
    selected = ", ".join(f"current_setting('{name}') as {name}" for name in closed)

    sql = f"select {selected}, current_setting('lock_configuration') as is_locked"

    assert answer(store, sql) == [dict.fromkeys(closed, False) | {"is_locked": True}]


def test_catalog_survives_compaction_and_collection_behind_its_back(store: Store) -> None:
    for number in range(3):
        commit(store, {number: -1.0})
    with open_catalog(store.path) as catalog:
        other = Store.open(store.path)
        compact_store(other)
        collect_garbage(other, grace_seconds=0)

        assert catalog.select("select count(*) as n from logps").to_pylist() == [{"n": 3}]


def test_vanished_file_is_one_line_that_names_it(store: Store) -> None:
    commit(store, {1: -1.0})
    (shard,) = store.shards("logps")
    with open_catalog(store.path) as catalog:
        shard.path.unlink()
        with pytest.raises(ShardMissingError, match=shard.name):
            catalog.select("select token_logps from logps")
    with pytest.raises(ShardMissingError, match=shard.name):
        answer(store, "select token_logps from logps")


def test_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="not a store"):
        open_catalog(tmp_path)


def test_path_of_the_store_may_hold_any_character(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a b'[1]*?")
    commit(store, {1: -1.0})
    commit(store, {2: -1.0})

    assert answer(store, "select count(*) as n from logps") == [{"n": 2}]


def test_a_relative_path_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process, such as a notebook, may change it and open another store by the same words."""
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b"), 1):
        folder.mkdir()
        commit(Store.create(folder / "store"), {each: -1.0 for each in range(number)})

    counts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.chdir(folder)
        counts += answer(Store.open(Path("store")), "select count(*) as n from logps")

    assert counts == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("name", query_names())
def test_named_query_runs_on_an_empty_store_and_says_what_it_answers(
    store: Store, name: str
) -> None:
    assert read_question(name).sql.startswith("-- ")
    assert answer(store, name) == []


def test_unknown_query_lists_the_known_ones(store: Store) -> None:
    with pytest.raises(
        UnknownQueryError, match=r"'magic'.*accuracy, best, changed_tokens, compare, curves"
    ):
        answer(store, "magic")


def test_store_query_counts_rows_and_bytes_by_table_and_partition(store: Store) -> None:
    fingerprint = store.write_spec({"a": 1}, name="my-model")
    commit(store, {1: -1.0}, fingerprint)
    commit(store, {2: -1.0, 3: -1.0}, fingerprint)
    num_bytes = sum(shard.num_bytes for shard in store.shards("logps"))

    (row,) = answer(store, "store")
    assert (row["table_name"], row["partition"]) == ("logps", fingerprint)
    assert (row["name"], row["num_rows"]) == ("my-model", 3)
    assert (row["num_bytes"], row["num_shards"]) == (num_bytes, 2)
    assert answer(store, "select fingerprint, name, spec from scorers") == [
        {"fingerprint": fingerprint, "name": "my-model", "spec": '{"a":1}'}
    ]


def test_rejects_query_counts_by_reason_and_shows_the_first_row(store: Store) -> None:
    rows = [
        {
            "pair_set": "hh",
            "pair_set_fingerprint": "v1",
            "source_number": "ab".index(file),
            "source_file": file,
            "source_row": row,
            "reason": reason,
            "source": "{}",
        }
        for file, row, reason in (
            ("b", 0, "empty completion"),
            ("a", 10, "empty completion"),
            ("a", 9, "empty completion"),
            ("a", 2, "equal completions"),
        )
    ]
    with store.batch() as batch:
        batch.add("rejects", "tok", pa.Table.from_pylist(rows, schema=REJECTS.schema))
        complete_versions(batch, "tok", rows)

    found = answer(store, "rejects")

    assert [list(row.values())[2:] for row in found] == [
        ["empty completion", 3, "a", 9],
        ["equal completions", 1, "a", 2],
    ]


def test_any_parquet_reader_and_a_fresh_offline_duckdb_read_every_file(store: Store) -> None:
    commit(store, {1: -1.0, 2: -2.0})
    (shard,) = store.shards("logps")
    code = (
        "import duckdb, json, sys; c = duckdb.connect(config={'autoinstall_known_extensions':"
        " 'false', 'autoload_known_extensions': 'false'});"
        "print(json.dumps(c.execute('select sequence_key::text, token_logps from"
        " read_parquet(?)', [sys.argv[1]]).fetchall()))"
    )
    run = [sys.executable, "-c", code, str(shard.path)]

    by_duckdb = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)

    by_pyarrow = pq.read_table(shard.path)
    assert by_duckdb[1] == ["02020202-0202-0202-0202-020202020202", [-2.0, -0.5]]
    assert by_pyarrow["sequence_key"].to_pylist()[0].bytes == b"\1" * 16
    assert by_pyarrow["token_logps"].to_pylist() == [[-1.0, -0.5], [-2.0, -0.5]]


def test_live_list_can_be_read_without_offpref(store: Store) -> None:
    """What DESIGN promises to Spark, Trino or a plain DuckDB: the records are plain JSON."""
    for number in range(3):
        commit(store, {number: -1.0})
    compact_store(store)
    commit(store, {9: -1.0})

    records = [json.loads(path.read_text()) for path in (store.path / "commits").iterdir()]
    removed = {name for record in records for name in record["removes"]}
    live = {add[2] for record in records for add in record["adds"]} - removed

    assert live == {shard.name for shard in store.shards("logps")}


def test_stores_import_neither_torch_nor_transformers(store: Store) -> None:
    commit(store, {1: -1.0})
    code = (
        "import sys; from pathlib import Path\n"
        "from offpref.stores import reader\n"
        "from offpref.stores.maintenance import compact, garbage, listing, verify\n"
        "from offpref.stores.query.catalog import open_catalog\n"
        "print(open_catalog(Path(sys.argv[1])).select('store').num_rows)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )

    run = [sys.executable, "-c", code, str(store.path)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["1", "[]"]
