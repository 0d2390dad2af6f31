"""Policies that reinforcement learning trains: PPO and RLOO in a world, with their cost."""

import json
from functools import partial

from policies import Row, evaluated, keep, run_all
from ppo import PPOSettings, train_ppo
from reward_sources import RewardTerm
from worlds import World

PPO_STEPS = 60
SAMPLES_PER_STEP = 192


def ppo_plan(world: World, num_methods: int) -> str:
    """Return what training so many methods by reinforcement would do, in a line."""
    policies = num_methods * world.setting.num_seeds
    steps = min(PPO_STEPS, world.num_steps)
    return (
        f"{world.name}: {num_methods} methods by reinforcement x {world.setting.num_seeds} seeds = "
        f"{policies} policies of {steps} steps: {policies * steps * SAMPLES_PER_STEP:,} samples"
    )


def ppo_policies(
    world: World, name: str, weights: dict[str, float], beta: float,
    *, sources: dict[str, str] | None = None,
) -> list[Row]:  # fmt: skip
    """Return the rows of PPO's policies, one a seed.

    Args:
        world: Where.
        name: Of the policies' folders.
        weights: Of each reward in the sum that PPO maximises.
        beta: Price of a nat of KL.
        sources: Of rewards, if they are not the world's true ones.
    """
    seeds = range(world.setting.num_seeds)
    jobs = [partial(_ppo_policy, world, name, weights, beta, sources, seed) for seed in seeds]
    return run_all(world, jobs)


def _ppo_policy(
    world: World, name: str, weights: dict[str, float], beta: float,
    sources: dict[str, str] | None, seed: int,
) -> Row:  # fmt: skip
    output = world.session.folder / f"{name}-seed{seed}"
    row = world.session.folder / "rows" / f"{output.name}.json"
    if not row.exists():
        found = sources or world.sources
        settings = PPOSettings(
            model=world.reference, prompts=train_prompts(world), beta=beta, seed=seed,
            num_steps=min(PPO_STEPS, world.num_steps), samples_per_step=SAMPLES_PER_STEP,
            max_new_tokens=world.max_new_tokens,
            rewards=tuple(RewardTerm(name=each, source=found[each], weight=value)
                for each, value in weights.items()),
        )  # fmt: skip
        print(f"PPO: {output.name}", flush=True)
        record = train_ppo(settings, output)
        keep(row, evaluated(world, output, seed=seed) | cost(record))
    return dict(json.loads(row.read_text()))


def train_prompts(world: World) -> tuple[str, ...]:
    """Return the prompts that are not held out."""
    rows = world.session.select(
        "select distinct prompt from pairs_with_text "
        f"where pair_set = '{world.pair_set}' and split = 'train' order by prompt"
    )
    return tuple(row["prompt"] for row in rows)


def cost(record: Row) -> Row:
    """Return what a training by reinforcement cost, and its curve."""
    steps = record.get("steps", [])
    return {
        "num_sequences": record["num_sequences"],
        "num_forwards": record["num_forwards"],
        "seconds": record["seconds"],
        "curve": [
            {"step": each["step"], "kl": each["kl"]} for each in steps if each["step"] % 8 == 0
        ],
    }
