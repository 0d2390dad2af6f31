"""The report without a browser: its numbers, its samples, its limits, and how it is written."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from report_cases import (
    ATTACK,
    DPO,
    RUN_NAME,
    Page,
    attack,
    name,
    places,
    put,
    put_pairs,
    put_run,
    put_scores,
    put_steps,
    ref_logps,
    report,
)

from offpref.pipeline.commands.main import main
from offpref.stores.errors import QueryRefusedError, ReportError, ShardMissingError
from offpref.stores.query.catalog import Catalog
from offpref.stores.report import html as report_module
from offpref.stores.report.html import write_report
from offpref.stores.report.packing import quantised
from offpref.stores.report.queries import PAGE, page_rows
from offpref.stores.report.settings import MAX_PAIRS, MOST_PAIRS, ReportSettings
from offpref.stores.store import Store

STYLE = Path(report_module.__file__).parent / "page" / "style.css"


@pytest.fixture(scope="module")
def attacked_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked") / "store"
    attack(Store.create(folder))
    return folder


@pytest.fixture
def attacked(attacked_once: Path, tmp_path: Path) -> Store:
    """A copy of the store that attacks."""
    return Store.open(Path(shutil.copytree(attacked_once, tmp_path / "attacked")))


@pytest.fixture(scope="module")
def page(attacked_once: Path) -> Page:
    """Its report."""
    return report(Store.open(attacked_once))


# Settings and the writing of the file.


def test_command_writes_the_page_and_says_what_is_on_it(attacked: Store, tmp_path: Path) -> None:
    path = tmp_path / "out.html"

    done = CliRunner().invoke(main, ["report", str(attacked.path), "-o", str(path), "--title", "T"])

    assert done.exit_code == 0, done.output
    size = path.stat().st_size
    assert done.output == (
        f"report     {path}: {size:,} bytes, 2 runs, 10 of 10 pairs, 10 with token values\n"
    )
    assert Page(path).values["title"] == "T"
    assert size < 10_000_000


def test_same_store_gives_the_same_bytes(attacked: Store) -> None:
    assert report(attacked).html == report(attacked).html


def test_file_that_is_there_stays_unless_overwrite_is_given(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    arguments = ["report", str(store.path), "-o", str(path)]

    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert refused.output == f"Error: {path} is there already; --overwrite replaces it\n"
    assert path.read_text() == "mine"

    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    assert path.read_text().startswith("<!doctype html>")


def test_path_that_cannot_be_written_is_refused_before_any_work(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ReportError, match=r"the folder .*missing does not exist; create it first"):
        write_report(store, tmp_path / "missing" / "report.html", ReportSettings())
    with pytest.raises(ReportError, match="is a folder; expected the name of a file"):
        write_report(store, tmp_path, ReportSettings())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReportError, match="is a device or a pipe; expected the name of a file"):
        write_report(store, tmp_path / "pipe", ReportSettings(overwrite=True))
    assert (tmp_path / "pipe").is_fifo()


def test_what_cannot_be_written_is_said_before_the_store_is_read(
    attacked: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in attacked.shards("tokens"):
        shard.path.unlink()
    path = tmp_path / "report.html"

    with pytest.raises(ShardMissingError):
        write_report(attacked, path, ReportSettings())
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ReportError, match="not installed"):
        write_report(attacked, path, ReportSettings())
    path.write_text("mine")
    with pytest.raises(ReportError, match="is there already"):
        write_report(attacked, path, ReportSettings())


def test_page_that_finds_no_room_leaves_nothing(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    offpref = Path(sys.executable).parent / "offpref"

    done = subprocess.run(
        [offpref, "report", store.path, "-o", folder / "report.html"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip

    assert done.returncode == 1
    assert "report.html cannot be written: File too large" in done.stderr
    assert list(folder.iterdir()) == []


def test_missing_library_is_named_with_its_remedy(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['plotly'] = None; from offpref.pipeline.commands.main import main;"
        f"main(['report', {str(store.path)!r}, '-o', {str(tmp_path / 'report.html')!r}])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr == (
        "Error: the report draws with plotly, which is not installed: "
        "pip install 'offpref[report]'\n"
    )


def test_report_starts_without_torch(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys; from offpref.pipeline.commands.main import main;"
        f"main(['report', {str(store.path)!r}, '-o', {str(tmp_path / 'r.html')!r}],"
        " standalone_mode=False); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_command_shows_as_many_pairs_as_the_module_by_default() -> None:
    (option,) = [each for each in main.commands["report"].params if each.name == "max_pairs"]
    assert (option.default, option.type.max) == (MAX_PAIRS, MOST_PAIRS)
    for number in (0, 10_001):
        with pytest.raises(ValueError, match=f"max_pairs must be from 1 to 10000, got {number}"):
            ReportSettings(max_pairs=number)


# What stands in the page's source.


def test_no_text_of_the_store_is_markup(attacked: Store) -> None:
    page = report(attacked, title=ATTACK + "\ud800")

    # The library holds what it likes; it is packed, as are the pairs.
    assert page.html.count("<script") == 5 + len(page.values["tokens"]["block_of_pair"]) // 10 + 1
    assert "<img" not in page.html
    assert "window.hacked=1</script>" not in page.html
    assert page.values["title"] == ATTACK + "?"
    assert page.values["runs"][0]["label"] == RUN_NAME
    assert page.values["runs"][0]["differs"]["model"] == ATTACK
    assert "\u2028" not in page.html


def test_policy_allows_the_scripts_of_the_page_and_no_network(store: Store) -> None:
    page = report(store)
    (policy,) = [line for line in page.html.splitlines() if "Content-Security-Policy" in line]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert "unsafe-eval" not in policy
    assert "http" not in policy.split("content=")[1]


# Runs.


def test_runs_that_are_not_asked_for_are_left_out_with_their_pair_sets(attacked: Store) -> None:
    put_pairs(attacked, [20], pair_set="other", pair_set_fingerprint="b" * 32)

    assert len(places(report(attacked))) == 11
    page = report(attacked, run_names=("simpo",))

    assert [run["label"] for run in page.values["runs"]] == ["simpo"]
    assert name(20) not in places(page)
    assert page.values["is_part"]
    with pytest.raises(QueryRefusedError, match=r"no run is called 'x'; there are: simpo, dpo <b "):
        report(attacked, run_names=("x",))


def test_runs_of_one_name_are_told_apart_and_settings_that_differ_are_shown(store: Store) -> None:
    for number, beta in ((3, 0.1), (4, 0.5)):
        put_run(store, bytes([number]) * 16, "dpo", beta=beta, output_dir=f"out-{number}", f=None)

    runs = report(store).values["runs"]

    assert [run["label"] for run in runs] == ["dpo@030303030303", "dpo@040404040404"]
    assert [run["differs"] for run in runs] == [{"beta": "0.1"}, {"beta": "0.5"}]
    for names, number in ((("dpo",), 2), (("dpo@040404040404",), 1)):
        assert len(report(store, run_names=names).values["runs"]) == number


def test_single_run_shows_the_settings_that_everyone_asks_for(store: Store) -> None:
    put_run(store, DPO, "dpo", beta=0.1, loss_type="sigmoid", learning_rate=5e-7, extra=3)
    (run,) = report(store).values["runs"]
    assert run["differs"] == {
        "loss_type": "sigmoid", "beta": "0.1", "learning_rate": "5e-07", "seed": "0"
    }  # fmt: skip
    assert (run["status"], run["steps"], run["attempts"]) == ("finished", 2, 1)


# Charts.


def test_curves_are_those_of_the_newest_attempts(page: Page) -> None:
    curves = page.json("charts")["curves"]

    loss = {(each["run"], each["split"]): each for each in curves["metrics"]["loss"]}
    assert loss[0, "train"] == {"run": 0, "split": "train", "steps": [1, 2],
                                "values": [0.5, pytest.approx(1 / 3 + 1, abs=1e-4)]}  # fmt: skip
    assert loss[1, "eval"]["values"] == [0.5, pytest.approx(1 / 3, abs=1e-4)]
    assert not curves["is_averaged"]


def test_long_curves_are_averaged_and_the_page_says_so(store: Store) -> None:
    put_run(store, DPO, "long")
    put_steps(store, DPO, range(1000))

    curves = report(store).json("charts")["curves"]

    (margins,) = [c for c in curves["metrics"]["rewards/margins"] if c["split"] == "train"]
    assert len(margins["steps"]) == 300
    assert margins["steps"][-1] == 999
    assert margins["values"][0] == pytest.approx(np.mean([0, 0.5, 1, 1.5]), abs=0.01)
    assert np.diff(margins["values"]).max() < 2.1
    assert curves["is_averaged"]


def test_distributions_count_every_pair_once_as_it_was_last_seen(page: Page) -> None:
    found = page.json("charts")["distributions"]

    # Pairs 1, 3, 5, 7 are held out and paired; attempt 1 adds 1 to what step 2 gives.
    margins = [(number - 4) * 2 + 1 for number in (1, 3, 5, 7)]
    (mine,) = [e for e in found["reward_margins"] if (e["run"], e["split"]) == (0, "eval")]
    assert mine["num_values"] == sum(mine["counts"]) == 4
    assert mine["mean"] == np.mean(margins)
    assert (mine["lowest"], mine["highest"]) == (min(margins), max(margins))
    kl = [e for e in found["chosen_forward_kl"] if e["run"] == 0]
    assert [(e["split"], e["mean"], e["counts"][0]) for e in kl] == [
        ("eval", 0.5, 5), ("train", 0.5, 5)
    ]  # fmt: skip
    assert {e["run"] for e in found["rejected_forward_kl"]} == {0}  # the other run has none


def test_far_values_are_counted_at_the_edge_of_a_distribution(store: Store) -> None:
    put_run(store, DPO, "dpo")
    rows = [
        {"run_id": DPO, "step": 1, "split": "train", "pair_key": bytes([number]) * 16,
         "loss": 1e6 if number == 0 else number / 100}
        for number in range(101)
    ]  # fmt: skip
    put(store, "examples", rows, DPO.hex())

    (loss,) = report(store).json("charts")["distributions"]["loss"]

    ordinary = np.array([number / 100 for number in range(1, 101)] + [1e6])
    quarter, three_quarters = np.quantile(ordinary, [0.25, 0.75])
    assert loss["high"] == pytest.approx(three_quarters + 3 * (three_quarters - quarter), rel=1e-4)
    assert loss["counts"][-1] == 1
    assert loss["highest"] == 1e6
    assert sum(loss["counts"]) == 101


def test_frontier_has_means_of_held_out_and_of_trained_pairs(page: Page) -> None:
    found = {each["source"]: each["points"] for each in page.json("charts")["frontiers"]}

    assert list(found) == ["held out", "train"]
    held_out, simpo = found["held out"]
    assert held_out["note"] == "5 pairs of split eval"
    assert held_out["values"]["accuracy"] == 0.5  # of -5, -1, 3, 7: 9 is unpaired
    assert held_out["values"]["reward_margins"] == 1.0
    # Five chosen completions at 0.5, four rejected ones at 1.5.
    assert held_out["values"]["forward_kl"] == pytest.approx((5 * 0.5 + 4 * 1.5) / 9, rel=1e-4)
    assert "forward_kl" not in simpo["values"]
    assert "reverse_kl" not in held_out["values"]  # nobody measured it


def test_frontier_shows_evaluations_where_there_are_any(attacked: Store) -> None:
    common = {"pair_set": "reviews", "split": "eval", "num_prompts": 10, "num_samples": 4}
    put(attacked, "evaluations", [
        {"evaluation_id": b"e" * 16, "run_id": DPO, "name": "a", "reverse_kl": 1.5,
         "rewards": [("helpful", 0.25)], "metrics": [("win_rate", 0.6)], **common},
        {"evaluation_id": b"f" * 16, "name": ATTACK, "rewards": [("helpful", 0.5)], **common},
    ])  # fmt: skip

    source = report(attacked).json("charts")["frontiers"][0]

    first, second = source["points"]
    assert source["source"] == "evaluations"
    assert (first["run"], first["label"], second["run"], second["label"]) == (
        0, RUN_NAME, None, ATTACK
    )  # fmt: skip
    assert first["values"]["reverse_kl"] == 1.5
    assert first["values"]["reward: helpful"] == 0.25
    assert first["values"]["win_rate"] == 0.6
    assert "reverse_kl" not in second["values"]
    part = report(attacked, run_names=("simpo",)).json("charts")["frontiers"]
    assert [each["source"] for each in part] == ["held out", "train"]


def test_points_of_the_frontier_say_how_they_were_measured(attacked: Store) -> None:
    drawn = {"temperature": 0.1, "top_p": 1.0, "max_new_tokens": 12, "reward_sources": {"h": "s"}}
    put(attacked, "evaluations", [
        {"evaluation_id": b"e" * 16, "run_id": DPO, "name": "a", "reverse_kl": 1.5, "split": "eval",
         "rewards": [("h", 0.25)], "pair_set": "p", "pair_set_fingerprint": "v1",
         "num_prompts": 10, "reference": "fp", "settings": json.dumps(drawn)},
        {"evaluation_id": b"f" * 16, "name": "b", "rewards": [("h", 0.5)], "settings": ""},
    ])  # fmt: skip

    samples, held_out, _ = report(attacked).json("charts")["frontiers"]

    first, second = samples["points"]
    assert first["conditions"] == {
        "pair set": "p@v1", "prompts": 10, "split": "eval", "reference": "fp",
        "temperature": "0.1", "top p": "1.0", "max new tokens": "12",
    }  # fmt: skip
    assert first["axes"] == {"reward: h": "s"}
    assert second["axes"] == {}
    dpo, simpo = held_out["points"]
    assert dpo["axes"]["reward_margins"] != simpo["axes"]["reward_margins"]
    assert simpo["axes"]["accuracy"] == "mean_logps"


# Size.


def test_values_lose_digits_and_then_pairs_until_the_page_fits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = range(200)
    put_pairs(store, numbers)
    put_scores(store, numbers)
    random = np.random.default_rng(0)
    put_run(store, DPO, "dpo")
    rows = [
        {"run_id": DPO, "step": 1, "split": "train", "pair_key": bytes([n, 0]) * 8,
         "sequence_key": bytes([n, 1]) * 8, "token_logps": random.normal(size=5).tolist(),
         "entropy": random.normal(size=5).tolist()}
        for n in numbers
    ]  # fmt: skip
    put(store, "tokens", rows, DPO.hex())
    full = report(store)
    assert full.values["tokens"]["num_bits"] == 16

    page = full
    for leaves_out in (False, True):
        limit = len(page.html) - 2500
        monkeypatch.setattr(report_module, "MAX_BYTES", limit)
        page = report(store)
        tokens = page.values["tokens"]
        assert len(page.html) <= limit
        assert tokens["num_bits"] == 8
        assert (tokens["num_left_out"] > 0) == leaves_out
        assert len(tokens["block_of_pair"]) + tokens["num_left_out"] == 200
        kept = sorted(map(int, tokens["block_of_pair"]))
        assert kept == list(range(len(kept)))  # from the end, in the order of the keys
        expected = np.subtract(rows[3]["token_logps"], ref_logps(3, 1))  # type: ignore[call-overload]
        scale = np.abs(expected).max()
        found = page.tokens(name(3))["chosen"]["runs"]["0"]["logratios"]
        assert np.abs(found - expected).max() <= scale / 127


@pytest.mark.parametrize(
    ("num_bits", "largest"), [(8, 127), (16, 32767)], ids=["where room is short", "else"]
)
def test_quantised_values_keep_their_promise(num_bits: int, largest: int) -> None:
    values = np.random.default_rng(1).standard_cauchy(1000).astype(np.float32)
    values[:3] = [0, np.nan, np.inf]

    whole, scale = quantised(values, num_bits)

    back = np.sign(whole) * (whole / largest) ** 2 * scale
    finite = np.isfinite(values)
    exact = np.abs(values[finite].astype(float))
    bound = np.sqrt(exact * scale) / largest + scale / largest**2
    assert (np.abs(back[finite] - values[finite]) <= bound).all()
    assert (whole[~finite] == -largest - 1).all()
    assert quantised(np.zeros(0, np.float32), num_bits)[1] == 0


def test_long_texts_are_cut_and_the_page_says_by_how_much(store: Store) -> None:
    text = {"prompt": "p" * 5000 + "END", "completion": "BEGIN" + "c" * 5000}
    put_pairs(store, [1], {(1, 1): text})

    block = report(store).json("pairs")

    prompt, chosen = (block["texts"][block[name][0]] for name in ("prompt", "chosen"))
    assert (len(prompt), prompt[-3:], block["prompt_cut"]) == (4000, "END", [1003])
    assert (len(chosen), chosen[:5], block["chosen_cut"]) == (4000, "BEGIN", [1005])
    assert block["rejected_cut"] == [0]


def test_every_question_of_the_page_has_an_answer_on_an_empty_store(store: Store) -> None:
    numbers = {"num_points": 9, "num_pairs": 9, "max_tokens": 9, "has_all_runs": True}
    keys: dict[str, list[str]] = {"run_ids": [], "pair_keys": [], "sequence_keys": [],
                                  "keys_with_tokens": []}  # fmt: skip
    with Catalog(store) as catalog:
        names = [path.stem for path in PAGE.glob("*.sql")]
        rows = {name: page_rows(catalog, name, **numbers, **keys).num_rows for name in names}
        assert rows == dict.fromkeys(names, 0) | {"store": 1}
        with pytest.raises(ValueError, match="badly formed"):
            page_rows(catalog, "logps", sequence_keys=["') or true --"], max_tokens=1)


# Looks.


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [":root ", ':root[data-theme="dark"] '])
def test_texts_have_enough_contrast(theme: str) -> None:
    style = STYLE.read_text()
    block = style[style.index(theme + "{") :].split("}")[0]
    colour = {
        each[1]: [int(each[2][at : at + 2], 16) / 255 for at in (0, 2, 4)]
        for each in re.finditer(r"--([\w-]+): #(\w{6});", block)
    }
    for ink in ("ink", "muted"):
        for ground in ("page", "surface", "sunken", "accent-soft"):
            assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
    assert contrast(colour["strong-line"], colour["surface"]) >= 3  # of controls
    strongest = float(
        re.findall(r"STRONGEST = ([\d.]+)", (STYLE.parent / "tokens.js").read_text())[0]
    )
    for each in re.finditer(r"--(high|low): (\d+), (\d+), (\d+);", block):
        behind = [
            strongest * int(part) / 255 + (1 - strongest) * ground
            for part, ground in zip(each.groups()[1:], colour["surface"], strict=True)
        ]
        assert contrast(colour["ink"], behind) >= 4.5, each[1]


def test_scripts_of_the_page_declare_each_name_once() -> None:
    """They share one scope: a name that is declared twice stops all of them, in silence."""
    pattern = r"^(?:async )?(?:function\s+(\w+)|(?:const|let|class)\s+(\w+))"
    declared: dict[str, list[str]] = {}
    for path in sorted((Path(report_module.__file__).parent / "page").glob("*.js")):
        for one, other in re.findall(pattern, path.read_text(encoding="utf-8"), re.M):
            declared.setdefault(one or other, []).append(path.name)

    assert len(declared) > 20
    assert {name: files for name, files in declared.items() if len(files) > 1} == {}
