"""Claims of the papers, each with its effect in one world, its interval and the verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paired import Difference, at_kl, difference, seeds_needed, verdict
from worlds import World


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, and what was found of it."""

    claim: str
    source: str
    world: str
    measure: str
    """What the effect is a difference of, and its unit."""
    effect: Difference
    at_least: float = 0.0
    """The claim holds if the effect is above this."""
    command: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name, with the verdict and the seeds that would give one."""
        return asdict(self) | {
            "verdict": verdict(self.effect, at_least=self.at_least),
            "seeds_needed": seeds_needed(self.effect.mean - self.at_least, self.effect.spread),
        }


Rows = dict[str, list[dict[str, Any]]]


def values(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Return one number of each seed; "reward/NAME" is a reward."""
    if name.startswith("reward/"):
        return [row["rewards"][name.removeprefix("reward/")] for row in rows]
    return [row[name] for row in rows]


def seed_frontier(
    policies: Rows, prefix: str, objective: str, seed: int, start: float
) -> list[tuple[float, float]]:
    """Return the frontier of a method's policies of one seed, the reference first: (KL, reward)."""
    found = [
        (rows[seed]["kl"], rows[seed]["rewards"][objective])
        for name, rows in policies.items()
        if name.startswith(prefix)
    ]
    return [(0.0, start), *found]


def reward_at(points: Sequence[tuple[float, float]], kl: float) -> float:
    """Return the reward of a frontier at a KL; beyond its last point, that of no larger KL."""
    found = at_kl(points, kl)
    return max(reward for other, reward in points if other <= kl) if found is None else found


def more_reward(
    policies: Rows, names: Sequence[str], *, than: str, objective: str, start: float
) -> Difference:
    """Return by how much the frontier of ``than`` lies below policies, at the KL of each.

    Seed by seed, the mean over the named methods.
    """
    gaps = []
    for seed in range(len(policies[names[0]])):
        frontier = seed_frontier(policies, than, objective, seed, start)
        own = [policies[name][seed] for name in names]
        gaps.append(
            sum(row["rewards"][objective] - reward_at(frontier, row["kl"]) for row in own)
            / len(own)
        )
    return difference(gaps)


def negative(found: Difference) -> Difference:
    """Return the difference the other way round."""
    return Difference(
        mean=-found.mean, low=-found.high, high=-found.low, spread=found.spread,
        num_seeds=found.num_seeds,
    )  # fmt: skip


WORLDS = {"small": "grammar", "movies": "movie reviews"}


def in_world(world: World) -> str:
    """Return a world's name on the page."""
    return WORLDS[world.name]
