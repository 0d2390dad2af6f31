"""Losses of lists through the whole program: one packed row a list, stored scores, every record."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from list_cases import PlainLists, write_lists
from mask_cases import put_some_spans, some_spans, truths
from safetensors.torch import load_file
from stopping import send, start_until

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.select import select_pairs
from offpref.pipeline.adding.settings import AddSettings, SelectSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.progress import Progress
from offpref.pipeline.rewards.reward import reward
from offpref.pipeline.rewards.settings import RewardSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import PairSetError
from offpref.stores.query.catalog import open_catalog
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]
NAMES = ("plackett_luce", "lambda_loss")


@pytest.fixture(scope="session")
def ranked_once(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with sixty lists, a fifth of them held out, scored by ``model_dir``."""
    folder = tmp_path_factory.mktemp("ranked")
    data = AddSettings(
        data=(str(write_lists(folder / "lists.jsonl", num_lists=60, seed=5)),), pair_set="ranked",
        tokenizer=model_dir, max_length=64, eval_fraction=0.2,
    )  # fmt: skip
    score(Store.create(folder / "store"), ScoreSettings(model=model_dir, data=data))
    return folder / "store"


@pytest.fixture
def ranked(ranked_once: Path, tmp_path: Path) -> Store:
    """A copy of that store."""
    ignored = shutil.ignore_patterns("*.alive")
    return Store.open(Path(shutil.copytree(ranked_once, tmp_path / "ranked", ignore=ignored)))


@pytest.fixture(scope="session")
def other_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with other weights than the reference, and the same tokenizer."""
    folder = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("other") / "model"))
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    write_model(folder, vocab_size=vocab_size, seed=9)
    return folder


@pytest.fixture
def list_settings(train_settings: Settings, model_dir: Path) -> Settings:
    """Make the settings of a short run on the lists."""

    def make(**given: object) -> TrainSettings:
        defaults = {"pair_set": "ranked", "loss_type": "plackett_luce", "reference": str(model_dir)}
        return train_settings(**(defaults | given))

    return make


def rows_of(store: Store, run_id: str, table: str) -> list[dict[str, Any]]:
    store.refresh()
    return store.read(table, run_id).to_pylist()


@pytest.mark.parametrize("max_batch_tokens", [1, 150, 10_000])  # a list, some, all to a microbatch
@pytest.mark.parametrize("name", NAMES)
def test_run_equals_a_plain_one_on_padded_sequences(
    ranked: Store, list_settings: Settings, other_model: Path, model_dir: Path, name: str,
    max_batch_tokens: int,
) -> None:  # fmt: skip
    settings = list_settings(
        loss_type=name, model=other_model, beta=0.4, max_steps=3, learning_rate=2e-3,
        lr_scheduler_type="constant", adam_epsilon=1e-4, max_batch_tokens=max_batch_tokens,
        eval_every=3,
    )  # fmt: skip
    plan = plan_training(ranked, settings)
    plain = PlainLists(ranked, other_model, model_dir)
    optimizer = torch.optim.AdamW(plain.policy.parameters(), lr=2e-3, eps=1e-4, weight_decay=0.0)

    summary = train(plan)

    examples = rows_of(ranked, summary.run_id, "examples")
    steps = {(s["step"], s["split"]): s for s in rows_of(ranked, summary.run_id, "steps")}
    for step in (1, 2, 3):
        own = [row for row in examples if (row["step"], row["split"]) == (step, "train")]
        keys = {bytes(plan.pairs.keys[k]).ljust(16, b"\0") for k in plan.epoch(0)[step - 1]}
        assert {row["pair_key"] for row in own} == keys
        measured = [plain.measure(row["pair_key"], name, 0.4) for row in own]
        for row, expected in zip(own, measured, strict=True):
            for column in expected.keys() & row.keys() - {"loss"}:
                assert row[column] == pytest.approx(expected[column], abs=2e-3), column
            assert row["loss"] == pytest.approx(float(expected["loss"].detach()), abs=2e-3)
        loss = torch.stack([each["loss"] for each in measured]).mean()
        assert steps[step, "train"]["loss"] == pytest.approx(float(loss.detach()), abs=5e-4)
        metrics = dict(steps[step, "train"]["metrics"])
        right, all_of_them = (
            sum(each[k] for each in measured) for k in ("num_ordered", "num_compared")
        )
        assert metrics["rewards/list_accuracies"] == pytest.approx(right / all_of_them, abs=0.02)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.policy.parameters(), 1.0)
        assert steps[step, "train"]["grad_norm"] == pytest.approx(float(norm), rel=2e-3)
        optimizer.step()
    held_out = [row for row in examples if (row["step"], row["split"]) == (3, "eval")]
    assert len(held_out) == sum(row["split"] == "eval" for row in plain.lists.values()) > 3
    for row in held_out:
        expected = plain.measure(row["pair_key"], name, 0.4)
        assert row["loss"] == pytest.approx(float(expected["loss"].detach()), abs=5e-3)


def test_prompt_of_a_list_is_computed_once(
    ranked: Store, list_settings: Settings, model_dir: Path
) -> None:
    settings = list_settings(max_batch_tokens=1, max_steps=1)  # a list to a row, no padding
    plan = plan_training(ranked, settings)
    processes = Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    counted: list[int] = []
    policy.model.get_input_embeddings().register_forward_hook(
        lambda module, given, output: counted.append(given[0].numel())
    )
    optimizer = torch.optim.SGD(trainable(policy).values(), lr=0.0)
    learner = Learner(policy=policy, optimizer=optimizer, processes=processes)  # type: ignore[arg-type] # any will do
    trainer = Trainer(plan, learner, None, Progress())

    trainer.run(0, lambda step: None)

    sequences = {row["sequence_key"]: row for row in ranked.read("sequences").to_pylist()}
    lists = {row["list_key"]: row["sequence_keys"] for row in ranked.read("lists").to_pylist()}
    expected = []
    for number in plan.epoch(0)[0]:
        rows = [sequences[k] for k in lists[bytes(plan.pairs.keys[number]).ljust(16, b"\0")]]
        completions = sum(row["num_completion_tokens"] for row in rows)
        expected.append(rows[0]["num_prompt_tokens"] + completions)
    assert sorted(counted) == sorted(expected)
    assert trainer.num_tokens == sum(expected)


def test_first_step_from_the_reference_has_the_known_loss(
    ranked: Store, list_settings: Settings
) -> None:
    summary = train(plan_training(ranked, list_settings(max_steps=2, eval_every=1)))

    steps = rows_of(ranked, summary.run_id, "steps")
    first = next(row for row in steps if (row["step"], row["split"]) == (1, "train"))
    lists = {row["list_key"]: row["scores"] for row in ranked.read("lists").to_pylist()}
    examples = rows_of(ranked, summary.run_id, "examples")
    for row in (each for each in examples if (each["step"], each["split"]) == (1, "train")):
        scores = lists[row["pair_key"]]
        sums = [1 + sum(other < own for other in scores) for own in scores]
        assert row["loss"] == pytest.approx(float(np.log(sums).sum()), abs=1e-5)
    metrics = [dict(row["metrics"]) for row in steps if row["step"] <= 1]
    for found in (metrics[0], dict(first["metrics"])):  # nothing but rounding
        assert "rewards/list_accuracies" not in found
        assert "rewards/accuracies" not in found
    assert dict(steps[-1]["metrics"])["rewards/list_accuracies"] > 0


def test_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    ranked: Store, model_dir: Path, tmp_path: Path
) -> None:
    def command(output: str, *more: str) -> list[str]:
        return [
            sys.executable, "-c", "from offpref.pipeline.commands.main import main; main()",
            "train", str(ranked.path), "--pair-set", "ranked", "--model", str(model_dir),
            "--output-dir", str(tmp_path / output), "--loss-type", "lambda_loss",
            "--pairs-per-step", "8", "--learning-rate", "1e-3", "--max-steps", "8",
            "--save-every", "2", "--eval-every", "3", *more,
        ]  # fmt: skip

    subprocess.run(command("whole"), check=True, capture_output=True)
    process = start_until("checkpoint-placed:1", command("broken"))
    assert send(process, signal.SIGKILL)[0] != 0
    subprocess.run(command("broken", "--resume"), check=True, capture_output=True)

    found = []
    for name in ("whole", "broken"):
        run_id = json.loads((tmp_path / name / "run.json").read_text())["run_id"]
        rows = rows_of(ranked, run_id, "examples")
        found.append({(r["step"], r["split"], r["pair_key"], r["loss"]) for r in rows})
    assert found[0] == found[1]  # the steps that were taken twice, too
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scores_of_lists_are_a_part_of_what_a_run_depends_on(
    ranked: Store, list_settings: Settings
) -> None:
    first = plan_training(ranked, list_settings())
    assert first.pairs.members is not None
    changed = first.pairs.members.scores.copy()
    changed[0] += 1.0

    other = replace(first.pairs, members=replace(first.pairs.members, scores=changed))

    assert other.digest() != first.pairs.digest()


def test_missing_scores_name_the_command_that_computes_them(
    store: Store, list_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    data = write_lists(tmp_path / "lists.jsonl", num_lists=20, seed=1)
    asked = AddSettings(data=(str(data),), pair_set="ranked", tokenizer=model_dir, max_length=64)
    add_pairs(store, plan_add(store, asked))
    store.refresh()
    num_sequences = len(store.read("sequences"))

    with pytest.raises(PairSetError, match=f"{num_sequences} sequences of ranked") as error:
        plan_training(store, list_settings(reference=None))
    command = re.search(r"run: offpref (score .*)", str(error.value))
    assert command is not None
    done = CliRunner().invoke(main, command[1].split())

    assert done.exit_code == 0, done.output
    assert f"sequences  {num_sequences}: {num_sequences} new" in done.output
    train(plan_training(Store.open(store.path), list_settings(reference=None, max_steps=1)))


def test_pairs_are_not_lists_and_lists_are_not_pairs(
    ranked: Store, scored: Store, list_settings: Settings, train_settings: Settings
) -> None:
    with pytest.raises(PairSetError, match="has pairs, not lists: a loss of lists needs"):
        plan_training(scored, list_settings(pair_set="reviews"))
    with pytest.raises(PairSetError, match=r"has lists, not pairs: .* --from-lists best-worst"):
        plan_training(ranked, train_settings(pair_set="ranked"))
    with pytest.raises(PairSetError, match=r"no list of split 'test'; it has: .* of 'train'"):
        plan_training(ranked, list_settings(train_split="test"))


def test_pairs_made_of_lists_train_as_always(
    ranked: Store, train_settings: Settings, list_settings: Settings
) -> None:
    made, _ = select_pairs(ranked, SelectSettings(pair_set="ranked", from_lists="best-worst"))

    summary = train(plan_training(ranked, train_settings(pair_set=made.name, max_steps=2)))

    assert rows_of(ranked, summary.run_id, "steps")[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    with pytest.raises(PairSetError, match="has pairs, not lists"):
        plan_training(ranked, list_settings(pair_set=made.name, output_dir=Path("elsewhere")))


def test_lists_of_one_score_are_left_out_with_a_word(
    store: Store, list_settings: Settings, model_dir: Path, write_rows: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    prompt = "how was the film ?"
    rows = [{"prompt": prompt, "completions": [" good", " bad"], "scores": [1, 1]}]
    rows += [
        {"prompt": prompt, "completions": [f" {w}", " dull", " slow"], "scores": [3, 2, 2]}
        for w in ("good", "fine")
    ]
    data = AddSettings(data=(str(write_rows(rows)),), pair_set="ranked", tokenizer=model_dir)
    score(store, ScoreSettings(model=model_dir, data=data))

    plan = plan_training(store, list_settings(pairs_per_step=2))
    done = CliRunner().invoke(main, [
        "train", str(store.path), "--pair-set", "ranked", "--model", str(model_dir),
        "--output-dir", str(tmp_path / "run"), "--loss-type", "lambda_loss",
        "--pairs-per-step", "2",
    ])  # fmt: skip

    assert done.exit_code == 0, done.output
    assert len(plan.pairs) == 2
    assert plan.pairs.num_left_out == 1
    assert "1 lists of split train are left out: they score all" in done.stderr
    with pytest.raises(ValueError, match="has 2 lists: not one step"):
        plan_training(store, list_settings(pairs_per_step=3, output_dir=Path("elsewhere")))


@pytest.mark.parametrize("mask", ["last-turn", "assistant", "sql"])
def test_mask_acts_on_every_completion_of_a_list(
    ranked: Store, list_settings: Settings, other_model: Path, model_dir: Path, mask: str
) -> None:
    def counts(ids: list[int]) -> list[bool]:
        if mask == "sql":
            return [place % 3 > 0 for place in range(len(ids))]
        return truths(some_spans(ids), len(ids), mask)

    put_some_spans(ranked)
    query = (
        "sql:with tokens as (select sequence_key, unnest(range(num_completion_tokens)) as position "
        "from sequences) select sequence_key, position from tokens where position % 3 > 0"
    )
    given = list_settings(
        model=other_model, mask=query if mask == "sql" else mask, max_steps=1, log_tokens="all",
        max_batch_tokens=150,
    )  # fmt: skip
    summary = train(plan_training(ranked, given))

    plain = PlainLists(ranked, other_model, model_dir, counts)
    examples = rows_of(ranked, summary.run_id, "examples")
    for row in examples:
        expected = plain.measure(row["pair_key"], "plackett_luce", 0.1)
        assert row["loss"] == pytest.approx(float(expected["loss"].detach()), abs=1e-5)
        for column in expected.keys() & row.keys() - {"loss"}:
            assert row[column] == pytest.approx(expected[column], abs=1e-4), column
    every = PlainLists(ranked, other_model, model_dir).measure(
        examples[0]["pair_key"], "plackett_luce", 0.1
    )
    assert abs(float(every["loss"].detach()) - examples[0]["loss"]) > 1e-4
    rows = rows_of(ranked, summary.run_id, "masks")
    assert len(rows) == 16  # of best and worst, whose tokens are logged


def test_mask_that_takes_pairs_is_refused(ranked: Store, list_settings: Settings) -> None:
    with pytest.raises(ValueError, match="mask diff has no effect on lists"):
        plan_training(ranked, list_settings(mask="diff"))
    with pytest.raises(ValueError, match="pair_key has no effect on lists"):
        plan_training(
            ranked,
            list_settings(mask="sql:select sequence_key, 0 as position, list_key as pair_key "
                               "from (select list_key, unnest(sequence_keys) as sequence_key "
                               "from lists)"),
        )  # fmt: skip


def test_list_whose_tokens_do_not_count_is_left_out(ranked: Store, list_settings: Settings) -> None:
    spared = ranked.read("lists").to_pylist()[0]
    names = ", ".join(f"'{UUID(bytes=key)}'" for key in spared["sequence_keys"])
    query = (
        "sql:with tokens as (select sequence_key, unnest(range(num_completion_tokens)) as position "
        f"from sequences) select * from tokens where sequence_key not in ({names})"
    )

    plan = plan_training(ranked, list_settings(mask=query, train_split=spared["split"]))

    assert plan.pairs.num_uncounted == 1
    assert spared["list_key"] not in padded_keys(plan.pairs.keys)
    assert plan.pairs.members is not None
    assert plan.pairs.counted is not None
    assert plan.pairs.counted.members is not None
    counted = plan.pairs.counted.members.counts
    shared = np.isin(plan.pairs.members.keys, np.array(spared["sequence_keys"], "S16"))
    assert (counted[~shared] == plan.pairs.members.num_tokens[~shared]).all()


def padded_keys(keys: Any) -> list[bytes]:
    return [bytes(key).ljust(16, b"\0") for key in keys]


def test_best_and_worst_of_a_list_are_logged_by_token(
    ranked: Store, list_settings: Settings
) -> None:
    summary = train(plan_training(ranked, list_settings(max_steps=1, log_tokens="all")))

    lists = {row["list_key"]: row["sequence_keys"] for row in ranked.read("lists").to_pylist()}
    rows = rows_of(ranked, summary.run_id, "tokens")
    ends = {
        (key, place)
        for key in {row["pair_key"] for row in rows}
        for place in (lists[key][0], lists[key][-1])
    }
    assert {(row["pair_key"], row["sequence_key"]) for row in rows} == ends
    assert len(rows) == 16


def test_kl_metrics_are_measured_and_change_nothing(
    ranked: Store, list_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    score(ranked, ScoreSettings(model=model_dir, pair_set="ranked", tier=("hidden",)))
    ranked.refresh()
    plain = train(plan_training(ranked, list_settings(max_steps=3, output_dir=tmp_path / "plain")))
    given = list_settings(max_steps=3, kl_metrics=True, output_dir=tmp_path / "kl")

    measured = train(plan_training(ranked, given))

    metrics = dict(rows_of(ranked, measured.run_id, "steps")[-1]["metrics"])
    assert metrics["forward_kl/chosen"] > 0
    assert metrics["reverse_kl/rejected"] > 0
    assert metrics["entropy"] > 0
    losses = [
        [row["loss"] for row in rows_of(ranked, run.run_id, "examples")]
        for run in (plain, measured)
    ]
    assert losses[0] == losses[1]


def test_sum_with_sft_trains(ranked: Store, list_settings: Settings) -> None:
    given = list_settings(loss_type=("plackett_luce", "sft"), max_steps=6, eval_every=6)

    summary = train(plan_training(ranked, given))

    held_out = [s for s in rows_of(ranked, summary.run_id, "steps") if s["split"] == "eval"]
    assert held_out[-1]["loss"] < held_out[0]["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_held_out_loss_falls(
    ranked: Store, list_settings: Settings, other_model: Path, name: str
) -> None:
    given = list_settings(
        loss_type=name, max_steps=12, eval_every=12, model=other_model, learning_rate=3e-3
    )

    summary = train(plan_training(ranked, given))

    held_out = [s for s in rows_of(ranked, summary.run_id, "steps") if s["split"] == "eval"]
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    accuracies = [dict(s["metrics"])["rewards/list_accuracies"] for s in held_out]
    assert 0 < accuracies[0] < accuracies[1] <= 1


def test_own_loss_of_lists_is_the_built_in_to_the_last_bit(
    ranked: Store, list_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_lists.py").write_text(
        "import offpref\n"
        "from offpref.pipeline.losses import list_losses\n"
        '@offpref.loss(sides="list")\n'
        "def mine(scores, *, beta: float = 0.1):\n"
        "    return list_losses.plackett_luce(scores, beta=beta)\n"
    )
    monkeypatch.chdir(tmp_path)

    runs = [
        train(plan_training(ranked, list_settings(loss_type=name, max_steps=3, output_dir=folder)))
        for name, folder in (
            ("plackett_luce", tmp_path / "one"), ("python:own_lists:mine", tmp_path / "two")
        )
    ]  # fmt: skip

    losses = [[row["loss"] for row in rows_of(ranked, run.run_id, "steps")] for run in runs]
    assert losses[0] == losses[1]


def test_report_and_questions_take_a_run_on_lists(
    ranked: Store, list_settings: Settings, tmp_path: Path
) -> None:
    given = list_settings(max_steps=2, eval_every=1, log_tokens="all")
    train(plan_training(ranked, given))

    for command in (
        ["report", str(ranked.path), "--output", str(tmp_path / "report.html")],
        *(["query", str(ranked.path), name] for name in ("compare", "runs", "margins", "accuracy")),
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output


def test_examples_of_lists_have_texts_and_rewards(ranked: Store, list_settings: Settings) -> None:
    reward(ranked, RewardSettings(objective="words", pair_set="ranked", kind="brevity"))
    train(plan_training(ranked, list_settings(max_steps=1, log_tokens="all")))
    texts = {row["text_key"]: row["completion"] for row in ranked.read("texts").to_pylist()}
    sequences = {row["sequence_key"]: row for row in ranked.read("sequences").to_pylist()}

    with open_catalog(ranked.path) as catalog:
        found = catalog.select(
            "select pair_key, chosen, rejected, chosen_objectives['words'] as words "
            "from examples_with_text"
        ).to_pylist()
        sides = catalog.select("select distinct pair_key, side from tokens_with_text").to_pylist()

    lists = {str(UUID(bytes=r["list_key"])): r for r in ranked.read("lists").to_pylist()}
    assert len(found) == 8
    for row in found:
        own = lists[str(row["pair_key"])]["sequence_keys"]
        best, worst = (sequences[key] for key in (own[0], own[-1]))
        assert row["chosen"] == texts[best["text_key"]]
        assert row["rejected"] == texts[worst["text_key"]]
        assert row["words"] == -best["num_completion_tokens"]
    assert len(sides) == 16
