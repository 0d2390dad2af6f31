"""The recipes' arithmetic, and that the page of findings is what their results say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(RECIPES))
    spec = importlib.util.spec_from_file_location("findings", RECIPES / "findings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_results_say(
    findings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["findings.py", str(ROOT / "docs" / "findings"), str(tmp_path)]
    )

    findings.main()

    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert (tmp_path / "findings.md").read_text(encoding="utf-8") == page
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert all(f"({name})" in page and (ROOT / "docs" / name).exists() for name in pictures)


def test_a_frontier_is_read_between_its_points_and_nowhere_else(findings: ModuleType) -> None:
    frontier = [(2.0, 3.0), (0.0, 0.0), (1.0, 2.0)]

    assert findings.at_kl(frontier, 0.5) == 1.0
    assert findings.at_kl(frontier, 1.5) == 2.5
    assert findings.at_kl(frontier, 2.5) is None


def test_the_area_that_a_front_dominates(findings: ModuleType) -> None:
    # Two steps: 3 x 1 and 1 x 1 above it; the point (2, 0.5) is dominated.
    points = [(3.0, 1.0), (1.0, 2.0), (2.0, 0.5)]

    assert findings.hypervolume(points, (0.0, 0.0)) == 4.0
    assert findings.hypervolume(points, (1.0, 1.0)) == 0.0


def test_a_verdict_follows_the_numbers(findings: ModuleType) -> None:
    def world(reward: float) -> dict[str, object]:
        policies = {
            name: {"reward": [value, 0.1], "reverse_kl": [kl, 0.0]}
            for name, value, kl in (
                ("dpo beta=1", 2.0, 1.0), ("preferred-ft", reward, 0.5), ("unlikelihood", 0.0, 9.0),
            )
        }  # fmt: skip
        best = {"2": {"reward": 0.1, "kl": 0.2}}
        return {"policies": policies, "reference": 0.0, "best_of_n": best}

    held, failed = (list(findings.against_baselines(world(reward))) for reward in (0.5, 1.5))

    assert held[0] == (
        "- preferred-ft: **Holds here.** At its KL of 0.50 its reward is 0.50, DPO's is 1.00."
    )
    assert failed[0].startswith("- preferred-ft: **Does not hold here.** At its KL of 0.50")
    assert "is larger than that of DPO's policies" in held[1]
    assert held[2].startswith("- best of n: **Holds here.**")
