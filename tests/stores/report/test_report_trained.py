"""The report of a store that was really scored and trained: its tokens are the store's."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from report_cases import Page

from offpref.pipeline.commands.main import main
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.pipeline.training.train import train
from offpref.stores.store import Store


def test_report_of_a_real_run_shows_what_the_store_holds(
    tiered: Store, train_settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    settings = train_settings(kl_metrics=True, log_tokens="all", eval_every=3, max_steps=6)
    train(plan_training(tiered, settings))
    tiered.refresh()
    path = tmp_path / "report.html"

    done = CliRunner().invoke(main, ["report", str(tiered.path), "-o", str(path)])

    assert done.exit_code == 0, done.output
    page = Page(path)
    rows = tiered.read("tokens").to_pylist()
    last = max(rows, key=lambda row: (row["step"], row["split"] == "eval", row["pair_key"]))
    reference = tiered.read(
        "logps", filters=pc.field("sequence_key") == last["sequence_key"]
    ).to_pylist()
    sides = page.tokens(str(UUID(bytes=last["pair_key"])))
    run = [side["runs"]["0"] for side in sides.values()]
    expected = np.subtract(last["token_logps"], reference[0]["token_logps"])
    assert any(
        len(each["logratios"]) == len(expected)
        and each["logratios"] == pytest.approx(expected, abs=np.abs(expected).max() / 1000)
        and each["entropy"] == pytest.approx(last["entropy"], rel=1e-2)
        for each in run
    )
    curves = page.json("charts")["curves"]["metrics"]
    assert {"loss", "forward_kl/chosen", "entropy", "rewards/margins"} <= set(curves)
    held_out = next(c for c in curves["loss"] if c["split"] == "eval")
    assert held_out["steps"] == [0, 3, 6]
    assert held_out["values"][0] == pytest.approx(np.log(2), rel=1e-4)
    assert page.json("charts")["frontiers"][0]["points"][0]["values"]["reverse_kl"] > 0
