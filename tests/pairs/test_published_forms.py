"""The forms in which preference data is published: each with the pairs or lists that it means."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.examples import Examples, ReadOptions, read_examples
from offpref.pipeline.adding.forms import find_form
from offpref.pipeline.adding.settings import AddSettings, read_winners
from offpref.pipeline.pairs.pair_sets import PairSet, other_counts, reject_counts
from offpref.stores.errors import SourceError
from offpref.stores.sources import read_rows, source_files
from offpref.stores.store import Store

Write = Callable[..., Path]
USER, YES = {"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}


def examples(path: Path, options: ReadOptions | None = None, **named: str) -> Examples:
    (rows,) = read_rows(source_files(str(path))[0])
    return read_examples(rows, find_form(rows, named), options or ReadOptions())


def sides(found: Examples) -> list[tuple[object, object, object, float]]:
    """Prompt, both completions and weight of each usable example."""
    parts = zip(found.prompt, found.chosen, found.rejected, found.weight, strict=True)
    return [part for part, problem in zip(parts, found.problem, strict=True) if problem is None]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"system": "Be nice", "question": "q", "chosen": "yes", "rejected": "no"},
         ("Be nice\n\nq", "yes", "no")),  # Orca
        ({"system": "", "question": "q", "chosen": "yes", "rejected": "no"}, ("q", "yes", "no")),
        ({"system": None, "question": "q", "chosen": "yes", "rejected": "no"}, ("q", "yes", "no")),
        ({"instruction": "q", "input": "x", "chosen": "yes", "rejected": "no"},
         ("q\nx", "yes", "no")),  # Alpaca
        ({"instruction": "q", "input": "", "output": "yes"}, ("q", "yes", None)),
        ({"prompt": "q", "chosen": [YES], "rejected": [NO]}, ([USER], [YES], [NO])),
        ({"prompt": [USER], "system": "Be nice", "chosen": [YES], "rejected": [NO]},
         ([{"role": "system", "content": "Be nice"}, USER], [YES], [NO])),
        ({"prompt": '[{"role": "user", "content": "q"}]',
          "chosen": '[{"role": "assistant", "content": "yes"}]',
          "rejected": "[{'role': 'assistant', 'content': 'no'}]"}, ([USER], [YES], [NO])),
        ({"prompt": "q", "completion": "yes", "label": 1}, ("q", "yes", None)),  # KTO
        ({"prompt": "q", "completion": "no", "label": False}, ("q", None, "no")),
        ({"prompt": "q", "response": "no", "kto_tag": False}, ("q", None, "no")),  # LLaMA-Factory
        ({"system": "s", "input": "q", "chosen": "yes", "rejected": "no"},
         ("s\n\nq", "yes", "no")),  # distilabel
        ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, ([USER], [YES], [NO])),
        ({"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "yes"}]},
         ([USER], [YES], None)),
    ],
)  # fmt: skip
def test_a_row_is_read_as_it_is_meant(
    row: dict[str, object], expected: tuple[object, ...], write_rows: Write
) -> None:
    assert sides(examples(write_rows([row]))) == [(*expected, 1.0)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "response_a": "a", "response_b": "b", "winner": "model_a"}, ("a", "b")),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "winner": "model_b"}, ("b", "a")),
        ({"prompt": "q", "response1": "a", "response2": "b", "overall_preference": -2}, ("a", "b")),
        ({"prompt": "q", "answer_0": "a", "answer_1": "b", "winner": "second"}, ("b", "a")),
        ({"prompt": "q", "response_A": "a", "response_B": "b", "winner": "B>A"}, ("b", "a")),
    ],
)
def test_the_winner_is_chosen(
    row: dict[str, object], expected: tuple[str, str], write_rows: Write
) -> None:
    other = row | ({"overall_preference": 3} if "overall_preference" in row else {"winner": "tie"})
    found = examples(write_rows([row, other]))
    assert sides(found)[0] == ("q", *expected, 1.0)


@pytest.mark.parametrize("preference", [1, 3])
def test_a_positive_preference_alone_means_the_second(preference: int, write_rows: Write) -> None:
    row = {"prompt": "q", "response1": "a", "response2": "b", "overall_preference": preference}
    assert sides(examples(write_rows([row]))) == [("q", "b", "a", 1.0)]


def test_the_higher_of_two_scores_is_chosen(write_rows: Write) -> None:
    row = {"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b"}
    path = write_rows([row | {"score_0": -1, "score_1": 1}, row | {"score_0": 0, "score_1": 0}])

    found = examples(path)

    assert sides(found) == [("q", "b", "a", 1.0)]
    assert found.problem[1] == "winner: a tie"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tools": [{"name": "f"}]}, "tools: beside a text they need --apply-chat-template"),
        ({"history": "Human: hi"}, "history: expected pairs of a question and an answer"),
        ({"input": [USER]}, "input: expected text, got a list"),
        ({"system": ["nice"]}, "system: expected text, got a list"),
    ],
)
def test_what_cannot_go_before_a_text_is_a_reason(
    row: dict[str, object], reason: str, write_rows: Write
) -> None:
    found = examples(write_rows([{"prompt": "q", "chosen": "yes", "rejected": "no"} | row]))
    assert found.problem == [reason]


def test_messages_that_begin_with_another_prompt_are_a_reason(write_rows: Write) -> None:
    other = {"role": "user", "content": "r"}
    row = {"prompt": [USER], "chosen": [other, YES], "rejected": [other, NO]}
    assert examples(write_rows([row])).problem == ["chosen: begins with a turn of the user"]


def test_a_call_of_a_function_is_the_assistants_turn(write_rows: Write) -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    turns = [{"from": "human", "value": "q"}, call, {"from": "observation", "value": "42"}]
    path = write_rows([{"conversations": [*turns, {"from": "gpt", "value": "yes"}]}])

    found = examples(path, ReadOptions(is_trajectory=True))

    called = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert found.prompt == [[USER]]
    assert found.chosen == [
        [{"role": "assistant", "content": "", "tool_calls": [called]},
         {"role": "tool", "content": "42"}, YES]
    ]  # fmt: skip


def test_conversations_of_an_arena_are_parted(write_rows: Write) -> None:
    row = {"conversation_a": [USER, NO], "conversation_b": [USER, YES], "winner": "model_b"}
    assert sides(examples(write_rows([row]))) == [([USER], [YES], [NO], 1.0)]


def test_winners_are_named_and_ties_are_dropped_or_kept(write_rows: Write) -> None:
    rows = [
        {"prompt": "q", "response 1": "a", "response 2": "b", "label": label} for label in (0, 1, 2)
    ]
    winners = read_winners("0=first,1=second,2=tie")
    path = write_rows(rows)

    dropped = examples(path, ReadOptions(winners=winners), winner="label")
    kept = examples(path, ReadOptions(winners=winners, keeps_ties=True), winner="label")

    assert sides(dropped) == [("q", "a", "b", 1.0), ("q", "b", "a", 1.0)]
    assert dropped.problem[2] == "winner: a tie"
    assert sides(kept)[2:] == [("q", "a", "b", 0.5), ("q", "b", "a", 0.5)]


def test_a_winner_may_be_a_float(write_rows: Write) -> None:
    row = {"prompt": "q", "output_1": "a", "output_2": "b", "preference": 2.0}
    options = ReadOptions(winners=read_winners("1=first,2=second"))
    found = examples(write_rows([row]), options, winner="preference")
    assert sides(found) == [("q", "b", "a", 1.0)]


def test_an_unknown_winner_is_a_reason(write_rows: Write) -> None:
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": 1}
    found = examples(write_rows([row]))
    assert str(found.problem[0]).startswith("winner: expected one of model_a, model_b, tie")


@pytest.mark.parametrize(
    ("row", "named", "message"),
    [
        ({"prompt": "q", "response_a": "a", "response_b": "b", "label": 1}, {},
         "expected a column that says which is better; name it with --winner-column"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": 1}, {"label": "label"},
         "--label-column label has no effect on pairs; --winner-column says"),
        ({"prompt": "q", "responses": ["a", "b"]}, {}, "expected scores or ranks"),
        ({"prompt": "q", "completion": {"a": 1}}, {}, "expected texts, messages or token ids"),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "winner": "model_b"},
         {"chosen": "response_a", "rejected": "response_b"}, "'winner' may say which is better"),
        ({"question": "q", "response_A": "a", "response_B": "b", "label": "B>A"},
         {"chosen": "response_A", "rejected": "response_B"}, "'label' may say which is better"),
        ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0},
         {"prompt": "history", "chosen": "human_ref_A", "rejected": "human_ref_B"},
         "'labels' may say which is better"),
        ({"prompt": "q", "answer_0": "a", "answer_1": "b", "score_0": -1, "score_1": 1},
         {"winner": "score_0"}, "this is the score of one"),
        ({"prompt": "q", "response": "bad", "is_safe": False}, {}, "'is_safe' may say how good"),
        ({"prompt": "q", "response": "a", "score": 0.1}, {}, "'score' may say how good it is"),
        ({"instruction": "q", "context": "c", "response": "a"}, {}, "'context' may belong to it"),
        ({"prompt": "q", "chosen": "['a', 'b']", "rejected": "['c']"}, {},
         "lists written as texts, such as pandas writes to CSV"),
        ({"prompt": "q", "rejected": "[{'role': 'user'}]",
          "chosen": "[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]"},
         {}, "lists written as texts, such as pandas writes to CSV"),
        ({"prompt_ids": "[1, 2]", "chosen_ids": "[3]", "rejected_ids": "[4]"}, {},
         "lists written as texts, such as pandas writes to CSV"),
        ({"messages": [USER, YES], "rejected_response": "no"}, {}, "expected a column with the"),
        ({"prompt": "q", "response": "yes", "rejected": "no"}, {}, "name it with --chosen-column"),
        ({"prompt": '["q"]', "chosen": "a", "rejected": "b"}, {}, "prompt: expected texts"),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, {}, "need --apply-chat-template"),
        ({"prompt": "Why?", "chosen": "Why? So.", "rejected": "Why? No."}, {},
         "every row begins with its prompt, which would come twice"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    row: dict[str, object], named: dict[str, str], message: str, write_rows: Write
) -> None:
    with pytest.raises(SourceError, match=message):
        examples(write_rows([row]), **named)


def test_a_grid_is_all_its_pairs(write_rows: Write) -> None:
    row = {"id": 7, "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}

    found = examples(write_rows([row]))

    expected = {("q", one, other, 1.0) for one in "abc" for other in "xyz"}
    assert set(sides(found)) == expected
    assert len(found.problem) == 9


def add(store: Store, data: Path, folder: Path, **options: Any) -> PairSet:
    settings = AddSettings(data=(str(data),), pair_set="p", tokenizer=folder, **options)
    found, _ = add_pairs(store, plan_add(store, settings))
    store.refresh()
    return found


def lists_of(store: Store) -> list[list[tuple[str, float]]]:
    """The completions of each list with their scores, best first, in the order of the source."""
    texts = {row["text_key"]: row["completion"] for row in store.read("texts").to_pylist()}
    sequences = {
        row["sequence_key"]: texts[row["text_key"]] for row in store.read("sequences").to_pylist()
    }
    rows = sorted(store.read("lists").to_pylist(), key=lambda row: row["source_row"])
    return [
        [(sequences[k], score) for k, score in zip(r["sequence_keys"], r["scores"], strict=True)]
        for r in rows
    ]


PROMPT = "how was the film ?"


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"instruction": PROMPT, "completions": [
            {"response": "bad", "overall_score": 2.0, "model": "m"},
            {"response": "good", "overall_score": 8.5, "model": "n"},
            {"response": "fine", "overall_score": 5, "model": "o"}]}, {}),  # UltraFeedback
        ({"prompt": PROMPT, "outputs": ["bad", "good", "fine"], "win": [2, 8.5, 5.0]},
         {"score_column": "win"}),
        ({"prompt": PROMPT, "responses": ["bad", "good", "fine"], "scores": ["2", "8.5", "5"]}, {}),
        ({"question": {"full_text": PROMPT}, "text": ["bad", "good", "fine"],
          "score": [2, 8.5, 5]}, {}),
    ],
)  # fmt: skip
def test_scored_completions_are_a_list_best_first(
    row: dict[str, object], options: dict[str, str], store: Store, model_dir: Path,
    write_rows: Write,
) -> None:  # fmt: skip
    found = add(store, write_rows([row]), model_dir, **options)

    assert lists_of(store) == [[("good", 8.5), ("fine", 5.0), ("bad", 2.0)]]
    assert (found.num_pairs, other_counts(store, found)["lists"]) == (0, 1)
    (kept,) = store.read("lists").to_pylist()
    assert len(set(kept["sequence_keys"])) == 3


def test_ranks_count_downwards(store: Store, model_dir: Path, write_rows: Write) -> None:
    row = {"prompt": PROMPT, "answers": [{"answer": "fine", "rank": 2},
                                         {"answer": "good", "rank": 1.0}]}  # fmt: skip
    add(store, write_rows([row]), model_dir)
    assert lists_of(store) == [[("good", -1.0), ("fine", -2.0)]]


def test_rows_of_one_prompt_are_a_list(store: Store, model_dir: Path, write_rows: Write) -> None:
    other = "tell me about the book ?"
    scores = [("good", 4), ("bad", 1), ("fine", 3)]
    rows: list[dict[str, object]] = [
        {"prompt": PROMPT, "response": text, "helpfulness": score, "verbosity": 1}
        for text, score in scores
    ]
    rows += [
        {"prompt": other, "response": text, "helpfulness": score} for text, score in scores[:2]
    ]

    found = add(store, write_rows(rows), model_dir)

    assert lists_of(store) == [
        [("good", 4.0), ("fine", 3.0), ("bad", 1.0)], [("good", 4.0), ("bad", 1.0)],
    ]  # fmt: skip
    assert (found.num_rows, found.num_rejects) == (5, 0)


def test_ranks_of_rows_and_of_named_columns_count_downwards(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    rows = [
        {"prompt": "q", "response": word, "my_ranking": i} for i, word in enumerate(("good", "bad"))
    ]
    settings = AddSettings(
        data=(str(write_rows(rows)),), pair_set="r", tokenizer=model_dir,
        score_column="my_ranking",
    )  # fmt: skip

    add_pairs(store, plan_add(store, settings))
    store.refresh()

    assert [row["scores"] for row in store.read("lists").to_pylist()] == [[0.0, -1.0]]


def test_a_row_of_a_list_that_cannot_be_used_leaves_the_others(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    rows = [{"prompt": "q", "response": each, "helpfulness": 1} for each in (3, "good", "bad")]
    settings = AddSettings(data=(str(write_rows(rows)),), pair_set="r", tokenizer=model_dir)

    found, _ = add_pairs(store, plan_add(store, settings))
    store.refresh()

    assert len(store.read("lists").to_pylist()) == 1
    assert reject_counts(store, found) == {"completion: expected text, got a number": 1}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ties", "keep"), ("winner_values", "0=first"), ("trajectory", True),
        ("chat_template_kwargs", '{"a": 1}'), ("chat_template", "t.jinja"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_an_error(
    option: str, value: object, store: Store, model_dir: Path, write_rows: Write
) -> None:
    path = write_rows([{"prompt": "q", "chosen": "yes", "rejected": "no"}])
    template = path.parent / "t.jinja"
    template.write_text("{{ messages }}")
    given: Any = str(template) if option == "chat_template" else value
    settings = AddSettings(data=(str(path),), pair_set="r", tokenizer=model_dir, **{option: given})

    name = option.replace("_", "-")
    with pytest.raises(SourceError, match=f"--{name} has no effect on pairs"):
        add_pairs(store, plan_add(store, settings))


def test_a_list_goes_on_in_the_next_chunk(
    store: Store, model_dir: Path, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offpref.pipeline.adding.reading.CHUNK_ROWS", 2)
    rows = [
        {"prompt": PROMPT, "response": text, "helpfulness": score}
        for text, score in (("good", 4), ("bad", 1), ("fine", 3))
    ]
    add(store, write_rows(rows), model_dir)
    assert lists_of(store) == [[("good", 4.0), ("fine", 3.0), ("bad", 1.0)]]


def test_what_a_list_leaves_out_is_counted_and_a_short_one_is_a_reject(
    store: Store, model_dir: Path, write_rows: Write
) -> None:
    rows = [
        {"prompt": PROMPT, "responses": ["good", "", "bad", "fine"], "scores": [1, 2, 3, None]},
        {"prompt": PROMPT, "responses": ["good", "bad", "fine"], "scores": [1, 2]},
        {"prompt": PROMPT, "responses": ["good", " "], "scores": [1, 2]},
        {"prompt": 7, "responses": ["good", "bad"], "scores": [1, 2]},
        {"prompt": PROMPT, "responses": "good", "scores": [1]},
    ]

    found = add(store, write_rows(rows), model_dir)

    assert [[text for text, _ in each] for each in lists_of(store)] == [
        ["bad", "good"], ["bad", "good"],
    ]  # fmt: skip
    assert other_counts(store, found) == {
        "lists": 2,
        "completions of lists that are left out: no score": 2,
        "completions of lists that are left out: chosen: empty completion": 2,
    }
    assert reject_counts(store, found) == {
        "list: fewer than two completions that can be used": 1,
        "prompt: expected text, got a number": 1,
        "list: expected a list of completions, got text": 1,
    }


def test_best_of_sixteen_real_samples(store: Store, shared: Path) -> None:
    """Scores are there for the first eleven of each sixteen; of four prompts all are equal."""
    found = add(
        store, shared / "data/prefs/bon16_tulu2.jsonl.gz", shared / "models/stories260k",
        score_column="gpt4_win_vs_gpt35",
    )  # fmt: skip

    rows = store.read("lists").to_pylist()
    assert (found.num_rows, found.num_rejects, len(rows)) == (561, 4, 557)
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)
    counts = other_counts(store, found)
    assert counts["completions of lists that are left out: no score"] == 561 * 5
