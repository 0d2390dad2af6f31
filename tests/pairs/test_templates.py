"""What a chat template is given and writes: tools, arguments, calls, boundaries and turns."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizer_kinds import write_kind
from transformers import AutoTokenizer

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.pairs.pair_sets import PairSet, other_counts, reject_counts
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model, write_tokenizer
from offpref.stores.errors import ModelError, SourceError
from offpref.stores.store import Store

Write = Callable[..., Path]
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>"
    "{% endfor %}{% endif %}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
USER = {"role": "user", "content": "in Paris?"}
YES, NO = {"role": "assistant", "content": "sunny"}, {"role": "assistant", "content": "no"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with ChatML's tokens and a template that writes tools and calls."""
    folder = write_kind(tmp_path_factory.mktemp("chatml"), "byte-level")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def add(store: Store, data: Path, folder: Path, **options: Any) -> PairSet:
    settings = AddSettings(data=(str(data),), pair_set="p", tokenizer=folder, **options)
    found, _ = add_pairs(store, plan_add(store, settings))
    store.refresh()
    return found


def texts_of(store: Store, folder: Path) -> set[tuple[str, str]]:
    """Prompt and completion of each sequence, decoded by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = store.read("sequences").to_pylist()
    parts = [(row["ids"][: row["num_prompt_tokens"]], row["ids"][row["num_prompt_tokens"] :])
             for row in rows]  # fmt: skip
    return {(tokenizer.decode(prompt), tokenizer.decode(rest)) for prompt, rest in parts}


def written(
    folder: Path, prompt: list[Any], completion: list[Any], **given: Any
) -> tuple[str, str]:
    """The same as TRL makes it: both renderings, the second one cut where the first one ends."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True, **given
    )
    whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False, **given)
    assert whole.startswith(before)
    return before, whole[len(before) :]


@pytest.mark.parametrize("spelled", [TOOLS, json.dumps(TOOLS)], ids=["list", "text"])
def test_tools_are_rendered(spelled: object, store: Store, folder: Path, write_rows: Write) -> None:
    row = {"prompt": [USER], "chosen": [YES], "rejected": [NO], "tools": spelled}

    found = add(store, write_rows([row]), folder)

    expected = {written(folder, [USER], [each], tools=TOOLS) for each in (YES, NO)}
    assert texts_of(store, folder) == expected
    assert "weather" in next(iter(expected))[0]
    assert found.form == "pairs (messages): prompt, chosen, rejected, tools"


def test_arguments_of_the_template_are_a_rows_or_for_all_and_name_the_version(
    store: Store, folder: Path, write_rows: Write
) -> None:
    row = {"prompt": [USER], "chosen": [NO], "rejected": [YES]}
    plain = "<|im_start|>user\nin Paris?<|im_end|>\n<|im_start|>assistant\n"
    given = row | {"chat_template_kwargs": {"enable_thinking": True}}
    data = write_rows([row, given])

    found = add(store, data, folder, chat_template_kwargs='{"enable_thinking": false}')

    # The template leaves the empty block out of what was said before: the completion's ids begin
    # where both renderings part.
    prompts = {prompt for prompt, _ in texts_of(store, folder)}
    assert prompts == {plain}
    assert other_counts(store, found) == {
        "completions that begin where the ids of prompt and whole part": 2
    }
    assert add(store, data, folder).fingerprint != found.fingerprint


def test_calls_without_content_are_messages(store: Store, folder: Path, write_rows: Write) -> None:
    template = folder / "chat_template.jinja"
    assert template.is_file()
    call: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    rows = [
        {"prompt": [USER], "chosen": [{**call, "content": None}], "rejected": [NO]},
        {"prompt": [USER, call, {"role": "tool", "content": "sun"}], "chosen": [YES],
         "rejected": [NO]},
    ]  # fmt: skip

    found = add(store, write_rows(rows), folder)

    assert (found.num_pairs, found.num_rejects) == (2, 0)
    said = '<call>{"name": "weather", "arguments": {"city": "Paris"}}</call><|im_end|>\n'
    assert said in {completion for _, completion in texts_of(store, folder)}


def test_parquet_gives_the_ids_of_json_lines(
    folder: Path, tmp_path: Path, write_rows: Write
) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    add_call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    other = {"role": "assistant", "content": "", "tool_calls": [add_call]}
    rows = [
        {"prompt": [USER], "chosen": [call], "rejected": [NO]},
        {"prompt": [USER], "chosen": [other], "rejected": [NO]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    lines, columns = Store.create(tmp_path / "lines"), Store.create(tmp_path / "columns")

    add(lines, write_rows(rows), folder)
    add(columns, tmp_path / "rows.parquet", folder)

    keys = [
        sorted(store.read("sequences")["sequence_key"].to_pylist()) for store in (lines, columns)
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("content", ["", "  \n", None])
def test_an_empty_last_turn_is_an_empty_completion(
    content: str | None, store: Store, folder: Path, write_rows: Write
) -> None:
    empty = {"role": "assistant", "content": content}
    rows = [
        {"prompt": [USER], "chosen": [YES], "rejected": [empty]},
        {"prompt": [USER], "chosen": [YES, USER, empty], "rejected": [NO]},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    ]

    found = add(store, write_rows(rows), folder)

    assert reject_counts(store, found) == {
        "rejected: empty completion": 1, "chosen: empty completion": 1,
    }  # fmt: skip


def test_content_in_parts_is_their_text(store: Store, folder: Path, write_rows: Write) -> None:
    parts = {"role": "assistant", "content": [{"type": "text", "text": "sun"},
                                              {"type": "text", "text": "ny"}]}  # fmt: skip
    image = {"role": "user", "content": [{"type": "image"}]}
    rows = [
        {"prompt": [USER], "chosen": [parts], "rejected": [NO]},
        {"prompt": [image], "chosen": [YES], "rejected": [NO]},
    ]

    found = add(store, write_rows(rows), folder)

    assert written(folder, [USER], [YES]) in texts_of(store, folder)
    assert reject_counts(store, found) == {"prompt: expected messages whose content is text": 1}


def test_a_template_may_be_given(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    row = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    data = write_rows([row])
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")

    own = add(store, data, folder)
    given = add(store, data, folder, chat_template=str(other))

    assert ("[in Paris?]", "[sunny]") in texts_of(store, folder)
    assert own.fingerprint != given.fingerprint
    with pytest.raises(ModelError, match="expected a file with a chat template, found none"):
        add(store, data, folder, chat_template="no/such.jinja")
    with pytest.raises(ModelError, match="expected a chat template called 'rag'"):
        add(store, data, folder, chat_template="rag")


def test_a_named_template_of_the_tokenizer(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "additional_chat_templates").mkdir()
    named = "{% for m in messages %}({{ m.content }}){% endfor %}"
    (copy / "additional_chat_templates/short.jinja").write_text(named)
    data = write_rows([{"prompt": [USER], "chosen": [YES], "rejected": [NO]}])

    add(store, data, copy, chat_template="short")

    assert ("(in Paris?)", "(sunny)") in texts_of(store, copy)


def test_texts_become_turns_where_asked(store: Store, folder: Path, write_rows: Write) -> None:
    row = {"system": "Be nice", "question": "in Paris?", "chosen": "sunny", "rejected": "no"}

    add(store, write_rows([row]), folder, apply_chat_template=True)

    system = {"role": "system", "content": "Be nice"}
    assert texts_of(store, folder) == {written(folder, [system, USER], [x]) for x in (YES, NO)}


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}<think>{% endif %}"
)


def test_completion_begins_where_the_renderings_part(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    data = write_rows([{"prompt": [USER], "chosen": [YES], "rejected": [NO]}])

    found = add(store, data, folder, chat_template=str(template))

    prompt = "<|im_start|>user\nin Paris?<|im_end|>\n<|im_start|>assistant\n"
    assert texts_of(store, folder) == {
        (prompt, "sunny<|im_end|>\n"), (prompt, "no<|im_end|>\n"),
    }  # fmt: skip
    assert other_counts(store, found) == {
        "completions that begin where the ids of prompt and whole part": 2
    }


def spans_of(store: Store, folder: Path) -> list[list[tuple[str, str]]]:
    """The text and the role of each span of each completion."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sequences = {row["sequence_key"]: row for row in store.read("sequences").to_pylist()}
    found = []
    for row in store.read("spans").to_pylist():
        sequence = sequences[row["sequence_key"]]
        ids = sequence["ids"][sequence["num_prompt_tokens"] :]
        spans = zip(row["starts"], row["ends"], row["roles"], strict=True)
        found.append([(tokenizer.decode(ids[start:end]), role) for start, end, role in spans])
    return sorted(found)


def test_spans_tell_whose_turn_each_token_is(store: Store, folder: Path, write_rows: Write) -> None:
    tool = {"role": "tool", "content": "sun"}
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    again = {"role": "user", "content": "sure?"}
    rows = [{"prompt": [USER], "chosen": [call, tool, YES, again, YES], "rejected": [NO]}]

    add(store, write_rows(rows), folder)

    calls = '<call>{"name": "weather", "arguments": {"city": "Paris"}}</call><|im_end|>\n'
    assert spans_of(store, folder) == [
        [
            (calls, "assistant"),
            ("<|im_start|>tool\nsun<|im_end|>\n", "tool"),
            ("sunny<|im_end|>\n", "assistant"),
            ("<|im_start|>user\nsure?<|im_end|>\n", "user"),
            ("sunny<|im_end|>\n", "assistant"),
        ],
        [("no<|im_end|>\n", "assistant")],
    ]


def test_spans_tell_turns_where_the_renderings_part(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    more = {"role": "user", "content": "and Rome?"}
    rows = [{"prompt": [USER], "chosen": [YES, more, NO], "rejected": [NO, more, YES]}]

    add(store, write_rows(rows), folder, chat_template=str(template))

    asked = ("<|im_start|>user\nand Rome?<|im_end|>\n", "user")
    sunny, no = ("sunny<|im_end|>\n", "assistant"), ("no<|im_end|>\n", "assistant")
    assert spans_of(store, folder) == [[no, asked, sunny], [sunny, asked, no]]


RETURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}|{{ m.content }}"
    "{{ '</s>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant|{% endif %}"
)


def test_a_turn_ends_where_the_next_ones_header_begins(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    template = tmp_path / "returns.jinja"
    template.write_text(RETURNS)
    rows = [{"prompt": [USER], "chosen": [YES, USER, NO], "rejected": [NO, USER, NO]}]

    add(store, write_rows(rows), folder, chat_template=str(template))

    asked, last = ("<|im_start|>user|in Paris?<|im_end|>", "user"), ("no</s>", "assistant")
    assert spans_of(store, folder) == [
        [("no<|im_end|>", "assistant"), asked, last],
        [("sunny<|im_end|>", "assistant"), asked, last],
    ]


BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)


def test_a_token_that_begins_in_the_templates_own_text_is_its_turns(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    template = tmp_path / "brackets.jinja"
    template.write_text(BRACKETS)
    say, answer = {"role": "user", "content": "say"}, {"role": "assistant", "content": "answer"}
    rows = [{"prompt": [USER], "chosen": [answer, say, answer], "rejected": [answer, say, NO]}]

    add(store, write_rows(rows), folder, chat_template=str(template))

    first, asked = (" answer </s>", "assistant"), ("[say]", "user")
    assert spans_of(store, folder) == [
        [first, asked, (" answer </s>", "assistant")], [first, asked, ("no </s>", "assistant")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "more", "reason"),
    [
        (BRACKETS, {"tools": TOOLS}, "chat template: it does not write tools"),
        (BRACKETS, {"chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]},
         "chat template: it does not write tool_calls"),
        ("{% for m in messages %}{% if loop.last %}{{ tools }}{% endif %}[{{ m.content }}]"
         "{% endfor %}", {"tools": TOOLS}, "chat template: writes another prompt before"),
    ],
)  # fmt: skip
def test_what_a_template_does_not_write_is_a_reason(
    template: str, more: dict[str, Any], reason: str, store: Store, folder: Path,
    write_rows: Write, tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "own.jinja"
    path.write_text(template)
    row = {"prompt": [USER], "chosen": [YES], "rejected": [NO]} | more
    with pytest.raises(SourceError, match=reason):
        add(store, write_rows([row]), folder, chat_template=str(path))


def test_an_argument_that_the_template_does_not_use_is_an_error(
    store: Store, folder: Path, write_rows: Write
) -> None:
    data = write_rows([{"prompt": [USER], "chosen": [YES], "rejected": [NO]}])
    with pytest.raises(ModelError, match="enable_thinkin has no effect, the chat template"):
        add(store, data, folder, chat_template_kwargs='{"enable_thinkin": false}')


def test_spans_survive_a_template_that_rewrites_what_was_said(
    store: Store, folder: Path, write_rows: Write, tmp_path: Path
) -> None:
    """As Qwen 3's, which writes an empty thought before the last answer only."""
    template = tmp_path / "last.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}"
        "<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    )
    again = {"role": "user", "content": "sure?"}
    rows = [{"prompt": [USER], "chosen": [YES, again, YES], "rejected": [NO, again, NO]}]

    add(store, write_rows(rows), folder, chat_template=str(template))

    assert [role for _, role in spans_of(store, folder)[0]] == ["assistant", "user", "assistant"]
    assert spans_of(store, folder)[1] == [
        ("sunny<|im_end|>\n", "assistant"),
        ("<|im_start|>user\nsure?<|im_end|>\n", "user"),
        ("<think></think>sunny<|im_end|>\n", "assistant"),
    ]


def test_dialogues_that_part_early_are_trajectories(
    store: Store, folder: Path, write_rows: Write
) -> None:
    again = {"role": "user", "content": "sure?"}
    row = {"chosen": [USER, YES, again, YES], "rejected": [USER, NO, again, YES]}

    found = add(store, write_rows([row]), folder)

    assert found.num_pairs == 1
    expected = {written(folder, [USER], [x, again, YES]) for x in (YES, NO)}
    assert texts_of(store, folder) == expected


def test_a_conversation_is_one_turn_or_a_trajectory(
    store: Store, folder: Path, write_rows: Write
) -> None:
    again = {"role": "user", "content": "sure?"}
    data = write_rows([{"messages": [USER, YES, again, NO]}])

    last = add(store, data, folder)
    whole = add(store, data, folder, trajectory=True)

    assert texts_of(store, folder) == {
        written(folder, [USER, YES, again], [NO]), written(folder, [USER], [YES, again, NO]),
    }  # fmt: skip
    assert last.fingerprint != whole.fingerprint


def test_no_usable_row_is_an_error_with_reasons(
    store: Store, folder: Path, write_rows: Write
) -> None:
    row = {"prompt": [USER], "chosen": [YES], "rejected": [YES]}
    with pytest.raises(SourceError, match=r"rejected all 1: 1 chosen equals rejected .*row 0\)"):
        add(store, write_rows([row]), folder)


def test_tools_are_rendered_for_each_pair_of_a_grid(
    store: Store, folder: Path, write_rows: Write
) -> None:
    row = {"prompt": "in Paris?", "chosen": ["sunny"], "rejected": ["no", "rain"], "tools": TOOLS}

    found = add(store, write_rows([row]), folder, apply_chat_template=True)

    assert found.num_pairs == 2
    assert written(folder, [USER], [YES], tools=TOOLS) in texts_of(store, folder)
    assert all("weather" in prompt for prompt, _ in texts_of(store, folder))


def test_a_given_template_is_not_compared_with_the_models_own(
    store: Store, write_rows: Write, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_model(model, vocab_size=write_tokenizer(model), seed=0)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {% endfor %}"
    )
    given = tmp_path / "given.jinja"
    given.write_text("{% for m in messages %}<s> {{ m.content }} {% endfor %}")
    row = {"prompt": [USER], "chosen": [{**YES, "content": "good"}],
           "rejected": [{**NO, "content": "bad"}]}  # fmt: skip
    add(store, write_rows([row]), model, chat_template=str(given))

    done = score(store, ScoreSettings(pair_set="p", model=model))

    assert done.num_new == 2
