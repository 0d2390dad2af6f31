"""What settings and plans refuse is wrong usage in one line; a bug in a run keeps its traceback."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from offpref.pipeline.commands.main import main
from offpref.pipeline.small_world import write_pairs
from offpref.stores.store import Store

BUG = "a bug inside the run"


def invoke(arguments: str, paths: dict[str, Path]) -> Result:
    """Run a command whose words in braces are paths."""
    return CliRunner().invoke(main, [word.format(**paths) for word in arguments.split()])


@pytest.fixture
def paths(scored: Store, model_dir: Path, tmp_path: Path) -> dict[str, Path]:
    """A scored store, its model, and files for the commands that want one."""
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=12, seed=5)
    config = (
        f'[base]\npair_set = "reviews"\nmodel = "{model_dir}"\noutput_dir = "{tmp_path}/runs"\n'
    )
    (tmp_path / "sweep.toml").write_text(f"{config}pairs_per_step = 8\n")
    return {
        "store": scored.path, "model": model_dir, "data": tmp_path / "pairs.jsonl",
        "sweep": tmp_path / "sweep.toml", "out": tmp_path / "out", "page": tmp_path / "page.html",
    }  # fmt: skip


RUNS = {
    "add": ("add {store} --data {data} --pair-set p --tokenizer {model}", "adding.adder.Adder.add"),
    "score": (
        "score {store} --pair-set reviews --model {model} --kl-pairs", "scores.scorer.Scorer.run",
    ),
    "score --dry-run": (
        "score {store} --pair-set reviews --model {model} --dry-run", "scores.score.estimate",
    ),
    "select": ("select {store} --pair-set reviews --from-lists all", "adding.select._lists"),
    "reward": (
        "reward {store} --pair-set reviews --objective o --from brevity",
        "rewards.sources.BrevityRewards.rewards",
    ),
    "train": (
        "train {store} --pair-set reviews --model {model} --output-dir {out} --pairs-per-step 8",
        "training.train.load_policy",
    ),
    "train-reward": (
        "train-reward {store} --pair-set reviews --model {model} --output-dir {out}",
        "rewards.train_model._run",
    ),
    "sft": (
        "sft {store} --pair-set reviews --model {model} --output-dir {out} --pairs-per-step 8",
        "training.train.load_policy",
    ),
    "sft --data": (
        "sft {store} --pair-set p --data {data} --model {model} --output-dir {out}",
        "adding.adder.Adder.add",
    ),
    "sweep": ("sweep {store} {sweep}", "sweeps.sweep.RunProcesses.run"),
    "soup": ("soup {out} --run {model}=1 --run {model}=2", "models.soup._mean"),
    "evaluate": (
        "evaluate {store} --pair-set reviews --model {model}", "evaluation.evaluate.draw_samples",
    ),
    "query": ("query {store} runs", "pipeline.commands.tables.text_table"),
    "report": ("report {store} --output {page}", "stores.report.html._page"),
    "export": (
        "export {store} --to parquet --view runs --output {out}", "boards.export.write_parquet",
    ),
}  # fmt: skip
"""A command line of each command that runs something, and a part of what it runs."""


@pytest.mark.parametrize("name", RUNS)
def test_a_bug_inside_a_run_keeps_its_traceback(
    name: str, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, part = RUNS[name]

    def fail(*arguments: object, **options: object) -> None:
        raise ValueError(BUG)

    room = "offpref" if part.startswith(("stores", "pipeline")) else "offpref.pipeline"
    monkeypatch.setattr(f"{room}.{part}", fail)
    result = invoke(arguments, paths)

    assert type(result.exception) is ValueError
    assert str(result.exception) == BUG
    assert "Usage:" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("add {store} --data {data} --pair-set p@1 --tokenizer {model}",
         "pair_set must be a name without @, got 'p@1'"),
        ("add {store} --data {data} --pair-set p --tokenizer {model} --max-length 1",
         "max_length must be at least 2, got 1"),
        ("add {store} --data {data} --pair-set p --tokenizer {model} --template-date 2026-13-01",
         "expected a day as YYYY-MM-DD, got '2026-13-01'"),
        ("add {store} --data {data} --pair-set p --tokenizer {model} --template-date 2026-01-01",
         "template_date has no effect"),
        ("score {store} --pair-set reviews --model {model} --top-k 5",
         "top_k has no effect without tier topk"),
        ("score {store} --pair-set reviews --model {model} --shard-model",
         "shard_model has no effect with one process"),
        ("score {store} --pair-set reviews --model {model} --commit-seconds 46",
         "commit_seconds must be in [0, 45], got 46.0"),
        ("score {store} --pair-set reviews --model {model} --max-length 9",
         "--max-length has no effect without --data"),
        ("score {store} --pair-set reviews --model {model} --device cudda",
         "device must be one of cpu, cuda, mps, xpu, with a number as cuda:1 where there are "
         "several, got 'cudda'; did you mean cuda?"),
        ("reward {store} --pair-set reviews --objective o --from python --function no_such:one",
         "module 'no_such' cannot be imported"),
        ("reward {store} --pair-set reviews --objective o --from model --model {model} "
         "--precision bf16-autocast", "precision must be one of float32, bf16 for a reward model"),
        ("train {store} --pair-set reviews --model {model} --output-dir {out} --pairs-per-step 0",
         "pairs_per_step must be at least 1, got 0"),
        ("train {store} --pair-set reviews --model {model} --output-dir {model}",
         "is the policy's or the store's own"),
        ("train-reward {store} --pair-set reviews --model {model} --output-dir {out} "
         "--learning-rate nan", "learning_rate must be finite, got nan"),
        ("sft {store} --pair-set reviews --model {model} --output-dir {out} --max-length 9",
         "--max-length has no effect without --data"),
        ("sft {store} --pair-set p --data {data} --model {model} --output-dir {out} --vocab-size 9",
         "--vocab-size has no effect without --from-scratch"),
        ("sweep {store} {sweep} --jobs 0", "jobs must be at least 1, got 0"),
        ("soup {out} --run {model}=1", "expected at least two models"),
        ("soup {out} --run {model}=1 --run {model}", "--run must be DIR=WEIGHT"),
        ("evaluate {store} --pair-set reviews --model {model} --objective o=python:no_such:one",
         "module 'no_such' cannot be imported"),
        ("evaluate {store} --pair-set reviews --model {model} --top-p 1.5",
         "top_p must be in (0, 1], got 1.5"),
        ("evaluate {store} --pair-set reviews --model {model} --num-samples -1",
         "num_samples must be at least 1, got -1"),
        ("query {store} runs --set x=1", "runs has no parameter 'x'"),
        ("query {store} runs --memory-limit 1", "expected a memory limit like 4GB"),
        ("query {store} runs --timeout 0", "timeout must be greater than 0, got 0.0"),
        ("report {store} --output {page} --max-pairs 0", "max_pairs must be in [1, 10000], got 0"),
        ("export {store} --to parquet --output {out} --set x=1", "--set takes run=NAME here"),
        ("export {store} --to parquet --output {out} --set run=x", "no run is called 'x'"),
        ("store gc {store} --grace-days -1", "grace_days must be at least 0, got -1.0"),
        ("store verify {store} --verify twice",
         "verify must be one of once, always, never, got 'twice'"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_wrong_usage_in_one_line(
    arguments: str, message: str, paths: dict[str, Path]
) -> None:
    result = invoke(arguments, paths)

    errors = result.stderr.partition("Error: ")[2].splitlines()
    assert result.exit_code == 2, result.output
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "guess"),
    [
        ("trian {store}", 2, "train"),
        ("dpo {store}", 2, "did you mean train?"),
        ("train {store} --lr 1", 2, "unknown option --lr; did you mean --learning-rate?"),
        ("train {store} --ref-model x", 2, "did you mean --reference?"),
        ("train {store} --per-device-train-batch-size 1", 2, "did you mean --pairs-per-step?"),
        ("sft {store} --epochs 1", 2, "did you mean --num-epochs?"),
        ("train {store} --pair-set reviews --model {model} --output-dir {out} --loss-type dpo",
         2, "got 'dpo'; did you mean sigmoid?"),
        ("train {store} --pair-set reviews --model {model} --output-dir {out} --precision bfloat16",
         2, "did you mean bf16?"),
        ("train {store} --pair-set reviews --model {model} --output-dir {out} "
         "--lr-scheduler-type cosine_annealing", 2, "did you mean cosine?"),
        ("train {store} --pair-set revews --model {model} --output-dir {out}", 1,
         "did you mean reviews?"),
        ("store verfy {store}", 2, "verify"),
        ("train {store} --lerning-rate 1", 2, "--learning-rate"),
        ("query {store} --formt csv", 2, "--format"),
        ("train {store} --pair-set reviews --model {model} --output-dir {out} --loss-type sigmod",
         2, "did you mean sigmoid?"),
        ("reward {store} --pair-set reviews --objective o --from brevty", 2,
         "did you mean brevity?"),
        ("score {store} --pair-set reviews --model {model} --tier hiden", 2,
         "did you mean hidden?"),
        ("export {store} --to parquet --output {out} --view rnus", 2, "did you mean runs?"),
        ("query {store} frontir", 1, "did you mean frontier?"),
    ],
)  # fmt: skip
def test_a_wrong_word_names_the_nearest_right_one(
    arguments: str, exit_code: int, guess: str, paths: dict[str, Path]
) -> None:
    result = invoke(arguments, paths)

    assert result.exit_code == exit_code
    assert guess in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        ("train {store} --config {toml}", "lerning-rate = 1"),
        ("train {store} --config {toml}", "lr = 1"),
        ("sweep {store} {toml}", "[grid]\nlerning_rate = [1.0]"),
        ("sweep {store} {toml}", "[grid]\nlr = [1.0]"),
    ],
    ids=["--config", "--config, another tool's", "sweep", "sweep, another tool's"],
)
def test_a_wrong_key_of_a_file_names_the_nearest_right_one(
    arguments: str, content: str, paths: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "wrong.toml").write_text(content)

    result = invoke(arguments, {**paths, "toml": tmp_path / "wrong.toml"})

    assert result.exit_code == 2
    assert result.stderr.endswith("did you mean learning_rate?\n")
