"""Every named question on a large store, each in a cold process: seconds, first byte, memory.

    python benchmarks/queries.py STORE [NAME ...] [--rounds N]

A process is timed from its start to the first byte of its answer and to its end, imports included;
files are as warm as the round before left them. Memory is the largest resident set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from offpref.stores.query.questions import query_names

OFFPREF = Path(sys.executable).parent / "offpref"


def ask(store: Path, question: str) -> dict[str, float]:
    """Ask one question in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([OFFPREF, "query", store, question], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    first_byte = time.perf_counter() - start
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{question} failed")
    return {
        "seconds": time.perf_counter() - start,
        "first_byte_seconds": first_byte,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def bench_queries(
    store: Path, names: list[str] | None = None, rounds: int = 3
) -> dict[str, dict[str, float]]:
    """Return the medians of every question's times, and its largest memory.

    CPU time is included for machines that are also doing other work.
    """
    results = {}
    for name in names or query_names():
        asked = [ask(store, name) for _ in range(rounds)]
        times = ("seconds", "first_byte_seconds", "cpu_seconds")
        results[name] = {
            **{kind: statistics.median(each[kind] for each in asked) for kind in times},
            "peak_bytes": max(each["peak_bytes"] for each in asked),
        }
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for name, found in bench_queries(given.store, given.names, given.rounds).items():
        print(json.dumps({"question": name, **{k: round(v, 3) for k, v in found.items()}}))
