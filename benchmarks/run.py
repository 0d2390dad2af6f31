"""Measure offpref side by side with what a user would pick instead, on this machine, in one run.

    python benchmarks/run.py [score] [train] [tdpo] [sample] [cached] [kernels] [queries]
        [--pairs N] [--steps N] [--keep DIR]

Each side runs in a process of its own, one after the other, in turns; ratios are of medians. The
results go to benchmarks/results/<machine>.json.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model40m import HH, read_pairs, write_world
from queries import bench_queries
from query_world import write_query_world

HERE = Path(__file__).parent


def one(script: str, which: str, *arguments: object) -> dict[str, object]:
    """Run one side of a benchmark in a process of its own."""
    done = subprocess.run(
        [sys.executable, HERE / script, which, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{which} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bench_score(folder: Path, num_pairs: int, rounds: int) -> dict[str, object]:
    """Stage one against TRL's precomputed reference log-probs: batch 8, float32."""
    pairs = write_world(folder, num_pairs=num_pairs)
    results: dict[str, list[dict[str, object]]] = {"offpref": [], "trl": []}
    for number in range(rounds):
        for which, kept in results.items():
            out = folder / f"{which}-{number}-{time.time_ns()}"
            kept.append(one("score_one.py", which, folder / "model", pairs, out))
    ours, theirs = (results[which][0]["logps"] for which in ("offpref", "trl"))
    largest = max(
        abs(a - b) for side in ours for a, b in zip(ours[side], theirs[side], strict=True)
    )
    rates = {w: num_pairs / statistics.median(r["seconds"] for r in results[w]) for w in results}
    peaks = {w: statistics.median(r["peak_bytes"] for r in results[w]) for w in results}
    return {
        "num_pairs": num_pairs,
        "rounds": rounds,
        "pairs_per_second": rates,
        "peak_bytes": peaks,
        "rate_ratio": rates["offpref"] / rates["trl"],
        "memory_ratio": peaks["offpref"] / peaks["trl"],
        "largest_difference_of_summed_logps": largest,
    }


def bench_train(folder: Path, num_steps: int) -> dict[str, object]:
    """Stage two against TRL's training on the same batches from the same start."""
    pairs = write_world(folder, num_pairs=num_steps * 8)
    out = folder / f"train-{time.time_ns()}"
    out.mkdir()
    ours = one("train_one.py", "offpref", folder / "model", pairs, out, num_steps)
    (out / "order.json").write_text(json.dumps(ours.pop("order")))
    theirs = one("train_one.py", "trl", folder / "model", pairs, out, num_steps)
    losses = zip(ours["losses"], theirs["losses"], strict=True)
    return {
        "num_steps": num_steps,
        "pairs_per_step": 8,
        "pairs_per_second": {
            "offpref": num_steps * 8 / ours["seconds"],
            "trl": num_steps * 8 / theirs["seconds"],
        },
        "peak_bytes": {"offpref": ours["peak_bytes"], "trl": theirs["peak_bytes"]},
        "rate_ratio": theirs["seconds"] / ours["seconds"],
        "memory_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
        "largest_difference_of_losses": max(abs(a - b) for a, b in losses),
        "data_wait_share": ours["data_wait_share"],
        "outputs_share": ours["outputs_share"],
        "losses": {"offpref": ours["losses"], "trl": theirs["losses"]},
    }


def bench_tdpo(folder: Path, num_steps: int, rounds: int) -> dict[str, object]:
    """TDPO2 from the store against our own DPO step, and against a resident reference."""
    pairs = write_world(folder, num_pairs=num_steps * 8)
    out = folder / f"tdpo-{time.time_ns()}"
    out.mkdir()
    arguments = (folder / "model", pairs, out, num_steps)
    prepared = one("tdpo_one.py", "prepare", *arguments)
    sides: dict[str, list[dict[str, object]]] = {"dpo": [], "hidden": [], "topk": []}
    for _ in range(rounds):
        for which, kept in sides.items():
            kept.append(one("tdpo_one.py", which, *arguments))
    sides["resident"] = [one("tdpo_one.py", "resident", *arguments)]
    seconds = {w: statistics.median(r["seconds"] for r in runs) for w, runs in sides.items()}
    peaks = {w: statistics.median(r["peak_bytes"] for r in runs) for w, runs in sides.items()}
    losses = zip(sides["hidden"][0]["losses"], sides["resident"][0]["losses"], strict=True)
    return {
        "num_steps": num_steps,
        "pairs_per_step": 8,
        "rounds": rounds,
        "seconds_per_step": {which: each / num_steps for which, each in seconds.items()},
        "peak_bytes": peaks,
        "hidden_to_dpo_time": seconds["hidden"] / seconds["dpo"],
        "hidden_to_dpo_bytes": peaks["hidden"] - peaks["dpo"],
        "resident_to_hidden_time": seconds["resident"] / seconds["hidden"],
        "hidden_to_resident_memory": peaks["hidden"] / peaks["resident"],
        "largest_difference_of_losses": max(abs(a - b) for a, b in losses),
        "data_wait_share": {w: sides[w][0]["data_wait_share"] for w in ("hidden", "topk")},
        **{k: prepared[k] for k in ("bytes_per_token", "head_bytes", "num_completion_tokens")},
    }


def bench_topk(folder: Path) -> dict[str, object]:
    """The KL against the top k against the exact one, on real text with stories260k."""
    pairs, out = folder / "hh-64.jsonl", folder / f"topk-{time.time_ns()}"
    out.mkdir()
    rows = [row for row in read_pairs(HH) if sum(map(len, row.values())) < 900]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows[:64]))
    return one("topk_error.py", HH.parents[2] / "models" / "stories260k", pairs, out)


def bench_sample(folder: Path, rounds: int) -> dict[str, object]:
    """Samples in batches against transformers' generate for one prompt after the other."""
    pairs = write_world(folder, num_pairs=16)
    sides: dict[str, list[dict[str, object]]] = {"offpref": [], "one": []}
    for _ in range(rounds):
        for which, kept in sides.items():
            kept.append(one("sample_one.py", which, folder / "model", pairs))
    seconds = {w: statistics.median(r["seconds"] for r in runs) for w, runs in sides.items()}
    tokens = {w: runs[0]["num_tokens"] for w, runs in sides.items()}
    return {
        "num_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": {w: tokens[w] / seconds[w] for w in sides},
        "rate_ratio": (tokens["offpref"] / seconds["offpref"]) / (tokens["one"] / seconds["one"]),
    }


def bench_cached(folder: Path, num_sequences: int, rounds: int) -> dict[str, object]:
    """A second `score --data` of known sequences, process start to end."""
    from cached_world import write_cached_world

    store, data, model = write_cached_world(folder / "cached", num_sequences)
    offpref = Path(sys.executable).parent / "offpref"
    command = [offpref, "score", store, "--data", data, "--pair-set", "many", "--model", model]
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert ": 0 new," in done.stdout, done.stdout
    return {"num_sequences": num_sequences, "seconds": statistics.median(seconds), "all": seconds}


def main() -> None:
    """Run the requested benchmarks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        default=["score", "train", "tdpo", "sample", "cached", "kernels", "queries"],
    )
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder to work in and to leave")
    settings = parser.parse_args()
    if {"score", "train", "tdpo", "sample"} & set(settings.what) and not HH.exists():
        raise SystemExit(f"expected HH pairs as {HH}; see benchmarks/README.md")
    path = HERE / "results" / f"{platform.machine()}-{platform.system().lower()}-cpu.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if "score" in settings.what:
            results["score"] = bench_score(folder, settings.pairs, settings.rounds)
        if "train" in settings.what:
            results["train"] = bench_train(folder, settings.steps)
        if "tdpo" in settings.what:
            results["tdpo"] = bench_tdpo(folder, settings.steps, settings.rounds)
            results["topk_error"] = bench_topk(folder)
        if "sample" in settings.what:
            results["sample"] = bench_sample(folder, settings.rounds)
        if "cached" in settings.what:
            results["cached"] = bench_cached(folder, 100_000, settings.rounds)
        if "queries" in settings.what:
            results["queries"] = {
                "compacted": bench_queries(write_query_world(folder), rounds=settings.rounds),
                "as_written": bench_queries(
                    write_query_world(folder, is_compacted=False), rounds=settings.rounds
                ),
            }
    if "kernels" in settings.what:
        results["kernels"] = one("kernels_cpu.py", str(max(settings.rounds, 9)))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
