"""Training under a mask against a plain step in float64, and what a mask leaves as it was."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from click.testing import CliRunner
from mask_cases import (
    Step,
    key,
    put_some_spans,
    put_spans,
    sequence_rows,
    some_spans,
    truths,
)
from safetensors.torch import load_file

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.api.lines import training_lines
from offpref.pipeline.commands.main import main
from offpref.pipeline.losses.registry import LOSSES
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_pairs
from offpref.pipeline.training.passes import Passes, loss_scores
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.step_reader import StepReader
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import PairSetError, TrainingError
from offpref.stores.query.catalog import open_catalog
from offpref.stores.schema import REWARDS
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]
ROLES = ("assistant", "user", "assistant")
GIVEN: dict[str, dict[str, object]] = {
    "ld_alpha": {"loss_type": "sigmoid", "ld_alpha": 0.25},
    "use_weighting": {"loss_type": "sigmoid", "use_weighting": True},
    "modpo": {"loss_type": "modpo", "objective": ("other=0.1",), "preference_weight": 0.5},
}
"""Settings of what `mask_cases.LOSSES` names, where they are not the loss alone."""


def exact_model(model_dir: Path, folder: Path, seed: int) -> Path:
    """A GPT-2, which unlike a Llama is float64 throughout, with weights that are not small."""
    folder.mkdir()
    for path in model_dir.glob("token*"):
        shutil.copy(path, folder)
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=58, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy and a reference."""
    folder = tmp_path_factory.mktemp("exact")
    return (
        exact_model(model_dir, folder / "policy", 4),
        exact_model(model_dir, folder / "reference", 5),
    )


@pytest.fixture(scope="session")
def turns_once(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with spans, scored in float64 with hidden states and mismatched sequences."""
    folder = tmp_path_factory.mktemp("turns")
    write_pairs(folder / "pairs.jsonl", num_pairs=60, seed=3)
    data = AddSettings(
        data=(str(folder / "pairs.jsonl"),), pair_set="reviews", tokenizer=models[1],
        max_length=64, eval_fraction=0.25,
    )  # fmt: skip
    store = Store.create(folder / "store")
    tier = ("hidden",)
    score(store, ScoreSettings(model=models[1], data=data, precision="float64", tier=tier))
    asked = ScoreSettings(model=models[1], pair_set="reviews", precision="float64", kl_pairs=True)
    score(store, asked)
    put_some_spans(store)
    put_other_reward(store)
    return folder / "store"


def put_other_reward(store: Store) -> None:
    """Chosen completions have 3 more of it than rejected ones."""
    rows = [
        {
            "objective": "other", "source_fingerprint": "d" * 32, "subject": side,
            "subject_key": pair, "reward": 3.0 if side == "chosen" else 0.0,
        }
        for pair in store.read("pairs")["pair_key"].to_pylist()
        for side in ("chosen", "rejected")
    ]  # fmt: skip
    with store.batch() as batch:
        batch.add("rewards", "d" * 32, pa.Table.from_pylist(rows, schema=REWARDS.schema))
    store.refresh()


@pytest.fixture
def turns(turns_once: Path, tmp_path: Path) -> Store:
    """A copy of that store."""
    ignored = shutil.ignore_patterns("*.alive")
    return Store.open(Path(shutil.copytree(turns_once, tmp_path / "turns", ignore=ignored)))


@pytest.fixture
def exact(models: tuple[Path, Path], train_settings: Settings) -> Settings:
    """Settings of a step in float64, of the policy against the reference."""

    def make(**given: object) -> TrainSettings:
        policy, reference = models
        needs = given.get("loss_type", "sigmoid") not in ("simpo", "sft") or "kl_metrics" in given
        defaults: dict[str, object] = {
            "model": policy, "precision": "float64", "max_steps": 1, "max_batch_tokens": 150,
            "max_grad_norm": math.inf, "reference": str(reference) if needs else None,
        }  # fmt: skip
        return train_settings(**(defaults | given))

    return make


class Captured(torch.optim.SGD):
    """Keeps the gradients of the first step and leaves the weights as they are."""

    captured: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:
        self.captured = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def first_step(store: Store, settings: TrainSettings) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """The plan, what the first step measured, and its gradients."""
    plan = plan_training(store, settings)
    processes = Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    optimizer = Captured(trainable(policy).values(), lr=0.0)
    learner = Learner(policy=policy, optimizer=optimizer, processes=processes)
    trainer = Trainer(plan, learner, None, Progress())
    trainer.run(0, lambda step: None)
    names = [name.removeprefix("model.") for name in trainable(policy)]
    gradients = dict(zip(names, optimizer.captured, strict=True))
    return plan, trainer.history[0][1], gradients


def by_turns(mask: str) -> Callable[[bytes, bytes, list[int]], list[bool]]:
    return lambda pair, sequence, ids: truths(some_spans(ids), len(ids), mask)


def whole_step(
    store: Store, pairs: Any, numbers: np.ndarray, models: tuple[Path, Path], counts: Any
) -> tuple[Step, Any]:
    """The step once more, and the policy whose gradients it has."""
    policy, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(each, dtype=torch.float64)
        for each in models
    )
    return Step(store, pairs, numbers, policy, reference, counts), policy


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("sigmoid", "assistant"), ("sigmoid", "last-turn"), ("ipo", "assistant"),
        ("sigmoid_norm", "last-turn"), ("simpo", "assistant"), ("tdpo2", "assistant"),
        ("kto", "assistant"), ("aot", "last-turn"), ("ld_alpha", "assistant"),
        ("use_weighting", "last-turn"), ("modpo", "assistant"), ("sft", "assistant"),
        ("rdpo", "last-turn"),
    ],
)  # fmt: skip
def test_step_equals_a_plain_one_that_sums_over_what_counts(
    turns: Store, exact: Settings, models: tuple[Path, Path], name: str, mask: str
) -> None:
    plan, measured, gradients = first_step(
        turns, exact(mask=mask, **GIVEN.get(name, {"loss_type": name}))
    )

    numbers = measured.table.pairs
    step, policy = whole_step(turns, plan.pairs, numbers, models, by_turns(mask))
    losses = step.loss(name)
    (losses.sum() / len(numbers)).backward()
    assert len(numbers) == 8
    # Something is left out, something is not, or nothing would be tested.
    num_tokens = plan.pairs.num_chosen_tokens[numbers].sum()
    assert 0 < sum(step.chosen.num) < num_tokens
    assert name == "sft" or 0 in step.chosen.num + step.rejected.num
    # kto's share of pairs in completions is a float32 number.
    tolerance = {"tdpo2": 1e-6, "use_weighting": 1e-6, "kto": 1e-7}.get(name, 1e-9)
    assert measured.loss == pytest.approx(float(losses.detach().mean()), rel=tolerance)
    if name != "aot":  # a rank's loss is recorded for the pair that has the rank
        np.testing.assert_allclose(
            measured.table.values["loss"], losses.detach().numpy(), rtol=tolerance
        )
    for each, parameter in policy.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            gradients[each], parameter.grad, rtol=tolerance, atol=tolerance * scale
        )


def test_rows_and_metrics_are_those_of_the_tokens_that_count(
    turns: Store, exact: Settings, models: tuple[Path, Path]
) -> None:
    settings = exact(
        mask="assistant", loss_type="rdpo", kl_metrics=True, log_tokens="all", eval_every=5
    )
    summary = train(plan_training(turns, settings))

    turns.refresh()
    plan = plan_training(turns, exact(mask="assistant", eval_every=5, output_dir=Path("other")))
    examples = turns.read("examples", summary.run_id).to_pylist()
    tokens = turns.read("tokens", summary.run_id).to_pylist()
    masks = {
        (row["pair_key"], row["sequence_key"]): row
        for row in turns.read("masks", summary.run_id).to_pylist()
    }
    rows = sequence_rows(turns)
    for step, split, pairs in ((1, "train", plan.pairs), (0, "eval", plan.eval_pairs[0])):
        own = [row for row in examples if (row["step"], row["split"]) == (step, split)]
        places = {key(each): place for place, each in enumerate(pairs.keys)}
        numbers = np.array([places[row["pair_key"]] for row in own])
        whole, _ = whole_step(turns, pairs, numbers, models, by_turns("assistant"))
        metrics = metrics_of(turns, summary.run_id, step, split)
        for side, found in (("chosen", whole.chosen), ("rejected", whole.rejected)):
            for name, expected in (
                (f"policy_{side}_logps", found._logps), (f"ref_{side}_logps", found._ref),
                (f"{side}_rewards", 0.1 * (found._logps - found._ref)),
                (f"{side}_forward_kl", found._kl), (f"{side}_reverse_kl", found._reverse),
            ):  # fmt: skip
                values = [row[name] for row in own]
                np.testing.assert_allclose(values, expected.detach(), rtol=2e-5, atol=2e-5)
            logps = found._logps.detach()
            assert metrics[f"logps/{side}"] == pytest.approx(float(logps.mean()), rel=1e-6)
            for kind, kls in (("forward", found._kl), ("reverse", found._reverse)):
                mean = float(kls.detach().mean())
                assert metrics[f"{kind}_kl/{side}"] == pytest.approx(mean, rel=1e-5)
        # Means per token, of entropy too, are over tokens that count; rows have every token.
        inside = [row for row in tokens if (row["step"], row["split"]) == (step, split)]
        entropies, num_uncounted = [], 0
        for row in inside:
            sequence = rows[row["sequence_key"]]
            ids = sequence["ids"][sequence["num_prompt_tokens"] :]
            is_counted = truths(some_spans(ids), len(ids), "assistant")
            assert len(row["token_logps"]) == len(ids)
            mask = masks[row["pair_key"], row["sequence_key"]]
            assert is_counted == [
                any(a <= at < b for a, b in zip(mask["starts"], mask["ends"], strict=True))
                for at in range(len(ids))
            ]
            entropies += [each for each, is_in in zip(row["entropy"], is_counted, strict=True)
                          if is_in]  # fmt: skip
            num_uncounted += is_counted.count(False)
        assert num_uncounted
        assert metrics["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert len(masks) == len({(row["pair_key"], row["sequence_key"]) for row in tokens})


def metrics_of(store: Store, run_id: str, step: int, split: str) -> dict[str, float]:
    rows = store.read("steps", run_id).to_pylist()
    (found,) = [row for row in rows if (row["step"], row["split"]) == (step, split)]
    return dict(found["metrics"])


def some_microbatch(store: Store, settings: TrainSettings) -> Any:
    """A microbatch of the first step, and the plan."""
    plan = plan_training(store, settings)
    processes = Processes(device=torch.device("cpu"))
    policy = load_policy(settings, processes)
    learner = Learner(policy=policy, optimizer=None, processes=processes)  # type: ignore[arg-type] # nothing is trained
    reader = StepReader(plan, policy, processes, Passes(plan, learner).head)
    steps = reader.steps(1)
    microbatch = next(steps)[0]
    steps.close()
    return plan, microbatch


@pytest.mark.parametrize("name", [k for k, loss in LOSSES.items() if loss.sides != "list"])
def test_what_does_not_count_changes_no_loss_and_has_no_gradient(
    turns: Store, exact: Settings, name: str
) -> None:
    """Not even where a log-prob is minus infinity, and where a completion has nothing else."""
    more: dict[str, object] = {
        "modpo": {"objective": ("other=0.1",)}, "exo_pair": {"label_smoothing": 0.1},
    }.get(name, {})  # fmt: skip
    given = exact(
        loss_type=name, mask="last-turn", pairs_per_step=20, max_batch_tokens=10_000, **more,
        reference=None,
    )  # fmt: skip
    plan, microbatch = some_microbatch(turns, given)
    torch.manual_seed(0)
    is_counted = microbatch.is_counted
    num_tokens = len(is_counted)
    own = {
        "token_logps": -torch.rand(num_tokens).double() * 4,
        "forward_kl": torch.rand(num_tokens).double(),
        "log_sum_sq": -torch.rand(num_tokens).double(),
    }
    other = {
        each: torch.where(is_counted, values, -math.inf if each == "token_logps" else 99.0)
        for each, values in own.items()
    }
    counts = microbatch.pair_scores(own["token_logps"])
    assert (counts.num_rejected_tokens == 0).any() or plan.loss.sides == "chosen"

    found = []
    for values in (own, other):
        leaves = {each: value.clone().requires_grad_() for each, value in values.items()}
        scores = loss_scores(microbatch, plan.loss, **leaves)
        if microbatch.mismatched is not None:
            mixed = microbatch.mismatched
            far = torch.full((len(mixed.ref_token_logps),), -2.0)
            if values is other:
                far = torch.where(mixed.is_counted, far, math.inf)
            scores = replace(scores, kl_logratios=mixed.logratios(far))
        losses = plan.loss.losses(scores)
        losses.sum().backward()
        found.append((losses.detach(), leaves["token_logps"].grad, plan.loss.rewards(scores)))

    (losses, gradient, rewards), (others, other_gradient, other_rewards) = found
    assert torch.isfinite(losses).all()
    assert torch.equal(losses, others)
    assert torch.equal(gradient, other_gradient)
    assert not gradient[~is_counted].any()
    assert gradient[is_counted].any()
    if rewards is not None:
        assert all(torch.equal(a, b) for a, b in zip(rewards, other_rewards, strict=True))


def test_a_mask_scores_nothing_and_loads_the_policy_alone(
    turns: Store, exact: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = ("logps", "hidden", "sequences")
    before = [turns.digest(table) for table in tables]
    loaded: list[str] = []
    real = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(folder: Any, *arguments: Any, **given: Any) -> Any:
        loaded.append(str(folder))
        return real(folder, *arguments, **given)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for mask in ("assistant", "last-turn", "diff"):
        settings = exact(mask=mask, loss_type="tdpo2", output_dir=turns.path.parent / mask)
        train(plan_training(turns, settings))

    turns.refresh()
    assert [turns.digest(table) for table in tables] == before
    assert loaded == [str(settings.model)] * 3


def test_all_is_no_setting_of_a_run(scored: Store, train_settings: Settings) -> None:
    put_some_spans(scored)
    runs = {}
    for name, given in (("plain", {}), ("all", {"mask": "all"})):
        output = scored.path.parent / name
        settings = train_settings(output_dir=output, max_steps=4, save_every=2, **given)
        plan = plan_training(scored, settings)
        summary = train(plan)
        runs[name] = (plan, summary, load_file(output / "model.safetensors"))

    plain, given = runs["plain"], runs["all"]
    assert given[0].config_fingerprint == plain[0].config_fingerprint
    assert not {"mask", "tokens that count"} & given[0].depends_on.keys()
    assert given[0].pairs.counted is None
    assert given[1].mask is None
    assert all(torch.equal(plain[2][each], given[2][each]) for each in plain[2])
    assert given[1].last.loss == plain[1].last.loss
    scored.refresh()
    (row,) = scored.read("runs", given[1].run_id).to_pylist()
    assert "mask" not in json.loads(row["config"])


def test_a_mask_that_counts_every_token_gives_the_same_bits(
    scored: Store, train_settings: Settings, model_dir: Path
) -> None:
    rows = sequence_rows(scored).values()
    put_spans(
        scored,
        {
            (row["text_key"], row["sequence_key"]): [(0, row["num_completion_tokens"], "assistant")]
            for row in rows
        },
    )
    score(scored, ScoreSettings(model=model_dir, pair_set="reviews", kl_pairs=True))
    weights = []
    for mask in ("all", "assistant"):
        output = scored.path.parent / mask
        losses = ("sigmoid_norm", "kto", "rdpo")
        given = {"ld_alpha": None, "loss_type": losses, "mask": mask}
        train(plan_training(scored, train_settings(output_dir=output, max_steps=4, **given)))
        weights.append(load_file(output / "model.safetensors"))

    assert all(torch.equal(weights[0][each], weights[1][each]) for each in weights[0])


def test_pairs_without_a_token_that_counts_are_left_out_and_said(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    rows = sequence_rows(scored)
    pairs = scored.read("pairs").to_pylist()
    quiet = {pair["pair_key"] for pair in pairs if pair["pair_key"][0] % 3 == 0}
    silent = {pair[f"{side}_key"] for pair in pairs if pair["pair_key"] in quiet
              for side in ("chosen", "rejected")}  # fmt: skip
    put_spans(
        scored,
        {
            (row["text_key"], sequence): [(0, 2, "user" if sequence in silent else "assistant")]
            for sequence, row in rows.items()
        },
    )
    gone = [pair for pair in pairs if {pair["chosen_key"], pair["rejected_key"]} <= silent]
    num_gone = [sum(pair["split"] == split for pair in gone) for split in ("train", "eval")]
    assert min(num_gone) > 0

    done = CliRunner().invoke(
        main,
        ["train", str(scored.path), "--pair-set", "reviews", "--model", str(model_dir),
         "--output-dir", str(tmp_path / "out"), "--mask", "assistant", "--pairs-per-step", "4",
         "--max-steps", "2", "--eval-every", "1", "--log-tokens", "eval"],
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    for number, split in zip(num_gone, ("train", "eval"), strict=True):
        assert (
            f"{number} pairs of split {split} are left out: no token of them counts under mask "
            "assistant"
        ) in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mask ")]
    assert line.endswith(f"{num_gone[0]} pairs left out, {num_gone[1]} pairs held out left out")
    scored.refresh()
    seen = {row["pair_key"] for row in scored.read("examples").to_pylist()}
    assert seen
    assert not seen & {pair["pair_key"] for pair in gone}


def test_a_mask_of_which_nothing_is_left_is_an_error_that_names_it(
    scored: Store, train_settings: Settings
) -> None:
    rows = sequence_rows(scored).values()
    put_spans(scored, {(r["text_key"], r["sequence_key"]): [(0, 1, "user")] for r in rows})

    with pytest.raises(PairSetError, match=r"mask assistant counts no token of any of the \d+"):
        plan_training(scored, train_settings(mask="assistant"))


def test_a_resumed_run_equals_an_unbroken_one(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    put_some_spans(scored)
    output = tmp_path / "out"
    given = {"mask": "assistant", "max_steps": 6, "save_every": 4, "keep": 2, "log_tokens": "all"}
    first = train(plan_training(scored, train_settings(**given)))
    whole = load_file(output / "model.safetensors")
    scored.refresh()
    masks = scored.read("masks", first.run_id)
    entry = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(entry | {"is_finished": False}))
    (output / "model.safetensors").unlink()
    shutil.rmtree(output / "checkpoints" / "step-00000006")

    second = train(plan_training(scored, train_settings(**given, resume=True)))

    again = load_file(output / "model.safetensors")
    assert second.num_resumed == 4
    assert all(torch.equal(whole[each], again[each]) for each in whole)
    scored.refresh()
    assert len(masks) > 40
    assert scored.read("masks", first.run_id).equals(masks)


@pytest.mark.parametrize(
    ("before", "now"), [("all", "assistant"), ("assistant", "all"), ("assistant", "last-turn")]
)
def test_a_run_is_not_resumed_under_another_mask(
    scored: Store, train_settings: Settings, before: str, now: str
) -> None:
    put_some_spans(scored)
    train(plan_training(scored, train_settings(mask=before, max_steps=2)))

    with pytest.raises(TrainingError, match=f"mask was '{before}' and is '{now}'"):
        train(plan_training(scored, train_settings(mask=now, max_steps=2, resume=True)))


def test_a_run_is_not_resumed_where_other_tokens_count(
    scored: Store, train_settings: Settings, tmp_path: Path
) -> None:
    query = tmp_path / "mask.sql"
    query.write_text("select sequence_key, 0 as position from sequences")
    given = {"mask": f"sql:{query}", "max_steps": 2}
    train(plan_training(scored, train_settings(**given)))
    same = train(plan_training(scored, train_settings(**given, resume=True)))
    query.write_text("select sequence_key, 1 as position from sequences")

    with pytest.raises(TrainingError, match="tokens that count was"):
        train(plan_training(scored, train_settings(**given, resume=True)))
    assert same.num_resumed == 2


def test_the_command_says_how_much_counts(scored: Store, train_settings: Settings) -> None:
    query = "select sequence_key, 0 as position from sequences"
    plan = plan_training(scored, train_settings(mask=f"sql:{query}", max_steps=1))
    lines = list(training_lines(train(plan)))

    num_tokens = int((plan.pairs.num_chosen_tokens + plan.pairs.num_rejected_tokens).sum())
    assert f"mask       sql:{query}: {2 * len(plan.pairs):,} of {num_tokens:,} tokens count" in [
        line.split(" (")[0] for line in lines
    ]


def test_the_documented_query_names_what_it_says(
    turns: Store, exact: Settings, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```sql\n(-- unsure\.sql.*?)```", page, re.DOTALL)
    (tmp_path / "unsure.sql").write_text(text)

    pairs = plan_training(turns, exact(mask=f"sql:{tmp_path / 'unsure.sql'}")).pairs

    logps = {row["sequence_key"]: row["token_logps"] for row in turns.read("logps").to_pylist()}
    for number, sequence in enumerate(pairs.rejected_keys):
        values = np.array(logps[key(sequence)])
        starts, ends = pairs.counted.rejected.of(number)
        counted = [any((starts <= at) & (at < ends)) for at in range(len(values))]
        assert counted == (values < math.log(0.5)).tolist()


def test_of_messages_the_turns_of_the_assistant_count(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    """From a file to SQL: what the user says in a completion and what the template adds do not."""
    model = Path(shutil.copytree(model_dir, tmp_path / "chat"))
    (model / "chat_template.jinja").write_text(
        "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] }} </s>"
        "{% endfor %}{% if add_generation_prompt %}<s> assistant {% endif %}"
    )
    talks = {
        side: [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=True)]
        for side, texts in (
            ("chosen", ("good film .", "the film", "good .")),
            ("rejected", ("bad .", "the film", "bad bad .")),
        )
    }
    rows = [{"prompt": [{"role": "user", "content": f"the film {word}"}], **talks}
            for word in ("good", "bad")]  # fmt: skip
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = AddSettings(
        data=(str(tmp_path / "talks.jsonl"),), pair_set="talks", tokenizer=model, max_length=64
    )
    score(store, ScoreSettings(model=model, data=data))
    counted = {}
    for mask in ("assistant", "last-turn"):
        settings = TrainSettings(
            pair_set="talks", model=model, output_dir=tmp_path / mask, pairs_per_step=2,
            max_steps=1, mask=mask, log_tokens="all",
        )  # fmt: skip
        run = train(plan_training(store, settings))
        store.refresh()
        with open_catalog(store.path) as catalog:
            question = (
                "select distinct side, string_agg(token, ' ' order by position) as text from"
                f" tokens_with_text where run = '{run.name}' and counts group by side, pair_key"
                " order by side"
            )
            counted[mask] = [row["text"] for row in catalog.select(question).to_pylist()]

    assert counted == {
        "assistant": ["good film . </s> good . </s>", "bad . </s> bad bad . </s>"],
        "last-turn": ["good . </s>", "bad bad . </s>"],
    }


def test_a_sweep_takes_masks(turns: Store, models: tuple[Path, Path], tmp_path: Path) -> None:
    query = "sql:select sequence_key, 0 as position from sequences where text_key is not null"
    (tmp_path / "sweep.toml").write_text(
        f'[base]\npair_set = "reviews"\nmodel = "{models[0]}"\noutput_dir = "{tmp_path / "runs"}"\n'
        f'reference = "{models[1]}"\nprecision = "float64"\npairs_per_step = 8\nmax_steps = 1\n'
        f'[grid]\nmask = ["all", "diff", "{query}"]\n'
    )

    done = CliRunner().invoke(main, ["sweep", str(turns.path), str(tmp_path / "sweep.toml")])

    assert done.exit_code == 0, done.output
    turns.refresh()
    configs = [json.loads(row["config"]) for row in turns.read("runs").to_pylist()]
    assert {each.get("mask") for each in configs} == {None, "diff", query}
    losses = {row["loss"] for row in turns.read("steps").to_pylist()}
    assert len(losses) == 3


def test_sft_takes_a_mask(turns: Store, models: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main,
        ["sft", str(turns.path), "--pair-set", "reviews", "--model", str(models[0]), "--mask",
         "assistant", "--output-dir", str(tmp_path / "sft"), "--max-steps", "1",
         "--pairs-per-step", "8"],
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    assert "mask       assistant: " in done.stdout


def test_diff_has_no_effect_on_one_completion(scored: Store, train_settings: Settings) -> None:
    with pytest.raises(ValueError, match="mask diff has no effect on sft"):
        plan_training(scored, train_settings(mask="diff", loss_type="sft"))


@pytest.mark.parametrize("mask", ["asistant", "sql:", "sql:  ", ""])
def test_what_is_no_mask_is_refused(train_settings: Settings, mask: str) -> None:
    with pytest.raises(ValueError, match="mask must be one of all, assistant, last-turn, diff"):
        train_settings(mask=mask)
