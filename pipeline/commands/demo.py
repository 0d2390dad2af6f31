"""The command ``demo``: every stage on the embedded small world, offline.

It is a session of the real commands: a small Llama learns to write the world's answers, pairs are
drawn from it and judged by sentiment, it is scored once, and six policies are trained against the
stored scores: DPO, TDPO2, SimPO, and MODPO with brevity at three weights. The policies are sampled
from and measured, the named questions are answered, and a report shows the results. If the demo is
run again, it skips what is already there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from offpref.pipeline.settings import setting

from .options import command, options_of, settings_from
from .terminal import say

NUM_DEMONSTRATIONS = 4000
SAMPLES_PER_PROMPT = 50
MAX_NEW_TOKENS = 40
SFT = ("--num-epochs", "3", "--learning-rate", "3e-3", "--pairs-per-step", "32")
TRAIN = ("--num-epochs", "2", "--learning-rate", "1e-3", "--eval-every", "20", "--kl-metrics")
WORD = 0.1  # what a word less is worth beside a word of praise, for MODPO
POLICIES: dict[str, tuple[str, ...]] = {
    "dpo": ("--loss-type", "sigmoid", "--beta", "0.1"),
    "tdpo2": ("--loss-type", "tdpo2", "--beta", "0.1", "--tdpo-alpha", "0.5"),
    "simpo": ("--loss-type", "simpo"),
    **{
        f"modpo-{weight}": (
            "--loss-type", "modpo", "--beta", "0.1", "--preference-weight", f"{weight}",
            "--objective", f"brevity={round((1 - weight) * WORD, 3)}",
        )
        for weight in (0.3, 0.5, 0.7)
    },
}  # fmt: skip
EVALUATE = (
    "--num-samples", "16", "--max-new-tokens", f"{MAX_NEW_TOKENS}", "--batch-size", "256",
    "--objective", "sentiment=python:offpref.pipeline.small_world:sentiment",
    "--objective", "brevity=python:offpref.pipeline.small_world:brevity",
)  # fmt: skip
SUMMARY = (
    "select name as policy, round(rewards['sentiment'], 2) as sentiment, "
    "round(-rewards['brevity'], 1) as words, round(reverse_kl, 2) as kl, "
    "round(entropy, 2) as entropy, round(accuracy, 2) as accuracy "
    "from evaluations order by measured_at"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """Where the demo goes."""

    folder: Path = setting("Folder for everything.", is_argument=True)


@command(options_of(DemoSettings), name="demo", takes_store=False)
def demo(**options: Any) -> None:
    """Run every stage on an embedded small world, offline, into FOLDER."""
    folder = settings_from(DemoSettings, options).folder
    root = click.get_current_context().find_root().command

    def run(arguments: Sequence[str]) -> None:
        say(f"\n$ offpref {' '.join(arguments)}")
        root.main(list(arguments), standalone_mode=False)

    _run_demo(folder, run)


def _run_demo(folder: Path, run: Callable[[Sequence[str]], None]) -> None:
    """Run the demo in a folder; ``run`` runs a command of offpref, given its arguments."""
    store, sft = str(folder / "store"), str(folder / "sft")
    base, demonstrations = _write_base(folder)
    run(("sft", store, "--data", demonstrations, "--pair-set", "demonstrations",
         "--model", base, "--output-dir", sft, *SFT, "--resume"))  # fmt: skip
    pairs = _draw_pairs(folder)
    run(("score", store, "--data", pairs, "--pair-set", "reviews", "--model", sft,
         "--eval-fraction", "0.25", "--tier", "hidden"))  # fmt: skip
    run(("reward", store, "--pair-set", "reviews", "--objective", "brevity", "--from", "python",
         "--function", "offpref.pipeline.small_world:brevity"))  # fmt: skip
    for name, options in POLICIES.items():
        run(("train", store, "--pair-set", "reviews", "--model", sft,
             "--output-dir", str(folder / name), *options, *TRAIN, "--resume"))  # fmt: skip
    for name in ("sft", *POLICIES):
        run(("evaluate", store, "--model", str(folder / name), "--reference", sft,
             "--pair-set", "reviews", *EVALUATE))  # fmt: skip
    for question in ("accuracy", "frontier"):
        run(("query", store, question))
    run(("report", store, "--output", str(folder / "report.html"), "--overwrite"))
    say("\nwhat the policies learned, by the world's exact rewards of their samples")
    run(("query", store, SUMMARY))


def _write_base(folder: Path) -> tuple[str, str]:
    """Write the untrained model and the demonstrations unless they are there."""
    from offpref.pipeline.small_world import write_demonstrations, write_model, write_tokenizer

    base, demonstrations = folder / "base", folder / "demonstrations.jsonl"
    base.mkdir(parents=True, exist_ok=True)
    if not (base / "model.safetensors").exists():
        write_model(base, vocab_size=write_tokenizer(base), seed=0)
    if not demonstrations.exists():
        write_demonstrations(demonstrations, num_rows=NUM_DEMONSTRATIONS, seed=0)
    return str(base), str(demonstrations)


def _draw_pairs(folder: Path) -> str:
    """Draw pairs from the first policy and have them judged, unless that is done."""
    from offpref.pipeline.evaluation.sampling import Sampler
    from offpref.pipeline.evaluation.settings import SampleSettings
    from offpref.pipeline.small_world import prompts, write_sampled_pairs

    path = folder / "pairs.jsonl"
    if not path.exists():
        say(f"drawing {SAMPLES_PER_PROMPT} samples of each of {len(prompts())} prompts")
        settings = SampleSettings(
            num_samples=SAMPLES_PER_PROMPT, max_new_tokens=MAX_NEW_TOKENS, seed=1, batch_size=256
        )
        drawn = Sampler(folder / "sft", settings).texts(prompts())
        write_sampled_pairs(path, dict(zip(prompts(), drawn, strict=True)), seed=1)
    return str(path)
