import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from offpref.pipeline.adding.examples import Examples, read_examples
from offpref.pipeline.adding.forms import find_form
from offpref.stores.errors import SourceError
from offpref.stores.sources import read_rows, source_files

Write = Callable[..., Path]
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
OTHER = {"role": "assistant", "content": "no"}
DIALOGUE = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


def examples(path: Path, named: Mapping[str, str] | None = None) -> Examples:
    (rows,) = read_rows(source_files(str(path))[0])
    return read_examples(rows, find_form(rows, named or {}))


@pytest.mark.parametrize(
    ("row", "form", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "pairs (text)", "p", "c", "r"),
        ({"chosen": DIALOGUE + " x", "rejected": DIALOGUE + " xy"}, "implicit pairs (text)",
         DIALOGUE, " x", " xy"),
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]}, "pairs (messages)",
         [USER], [ASSISTANT], [OTHER]),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "implicit pairs (messages)",
         [USER], [ASSISTANT], [OTHER]),
        ({"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
         "implicit pairs (messages)", [USER], [ASSISTANT], [OTHER]),
        ({"conversations": [{"from": "human", "value": "hi"}],
          "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}},
         "pairs (messages)", [USER], [ASSISTANT], [OTHER]),
        ({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}, "pairs (ids)",
         [1, 2], [3], [4]),
        ({"prompt": [1, 2], "chosen": [3], "rejected": [4]}, "pairs (ids)", [1, 2], [3], [4]),
        ({"prompt": "p", "completion": "c"}, "demonstrations (text)", "p", "c", None),
        ({"messages": [USER, ASSISTANT]}, "demonstrations (messages)", [USER], [ASSISTANT], None),
        ({"prompt": "p", "completion": "c", "label": True}, "unpaired (text)", "p", "c", None),
        ({"prompt": "p", "completion": "c", "label": 0}, "unpaired (text)", "p", None, "c"),
        ({"messages": [USER, ASSISTANT], "label": False}, "unpaired (messages)",
         [USER], None, [ASSISTANT]),
    ],
)  # fmt: skip
def test_every_form_is_found_and_read(
    row: object, form: str, prompt: object, chosen: object, rejected: object, write_rows: Write
) -> None:
    found = examples(write_rows([row]))

    assert found.problem == [None]
    assert str(found.form).startswith(form + ":")
    assert (found.prompt, found.chosen, found.rejected) == ([prompt], [chosen], [rejected])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": True}, "chosen: expected text, got a boolean"),
        ({"rejected": 3}, "rejected: expected text, got a number"),
        ({"prompt": None}, "prompt: expected text, got null"),
        ({"chosen": ["a"]}, "chosen: expected text, got a list"),
        ({"weight": "heavy"}, "weight: expected a number of at least 0"),
        ({"weight": -1}, "weight: expected a number of at least 0"),
    ],
)
def test_wrong_value_is_a_reason_and_the_other_rows_go_on(
    row: dict[str, object], reason: str, write_rows: Write
) -> None:
    good = {"prompt": "p", "chosen": "c", "rejected": "r", "weight": 2}

    found = examples(write_rows([good, good | row, good]))

    assert found.problem == [None, reason, None]
    assert found.weight[0] == 2.0


def test_missing_member_is_a_reason(write_rows: Write) -> None:
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": "c"}]
    assert examples(write_rows(rows)).problem[1] == "rejected: expected text, got nothing"


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (DIALOGUE + " x", DIALOGUE + " y\n\nHuman: d\n\nAssistant: z"),  # part a turn earlier
        (DIALOGUE + " x", DIALOGUE.replace("a", "A") + " y"),  # another prompt
        ("x", "y"),  # no turns at all
    ],
)
def test_dialogues_that_part_before_their_last_turn_are_rejected(
    chosen: str, rejected: str, write_rows: Write
) -> None:
    found = examples(write_rows([{"chosen": chosen, "rejected": rejected}]))
    assert found.problem == ["chosen and rejected do not share the dialogue before the last turn"]


def test_label_that_is_no_label_is_a_reason(write_rows: Write) -> None:
    found = examples(write_rows([{"prompt": "p", "completion": "c", "label": "perhaps"}]))
    assert found.problem == ["label: expected true or false"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user"}], "prompt: expected messages with role and content"),
        ([{"role": "user", "content": None}], "prompt: expected messages with role and content"),
        (["hi"], "prompt: expected messages, got a list of something else"),
        (7, "prompt: expected messages, got a number"),
    ],
)
def test_messages_that_are_none_are_a_reason(
    messages: object, reason: str, write_rows: Write
) -> None:
    good = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]}
    assert examples(write_rows([good, good | {"prompt": messages}])).problem == [None, reason]


def test_columns_can_be_named_and_the_others_are_kept(write_rows: Write) -> None:
    row = {"instruction": "p", "good": "c", "bad": "r", "annotator": 2, "source": "web"}
    named = {"prompt": "instruction", "chosen": "good", "rejected": "bad"}

    found = examples(write_rows([row]), named)

    assert (found.prompt, found.chosen, found.rejected) == (["p"], ["c"], ["r"])
    assert json.loads(str(found.rest[0])) == {"annotator": 2, "source": "web"}


def test_unknown_columns_are_listed(write_rows: Write) -> None:
    with pytest.raises(SourceError, match="got: a, q"):
        examples(write_rows([{"q": "q", "a": "a"}]))
    with pytest.raises(SourceError, match="expected a column called 'good'"):
        examples(write_rows([{"prompt": "p"}]), {"chosen": "good"})
