"""A null in config.json is told from a field that is absent, and former scores that did not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.models.fingerprints import is_ambiguous, scorer_fingerprint, scorer_spec
from offpref.pipeline.models.relevant_config import former_config, relevant_config
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.scores.stored_logps import summed_logps
from offpref.pipeline.small_world import write_pairs, write_tokenizer
from offpref.pipeline.training.plan import plan_training
from offpref.pipeline.training.settings import TrainSettings
from offpref.stores.errors import PairSetError
from offpref.stores.key_index import to_keys
from offpref.stores.schema import LOGPS
from offpref.stores.store import Store

CAPS = ("final_logit_softcapping", "attn_logit_softcapping")


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two Gemma 2 of the same weights: one says nothing of its caps, one null."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    root = tmp_path_factory.mktemp("gemma")
    for name in ("absent", "null"):
        (root / name).mkdir()
        size = write_tokenizer(root / name)
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, head_dim=16, initializer_range=1.0,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        Gemma2ForCausalLM(config).save_pretrained(root / name)
        path = root / name / "config.json"
        values = json.loads(path.read_text())
        for cap in CAPS:
            del values[cap]
        path.write_text(json.dumps(values | (dict.fromkeys(CAPS) if name == "null" else {})))
    return root


def make_former(store: Store, model: Path) -> str:
    """Score like the former version: under the fingerprint of a spec without nulls."""
    import offpref.pipeline.models.fingerprints as fingerprints

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "relevant_config", lambda config, store: former_config(config))
        return score(store, ScoreSettings(model=model, pair_set="reviews")).scorer


def logps(store: Store, scorer: str) -> np.ndarray:
    keys = np.sort(to_keys(store.read(LOGPS.name, scorer, ["sequence_key"]).column(0)))
    return summed_logps(store, scorer, keys)


def test_two_models_that_differ_in_a_null_have_scores_of_their_own(
    scored: Store, capped: Path
) -> None:
    found = {
        name: score(scored, ScoreSettings(model=capped / name, pair_set="reviews"))
        for name in ("absent", "null")
    }

    scored.refresh()
    assert found["absent"].scorer != found["null"].scorer
    assert [each.num_cached for each in found.values()] == [0, 0]
    absent, null = (logps(scored, each.scorer) for each in found.values())
    assert np.abs(absent - null).max() > 1


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        ("gemma2", {}, {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
                        "sliding_window": 4096}),
        ("gemma2", {"final_logit_softcapping": None}, {"final_logit_softcapping": None,
                    "attn_logit_softcapping": 50.0, "sliding_window": 4096}),
        ("mistral", {"sliding_window": None}, {"sliding_window": None}),
        ("mistral", {"head_dim": None}, {"sliding_window": 4096}),  # null is head_dim's default
        # The class itself makes null of the window unless use_sliding_window says otherwise.
        ("qwen2", {"sliding_window": None}, {}),
        ("llama", {"rope_scaling": None}, {}),
        ("gemma3", {"tie_word_embeddings": True, "mm_tokens_per_image": 1, "boi_token_index": 1,
                    "eoi_token_index": 1, "image_token_index": 1,
                    "text_config": {"model_type": "gemma3_text", "sliding_window": None}},
         {"text_config": {"sliding_window": None, "use_bidirectional_attention": False}}),
        ("unknown to transformers", {"sliding_window": None}, {}),
    ],
    ids=["absent", "null", "null window", "null is default", "class decides", "llama", "part",
         "unknown"],
)  # fmt: skip
def test_a_field_is_kept_where_null_and_absent_differ(
    store: Store, kind: str, given: dict[str, object], kept: dict[str, object]
) -> None:
    config = {"model_type": kind, **given}

    found = relevant_config(config, store)

    former = former_config(config)
    part = former.get("text_config", {})
    added = {name: found[name] for name in found if found[name] != former.get(name, "absent")}
    if part:
        added["text_config"] = {
            name: value
            for name, value in found["text_config"].items()
            if part.get(name, "absent") != value
        }
    assert added == kept


def test_a_class_that_was_asked_once_is_not_imported_again(scored: Store, capped: Path) -> None:
    score(scored, ScoreSettings(model=capped / "null", pair_set="reviews"))

    code = (
        "import sys; from offpref.pipeline.commands.start import start\n"
        "sys.argv = ['offpref', 'score', "
        f"{str(scored.path)!r}, '--pair-set', 'reviews', '--model', {str(capped / 'null')!r}]\n"
        "try: start()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "no model was loaded" in found.stdout
    assert found.stdout.splitlines()[-1] == "False False"


def test_former_scores_of_either_model_are_kept_and_not_used(
    scored: Store, capped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = make_former(scored, capped / "absent")
    assert make_former(scored, capped / "null") == former  # as it was

    found = [
        score(scored, ScoreSettings(model=capped / name, pair_set="reviews"))
        for name in ("null", "absent", "null")
    ]

    assert [each.num_new == each.num_sequences for each in found] == [True, True, False]
    said = capsys.readouterr().err
    assert (
        said.count(f"scores under @{former[:12]} were made by a rule that did not tell null") == 1
    )
    scored.refresh()
    assert former in scored.partitions(LOGPS.name)


def test_former_scores_are_nobodys_reference(
    scored_former: Store, capped: Path, tmp_path: Path
) -> None:
    def plan(**given: object) -> None:
        plan_training(
            scored_former,
            TrainSettings(
                pair_set="reviews", model=capped / "null", output_dir=tmp_path / "o",
                pairs_per_step=8, **given,
            ),  # type: ignore[arg-type] # spelled above
        )  # fmt: skip

    with pytest.raises(PairSetError, match="no reference has scored the"):
        plan()
    with pytest.raises(PairSetError, match="has scored nothing in"):
        plan(reference=str(capped / "absent"))


@pytest.fixture
def scored_former(capped: Path, tmp_path: Path) -> Store:
    """A store whose only scores are of the former rule, of a model with caps."""
    write_pairs(tmp_path / "pairs.jsonl", num_pairs=20, seed=3)
    store = Store.create(tmp_path / "former")
    data = AddSettings(
        data=(str(tmp_path / "pairs.jsonl"),), pair_set="reviews", tokenizer=capped / "null"
    )
    add_pairs(store, plan_add(store, data))
    make_former(store, capped / "absent")
    store.refresh()
    return store


def test_a_spec_of_today_is_not_taken_for_a_former_one(store: Store, capped: Path) -> None:
    for name in ("absent", "null"):
        spec = scorer_spec(capped / name, precision="float32", vocabulary="v", store=store)
        former = {**spec, "config": former_config(spec["config"])}  # type: ignore[arg-type]
        assert not is_ambiguous(spec, store)
        assert is_ambiguous(former, store) == (name == "null")
        assert scorer_fingerprint(former) != scorer_fingerprint(spec) or name == "absent"
