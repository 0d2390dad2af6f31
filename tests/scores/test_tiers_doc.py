"""docs/tiers.md: its tables are those of the committed measurements."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tiers.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "x86_64-linux-cpu.json").read_text())


def error_table() -> str:
    """Return the page's table of what the top k misses."""
    small, large = RESULTS["topk_error"]["by_learning_rate"].values()
    lines = [
        f"| {k} | {at_small['mean_rest']:.2%} | {at_small['share_missed']:.2%} | "
        f"{at_large['share_missed']:.2%} | {at_large['largest_missed_nats']:.2f} |"
        for (k, at_small), at_large in zip(
            small["by_k"].items(), large["by_k"].values(), strict=True
        )
    ]
    head = (
        f"| k | probability outside the k | missed of {small['exact']:.3f} nats | "
        f"missed of {large['exact']:.3f} nats | most missed at one token, nats |"
    )
    return "\n".join([head, "|--:|--:|--:|--:|--:|", *lines])


def cost_table() -> str:
    """Return the page's table of what a tier costs on disk and what a step from it takes."""
    found = RESULTS["tdpo"]
    names = {
        "dpo": ("DPO, `logps`", "logps"),
        "topk": ("TDPO2, `topk` k = 64", "topk"),
        "hidden": ("TDPO2, `hidden`", "hidden"),
        "resident": ("TDPO2, both models in memory, whole logits", None),
    }
    lines = []
    for side, (words, tier) in names.items():
        on_disk = "" if tier is None else f"{found['bytes_per_token'][tier]:.1f}"
        seconds = found["seconds_per_step"][side]
        lines.append(
            f"| {words} | {on_disk} | {seconds:.2f} s | {found['peak_bytes'][side] / 1e9:.2f} GB |"
        )
    head = "| | bytes per token | time per step | peak memory |"
    return "\n".join([head, "|---|--:|--:|--:|", *lines])


@pytest.mark.parametrize("table", [error_table, cost_table])
def test_tables_are_those_of_the_measurements(table: object) -> None:
    assert callable(table)
    assert table() in PAGE


if __name__ == "__main__":
    print(error_table(), cost_table(), sep="\n\n")
