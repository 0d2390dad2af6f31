"""Movie reviews: sentences for a language model, and a classifier of sentiment that judges.

The data are read where they lie, a folder with movie_reviews.zip, sentence_polarity.zip (Pang and
Lee, 2004 and 2005) and sst2_train.csv, sst2_test.csv (Socher et al., 2013); none is copied.

The judge is a logistic regression on words and pairs of neighbouring words. What is judged is the
probability that prompt and completion together are praise, so that rewards lie between 0 and 1 as
in the papers' IMDb experiments.
"""

import csv
import hashlib
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILES = ("movie_reviews.zip", "sentence_polarity.zip", "sst2_train.csv", "sst2_test.csv")
NUM_WORDS = range(8, 25)  # of a sentence
PROMPT_WORDS = range(1, 5)
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
"""2.2 million parameters with a vocabulary of 2,048 tokens."""

JUDGE = '''"""Written by recipes/movies.py: the judge of movie reviews, by its weights' hash."""

import hashlib
from functools import cache
from pathlib import Path

import movies

SHA256 = "{digest}"


@cache
def _judge():
    path = Path(__file__).with_name("judge.npz")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"expected the weights that {{__file__}} names: remove {{path}} and it")
    return movies.Judge.load(path)


def positive(prompts, completions):
    return _judge().positive([a + b for a, b in zip(prompts, completions)])


def brevity(prompts, completions):
    return [-float(len(text.split())) for text in completions]
'''


def check_files(data: Path) -> None:
    """End the recipe in one line, before any work, if a file is missing."""
    missing = [name for name in FILES if not (data / name).exists()]
    if missing:
        raise SystemExit(f"expected {', '.join(FILES)} in {data}, found no {missing[0]}")


def files_of(data: Path) -> dict[str, int]:
    """Return the files that are read, with their sizes."""
    return {name: (data / name).stat().st_size for name in FILES}


def sentences(data: Path) -> Iterator[str]:
    """Yield the sentences that a language model is trained on, in a fixed order."""
    for name, wanted in (("sentence_polarity.zip", "rt-polarity"), ("movie_reviews.zip", "cv")):
        with zipfile.ZipFile(data / name) as archive:
            for member in sorted(archive.namelist()):
                if wanted in member:
                    for line in archive.read(member).decode("latin-1").splitlines():
                        if len(line.split()) in NUM_WORDS and line.isascii():
                            yield line.strip()


def write_demonstrations(path: Path, data: Path) -> None:
    """Write each sentence as a prompt of its first words and their continuation."""
    chance = random.Random(0)
    found = list(dict.fromkeys(sentences(data)))
    chance.shuffle(found)
    with path.open("w", encoding="utf-8") as file:
        for sentence in found:
            prompt, completion = cut(sentence, chance.choice(PROMPT_WORDS))
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def openings(data: Path, number: int) -> list[str]:
    """Return distinct beginnings of sentences, for prompts; four words each."""
    found = list(dict.fromkeys(cut(each, PROMPT_WORDS[-1])[0] for each in sentences(data)))
    random.Random(1).shuffle(found)
    return found[:number]


def cut(sentence: str, num_words: int) -> tuple[str, str]:
    """Return a sentence's first words, and the rest with the space before it.

    >>> cut("a film of great charm", 2)
    ('a film', ' of great charm')
    """
    words = sentence.split()
    return " ".join(words[:num_words]), " " + " ".join(words[num_words:])


def features(text: str) -> list[str]:
    """Return the words of a text and the pairs of neighbours.

    >>> features("Not good.")
    ['not', 'good', 'not good']
    """
    words = re.findall(r"[a-z']+", text.lower())
    return words + [f"{one} {other}" for one, other in pairwise(words)]


class Judge:
    """A logistic regression on words and pairs of neighbours."""

    def __init__(self, names: Sequence[str], weights: NDArray[Any], bias: float) -> None:
        self.places = {name: i for i, name in enumerate(names)}
        self.weights, self.bias = weights, bias

    @classmethod
    def load(cls, path: Path) -> "Judge":
        """Return the judge of a file."""
        with np.load(path, allow_pickle=False) as found:
            return cls(list(found["names"]), found["weights"], float(found["bias"]))

    def save(self, path: Path) -> None:
        """Write the judge to a file."""
        with path.open("wb") as file:
            np.savez(file, names=np.array(list(self.places)), weights=self.weights, bias=self.bias)

    def log_odds(self, text: str) -> float:
        """Return the log-odds that a text is praise."""
        known = {self.places[each] for each in features(text) if each in self.places}
        norm = max(len(known), 1) ** 0.5
        return float(sum(self.weights[place] for place in known) / norm + self.bias)

    def positive(self, texts: Sequence[str]) -> list[float]:
        """Return the probability that each text is praise."""
        return [float(1 / (1 + np.exp(-self.log_odds(text)))) for text in texts]


def labelled(data: Path, name: str) -> list[tuple[str, int]]:
    """Return sentences with 1 for praise and 0 for blame: "polarity", "sst2_train", "sst2_test"."""
    if name == "polarity":
        rows = []
        with zipfile.ZipFile(data / "sentence_polarity.zip") as archive:
            for member in sorted(archive.namelist()):
                if "rt-polarity" in member:
                    texts = archive.read(member).decode("latin-1").splitlines()
                    rows += [(text, int(member.endswith("pos"))) for text in texts]
        return rows
    with (data / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["sentence"], int(row["label"])) for row in csv.DictReader(file)]


def train_judge(rows: Sequence[tuple[str, int]], *, num_steps: int = 300) -> Judge:
    """Return a judge trained on labelled sentences, the same on every machine but for rounding."""
    import torch

    seen = [sorted(set(features(text))) for text, _ in rows]
    counts = Counter(name for names in seen for name in names)
    names = sorted(name for name, count in counts.items() if count >= 3)
    places = {name: i for i, name in enumerate(names)}
    known = [[places[name] for name in each if name in places] for each in seen]
    flat = torch.tensor([place for each in known for place in each])
    offsets = torch.tensor([0, *np.cumsum([len(each) for each in known])[:-1].tolist()])
    scales = torch.tensor([max(len(each), 1) ** -0.5 for each in known])
    labels = torch.tensor([float(label) for _, label in rows])
    weights = torch.zeros(len(names), 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=0.05)
    for _ in range(num_steps):
        sums = torch.nn.functional.embedding_bag(flat, weights, offsets, mode="sum")[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(sums * scales + bias, labels)
        (loss + 2e-5 * weights.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Judge(names, weights.detach()[:, 0].numpy(), float(bias.detach()))


def accuracy(judge: Judge, rows: Sequence[tuple[str, int]]) -> float:
    """Return the share of labelled sentences that a judge is right about."""
    found = judge.positive([text for text, _ in rows])
    return float(np.mean([(p > 0.5) == label for p, (_, label) in zip(found, rows, strict=True)]))


def write_judge(folder: Path, data: Path) -> None:
    """Write the judge and the module ``judge`` that names it, unless they are there."""
    if (folder / "judge.py").exists():
        return
    judge = train_judge(labelled(data, "polarity") + labelled(data, "sst2_train"))
    judge.save(folder / "judge.npz")
    digest = hashlib.sha256((folder / "judge.npz").read_bytes()).hexdigest()
    (folder / "judge.py").write_text(JUDGE.format(digest=digest), encoding="utf-8")
