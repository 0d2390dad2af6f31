"""Whether two versions of the product give the same results, to the last bit.

Runs the demo, a step of every loss, and the commands around them with whichever `offpref` Python
finds, and writes a digest of everything they left: each table of the store with its fingerprints,
the weights, the answers. Only clocks, random names, paths, versions and sizes of processes are
left out. Files of digests of two versions are then compared; a line names each that differs.

    python benchmarks/same_results.py run FOLDER DIGESTS.json
    python benchmarks/same_results.py digest FOLDER DIGESTS.json    (of a folder that is there)
    python benchmarks/same_results.py compare BEFORE.json AFTER.json
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb

DOOR = """
try:
    from offpref.pipeline.commands.start import start
except ImportError:  # as the tree was before it had rooms
    from offpref.pipeline.start import start
start()
"""
VOLATILE = {
    "run_id", "attempt", "seconds", "data_wait_seconds", "peak_memory_bytes", "time", "written_at",
    "started_at", "ended_at", "measured_at", "evaluation_id", "versions", "provenance",
    "source_file",
}  # fmt: skip
BY_RUN = ("runs", "steps", "examples", "tokens", "evaluations", "generations")
WITH_NAMES_OF_HERE = (*BY_RUN, "pairs", "rejects", "pair_sets")  # and so have their row hashes
LEFT_OUT = ("run_events",)  # heartbeats and clocks
NEW_SETTINGS = ("loss_option",)  # of the run's configuration, since what is compared
MORE_STEPS = ("--max-steps", "2", "--pairs-per-step", "16", "--learning-rate", "1e-3",
              "--eval-every", "1", "--log-tokens", "all", "--device", "cpu")  # fmt: skip
LOSSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
         "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "tdpo1",
         "tdpo2", "simpo", "orpo", "cpo", "slic", "rrhf", "kto", "rdpo", "sft", "unlikelihood"),
        (),
    ),
    "robust": ("--label-smoothing", "0.1"),
    "exo_pair": ("--label-smoothing", "0.001"),
    "modpo": ("--objective", "brevity=0.05", "--preference-weight", "0.5"),
}  # fmt: skip
OTHER_RUNS: dict[str, tuple[str, ...]] = {
    "kl": ("--loss-type", "sigmoid", "--kl-metrics"),
    "topk": ("--loss-type", "tdpo2", "--kl-tier", "topk"),
    "sum": ("--loss-type", "sigmoid", "--loss-type", "sft", "--loss-weights", "1",
            "--loss-weights", "0.2"),
    "ld": ("--loss-type", "sigmoid", "--ld-alpha", "0.5"),
    "wpo": ("--loss-type", "sigmoid", "--use-weighting"),
    "alpha": ("--loss-type", "sigmoid", "--f-divergence-type", "alpha_divergence"),
    "bf16": ("--loss-type", "simpo", "--precision", "bf16"),
    "checkpointed": ("--loss-type", "sigmoid", "--gradient-checkpointing"),
    "lora": ("--loss-type", "sigmoid", "--lora-r", "4"),
    "triton": ("--loss-type", "tdpo1", "--kernels", "triton", "--max-batch-tokens", "256",
               "--max-steps", "1", "--pairs-per-step", "4", "--log-tokens", "none",
               "--eval-split", "none"),
}  # fmt: skip
QUESTIONS = ("accuracy", "frontier", "compare", "kl", "length_bias", "displacement", "pareto")


def run(folder: Path, digests: Path) -> None:
    """Run everything in ``folder`` and write what it gave."""
    folder.mkdir(parents=True)
    offpref("demo", str(folder))
    store, sft = str(folder / "store"), str(folder / "sft")
    common = (store, "--pair-set", "reviews", "--model", sft)
    offpref("score", *common, "--kl-pairs", "--tier", "topk", "--tier", "hidden",
            "--top-k", "16")  # fmt: skip
    for name, options in LOSSES.items():
        tier = ("--kl-tier", "hidden") if name.startswith("tdpo") else ()
        offpref("train", *common, "--output-dir", str(folder / f"loss-{name}"),
                "--loss-type", name, *options, *tier, *MORE_STEPS)  # fmt: skip
    for name, options in OTHER_RUNS.items():
        output = str(folder / f"other-{name}")
        steps = MORE_STEPS if name != "triton" else ("--learning-rate", "1e-3")
        offpref("train", *common, "--output-dir", output, *steps, *options)
    offpref("train-reward", *common, "--output-dir", str(folder / "reward"), "--num-epochs", "1",
            "--device", "cpu")  # fmt: skip
    offpref("reward", store, "--pair-set", "reviews", "--objective", "learned", "--from", "model",
            "--model", str(folder / "reward"))  # fmt: skip
    offpref(
        "reward",
        store,
        "--pair-set",
        "reviews",
        "--objective",
        "implicit",
        "--from",
        "implicit",
        "--model",
        str(folder / "dpo"),
        "--reference",
        sft,
        may_fail=True,
    )
    offpref("soup", str(folder / "soup"), "--run", f"{folder / 'dpo'}=0.5",
            "--run", f"{folder / 'simpo'}=0.5")  # fmt: skip
    digest_all(folder, digests)


def digest_all(folder: Path, digests: Path) -> None:
    """Write a digest of all that a run has left in ``folder``."""
    found: dict[str, str] = {}
    store = str(folder / "store")
    for question in QUESTIONS:
        words = offpref("query", store, question, may_fail=True).replace(str(folder), "FOLDER")
        found[f"answer {question}"] = digest(re.sub(r"\d{4}-\d\d-\d\d[^│|]*", "DATE", words))
    found |= stored(folder / "store", folder)
    for path in sorted(folder.rglob("*.safetensors")):
        if "store" not in path.relative_to(folder).parts[0]:
            found[f"weights {path.relative_to(folder)}"] = digest(path.read_bytes())
    digests.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def offpref(*words: str, may_fail: bool = False) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", DOOR, *words], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    if done.returncode and not may_fail:
        raise SystemExit(f"offpref {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def stored(store: Path, home: Path) -> dict[str, str]:
    """Return a digest of each table under each fingerprint, and of each description."""
    names = run_names(store)
    found: dict[str, str] = {}
    for folder in sorted((store / "data").glob("*/*")):
        table, key = folder.parent.name, folder.name
        if table in LEFT_OUT:
            continue
        rows = duckdb.sql(f"select * from read_parquet('{folder}/*/*.parquet')")
        types = dict(zip(rows.columns, map(str, rows.types), strict=True))
        kept = [c for c in types if c not in VOLATILE and "TIMESTAMP" not in types[c]]
        if table in WITH_NAMES_OF_HERE:
            kept.remove("row_hash")
        lines = sorted(
            json.dumps(list(map(plain, row))).replace(str(home), "FOLDER")
            for row in rows.select(*(f'"{c}"' for c in kept)).fetchall()
        )
        lines = [line.replace(str(home), "FOLDER") for line in lines]
        name = names.get(key, key) if table in BY_RUN else key
        found[f"table {table} {name}"] = digest("\n".join(lines))
    for path in sorted((store / "specs").glob("*.json")):
        found[f"spec {path.stem}"] = "there"
    for path in sorted((store / "heads").glob("*")):
        found[f"head {path.stem}"] = digest(path.read_bytes())
    return found


def run_names(store: Path) -> dict[str, str]:
    """Return the name of each run and evaluation by the folder that holds it."""
    found: dict[str, str] = {}
    for table in ("runs", "evaluations"):
        for folder in (store / "data" / table).glob("*"):
            rows = duckdb.sql(f"select * from read_parquet('{folder}/*/*.parquet')")
            if "name" in rows.columns:
                found[folder.name] = str(rows.select("name").limit(1).fetchall()[0][0])
    return found


def plain(value: Any) -> Any:
    """Return a value as JSON holds it, floats to the last bit."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in sorted(value.items()) if k not in VOLATILE}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str) and value.startswith("{"):
        return {k: v for k, v in sorted(json.loads(value).items()) if k not in NEW_SETTINGS}
    return value if isinstance(value, str | int | bool | None) else str(value)


def digest(content: bytes | str) -> str:
    """Return a short hash."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:16]


def compare(before: Path, after: Path) -> None:
    """Say what differs, and leave with 1 if anything does."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    differ = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    for key in differ:
        print(f"{key}: {old.get(key, 'missing')} before, {new.get(key, 'missing')} after")
    kinds = sorted({key.split()[0] for key in old})
    counted = ", ".join(f"{sum(k.split()[0] == kind for k in old)} of {kind}" for kind in kinds)
    print(f"{len(old)} digests compared ({counted}): {len(differ)} differ")
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    {"run": run, "digest": digest_all, "compare": compare}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3])
    )
