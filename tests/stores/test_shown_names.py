"""A name that is shown leads to the weights that it names now."""

import os
import shutil
from pathlib import Path
from uuid import uuid4

import pytest
from safetensors.torch import load_file, save_file

from offpref.pipeline.scores.references import ReferenceScorer
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.stores.store import Store


@pytest.fixture
def first(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model that the store was scored by."""
    return Path(shutil.copytree(model_dir, tmp_path / "first"))


def look(store: Store, folder: Path) -> str:
    return score(store, ScoreSettings(model=folder, pair_set="reviews")).scorer


def rewrite(folder: Path) -> None:
    """Put other weights into a folder, as long as before and as old."""
    path = folder / "model.safetensors"
    status = path.stat()
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    path.write_bytes((folder / "new").read_bytes())
    (folder / "new").unlink()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_copy_that_was_looked_at_gives_no_name(
    scored: Store, model_dir: Path, first: Path
) -> None:
    scorer = look(scored, first)

    assert scored.name_of(scorer) == model_dir.name


def test_a_name_whose_folder_holds_other_weights_is_not_shown(
    tmp_path: Path, scored: Store, first: Path
) -> None:
    rewrite(first)
    scorer = look(scored, first)
    assert scored.name_of(scorer) == "first"
    copy = Path(shutil.copytree(first, tmp_path / "copy"))

    rewrite(first)

    assert scored.name_of(scorer) is None
    assert look(scored, copy) == scorer  # and the next folder that holds them gives its name
    assert scored.name_of(scorer) == "copy"


def test_a_name_that_nobody_can_check_is_not_shown(store: Store) -> None:
    spec = {"kind": "scorer", "weights": uuid4().hex, "config": {}, "numerics": {"precision": "x"}}
    scorer = store.write_spec(spec, name="sft")  # as the version before wrote it
    reward = store.write_spec({"kind": "reward", "from": "brevity"}, name="short (brevity)")

    assert store.name_of(scorer) is None
    assert store.name_of(reward) == "short (brevity)"


def test_a_reference_without_a_name_is_shown_by_its_fingerprint() -> None:
    fingerprint = "0a60495098ce" + 20 * "0"
    kept = {"fingerprint": fingerprint, "precision": "float32", "is_policy": False}
    assert str(ReferenceScorer(name=None, **kept)) == "@0a60495098ce"  # type: ignore[arg-type]
    assert str(ReferenceScorer(name="sft", **kept)) == "sft@0a60495098ce"  # type: ignore[arg-type]
