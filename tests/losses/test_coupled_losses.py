"""Losses that look at a whole step, and the mismatched sequences of kto."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.losses.pair_scores import PairScores
from offpref.pipeline.losses.registry import LOSSES, loss_options
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.pairs.mismatched import find_kl_keys, fix_kl_pairs, next_prompts
from offpref.pipeline.pairs.pair_sets import find_pair_set
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import PairSetError
from offpref.stores.keys import text_key
from offpref.stores.schema import SHARED_PARTITION
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


@pytest.fixture
def kl_scored(scored: Store, model_dir: Path) -> Store:
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", kl_pairs=True))
    scored.refresh()
    return scored


@pytest.fixture(scope="session")
def other_policy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than the reference's, so that log-ratios are not 0."""
    import shutil

    folder = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("policy") / "model"))
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    write_model(folder, vocab_size=size, seed=9)
    return folder


class Kept(torch.optim.SGD):
    """Keeps the gradients of the first step."""

    captured: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:
        self.captured = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def first_step(store: Store, settings: TrainSettings) -> tuple[Any, Any, list[torch.Tensor], Any]:
    """The plan, what the first step measured, its gradients, and the policy."""
    plan = plan_training(store, settings)
    processes = Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    optimizer = Kept(trainable(policy).values(), lr=0.0)
    trainer = Trainer(
        plan, Learner(policy=policy, optimizer=optimizer, processes=processes), None, Progress()
    )
    trainer.run(0, lambda step: None)
    return plan, trainer.history[0][1], optimizer.captured, policy


def logps_of(policy: ScoringModel, ids: list[int], start: int) -> torch.Tensor:
    """The summed log-prob of a completion the usual way."""
    logits = policy.model(torch.tensor([ids])).logits[0].double()
    labels = torch.tensor(ids)[start:, None]
    return logits.log_softmax(-1)[start - 1 : -1].gather(-1, labels).sum()


def whole_step(store: Store, plan: Any, numbers: np.ndarray, policy: ScoringModel) -> PairScores:
    """The scores of a step's pairs without packing, cuts or the code under test."""
    pairs = plan.pairs
    rows = {}
    for partition in store.partitions("sequences"):
        rows |= {r["sequence_key"]: r for r in store.read("sequences", partition).to_pylist()}
    (scorer,) = store.partitions("logps")
    stored = {r["sequence_key"]: r for r in store.read("logps", scorer).to_pylist()}

    def side(keys: Any, number: int) -> tuple[torch.Tensor, float, int]:
        key = bytes(keys[number]).ljust(16, b"\0")
        if key == bytes(16):
            return torch.zeros((), dtype=torch.float64), 0.0, 0
        own = logps_of(policy, rows[key]["ids"], rows[key]["num_prompt_tokens"])
        return own, sum(stored[key]["token_logps"]), rows[key]["num_completion_tokens"]

    def column(values: list[Any]) -> torch.Tensor:
        return torch.stack([torch.as_tensor(each, dtype=torch.float64) for each in values])

    chosen = [side(pairs.chosen_keys, number) for number in numbers.tolist()]
    rejected = [side(pairs.rejected_keys, number) for number in numbers.tolist()]
    kl = None
    if pairs.kl_keys is not None:
        mismatched = [side(pairs.kl_keys, number) for number in numbers.tolist()]
        kl = column([own - ref for own, ref, _ in mismatched])
    return PairScores(
        policy_chosen_logps=column([each[0] for each in chosen]),
        policy_rejected_logps=column([each[0] for each in rejected]),
        ref_chosen_logps=column([each[1] for each in chosen]),
        ref_rejected_logps=column([each[1] for each in rejected]),
        num_chosen_tokens=column([each[2] for each in chosen]),
        num_rejected_tokens=column([each[2] for each in rejected]),
        kl_logratios=kl,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"loss_type": "aot", "beta": 3.0},
        {"loss_type": "aot_unpaired", "beta": 3.0, "label_smoothing": 0.1},
        {"loss_type": "kto", "beta": 0.3, "kto_undesirable_weight": 0.5},
    ],
    ids=lambda given: given["loss_type"],
)
def test_step_equals_a_plain_loop_however_it_is_cut(
    kl_scored: Store, train_settings: Settings, model_dir: Path, other_policy: Path, given: dict
) -> None:
    settings = {**given, "model": other_policy, "reference": str(model_dir), "max_steps": 1,
                "pairs_per_step": 32, "max_grad_norm": math.inf}  # fmt: skip
    steps = [
        first_step(kl_scored, train_settings(**settings, max_batch_tokens=budget))
        for budget in (1, 100, 100_000)
    ]

    plan, measured, _, policy = steps[0]
    name = given["loss_type"]
    whole = whole_step(kl_scored, plan, measured.table.pairs, policy)
    options = loss_options(name, {k: v for k, v in given.items() if k != "loss_type"})
    expected = LOSSES[name].function(whole, **options).mean()
    policy.zero_grad()
    expected.backward()
    plain = [p.grad for p in trainable(policy).values()]
    for _, measured, gradients, _ in steps:
        assert measured.loss == pytest.approx(float(expected.detach()), rel=1e-5)
        for gradient, wanted in zip(gradients, plain, strict=True):
            scale = float(wanted.abs().max())
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_every_pair_of_a_step_matters_to_every_other(
    kl_scored: Store, train_settings: Settings, model_dir: Path, other_policy: Path, name: str
) -> None:
    """What is measured belongs to the step: of each pair by itself, both are sigmoid."""
    settings = train_settings(
        model=other_policy, reference=str(model_dir), max_steps=1, loss_type=name, beta=3.0,
        pairs_per_step=32,
    )  # fmt: skip
    plan, measured, _, policy = first_step(kl_scored, settings)

    whole = whole_step(kl_scored, plan, measured.table.pairs, policy)
    alone = LOSSES["sigmoid"].function(whole, **loss_options("sigmoid", {"beta": 3.0}))
    assert float(alone.mean().detach()) != pytest.approx(measured.loss, rel=1e-3)


def test_ld_alpha_and_a_coupled_loss_work_together(
    scored: Store, train_settings: Settings, model_dir: Path, other_policy: Path
) -> None:
    """With alpha 1 nothing changes, with another one the gradient does, by token."""
    settings = {"loss_type": "aot", "model": other_policy, "reference": str(model_dir),
                "max_steps": 1}  # fmt: skip
    plain, one, less = (
        first_step(scored, train_settings(**settings, ld_alpha=alpha)) for alpha in (None, 1.0, 0.2)
    )

    assert one[1].loss == pytest.approx(plain[1].loss, abs=1e-12)
    for gradient, wanted in zip(one[2], plain[2], strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert less[1].loss != pytest.approx(plain[1].loss, rel=1e-3)


def unpaired_rows() -> list[dict[str, object]]:
    words = ("good", "bad", "dull", "great", "warm")
    return [
        {"prompt": f"how was the {thing} ?", "completion": f" the {thing} was {word} .",
         "label": (i + j) % 3 == 0}
        for i, thing in enumerate(("film", "book", "song", "play", "meal", "city"))
        for j, word in enumerate(words[: 2 + i % 3])
    ]  # fmt: skip


def test_kto_trains_on_unpaired_labels(
    store: Store, train_settings: Settings, model_dir: Path, other_policy: Path,
    write_rows: Callable[..., Path],
) -> None:  # fmt: skip
    data = AddSettings(
        data=(str(write_rows(unpaired_rows())),), pair_set="labels", tokenizer=model_dir,
        max_length=64,
    )  # fmt: skip
    score(store, ScoreSettings(model=model_dir, data=data, kl_pairs=True))
    settings = {"loss_type": "kto", "pair_set": "labels", "model": other_policy,
                "reference": str(model_dir), "pairs_per_step": 6}  # fmt: skip

    plan, measured, _, policy = first_step(store, train_settings(**settings, max_steps=1))
    whole = whole_step(store, plan, measured.table.pairs, policy)
    expected = LOSSES["kto"].function(whole, **loss_options("kto", {})).mean()
    summary = train(
        plan_training(store, train_settings(**settings, num_epochs=3, log_tokens="all"))
    )

    assert measured.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    store.refresh()
    rows = store.read("examples", summary.run_id).to_pylist()
    for row in rows:
        sides = [row["policy_chosen_logps"], row["policy_rejected_logps"]]
        rewards = [row["chosen_rewards"], row["rejected_rewards"]]
        assert [each is None for each in sides] == [each is None for each in rewards]
        assert sum(each is None for each in sides) == 1
    metrics = [dict(s["metrics"]) for s in store.read("steps", summary.run_id).to_pylist()]
    assert all("rewards/accuracies" not in each for each in metrics)
    assert all(
        each["rewards/margins"] == pytest.approx(each["rewards/chosen"] - each["rewards/rejected"])
        for each in metrics
        if "rewards/margins" in each
    )
    assert store.read("tokens", summary.run_id).num_rows == len(rows)


def test_each_pair_takes_the_completion_of_the_next_prompt() -> None:
    prompts = np.array([b"b", b"a", b"b", b"c", b"a", b"a"], "S16")
    pairs = np.array([b"6", b"1", b"2", b"3", b"4", b"5"], "S16")

    # a: pairs 1, 4, 5 (in key order), b: 2, 6, c: 3; the rest goes round.
    assert next_prompts(prompts, pairs).tolist() == [3, 2, 3, 1, 0, 2]
    assert next_prompts(prompts[[0, 2]], pairs[[0, 2]]).tolist() == []


def test_mismatched_sequences_are_fixed_and_mix_two_prompts(
    kl_scored: Store, model_dir: Path
) -> None:
    pair_set = find_pair_set(kl_scored, "reviews")
    rows = {r["sequence_key"]: r
            for r in kl_scored.read("sequences", pair_set.tokenizer).to_pylist()}  # fmt: skip
    pairs = {r["pair_key"]: r for r in kl_scored.read("pairs", pair_set.tokenizer).to_pylist()}
    mixed = kl_scored.read("kl_pairs", pair_set.tokenizer).to_pylist()

    def completion(key: bytes) -> list[int]:
        return rows[key]["ids"][rows[key]["num_prompt_tokens"] :]

    assert {row["pair_key"] for row in mixed} == set(pairs)
    by_prompt: dict[tuple[str, bytes], list[list[int]]] = {}
    for pair in pairs.values():
        place = (pair["split"], rows[pair["chosen_key"]]["prompt_key"])
        both = [completion(pair["chosen_key"]), completion(pair["rejected_key"])]
        by_prompt.setdefault(place, []).extend(both)
    places = sorted(by_prompt)
    for row in mixed:
        own = pairs[row["pair_key"]]
        prompt = rows[own["chosen_key"]]["prompt_key"]
        assert rows[row["sequence_key"]]["prompt_key"] == prompt
        within = [place for place in places if place[0] == own["split"]]
        following = within[(within.index((own["split"], prompt)) + 1) % len(within)]
        assert completion(row["sequence_key"]) in by_prompt[following]
    digests = [kl_scored.digest(t, pair_set.tokenizer) for t in ("kl_pairs", "sequences")]
    commits = len(list((kl_scored.path / "commits").iterdir()))
    fix_kl_pairs(kl_scored, pair_set)
    again = score(kl_scored, ScoreSettings(model=model_dir, pair_set="reviews", kl_pairs=True))
    assert (again.num_new, again.was_loaded) == (0, False)
    assert len(list((kl_scored.path / "commits").iterdir())) == commits
    assert digests == [kl_scored.digest(t, pair_set.tokenizer) for t in ("kl_pairs", "sequences")]


def test_a_sample_equal_to_a_mismatched_sequence_is_judged_by_its_text(
    kl_scored: Store, model_dir: Path
) -> None:
    """Sequences are kept once: the one that kto made first must have the text of a later sample."""
    pair_set = find_pair_set(kl_scored, "reviews")
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    rows = {
        row["sequence_key"]: row
        for row in kl_scored.read("sequences", pair_set.tokenizer).to_pylist()
    }
    texts = {row["text_key"]: row for row in kl_scored.read("texts", SHARED_PARTITION).to_pylist()}
    mixed = kl_scored.read("kl_pairs", pair_set.tokenizer)["sequence_key"].to_pylist()

    for key in mixed:
        text = texts[rows[key]["text_key"]]
        assert text["text_key"] == text_key(text["prompt"], text["completion"], text["form"])
        spelled = tokenizer.encode(text["prompt"] + text["completion"])
        assert [*spelled, tokenizer.eos_token_id] == rows[key]["ids"]


def test_mismatched_sequences_keep_to_the_limit(
    store: Store, model_dir: Path, write_rows: Callable[..., Path]
) -> None:
    long, short = " ".join(["very"] * 12), "the film was good ."
    rows = [
        {"prompt": f"{long} ?", "chosen": " good", "rejected": " bad"},
        {"prompt": "how ?", "chosen": f" {short} {short}", "rejected": f" {short} bad"},
    ]
    data = AddSettings(data=(str(write_rows(rows)),), pair_set="p", tokenizer=model_dir,
                       max_length=18)  # fmt: skip
    pair_set, _ = add_pairs(store, plan_add(store, data))

    fix_kl_pairs(store, pair_set)

    store.refresh()
    sequences = store.read("sequences", pair_set.tokenizer).to_pylist()
    lengths = [len(row["ids"]) for row in sequences]
    assert max(lengths) == 18
    (cut,) = (row for row in sequences if row["eos_lost"])
    assert cut["text_key"] is None  # its text says more than it does


def test_one_prompt_has_no_next_one(
    store: Store, model_dir: Path, write_rows: Callable[..., Path]
) -> None:
    rows = [{"prompt": "how ?", "chosen": f" {word}", "rejected": " bad"}
            for word in ("good", "great")]  # fmt: skip
    data = AddSettings(data=(str(write_rows(rows)),), pair_set="p", tokenizer=model_dir)
    pair_set, _ = add_pairs(store, plan_add(store, data))

    with pytest.raises(PairSetError, match="expected two prompts at least"):
        fix_kl_pairs(store, pair_set)


def test_missing_mismatched_sequences_and_scores_name_the_command(
    scored: Store, train_settings: Settings, model_dir: Path
) -> None:
    with pytest.raises(PairSetError, match="have no mismatched sequence") as caught:
        plan_training(scored, train_settings(loss_type="kto"))
    assert "--kl-pairs" in str(caught.value)
    fix_kl_pairs(scored, find_pair_set(scored, "reviews"))
    with pytest.raises(PairSetError, match="has not scored") as caught:
        plan_training(scored, train_settings(loss_type="kto"))
    command = str(caught.value).partition("run: offpref ")[2].split()
    assert command[-1] == "--kl-pairs"

    done = CliRunner().invoke(main, command)

    assert done.exit_code == 0, done.output
    again = Store.open(scored.path)
    plan = plan_training(again, train_settings(loss_type="kto"))
    keys, lengths = find_kl_keys(again, plan.pair_set, plan.pairs)
    assert plan.pairs.kl_keys is not None
    assert keys.tolist() == plan.pairs.kl_keys.tolist()
    assert lengths.min() > 0


@pytest.mark.parametrize(
    "name",
    [k for k, loss in LOSSES.items() if not (loss.needs_forward_kl or loss.sides == "list")],
)
def test_every_loss_trains(
    kl_scored: Store, train_settings: Settings, other_policy: Path, model_dir: Path, name: str
) -> None:
    """A few steps of each through the whole program, with what is held out: its own loss falls."""
    given: dict[str, object] = {
        "modpo": {"objective": ("brevity=0.01",)}, "exo_pair": {"label_smoothing": 1e-3}
    }.get(name, {})  # fmt: skip
    if name == "modpo":
        write_brevity(kl_scored)
    if LOSSES[name].needs_reference:
        given["reference"] = str(model_dir)
    settings = train_settings(loss_type=name, model=other_policy, pairs_per_step=32, max_steps=4,
                              eval_every=4, learning_rate=2e-3, **given)  # fmt: skip

    summary = train(plan_training(kl_scored, settings))

    kl_scored.refresh()
    steps = kl_scored.read("steps", summary.run_id).to_pylist()
    before, after = (s["loss"] for s in steps if s["split"] == "eval")
    assert all(math.isfinite(s["loss"]) for s in steps)
    assert after < before
    has_rewards = "rewards/accuracies" in dict(steps[0]["metrics"])
    assert has_rewards == (LOSSES[name].rewards is not None)
    (run,) = kl_scored.read("runs", summary.run_id).to_pylist()
    assert json.loads(run["config"])["loss_type"] == name


def write_brevity(store: Store, share: float = 1.0, source: str = "b" * 32) -> None:
    """Rewards as `offpref reward --from brevity` will write them: minus the tokens, by sequence."""
    import pyarrow as pa

    from offpref.stores.schema import REWARDS

    rows = []
    for partition in store.partitions("sequences"):
        described = store.read("sequences", partition).to_pylist()
        rows += [
            {"objective": "brevity", "source_fingerprint": source, "subject": "sequence",
             "subject_key": row["sequence_key"], "reward": -float(row["num_completion_tokens"])}
            for row in described[: int(share * len(described))]
        ]  # fmt: skip
    with store.batch() as batch:
        batch.add("rewards", source, pa.Table.from_pylist(rows, schema=REWARDS.schema))


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_tdpo_says_which_tier_it_needs(scored: Store, train_settings: Settings, name: str) -> None:
    with pytest.raises(PairSetError, match=f"{name} needs the reference's whole .* tier hidden"):
        plan_training(scored, train_settings(loss_type=name))
