"""The whole way through on the embedded small world, offline: a session of the real commands.

A small Llama learns to write the world's answers, pairs are drawn from it and judged, it is scored
once, a policy is trained against the stored scores, and the questions are answered. What a run of
the demo has left is not done again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from .sampling import sample_texts
from .small_world import (
    prompts,
    rewards,
    write_demonstrations,
    write_model,
    write_sampled_pairs,
    write_tokenizer,
)

NUM_DEMONSTRATIONS = 4000
SAMPLES_PER_PROMPT = 50
SAMPLES_TO_JUDGE = 25
MAX_NEW_TOKENS = 40
SFT = (
    "--loss-type",
    "sft",
    "--num-epochs",
    "3",
    "--learning-rate",
    "3e-3",
    "--pairs-per-step",
    "32",
)
DPO = ("--loss-type", "sigmoid", "--beta", "0.1", "--num-epochs", "2", "--learning-rate", "1e-3",
       "--eval-every", "20")  # fmt: skip

Run = Callable[[Sequence[str]], None]
Say = Callable[[str], None]


def run_demo(folder: Path, run: Run, say: Say) -> None:
    """Run the demo in ``folder``.

    Args:
        folder: Where everything goes.
        run: Runs a command of offpref, given its arguments.
        say: Shows a line to a person.
    """
    store, sft, dpo = (str(folder / name) for name in ("store", "sft", "dpo"))
    base, demonstrations = _write_base(folder)
    run(("add", store, "--data", demonstrations, "--pair-set", "demonstrations",
         "--tokenizer", base))  # fmt: skip
    if not (folder / "sft" / "config.json").exists():
        run(("train", store, "--pair-set", "demonstrations", "--model", base,
             "--output-dir", sft, *SFT))  # fmt: skip
    pairs = _draw_pairs(folder, say)
    run(("score", store, "--data", pairs, "--pair-set", "reviews", "--model", sft,
         "--eval-fraction", "0.1"))  # fmt: skip
    if not (folder / "dpo" / "config.json").exists():
        run(("train", store, "--pair-set", "reviews", "--model", sft, "--output-dir", dpo, *DPO))
    for question in ("runs", "accuracy", "margins"):
        run(("query", store, question))
    say("\nsamples, 25 of each prompt, by the world's exact rewards")
    say("policy  sentiment  politeness  words")
    for name in ("sft", "dpo"):
        means = mean_rewards(folder / name)
        say(
            f"{name:6}  {means['sentiment']:9.2f}  {means['politeness']:10.2f}"
            f"  {-means['brevity']:5.1f}"
        )


def mean_rewards(policy: Path) -> dict[str, float]:
    """Return the mean of each exact reward over samples of a policy."""
    drawn = sample_texts(
        policy, prompts(), num_samples=SAMPLES_TO_JUDGE, max_new_tokens=MAX_NEW_TOKENS, seed=2
    )
    judged = [rewards(text) for texts in drawn for text in texts]
    return {name: sum(each[name] for each in judged) / len(judged) for name in judged[0]}


def _write_base(folder: Path) -> tuple[str, str]:
    """Write the untrained model and the demonstrations unless they are there."""
    base, demonstrations = folder / "base", folder / "demonstrations.jsonl"
    base.mkdir(parents=True, exist_ok=True)
    if not (base / "model.safetensors").exists():
        write_model(base, vocab_size=write_tokenizer(base), seed=0)
    if not demonstrations.exists():
        write_demonstrations(demonstrations, num_rows=NUM_DEMONSTRATIONS, seed=0)
    return str(base), str(demonstrations)


def _draw_pairs(folder: Path, say: Say) -> str:
    """Draw pairs from the first policy and have them judged, unless that is done."""
    path = folder / "pairs.jsonl"
    if not path.exists():
        say(f"drawing {SAMPLES_PER_PROMPT} samples of each of {len(prompts())} prompts")
        drawn = sample_texts(
            folder / "sft", prompts(), num_samples=SAMPLES_PER_PROMPT,
            max_new_tokens=MAX_NEW_TOKENS, seed=1,
        )  # fmt: skip
        write_sampled_pairs(path, dict(zip(prompts(), drawn, strict=True)), seed=1)
    return str(path)
