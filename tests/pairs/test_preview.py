"""`add --preview` shows rows as they would be scored, and writes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizer_kinds import write_kind

from offpref.pipeline.adding.preview import preview_rows
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main

Write = Callable[..., Path]


def invoke(folder: Path, data: Path, store: Path, number: int = 2) -> str:
    result = CliRunner().invoke(
        main,
        ["add", str(store), "--data", str(data), "--pair-set", "p", "--tokenizer", str(folder),
         "--preview", str(number)],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0
    return result.output


def test_tokens_are_shown_and_nothing_is_written(tmp_path: Path, write_rows: Write) -> None:
    folder = write_kind(tmp_path / "tokenizer", "metaspace first")
    rows = [
        {"prompt": "Once upon a time", "chosen": " Lily", "rejected": ""},
        {"prompt": "Once upon a time", "chosen": "It is", "rejected": " Lily"},
        {"prompt": "never", "chosen": "shown", "rejected": "here"},
    ]

    shown = invoke(folder, write_rows(rows), tmp_path / "store")

    assert not (tmp_path / "store").exists()
    assert "row        0 of" in shown
    assert "rejected: empty completion" in shown
    chosen = next(line for line in shown.splitlines() if line.startswith("  chosen"))
    assert "".join(chosen.partition("|")[2].split("|")) == "It is</s>"
    assert "never" not in shown


def test_turns_of_others_are_marked(tmp_path: Path, write_rows: Write) -> None:
    folder = write_kind(tmp_path / "tokenizer", "byte-level")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = [{"role": role, "content": content} for role, content in (
        ("user", "say 1"), ("assistant", "1"), ("user", "and 2"), ("assistant", "42"),
        ("assistant", "no"))]  # fmt: skip
    row = {"prompt": turns[:1], "chosen": turns[1:4], "rejected": turns[4:]}
    settings = AddSettings(data=(str(write_rows([row])),), pair_set="p", tokenizer=folder)

    (found,) = preview_rows(settings, 1)
    shown = invoke(folder, Path(settings.data[0]), tmp_path / "store", 1)

    roles: dict[str | None, str] = {}
    for token in found.parts[1].tokens:
        roles[token.role] = roles.get(token.role, "") + token.text
    assert roles == {"assistant": "142", "user": "[user]and 2", None: "[assistant]"}
    assert "|(user)|" in shown
    assert "|(template)|" in shown


def test_control_characters_of_the_data_are_spelled(tmp_path: Path, write_rows: Write) -> None:
    folder = write_kind(tmp_path / "tokenizer", "byte-level")
    data = write_rows([{"prompt": "\x1b[31m red", "chosen": "a", "rejected": "b"}])
    shown = invoke(folder, data, tmp_path / "store")
    assert "\x1b" not in shown
    assert "\\x1b" in shown


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_a_wrong_number_is_wrong_usage(number: str, tmp_path: Path) -> None:
    words = ["add", str(tmp_path), "--data", "x", "--pair-set", "p", "--tokenizer", "t"]
    assert CliRunner().invoke(main, [*words, "--preview", number]).exit_code == 2
