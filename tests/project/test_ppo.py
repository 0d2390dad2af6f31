"""PPO against exact optima, hand-written arithmetic, and a process that is killed."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")
REWARDS = """
import os, signal

def score(prompts, completions):
    values = {"a": 1.0, "b": -1.0, "c": 0.5, "d": 2.0}
    return [sum(values.get(word, 0.0) for word in text.split()) for text in completions]

def brevity(prompts, completions):
    return [-float(len(text.split())) for text in completions]

calls = 0

def killed_in_step_4(prompts, completions):
    global calls
    calls += 1
    if calls == 4 and "PPO_TEST_KILL" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(prompts, completions)

def broken(prompts, completions):
    return [float("nan")] * len(completions)
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "ppo_test_rewards.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        patch.syspath_prepend(str(folder))
        names = ("ppo", "ppo_losses", "ppo_states", "reward_sources", "rollouts")
        modules = {name: importlib.import_module(name) for name in names}
        yield SimpleNamespace(folder=folder, **modules)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of eight words whose distributions are far from uniform."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("reference")
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.3, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def settings(recipes: SimpleNamespace, reference: Path, **given: Any) -> Any:
    term = recipes.reward_sources.RewardTerm(name="score", source="python:ppo_test_rewards:score")
    small = {
        "prompts": ("a b", "c"), "rewards": (term,), "beta": 1.0, "num_steps": 6,
        "samples_per_step": 16, "num_minibatches": 2, "max_new_tokens": 4, "save_every": 2,
    }  # fmt: skip
    return recipes.ppo.PPOSettings(model=reference, **small | given)


def test_advantages_are_the_recursion_written_by_hand(recipes: SimpleNamespace) -> None:
    rewards = torch.tensor([[0.1, -0.2, 3.0], [1.5, 9.0, 9.0]])
    values = torch.tensor([[0.5, 1.0, 2.0], [0.7, 8.0, 8.0]])  # padding counts nothing
    is_token = torch.tensor([[True, True, True], [True, False, False]])

    advantages, returns = recipes.ppo_losses.advantages_and_returns(
        rewards, values, is_token, gae_lambda=0.9
    )

    third = 3.0 - 2.0
    second = (-0.2 + 2.0 - 1.0) + 0.9 * third
    first = (0.1 + 1.0 - 0.5) + 0.9 * second
    expected = torch.tensor([[first, second, third], [1.5 - 0.7, 0.0, 0.0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values * is_token)


def test_a_completions_tokens_earn_its_score_less_the_price_of_its_logratio(
    recipes: SimpleNamespace,
) -> None:
    logratios = torch.tensor([[0.5, -1.0, 2.0], [0.25, 0.0, 0.0]])
    is_token = torch.tensor([[True, True, True], [True, False, False]])

    earned = recipes.ppo_losses.token_rewards(
        torch.tensor([10.0, 20.0]), logratios, is_token, beta=2.0
    )

    assert earned.tolist() == [[-1.0, 2.0, 6.0], [19.5, 0.0, 0.0]]


def test_whitened_values_have_mean_0_and_deviation_1(recipes: SimpleNamespace) -> None:
    found = recipes.ppo_losses.whitened(torch.tensor([1.0, 2.0, 3.0, 6.0]))

    torch.testing.assert_close(found, torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 3.5**0.5)
    assert recipes.ppo_losses.whitened(torch.tensor([5.0, 5.0])).tolist() == [0.0, 0.0]


def test_the_policy_loss_is_clipped_where_it_would_gain(recipes: SimpleNamespace) -> None:
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0])

    loss, share = recipes.ppo_losses.policy_loss(ratios.log(), torch.zeros(4), advantages, clip=0.2)
    loss.backward()

    # Clipped: 1.2 * 2 where it gains above, 0.8 * -2 where it gains below; the others are not.
    assert loss.item() == pytest.approx(-(2.4 + 1.0 - 3.0 - 1.6) / 4)
    assert share.item() == 0.5
    assert ratios.grad.tolist() == pytest.approx([0.0, -0.5, 0.5, 0.0])


def test_the_value_loss_takes_the_worse_of_free_and_clipped(recipes: SimpleNamespace) -> None:
    values = torch.tensor([3.0, 3.0, 1.25], requires_grad=True)
    old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 1.0, 2.0])

    loss = recipes.ppo_losses.value_loss(values, old, returns, clip=0.5)
    loss.backward()

    # (1.5 - 3)^2 clipped, (3 - 1)^2 free, (1.25 - 2)^2 either way.
    assert loss.item() == pytest.approx((2.25 + 4.0 + 0.5625) / 6)
    assert values.grad.tolist() == pytest.approx([0.0, 2 / 3, -0.25])


@pytest.mark.parametrize("positions", ["relative", "absolute"])  # absolute ones show an offset
def test_padded_batches_have_the_numbers_of_single_sequences(
    recipes: SimpleNamespace, reference: Path, positions: str
) -> None:
    policy = recipes.rollouts.LanguageModel.load(reference)
    if positions == "absolute":
        policy = replace(policy, model=_model_with_absolute_positions())
    prompts = [[1, 4, 5, 6, 7, 8], [1], [1, 9, 10], [1, 4]] * 4
    generator = torch.Generator().manual_seed(0)
    value = recipes.ppo.ValueNetwork(policy.model, generator)
    torch.nn.init.normal_(value.out.weight)

    drawn, drawn_logps = recipes.rollouts.draw(
        policy, prompts, max_new_tokens=12, generator=generator
    )
    completions = drawn.completion_ids()
    logps = recipes.rollouts.all_token_logps(policy.model, drawn)
    values = value.all(drawn)
    part = drawn.rows(torch.tensor([2, 1]))  # other padding, other order

    assert len({len(each) for each in completions}) > 3
    assert all(each[-1] == 2 or len(each) == 12 for each in completions)
    assert not any(2 in each[:-1] for each in completions)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids, there = torch.tensor([prompt + completion]), slice(0, len(completion))
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            states = value.trunk(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
            alone = value.out(torch.tanh(value.hidden(states)))[:, 0]
        single = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        for batched in (drawn_logps, logps):
            torch.testing.assert_close(batched[row, there], single, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(values[row, there], alone, atol=2e-5, rtol=1e-5)
        assert logps[row, len(completion) :].tolist() == [0.0] * (logps.shape[1] - len(completion))
    assert part.num_prompt_columns == 3
    assert part.completion_ids() == [completions[2], completions[1]]
    again, _ = recipes.rollouts.token_logps(policy.model, part)
    both = logps[[2, 1], : again.shape[1]]
    torch.testing.assert_close(again.detach(), both, atol=2e-5, rtol=1e-5)


def _model_with_absolute_positions() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def test_ppo_finds_the_exact_optimum(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    beta, prompt = 0.7, "a b"
    given = settings(
        recipes, reference, prompts=(prompt,), beta=beta, num_steps=24, samples_per_step=128,
        num_minibatches=4, max_new_tokens=2, learning_rate=3e-3, value_learning_rate=3e-3,
    )  # fmt: skip

    recipes.ppo.train_ppo(given, tmp_path / "policy")

    start = recipes.rollouts.LanguageModel.load(reference)
    policy = recipes.rollouts.LanguageModel.load(tmp_path / "policy")
    ref_logps, rewards = _every_completion(recipes, start, prompt)
    logps, _ = _every_completion(recipes, policy, prompt)
    best_logps = (ref_logps + rewards / beta).log_softmax(dim=0)
    assert ref_logps.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert logps.exp().sum().item() == pytest.approx(1.0, abs=1e-6)

    def outcome(of: torch.Tensor) -> tuple[float, float]:
        return float(of.exp() @ rewards), float(of.exp() @ (of - ref_logps))

    (reward, kl), (best_reward, best_kl) = outcome(logps), outcome(best_logps)
    before = outcome(ref_logps)[0]
    best = best_reward - beta * best_kl
    assert best - before > 0.5  # there is something to gain
    assert (reward - beta * kl - before) / (best - before) > 0.9
    assert reward == pytest.approx(best_reward, rel=0.1)
    assert kl == pytest.approx(best_kl, rel=0.2)


def _every_completion(
    recipes: SimpleNamespace, policy: Any, prompt: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-prob and score of every completion of at most two tokens, float64."""
    completions = [[2]]
    firsts = [i for i in range(12) if i != 2]
    completions += [list(each) for each in itertools.product(firsts, range(12))]
    (ids,) = policy.prompt_ids([prompt], room=2)
    batch = recipes.rollouts.Completions.of([ids] * len(completions), completions)
    with torch.no_grad():
        logps, _ = recipes.rollouts.token_logps(policy.model, batch)
    term = recipes.reward_sources.RewardTerm(name="s", source="python:ppo_test_rewards:score")
    found = recipes.reward_sources.RewardSum([term]).by_name(
        [prompt] * len(completions), policy.texts(batch)
    )
    return logps.double().sum(dim=1), found["s"].double()


def test_a_killed_run_resumes_to_the_same_weights(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    term = recipes.reward_sources.RewardTerm(
        name="score", source="python:ppo_test_rewards:killed_in_step_4"
    )
    given = settings(recipes, reference, rewards=(term,))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in given.prompts))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    paths = os.pathsep.join(map(str, (recipes.folder, RECIPES)))  # `make test` has safe paths on
    environment = os.environ | {"PPO_TEST_KILL": "1", "PYTHONPATH": paths}
    command = [
        sys.executable, RECIPES / "ppo.py", reference, killed, "--prompts", prompts,
        "--reward", "score=python:ppo_test_rewards:killed_in_step_4", "--beta", "1",
        "--num-steps", "6", "--samples-per-step", "16", "--num-minibatches", "2",
        "--max-new-tokens", "4", "--save-every", "2",
    ]  # fmt: skip

    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    rows: list[Any] = []
    recipes.ppo.train_ppo(given, killed, rows.append)
    recipes.ppo.train_ppo(replace(given, save_every=5), whole)  # it changes no result

    assert done.returncode == -9, done.stderr
    assert [row["step"] for row in rows] == [3, 4, 5, 6]
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    records = [json.loads((each / "ppo.json").read_text()) for each in (killed, whole)]
    measured = [[row | {"seconds": 0} for row in each["steps"]] for each in records]
    assert measured[0] == measured[1]
    assert not list(tmp_path.glob(".*"))


def test_what_is_there_is_returned_or_refused(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    given, output = settings(recipes, reference, num_steps=2), tmp_path / "policy"
    record = recipes.ppo.train_ppo(given, output)
    before = (output / "model.safetensors").stat().st_mtime_ns
    rows: list[Any] = []

    assert recipes.ppo.train_ppo(given, output, rows.append) == json.loads(json.dumps(record))
    assert rows == []
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    for name, value in (("beta", 2.0), ("prompts", ("a", "c")), ("seed", 1)):
        with pytest.raises(recipes.ppo.TrainingError, match=f"was made with {name} "):
            recipes.ppo.train_ppo(replace(given, **{name: value}), output)
    (output / "ppo.json").unlink()
    with pytest.raises(recipes.ppo.TrainingError, match="expected a new folder"):
        recipes.ppo.train_ppo(given, output)


def test_a_state_of_other_settings_is_refused(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise StoppedError

    given = settings(recipes, reference)
    with pytest.raises(StoppedError):
        recipes.ppo.train_ppo(given, tmp_path / "policy", stop)

    with pytest.raises(recipes.ppo.TrainingError, match="was made with learning_rate"):
        recipes.ppo.train_ppo(replace(given, learning_rate=0.5), tmp_path / "policy")


def test_the_policy_is_a_folder_that_transformers_loads_and_its_record_counts(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    terms = tuple(
        recipes.reward_sources.RewardTerm.parse(text)
        for text in ("score=python:ppo_test_rewards:score*2",
                     "short=python:ppo_test_rewards:brevity*-0.5")
    )  # fmt: skip
    given = settings(recipes, reference, rewards=terms, num_steps=3, beta=0.3)

    record = recipes.ppo.train_ppo(given, tmp_path / "policy")

    for row in record["steps"]:
        weighted = 2 * row["rewards"]["score"] - 0.5 * row["rewards"]["short"]
        assert row["objective"] == pytest.approx(weighted - 0.3 * row["kl"], abs=1e-5)
    assert record["num_sequences"] == 48
    assert record["num_forwards"] == 48 * (3 + 2 * 2)  # draw, reference, value; two passes of both
    assert record["steps"][0]["kl"] == pytest.approx(0.0, abs=1e-4)
    weights, start = (
        load_file(each / "model.safetensors") for each in (tmp_path / "policy", reference)
    )
    assert weights.keys() == start.keys()
    assert all(not torch.equal(weights[name], start[name]) for name in weights)
    policy = recipes.rollouts.LanguageModel.load(tmp_path / "policy")
    assert policy.tokenizer("a b").input_ids == [1, 4, 5]


def test_rewards_add_up_with_their_weights(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path / "judge"
    config = LlamaConfig.from_pretrained(reference, num_labels=1)
    torch.manual_seed(1)
    judge = LlamaForSequenceClassification(config).eval()
    judge.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.save_pretrained(folder)
    texts = ["a b", "d d d d", ""]
    terms = [
        recipes.reward_sources.RewardTerm.parse(text)
        for text in ("score=python:ppo_test_rewards:score*2", f"judge=model:{folder}*-3")
    ]

    rewards = recipes.reward_sources.RewardSum(terms)
    found = rewards.by_name(["c "] * 3, texts)

    with torch.no_grad():
        alone = [
            float(judge(torch.tensor([[*tokenizer("c " + text).input_ids, 2]])).logits[0, 0])
            for text in texts
        ]
    assert found["score"].tolist() == [0.0, 8.0, 0.0]
    assert found["judge"].tolist() == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 3
    expected = [2 * a - 3 * b for a, b in zip(found["score"].tolist(), alone, strict=True)]
    assert rewards.total(found).tolist() == pytest.approx(expected, abs=1e-4)
    assert rewards.num_models == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # trl's, of transformers' names
def test_rloo_trains_for_the_same_objective(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    rloo_check = importlib.import_module("rloo_check")
    term = recipes.reward_sources.RewardTerm(name="score", source="python:ppo_test_rewards:score")
    given = rloo_check.RLOOSettings(
        model=reference, prompts=("a b", "c"), rewards=(term,), beta=0.7, num_steps=8,
        samples_per_step=64, samples_per_prompt=32, max_new_tokens=2, learning_rate=3e-3,
    )  # fmt: skip

    record = rloo_check.train_rloo(given, tmp_path / "policy")

    start = recipes.rollouts.LanguageModel.load(reference)
    before = recipes.rollouts.measure(
        start, start, given.prompts, recipes.reward_sources.RewardSum([term]), beta=0.7,
        num_samples=2000, max_new_tokens=2, seed=1,
    )  # fmt: skip
    assert record["measured"]["objective"][0] > before["objective"][0] + 0.2
    assert record["measured"]["objective"][0] < before["best_objective"] + 0.1
    assert record["num_sequences"] == 512
    again = rloo_check.train_rloo(given, tmp_path / "policy")
    assert again == json.loads(json.dumps(record))


@pytest.mark.parametrize("text", ["score", "=python:a:b", "a=", "a=python:x:y*much", "a=x*0"])
def test_a_reward_that_cannot_be_read_is_refused(recipes: SimpleNamespace, text: str) -> None:
    with pytest.raises(ValueError, match=r"^reward must"):
        recipes.reward_sources.RewardTerm.parse(text)


def test_a_reward_that_is_no_number_stops_the_run(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    term = recipes.reward_sources.RewardTerm(name="x", source="python:ppo_test_rewards:broken")

    with pytest.raises(Exception, match="must return a finite number for each of 16 texts"):
        recipes.ppo.train_ppo(settings(recipes, reference, rewards=(term,)), tmp_path / "policy")


def test_prompts_are_read_once_each_and_must_leave_room(
    recipes: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b", "other": 1}\n{"prompt": "a"}\n')
    policy = recipes.rollouts.LanguageModel.load(reference)

    assert recipes.rollouts.load_prompts(path) == ["a", "b"]
    assert policy.prompt_ids(["a a"], room=29) == [[1, 4, 4]]
    with pytest.raises(Exception, match="expected 1 to 2 tokens beside 30"):
        policy.prompt_ids(["a a"], room=30)
    path.write_text('{"prompt": ["a"]}\n')
    with pytest.raises(Exception, match=r"prompts.jsonl:1: expected a text as prompt, got list"):
        recipes.rollouts.load_prompts(path)
