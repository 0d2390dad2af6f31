"""`offpref sft`: the same run as `train --loss-type sft`, and models from scratch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from offpref.pipeline.commands.main import main
from offpref.pipeline.small_world import write_demonstrations
from offpref.stores.store import Store

SIZES = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
SHORT = ("--max-steps", 3, "--pairs-per-step", 4, "--learning-rate", 1e-3)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    write_demonstrations(tmp_path / "demonstrations.jsonl", num_rows=60, seed=0)
    return tmp_path / "demonstrations.jsonl"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES))
    return tmp_path / "sizes.json"


def test_it_is_the_run_that_train_makes_with_loss_sft(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    common = ("--pair-set", "reviews", "--model", model_dir, *SHORT)

    one = cli("sft", scored.path, *common, "--output-dir", tmp_path / "one")
    other = cli(
        "train", scored.path, *common, "--output-dir", tmp_path / "other", "--loss-type", "sft"
    )

    assert (one.exit_code, other.exit_code) == (0, 0), one.output + other.output
    weights = load_file(tmp_path / "one" / "model.safetensors")
    expected = load_file(tmp_path / "other" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_a_model_from_scratch_has_a_tokenizer_of_its_data(
    tmp_path: Path, demonstrations: Path, config: Path
) -> None:
    done = cli(
        "sft", tmp_path / "store", "--data", demonstrations, "--pair-set", "d",
        "--from-scratch", config, "--vocab-size", 300, "--output-dir", tmp_path / "own", *SHORT,
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    text = "how was the film ? großartig"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert 259 < len(tokenizer) <= 300 == model.config.vocab_size
    assert len(tokenizer(" the film was good").input_ids) < 12  # of 18 bytes: it knows the words
    rows = Store.open(tmp_path / "store").read("steps").to_pylist()
    assert len(rows) == 3
    start = load_file(tmp_path / "own-start" / "model.safetensors")
    trained = load_file(tmp_path / "own" / "model.safetensors")
    assert any(not torch.equal(start[name], trained[name]) for name in trained)


def test_the_same_start_is_made_once_and_another_is_refused(
    tmp_path: Path, demonstrations: Path, config: Path
) -> None:
    def run(*more: object) -> Result:
        return cli(
            "sft", tmp_path / "store", "--data", demonstrations, "--pair-set", "d",
            "--from-scratch", config, "--output-dir", tmp_path / "own", *SHORT, *more,
        )  # fmt: skip

    first = run()
    weights = (tmp_path / "own-start" / "model.safetensors").stat().st_mtime_ns
    again = run("--resume")
    other = run("--overwrite", "--vocab-size", 400)

    assert first.exit_code == 0, first.output
    assert "start      " in first.output
    assert again.exit_code == 0, again.output
    assert "start      " not in again.output
    assert "finished before, nothing was done" in again.output
    assert (tmp_path / "own-start" / "model.safetensors").stat().st_mtime_ns == weights
    assert other.exit_code == 1
    assert "holds a model made from another configuration or data" in other.output


def test_a_start_never_replaces_what_is_there(
    tmp_path: Path, demonstrations: Path, config: Path
) -> None:
    (tmp_path / "sft-start").mkdir()
    (tmp_path / "sft-start" / "model.safetensors").write_text("another one's")

    done = cli(
        "sft", tmp_path / "store", "--from-scratch", config, "--data", demonstrations,
        "--pair-set", "shown", "--output-dir", tmp_path / "sft", *SHORT,
    )  # fmt: skip

    assert done.exit_code == 1
    assert f"{tmp_path / 'sft-start'} is not empty; name another --output-dir" in done.output
    assert (tmp_path / "sft-start" / "model.safetensors").read_text() == "another one's"


def test_the_same_seed_makes_the_same_start(
    tmp_path: Path, demonstrations: Path, config: Path
) -> None:
    for name in ("one", "two"):
        done = cli(
            "sft", tmp_path / f"store-{name}", "--data", demonstrations, "--pair-set", "d",
            "--from-scratch", config, "--output-dir", tmp_path / name, *SHORT,
        )  # fmt: skip
        assert done.exit_code == 0, done.output

    for name in ("model.safetensors", "tokenizer.json"):
        files = [tmp_path / f"{run}-start" / name for run in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "give one of --model and --from-scratch"),
        (("--model", "m", "--from-scratch", "{config}"), "give one of --model"),
        (("--model", "m", "--vocab-size", 300), "has no effect without --from-scratch"),
        (("--from-scratch", "{config}"), "--from-scratch needs --data"),
        (
            ("--from-scratch", "{config}", "--data", "{data}", "--vocab-size", 100),
            "vocab_size must be at least 259, got 100",
        ),
    ],
)
def test_settings_that_cannot_act_are_wrong_usage(
    tmp_path: Path, config: Path, demonstrations: Path, given: tuple[object, ...], message: str
) -> None:
    named = {"{config}": config, "{data}": demonstrations}

    done = cli(
        "sft", tmp_path / "store", "--pair-set", "d", "--output-dir", tmp_path / "out",
        *(named.get(str(each), each) for each in given),
    )  # fmt: skip

    assert done.exit_code == 2, done.output
    assert message in done.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "expected a configuration as JSON"),
        ('{"hidden_size": 8}', "expected a configuration with model_type"),
        ('{"model_type": "no such model"}', "makes no causal language model"),
    ],
)
def test_a_configuration_that_makes_no_model_is_one_line(
    tmp_path: Path, demonstrations: Path, content: str, message: str
) -> None:
    (tmp_path / "bad.json").write_text(content)

    done = cli(
        "sft", tmp_path / "store", "--data", demonstrations, "--pair-set", "d",
        "--from-scratch", tmp_path / "bad.json", "--output-dir", tmp_path / "out",
    )  # fmt: skip

    assert done.exit_code == 1, done.output
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_messages_have_no_template_to_be_rendered_with(
    tmp_path: Path, config: Path, write_rows: Callable[..., Path]
) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]

    done = cli(
        "sft", tmp_path / "store", "--data", write_rows(rows), "--pair-set", "d",
        "--from-scratch", config, "--output-dir", tmp_path / "out",
    )  # fmt: skip

    assert done.exit_code == 1, done.output
    assert "a model from scratch has no template" in done.output
