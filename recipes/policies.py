"""Policies trained to convergence: learning rates from a grid, seeds, and what was measured.

Every method of a world has the same number of steps and of pairs. Its learning rate is the
smallest one of the world's grid with the lowest held-out loss of its own, within a tolerance, on a
seed that no result has. At that rate it is trained once more with twice the steps, on that seed
too: what this changes is reported beside whether the policies of the results have converged.
"""

import json
import multiprocessing
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from session import TUNING_SEED, num_workers
from worlds import World

MOST_LOSS_CHANGE, MOST_KL_CHANGE = 0.02, 0.1
"""A policy has converged if the last fifth of its steps changes its held-out loss by at most this
share of what training changed, and KL(reference || policy), estimated on held-out completions, by
at most that share."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of training a policy."""

    name: str
    options: tuple[object, ...]
    """Of ``offpref train``; ``{seed}`` in one of them becomes the seed."""
    tuned_as: str
    """Name of the method whose learning rate it has; its own name if it is tuned itself."""
    pair_set: str | None = None
    """Another pair set than the world's."""
    pairs_per_step: int | None = None


MOST_COMMITS = 500
"""Each evaluation adds some; reading more of them takes longer than a small policy's steps."""

Row = dict[str, Any]


def measure_methods(
    world: World, methods: Sequence[Method], *, doubled: Collection[str] | None = None
) -> dict[str, Any]:
    """Tune, train and measure methods; rows of every seed by method, and how rates were chosen.

    Args:
        world: Where.
        methods: What to train.
        doubled: Tuned methods that are trained with twice the steps, too; None for all.
    """
    own = [method for method in methods if method.tuned_as == method.name]
    tuned = tune(world, own, doubled={each.name for each in own} if doubled is None else doubled)
    seeds = range(world.setting.num_seeds)
    jobs = [
        partial(trained, world, method, rate=tuned[method.tuned_as]["rate"], seed=seed)
        for method in methods
        for seed in seeds
    ]
    rows = run_all(world, jobs)
    by_method = {
        method.name: rows[i * len(seeds) : (i + 1) * len(seeds)] for i, method in enumerate(methods)
    }
    return {"tuning": tuned, "policies": by_method}


def plan(world: World, methods: Sequence[Method], *, doubled: Collection[str] | None = None) -> str:
    """Return what measuring these methods would do, in a line, before anything is done."""
    tuned = [method.name for method in methods if method.tuned_as == method.name]
    twice = len(tuned) if doubled is None else len(set(tuned) & set(doubled))
    policies = len(methods) * world.setting.num_seeds
    trainings = policies + len(tuned) * len(world.learning_rates) + 2 * twice
    steps = trainings * world.num_steps
    pairs = steps * world.setting.pairs_per_step
    return (
        f"{world.name}: {len(methods)} methods x {world.setting.num_seeds} seeds = {policies} "
        f"policies, and {trainings - policies} trainings' worth to choose "
        f"{len(tuned)} learning rates from {world.learning_rates}: {steps:,} steps, "
        f"{2 * pairs:,} sequences forward and backward; {world.setting.num_samples} samples of "
        "each held-out prompt for each"
    )


def tune(
    world: World, methods: Sequence[Method], *, doubled: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return for each method its learning rate and what the others of the grid had."""
    grid = [(method, rate) for method in methods for rate in world.learning_rates]
    jobs = [partial(trained, world, method, rate=rate, seed=TUNING_SEED) for method, rate in grid]
    rows = run_all(world, jobs)
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        own = [row for (each, _), row in zip(grid, rows, strict=True) if each is method]
        best = chosen_rate(own)
        found[method.name] = {
            "rate": best["learning_rate"],
            "grid": {str(row["learning_rate"]): row["held_out_loss"] for row in own},
        }
    jobs = [
        partial(
            trained, replace(world, num_steps=2 * world.num_steps), method,
            rate=found[method.name]["rate"], seed=TUNING_SEED,
        )
        for method in methods
        if method.name in doubled
    ]  # fmt: skip
    longer_ones = [method for method in methods if method.name in doubled]
    for method, longer in zip(longer_ones, run_all(world, jobs), strict=True):
        own = next(
            row for (each, rate), row in zip(grid, rows, strict=True)
            if each is method and rate == found[method.name]["rate"]
        )  # fmt: skip
        found[method.name]["twice_the_steps"] = {
            "loss": [own["held_out_loss"], longer["held_out_loss"]],
            "kl": [own["kl"], longer["kl"]],
            "reward": [own["rewards"][world.objective], longer["rewards"][world.objective]],
        }
    return found


def chosen_rate(rows: Sequence[Row]) -> Row:
    """Return the row of the smallest learning rate that is as good as the best one.

    As good: its held-out loss is higher by at most the share of what training changed that also
    counts as converged. Of rates that a loss cannot tell apart the larger one moves the policy
    farther where no pair says where to.
    """
    best = min(row["held_out_loss"] for row in rows)
    room = MOST_LOSS_CHANGE * abs(rows[0]["curve"][0]["loss"] - best)
    good = [row for row in rows if row["held_out_loss"] <= best + room]
    return min(good, key=lambda row: float(row["learning_rate"]))


def trained(world: World, method: Method, *, rate: float, seed: int) -> Row:
    """Train one policy and measure it, unless both was done."""
    here = world if method.pair_set is None else world.on(method.pair_set)
    options = (
        "--max-steps", here.num_steps, "--learning-rate", rate, "--pairs-per-step",
        method.pairs_per_step or here.setting.pairs_per_step, "--warmup-ratio", 0.05,
        *method.options,
    )  # fmt: skip
    own_options = [str(each).replace("{seed}", str(seed)) for each in options]
    output = here.session.folder / f"{_slug(method.name)}-{_digest(here, options)}-seed{seed}"
    row = here.session.folder / "rows" / f"{output.name}.json"
    if not row.exists():
        here.session.offpref(
            "train", here.session.store, "--pair-set", here.pair_set, "--model", here.reference,
            "--output-dir", output, "--seed", seed, "--resume", "--no-last-checkpoint",
            "--eval-every", max(1, here.num_steps * 4 // 5), "--log-tokens", "none", *own_options,
        )  # fmt: skip
        keep(row, _measured(here, output, seed) | {"learning_rate": rate})
    return dict(json.loads(row.read_text()))


def keep(path: Path, row: Row) -> None:
    """Write a row whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(row))
    path.with_suffix(".tmp").replace(path)


def evaluated(
    world: World, policy: Path, *, seed: int, temperature: float = 1.0, against: str | None = None
) -> Row:
    """Sample from a policy and return what the store says of its samples."""
    sources = [f"{name}={source}" for name, source in world.sources.items()]
    said = world.session.offpref(
        "evaluate", world.session.store, "--model", policy, "--reference", world.reference,
        "--pair-set", world.pair_set, "--num-samples", world.setting.num_samples,
        "--max-new-tokens", world.max_new_tokens, "--seed", seed, "--batch-size", 256,
        "--name", policy.name, "--temperature", temperature,
        *(() if world.num_prompts is None else ("--num-prompts", world.num_prompts)),
        *(part for source in sources for part in ("--objective", source)),
        *(() if against is None else ("--win-rate-against", against)),
    )  # fmt: skip
    # By its id: a policy with equal weights may have been measured under another name.
    found = re.search(r"^evaluation .*@([0-9a-f]{12})", said, re.MULTILINE)
    assert found is not None, said
    row = world.session.select(
        "select * from evaluations "
        f"where starts_with(replace(evaluation_id::varchar, '-', ''), '{found[1]}')"
    )[0]
    return {
        "evaluation": found[1],
        "policy": str(policy),
        "rewards": dict(row["rewards"]),
        "reward_errors": dict(row["reward_errors"]),
        "best_of_n": {
            name: value for name, value in dict(row["best_of_n"]).items()
            if (n := int(name.split("/")[1])) & (n - 1) == 0
        },
        "kl": row["reverse_kl"],
        "forward_kl": row["forward_kl"],
        "on_policy_forward_kl": row["on_policy_forward_kl"],
        "entropy": row["entropy"],
        "accuracy": row["accuracy"],
        "distinct_2": row["distinct_2"],
        "num_tokens": row["mean_completion_tokens"],
        "seed": seed,
    }  # fmt: skip


def _measured(world: World, output: Path, seed: int) -> Row:
    """Return a policy's row: of its samples, its curve, its cost, whether it has converged."""
    (cost,) = world.session.select(
        "select sum(seconds) as seconds, sum(num_pairs)::bigint as pairs, "
        "max(peak_memory_bytes) as peak from steps join latest_runs using (run_id) "
        f"where latest_runs.run = '{output.name}' and split = 'train'"
    )
    curve = world.session.select(
        "select step, steps.loss, metrics['logps/chosen'] as chosen, "
        "metrics['logps/rejected'] as rejected from steps join latest_runs using (run_id) "
        f"where latest_runs.run = '{output.name}' and split = 'eval' order by step"
    )
    return evaluated(world, output, seed=seed) | {
        "curve": curve,
        "held_out_loss": curve[-1]["loss"],
        "converged": convergence(curve),
        "seconds": cost["seconds"],
        "num_pairs": cost["pairs"],
    }


def convergence(curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return what the last fifth of the steps changed, as shares of what training changed.

    The held-out completions are samples of the reference. So what they have lost in log-prob since
    the first step is an estimate of KL(reference || policy).

    Args:
        curve: Held-out loss and mean log-probs of chosen and rejected completions before the first
            step, after four fifths of the steps, and at the end.
    """
    first, before, last = curve[0], curve[-2], curve[-1]
    # A loss that reads the chosen completions alone measures these alone.
    sides = [side for side in ("chosen", "rejected") if first[side] is not None]
    kls = [sum(first[side] - at[side] for side in sides) / len(sides) for at in (before, last)]
    loss = abs(last["loss"] - before["loss"]) / max(abs(last["loss"] - first["loss"]), 1e-12)
    kl = abs(kls[1] - kls[0]) / max(abs(kls[1]), 1e-12)
    return {
        "loss_change": loss, "kl_change": kl,
        "is_converged": loss <= MOST_LOSS_CHANGE and kl <= MOST_KL_CHANGE,
    }  # fmt: skip


def run_all(world: World, jobs: Iterable[Callable[[], Row]]) -> list[Row]:
    """Do jobs, several at a time; each is its own process's and resumes by itself."""
    jobs = list(jobs)
    commits = world.session.store / "commits"
    if commits.exists() and len(list(commits.iterdir())) > MOST_COMMITS:
        world.session.offpref("store", "compact", world.session.store)
    if num_workers() == 1 or len(jobs) == 1:
        return [job() for job in jobs]
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    paths = (str(world.session.folder), *sys.path)
    with ProcessPoolExecutor(num_workers(), spawn, _begin, (paths, os.getpid())) as pool:
        return list(pool.map(_call, jobs))


def _begin(paths: Sequence[str], parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.path[:] = list(dict.fromkeys(paths))
    import torch

    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """End this process when the recipe is gone: a killed one must not leave its workers behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(job: Callable[[], Row]) -> Row:
    return job()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _digest(world: World, options: Iterable[object]) -> str:
    """Return a short name of everything that a policy depends on but its seed."""
    whole = repr((world.pair_set, world.setting.samples_per_prompt, world.setting.movie_prompts,
                  tuple(map(str, options))))  # fmt: skip
    return f"{zlib.crc32(whole.encode()):08x}"
