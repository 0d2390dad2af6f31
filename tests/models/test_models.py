"""Every family scores as its own plain forward pass does, packed where it can be."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from scored_rows import score_rows

from offpref.kernels import reference
from offpref.pipeline.models.batches import collate_rows, separate_rows
from offpref.pipeline.models.heads import head_conventions
from offpref.pipeline.models.loading import load_scoring_model
from offpref.pipeline.models.masks import MaskRule
from offpref.pipeline.models.packing import (
    LengthSwitch,
    PackedRow,
    cut_batches,
    fill_rows,
    plan_rows,
)
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.models.selfcheck import check_packing
from offpref.stores.errors import ModelError

SMALL = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # so that context matters and a wrong mask shows
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
HEAD_DIM = GROUPED | {"head_dim": 8}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 64,
    "factor": 2.0,
}


def gpt2_config() -> tf.PreTrainedConfig:
    return tf.GPT2Config(
        vocab_size=160, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def opt_config(**changes: Any) -> tf.PreTrainedConfig:
    return tf.OPTConfig(**SMALL | {"ffn_dim": 48, "init_std": 0.3} | changes)


FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama-tied-bias": lambda: tf.LlamaConfig(
        **GROUPED, tie_word_embeddings=True, attention_bias=True
    ),
    "mistral-window": lambda: tf.MistralConfig(**GROUPED, sliding_window=6),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen2-window": lambda: tf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: tf.Qwen3Config(**HEAD_DIM),
    "gemma2": lambda: tf.Gemma2Config(
        **HEAD_DIM, sliding_window=6, final_logit_softcapping=2.0, attn_logit_softcapping=5.0
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **HEAD_DIM, sliding_window=6, layer_types=["sliding_attention"] * 2 + ["full_attention"]
    ),
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "phi3-longrope": lambda: tf.Phi3Config(
        **GROUPED, rope_parameters=LONGROPE, original_max_position_embeddings=64
    ),
    "gpt2": gpt2_config,
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SMALL),
    "opt": opt_config,
    "opt-projected": lambda: opt_config(word_embed_proj_dim=16),
    "granite": lambda: tf.GraniteConfig(
        **GROUPED, logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5
    ),
    "cohere": lambda: tf.CohereConfig(**GROUPED, logit_scale=0.25),
    "mixtral": lambda: tf.MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    "phi-head-bias": lambda: tf.PhiConfig(**SMALL),
    "olmo2": lambda: tf.Olmo2Config(**GROUPED),
    "starcoder2-window": lambda: tf.Starcoder2Config(**GROUPED, sliding_window=6),
    "bloom": lambda: tf.BloomConfig(
        vocab_size=160, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.3
    ),
    "mamba": lambda: tf.MambaConfig(
        vocab_size=160, hidden_size=32, num_hidden_layers=3, state_size=4, initializer_range=0.3
    ),
}
MUST_SEPARATE = {"bloom", "mamba"}
WITHOUT_SDPA = {"gemma2", "bloom", "mamba"}
MIXTURES = {"mixtral"}
PACKING = sorted(set(FAMILIES) - MUST_SEPARATE)


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a small random model of a family, made on first use."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            torch.manual_seed(0)
            model = tf.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float64)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
            made[family] = tmp_path_factory.mktemp(family)
            model.float().save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Bars of save_pretrained are transformers' own."""
    tf.utils.logging.disable_progress_bar()


def random_row(prompt: int, *completions: int, first: int = 0, seed: int = 0) -> PackedRow:
    rng = np.random.default_rng([seed, prompt, *completions])
    return PackedRow(
        prompt=rng.integers(3, 160, size=prompt),
        completions=tuple(rng.integers(3, 160, size=n) for n in completions),
        sequence_indices=tuple(range(first, first + len(completions))),
    )


ROWS = [
    random_row(9, 4, first=0),  # one completion
    random_row(12, 5, 8, first=1),  # a pair
    random_row(3, 2, 7, 1, 4, 6, first=3),  # a list, with a completion of one token
    random_row(1, 3, 1, first=8),  # a prompt of one token
    random_row(25, 10, 12, first=10),  # prompt and completions longer than the window of 6
]


def plain_logps(model: ScoringModel, rows: list[PackedRow]) -> dict[int, np.ndarray]:
    """The log-probs by the book: each sequence alone, whole logits, log_softmax."""
    found = {}
    for row in rows:
        for index, completion in zip(row.sequence_indices, row.completions, strict=True):
            ids = torch.from_numpy(np.concatenate((row.prompt, completion)))[None]
            with torch.no_grad():
                logits = model.model(input_ids=ids).logits[0]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            logps = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            found[index] = logps[len(row.prompt) - 1 :].numpy()
    return found


def largest_difference(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[index] - second[index]).max()) for index in first)


def load(model_dir: Path, family: str, **settings: Any) -> ScoringModel:
    return load_scoring_model(
        model_dir, experts="eager" if family in MIXTURES else None, **settings
    )


@pytest.mark.parametrize("family", PACKING)
def test_family_packs(family: str, model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs(family), family)

    assert model.packs
    assert model.report is not None
    assert model.report.message is None
    assert model.report.covers_window


@pytest.mark.parametrize("family", sorted(MUST_SEPARATE))
def test_family_without_a_mask_falls_back_and_says_so(
    family: str, model_dirs: Callable[[str], Path]
) -> None:
    model = load(model_dirs(family), family)

    assert not model.packs
    assert model.route == "separate"
    assert model.report is not None
    assert "each completion is computed with its own prompt" in str(model.report.message)


@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, "eager") for family in FAMILIES]
    + [(family, "sdpa") for family in FAMILIES if family not in WITHOUT_SDPA],
)
def test_equals_plain_logits_in_float64(
    family: str, attention: str, model_dirs: Callable[[str], Path]
) -> None:
    model = load(model_dirs(family), family, precision="float64", attention=attention)

    scores = score_rows(model, ROWS)

    limit = 1e-9 if attention == "sdpa" else 5e-6  # eager attention takes its softmax in float32
    assert largest_difference(scores, plain_logps(model, ROWS)) < limit
    assert model.packs == (family not in MUST_SEPARATE)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_plain_logits_in_float32(family: str, model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs(family), family)

    scores = score_rows(model, ROWS)

    assert largest_difference(scores, plain_logps(model, ROWS)) < 1e-5
    assert all(logps.dtype == np.float32 for logps in scores.values())


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "gemma3", "gpt2", "opt"])
def test_batching_changes_nothing_but_rounding(
    family: str, model_dirs: Callable[[str], Path]
) -> None:
    model = load(model_dirs(family), family, precision="float64")

    together = score_rows(model, ROWS)
    one_by_one = {k: v for row in ROWS for k, v in score_rows(model, [row]).items()}

    limit = 5e-6 if model.attention == "eager" else 1e-11
    assert largest_difference(together, one_by_one) < limit


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mamba"])
def test_padding_never_reaches_a_result(family: str, model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs(family), family)
    clean = score_rows(model, ROWS)
    used = {int(i) for row in ROWS for ids in (row.prompt, *row.completions) for i in ids}
    unused = sorted(set(range(model.vocab_size)) - used)
    head = model.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # no longer tied
    model.model.get_input_embeddings().weight.data[unused] = torch.nan

    scores = score_rows(model, ROWS)

    assert len(unused) > 10
    assert largest_difference(scores, clean) == 0


def test_nan_in_one_row_stays_there(model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs("llama"), "llama")
    clean = score_rows(model, ROWS)
    poisoned = random_row(30, 4, first=99)
    poisoned.prompt[0] = 2  # of no other row
    embedding = model.model.get_input_embeddings()
    embedding.weight.data[2] = torch.nan

    scores = score_rows(model, [*ROWS, poisoned])

    assert np.isnan(scores.pop(99)).all()
    assert largest_difference(scores, clean) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
def test_bf16_packed_is_near_alone(precision: Any, model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs("llama"), "llama", precision=precision)

    packed = score_rows(model, ROWS)
    model.route = "separate"
    alone = {k: v for row in ROWS for k, v in score_rows(model, [row]).items()}

    errors = np.concatenate([packed[k] - alone[k] for k in packed])
    assert model.report is not None
    assert model.report.route == "packed"
    assert model.report.packed_difference is not None
    assert np.abs(errors).mean() < 0.02
    assert abs(errors.mean()) < 0.01
    assert all(logps.dtype == np.float32 for logps in packed.values())


def test_positions_are_counted_and_not_places(model_dirs: Callable[[str], Path]) -> None:
    """A window over places in the row would hide the prompt from the second completion."""
    model = load(model_dirs("mistral-window"), "mistral-window", precision="float64")
    alone = random_row(5, 4)
    behind = PackedRow(
        prompt=alone.prompt,
        completions=(random_row(1, 20, seed=3).completions[0], alone.completions[0]),
        sequence_indices=(1, 0),
    )

    assert (
        largest_difference({0: score_rows(model, [behind])[0]}, score_rows(model, [alone])) < 1e-11
    )


def ignore(model: ScoringModel, argument: str) -> None:
    """Make the backbone take an argument and not use it, as some models do."""

    def drop(module: object, ids: Any, arguments: dict[str, Any]) -> Any:
        return ids, {k: v for k, v in arguments.items() if k != argument}

    model.model.base_model.register_forward_pre_hook(drop, with_kwargs=True)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("without", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_self_check_catches_a_model_that_ignores(
    without: str, family: str, precision: Any, model_dirs: Callable[[str], Path]
) -> None:
    model = load(model_dirs(family), family, precision=precision, check=False)
    ignore(model, without)

    report = check_packing(model)
    model.take(report)

    assert report.route == model.route == "separate"
    assert largest_difference(score_rows(model, ROWS), plain_logps(model, ROWS)) < (
        1e-5 if precision == "float32" else 0.2
    )


def test_self_check_catches_a_wrong_window(model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs("mistral-window"), "mistral-window", check=False)
    model.mask_rule = MaskRule(windows={"sliding_attention": 7}, is_additive=False)

    model.take(check_packing(model))
    assert model.route == "separate"


class _OwnHead(torch.nn.Linear):
    """A head of a form that nobody has seen."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).sin() * 3


def test_unknown_head_is_computed_by_the_model_itself(
    model_dirs: Callable[[str], Path],
) -> None:
    model = load(model_dirs("llama"), "llama", check=False)
    head = _OwnHead(32, 160, bias=False)
    head.weight = model.model.lm_head.weight
    model.model.lm_head = head

    report = check_packing(model)
    model.take(report)

    assert report.route == "logits"
    assert "whole logits are computed" in str(report.message)
    assert largest_difference(score_rows(model, ROWS), plain_logps(model, ROWS)) < 1e-6


@pytest.mark.parametrize(
    ("family", "convention"),
    [
        ("granite", (0.25, None)),
        ("cohere", (0.25, None)),
        ("gemma2", (1.0, 2.0)),
        ("llama", (1.0, None)),
    ],
)
def test_head_convention_is_found(
    family: str, convention: tuple[float, float | None], model_dirs: Callable[[str], Path]
) -> None:
    assert load(model_dirs(family), family).convention == convention


def test_wrong_guess_of_the_head_is_put_right(model_dirs: Callable[[str], Path]) -> None:
    """Another family might multiply where Granite divides."""
    model = load(model_dirs("granite"), "granite", check=False)
    model.config.model_type = "hyperclovax"
    assert head_conventions(model.config)[0].scale == 4

    model.take(check_packing(model))

    assert model.convention.scale == 0.25


LONG, SHORT = random_row(60, 8, 3, first=0), random_row(20, 6, 9, first=2)  # longrope changes at 64


def test_longrope_is_right_on_both_sides_of_its_switch(
    model_dirs: Callable[[str], Path],
) -> None:
    model = load(model_dirs("phi3-longrope"), "phi3-longrope", precision="float64")
    rows = separate_rows([LONG, SHORT])
    switch = model.length_switch
    plan = plan_rows(
        np.array([0, 0, 1, 1]),
        np.array([60, 60, 20, 20]),
        np.array([8, 3, 6, 9]),
        length_switch=switch,
    )

    scores: dict[int, np.ndarray] = {}
    for batch in cut_batches(plan, max_batch_tokens=10_000):
        sequences = {r.sequence_indices[0]: r for r in rows}
        filled = fill_rows(
            plan,
            batch,
            {
                i: (np.concatenate((r.prompt, r.completions[0])), len(r.prompt))
                for i, r in sequences.items()
            },
        )
        scores |= score_rows(model, filled)

    assert switch == LengthSwitch(boundary=64)
    assert largest_difference(scores, plain_logps(model, rows)) < 1e-9
    assert largest_difference(score_rows(model, [LONG, SHORT]), scores) > 1e-3  # hence the switch


def test_dynamic_ntk_does_not_remember_longer_sequences(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = tf.LlamaConfig(**GROUPED | {"max_position_embeddings": 16, "rope_parameters": rope})
    torch.manual_seed(0)
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_scoring_model(tmp_path, precision="float64")
    medium, long = random_row(18, 4), random_row(30, 5, first=1)
    fresh = score_rows(model, [medium])

    score_rows(model, [long])
    again = score_rows(model, [medium])

    assert model.length_switch == LengthSwitch(boundary=16, is_gradual=True)
    assert largest_difference(again, fresh) == 0
    assert (
        largest_difference(
            fresh, plain_logps(load_scoring_model(tmp_path, precision="float64"), [medium])
        )
        < 1e-9
    )


def test_gradients_equal_those_of_plain_logits(model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs("llama-tied-bias"), "llama-tied-bias", precision="float64")
    model.train()
    batch = model.collate(ROWS)
    weights = torch.randn(len(batch.labels), dtype=torch.float64)

    logps = model(batch).token_logps
    (logps * weights).sum().backward()

    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.route = "logits"
    batch = collate_rows(separate_rows(ROWS))
    (model(batch).token_logps * weights).sum().backward()
    plain = [p.grad for p in model.parameters()]
    # Normalisation is in float32 whatever the model's dtype.
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(packed, plain, strict=True)) < 1e-5


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(
    model_dirs: Callable[[str], Path],
) -> None:
    model = load(model_dirs("llama"), "llama", precision="float64").train()
    model(model.collate(ROWS)).token_logps.sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    model.model.gradient_checkpointing_enable()
    calls: list[int] = []
    model.model.base_model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    model(model.collate(ROWS)).token_logps.sum().backward()

    found = [p.grad for p in model.parameters()]
    assert (
        max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)) < 1e-12
    )


def test_training_mode_scores_the_same(model_dirs: Callable[[str], Path]) -> None:
    """GPT-2's configuration has a dropout of 0.1, which is taken out at load."""
    model = load(model_dirs("gpt2"), "gpt2")
    expected = score_rows(model, ROWS)

    assert largest_difference(score_rows(model.train(), ROWS), expected) == 0


def test_hidden_states_and_entropy_on_request(model_dirs: Callable[[str], Path]) -> None:
    model = load(model_dirs("cohere"), "cohere", precision="float64")

    with torch.no_grad():
        scores = model(model.collate(ROWS), want=("token_logps", "entropy", "hidden"))

    logits = reference.head_logits(scores.hidden, model.head)
    torch.testing.assert_close(scores.entropy, reference.entropy(logits))
    torch.testing.assert_close(
        scores.token_logps, reference.label_logps(logits, model.collate(ROWS).labels)
    )


def test_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere is not a model folder: it has no config\.json"):
        load_scoring_model(tmp_path / "nowhere")


def test_pickled_weights_are_refused(tmp_path: Path, model_dirs: Callable[[str], Path]) -> None:
    shutil.copy(model_dirs("llama") / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ModelError, match=r"no weights as \*\.safetensors \(its \*\.bin"):
        load_scoring_model(tmp_path)


def test_truncated_weights(tmp_path: Path, model_dirs: Callable[[str], Path]) -> None:
    shutil.copytree(model_dirs("llama"), tmp_path, dirs_exist_ok=True)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    with pytest.raises(ModelError, match="cannot load the model in"):
        load_scoring_model(tmp_path)


def test_absent_tensor_is_not_made_up(tmp_path: Path, model_dirs: Callable[[str], Path]) -> None:
    shutil.copytree(model_dirs("llama"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"lacks 1 of the model's tensors, model\.norm\.weight"):
        load_scoring_model(tmp_path)


def test_code_in_the_folder_is_not_run(tmp_path: Path, model_dirs: Callable[[str], Path]) -> None:
    shutil.copytree(model_dirs("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('the code ran')")

    with pytest.raises(ModelError, match="cannot load the model"):
        load_scoring_model(tmp_path)


def test_loading_prints_nothing(
    model_dirs: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for family in ("llama", "mamba"):
        model_dirs(family)
    capfd.readouterr()
    tf.utils.logging.enable_progress_bar()

    for family in ("llama", "mamba"):
        load(model_dirs(family), family)

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", ["llama-tied-bias", "gemma3"])
def test_sharded_over_two_processes(
    family: str, tmp_path: Path, model_dirs: Callable[[str], Path]
) -> None:
    model = load(model_dirs(family), family)
    expected = score_rows(model, ROWS)
    model(model.collate(ROWS)).token_logps.sum().backward()

    torch.save(ROWS, tmp_path / "rows.pt")
    worker = [sys.executable, Path(__file__).with_name("sharded_worker.py"), model_dirs(family)]
    ranks = [subprocess.Popen([*worker, tmp_path, str(rank)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]

    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert kept["route"] == "packed"
        assert kept["num_units"] == 3 + 1  # each layer, and the root
        assert kept["num_local"] < 0.6 * sum(p.numel() for p in model.parameters())
        assert largest_difference(kept["scores"], expected) < 1e-6
        for found, parameter in zip(kept["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, atol=1e-4, rtol=1e-4)
