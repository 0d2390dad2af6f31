"""Reward models: what they learn, what they say, and what becomes of bad input."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.rewards.reward import reward
from offpref.pipeline.rewards.settings import RewardSettings, RewardTrainSettings
from offpref.pipeline.rewards.train_model import train_reward
from offpref.stores.store import Store


def settings(model: Path, out: Path, **given: object) -> RewardTrainSettings:
    defaults = {"pair_set": "reviews", "model": model, "output_dir": out, "pairs_per_step": 8}
    return RewardTrainSettings(**(defaults | given))  # type: ignore[arg-type] # spelled in tests


def test_it_learns_to_order_pairs_and_serves_as_a_source(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "how was it ?", "chosen": f" it was {good} .", "rejected": f" it was {bad} ."}
        for good in ("good", "great", "lovely", "bright", "warm", "clever", "happy", "fine")
        for bad in ("bad", "dull", "awful", "cold", "slow", "dirty", "sad", "poor")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = AddSettings(data=(str(path),), pair_set="reviews", tokenizer=model_dir)
    add_pairs(store, plan_add(store, data))
    store.refresh()
    out = tmp_path / "rm"

    found = train_reward(store, settings(model_dir, out, learning_rate=3e-3, num_epochs=6))

    assert found.num_pairs == 64
    assert found.accuracies["train"] == 1.0
    assert found.last_loss < 0.2 < 0.5 < found.first_loss
    given = reward(
        store, RewardSettings(objective="goal", pair_set="reviews", kind="model", model=out)
    )
    assert given.margin_agreement == 1.0
    assert json.loads((out / "reward_model.json").read_text())["accuracies"] == {"train": 1.0}


def test_first_loss_is_that_of_the_untrained_head(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    """A step of all pairs: its loss is the mean of a plain loop, one text at a time."""
    num_pairs = sum(row["split"] == "train" for row in scored.read("pairs").to_pylist())
    found = train_reward(
        scored, settings(model_dir, tmp_path / "rm", pairs_per_step=num_pairs, max_batch_tokens=100)
    )

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=1).eval()
    tokens = AutoTokenizer.from_pretrained(model_dir)
    texts = {row["text_key"]: row for row in scored.read("texts").to_pylist()}
    sequences = {
        row["sequence_key"]: row["text_key"] for row in scored.read("sequences").to_pylist()
    }

    def score(key: bytes) -> float:
        row = texts[sequences[key]]
        ids = tokens(row["prompt"] + row["completion"])["input_ids"]
        ids = ids if ids[-1] == tokens.eos_token_id else [*ids, tokens.eos_token_id]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    pairs = [row for row in scored.read("pairs").to_pylist() if row["split"] == "train"]
    margins = [score(row["chosen_key"]) - score(row["rejected_key"]) for row in pairs]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert found.first_loss == pytest.approx(expected, abs=1e-5)
    assert set(found.accuracies) == {"train", "eval"}


def test_same_seed_same_model(scored: Store, model_dir: Path, tmp_path: Path) -> None:
    summaries = [
        train_reward(scored, settings(model_dir, tmp_path / name, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert summaries[0].last_loss == summaries[1].last_loss != summaries[2].last_loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rate", "0"], "learning_rate must be greater than 0, got 0.0"),
        (["--pairs-per-step", "1000"], "expected a step's pairs of texts in split train"),
        (["--pair-set", "other"], "unknown pair set 'other'"),
        (["--learning-rate", "1e30", "--num-epochs", "9"], "expected a finite loss"),
    ],
)
def test_what_does_not_fit_is_named(
    scored: Store, model_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "rm"
    command = ["train-reward", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir)]
    done = CliRunner().invoke(main, [*command, "--output-dir", str(out), *arguments])
    assert done.exit_code != 0
    assert message in done.output
    assert not out.exists()


def test_pairs_weigh_what_the_store_says(store: Store, model_dir: Path, tmp_path: Path) -> None:
    """Two steps of all pairs against a plain loop, one text at a time, in the same precision."""
    weights = [0.25, 3.5, 0.0, 1.0, 2.0, 0.5]
    sides = [("good", "bad"), ("fine", "dull"), ("sad", "warm"), ("great", "cold"),
             ("poor", "happy"), ("clever", "slow")]  # fmt: skip
    rows = [
        {"prompt": "how was it ?", "chosen": f" it was {a} .", "rejected": f" it was {b} .",
         "weight": weight}
        for (a, b), weight in zip(sides, weights, strict=True)
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = AddSettings(
        data=(str(path),), pair_set="reviews", tokenizer=model_dir, weight_column="weight"
    )
    add_pairs(store, plan_add(store, data))
    store.refresh()

    found = train_reward(
        store,
        settings(
            model_dir, tmp_path / "rm", pairs_per_step=6, num_epochs=2, learning_rate=1e-2,
            max_batch_tokens=50,
        ),
    )  # fmt: skip

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=1)
    tokens = AutoTokenizer.from_pretrained(model_dir)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    def score(row: dict[str, object], side: str) -> torch.Tensor:
        ids = tokens(f"{row['prompt']}{row[side]}")["input_ids"]
        ids = ids if ids[-1] == tokens.eos_token_id else [*ids, tokens.eos_token_id]
        return model(input_ids=torch.tensor([ids])).logits[0, 0].double()

    def loss() -> torch.Tensor:
        margins = torch.stack([score(row, "chosen") - score(row, "rejected") for row in rows])
        return (torch.tensor(weights) * torch.log1p(torch.exp(-margins))).sum() / len(rows)

    first = loss()
    first.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    second = loss()
    second.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert found.first_loss == pytest.approx(float(first.detach()), abs=1e-5)
    assert found.last_loss == pytest.approx(float(second.detach()), abs=1e-3)
    with torch.no_grad():
        is_right = [bool(score(row, "chosen") > score(row, "rejected")) for row in rows]
    right = sum(weight for weight, each in zip(weights, is_right, strict=True) if each)
    assert found.accuracies == {"train": pytest.approx(right / sum(weights))}


def test_attention_has_no_dropout_and_the_folder_keeps_the_setting(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))

    plain = train_reward(scored, settings(model_dir, tmp_path / "plain"))
    found = train_reward(scored, settings(folder, tmp_path / "rm"))

    assert (found.first_loss, found.last_loss) == (plain.first_loss, plain.last_loss)
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["attention_dropout"] == 0.5
