import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.api.lines import training_lines
from offpref.pipeline.commands.main import main
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model, write_pairs
from offpref.pipeline.training import run_records
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.summary import TrainSummary
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import ModelError, PairSetError, TrainingError
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]


@pytest.fixture(scope="session")
def other_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with other weights than the reference, and the same tokenizer."""
    folder = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("other") / "model"))
    write_model(folder, vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"],
                seed=9)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def exact_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2: unlike a Llama it is float64 throughout, its norms and positions too."""
    folder = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("exact") / "model"))
    torch.manual_seed(4)
    config = GPT2Config(vocab_size=58, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def run(store: Store, settings: TrainSettings) -> TrainSummary:
    return train(plan_training(store, settings))


class CapturedGradients(torch.optim.SGD):
    """Keeps the gradients of the first step and leaves the weights as they are."""

    captured: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:
        self.captured = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def first_step(store: Store, settings: TrainSettings) -> tuple[float, dict[str, torch.Tensor], Any]:
    """The loss and the gradients of the first step, and the pairs that were in it."""
    plan = plan_training(store, settings)
    processes = Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    optimizer = CapturedGradients(trainable(policy).values(), lr=0.0)
    trainer = Trainer(
        plan, Learner(policy=policy, optimizer=optimizer, processes=processes), None, Progress()
    )
    trainer.run(0, lambda step: None)
    names = [name.removeprefix("model.") for name in trainable(policy)]
    measured = trainer.history[0][1]
    gradients = dict(zip(names, optimizer.captured, strict=True))
    return measured.loss, gradients, (plan.pairs, measured.table)


def plain_logps(model: Any, ids: list[int], start: int) -> torch.Tensor:
    """Log-probs of a completion's tokens the usual way: one sequence, whole logits."""
    logits = (
        model(torch.tensor([ids])).logits[0].to(torch.promote_types(model.dtype, torch.float32))
    )
    labels = torch.tensor(ids)[start:, None]
    return logits.log_softmax(-1)[start - 1 : -1].gather(-1, labels)[:, 0]


def plain_step(
    store: Store, pairs: Any, numbers: np.ndarray, policy_dir: Path, reference_dir: Path | None,
    loss: Callable[..., torch.Tensor], dtype: torch.dtype,
) -> tuple[float, dict[str, torch.Tensor]]:  # fmt: skip
    """A whole step without packing, microbatches or stored scores: the reference is resident."""
    policy = AutoModelForCausalLM.from_pretrained(policy_dir, dtype=dtype)
    reference = reference_dir and AutoModelForCausalLM.from_pretrained(reference_dir, dtype=dtype)
    tokenizer = store.partitions("sequences")[0]
    rows = {r["sequence_key"]: r for r in store.read("sequences", tokenizer).to_pylist()}
    total = torch.zeros((), dtype=torch.float64)
    for number in numbers.tolist():
        sides = []
        for key in (pairs.chosen_keys[number], pairs.rejected_keys[number]):
            row = rows[bytes(key).ljust(16, b"\0")]
            ids, start = row["ids"], row["num_prompt_tokens"]
            own = plain_logps(policy, ids, start).double()
            with torch.no_grad():
                ref = plain_logps(reference, ids, start).double() if reference else own * 0
            sides.append((own.sum(), ref.sum(), len(own)))
        total = total + pairs.weights[number] * loss(*sides[0], *sides[1])
    total = total / len(numbers)
    total.backward()
    return float(total.detach()), {
        n: p.grad for n, p in policy.named_parameters() if p.requires_grad
    }


def plain_sigmoid(c, rc, nc, r, rr, nr):
    return -torch.nn.functional.logsigmoid(0.1 * ((c - rc) - (r - rr)))


def plain_ipo(c, rc, nc, r, rr, nr):
    return ((c - rc) / nc - (r - rr) / nr - 5.0) ** 2


def plain_simpo(c, rc, nc, r, rr, nr):
    return -torch.nn.functional.logsigmoid(2.0 * (c / nc - r / nr) - 0.5)


def plain_sft(c, rc, nc, r, rr, nr):
    return -c / nc


@pytest.mark.parametrize(
    ("name", "loss", "precision", "tolerance"),
    [
        ("sigmoid", plain_sigmoid, "float32", 1e-5),
        ("ipo", plain_ipo, "float32", 1e-5),
        ("simpo", plain_simpo, "float32", 1e-5),
        ("sft", plain_sft, "float64", 1e-10),
        ("simpo", plain_simpo, "float64", 1e-10),
    ],
)
def test_step_equals_a_plain_loop_with_a_resident_reference(
    scored: Store, train_settings: Settings, model_dir: Path, other_model: Path,
    exact_model: Path, name: str, loss: Callable[..., torch.Tensor], precision: str,
    tolerance: float,
) -> None:  # fmt: skip
    policy = exact_model if precision == "float64" else other_model
    needs_reference = name in ("sigmoid", "ipo")
    settings = train_settings(
        loss_type=name, precision=precision, model=policy, max_steps=1, max_batch_tokens=150,
        max_grad_norm=math.inf, reference=str(model_dir) if needs_reference else None,
    )  # fmt: skip

    found, gradients, (pairs, table) = first_step(scored, settings)

    # The rejected completions of sft are not loaded; the plain loop wants them.
    both = plan_training(scored, train_settings(loss_type="simpo")).pairs
    expected, plain = plain_step(
        scored, both, table.pairs, policy, model_dir if needs_reference else None, loss,
        torch.float64 if precision == "float64" else torch.float32,
    )  # fmt: skip
    assert len(table.pairs) == 8
    assert pairs.keys.tolist() == both.keys.tolist()
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert gradients.keys() == plain.keys()
    for key, gradient in gradients.items():
        scale = float(plain[key].abs().max())
        torch.testing.assert_close(gradient, plain[key], rtol=tolerance, atol=tolerance * scale)


def test_step_of_a_model_that_cannot_pack_is_the_same(
    store: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    """ALiBi takes no mask: each completion is a row of its own, both in one microbatch."""
    bloom = Path(shutil.copytree(model_dir, tmp_path / "bloom"))
    torch.manual_seed(4)
    config = BloomConfig(vocab_size=58, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(bloom)
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=16, seed=3)
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="reviews", tokenizer=model_dir,
        max_length=64,
    )  # fmt: skip
    add_pairs(store, plan_add(store, data))
    settings = train_settings(
        loss_type="simpo", model=bloom, max_steps=1, max_batch_tokens=120, max_grad_norm=math.inf
    )

    found, gradients, (pairs, table) = first_step(store, settings)

    expected, plain = plain_step(store, pairs, table.pairs, bloom, None, plain_simpo, torch.float32)
    assert found == pytest.approx(expected, rel=1e-5)
    for key, gradient in gradients.items():
        scale = float(plain[key].abs().max())
        torch.testing.assert_close(gradient, plain[key], rtol=1e-5, atol=1e-5 * scale)


def test_weights_of_pairs_act(scored: Store, train_settings: Settings, tmp_path: Path) -> None:
    """The weighted sum is divided by the number of pairs, not by the sum of weights."""
    write_pairs(tmp_path / "more.jsonl", num_pairs=8, seed=5)
    rows = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["weight"] = float(number)
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = AddSettings(
        data=(str(tmp_path / "more.jsonl"),), pair_set="weighted",
        tokenizer=train_settings().model, max_length=64,
    )  # fmt: skip
    add_pairs(scored, plan_add(scored, data))

    settings = train_settings(
        pair_set="weighted", loss_type="simpo", max_steps=1, max_grad_norm=math.inf
    )
    loss, gradients, (pairs, table) = first_step(scored, settings)

    expected, plain = plain_step(
        scored, pairs, table.pairs, settings.model, None, plain_simpo, torch.float32
    )
    assert sorted(pairs.weights.tolist()) == [float(n) for n in range(8)]
    assert loss == pytest.approx(expected, rel=1e-5)
    for key, gradient in gradients.items():
        scale = float(plain[key].abs().max())
        torch.testing.assert_close(gradient, plain[key], rtol=1e-5, atol=1e-5 * scale)


def test_loss_does_not_depend_on_how_a_step_is_cut(
    scored: Store, train_settings: Settings, model_dir: Path, other_model: Path
) -> None:
    found = [
        first_step(
            scored,
            train_settings(
                model=other_model, reference=str(model_dir), max_steps=1, max_batch_tokens=budget
            ),
        )
        for budget in (1, 100, 100_000)
    ]

    for loss, gradients, _ in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-4, atol=1e-6)


def test_policy_learns_and_its_folder_loads(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    summary = run(scored, train_settings(num_epochs=3))

    assert summary.first is not None
    assert summary.last is not None
    assert summary.first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert summary.last.loss < 0.6
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(model_dir)
    assert trained.config.tie_word_embeddings
    assert not torch.equal(trained.model.norm.weight, before.model.norm.weight)
    AutoTokenizer.from_pretrained(tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model_dir / name).read_bytes()


def test_records_say_what_happened_down_to_the_token(
    scored: Store, train_settings: Settings
) -> None:
    summary = run(scored, train_settings(max_steps=3, log_tokens="all", eval_every=2))

    scored.refresh()
    own = summary.run_id
    (row,) = scored.read("runs", own).to_pylist()
    assert (row["attempt"], row["pair_set"], row["name"]) == (0, "reviews", "out")
    events = [e["event"] for e in scored.read("run_events", own).to_pylist()]
    assert (events[0], events[-1]) == ("started", "finished")
    steps = scored.read("steps", own).to_pylist()
    assert [(s["step"], s["split"]) for s in steps] == [
        (0, "eval"), (1, "train"), (2, "eval"), (2, "train"), (3, "eval"), (3, "train"),
    ]  # fmt: skip
    examples = scored.read("examples", own).to_pylist()
    tokens = scored.read("tokens", own).to_pylist()
    for step in steps:
        place = (step["step"], step["split"])
        inside = [e for e in examples if (e["step"], e["split"]) == place]
        metrics = dict(step["metrics"])
        assert len(inside) == step["num_pairs"]
        assert step["loss"] == pytest.approx(np.mean([e["loss"] for e in inside]), rel=1e-5)
        margins = [e["chosen_rewards"] - e["rejected_rewards"] for e in inside]
        assert metrics["rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-5)
        decided = [margin > 0 for margin in margins if margin]
        assert metrics.get("rewards/accuracies") == (np.mean(decided) if decided else None)
        assert bool(decided) == (place not in ((0, "eval"), (1, "train")))  # the reference's yet
        for example in inside:
            sums = [
                sum(t["token_logps"])
                for t in tokens
                if (t["step"], t["split"], t["pair_key"]) == (*place, example["pair_key"])
            ]
            both = [example["policy_chosen_logps"], example["policy_rejected_logps"]]
            assert sorted(sums) == pytest.approx(sorted(both), rel=1e-4)
    held_out = [t for t in tokens if t["split"] == "eval" and t["step"] == 0]
    entropies = np.concatenate([t["entropy"] for t in held_out])
    assert dict(steps[0]["metrics"])["entropy"] == pytest.approx(entropies.mean(), rel=1e-5)
    assert 3.5 < entropies.mean() < np.log(58)  # a random model hardly knows its 58 words
    train_step = steps[1]
    assert train_step["grad_norm"] > 0
    assert train_step["learning_rate"] == pytest.approx(1e-3)
    assert 0 <= train_step["data_wait_seconds"] <= train_step["seconds"]
    assert train_step["peak_memory_bytes"] > 10**8
    assert dict(train_step["metrics"])["reference_residual/max"] < 1e-4


@pytest.mark.parametrize(("what", "splits"), [("none", set()), ("eval", {"eval"})])
def test_tokens_are_kept_as_asked(
    scored: Store, train_settings: Settings, what: str, splits: set[str]
) -> None:
    summary = run(scored, train_settings(max_steps=1, log_tokens=what, eval_every=5))

    scored.refresh()
    assert set(scored.read("tokens", summary.run_id)["split"].to_pylist()) == splits


def test_records_appear_while_the_run_goes_on(
    scored: Store, train_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_records, "FLUSH_SECONDS", 0.05)
    records = run_records.RunRecords(
        scored.path, bytes(range(16)), 0, provenance={}, flush_seconds=0.05
    )
    records.add_step({"step": 4, "epoch": 0.5, "split": "train", "loss": 0.5, "metrics": {"a": 1.0},
                      "num_pairs": 8, "num_tokens": 9, "seconds": 0.1, "data_wait_seconds": 0.0,
                      "peak_memory_bytes": 1})  # fmt: skip

    def seen() -> list[str]:
        scored.refresh()
        return [e["event"] for e in scored.read("run_events", bytes(range(16)).hex()).to_pylist()]

    import time

    while "alive" not in seen():  # the test's own limit of time applies
        time.sleep(0.05)
    records.close()

    assert "alive" in seen()
    (step,) = scored.read("steps", bytes(range(16)).hex()).to_pylist()
    assert step["metrics"] == [("a", 1.0)]


@pytest.mark.parametrize("name", ["simpo", "sft"])
def test_loss_without_reference_needs_no_scores(
    store: Store, train_settings: Settings, model_dir: Path, tmp_path: Path, name: str
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=24, seed=2)
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="reviews", tokenizer=model_dir,
        max_length=64,
    )  # fmt: skip
    add_pairs(store, plan_add(store, data))

    summary = run(store, train_settings(loss_type=name, num_epochs=2))

    assert summary.reference is None
    assert summary.last is not None
    assert summary.first is not None
    assert summary.last.loss < summary.first.loss
    assert ("logps/rejected" in summary.last.metrics) == (name == "simpo")


def test_sft_takes_pairs_without_a_rejected_completion(
    store: Store, train_settings: Settings, model_dir: Path, write_rows: Callable[..., Path]
) -> None:
    rows = [
        {"prompt": f"how was the {thing} ?", "completion": "the film was good .", "label": label}
        for thing in ("film", "book", "song", "play", "meal")
        for label in (True, False)
    ]
    data = AddSettings(
        data=(str(write_rows(rows)),), pair_set="reviews", tokenizer=model_dir, max_length=64
    )
    add_pairs(store, plan_add(store, data))

    summary = run(store, train_settings(loss_type="sft", pairs_per_step=5))

    assert summary.num_pairs == 5
    with pytest.raises(PairSetError, match="10 of 10 of split train have one"):
        plan_training(store, train_settings(loss_type="simpo", output_dir=Path("nowhere")))


def test_missing_scores_stop_the_run_with_count_and_command(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "new.jsonl", num_pairs=12, seed=77)
    data = AddSettings(
        data=(str(tmp_path / "new.jsonl"),), pair_set="new", tokenizer=model_dir, max_length=64
    )
    found, _ = add_pairs(scored, plan_add(scored, data))

    with pytest.raises(PairSetError) as caught:
        plan_training(scored, train_settings(pair_set="new"))

    message = str(caught.value)
    assert f"of 24 sequences of {found}" in message
    command = message.partition("run: offpref ")[2].split()
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    plan_training(Store.open(scored.path), train_settings(pair_set="new"))


def test_scores_of_another_precision_are_refused(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(PairSetError, match="was scored in float32, the policy trains in bf16") as e:
        plan_training(scored, train_settings(precision="bf16"))
    assert "offpref score" in str(e.value)
    assert "--precision bf16" in str(e.value)


def test_summary_tells_held_out_pairs_apart(scored: Store, train_settings: Settings) -> None:
    summary = run(scored, train_settings(max_steps=3, eval_every=2))

    scored.refresh()
    found = sorted(
        (step["step"], step["loss"], dict(step["metrics"]).get("rewards/accuracies"))
        for step in scored.read("steps", summary.run_id).to_pylist()
        if step["split"] == "eval"
    )
    (_, *first), (_, *last) = found[0], found[-1]
    assert [step for step, *_ in found] == [0, 2, 3]
    assert first[1] is None
    assert (
        f"held out   loss {first[0]:.4f} -> {last[0]:.4f}, accuracy \u2013 -> {last[1]:.4f}"
    ) in training_lines(summary)


def test_another_policy_takes_the_only_reference_and_reports_the_residual(
    scored: Store, train_settings: Settings, other_model: Path
) -> None:
    summary = run(scored, train_settings(model=other_model, max_steps=1))

    assert summary.reference is not None
    assert summary.first is not None
    assert summary.first.residual is not None
    assert summary.first.residual[0] > 0.01
    assert "note       the policy does not start from its reference" in "\n".join(
        training_lines(summary)
    )


def test_a_policy_that_is_its_own_reference_gets_no_note(
    scored: Store, train_settings: Settings
) -> None:
    summary = run(scored, train_settings(max_steps=1))

    lines = "\n".join(training_lines(summary))
    assert "residual   " in lines
    assert "note       " not in lines


def test_several_references_have_to_be_told_apart(
    scored: Store, train_settings: Settings, other_model: Path, model_dir: Path, tmp_path: Path
) -> None:
    score(scored, ScoreSettings(model=other_model, pair_set="reviews"))
    third = Path(shutil.copytree(model_dir, tmp_path / "third"))
    write_model(third, vocab_size=58, seed=3)

    with pytest.raises(PairSetError, match="several references have scored") as caught:
        plan_training(scored, train_settings(model=third))
    by_folder = plan_training(scored, train_settings(model=third, reference=str(other_model)))
    own = plan_training(scored, train_settings(model=other_model))

    assert by_folder.reference is not None
    assert (
        own.reference
        == plan_training(
            scored, train_settings(model=other_model, reference=by_folder.reference.fingerprint[:8])
        ).reference
    )
    assert by_folder.reference.fingerprint[:12] in str(caught.value)
    assert not by_folder.reference.is_policy
    assert own.reference is not None
    assert own.reference.is_policy


def test_reference_that_scored_nothing_is_named(
    scored: Store, train_settings: Settings, other_model: Path
) -> None:
    with pytest.raises(PairSetError, match="has scored nothing"):
        plan_training(scored, train_settings(reference=str(other_model)))
    with pytest.raises(PairSetError, match="no scorer of"):
        plan_training(scored, train_settings(reference="fffff"))


def wrong_scores(store: Store, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace every stored score by a changed one, under the same fingerprint."""
    (scorer,) = store.partitions("logps")
    rows = store.read("logps", scorer).to_pylist()
    shutil.rmtree(store.path / "data" / "logps")
    for record in (store.path / "commits").iterdir():
        if '"logps' in record.read_text():
            record.unlink()
    fresh = Store.open(store.path)
    with fresh.batch() as batch:
        keys = pa.array([row["sequence_key"] for row in rows], pa.binary(16))
        kind = LOGPS.schema.field("token_logps").type
        lists = pa.array([change(np.array(r["token_logps"])) for r in rows], kind)
        batch.add("logps", scorer, pa.table([keys, lists], schema=LOGPS.schema))


def test_policy_that_differs_from_its_own_stored_scores_is_stopped(
    scored: Store, train_settings: Settings
) -> None:
    wrong_scores(scored, lambda logps: logps - 0.05)

    with pytest.raises(TrainingError, match=r"differs from its stored scores by 5\.0e-02 nats"):
        run(Store.open(scored.path), train_settings())


def test_loss_that_is_not_finite_stops_with_the_pairs_that_caused_it(
    scored: Store, train_settings: Settings, other_model: Path
) -> None:
    plan = plan_training(scored, train_settings(model=other_model))
    spoilt = plan.pairs.chosen_keys[plan.epoch(0)[0][3]]
    (scorer,) = scored.partitions("logps")
    rows = scored.read("logps", scorer).to_pylist()
    position = [r["sequence_key"] for r in rows].index(bytes(spoilt).ljust(16, b"\0"))
    counter = iter(range(len(rows)))
    wrong_scores(scored, lambda logps: logps * (math.nan if next(counter) == position else 1.0))
    store = Store.open(scored.path)

    with pytest.raises(TrainingError) as caught:
        run(store, train_settings(model=other_model))

    using = plan.pairs.keys[plan.epoch(0)[0]][
        (plan.pairs.chosen_keys[plan.epoch(0)[0]] == spoilt)
        | (plan.pairs.rejected_keys[plan.epoch(0)[0]] == spoilt)
    ]
    for key in using:
        assert bytes(key).ljust(16, b"\0").hex() in str(caught.value)
    store.refresh()
    (own,) = store.partitions("runs")
    last = store.read("run_events", own).to_pylist()[-1]
    assert last["event"] == "failed"
    assert last["message"] == str(caught.value)


def test_changed_reference_scores_are_named_on_resume(
    scored: Store, train_settings: Settings, other_model: Path
) -> None:
    given = {"model": other_model, "max_steps": 2, "save_every": 1}
    run(scored, train_settings(**given))
    wrong_scores(scored, lambda logps: logps - 1e-3)

    with pytest.raises(TrainingError, match=r"reference scores was '.*' and is"):
        run(Store.open(scored.path), train_settings(**given, resume=True))


def test_run_that_breaks_is_marked_failed(
    scored: Store, train_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Trainer, "_gather", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(scored, train_settings())

    scored.refresh()
    (own,) = scored.partitions("runs")
    last = scored.read("run_events", own).to_pylist()[-1]
    assert (last["event"], last["message"]) == ("failed", "the device is gone")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pairs_per_step": 0}, "pairs_per_step must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be greater than 0"),
        ({"lora_alpha": 8}, "lora_alpha has no effect without lora_r"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "give one of them"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "constant_with_warmup"),
        ({"num_epochs": 1.0, "max_steps": 3}, "give one of them"),
        ({"resume": True, "overwrite": True}, "contradict"),
        ({"precision": "float16"}, "precision must be one of"),
    ],
)
def test_settings_are_checked_at_the_door(
    train_settings: Settings, given: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_settings(**given)


def test_step_larger_than_the_pair_set_is_refused(scored: Store, train_settings: Settings) -> None:
    with pytest.raises(ValueError, match="not one step"):
        plan_training(scored, train_settings(pairs_per_step=1000))


def test_nothing_is_overwritten_unasked(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    first = run(scored, train_settings(max_steps=1))

    with pytest.raises(ValueError, match="--resume continues it, --overwrite replaces it"):
        plan_training(scored, train_settings(max_steps=1))
    second = run(scored, train_settings(max_steps=1, overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="something else than a run"):
        plan_training(scored, train_settings(output_dir=tmp_path / "mine", overwrite=True))

    assert first.run_id != second.run_id
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_policy_with_another_tokenizer_is_refused(
    scored: Store, train_settings: Settings, chat_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"lovely"', '"charming"'))

    with pytest.raises(ModelError, match="expected the tokenizer of pair set"):
        plan_training(scored, train_settings(model=other))


def test_sequences_longer_than_the_model_are_refused(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    short = Path(shutil.copytree(model_dir, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))

    with pytest.raises(ModelError, match="at most 8 tokens"):
        plan_training(scored, train_settings(model=short, loss_type="simpo"))


def test_config_fingerprint_names_what_results_depend_on(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    def named(**given: object) -> str:
        return plan_training(scored, train_settings(**given)).config_fingerprint

    same = [named(), named(output_dir=tmp_path / "elsewhere"), named(save_every=3),
            named(beta=0.1), named(max_batch_tokens=77)]  # fmt: skip
    others = [named(beta=0.2), named(seed=1), named(learning_rate=2e-3), named(loss_type="ipo")]

    assert len(set(same)) == 1
    assert len({same[0], *others}) == 5


@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
def test_other_precisions_start_from_their_own_scores(
    scored: Store, train_settings: Settings, model_dir: Path, precision: str
) -> None:
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", precision=precision))

    summary = run(scored, train_settings(precision=precision, max_steps=4))

    assert summary.first is not None
    assert summary.first.loss == pytest.approx(math.log(2), abs=0.02)
    config = json.loads((summary.output_dir / "config.json").read_text())
    assert config["dtype"] == ("bfloat16" if precision == "bf16" else "float32")


def test_gradient_checkpointing_gives_the_same_gradients(
    scored: Store, train_settings: Settings, model_dir: Path, other_model: Path
) -> None:
    plain, other = (
        first_step(
            scored,
            train_settings(model=other_model, max_steps=1, gradient_checkpointing=checkpointing),
        )
        for checkpointing in (False, True)
    )

    assert plain[0] == pytest.approx(other[0], abs=1e-7)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(gradient, other[1][name])


def test_sweep_costs_trainings_and_no_scoring(
    scored: Store, train_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten runs on one scored pair set; every forward pass is counted."""
    (scorer,) = scored.partitions("logps")
    shards, digest = scored.shards("logps", scorer), scored.digest("logps", scorer)
    forward = ScoringModel.forward
    passes: list[bool] = []

    def counted(self: ScoringModel, *arguments: Any, **options: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return forward(self, *arguments, **options)

    monkeypatch.setattr(ScoringModel, "forward", counted)
    load_policy(train_settings(), Processes(device=torch.device("cpu")))
    num_probes = len(passes)
    passes.clear()
    for number in range(10):
        given = {"beta": 0.05 * (number + 1), "max_steps": 1, "max_batch_tokens": 4096}
        run(scored, train_settings(output_dir=tmp_path / f"run-{number}", **given))

    scored.refresh()
    training_passes = sum(passes)
    assert scored.shards("logps", scorer) == shards
    assert scored.digest("logps", scorer) == digest
    assert scored.read("runs").num_rows == 10
    assert training_passes == 10  # one microbatch per step, and nothing else with a gradient
    assert len(passes) - training_passes == 10 * num_probes  # the self-check at each load


def test_command_trains_and_says_so(scored: Store, model_dir: Path, tmp_path: Path) -> None:
    arguments = ["train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
                 "--output-dir", str(tmp_path / "out"), "--pairs-per-step", "16",
                 "--learning-rate", "1e-3", "--label-smoothing", "0.1"]  # fmt: skip

    done = CliRunner().invoke(main, arguments)
    again = CliRunner().invoke(main, arguments)
    wrong = CliRunner().invoke(main, [*arguments, "--loss-type", "hinge"])

    assert done.exit_code == 0, done.output
    assert "loss       0.6931 -> " in done.stdout
    assert "rewards/accuracies" in done.stdout
    assert f"policy     {tmp_path / 'out'}" in done.stdout
    assert (again.exit_code, wrong.exit_code) == (2, 2)
    assert "--overwrite" in again.output
    assert "label_smoothing has no effect on hinge" in wrong.output
