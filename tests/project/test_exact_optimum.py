"""The whole product, from demonstrations to evaluation, held to what is exactly possible.

The world is so small that everything a model can say is enumerated: answers of at most three tokens
out of fourteen. So reward and KL of every policy, and of the best policy that the reference allows,
are sums over all answers and not estimates.
"""

import json
import math
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from offpref.pipeline.commands.main import main
from offpref.stores.query.catalog import open_catalog

WORTH = {"good": 1, "fine": 1, "warm": 1, "bad": -1, "dull": -1, "cold": -1, "plain": 0}
PROMPTS = [f"{thing} ?" for thing in ("film", "book", "song", "meal")]
JUDGEMENT, BETAS, LONGEST = 2.0, (0.5, 1.0, 2.0, 4.0), 3
NUM_PAIRS, NUM_STEPS = 5000, 120
Numbers = NDArray[np.float64]


def worth(text: str) -> float:
    return float(sum(WORTH.get(word, 0) for word in text.split()))


def worths(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """For ``evaluate --objective``."""
    return [worth(text) for text in completions]


def offpref(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def write_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "?", *(each.split()[0] for each in PROMPTS), *WORTH]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    wrapper: Any = PreTrainedTokenizerFast
    wrapper(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class World:
    """Every answer there is, and what models give them."""

    def __init__(self, vocab_size: int, words: Sequence[str]) -> None:
        self.answers = [
            (*body, 2)
            for length in range(LONGEST)
            for body in product([i for i in range(vocab_size) if i != 2], repeat=length)
        ]
        # Without an end after three tokens an answer is cut off there, as `evaluate` cuts it.
        self.answers += list(product([i for i in range(vocab_size) if i != 2], repeat=LONGEST))
        special = (0, 1, 2)
        self.rewards = np.array(
            [worth(" ".join(words[i] for i in a if i not in special)) for a in self.answers]
        )
        rows = torch.zeros(len(self.answers), LONGEST, dtype=torch.long)
        for i, answer in enumerate(self.answers):
            rows[i, : len(answer)] = torch.tensor(answer)
        self.rows = rows
        self.is_own = torch.tensor(
            [[t < len(answer) for t in range(LONGEST)] for answer in self.answers]
        )

    @torch.inference_mode()
    def logps(self, folder: Path, prompt: Sequence[int]) -> Numbers:
        """Log-prob of every answer to a prompt; together they are all that can be said."""
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        whole = torch.cat([torch.tensor(prompt).repeat(len(self.rows), 1), self.rows], 1)
        logits = model(whole).logits[:, len(prompt) - 1 : -1].double()
        logps = logits.log_softmax(-1).gather(-1, self.rows[..., None])[..., 0]
        found: Numbers = (logps * self.is_own).sum(1).numpy()
        assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-5)
        return found


def best(logps: Sequence[Numbers], rewards: Numbers, tilt: float) -> tuple[float, float]:
    """Reward and KL of the reference times e^(tilt * reward), over prompts."""
    both = []
    for own in logps:
        tilted = own + tilt * rewards
        log_sum = np.logaddexp.reduce(tilted)
        shares = np.exp(tilted - log_sum)
        both.append((shares @ rewards, shares @ (tilt * rewards - log_sum)))
    reward, nats = np.mean(both, axis=0)
    return float(reward), float(nats)


def possible_reward(logps: Sequence[Numbers], rewards: Numbers, kl: float) -> float:
    """Reward of the best policy with a KL, by bisection."""
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if best(logps, rewards, middle)[1] < kl else (low, middle)
    return best(logps, rewards, low)[0]


def write_pairs(path: Path, world: World, reference: Path, words: Sequence[str]) -> None:
    chance, draws = random.Random(1), np.random.default_rng(1)
    with path.open("w", encoding="utf-8") as file:
        for prompt in PROMPTS:
            p = np.exp(world.logps(reference, [1, words.index(prompt.split()[0]), 3]))
            chosen = draws.choice(len(p), (NUM_PAIRS // len(PROMPTS), 2), p=p / p.sum())
            for i, j in chosen:
                gap = JUDGEMENT * (world.rewards[i] - world.rewards[j])
                better, worse = (i, j) if chance.random() < 1 / (1 + math.exp(-gap)) else (j, i)
                texts = [
                    " " + " ".join(words[t] for t in world.answers[k] if t > 2)
                    for k in (better, worse)
                ]
                row = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
                file.write(json.dumps(row) + "\n")


def test_dpo_has_nine_tenths_of_what_is_possible_and_never_more_than_all_of_it(
    tmp_path: Path,
) -> None:
    base, reference, store = tmp_path / "base", tmp_path / "sft", tmp_path / "store"
    write_model(base)
    chance = random.Random(0)
    demonstrations = tmp_path / "demonstrations.jsonl"
    demonstrations.write_text(
        "".join(
            json.dumps(
                {"prompt": chance.choice(PROMPTS),
                 "completion": "".join(f" {w}" for w in chance.choices(list(WORTH), k=length))}
            ) + "\n"
            for length in chance.choices((1, 2), k=1500)
        )
    )  # fmt: skip
    offpref(
        "sft", store, "--data", demonstrations, "--pair-set", "demonstrations", "--model", base,
        "--output-dir", reference, "--num-epochs", 3, "--learning-rate", 5e-3,
        "--pairs-per-step", 64,
    )  # fmt: skip
    words = json.loads((reference / "tokenizer.json").read_text())["model"]["vocab"]
    world = World(len(words), list(words))
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, world, reference, list(words))
    offpref("score", store, "--data", pairs, "--pair-set", "answers", "--model", reference,
            "--tier", "hidden")  # fmt: skip
    prompts = [[1, words[prompt.split()[0]], 3] for prompt in PROMPTS]
    start = [world.logps(reference, prompt) for prompt in prompts]
    before = float(np.mean([np.exp(own) @ world.rewards for own in start]))

    found = {}
    for beta in BETAS:
        policy = tmp_path / f"beta-{beta}"
        offpref("train", store, "--pair-set", "answers", "--model", reference, "--beta", beta,
                "--output-dir", policy, "--max-steps", NUM_STEPS, "--learning-rate", 1.5e-3,
                "--pairs-per-step", 128, "--no-last-checkpoint",
                "--log-tokens", "none")  # fmt: skip
        own = [world.logps(policy, prompt) for prompt in prompts]
        reward = float(np.mean([np.exp(each) @ world.rewards for each in own]))
        kl = float(np.mean([np.exp(a) @ (a - b) for a, b in zip(own, start, strict=True)]))
        most = possible_reward(start, world.rewards, kl)
        found[beta] = (reward, kl, (reward - before) / (most - before))

    assert all(0.9 <= share <= 1 + 1e-6 for _, _, share in found.values()), found
    assert [kl for _, kl, _ in found.values()] == sorted(
        (kl for _, kl, _ in found.values()), reverse=True
    )
    for beta in (2.0, 4.0):  # whose optimum is near enough to be reached in so few steps
        reward, kl = best(start, world.rewards, JUDGEMENT / beta)
        assert found[beta][:2] == pytest.approx((reward, kl), rel=0.25)
    offpref("evaluate", store, "--model", tmp_path / "beta-1.0", "--reference", reference,
            "--pair-set", "answers", "--split", "train", "--num-samples", 256, "--max-new-tokens",
            LONGEST, "--objective", f"worth=python:{__name__}:worths")  # fmt: skip
    with open_catalog(store) as catalog:
        (row,) = catalog.select("select * from evaluations").to_pylist()
    reward, kl, _ = found[1.0]
    rewards, errors = dict(row["rewards"]), dict(row["reward_errors"])
    assert abs(rewards["worth"] - reward) < 4 * max(errors["worth"], 0.02)
    assert row["reverse_kl"] == pytest.approx(kl, abs=0.12)
