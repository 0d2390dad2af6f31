"""The reference of the commands, made of the commands themselves: one page for each."""

from collections.abc import Iterator

import click

from offpref.pipeline.commands.main import main
from offpref.pipeline.commands.stages import STAGES
from offpref.pipeline.settings import SECTIONS

OTHERS = "Common to commands"
STEM = "commands"


def commands() -> dict[str, click.Command]:
    """Return every command that does something, by its whole name without `offpref`."""
    return dict(_leaves(main, ""))


def command_pages() -> dict[str, str]:
    """Return the text of each page by its name: the list of commands, and a page for each of them.

    The commands of a group share its page.
    """
    found: dict[str, list[str]] = {}
    for name, command in commands().items():
        page = name.partition(" ")[0]
        level = "#" if page == name else "##"
        found.setdefault(page, []).append(_section(name, command, level))
    pages = {}
    for page, sections in found.items():
        group = main.commands[page]
        head = f"# offpref {page}\n\n{_text(group)}\n\n" if isinstance(group, click.Group) else ""
        pages[f"{STEM}/{page}.md"] = head + "\n".join(sections)
    return {f"{STEM}.md": _list(), **pages}


def options(command: click.Command) -> list[click.Option]:
    """Return the options of a command that its full help shows."""
    return [each for each in command.params if isinstance(each, click.Option) and not each.hidden]


def _leaves(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _list() -> str:
    lines = [
        "# Commands",
        "",
        "Every command with all of its options, as its `--help-all` has them.",
        "",
    ]
    for stage, sentences in STAGES.items():
        lines += [f"## {stage}", "", "| command | what it does |", "|---|---|"]
        lines += [
            f"| [`offpref {name}`]({STEM}/{name}.md) | {sentence} |"
            for name, sentence in sentences.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _section(name: str, command: click.Command, level: str) -> str:
    ctx = click.Context(command, info_name=f"offpref {name}")
    usage = " ".join((ctx.command_path, *command.collect_usage_pieces(ctx)))
    lines = [f"{level} offpref {name}", "", _text(command), "", "```text", usage, "```", ""]
    sections: dict[str, list[click.Option]] = {}
    for each in options(command):
        sections.setdefault(getattr(each, "section", None) or OTHERS, []).append(each)
    order = [title for title in (*SECTIONS, OTHERS) if title in sections]
    assert set(order) == set(sections), set(sections) - set(order)
    for title in order:
        if len(order) > 1:
            lines += [f"{level}# {title}", ""]
        lines += ["| option | meaning |", "|---|---|"]
        for each in sections[title]:
            shown, meaning = each.get_help_record(ctx) or ("", "")
            lines.append(f"| `{_cell(shown)}` | {escaped(' '.join(meaning.split()))} |")
        lines.append("")
    return "\n".join(lines)


def _text(command: click.Command) -> str:
    paragraphs = (command.help or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(escaped(" ".join(each.split())) for each in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split())  # a bar in code divides no cells


def escaped(text: str) -> str:
    r"""Return the text of a help as Markdown that shows it letter by letter, also in a table.

    >>> escaped("a|b of <NAME>, x_1")
    'a\\|b of &lt;NAME>, x\\_1'
    """
    for sign in ("\\", "*", "_", "|", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("<", "&lt;")
