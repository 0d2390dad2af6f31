"""Configurations of TRL, axolotl and LLaMA-Factory in our words, and the page that says how."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.translation.keys import COMPUTED, COPIED, NEEDLESS, WITHOUT

PAGE = (Path(__file__).parents[2] / "docs" / "from_trl.md").read_text(encoding="utf-8")
TRL = """
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
"""
AXOLOTL = """
base_model: meta-llama/Meta-Llama-3-8B
rl: dpo
datasets: [{path: Intel/orca_dpo_pairs, split: train, type: chatml.intel}]
learning_rate: 2e-4
"""
FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: dpo
dataset: dpo_en_demo
"""


def translated(tmp_path: Path, text: str, *more: str) -> tuple[dict[str, Any], Result]:
    """Return the tables that come of a file, and all that was printed."""
    (tmp_path / "file.yaml").write_text(text)
    done = CliRunner().invoke(main, ["config", "from-trl", str(tmp_path / "file.yaml"), *more])
    return (tomllib.loads(done.stdout) if done.exit_code == 0 else {}), done


def test_what_trl_leaves_out_is_its_own_default(tmp_path: Path) -> None:
    tables, _ = translated(tmp_path, TRL)

    assert tables["add"] == {
        "data": ["hf://datasets/trl-lib/ultrafeedback_binarized"],
        "pair_set": "ultrafeedback_binarized", "tokenizer": "Qwen2-0.5B-Instruct",
        "max_length": 1024, "truncation": "keep-start",
    }  # fmt: skip
    assert tables["score"]["precision"] == "bf16-autocast"
    expected = {
        "learning_rate": 1e-6, "num_epochs": 3.0, "pairs_per_step": 8, "beta": 0.1, "seed": 42,
        "lr_scheduler_type": "linear", "precision": "bf16-autocast", "save_every": 500,
        "gradient_checkpointing": True, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "loss_type": ["sigmoid"],
    }  # fmt: skip
    assert {name: tables["train"][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{TRL}learning_rate: 5e-7", {"learning_rate": 5e-7}),  # a text, to YAML
        (f"{TRL}per_device_train_batch_size: 2\ngradient_accumulation_steps: 8",
         {"pairs_per_step": 64}),
        (f"{TRL}max_steps: 100", {"max_steps": 100, "num_epochs": None}),
        (f"{TRL}warmup_steps: 0.1", {"warmup_ratio": 0.1, "warmup_steps": None}),
        (f"{TRL}warmup_steps: 20\nwarmup_ratio: 0.5", {"warmup_steps": 20, "warmup_ratio": None}),
        (f"{TRL}lr_scheduler_type: constant\nwarmup_ratio: 0.1", {"warmup_ratio": None}),
        (f"{TRL}loss_type: [sigmoid, sft]\nloss_weights: [1, 0.2]",
         {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}),
        (f"{TRL}rpo_alpha: 0.3", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}),
        (f"{TRL}label_smoothing: 0.1", {"label_smoothing": None}),  # TRL ignores it there
        (f"{TRL}loss_type: robust\nlabel_smoothing: 0.1", {"label_smoothing": 0.1}),
        (f"{TRL}bf16: false", {"precision": "float32"}),
        (f"{TRL}dtype: bfloat16", {"precision": "bf16"}),
        (f"{TRL}fp16: true", {"precision": "bf16-autocast"}),
        (f"{TRL}use_peft: true", {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
         "lora_target_modules": ["q_proj", "v_proj"], "lora_output": "adapter"}),
        (f"{TRL}lora_r: 64", {"lora_r": None}),  # without use_peft
        (f"{TRL}eval_strategy: steps\neval_steps: 50",
         {"eval_every": 50, "eval_split": ["test"]}),
        (f"{TRL}report_to: [wandb, comet_ml]", {"report_to": ["wandb"]}),
        (f"{TRL}f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 0.7",
         {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}),
        (AXOLOTL, {"learning_rate": 2e-4, "lr_scheduler_type": "cosine", "num_epochs": 1.0,
         "pairs_per_step": 4, "precision": "float32"}),
        (f"{AXOLOTL}bf16: auto", {"precision": "bf16"}),
        (f"{AXOLOTL}bf16: auto\nadapter: lora\nlora_r: 32\nlora_target_linear: true",
         {"precision": "bf16-autocast", "lora_r": 32, "lora_target_modules": None}),
        (FACTORY, {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": None, "num_epochs": 3.0,
         "learning_rate": 5e-5, "pairs_per_step": 32}),
        (f"{FACTORY}pref_loss: simpo\npref_beta: 2.0",
         {"loss_type": ["simpo"], "beta": 2.0, "simpo_gamma": 0.5}),
        (f"{FACTORY}pref_loss: orpo", {"orpo_lambda": 0.1, "beta": None}),
        (f"{FACTORY}pref_ftx: 0.1", {"loss_weights": [1.0, 0.1]}),
        (f"{FACTORY}dpo_label_smoothing: 0.1", {"label_smoothing": 0.1}),
        (f"{FACTORY}finetuning_type: full", {"lora_r": None}),
    ],
)  # fmt: skip
def test_a_key_becomes_what_it_means(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    tables, done = translated(tmp_path, text, "--num-processes", "4")

    assert done.exit_code == 0, done.output
    assert {name: tables["train"].get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (f"{TRL}sync_ref_model: true", "sync_ref_model = true: has no counterpart here: the "),
        (f"{TRL}padding_free: true", "padding_free = true: is not needed here: rows are always"),
        (f"{TRL}lerning_rate: 1", "lerning_rate = 1: is not known to this translation; did you "
         "mean learning_rate?"),
        (f"{TRL}optim: paged_adamw_8bit", "the optimizer is AdamW"),
        (f"{TRL}hub_token: hf_secret\npush_to_hub: true", "`offpref push-policy OUTPUT_DIR REPO"),
        (f"{TRL}label_smoothing: 0.1", "label_smoothing = 0.1: has no effect on sigmoid in TRL; it "
         "would have here"),
        (TRL, "is on the Hub: hf download Qwen/Qwen2-0.5B-Instruct --local-dir Qwen2-0.5B"),
        (TRL, "8 x gradient_accumulation_steps 1 x processes 1 = 8 pairs per step"),
        (FACTORY, "names entries of dataset_info.json"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_or_differs_is_said_twice(
    text: str, note: str, tmp_path: Path
) -> None:
    _, done = translated(tmp_path, text)

    assert any(note in line for line in done.stderr.splitlines() if line.startswith("note: "))
    assert any(note in line for line in done.stdout.splitlines() if line.startswith("# "))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "expected a YAML file"),
        ("- a", "expected names with values, got list"),
        ("!!python/object/apply:os.system ['touch ran']", "expected a YAML file"),
        ("a: 1", "expected a DPO configuration of TRL (model_name_or_path), axolotl"),
        (f"{TRL}rl: dpo", "expected the file of one tool, got keys of several"),
        (f"{FACTORY}rl: dpo", "expected the file of one tool, got keys of several"),
        (FACTORY.replace("stage: dpo", "stage: ppo"), "expected stage: dpo, got 'ppo'"),
        (AXOLOTL.replace("rl: dpo", "rl: grpo"), "expected rl: dpo or ipo, got 'grpo'"),
        (f"{TRL}loss_type: dpo", "got 'dpo'; did you mean sigmoid?"),
        (f"{TRL}beta: strong", "beta must be a number, got"),
        (f"{TRL}beta: -1", "beta must be greater than 0, got -1"),
        (f"{TRL}dtype: float32\ntorch_dtype: bfloat16", "dtype and torch_dtype are the same"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    _, done = translated(tmp_path, text)

    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
    assert not Path("ran").exists()


def test_a_secret_is_not_repeated_and_a_line_stays_a_line(tmp_path: Path) -> None:
    text = f'{TRL}hub_token: hf_secret\nrun_name: "a = 1"\noutput_dir: "x\\ny = 1"\n'

    tables, done = translated(tmp_path, text)

    assert "hf_secret" not in done.stdout + done.stderr
    assert tables["train"]["output_dir"] == "x\ny = 1"
    assert set(tables) == {"add", "score", "train"}


def test_a_translated_file_trains(tmp_path: Path, model_dir: Path) -> None:
    from offpref.pipeline.small_world import write_pairs

    write_pairs(tmp_path / "pairs.jsonl", num_pairs=12, seed=3)
    text = (
        f"model_name_or_path: {model_dir}\ndataset_name: {tmp_path}/pairs.jsonl\n"
        "num_train_epochs: 3\n"
        f"output_dir: {tmp_path}/out\nmax_length: 64\nbf16: false\nlearning_rate: 1e-3\n"
        "per_device_train_batch_size: 4\nlr_scheduler_type: cosine\nwarmup_steps: 0.1\n"
    )
    tables, done = translated(tmp_path, text)
    (tmp_path / "ours.toml").write_text(done.stdout)
    assert tables["add"]["pair_set"] == "pairs"

    for verb in ("add", "score", "train"):
        arguments = [verb, str(tmp_path / "store"), "--config", str(tmp_path / "ours.toml")]
        arguments += ["--max-steps", "2"] if verb == "train" else []  # typed: it wins
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output

    assert "steps      2" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


def rows() -> dict[str, str]:
    """Return the table of the page: each of TRL's options, with what stands for it."""
    return dict(re.findall(r"^\| `(\w+)`[^|]* \| (.+?) \|$", PAGE, re.MULTILINE))


def test_the_page_has_a_row_for_every_key_that_is_translated() -> None:
    found = rows()

    for name in {*COPIED, *COMPUTED} - {"eval_fraction", "simpo_gamma", "ref_model"}:
        settings = [f"train.{COPIED[name]}"] if name in COPIED else COMPUTED[name]
        for each in settings:
            option = each.partition(".")[2].replace("_", "-")
            assert f"--{option}" in found[name], name
    assert found.keys() <= {*COPIED, *COMPUTED, *NEEDLESS, *WITHOUT}


def test_every_setting_that_is_named_is_one_of_ours() -> None:
    kinds = {"add": AddSettings, "score": ScoreSettings, "train": TrainSettings}
    named = [f"train.{each}" for each in COPIED.values()]
    named += [each for several in COMPUTED.values() for each in several]

    for each in named:
        command, _, name = each.partition(".")
        assert name in kinds[command].__dataclass_fields__, each
    options = {
        option for command in (main.commands[name] for name in ("add", "score", "train"))
        for each in command.params for option in each.opts
    }  # fmt: skip
    for text in rows().values():
        assert set(re.findall(r"`(--[\w-]+)", text)) <= options | {"--push", "--public", "--plot"}


def test_every_option_of_trl_is_known() -> None:
    config = pytest.importorskip("trl").DPOConfig
    own = set(config.__dataclass_fields__) - set(config.__mro__[2].__dataclass_fields__)

    assert own <= {*COPIED, *COMPUTED, *NEEDLESS, *WITHOUT}
