"""Tokens that end a sample are part of its key; earlier samples are checked against them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import offpref.pipeline.evaluation.sample_sets as sample_sets
from offpref.pipeline.evaluation.end_tokens import end_tokens
from offpref.pipeline.evaluation.evaluate import EvaluationSummary, evaluate
from offpref.pipeline.evaluation.settings import EvaluateSettings, SampleSettings
from offpref.stores.store import Store

SMALL = SampleSettings(num_samples=3, max_new_tokens=12, batch_size=6)


@pytest.fixture
def policy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(model_dir, tmp_path / "policy"))


def measure(store: Store, policy: Path, samples: SampleSettings = SMALL) -> EvaluationSummary:
    settings = EvaluateSettings(
        model=policy, pair_set="reviews", samples=samples, objective=("short=brevity",)
    )
    found = evaluate(store, settings)
    store.refresh()
    return found


def measure_former(store: Store, policy: Path) -> EvaluationSummary:
    """Draw like the former version, whose key says nothing of end tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_sets, "settled_spec", lambda store, spec, **others: spec)
        return measure(store, policy)


def end_at(folder: Path, ids: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))


def first_words(store: Store) -> list[int]:
    """Ids that samples hold before their last token."""
    rows = store.read("sequences").to_pylist()
    keys = {row["chosen_key"] for row in store.read("pairs").to_pylist()
            if "/samples/" in row["pair_set"]}  # fmt: skip
    drawn = [row for row in rows if row["sequence_key"] in keys]
    return [each for row in drawn for each in row["ids"][row["num_prompt_tokens"] : -1]]


def test_other_end_tokens_are_other_samples_and_another_evaluation(
    scored: Store, policy: Path
) -> None:
    first = measure(scored, policy)
    ends = sorted(set(first_words(scored)))[:20]
    end_at(policy, [2, *ends])

    second = measure(scored, policy)

    assert second.num_samples_drawn == first.num_samples_drawn
    assert second.is_new
    lengths = [each.row["mean_completion_tokens"] for each in (first, second)]
    assert lengths[1] < lengths[0] - 1
    again = measure(scored, policy)
    assert (again.num_samples_drawn, again.is_new) == (0, False)
    assert dict(again.row["rewards"]) == dict(second.row["rewards"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token_id": 2}, [2]),
        ({"eos_token_id": [5, 2]}, [2, 5]),
        ({"eos_token_id": None}, [2]),
        (None, [2]),  # what config.json says
    ],
    ids=["the tokenizer's", "two", "none", "no file"],
)
def test_end_tokens_are_the_tokenizers_and_the_models(
    policy: Path, config: dict[str, Any] | None, expected: list[int]
) -> None:
    (policy / "generation_config.json").unlink()
    if config is not None:
        (policy / "generation_config.json").write_text(json.dumps(config))

    assert end_tokens(policy, 2) == expected


def test_end_tokens_of_the_configuration_count_without_a_file_of_their_own(policy: Path) -> None:
    (policy / "generation_config.json").unlink()
    path = policy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [7, 8]}))

    assert end_tokens(policy, 2) == [2, 7, 8]


def test_former_samples_are_taken_where_they_are_what_would_be_drawn(
    scored: Store, policy: Path
) -> None:
    former = measure_former(scored, policy)
    found = [measure(scored, policy)]
    end_at(policy, [2, 1])  # a token that is never drawn, before the last at least

    if 1 not in first_words(scored):
        found.append(measure(scored, policy))

    assert {each.num_samples_drawn for each in found} == {0}
    assert {each.row["evaluation_id"] for each in found} == {former.row["evaluation_id"]}


def test_former_samples_of_other_end_tokens_are_drawn_again_and_kept(
    scored: Store, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Path(shutil.copytree(policy, policy.parent / "plain"))
    expected = measure(Store.open(scored.path), plain, SampleSettings(seed=9)).row
    end_at(policy, [2, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50])
    former = measure_former(scored, policy)  # under the name of samples that end with 2 alone

    found = [measure(scored, plain) for _ in range(2)]

    assert expected["evaluation_id"] != former.row["evaluation_id"]
    assert [each.num_samples_drawn > 0 for each in found] == [True, False]
    assert found[0].row["mean_completion_tokens"] > former.row["mean_completion_tokens"]
    said = capsys.readouterr().err
    assert said.count("did not keep which tokens end them") == 1
    kept = {row["pair_set_fingerprint"] for row in scored.read("pair_sets").to_pylist()}
    assert former.samples is not None
    assert former.samples.pair_set.fingerprint in kept
    own = measure(scored, policy)  # and those that they are right for still have them
    assert own.num_samples_drawn == 0


def test_the_text_of_a_sample_is_that_of_its_ids(scored: Store, policy: Path) -> None:
    path = policy / "tokenizer_config.json"
    content = json.loads(path.read_text()) | {"clean_up_tokenization_spaces": True}
    path.write_text(json.dumps(content))

    measure(scored, policy)

    assert any(" ." in row["completion"] for row in scored.read("generations").to_pylist())
