"""The recipes' arithmetic, and that the page of findings is what their results say."""

import contextlib
import importlib
import io
import itertools
import json
import math
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
MODULES = ("findings", "pictures", "paired", "optimum", "policies", "movies", "session", "worlds",
           "claims", "frontier", "pareto", "simpo_analysis")  # fmt: skip


@pytest.fixture(autouse=True)
def _recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(RECIPES))
    yield
    for name in MODULES:  # their names are common words: no other test shall find them
        sys.modules.pop(name, None)


def recipe(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_the_page_is_what_the_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        sys, "argv", ["findings.py", str(ROOT / "docs" / "findings"), str(tmp_path)]
    )

    recipe("findings").main()

    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert (tmp_path / "findings.md").read_text(encoding="utf-8") == page
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures
    assert all(f"({name})" in page and (ROOT / "docs" / name).exists() for name in pictures)


def test_verdicts_of_the_page_are_those_of_its_numbers() -> None:
    """Every claim's interval, verdict and seeds follow from what stands beside them."""
    paired = recipe("paired")
    seen = 0
    for path in (ROOT / "docs" / "findings").glob("*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        for world in ("small", "movies"):
            for claim in results.get(world, {}).get("claims", ()):
                effect = paired.Difference(**claim["effect"])
                assert claim["verdict"] == paired.verdict(effect, at_least=claim["at_least"])
                assert effect.low <= effect.mean <= effect.high
                assert effect.num_seeds == results["num_seeds"]
                distance = effect.mean - claim["at_least"]
                # The page's numbers have six digits.
                needed = paired.seeds_needed(distance, effect.spread)
                assert claim["seeds_needed"] == pytest.approx(needed, rel=1e-3, abs=1)
                seen += 1
    assert seen > 10


def test_a_frontier_is_read_between_its_points_and_nowhere_else() -> None:
    at_kl = recipe("paired").at_kl
    frontier = [(4.0, 3.0), (0.0, 0.0), (1.0, 2.0)]

    # Linear in the square root of KL: 0, 1 and 2.
    assert at_kl(frontier, 0.25) == 1.0
    assert at_kl(frontier, 2.25) == 2.5
    assert at_kl(frontier, 4.5) is None


def test_the_area_that_a_front_dominates() -> None:
    hypervolume = recipe("paired").hypervolume
    # Two steps: 3 x 1 and 1 x 1 above it; the point (2, 0.5) is dominated.
    points = [(3.0, 1.0), (1.0, 2.0), (2.0, 0.5)]

    assert hypervolume(points, (0.0, 0.0)) == 4.0
    assert hypervolume(points, (1.0, 1.0)) == 0.0


def test_student_s_quantiles_are_those_of_the_tables() -> None:
    quantile = recipe("paired").student_quantile

    expected = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045, 1000: 1.962}
    for degrees, value in expected.items():
        assert quantile(degrees) == pytest.approx(value, abs=6e-4)


def test_a_difference_is_paired_and_its_interval_that_of_all_resamples() -> None:
    paired = recipe("paired")
    ours, theirs = [5.0, 1.0, 3.5, 9.0], [4.0, 0.5, 2.0, 6.0]

    found = paired.difference(ours, theirs)

    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    means = sorted(sum(each) / 4 for each in itertools.product(gaps, repeat=4))
    # P(Z < -sqrt(4 / 3) 3.182), the normal's tail at the widened quantile.
    share = 0.5 * math.erfc(math.sqrt(4 / 3) * 3.182446 / math.sqrt(2))
    assert found.mean == pytest.approx(1.5)
    assert found.low == pytest.approx(np.quantile(means, share), abs=1e-4)
    assert found.high == pytest.approx(np.quantile(means, 1 - share), abs=1e-4)
    assert paired.difference(gaps) == found
    with pytest.raises(ValueError, match="a pair a seed, got 4 and 3 values"):
        paired.difference(ours, theirs[:3])
    with pytest.raises(ValueError, match="two seeds or more, got 1"):
        paired.difference([1.0])


def test_an_interval_holds_what_it_promises_with_five_seeds() -> None:
    """Of normal differences with mean 1 its interval has the mean nearly 95 times in 100."""
    paired = recipe("paired")
    draws = np.random.default_rng(0).normal(1.0, 1.0, (200, 5))

    found = [paired.difference(each.tolist()) for each in draws]

    share = sum(each.low <= 1.0 <= each.high for each in found) / len(found)
    assert 0.87 <= share <= 0.99


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.2, 1.0, "holds"),
        (-1.0, 0.1, "does not hold"),
        (-0.1, 0.5, "cannot be told with 5 seeds"),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, words: str) -> None:
    paired = recipe("paired")
    found = paired.Difference(mean=0.1, low=low, high=high, spread=0.4, num_seeds=5)

    assert paired.verdict(found, at_least=0.1) == words


def test_seeds_needed_are_the_fewest_whose_interval_leaves_zero() -> None:
    paired = recipe("paired")

    for effect, spread in ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0)):
        n = paired.seeds_needed(effect, spread)
        assert paired.student_quantile(n - 1) * spread / math.sqrt(n) < effect
        if n > 2:
            assert paired.student_quantile(n - 2) * spread / math.sqrt(n - 1) >= effect
    assert paired.seeds_needed(0.0, 1.0) is None


def test_a_policy_has_converged_if_its_last_steps_changed_little() -> None:
    convergence = recipe("policies").convergence

    def curve(loss: float, chosen: float) -> list[dict[str, float | None]]:
        return [
            {"loss": 0.7, "chosen": -10.0, "rejected": -10.0},
            {"loss": loss, "chosen": chosen, "rejected": -12.0},
            {"loss": 0.3, "chosen": -9.0, "rejected": -14.0},
        ]

    # At the end one side has gained a nat and the other has lost four: KL is 1.5.
    still = convergence(curve(0.305, -11.0))
    assert still["is_converged"]
    assert still["loss_change"] == pytest.approx(0.005 / 0.4)
    assert still["kl_change"] == pytest.approx(0.0)
    assert not convergence(curve(0.32, -11.0))["is_converged"]
    assert not convergence(curve(0.305, -10.5))["is_converged"]
    alone = [{**each, "rejected": None} for each in curve(0.305, -9.1)]
    assert convergence(alone)["kl_change"] == pytest.approx(0.1)


def test_of_rates_that_a_loss_cannot_tell_apart_the_smallest_is_chosen() -> None:
    chosen = recipe("policies").chosen_rate

    def rows(*losses: float) -> list[dict[str, Any]]:
        return [
            {"learning_rate": rate, "held_out_loss": loss, "curve": [{"loss": 0.7}]}
            for rate, loss in zip((5e-4, 1e-3, 2e-3), losses, strict=True)
        ]

    # A tolerance of 2 % of the fall from 0.7 to 0.3 is 0.008.
    assert chosen(rows(0.31, 0.307, 0.3))["learning_rate"] == 1e-3
    assert chosen(rows(0.301, 0.307, 0.3))["learning_rate"] == 5e-4
    assert chosen(rows(0.4, 0.35, 0.3))["learning_rate"] == 2e-3


def test_the_best_policy_is_the_tilted_reference_and_weights_undo_other_proposals() -> None:
    optimum = recipe("optimum")
    p = np.array([0.5, 0.3, 0.2])
    rewards = np.array([0.0, 1.0, 3.0])
    tilted = p * np.exp(0.7 * rewards)
    shares = tilted / tilted.sum()
    exact = (shares @ rewards, shares @ np.log(shares / p))

    whole = optimum.Sampled(weights=p, rewards={"r": rewards})
    found = optimum.best([whole, whole], {"r": 0.7})
    assert found.rewards["r"] == pytest.approx(exact[0])
    assert found.kl == pytest.approx(exact[1])

    # Drawn half from the reference and half from a policy that favours the rare answer.
    other = np.array([0.1, 0.1, 0.8])
    drawn = np.random.default_rng(0).choice(3, 40_000, p=(p + other) / 2)
    weights = (p / ((p + other) / 2))[drawn]
    sampled = optimum.Sampled(weights=weights / weights.sum(), rewards={"r": rewards[drawn]})
    again = optimum.best([sampled], {"r": 0.7})
    assert again.rewards["r"] == pytest.approx(exact[0], abs=0.02)
    assert again.kl == pytest.approx(exact[1], abs=0.02)
    line = optimum.frontier([sampled], "r", (0.7,), num_resamples=50)
    assert line[0]["low"] <= exact[0] <= line[0]["high"]


def test_a_frontier_of_seeds_starts_at_the_reference_and_is_compared_seed_by_seed() -> None:
    claims = recipe("claims")

    def rows(*points: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"kl": kl, "rewards": {"r": reward}} for kl, reward in points]

    policies = {
        "dpo beta=1": rows((1.0, 1.0), (1.0, 2.0)),
        "dpo beta=2": rows((2.0, 1.5), (2.0, 3.0)),
        "other": rows((0.25, 0.6), (3.0, 3.25)),
    }

    found = claims.more_reward(policies, ["other"], than="dpo", objective="r", start=0.0)

    # Seed 0: half of the way from reference to DPO in the root of KL. Seed 1: beyond DPO's last.
    assert found.mean == pytest.approx(((0.6 - 0.5) + (3.25 - 3.0)) / 2)


def test_a_file_is_made_whole_and_again_if_what_it_is_made_from_changes(tmp_path: Path) -> None:
    made = recipe("session").made
    path, calls = tmp_path / "data.jsonl", []

    def write(target: Path) -> None:
        calls.append(target)
        target.write_text(f"{len(calls)}")

    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError("killed")

    for made_from in ({"n": 1}, {"n": 1}, {"n": 2}):
        made(path, made_from, write)
    assert (len(calls), path.read_text()) == (2, "2")
    with pytest.raises(OSError, match="killed"):
        made(path, {"n": 3}, fail)
    assert path.read_text() == "2"
    made(path, {"n": 3}, write)
    assert path.read_text() == "3"


def movie_files(folder: Path) -> Path:
    folder.mkdir()
    praise, blame = "a warm and lovely film with great charm", "a dull and awful film with no charm"
    with zipfile.ZipFile(folder / "sentence_polarity.zip", "w") as archive:
        archive.writestr("s/rt-polarity.pos", f"{praise}\n" * 20)
        archive.writestr("s/rt-polarity.neg", f"{blame}\n" * 20)
    with zipfile.ZipFile(folder / "movie_reviews.zip", "w") as archive:
        archive.writestr(
            "m/pos/cv1.txt", "too short\nthis sentence has just enough words to be kept\n"
        )
    for name in ("sst2_train", "sst2_test"):
        (folder / f"{name}.csv").write_text(f'label,sentence\n1,"{praise}"\n0,"{blame}"\n')
    return folder


def test_movie_reviews_are_read_where_they_lie_and_judged(tmp_path: Path) -> None:
    movies = recipe("movies")
    data = movie_files(tmp_path / "data")

    movies.write_demonstrations(tmp_path / "rows.jsonl", data)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert "this sentence has just enough words to be kept" in {
        row["prompt"] + row["completion"] for row in rows
    }
    judge = movies.train_judge(movies.labelled(data, "polarity"), num_steps=100)
    assert movies.accuracy(judge, movies.labelled(data, "sst2_test")) == 1.0
    low, high = judge.positive(["an awful film", "a lovely film"])
    assert 0 < low < 0.5 < high < 1
    (data / "sst2_test.csv").unlink()
    with pytest.raises(SystemExit, match=r"found no sst2_test\.csv"):
        movies.check_files(data)


def test_a_judge_whose_weights_were_exchanged_is_refused(tmp_path: Path) -> None:
    movies = recipe("movies")
    movies.write_judge(tmp_path, movie_files(tmp_path / "data"))
    sys.path.insert(0, str(tmp_path))
    try:
        judge = importlib.import_module("judge")
        assert judge.positive(["a lovely"], [" film"])[0] > 0.5
        judge._judge.cache_clear()
        (tmp_path / "judge.npz").write_bytes(b"others")
        with pytest.raises(ValueError, match="expected the weights that"):
            judge.positive(["a lovely"], [" film"])
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("judge", None)


@pytest.mark.parametrize("name", ["frontier", "pareto", "simpo_analysis"])
def test_a_recipe_says_what_it_would_do_and_does_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    monkeypatch.setattr(
        sys, "argv",
        [name, str(folder), str(tmp_path / "x.json"), "--dry-run", "--setting", "large"],
    )  # fmt: skip
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        recipe(name).main()

    assert out.getvalue().startswith("setting large; what was done in")
    assert "5 seeds" in out.getvalue()
    assert not folder.exists()


def test_a_world_s_folder_is_its_setting_s() -> None:
    session = recipe("session")

    def folder(setting: str) -> Path:
        given = session.arguments(None, ["work", "x.json", "--setting", setting])
        return Path(session.world_folder(given, "small"))

    assert (folder("small"), folder("large")) == (Path("work/small"), Path("work/small-large"))


def test_a_killed_recipe_leaves_no_workers(tmp_path: Path) -> None:
    """A real process with real workers, ended by SIGKILL."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys, time; sys.path.insert(0, {str(RECIPES)!r})\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "import policies, session, worlds\n"
        "if __name__ == '__main__':\n"
        "    world = worlds.small_outline(Path('w'), session.SETTINGS['tiny'])\n"
        "    jobs = [partial(time.sleep, 60)] * 2\n"
        "    print('ready', flush=True)\n"
        "    policies.run_all(world, jobs)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={"RECIPE_WORKERS": "2", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        children = wait_for(lambda: workers_of(process.pid))
        process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in children))


def workers_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
            if int(fields[1]) == pid and b"spawn_main" in command:
                found.append(int(path.parent.name))
    return found if len(found) == 2 else []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(found: Any) -> Any:
    for _ in range(600):
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")
