"""Evaluations: every number against one computed apart, with whole distributions of both models."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from row_store import ask
from transformers import AutoModelForCausalLM

from offpref.pipeline.commands.main import main
from offpref.pipeline.evaluation import sampling
from offpref.pipeline.evaluation.evaluate import EvaluationSummary, evaluate
from offpref.pipeline.evaluation.settings import EvaluateSettings, SampleSettings
from offpref.pipeline.pairs.mismatched import fix_kl_pairs, mismatched_keys
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import ModelError, PairSetError
from offpref.stores.report.html import write_report
from offpref.stores.report.settings import ReportSettings
from offpref.stores.store import Store

JUDGE = """
def score(prompts, completions):
    return [text.split().count('good') - len(text.split()) / 10 for text in completions]
"""
SMALL = SampleSettings(num_samples=3, max_new_tokens=12, batch_size=6)


@pytest.fixture(scope="module")
def policy_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that differs from its reference in every weight."""
    folder = tmp_path_factory.mktemp("policy")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    return folder


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("a_judge", None)
    return "good=python:a_judge:score"


def measure(store: Store, policy: Path, reference: Path | None, **given: Any) -> EvaluationSummary:
    options: dict[str, Any] = {"samples": SMALL, "pair_set": "reviews"} | given
    found = evaluate(store, EvaluateSettings(model=policy, reference=reference, **options))
    store.refresh()
    return found


def samples(store: Store, name: str) -> list[dict[str, Any]]:
    """Samples in the order in which they were drawn, with their ids."""
    sequences = {row["sequence_key"]: row for row in store.read("sequences").to_pylist()}
    rows = [row for row in store.read("pairs").to_pylist() if row["pair_set"].endswith(name)]
    return [sequences[row["chosen_key"]] for row in sorted(rows, key=lambda r: r["source_row"])]


def distributions(folder: Path, row: dict[str, Any]) -> torch.Tensor:
    """Log-probs of every next token at the places of a completion, float64 [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["ids"]])).logits[0]
    return logits.log_softmax(-1)[row["num_prompt_tokens"] - 1 : -1]


def summed_kl(one: Path, other: Path, row: dict[str, Any]) -> float:
    """KL(one || other) at each step, summed."""
    p, q = distributions(one, row), distributions(other, row)
    return float((p.exp() * (p - q)).sum())


def test_sequence_kls_are_sums_over_whole_distributions(
    scored: Store, policy_dir: Path, model_dir: Path
) -> None:
    row = measure(scored, policy_dir, model_dir).row

    own, theirs = samples(scored, policy_dir.name), samples(scored, model_dir.name)
    reverse = np.array([summed_kl(policy_dir, model_dir, each) for each in own])
    by_prompt = reverse.reshape(-1, 3).mean(axis=1)
    assert len(own) == len(theirs) == 3 * row["num_prompts"] > 6
    assert row["reverse_kl"] == pytest.approx(reverse.mean(), rel=1e-4)
    assert row["reverse_kl_error"] == pytest.approx(
        by_prompt.std(ddof=1) / len(by_prompt) ** 0.5, rel=1e-4
    )
    on_policy = [summed_kl(model_dir, policy_dir, each) for each in own]
    assert row["on_policy_forward_kl"] == pytest.approx(np.mean(on_policy), rel=1e-4)
    forward = [summed_kl(model_dir, policy_dir, each) for each in theirs]
    assert row["forward_kl"] == pytest.approx(np.mean(forward), rel=1e-4)
    entropies = [-(p.exp() * p).sum(-1) for p in (distributions(policy_dir, e) for e in own)]
    assert row["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-4)


def test_generations_have_texts_rewards_and_kls_of_their_own(
    scored: Store, policy_dir: Path, model_dir: Path, judge: str
) -> None:
    summary = measure(scored, policy_dir, model_dir, objective=(judge, "brevity=brevity"))

    rows = scored.read("generations").to_pylist()
    own = {row["sequence_key"]: row for row in samples(scored, policy_dir.name)}
    assert len(rows) == len(samples(scored, policy_dir.name))
    for row in rows:
        sequence = own[row["sequence_key"]]
        words = row["completion"].split()
        assert dict(row["rewards"])["good"] == pytest.approx(words.count("good") - len(words) / 10)
        assert dict(row["rewards"])["brevity"] == -sequence["num_completion_tokens"]
        assert row["reverse_kl"] == pytest.approx(
            summed_kl(policy_dir, model_dir, sequence), abs=1e-4
        )
        assert row["has_ended"] == (sequence["ids"][-1] == 2)
        labels = torch.tensor(sequence["ids"][sequence["num_prompt_tokens"] :])
        logps = distributions(policy_dir, sequence).gather(1, labels[:, None]).sum()
        assert row["policy_logps"] == pytest.approx(float(logps), abs=1e-3)
    means = dict(summary.row["rewards"])
    assert means["good"] == pytest.approx(np.mean([dict(r["rewards"])["good"] for r in rows]))
    best = dict(summary.row["best_of_n"])
    by_prompt: dict[bytes, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_key"], []).append(dict(row["rewards"])["good"])
    assert best["good/3"] == pytest.approx(np.mean([max(each) for each in by_prompt.values()]))
    assert best["good/1"] == pytest.approx(means["good"])


def test_a_sample_ends_where_the_policy_ended_it(scored: Store, policy_dir: Path) -> None:
    measure(scored, policy_dir, None)

    for row in samples(scored, policy_dir.name):
        completion = row["ids"][row["num_prompt_tokens"] :]
        assert 2 not in completion[:-1]
        assert row["eos_lost"] == (completion[-1] != 2)
        assert 1 <= len(completion) <= 12


def test_samples_follow_the_policy_and_not_its_generation_config(
    scored: Store, policy_dir: Path, tmp_path: Path
) -> None:
    measure(scored, policy_dir, None)
    folder = Path(shutil.copytree(policy_dir, tmp_path / "penalized"))
    penalties = {"repetition_penalty": 50.0, "min_new_tokens": 12, "suppress_tokens": [5, 6, 7]}
    (folder / "generation_config.json").write_text(json.dumps(penalties))

    sampler = sampling.Sampler(folder, SMALL, limit=64, device="cpu", precision="float32")
    known = samples(scored, policy_dir.name)
    prompts = [np.asarray(row["ids"][: row["num_prompt_tokens"]], np.int32) for row in known[:6]]
    drawn = [ids.tolist() for ids, _ in sampler.draw(prompts, batch=0)]

    assert drawn == [row["ids"][row["num_prompt_tokens"] :] for row in known[:6]]


def test_prompts_of_similar_length_share_a_batch(scored: Store, policy_dir: Path) -> None:
    measure(scored, policy_dir, None)

    lengths = [row["num_prompt_tokens"] for row in samples(scored, policy_dir.name)]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 1


def test_a_long_prompt_takes_no_room_from_the_others(policy_dir: Path) -> None:
    sampler = sampling.Sampler(policy_dir, SMALL, limit=64, device="cpu", precision="float32")
    short, long = (np.full(length, 7, np.int32) for length in (9, 61))
    apart = [len(ids) for ids, _ in sampler.draw([short] * 5, batch=0)]

    drawn = sampler.draw([short, long, short, short, long, short, short], batch=0)

    lengths = [len(ids) for ids, _ in drawn]
    assert max(apart) == 12
    assert max(lengths[i] for i in (0, 2, 3, 5, 6)) == 12
    assert max(lengths[1], lengths[4]) <= 3


def test_the_same_evaluation_draws_and_writes_nothing(
    scored: Store, policy_dir: Path, model_dir: Path
) -> None:
    first = measure(scored, policy_dir, model_dir)
    before = sorted(path for path in scored.path.rglob("*") if path.is_file())

    again = measure(scored, policy_dir, model_dir)

    assert (first.is_new, again.is_new) == (True, False)
    assert again.num_samples_drawn == 0
    assert again.row["evaluation_id"] == first.row["evaluation_id"]
    assert sorted(path for path in scored.path.rglob("*") if path.is_file()) == before


def test_samples_have_the_name_of_the_folder_however_it_is_given(
    scored: Store, policy_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(policy_dir)

    drawn = measure(scored, Path(), None).samples

    assert drawn is not None
    assert drawn.pair_set.name == f"reviews/samples/{policy_dir.name}"


def test_another_seed_is_another_evaluation(scored: Store, policy_dir: Path) -> None:
    first = measure(scored, policy_dir, None)
    other = measure(
        scored, policy_dir, None,
        samples=SampleSettings(num_samples=3, max_new_tokens=12, batch_size=6, seed=1),
    )  # fmt: skip

    assert other.is_new
    drawn = {first.row["evaluation_id"]: [], other.row["evaluation_id"]: []}
    for row in scored.read("generations").to_pylist():
        drawn[row["evaluation_id"]].append(row["sequence_key"])
    one, two = drawn.values()
    assert len(one) == len(two)
    assert set(one) != set(two)


def test_a_killed_run_goes_on_and_draws_what_an_unbroken_one_does(
    scored: Store, policy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Store.open(Path(shutil.copytree(scored.path, tmp_path / "broken")))
    monkeypatch.setattr(
        "offpref.pipeline.evaluation.sample_sets.COMMIT_SECONDS", -1.0
    )  # every batch
    draw, calls = sampling.Sampler.draw, []

    def killed(self: Any, prompts: Any, *, batch: int) -> Any:
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, prompts, batch=batch)

    monkeypatch.setattr(sampling.Sampler, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(broken, policy_dir, None)
    broken.refresh()
    monkeypatch.setattr(sampling.Sampler, "draw", draw)

    unbroken = measure(scored, policy_dir, None)
    resumed = measure(broken, policy_dir, None)

    assert resumed.num_samples_drawn == unbroken.num_samples_drawn - 6
    name = policy_dir.name
    assert [r["ids"] for r in samples(broken, name)] == [r["ids"] for r in samples(scored, name)]


def test_two_runs_that_draw_apart_leave_one_sample_of_each(
    scored: Store, policy_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, found = sampling.Sampler.draw, []

    def drawn_elsewhere(self: Any, prompts: Any, *, batch: int) -> Any:
        if not found:
            found.append(None)  # another process, whose device rounds otherwise, is done before
            found.append(measure(Store.open(scored.path), policy_dir, None).row)
        samples = draw(self, prompts, batch=batch)
        return samples if len(found) < 2 else [(ids[:1], False) for ids, _ in samples]

    monkeypatch.setattr(sampling.Sampler, "draw", drawn_elsewhere)
    measure(scored, policy_dir, None)
    again = measure(scored, policy_dir, None, objective=("brevity=brevity",)).row

    assert again["num_prompts"] == found[1]["num_prompts"]
    rows = scored.read("generations", again["evaluation_id"].hex()).to_pylist()
    assert len(rows) == 3 * again["num_prompts"]
    assert len({row["prompt_key"] for row in rows}) == again["num_prompts"]


def test_held_out_accuracy_is_that_of_the_log_ratios(
    scored: Store, policy_dir: Path, model_dir: Path
) -> None:
    row = measure(scored, policy_dir, model_dir, samples=None).row

    sequences = {each["sequence_key"]: each for each in scored.read("sequences").to_pylist()}

    def reward(key: bytes) -> float:
        labels = torch.tensor(sequences[key]["ids"][sequences[key]["num_prompt_tokens"] :])
        policy, reference = (
            distributions(folder, sequences[key]).gather(1, labels[:, None]).sum()
            for folder in (policy_dir, model_dir)
        )
        return float(policy - reference)

    pairs = [each for each in scored.read("pairs").to_pylist() if each["split"] == "eval"]
    right = [reward(each["chosen_key"]) > reward(each["rejected_key"]) for each in pairs]
    assert row["accuracy"] == np.mean(right)
    assert 0 < row["accuracy"] < 1
    assert row["num_samples"] == 0
    assert scored.read("generations").num_rows == 0


def test_a_policy_that_is_its_reference_has_no_kl_and_no_accuracy(
    scored: Store, model_dir: Path
) -> None:
    row = measure(scored, model_dir, model_dir).row

    assert abs(row["reverse_kl"]) < 1e-9
    assert abs(row["forward_kl"]) < 1e-9
    assert row["accuracy"] is None


def test_a_trained_policy_is_known_by_its_run(
    scored: Store, model_dir: Path, train_settings: Callable[..., TrainSettings]
) -> None:
    train(plan_training(scored, train_settings(max_steps=2)))
    scored.refresh()
    output_dir = train_settings().output_dir

    row = measure(scored, output_dir, model_dir, name="two steps").row

    runs = scored.read("runs").to_pylist()
    assert row["run_id"] == runs[0]["run_id"]
    assert row["name"] == "two steps"


def test_samples_can_be_mismatched_for_kto(scored: Store, policy_dir: Path) -> None:
    drawn = measure(scored, policy_dir, None).samples
    assert drawn is not None

    fix_kl_pairs(scored, drawn.pair_set)
    scored.refresh()

    own = samples(scored, policy_dir.name)
    assert len(mismatched_keys(scored, drawn.pair_set)) == len({row["sequence_key"] for row in own})


def test_samples_are_no_pairs_of_the_report(
    scored: Store, policy_dir: Path, tmp_path: Path
) -> None:
    num_pairs = scored.read("pairs").num_rows
    measure(scored, policy_dir, None)

    summary = write_report(scored, tmp_path / "report.html", ReportSettings())

    assert scored.read("pairs").num_rows > num_pairs
    assert summary.num_pairs == summary.num_pairs_shown == num_pairs


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_the_command_prints_what_it_measured(
    scored: Store, policy_dir: Path, model_dir: Path
) -> None:
    done = cli(
        "evaluate", scored.path, "--model", policy_dir, "--reference", model_dir,
        "--pair-set", "reviews", "--num-samples", 2, "--max-new-tokens", 5,
        "--objective", "brevity=brevity", "--num-prompts", 2,
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    assert "samples    4 of 2 prompts, 8 drawn now" in done.output
    assert "KL(policy || reference)" in done.output
    assert "reward     brevity -" in done.output


def test_temperature_0_takes_the_most_likely_token(
    scored: Store, policy_dir: Path, model_dir: Path
) -> None:
    greedy = SampleSettings(num_samples=1, max_new_tokens=12, batch_size=6, temperature=0)

    row = measure(scored, policy_dir, model_dir, samples=greedy, num_prompts=4).row

    own = samples(scored, policy_dir.name)
    assert len(own) == 4
    for each in own:
        likely = distributions(policy_dir, each).argmax(-1).tolist()
        assert each["ids"][each["num_prompt_tokens"] :] == likely
    reverse = [summed_kl(policy_dir, model_dir, each) for each in own]
    assert row["reverse_kl"] == pytest.approx(np.mean(reverse), rel=1e-4)


def test_win_rate_is_against_the_chosen_completions_of_the_same_prompts(
    scored: Store, policy_dir: Path, judge: str
) -> None:
    given: dict[str, Any] = {"objective": (judge, "brevity=brevity"), "num_prompts": 4}
    measure(scored, policy_dir, None, **given)
    before = ask(scored, "win_rate", objective="good")
    num_rewards = scored.read("rewards").num_rows

    again = measure(scored, policy_dir, None, **given, win_rate_against="chosen")
    rows = {str(row["objective"]): row for row in ask(scored, "win_rate")}

    assert [(row["win_rate"], row["num_unjudged"]) for row in before] == [(None, again.num_chosen)]
    assert again.is_new is False
    assert scored.read("rewards").num_rows == num_rewards + 2 * (again.num_chosen or 0)
    sequences = {row["sequence_key"]: row for row in scored.read("sequences").to_pylist()}
    texts = {row["text_key"]: row["completion"] for row in scored.read("texts").to_pylist()}
    chosen: dict[bytes, set[bytes]] = {}
    for pair in scored.read("pairs").to_pylist():
        if pair["pair_set"] == "reviews" and pair["split"] == "eval":
            prompt = sequences[pair["chosen_key"]]["prompt_key"]
            chosen.setdefault(prompt, set()).add(pair["chosen_key"])
    generations = scored.read("generations").to_pylist()

    def good(text: str) -> float:
        return text.split().count("good") - len(text.split()) / 10

    def brevity(key: bytes) -> float:
        return -float(sequences[key]["num_completion_tokens"])

    def rate(reward: Callable[[bytes], float]) -> tuple[float, int]:
        by_prompt: dict[bytes, list[float]] = {}
        for row in generations:
            for other in chosen[row["prompt_key"]]:
                difference = reward(row["sequence_key"]) - reward(other)
                by_prompt.setdefault(row["prompt_key"], []).append((np.sign(difference) + 1) / 2)
        wins = list(by_prompt.values())
        return float(np.mean([np.mean(each) for each in wins])), sum(map(len, wins))

    for name, reward in (
        ("good", lambda key: good(texts[sequences[key]["text_key"]])), ("brevity", brevity),
    ):  # fmt: skip
        win_rate, num_comparisons = rate(reward)
        assert rows[name]["win_rate"] == pytest.approx(win_rate, abs=1e-4)
        assert rows[name]["num_comparisons"] == num_comparisons
        assert rows[name]["num_prompts"] == 4
    assert measure(scored, policy_dir, None, **given, win_rate_against="chosen").num_chosen == (
        again.num_chosen
    )
    assert scored.read("rewards").num_rows == num_rewards + 2 * (again.num_chosen or 0)


def test_samples_and_chosen_completions_have_one_judge_or_no_win_rate(
    scored: Store, policy_dir: Path, judge: str, tmp_path: Path
) -> None:
    """A judge whose file changes after the samples were judged is another source."""
    changes = "    __import__('pathlib').Path(__file__).write_text('# changed')\n    return"
    (tmp_path / "a_judge.py").write_text(JUDGE.replace("    return", changes))

    with pytest.raises(PairSetError, match="good judges the samples by source"):
        measure(
            scored, policy_dir, None, objective=(judge,), num_prompts=2, win_rate_against="chosen"
        )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--objective", "x"], "objective must be NAME=SOURCE"),
        (["--objective", "x=magic"], "objective must be NAME=SOURCE"),
        (["--objective", "x=brevity", "--objective", "x=brevity"], "given twice"),
        (["--objective", "x=implicit:dir:much"], "must be NAME=implicit:DIR:BETA"),
        (["--temperature", "-1"], "temperature must be at least 0"),
        (["--temperature", "0"], "num_samples has no effect at temperature 0"),
        (["--temperature", "0", "--num-samples", "1", "--top-p", "0.9"], "top_p has no effect at"),
        (["--temperature", "0", "--num-samples", "1", "--seed", "3"], "seed has no effect at"),
        (["--win-rate-against", "chosen"], "has no effect without --objective"),
        (["--top-p", "1.5"], "top_p must be in"),
        (["--num-samples", "0"], "it needs --reference"),
        (["--num-prompts", "0"], "num_prompts must be at least 1"),
    ],
)
def test_settings_that_cannot_act_are_wrong_usage(
    scored: Store, policy_dir: Path, given: list[str], expected: str
) -> None:
    done = cli("evaluate", scored.path, "--model", policy_dir, "--pair-set", "reviews", *given)

    assert done.exit_code == 2
    assert expected in done.output


def test_what_is_not_there_is_one_line(
    scored: Store, policy_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(PairSetError, match="has no prompts in split 'test'"):
        measure(scored, policy_dir, None, split="test")
    with pytest.raises(PairSetError, match="no accuracy to measure on reviews@"):
        measure(scored, policy_dir, model_dir, split="test", samples=None)
    with pytest.raises(PairSetError, match="no accuracy to measure on reviews@"):
        measure(scored, policy_dir, policy_dir, samples=None)
    assert scored.read("evaluations").num_rows == 0
    with pytest.raises(ModelError):
        measure(scored, tmp_path / "nowhere", None)


def test_a_reward_that_is_no_number_stops_the_evaluation(
    scored: Store, policy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b_judge.py").write_text(
        "def score(prompts, completions):\n    return [float('nan')] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(PairSetError, match="objective bad has no finite reward for"):
        measure(scored, policy_dir, None, objective=("bad=python:b_judge:score",))

    assert scored.read("evaluations").num_rows == 0


def test_a_reference_of_another_tokenizer_costs_no_sample(
    scored: Store, policy_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"lovely"', '"horrid"'))

    with pytest.raises(ModelError, match="expected the tokenizer of pair set reviews"):
        measure(scored, policy_dir, other)

    assert not samples(scored, policy_dir.name)
