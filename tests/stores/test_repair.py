"""Damaged scores are removed and computed again; what cannot be computed stays named."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from offpref.pipeline.commands.main import main
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.store import Store


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("is_deleted", [False, True])
def test_damaged_scores_are_computed_again(
    scored: Store, model_dir: Path, is_deleted: bool
) -> None:
    before = scored.read("logps").sort_by("sequence_key").to_pylist()
    (shard,) = scored.shards("logps")
    shard.path.unlink() if is_deleted else damage(shard.path)
    assert cli("store", "verify", scored.path).exit_code == 1

    dropped = cli("store", "verify", scored.path, "--drop-damaged")
    again = cli("score", scored.path, "--pair-set", "reviews", "--model", model_dir)

    assert dropped.exit_code == 0, dropped.output
    assert f"dropped 1 damaged shards of logps, {len(before)} rows: run `offpref score`" in (
        dropped.output
    )
    assert again.exit_code == 0, again.output
    assert f": {len(before)} new, 0 cached" in again.output
    after = Store.open(scored.path).read("logps").sort_by("sequence_key").to_pylist()
    assert [row["sequence_key"] for row in after] == [row["sequence_key"] for row in before]
    for new, old in zip(after, before, strict=True):
        assert new["token_logps"] == pytest.approx(old["token_logps"], abs=1e-5)
    assert not verify_store(scored.path).problems


def test_every_file_is_hashed_before_it_is_called_whole(scored: Store) -> None:
    damage(scored.shards("logps")[0].path)

    done = cli("store", "verify", scored.path, "--drop-damaged", "--verify", "never")

    assert done.exit_code == 0, done.output
    assert "dropped 1 damaged shards of logps" in done.output


def test_what_is_whole_is_kept(scored: Store) -> None:
    done = cli("store", "verify", scored.path, "--drop-damaged")

    assert done.exit_code == 0
    assert "dropped nothing: scores, rewards and heads are whole" in done.output
    assert Store.open(scored.path).read("logps").num_rows > 0


def test_pairs_cannot_be_computed_and_stay_named(scored: Store) -> None:
    damage(scored.shards("pairs")[0].path)

    done = cli("store", "verify", scored.path, "--drop-damaged")

    assert done.exit_code == 1
    assert "is damaged" in done.output
    assert "dropped nothing" in done.output
    assert Store.open(scored.path).shards("pairs")


def test_the_way_out_is_named_where_the_damage_is(scored: Store) -> None:
    damage(scored.shards("logps")[0].path)

    said = cli("store", "verify", scored.path).output

    assert "the `offpref score` that made them computes damaged scores" in said
    assert "--drop-damaged" not in said  # score removes them itself


def test_no_way_out_is_named_for_what_no_command_makes(scored: Store) -> None:
    damage(scored.shards("texts")[0].path)
    (scored.path / "STORE.json").write_text("{}")

    said = cli("store", "verify", scored.path).output

    assert "2 problems" in said
    assert "--drop-damaged" not in said
    assert "offpref score" not in said


def test_notes_are_shown_and_are_no_problem(scored: Store) -> None:
    (scored.path / "heads" / f"{'a' * 32}.safetensors").write_bytes(b"what a killed writer left")

    done = cli("store", "verify", scored.path)

    assert done.exit_code == 0
    assert "0 problems, 1 notes" in done.stdout
    assert "is named by no commit and waits for collection" in done.stderr
