"""A small world to try everything in: short reviews whose rewards are known exactly.

A seeded grammar writes answers to requests for an opinion. Each answer is a few clauses; a clause
praises, blames or says thanks, so that three rewards can be read off the words:

    sentiment    words of praise minus words of blame
    brevity      minus the number of words
    politeness   phrases of courtesy

Everything is a pure function of the seed. The tokenizer has one token for each word.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THINGS = ("film", "book", "song", "play", "meal", "hotel", "city", "game", "train", "garden")
PRAISE = ("good", "great", "lovely", "bright", "warm", "clever", "happy", "fine")
BLAME = ("bad", "dull", "awful", "cold", "slow", "dirty", "sad", "poor")
COURTESY = ("thank you", "if you please", "with respect", "kindly")
DEGREES = ("very", "quite", "rather", "really")
OPENINGS = ("what do you think of the", "tell me about the", "how was the", "did you like the")
VERBS = ("was", "seemed", "felt")
JUDGEMENT = 2.0  # how much a judge is moved by one word of praise, in log-odds
NUM_CLAUSES = (1, 1, 2, 2, 3)  # each as likely as the others
SHARE_POLITE, SHARE_DEGREE = 0.4, 0.3
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer with its exact rewards."""

    text: str
    sentiment: float
    brevity: float
    politeness: float

    @classmethod
    def of(cls, text: str) -> "Answer":
        """Return a text with its rewards."""
        return cls(text=text.strip(), **rewards(text))


def prompts() -> list[str]:
    """Return every request there is, in a fixed order."""
    return [f"{opening} {thing} ?" for opening in OPENINGS for thing in THINGS]


def rewards(text: str) -> dict[str, float]:
    """Return the exact rewards of an answer, or of any text.

    >>> rewards("thank you . the film was very good .")
    {'sentiment': 1.0, 'brevity': -9.0, 'politeness': 1.0}
    """
    words = text.split()
    praise, blame = (sum(word in kind for word in words) for kind in (PRAISE, BLAME))
    courtesy = sum(text.count(phrase) for phrase in COURTESY)
    return {
        "sentiment": float(praise - blame),
        "brevity": -float(len(words)),
        "politeness": float(courtesy),
    }


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the exact sentiment of each completion, for ``offpref reward --from python``."""
    return [rewards(text)["sentiment"] for text in completions]


def politeness(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the exact politeness of each completion, likewise."""
    return [rewards(text)["politeness"] for text in completions]


def brevity(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return minus the number of words of each completion, likewise."""
    return [rewards(text)["brevity"] for text in completions]


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """The best policy for a reward at a price of KL from the grammar."""

    rewards: dict[str, float]
    """Its mean rewards, exactly."""
    kl: float
    """KL(policy || grammar) of whole answers, nats, exactly."""


def optimum(weights: Mapping[str, float], beta: float) -> Optimum:
    """Return what maximises E[reward] - beta KL(policy || grammar), from every kind of answer.

    The solution is known: the grammar's probabilities times e^(reward / beta) (Eq. 4 of
    arXiv:2305.18290). Answers of one kind have the same rewards, so that sums over kinds are sums
    over all answers.

    Args:
        weights: Of each reward; one that is missing counts 0.
        beta: Price of a nat.

    >>> optimum({"sentiment": 1.0}, beta=1e9).kl < 1e-12
    True
    """
    kinds = _kinds()
    logs = [
        math.log(p) + sum(weights.get(name, 0.0) * value for name, value in given.items()) / beta
        for p, given in kinds
    ]
    largest = max(logs)
    log_sum = largest + math.log(sum(math.exp(each - largest) for each in logs))
    shares = [math.exp(each - log_sum) for each in logs]
    return Optimum(
        rewards={
            name: sum(share * given[name] for share, (_, given) in zip(shares, kinds, strict=True))
            for name in ("sentiment", "brevity", "politeness")
        },
        kl=sum(
            share * (each - log_sum - math.log(p))
            for share, each, (p, _) in zip(shares, logs, kinds, strict=True)
        ),
    )


def tdpo1_optimum(beta: float) -> Optimum:
    """Return what TDPO1 converges to on pairs that the judge of sentiment has labelled.

    TDPO1's optimum multiplies each token's probability by e^(Q / beta), Q being the judgement that
    the *grammar* is expected to earn after that token (docs/optima.md). Praise or blame decides a
    word's Q; another clause earns nothing on average, so that its probability stays.

    >>> tdpo1_optimum(beta=1e9).kl < 1e-12
    True
    """
    count = sum(NUM_CLAUSES) / len(NUM_CLAUSES)
    praise = 1 / (1 + math.exp(-2 * JUDGEMENT / beta))
    blame = 1 / (1 + math.exp(2 * JUDGEMENT / beta))
    kl = sum(share * math.log(2 * share) for share in (praise, blame) if share > 0)
    start = optimum({}, 1.0).rewards
    return Optimum(rewards=start | {"sentiment": count * (praise - blame)}, kl=count * kl)


def _kinds() -> list[tuple[float, dict[str, float]]]:
    """Return every kind of answer that differs in rewards, with its probability."""
    courtesies = [(1 - SHARE_POLITE, 0, 0)]
    courtesies += [(SHARE_POLITE / len(COURTESY), len(each.split()) + 1, 1) for each in COURTESY]
    kinds = []
    for count in set(NUM_CLAUSES):
        chance = NUM_CLAUSES.count(count) / len(NUM_CLAUSES)
        for praise in range(count + 1):
            for degrees in range(count + 1):
                p = chance * math.comb(count, praise) * 0.5**count
                p *= math.comb(count, degrees) * SHARE_DEGREE**degrees
                p *= (1 - SHARE_DEGREE) ** (count - degrees)
                for share, words, polite in courtesies:
                    given = {
                        "sentiment": float(2 * praise - count),
                        "brevity": -float(words + 5 * count + degrees),  # a full stop each
                        "politeness": float(polite),
                    }
                    kinds.append((p * share, given))
    return kinds


def write_answer(prompt: str, chance: random.Random) -> Answer:
    """Return an answer to ``prompt``, drawn from the grammar."""
    thing = prompt.split()[-2]
    clauses = [_clause(thing, chance) for _ in range(chance.choice(NUM_CLAUSES))]
    if chance.random() < SHARE_POLITE:
        clauses.insert(0, chance.choice(COURTESY))
    return Answer.of(" . ".join(clauses) + " .")


def write_pairs(path: Path, *, num_pairs: int, seed: int) -> None:
    """Write pairs as JSON lines; the better sentiment is chosen, ties go to the shorter answer.

    Each row also carries the exact rewards of both sides, as margin rewards would be given.
    """
    chance = random.Random(seed)
    requests = prompts()
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_pairs):
            prompt = requests[number % len(requests)]
            first, second = write_answer(prompt, chance), write_answer(prompt, chance)
            if (first.sentiment, first.brevity) < (second.sentiment, second.brevity):
                first, second = second, first
            file.write(json.dumps(_row(prompt, first, second)) + "\n")


def write_demonstrations(path: Path, *, num_rows: int, seed: int) -> None:
    """Write prompts with one answer each as JSON lines: what a first policy learns to write."""
    chance = random.Random(seed)
    requests = prompts()
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            prompt = requests[number % len(requests)]
            row = {"prompt": prompt, "completion": " " + write_answer(prompt, chance).text}
            file.write(json.dumps(row) + "\n")


def write_sampled_pairs(path: Path, samples: Mapping[str, Sequence[str]], *, seed: int) -> None:
    """Write pairs of samples, labelled by a judge of sentiment as JSON lines.

    The judge follows Bradley and Terry: of two answers whose sentiments differ by d it chooses the
    better one with probability sigmoid(JUDGEMENT * d).

    Args:
        path: The file.
        samples: For each prompt its samples; each two neighbours make a pair.
        seed: Of the judge's noise.
    """
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for prompt, texts in samples.items():
            for first, second in zip(texts[::2], texts[1::2], strict=True):
                chosen, rejected = Answer.of(first), Answer.of(second)
                gap = JUDGEMENT * (chosen.sentiment - rejected.sentiment)
                if chance.random() > 1 / (1 + math.exp(-gap)):
                    chosen, rejected = rejected, chosen
                file.write(json.dumps(_row(prompt, chosen, rejected)) + "\n")


def write_tokenizer(folder: Path) -> int:
    """Write a tokenizer with one token for each word of the world; returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    wrapper: Any = PreTrainedTokenizerFast  # untyped

    texts = [*THINGS, *PRAISE, *BLAME, *COURTESY, *DEGREES, *OPENINGS, *VERBS, "the . ? and"]
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    wrapper(
        tokenizer_object=tokenizer,
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    return len(vocabulary)


def write_model(folder: Path, *, vocab_size: int, seed: int) -> None:
    """Write a small Llama with random weights, and its tokenizer's ids."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=172, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _clause(thing: str, chance: random.Random) -> str:
    adjective = chance.choice(PRAISE if chance.random() < 0.5 else BLAME)
    degree = [chance.choice(DEGREES)] if chance.random() < SHARE_DEGREE else []
    return " ".join(["the", thing, chance.choice(VERBS), *degree, adjective])


def _row(prompt: str, chosen: Answer, rejected: Answer) -> dict[str, object]:
    row: dict[str, object] = {"prompt": prompt}
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        row[side] = " " + answer.text  # the space that stands between prompt and answer
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        for name in ("sentiment", "brevity", "politeness"):
            row[f"{side}_{name}"] = getattr(answer, name)
    return row
