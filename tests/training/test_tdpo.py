"""TDPO from the store against the published formulation with a resident reference."""

import gzip
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from stopping import send, start_until
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from offpref.kernels.distributions import HiddenReference
from offpref.kernels.head import OutputHead
from offpref.kernels.topk import linear_top_tokens
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.models.devices import Processes
from offpref.pipeline.models.loading import load_scoring_model
from offpref.pipeline.models.packing import PackedRow
from offpref.pipeline.progress import Progress
from offpref.pipeline.scores.deep_verify import verify_hidden
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.policies import Learner, load_policy, trainable
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.summary import TrainSummary
from offpref.pipeline.training.train import train
from offpref.pipeline.training.trainer import Trainer
from offpref.stores.errors import PairSetError, TrainingError
from offpref.stores.store import Store

Settings = Callable[..., TrainSettings]
OFFPREF = [sys.executable, "-c", "from offpref.pipeline.commands.main import main; main()"]
TINY = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="session")
def policy_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with other weights than the reference, and the same tokenizer."""
    folder = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("policy") / "model"))
    write_model(folder, vocab_size=58, seed=9)
    return folder


def with_model(model_dir: Path, folder: Path, model: Any) -> Path:
    """A folder with the small world's tokenizer and a model of random, not too small weights."""
    folder.mkdir()
    for path in model_dir.glob("token*"):
        shutil.copy(path, folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # distributions that are far from each other
    model.save_pretrained(folder)
    return folder


def exact_model(model_dir: Path, folder: Path, seed: int) -> Path:
    """A GPT-2: unlike a Llama it is float64 throughout, its norms and positions too."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=58, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return with_model(model_dir, folder, transformers.GPT2LMHeadModel(config))


def tiny_reference(kind: str) -> Any:
    """A reference unlike the policy in what its head does."""
    torch.manual_seed(5)
    if kind == "padded":  # six columns that no token uses
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **TINY))
    if kind == "softcap":
        config = transformers.Gemma2Config(
            vocab_size=58, num_key_value_heads=2, head_dim=12, final_logit_softcapping=3.0, **TINY
        )
        return transformers.Gemma2ForCausalLM(config)
    model = transformers.PhiForCausalLM(transformers.PhiConfig(vocab_size=58, **TINY))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


class CapturedGradients(torch.optim.SGD):
    """Keeps the gradients of the first step and leaves the weights as they are."""

    captured: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:
        self.captured = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def first_step(store: Store, settings: TrainSettings) -> tuple[float, dict[str, Any], Any, Any]:
    """The loss and the gradients of the first step, its pairs and their measured values."""
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
    return measured.loss, dict(zip(names, optimizer.captured, strict=True)), plan.pairs, measured


def resident_step(
    store: Store, pairs: Any, numbers: np.ndarray, policy_dir: Path, reference_dir: Path,
    loss: str, dtype: torch.dtype,
) -> tuple[float, dict[str, torch.Tensor], np.ndarray]:  # fmt: skip
    """A whole step as published: both models resident, whole softmaxes, one sequence at a time."""
    policy = AutoModelForCausalLM.from_pretrained(policy_dir, dtype=dtype)
    reference = AutoModelForCausalLM.from_pretrained(reference_dir, dtype=dtype)
    total, kls = resident_loss(sequences(store), pairs, numbers, policy, reference, loss)
    total.backward()
    gradients = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
    return float(total.detach()), gradients, kls


def sequences(store: Store) -> dict[bytes, dict[str, Any]]:
    rows = store.read("sequences", store.partitions("sequences")[0]).to_pylist()
    return {row["sequence_key"]: row for row in rows}


def resident_loss(
    rows: dict[bytes, dict[str, Any]], pairs: Any, numbers: np.ndarray, policy: Any, reference: Any,
    loss: str,
) -> tuple[torch.Tensor, np.ndarray]:  # fmt: skip
    """The loss of a step, and the forward KLs of chosen and rejected of each pair."""
    size = min(policy.config.vocab_size, reference.config.vocab_size)
    total, kls = torch.zeros((), dtype=torch.float64), []
    for number in numbers.tolist():
        deltas, divergences = [], []
        for key in (pairs.chosen_keys[number], pairs.rejected_keys[number]):
            row = rows[bytes(key).ljust(16, b"\0")]
            ids, start = torch.tensor([row["ids"]]), row["num_prompt_tokens"]
            labels = ids[0, start:, None]
            logits = policy(ids).logits[0, start - 1 : -1, :size]
            with torch.no_grad():
                ref_logits = reference(ids).logits[0, start - 1 : -1]
            log_q = logits.double().log_softmax(-1)
            log_p = ref_logits[:, :size].double().log_softmax(-1)
            # Stored log-probs are float32, and normalised over all that the reference has.
            ref = ref_logits.double().log_softmax(-1).gather(-1, labels).float().double()
            deltas.append((log_q.gather(-1, labels) - ref).sum())
            divergences.append((log_p.exp() * (log_p - log_q)).sum())
        chosen_kl, rejected_kl = divergences
        kls.append([float(chosen_kl.detach()), float(rejected_kl.detach())])
        if loss == "tdpo1":
            values = deltas[0] - deltas[1] - (rejected_kl - chosen_kl)
        else:
            values = deltas[0] - deltas[1] - 0.5 * (rejected_kl - chosen_kl.detach())
        total = total - logsigmoid(0.1 * values)
    return total / len(numbers), np.array(kls)


def assert_step_is_the_resident_one(
    store: Store, settings: TrainSettings, reference_dir: Path, tolerance: float
) -> None:
    found, gradients, pairs, measured = first_step(store, settings)

    dtype = torch.float64 if settings.precision == "float64" else torch.float32
    expected, plain, kls = resident_step(
        store, pairs, measured.table.pairs, settings.model, reference_dir, settings.loss_type[0],
        dtype,
    )  # fmt: skip
    assert kls.min() > 1e-3  # else nothing would be tested
    for column, side in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(
            measured.table.values[f"{side}_forward_kl"], kls[:, column], rtol=10 * tolerance
        )
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert gradients.keys() == plain.keys()
    for key, gradient in gradients.items():
        scale = float(plain[key].abs().max())
        torch.testing.assert_close(gradient, plain[key], rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("loss", ["tdpo1", "tdpo2"])
def test_step_from_hidden_states_is_that_of_a_resident_reference(
    tiered: Store, train_settings: Settings, model_dir: Path, policy_dir: Path, loss: str
) -> None:
    settings = train_settings(
        loss_type=loss, model=policy_dir, reference=str(model_dir), max_steps=1,
        max_batch_tokens=150, max_grad_norm=math.inf,
    )  # fmt: skip
    assert_step_is_the_resident_one(tiered, settings, model_dir, 1e-5)


@pytest.mark.parametrize("loss", ["tdpo1", "tdpo2"])
def test_in_float64_it_is_so_to_ten_digits(
    scored: Store, train_settings: Settings, model_dir: Path, tmp_path: Path, loss: str
) -> None:
    reference = exact_model(model_dir, tmp_path / "reference", 4)
    policy = exact_model(model_dir, tmp_path / "policy", 5)
    asked = ScoreSettings(
        model=reference, pair_set="reviews", precision="float64", tier=("hidden",)
    )
    score(scored, asked)
    settings = train_settings(
        loss_type=loss, model=policy, reference=str(reference), precision="float64", max_steps=1,
        max_batch_tokens=150, max_grad_norm=math.inf,
    )  # fmt: skip
    assert_step_is_the_resident_one(scored, settings, reference, 1e-10)


@pytest.mark.parametrize("kind", ["padded", "softcap", "bias"])
def test_reference_may_have_another_head_than_the_policy(
    scored: Store, train_settings: Settings, model_dir: Path, policy_dir: Path, tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    reference = with_model(model_dir, tmp_path / "reference", tiny_reference(kind))
    score(scored, ScoreSettings(model=reference, pair_set="reviews", tier=("hidden",)))
    settings = train_settings(
        loss_type="tdpo1", model=policy_dir, reference=str(reference), max_steps=1,
        max_grad_norm=math.inf,
    )  # fmt: skip
    assert_step_is_the_resident_one(scored, settings, reference, 2e-5)


def test_policy_that_is_the_reference_has_no_kl_at_its_first_step(
    tiered: Store, train_settings: Settings
) -> None:
    settings = train_settings(loss_type="tdpo2", max_steps=1, log_tokens="all", kl_metrics=True)

    summary = train(plan_training(tiered, settings))

    assert summary.first is not None
    assert summary.first.loss == pytest.approx(math.log(2), abs=1e-6)
    tiered.refresh()
    rows = tiered.read("tokens", summary.run_id).to_pylist()
    kls = np.concatenate([row["forward_kl"] for row in rows])
    assert len(rows) == 16
    assert np.abs(kls).max() < 1e-9
    assert summary.first.metrics["reverse_kl/chosen"] == pytest.approx(0, abs=1e-8)


def test_kl_is_exactly_zero_on_the_batch_that_was_scored(model_dir: Path) -> None:
    model = load_scoring_model(model_dir)
    rng = np.random.default_rng(0)
    rows = [
        PackedRow(
            prompt=rng.integers(58, size=7),
            completions=(rng.integers(58, size=5), rng.integers(58, size=9)),
            sequence_indices=(2 * i, 2 * i + 1),
        )
        for i in range(3)
    ]
    batch = model.collate(rows)
    with torch.no_grad():
        hidden = model(batch, ("hidden",)).hidden.clone()
    head = OutputHead(weight=model.head.weight.detach().clone())

    scores = model(
        batch, ("forward_kl", "reverse_kl"), reference=HiddenReference(hidden=hidden, head=head)
    )

    assert torch.equal(scores.forward_kl, torch.zeros(42))
    assert torch.equal(scores.reverse_kl, torch.zeros(42))


def test_what_bf16_leaves_at_the_first_step_is_reported(
    scored: Store, train_settings: Settings, model_dir: Path
) -> None:
    score(
        scored,
        ScoreSettings(model=model_dir, pair_set="reviews", precision="bf16", tier=("hidden",)),
    )

    summary = train(
        plan_training(scored, train_settings(loss_type="tdpo2", precision="bf16", max_steps=1))
    )

    scored.refresh()
    assert summary.first is not None
    assert summary.first.residual is not None
    [row] = scored.read("steps", summary.run_id).to_pylist()
    metrics = dict(row["metrics"])
    assert 0 <= metrics["reference_residual/mean"] < 5e-2
    assert 0 <= metrics["forward_kl/chosen"] < 0.05
    [hidden] = scored.shards("hidden", summary_scorer(scored, "bf16"))
    assert hidden.num_rows > 100


def summary_scorer(store: Store, precision: str) -> str:
    [found] = [
        name
        for name in store.partitions("hidden")
        if store.read_spec(name)["numerics"]["precision"] == precision  # type: ignore[index]
    ]
    return found


def run(store: Store, settings: TrainSettings) -> tuple[TrainSummary, list[dict[str, Any]]]:
    """Train, and return what the store says of the pairs of the first step."""
    summary = train(plan_training(store, settings))
    store.refresh()
    rows = store.read("examples", summary.run_id).to_pylist()
    return summary, [row for row in rows if row["step"] == 1]


def test_top_k_gives_a_lower_bound_and_every_table_says_so(
    tiered: Store, train_settings: Settings, model_dir: Path, policy_dir: Path, tmp_path: Path
) -> None:
    def settings(tier: str) -> TrainSettings:
        return train_settings(
            loss_type="tdpo2", model=policy_dir, reference=str(model_dir), max_steps=1,
            kl_tier=tier, kl_metrics=True, log_tokens="all", output_dir=tmp_path / tier,
        )  # fmt: skip

    exact, exact_rows = run(tiered, settings("hidden"))
    bound, bound_rows = run(tiered, settings("topk"))

    for one, other in zip(exact_rows, bound_rows, strict=True):
        assert one["pair_key"] == other["pair_key"]
        assert 0 < other["chosen_forward_kl"] < one["chosen_forward_kl"]
        assert (one["kl_source"], other["kl_source"]) == ("exact", "topk-bound")
        assert one["chosen_reverse_kl"] > 0
        assert other["chosen_reverse_kl"] is None
    for summary, label in ((exact, "exact"), (bound, "topk-bound")):
        [record] = tiered.read("runs", summary.run_id).to_pylist()
        tokens = tiered.read("tokens", summary.run_id)
        assert json.loads(record["config"])["kl_source"] == label
        assert tokens["kl_source"].unique().to_pylist() == [label]
    assert exact.first is not None
    assert bound.first is not None
    assert {"forward_kl/chosen", "reverse_kl/chosen", "entropy"} <= exact.first.metrics.keys()
    assert {"forward_kl_bound/chosen", "entropy"} <= bound.first.metrics.keys()
    assert not {"forward_kl/chosen", "reverse_kl/chosen"} & bound.first.metrics.keys()


def test_top_of_the_whole_vocabulary_is_exact(
    scored: Store, train_settings: Settings, model_dir: Path, policy_dir: Path
) -> None:
    asked = ScoreSettings(model=model_dir, pair_set="reviews", tier=("topk",), top_k=58)
    score(scored, asked)
    settings = train_settings(
        loss_type="tdpo1", model=policy_dir, reference=str(model_dir), max_steps=1,
        max_grad_norm=math.inf,
    )  # fmt: skip
    assert_step_is_the_resident_one(scored, settings, model_dir, 1e-4)


def test_of_several_tiers_the_exact_one_is_taken_and_then_the_largest_complete_k(
    tiered: Store, train_settings: Settings, model_dir: Path
) -> None:
    score(tiered, ScoreSettings(model=model_dir, pair_set="reviews", tier=("topk",), top_k=9))

    def tier(**given: object) -> str:
        kl = plan_training(tiered, train_settings(loss_type="tdpo1", **given)).kl
        return "none" if kl is None else str(kl.tier)

    assert [tier(), tier(kl_tier="topk")] == ["hidden", "topk k=9"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"loss_type": "tdpo1"},
            r"tdpo1 needs .* \(--tier topk would do, for a lower bound\); run: .* --tier hidden$",
        ),
        ({"loss_type": "tdpo2", "kl_tier": "topk"}, r"tdpo2 needs .* run: offpref .* --tier topk$"),
        ({"loss_type": "sft", "kl_metrics": True}, r"kl_metrics needs .* --tier hidden"),
    ],
)
def test_tier_that_is_missing_is_named_with_the_command_that_makes_it(
    scored: Store, train_settings: Settings, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(PairSetError, match=said):
        plan_training(scored, train_settings(**given))


def test_kl_tier_that_takes_no_effect_is_refused(tiered: Store, train_settings: Settings) -> None:
    with pytest.raises(ValueError, match="kl_tier has no effect on sigmoid without kl_metrics"):
        plan_training(tiered, train_settings(kl_tier="hidden"))


def test_top_k_with_tokens_that_the_policy_lacks_is_refused(
    scored: Store, train_settings: Settings, model_dir: Path, policy_dir: Path, tmp_path: Path
) -> None:
    reference = with_model(model_dir, tmp_path / "reference", tiny_reference("padded"))
    score(scored, ScoreSettings(model=reference, pair_set="reviews", tier=("topk",), top_k=64))
    settings = train_settings(loss_type="tdpo2", model=policy_dir, reference=str(reference))
    with pytest.raises(TrainingError, match="vocabulary ends at 58: take --kl-tier hidden"):
        train(plan_training(scored, settings))


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "aot", "sft"])
def test_measuring_kls_changes_nothing_to_the_last_bit(
    tiered: Store, train_settings: Settings, tmp_path: Path, loss: str
) -> None:
    common: dict[str, Any] = {"loss_type": loss, "max_steps": 2}
    train(plan_training(tiered, train_settings(**common, output_dir=tmp_path / "plain")))
    measured, rows = run(
        tiered, train_settings(**common, output_dir=tmp_path / "measured", kl_metrics=True)
    )

    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "measured"))
    assert all(one[key].numpy().tobytes() == other[key].numpy().tobytes() for key in one)
    assert measured.last is not None
    assert measured.last.metrics["forward_kl/chosen"] > 0
    assert measured.last.metrics["entropy"] > 0
    assert {row["kl_source"] for row in rows} == {"exact"}


def test_derivatives_of_tdpo_beside_a_coupled_loss_are_those_of_the_sum(
    tiered: Store, train_settings: Settings, model_dir: Path, policy_dir: Path
) -> None:
    def gradients(*losses: str) -> dict[str, torch.Tensor]:
        settings = train_settings(
            loss_type=losses, model=policy_dir, reference=str(model_dir), max_steps=1,
            max_grad_norm=math.inf, seed=0,
        )  # fmt: skip
        return first_step(tiered, settings)[1]

    both, one, other = gradients("tdpo1", "aot"), gradients("tdpo1"), gradients("aot")

    for name, gradient in both.items():
        torch.testing.assert_close(gradient, one[name] + other[name], rtol=1e-4, atol=1e-6)


def train_command(store: Store, model: Path, output: Path, *more: str) -> list[str]:
    return [
        *OFFPREF, "train", str(store.path), "--pair-set", "reviews", "--model", str(model),
        "--output-dir", str(output), "--pairs-per-step", "8", "--learning-rate", "1e-3",
        "--max-steps", "12", "--save-every", "4", "--loss-type", "tdpo2", "--log-tokens", "all",
        "--kl-metrics", *more,
    ]  # fmt: skip


def test_killed_and_resumed_tdpo2_equals_an_unbroken_run_bit_for_bit(
    tiered: Store, train_settings: Settings, model_dir: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = train_settings(
        loss_type="tdpo2", max_steps=12, save_every=4, log_tokens="all", kl_metrics=True,
        output_dir=whole,
    )  # fmt: skip
    train(plan_training(tiered, settings))
    process = start_until("checkpoint-placed", train_command(tiered, model_dir, broken))
    send(process, signal.SIGKILL)

    done = subprocess.run(
        train_command(tiered, model_dir, broken, "--resume"),
        check=False, capture_output=True, text=True,
    )  # fmt: skip

    assert process.returncode == -signal.SIGKILL
    assert done.returncode == 0, done.stderr
    one, other = (load_file(path / "model.safetensors") for path in (whole, broken))
    assert all(one[key].numpy().tobytes() == other[key].numpy().tobytes() for key in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "longest", "num_pairs"), [("stories260k", 512, 48), ("babyllama105", 160, 16)]
)
def test_epoch_on_real_text_has_the_losses_of_a_resident_reference(
    store: Store, shared: Path, tmp_path: Path, name: str, longest: int, num_pairs: int
) -> None:
    model, data = shared / "models" / name, tmp_path / "hh.jsonl"
    with gzip.open(shared / "data/prefs/hh_harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [line for line in file if len(line) < 2 * longest]
    data.write_text("".join(rows[:num_pairs]), encoding="utf-8")
    added = AddSettings(data=(str(data),), pair_set="hh", tokenizer=model, max_length=longest)
    score(store, ScoreSettings(model=model, data=added, tier=("hidden",)))
    settings = TrainSettings(
        pair_set="hh", model=model, output_dir=tmp_path / "out", loss_type=("tdpo2",),
        pairs_per_step=4, learning_rate=1e-4, lr_scheduler_type="constant",
    )  # fmt: skip

    plan = plan_training(store, settings)
    summary = train(plan)

    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, weight_decay=0.0)
    expected = []
    for numbers in plan.epoch(0):
        total, _ = resident_loss(sequences(store), plan.pairs, numbers, policy, reference, "tdpo2")
        total.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(total.detach()))
    store.refresh()
    steps = sorted(store.read("steps", summary.run_id).to_pylist(), key=lambda row: row["step"])
    found = [row["loss"] for row in steps]
    assert len(found) == len(expected) >= 2
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(found[-1] - math.log(2)) > 1e-3  # it has learned something
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert dict(steps[-1]["metrics"])["forward_kl/chosen"] > 1e-3


def test_resuming_on_other_distributions_is_refused(
    tiered: Store, train_settings: Settings
) -> None:
    settings = {"loss_type": "tdpo2", "max_steps": 2}
    train(plan_training(tiered, train_settings(**settings, kl_tier="hidden")))
    changed = train_settings(**settings, kl_tier="topk", resume=True)
    with pytest.raises(TrainingError, match=r"cannot be resumed: kl_source was 'exact' and is"):
        train(plan_training(tiered, changed))


def test_policy_with_an_output_head_of_its_own_has_the_same_kls(
    model_dir: Path, policy_dir: Path
) -> None:
    """Whole logits of a row, where the head's form is unknown."""
    reference, policy = load_scoring_model(model_dir), load_scoring_model(policy_dir)
    rng = np.random.default_rng(0)
    rows = [
        PackedRow(
            prompt=rng.integers(58, size=7), completions=(rng.integers(58, size=5 + i),),
            sequence_indices=(i,),
        )
        for i in range(3)
    ]  # fmt: skip
    batch = policy.collate(rows)
    with torch.no_grad():
        hidden = reference(batch, ("hidden",)).hidden
    whole = HiddenReference(hidden=hidden, head=reference.head)
    names = ("token_logps", "forward_kl", "reverse_kl")
    weight = policy.model.model.norm.weight

    for source, want in ((whole, names), (linear_top_tokens(hidden, whole.head, 5), names[:2])):
        found = []
        for route in ("packed", "logits"):
            policy.route = route
            scores = policy(batch, want, reference=source)
            values = [getattr(scores, name) for name in want]
            [gradient] = torch.autograd.grad(sum(v.sum() for v in values), weight)
            found.append([*values, gradient])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_kls_of_one(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    common = [
        str(scored.path),
        "--pair-set",
        "reviews",
        "--model",
        str(model_dir),
        "--device",
        "cpu",
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "go.py"
    script.write_text("from offpref.pipeline.commands.start import start\nstart()\n")

    def run(processes: int, *arguments: str) -> None:
        start = [*launcher, str(script)] if processes > 1 else [str(script)]
        done = subprocess.run(
            [sys.executable, *start, *arguments], capture_output=True, text=True, check=False,
            env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    run(2, "score", *common, "--tier", "hidden", "--shard-model")
    for processes in (1, 2):
        run(processes, "train", *common, "--output-dir", str(tmp_path / str(processes)),
            "--pairs-per-step", "7", "--learning-rate", "1e-3", "--max-steps", "4",
            "--max-batch-tokens", "150", "--loss-type", "tdpo2", "--kl-metrics")  # fmt: skip

    scored.refresh()
    first, second = (
        scored.read("steps", json.loads((tmp_path / n / "run.json").read_text())["run_id"])
        for n in ("1", "2")
    )
    for a, b in zip(first.to_pylist(), second.to_pylist(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        metrics, others = dict(a["metrics"]), dict(b["metrics"])
        for name in ("forward_kl/chosen", "reverse_kl/rejected", "entropy"):
            assert metrics[name] == pytest.approx(others[name], rel=1e-3, abs=1e-6)
    assert verify_hidden(scored).problems == []
