"""SimPO: its ablations, the baselines of its Table 3, and whether rewards order as likelihoods do.

    python recipes/simpo_analysis.py FOLDER RESULTS.json [--setting small|large]

SimPO (arXiv:2405.14734, Section 4) trains on the mean log-prob and no reference. Its paper shows
that likelihood follows length without length normalisation, and that the order of DPO's rewards
often disagrees with the order of likelihoods, by which text is generated. All methods have equal
budgets, and each has a learning rate of its own from one grid.
"""

from pathlib import Path
from typing import Any

from claims import Claim, Rows, in_world, values
from paired import difference
from policies import Method, measure_methods, plan
from reference import dpo
from session import SETTINGS, arguments, say_plan, world_folder, write_results
from worlds import World, small_outline, small_world

COMMAND = "make simpo-analysis"
DOUBLED = ("simpo",)


def methods(world: World) -> list[Method]:
    """Return SimPO, its ablations, and the baselines."""
    at = ("--beta", world.beta)
    options: dict[str, tuple[object, ...]] = {
        "simpo": ("--loss-type", "simpo"),
        "simpo gamma=0": ("--loss-type", "simpo", "--simpo-gamma", 0),
        # Without length normalisation: CPO's margin of summed log-probs, no likelihood term, and a
        # beta that is SimPO's divided by a typical length.
        "simpo without length normalisation": (
            "--loss-type", "cpo", "--beta", 0.2, "--cpo-lambda", 0,
        ),
        "rrhf": ("--loss-type", "rrhf"),
        "slic": ("--loss-type", "slic"),
        "ipo": ("--loss-type", "ipo", *at),
        "cpo": ("--loss-type", "cpo"),
        "kto": ("--loss-type", "kto", *at),
        "orpo": ("--loss-type", "orpo"),
        "rdpo": ("--loss-type", "rdpo", *at),
    }  # fmt: skip
    return [
        dpo(world)[0],
        *(Method(name=name, options=given, tuned_as=name) for name, given in options.items()),
    ]


def measure(world: World) -> dict[str, Any]:
    """Train, evaluate and ask."""
    found = measure_methods(world, methods(world), doubled=DOUBLED)
    found["policies"]["dpo"] = found["policies"].pop(dpo(world)[0].name)
    for rows in found["policies"].values():
        for row in rows:
            run = Path(row["policy"]).name
            row["length_bias"] = _of_split(world.session.ask("length_bias", run=run))
            row["rank_agreement"] = _of_split(world.session.ask("rank_agreement", run=run))
    found["objective"] = world.objective
    found["claims"] = [each.as_json() for each in claims(world, found["policies"])]
    return found


def claims(world: World, rows: Rows) -> list[Claim]:
    """Return the claims of SimPO's paper."""

    def asked(name: str, question: str, column: str) -> list[float]:
        return [row[question][column] for row in rows[name]]

    def claim(text: str, source: str, measure: str, effect: Any) -> Claim:
        return Claim(claim=text, source=source, world=in_world(world), measure=measure,
                     effect=effect, command=COMMAND)  # fmt: skip

    plain, column = "simpo without length normalisation", "length_mean_logps"
    agreement = ("rank_agreement", "agreement")
    listed = [
        claim(
            "SimPO's rewards order pairs as likelihood does, DPO's less often",
            "SimPO, Figure 4b", "share of the pairs",
            difference(asked("simpo", *agreement), asked("dpo", *agreement)),
        ),
        claim(
            "Likelihood follows length less with SimPO than without length normalisation",
            "SimPO, Figure 2c", "size of Spearman's correlation",
            difference(
                [abs(each) for each in asked(plain, "length_bias", column)],
                [abs(each) for each in asked("simpo", "length_bias", column)],
            ),
        ),
        claim(
            "Likelihood follows length less with SimPO than with DPO",
            "SimPO, Figure 2c", "size of Spearman's correlation",
            difference(
                [abs(each) for each in asked("dpo", "length_bias", column)],
                [abs(each) for each in asked("simpo", "length_bias", column)],
            ),
        ),
    ]  # fmt: skip
    reward = f"reward/{world.objective}"
    for other, source in (
        ("simpo gamma=0", "SimPO, Table 5"), (plain, "SimPO, Table 5"),
        *((name, "SimPO, Table 3") for name in
          ("rrhf", "slic", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo")),
    ):  # fmt: skip
        effect = difference(values(rows["simpo"], reward), values(rows[other], reward))
        name = {"simpo gamma=0": "SimPO with gamma 0", plain: "SimPO without length normalisation",
                "slic": "SLiC-HF", "rdpo": "R-DPO"}.get(other, other.upper())  # fmt: skip
        listed.append(claim(f"SimPO has more reward than {name}", source, "reward", effect))
    return listed


def _of_split(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["split"] == "eval")


def main() -> None:
    """Run the recipe."""
    given = arguments(__doc__)
    setting = SETTINGS[given.setting]
    outline = small_outline(world_folder(given, "small"), setting)
    if not say_plan(given, [plan(outline, methods(outline), doubled=DOUBLED)]):
        return
    world = small_world(world_folder(given, "small"), setting)
    write_results(given.results, {"small": measure(world)}, given.setting)


if __name__ == "__main__":
    main()
