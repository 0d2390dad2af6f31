"""What a world's reference does, and what is possible from it."""

import json
from pathlib import Path
from typing import Any

from optimum import Sampled, of_model
from policies import Method, Row, evaluated, keep, trained
from worlds import World

from offpref.pipeline.small_world import rewards as exact_rewards

BETAS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of DPO's frontier."""
PROPOSAL_SEED = 200
"""Of policies that are drawn from to estimate what is possible; no result has it."""


def dpo(world: World) -> list[Method]:
    """Return DPO at every beta, the world's own first: it has the KLs that figures draw."""
    first, *rest = sorted(BETAS, key=lambda beta: beta != world.beta)
    name = f"dpo beta={first}"
    return [
        Method(name=name, options=("--beta", first, "--kl-metrics"), tuned_as=name),
        *(
            Method(name=f"dpo beta={beta}", options=("--beta", beta), tuned_as=name)
            for beta in rest
        ),
    ]


def reference(world: World) -> Row:
    """Return the reference's own row, with the best of n of its samples."""
    path = world.session.folder / "rows" / "reference.json"
    if not path.exists():
        keep(path, evaluated(world, world.reference, seed=0))
    return dict(json.loads(path.read_text()))


def possible_of(world: World) -> list[Sampled]:
    """Return weighted samples that stand for the reference on the held-out prompts.

    They are drawn from the reference and from DPO policies, which favour rewards.
    """
    path = world.session.folder / "rows" / "possible.json"
    is_small = world.name == "small"
    rows = world.session.select(
        "select distinct prompt from pairs_with_text "
        f"where pair_set = '{world.pair_set}' and split = 'eval' order by prompt"
    )
    prompts = [row["prompt"] for row in rows][: world.num_prompts]
    drawn_from = [world.reference]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        for beta in BETAS[:-1] if is_small else (0.5, 2.0):
            name = f"proposal beta={beta}"
            method = Method(name=name, options=("--beta", beta), tuned_as=name)
            row = trained(world, method, rate=1e-3, seed=PROPOSAL_SEED)
            drawn_from.append(Path(row["policy"]))
    num_samples = (4 if is_small else 1) * world.setting.num_samples
    return of_model(
        world.reference, drawn_from, prompts, num_samples, max_new_tokens=world.max_new_tokens,
        rewards=lambda texts, completions: judged(world, texts, completions), keep=path,
    )  # fmt: skip


def judged(world: World, prompts: list[str], completions: list[str]) -> dict[str, list[Any]]:
    """Return the true rewards of completions."""
    if world.name == "small":
        found = [exact_rewards(text) for text in completions]
        return {name: [each[name] for each in found] for name in world.sources}
    import judge  # type: ignore[import-not-found] # of the world's folder

    return {name: getattr(judge, name)(prompts, completions) for name in world.sources}
