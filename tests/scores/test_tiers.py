"""Tiers of scores: written once, only what is missing, bit for bit what the model says."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from offpref.kernels.head import OutputHead
from offpref.kernels.topk import linear_top_tokens
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.scores import tiers
from offpref.pipeline.scores.deep_verify import verify_hidden
from offpref.pipeline.scores.hidden_states import from_bytes
from offpref.pipeline.scores.reference_heads import head_content, read_head, shared_head
from offpref.pipeline.scores.score import ScoreSummary, dry_run, score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.stores.errors import (
    ModelError,
    PairSetError,
    ShardCorruptError,
    ShardMissingError,
    StoreError,
)
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.schema import HIDDEN
from offpref.stores.store import Store

OFFPREF = [sys.executable, "-c", "from offpref.pipeline.commands.main import main; main()"]


def run(store: Store, model: Path, *names: str, **more: Any) -> ScoreSummary:
    return score(store, ScoreSettings(model=model, pair_set="reviews", tier=names, **more))


def new_rows(summary: ScoreSummary) -> dict[str, int]:
    return {str(tier): number for tier, number in summary.num_new_rows.items()}


def num_rows(store: Store, table: str) -> int:
    return sum(shard.num_rows for shard in store.shards(table))


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int | None]]:
    """What is asked of the model while a test runs, once per forward pass."""
    asked: list[tuple[tuple[str, ...], int | None]] = []
    forward = ScoringModel.forward

    def seen(self: ScoringModel, batch: Any, want: Any = ("token_logps",), **more: Any) -> Any:
        if "logits" not in want:  # the self-check's
            asked.append((tuple(want), more.get("top_k")))
        return forward(self, batch, want, **more)

    monkeypatch.setattr(ScoringModel, "forward", seen)
    return asked


def test_tier_asked_for_later_computes_only_what_is_missing(
    scored: Store, model_dir: Path, wanted: list[Any]
) -> None:
    number = num_rows(scored, "logps")

    later = run(scored, model_dir, "hidden", max_batch_tokens=400)
    calls = list(wanted)
    again = run(scored, model_dir, "hidden")
    top = run(scored, model_dir, "hidden", "topk", top_k=5)

    assert new_rows(later) == {"logps": 0, "hidden": number}
    assert set(calls) == {(("hidden",), None)}  # not even the head is computed
    assert (again.num_new, again.was_loaded) == (0, False)
    assert new_rows(top) == {"logps": 0, "topk k=5": number, "hidden": 0}
    assert set(wanted[len(calls) :]) == {((), 5)}
    assert [num_rows(scored, t) for t in ("logps", "topk", "hidden")] == [number] * 3
    assert len(scored.heads()) == 1


def test_new_pairs_are_scored_in_one_pass_for_all_tiers(
    tiered: Store, model_dir: Path, tmp_path: Path, wanted: list[Any]
) -> None:
    before = {table: num_rows(tiered, table) for table in ("logps", "topk", "hidden")}
    write_pairs(tmp_path / "more.jsonl", num_pairs=100, seed=3)  # the first 80 are known
    data = AddSettings(
        data=(str(tmp_path / "more.jsonl"),), pair_set="more", tokenizer=model_dir, max_length=64
    )

    asked = ScoreSettings(model=model_dir, data=data, tier=("hidden", "topk"), top_k=6)
    summary = score(tiered, asked)

    assert summary.num_new > 10
    assert set(new_rows(summary).values()) == {summary.num_new}
    assert set(wanted) == {(("token_logps", "hidden"), 6)}
    for table, number in before.items():
        assert num_rows(tiered, table) == number + summary.num_new
    assert verify_store(tiered.path).problems == []


def test_another_k_is_another_tier(tiered: Store, model_dir: Path) -> None:
    number = num_rows(tiered, "topk")

    summary = run(tiered, model_dir, "topk", top_k=3)

    assert new_rows(summary) == {"logps": 0, "topk k=3": number}
    assert num_rows(tiered, "topk") == 2 * number


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_hidden_states_are_the_heads_input_bit_for_bit(
    scored: Store, model_dir: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[int, torch.Tensor] = {}
    forward = ScoringModel.forward

    def seen(self: ScoringModel, batch: Any, want: Any = (), **more: Any) -> Any:
        scores = forward(self, batch, want, **more)
        if "hidden" in want and "logits" not in want:
            given[len(given)] = scores.hidden.clone()
        return scores

    monkeypatch.setattr(ScoringModel, "forward", seen)

    summary = run(scored, model_dir, "hidden", precision=precision)

    rows = scored.read("hidden", summary.scorer).to_pylist()
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    tokens = {bytes(t.view(torch.uint8).numpy()) for each in given.values() for t in each}
    assert {row["dtype"] for row in rows} == {str(dtype).removeprefix("torch.")}
    for row in rows:
        values = np.frombuffer(row["hidden"], np.uint8).copy().reshape(row["num_rows"], -1)
        assert {bytes(token) for token in values} <= tokens
        assert from_bytes(values, row["dtype"]).shape == (row["num_rows"], 64)


def test_hidden_states_and_head_give_the_plain_models_distribution(
    tiered: Store, model_dir: Path
) -> None:
    [scorer] = tiered.partitions("hidden")
    sequences = {
        row["sequence_key"]: row
        for row in tiered.read("sequences", tiered.partitions("sequences")[0]).to_pylist()
    }
    plain = AutoModelForCausalLM.from_pretrained(model_dir)
    head = read_head(tiered, scorer)
    top = {row["sequence_key"]: row for row in tiered.read("topk", scorer).to_pylist()}
    for row in tiered.read("hidden", scorer).to_pylist()[:20]:
        sequence = sequences[row["sequence_key"]]
        start = sequence["num_prompt_tokens"]
        with torch.no_grad():
            logits = plain(torch.tensor([sequence["ids"]])).logits[0, start - 1 : -1]
        expected = logits.log_softmax(-1)
        values = np.frombuffer(row["hidden"], np.uint8).copy().reshape(row["num_rows"], -1)
        found = (from_bytes(values, row["dtype"]) @ head.weight.T).log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

        six = top[row["sequence_key"]]
        logps, ids = expected.topk(6)
        rest = expected.scatter(1, ids, -torch.inf).logsumexp(1)
        assert six["ids"] == ids.flatten().tolist()
        np.testing.assert_allclose(six["logps"], logps.flatten(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(six["tail_logps"], rest, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gap", [0.0, 20.0, 90.0])
def test_rest_of_the_top_k_is_right_however_small(gap: float) -> None:
    """1 minus the sum of the top k would be 0 from a gap of 17 on."""
    torch.manual_seed(0)
    logits = torch.randn(5, 9000)
    logits[:, 100:103] += gap
    expected = logits.double().log_softmax(-1)

    # A head of the logits themselves: one hidden unit per token.
    head = OutputHead(weight=logits.T.contiguous())
    found = linear_top_tokens(torch.eye(5), head, 3, workspace_bytes=1 << 18)

    values, ids = expected.topk(3)
    rest = expected.scatter(1, ids, -torch.inf).logsumexp(1)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.logps.double(), values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.tail_logps.double(), rest, rtol=1e-5, atol=1e-5)


def test_top_of_everything_has_no_rest() -> None:
    found = linear_top_tokens(torch.ones(2, 1), OutputHead(weight=torch.randn(7, 1)), 7)
    assert found.tail_logps.tolist() == [-torch.inf] * 2
    with pytest.raises(ValueError, match="k must be between 1 and the vocabulary of 7, got 8"):
        linear_top_tokens(torch.ones(2, 1), OutputHead(weight=torch.randn(7, 1)), 8)


def test_each_hidden_row_is_read_alone_and_uncompressed(tiered: Store) -> None:
    [shard] = tiered.shards("hidden")
    metadata = pq.ParquetFile(shard.path).metadata
    assert metadata.num_row_groups == metadata.num_rows > 100
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    kinds = {column.path_in_schema: column.compression for column in columns}
    assert kinds["hidden"] == "UNCOMPRESSED"
    assert kinds["sequence_key"] == "ZSTD"


def test_killed_while_it_writes_tiers_it_goes_on(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    command = [*OFFPREF, "score", str(scored.path), "--pair-set", "reviews", "--model",
               str(model_dir), "--tier", "hidden", "--tier", "topk", "--top-k", "4",
               "--commit-seconds", "0", "--max-batch-tokens", "200"]  # fmt: skip
    number = num_rows(scored, "logps")
    # Between the shards of two tiers of one commit, and after a record.
    for point, is_whole in (("shard-placed:5", False), ("record-placed:3", False)):
        done = subprocess.run(
            command, env=os.environ | {"OFFPREF_CRASH_AT": point}, capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL
        scored.refresh()
        assert (num_rows(scored, "hidden") == number) is is_whole
        assert num_rows(scored, "hidden") == num_rows(scored, "topk") > 0
        assert len(scored.heads()) == 1

    summary = run(scored, model_dir, "hidden", "topk", top_k=4)

    assert 0 < new_rows(summary)["hidden"] < number
    assert [num_rows(scored, t) for t in ("logps", "topk", "hidden")] == [number] * 3
    assert verify_store(scored.path).problems == []
    assert verify_hidden(scored).problems == []


def test_model_whose_head_is_unknown_keeps_its_top_k_only(
    store: Store, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=6, seed=3)
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="reviews", tokenizer=model_dir,
        max_length=64,
    )  # fmt: skip
    alike = score(store, ScoreSettings(model=model_dir, data=data, tier=("topk",), top_k=4))
    expected = {r["sequence_key"]: r for r in store.read("topk", alike.scorer).to_pylist()}
    monkeypatch.setattr("offpref.pipeline.models.selfcheck._head_convention", lambda *_: None)
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("{", '{"of_its_own": 1,', 1))

    with pytest.raises(ModelError, match="tier hidden needs an output head of a known form"):
        run(store, other, "hidden")
    summary = run(store, other, "topk", top_k=4)

    rows = store.read("topk", summary.scorer).to_pylist()
    assert len(rows) == len(expected)
    for row in rows:
        one = expected[row["sequence_key"]]
        assert row["ids"] == one["ids"]
        np.testing.assert_allclose(row["tail_logps"], one["tail_logps"], rtol=0, atol=1e-5)


def test_model_that_cannot_pack_has_tiers_too(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    bloom = Path(shutil.copytree(model_dir, tmp_path / "bloom"))
    torch.manual_seed(4)
    config = BloomConfig(vocab_size=58, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(bloom)

    run(scored, bloom, "hidden")

    assert verify_hidden(scored).problems == []
    assert verify_hidden(scored).num_rows == 64


def test_dry_run_says_what_it_costs_and_writes_nothing(scored: Store, model_dir: Path) -> None:
    number = num_rows(scored, "logps")
    before = sorted(scored.path.rglob("*"))
    arguments = ["score", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
                 "--tier", "hidden", "--tier", "topk", "--top-k", "8"]  # fmt: skip

    said = CliRunner().invoke(main, [*arguments, "--dry-run"])
    after = sorted(scored.path.rglob("*"))
    asked = ScoreSettings(model=model_dir, pair_set="reviews", tier=("hidden",))
    estimated = dry_run(scored, asked)
    run(scored, model_dir, "hidden")
    [shard] = scored.shards("hidden")

    assert said.exit_code == 0, said.output
    assert re.search(rf"^hidden +{number} ", said.stdout, re.M)
    assert "bytes are free" in said.stdout
    assert before == after
    cost = {str(cost.tier): cost for cost in estimated.costs}
    assert cost["logps"].num_rows == 0
    assert cost["hidden"].num_rows == number
    real = shard.num_bytes + scored.heads()[0].num_bytes
    assert 0.8 * real < cost["hidden"].num_bytes < 1.25 * real
    assert dry_run(scored, asked).num_bytes == 0


def test_dry_run_of_data_that_was_not_added_says_so(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=6, seed=3)
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="reviews", tokenizer=model_dir
    )
    with pytest.raises(PairSetError, match="a dry run writes nothing; run `offpref add` first"):
        dry_run(store, ScoreSettings(model=model_dir, data=data))
    assert store.partitions("pairs") == []


def test_disk_that_cannot_hold_it_is_refused_before_any_work(
    scored: Store, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(scored.path)._replace(free=10_000)
    monkeypatch.setattr(tiers.shutil, "disk_usage", lambda path: usage)

    with pytest.raises(StoreError, match=r"bytes free for what is asked for, found 10,000; ask"):
        run(scored, model_dir, "hidden")
    said = CliRunner().invoke(
        main, ["score", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
               "--tier", "hidden", "--dry-run"],
    )  # fmt: skip

    assert scored.partitions("hidden") == []
    assert said.exit_code == 1
    assert "the disk cannot hold it" in said.output


@pytest.mark.parametrize(
    ("names", "top_k", "said"),
    [
        (("hidden",), 8, "top_k has no effect without tier topk"),
        (("topk",), 0, "top_k must be at least 1, got 0"),
        (("logits",), None, "tier must be one of logps, topk, hidden, got 'logits'"),
    ],
)
def test_tiers_that_make_no_sense_are_refused(
    names: tuple[str, ...], top_k: int | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ScoreSettings(model=Path("model"), pair_set="p", tier=names, top_k=top_k)


def test_more_top_tokens_than_the_vocabulary_has_are_refused(
    scored: Store, model_dir: Path
) -> None:
    with pytest.raises(ModelError, match="top_k must be at most the vocabulary of 58, got 59"):
        run(scored, model_dir, "topk", top_k=59)


def test_head_comes_back_bit_for_bit_and_always_as_the_same_bytes(store: Store) -> None:
    head = OutputHead(
        weight=torch.randn(7, 3).bfloat16(), bias=torch.randn(7), scale=0.125, softcap=30.0
    )
    contents = {head_content(head) for _ in range(20)}
    with store.batch() as batch:
        batch.add_head("fp", head_content(head))

    found = read_head(store, "fp")

    assert len(contents) == 1
    assert torch.equal(found.weight, head.weight)
    assert torch.equal(found.bias, head.bias)
    assert (found.scale, found.softcap) == (0.125, 30.0)
    assert shared_head(found, head) is head  # frozen and equal: one copy is enough
    trained = OutputHead(weight=head.weight.clone().requires_grad_(), bias=head.bias,
                         scale=0.125, softcap=30.0)  # fmt: skip
    assert shared_head(found, trained) is found


def test_head_that_is_gone_or_cut_short_is_one_clear_line(tiered: Store) -> None:
    [scorer] = tiered.partitions("hidden")
    path = tiered.head_path(scorer)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ShardCorruptError, match="its bytes do not match its commit"):
        read_head(tiered, scorer)
    path.unlink()
    with pytest.raises(ShardMissingError, match="is gone, though rows of tier hidden need it"):
        read_head(tiered, scorer)


def rewritten(tiered: Store, tmp_path: Path, change: Any) -> Store:
    """A store whose hidden rows were written otherwise than they should have been."""
    [scorer] = tiered.partitions("hidden")
    rows = tiered.read("hidden", scorer)
    other = Store.create(tmp_path / "other")
    shutil.copytree(tiered.path / "specs", other.path / "specs", dirs_exist_ok=True)
    with other.batch() as batch:
        for table in ("sequences", "logps"):
            [partition] = tiered.partitions(table)
            batch.add(table, partition, tiered.read(table, partition))
        batch.add("hidden", scorer, change(rows))
        batch.add_head(scorer, tiered.head_path(scorer).read_bytes())
    return other


def one_place_off(rows: pa.Table) -> pa.Table:
    values = [bytes(np.roll(np.frombuffer(v, np.uint8), 256)) for v in rows["hidden"].to_pylist()]
    return rows.set_column(3, HIDDEN.schema.field(3), pa.array(values, pa.large_binary()))


def of_another_sequence(rows: pa.Table) -> pa.Table:
    keys = rows["sequence_key"].to_pylist()
    counts = rows["num_rows"].to_pylist()
    i, j = next((i, j) for i in range(len(keys)) for j in range(i) if counts[i] == counts[j])
    keys[i], keys[j] = keys[j], keys[i]
    return rows.set_column(0, HIDDEN.schema.field(0), pa.array(keys, pa.binary(16)))


def cut_short(rows: pa.Table) -> pa.Table:
    values = [value[:-4] for value in rows["hidden"].to_pylist()]
    return rows.set_column(3, HIDDEN.schema.field(3), pa.array(values, pa.large_binary()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_place_off, "nats per token from the stored ones"),
        (of_another_sequence, "nats per token from the stored ones"),
        (cut_short, "expected .* of float32, found"),
    ],
)
def test_deep_verification_finds_rows_that_are_whole_but_wrong(
    tiered: Store, tmp_path: Path, change: Any, said: str
) -> None:
    store = rewritten(tiered, tmp_path, change)
    assert verify_store(store.path).problems == []  # every byte is as it was written

    found = verify_hidden(store, num_rows=1000)

    assert found.problems
    with pytest.raises(AssertionError, match=said):
        raise AssertionError("\n".join(found.problems))


def test_deep_verification_of_a_store_in_order_finds_nothing(tiered: Store) -> None:
    said = CliRunner().invoke(main, ["store", "verify", "--deep", str(tiered.path)])

    assert said.exit_code == 0, said.output
    assert "0 problems, 0 notes" in said.stdout
    assert "in 64 rows recomputed" in said.stdout
    assert verify_hidden(tiered).largest_difference < 1e-5


def test_listing_shows_tiers_and_heads(tiered: Store) -> None:
    said = CliRunner().invoke(main, ["store", "ls", str(tiered.path)]).stdout
    assert [line.split()[0] for line in said.splitlines()[-5:-1]] == [
        "logps", "topk", "hidden", "heads",
    ]  # fmt: skip
