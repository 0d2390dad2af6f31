"""Margin rewards: every source's values against something computed apart, and what is cached."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.pairs.pair_sets import find_pair_set
from offpref.pipeline.rewards.models import ModelRewards
from offpref.pipeline.rewards.objectives import coverage
from offpref.pipeline.rewards.reward import RewardSummary, reward
from offpref.pipeline.rewards.settings import RewardSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.errors import ModelError, PairSetError, SourceError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


def give(store: Store, kind: str, objective: str = "goal", **given: Any) -> RewardSummary:
    settings = RewardSettings(objective=objective, pair_set="reviews", kind=kind, **given)
    summary = reward(store, settings)
    store.refresh()
    return summary


def stored(store: Store, objective: str = "goal") -> dict[tuple[str, str], float]:
    rows = store.read("rewards", filters=[("objective", "=", objective)]).to_pylist()
    return {(row["subject"], row["subject_key"].hex()): row["reward"] for row in rows}


def sequences(store: Store) -> list[dict[str, Any]]:
    return store.read("sequences").to_pylist()


def texts(store: Store) -> dict[str, tuple[str, str]]:
    rows = store.read("texts").to_pylist()
    return {row["text_key"].hex(): (row["prompt"], row["completion"]) for row in rows}


def test_brevity_is_minus_the_tokens_and_is_written_once(scored: Store) -> None:
    first = give(scored, "brevity")
    again = give(scored, "brevity")

    expected = {
        ("sequence", row["sequence_key"].hex()): -float(row["num_completion_tokens"])
        for row in sequences(scored)
    }
    assert stored(scored) == expected
    assert (first.num_new, again.num_new) == (len(expected), 0)
    assert first.source == again.source
    name = find_pair_set(scored, "reviews")
    assert coverage(scored) == [
        f"objective goal@{first.source[:12]}: {len(expected)} of {len(expected)} "
        f"completions of {name}"
    ]


def test_only_what_another_pair_set_lacks_is_computed(
    scored: Store, model_dir: Path, write_rows: Callable[..., Path]
) -> None:
    give(scored, "brevity")
    known = next(iter(texts(scored).values()))
    rows = [{"prompt": known[0], "chosen": known[1], "rejected": " the film was new ."}]
    data = AddSettings(data=(str(write_rows(rows)),), pair_set="more", tokenizer=model_dir)
    add_pairs(scored, plan_add(scored, data))
    scored.refresh()

    found = reward(scored, RewardSettings(objective="goal", pair_set="more", kind="brevity"))

    assert (found.num_subjects, found.num_new) == (2, 1)


@pytest.fixture
def columned(store: Store, model_dir: Path, write_rows: Callable[..., Path]) -> Store:
    rows = [
        {"prompt": "how was the film ?", "chosen": f" {word} .", "rejected": " bad .", **more}
        for word, more in (
            ("good", {"a": 4, "b": 1.5}),
            ("great", {"a": 2, "b": 3}),
            ("fine", {"a": "five", "b": 3}),
            ("warm", {"b": True}),
        )
    ]
    data = AddSettings(data=(str(write_rows(rows)),), pair_set="reviews", tokenizer=model_dir)
    add_pairs(store, plan_add(store, data))
    store.refresh()
    return store


def test_columns_give_a_number_a_side_and_say_where_there_is_none(columned: Store) -> None:
    found = give(columned, "column", chosen_column="a", rejected_column="b")

    keys = {row["source_row"]: row["pair_key"].hex() for row in columned.read("pairs").to_pylist()}
    assert stored(columned) == {
        ("chosen", keys[0]): 4.0, ("rejected", keys[0]): 1.5,
        ("chosen", keys[1]): 2.0, ("rejected", keys[1]): 3.0,
        ("rejected", keys[2]): 3.0,
    }  # fmt: skip
    assert found.reasons == {"a: no number": 2, "b: no number": 1}
    assert (found.num_new, found.num_unusable, found.margin_agreement) == (5, 3, 0.5)
    assert give(columned, "column", chosen_column="a", rejected_column="b").num_new == 0
    assert "5 of 8 sides of reviews@" in coverage(columned)[0]
    with pytest.raises(PairSetError, match="no column 'c'; there are: a, b"):
        give(columned, "column", chosen_column="c", rejected_column="b")


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"functions_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "def words(prompts, completions):\n"
        "    return [len(c.split()) + len(p) / 1000 for p, c in zip(prompts, completions)]\n"
        "def few(prompts, completions):\n    return [1.0]\n"
        "def no(prompts, completions):\n    return ['x' for _ in prompts]\n"
        "def gaps(prompts, completions):\n"
        "    return [float('nan') if i == 0 else 1.0 for i in range(len(prompts))]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(name, None)
    return name


def test_a_function_sees_every_text_and_only_once(scored: Store, functions: str) -> None:
    found = give(scored, "python", function=f"{functions}:words")

    expected = {
        ("text", key): len(completion.split()) + len(prompt) / 1000
        for key, (prompt, completion) in texts(scored).items()
    }
    assert stored(scored) == pytest.approx(expected)
    assert found.num_new == len(expected) > 64  # more than one batch
    assert give(scored, "python", function=f"{functions}:words").num_new == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few", "a number for each of 64 texts, got shape"),
        ("no", "must return a number for each text, got"),
    ],
)
def test_a_function_that_gives_something_else_is_named(
    scored: Store, functions: str, name: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        give(scored, "python", function=f"{functions}:{name}")
    assert stored(scored) == {}


def test_a_function_that_is_not_there_is_named(scored: Store, functions: str) -> None:
    with pytest.raises(ValueError, match="has no function 'none'"):
        give(scored, "python", function=f"{functions}:none")


def test_rewards_that_are_not_finite_are_counted_and_not_written(
    scored: Store, functions: str
) -> None:
    found = give(scored, "python", function=f"{functions}:gaps")

    num_batches = -(-found.num_subjects // 64)
    assert found.num_unusable == num_batches
    assert found.reasons == {"the function gave no finite number": num_batches}
    assert len(stored(scored)) == found.num_subjects - num_batches


def test_standardized_rewards_have_mean_0_and_say_what_was_subtracted(scored: Store) -> None:
    found = give(scored, "brevity", standardize=True)

    raw = np.array([-float(row["num_completion_tokens"]) for row in sequences(scored)])
    keys = [("sequence", row["sequence_key"].hex()) for row in sequences(scored)]
    values = stored(scored)
    np.testing.assert_allclose([values[k] for k in keys], (raw - raw.mean()) / raw.std())
    spec = scored.read_spec(found.source)
    assert (spec["mean"], spec["std"]) == pytest.approx((raw.mean(), raw.std()))
    assert give(scored, "brevity", standardize=True).num_new == 0


def test_implicit_rewards_are_beta_times_the_log_ratio(
    scored: Store, model_dir: Path, train_settings: Settings, tmp_path: Path
) -> None:
    train(plan_training(scored, train_settings(max_steps=8)))
    scored.refresh()
    policy = tmp_path / "out"
    with pytest.raises(ModelError, match=f"have no scores of .*offpref score .* --model {policy}"):
        give(scored, "implicit", model=policy, implicit_beta=0.5)

    score(scored, ScoreSettings(model=policy, pair_set="reviews"))
    scored.refresh()
    found = give(scored, "implicit", model=policy, implicit_beta=0.5)

    sums: dict[str, dict[str, float]] = {}
    for scorer in scored.partitions("logps"):
        for row in scored.read("logps", scorer).to_pylist():
            sums.setdefault(row["sequence_key"].hex(), {})[scorer] = sum(row["token_logps"])
    reference = next(iter(scored.read("runs")["reference"].to_pylist()))
    (other,) = set(scored.partitions("logps")) - {reference}
    expected = {
        ("sequence", key): 0.5 * (both[other] - both[reference]) for key, both in sums.items()
    }
    assert stored(scored) == pytest.approx(expected, abs=1e-6)
    assert max(map(abs, expected.values())) > 1e-3
    assert found.num_new == len(expected)


def write_reward_model(folder: Path, tokenizer: Path, num_labels: int = 1) -> Path:
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    tokens.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, num_labels=num_labels,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_model_gives_each_text_what_it_gives_it_alone(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    folder = write_reward_model(tmp_path / "rm", model_dir)
    found = give(scored, "model", model=folder, max_batch_tokens=200)

    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)
    values = stored(scored)
    for key, (prompt, completion) in texts(scored).items():
        ids = tokens(prompt + completion)["input_ids"]
        ids = ids if ids[-1] == tokens.eos_token_id else [*ids, tokens.eos_token_id]
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0, 0]
        assert values["text", key] == pytest.approx(float(expected), abs=1e-5)
    assert found.num_new == len(values) == len(texts(scored))
    assert give(scored, "model", model=folder).num_new == 0  # not another source


def test_a_model_with_several_outputs_wants_one_chosen(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    folder = write_reward_model(tmp_path / "rm", model_dir, num_labels=3)
    with pytest.raises(ModelError, match="has 3 outputs, choose one with --head"):
        give(scored, "model", model=folder)
    with pytest.raises(ModelError, match="expected --head from 0 on, got 3"):
        give(scored, "model", model=folder, head=3)
    one, two = (give(scored, "model", f"goal{head}", model=folder, head=head) for head in (1, 2))
    assert one.source != two.source
    assert stored(scored, "goal1") != stored(scored, "goal2")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_padding_that_ends_a_text_is_in_the_key_and_other_padding_is_not(
    scored: Store, scored_once: Path, model_dir: Path, tmp_path: Path
) -> None:
    folder = write_reward_model(tmp_path / "rm", model_dir)
    first, values = give(scored, "model", model=folder), stored(scored)
    change_config(folder, pad_token_id=3)  # a token that ends no text
    same = give(scored, "model", model=folder)
    change_config(folder, pad_token_id=2)  # the end token: the one before it gives the reward
    empty = Store.open(Path(shutil.copytree(scored_once, tmp_path / "empty")))

    other = give(empty, "model", model=folder)

    assert (same.source, same.num_new) == (first.source, 0)
    assert other.num_new == first.num_new
    assert other.source != first.source
    apart = [abs(value - values[key]) for key, value in stored(empty).items()]
    assert max(apart) > 1e-3
    assert empty.read_spec(other.source)["pad_token_id"] == 2


def test_former_rewards_by_another_padding_are_kept_and_not_used(
    scored: Store, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The former version gave models that differ in it one name, so either may have made them."""
    folder = write_reward_model(tmp_path / "rm", model_dir)
    change_config(folder, pad_token_id=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRewards, "settled_spec", ModelRewards.spec)
        patch.setattr(ModelRewards, "remember", lambda self, fingerprint: None)
        former = give(scored, "model", model=folder)
    right = write_reward_model(tmp_path / "right", model_dir)

    found = [give(scored, "model", model=each) for each in (right, right, folder)]

    assert [each.num_new > 0 for each in found] == [True, False, False]
    assert found[0].source != former.source == found[2].source
    assert capsys.readouterr().err.count("did not keep pad_token_id") == 1
    assert former.source in scored.partitions("rewards")


def test_a_template_of_a_day_is_in_the_key_of_rewards(
    store: Store, chat_dir: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    tokens = Path(shutil.copytree(chat_dir, tmp_path / "tokens"))
    template = "{{ strftime_now('%m') }} {% for m in messages %}{{ m['content'] }} </s>{% endfor %}"
    (tokens / "chat_template.jinja").write_text(template)
    folder = write_reward_model(tmp_path / "rm", tokens)
    messages = [[{"role": role, "content": word}] for role, word in (
        ("user", "how ?"), ("assistant", "good"), ("assistant", "bad"))]  # fmt: skip
    rows = [dict(zip(("prompt", "chosen", "rejected"), messages, strict=True))]
    found = []
    for day in (date(2026, 1, 1), date(2026, 2, 1)):
        data = AddSettings(
            data=(str(write_rows(rows)),), pair_set="reviews", tokenizer=tokens, template_date=day
        )
        add_pairs(store, plan_add(store, data))
        store.refresh()
        found += [give(store, "model", model=folder) for _ in range(2)]

    assert [each.num_new for each in found] == [2, 0, 2, 0]
    assert store.read_spec(found[0].source)["template_date"] == "2026-01-01"


def test_what_a_function_imports_of_the_users_own_is_in_the_key(
    scored: Store, functions: str, tmp_path: Path
) -> None:
    plain = give(scored, "python", function=f"{functions}:words")
    assert "imported" not in scored.read_spec(plain.source)
    caller, helper = f"{functions}_caller", f"{functions}_helper"
    (tmp_path / f"{helper}.py").write_text("import json\nWEIGHT = 1.0\n")
    (tmp_path / f"{caller}.py").write_text(
        f"from {helper} import WEIGHT\nimport numpy\n"
        "def score(prompts, completions):\n    return [WEIGHT for _ in prompts]\n"
    )
    one = give(scored, "python", "one", function=f"{caller}:score")
    (tmp_path / f"{helper}.py").write_text("WEIGHT = 2.0  # more\n")
    for name in (caller, helper):
        sys.modules.pop(name)
    importlib.invalidate_caches()

    two = give(scored, "python", "one", function=f"{caller}:score")

    assert list(dict(scored.read_spec(one.source)["imported"])) == [helper]  # type: ignore[call-overload]
    assert one.source != two.source
    assert two.num_new == one.num_new


def test_a_language_model_is_no_reward_model(scored: Store, model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a reward model: .* found LlamaForCausalLM"):
        give(scored, "model", model=model_dir)
    assert stored(scored) == {}


def test_a_file_is_joined_by_key_and_what_does_not_fit_is_counted(
    scored: Store, tmp_path: Path
) -> None:
    keys = sorted(row["sequence_key"] for row in sequences(scored))
    path = tmp_path / "rewards.parquet"
    named = [*keys[:-3], bytes(range(16))]
    numbers = [float(i) for i in range(len(named))]
    pq.write_table(pa.table({"sequence_key": [k.hex() for k in named], "reward": numbers}), path)

    found = give(scored, "file", file=path)

    assert stored(scored) == {
        ("sequence", key.hex()): number for key, number in zip(keys[:-3], numbers[:-1], strict=True)
    }
    assert found.num_unusable == 3
    assert found.reasons == {
        "key of no sequence of the pair set": 1,
        "sequence that the file does not name": 3,
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"reward": [1.0]}, "expected columns 'reward' and one of"),
        ({"reward": [1.0], "text_key": ["zz"]}, "16 bytes or 32 hexadecimal digits, got 'zz'"),
        ({"reward": ["x"], "text_key": ["00" * 16]}, "expected numbers as 'reward'"),
        ({"reward": [1.0], "text_key": ["00" * 16]}, "none of its 1 keys is a text"),
        ({"reward": [1.0, 2.0], "text_key": ["00" * 16] * 2}, "expected each key once"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    scored: Store, tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    path = tmp_path / "rewards.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(SourceError, match=message):
        give(scored, "file", file=path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "column", "chosen_column": "a"}, "--from column needs --rejected-column"),
        ({"kind": "brevity", "model": Path("m")}, "--model has no effect with --from brevity"),
        ({"kind": "implicit", "model": Path("m"), "implicit_beta": 0.0}, "greater than 0, got 0.0"),
        ({"kind": "python", "function": "f"}, "must be module:function, got 'f'"),
        ({"kind": "votes"}, "--from must be one of column, model"),
        ({"kind": "brevity", "objective": "a=b"}, "objective must be a name"),
    ],
)
def test_settings_that_cannot_act_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSettings(**({"objective": "goal", "pair_set": "reviews"} | given))


def offpref(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_that_a_run_names_makes_the_run_possible(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    training = [
        "train", scored.path, "--pair-set", "reviews", "--model", model_dir, "--output-dir",
        tmp_path / "out", "--loss-type", "modpo", "--objective", "short=0.5", "--max-steps", 2,
    ]  # fmt: skip
    refused = offpref(*training)
    assert refused.exit_code != 0
    command = refused.output.split("run: offpref ")[1].strip().split()

    given = offpref(*[word.replace("SOURCE", "brevity") for word in command])
    assert given.exit_code == 0, given.output
    assert "agreement" in given.output
    trained = offpref(*training)
    assert trained.exit_code == 0, trained.output


def test_modpo_with_brevity_starts_where_its_rewards_put_it(
    scored: Store, train_settings: Settings
) -> None:
    """At step 0 the policy is the reference: the loss is that of the margins alone."""
    give(scored, "brevity", "short")
    settings = train_settings(
        loss_type=("modpo",), preference_weight=0.5, objective=("short=0.1",), max_steps=1,
    )  # fmt: skip
    train(plan_training(scored, settings))
    scored.refresh()

    lengths = {row["sequence_key"]: row["num_completion_tokens"] for row in sequences(scored)}
    pairs = {row["pair_key"]: row for row in scored.read("pairs").to_pylist()}
    for row in scored.read("examples").to_pylist():
        pair = pairs[row["pair_key"]]
        gap = lengths[pair["chosen_key"]] - lengths[pair["rejected_key"]]
        # r = (beta Delta - w m) / w0, m = -n, Delta = 0
        expected = np.log1p(np.exp(-(0.1 / 0.5) * gap))
        assert row["loss"] == pytest.approx(expected, abs=1e-4)
    assert find_pair_set(scored, "reviews").num_pairs == len(pairs)
    assert json.loads(scored.read("runs")["config"].to_pylist()[0])["objective"]


def test_a_function_beside_the_user_is_found_and_hides_no_library(
    scored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, completions):\n    return [len(text) for text in completions]\n"
    )
    (tmp_path / "json.py").write_text("raise RuntimeError('the folder came first')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    found = give(scored, "python", function="my_rewards:length")

    assert found.num_new > 0
    assert sys.path[-1] == str(tmp_path)
