"""Promises of the README and the docs, and that each "never" in them names its test."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model, write_tokenizer
from offpref.stores.errors import OffprefError
from offpref.stores.store import Store

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def pieces(text: str) -> list[str]:
    """The sentences and table rows of a page, code blocks left out, links kept."""
    text = re.sub(r"```.*?```|^    .*$", "", text, flags=re.S | re.M)
    blocks: list[str] = []
    for block in text.split("\n\n"):
        rows = block.splitlines() if block.lstrip().startswith("|") else [" ".join(block.split())]
        for row in rows:
            blocks += [row] if row.startswith("|") else re.split(r"(?<=[.:!?])\s+(?=[A-Z*`])", row)
    return blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_never_names_a_test_beside_it(page: Path) -> None:
    claims = [each for each in pieces(page.read_text(encoding="utf-8"))
              if re.search(r"\bnever\b", each, re.I) and "`never`" not in each]  # fmt: skip

    for claim in claims:
        links = re.findall(r"\]\(([^)]*tests/[^)]*\.py)\)", claim)
        assert links, f"{page.name}: no test beside: {claim}"
        for link in links:
            assert (page.parent / link).resolve().is_file(), f"{page.name}: {link}"


def test_pages_that_name_tests_name_those_there_are() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for folder, name in re.findall(r"`(tests/(?:\w+/)*)?(test_\w+\.py)`", text):
            found = list((ROOT / "tests").rglob(name))
            assert len(found) == 1, f"{page.name}: {name}"
            assert not folder or found[0] == ROOT / folder / name, f"{page.name}: {folder}{name}"


def test_a_training_never_opens_a_file_of_its_reference(
    scored: Store, model_dir: Path, tmp_path: Path
) -> None:
    """Another policy than the reference, whose folder is gone and would be missed."""
    reference = tmp_path / "reference"
    write_model(reference, vocab_size=write_tokenizer(reference), seed=1)
    tiers = ("hidden", "topk")
    summary = score(scored, ScoreSettings(model=reference, pair_set="reviews", tier=tiers, top_k=4))
    shutil.rmtree(reference)
    offpref = Path(sys.executable).parent / "offpref"

    for loss in ("sigmoid", "tdpo2"):
        done = subprocess.run(
            [offpref, "train", scored.path, "--pair-set", "reviews", "--model", model_dir,
             "--reference", summary.scorer, "--output-dir", tmp_path / loss, "--loss-type", loss,
             "--max-steps", "2", "--pairs-per-step", "8"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"@{summary.scorer[:12]}" in done.stdout


def test_ids_of_a_completion_never_depend_on_its_prompt(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    prompts = ["the film", "the film ", "the film\n", "good", "film . film . film"]
    rows = [{"prompt": each, "chosen": "good film .", "rejected": "bad"} for each in prompts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="p", tokenizer=model_dir, max_length=64
    )

    add_pairs(store, plan_add(store, data))

    sequences = store.read("sequences").to_pylist()
    completions = {tuple(row["ids"][row["num_prompt_tokens"] :]) for row in sequences}
    assert len({tuple(row["ids"]) for row in sequences}) > 2
    assert len(completions) == 2  # the chosen one and the rejected one


@pytest.mark.parametrize("file", ["modeling_own.py", "configuration_own.py"])
def test_code_in_a_models_folder_is_never_run(
    scored: Store, model_dir: Path, tmp_path: Path, file: str
) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "own"))
    marker = tmp_path / "it ran"
    (folder / file).write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    module = file.removesuffix(".py")
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": f"{module}.Own", "AutoModelForCausalLM": f"{module}.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(OffprefError):
        score(scored, ScoreSettings(model=folder, pair_set="reviews"))

    assert not marker.exists()
