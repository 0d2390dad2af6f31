"""The examples in the pages: every block of code, and what a page says about how it is tested.

An example is run (`page_sessions.py`) unless the page says that it is not, in a comment that no
reader sees, directly above the block or directly below a heading, for its whole section:

    <!-- not run: why nobody could run it here -->
    <!-- checked by tests/some/test_file.py: what is checked there -->

Indented blocks are not run: what they say `offpref` takes is checked against its options.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from offpref.pipeline.commands.main import main

ROOT = Path(__file__).parents[2]
RUN = ("console", "python", "sql", "toml", "yaml")
"""Languages whose blocks are run, or written where the ones after them read them."""
OTHERS = ("csv", "json", "text", "tree")
MIN_REASON_WORDS = 4

_DECLARATION = re.compile(
    r"<!-- (not run|checked by (?P<test>tests/\S+\.py)): (?P<reason>.+?) -->", re.S
)
_FILE = re.compile(r"(?:#|--) ([\w-]+\.(?:py|sql|toml|yaml))\b")
_INLINE = re.compile(r"(?<!`)`(offpref [^`\n]+|--[a-z][^`\n]*)`(?!`)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """Why a block is not run."""

    test: str | None
    """The test that checks it, as a path from the root; None if none can."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A block of code of a page."""

    page: str
    """The page, as a path from the root."""
    line: int
    language: str
    """As the fence names it; "indented" for one without a fence."""
    text: str
    declared: Declaration | None

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """Name of the file that the block is the text of, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def page_paths() -> list[str]:
    """Return every page of the repository that readers see, as a path from the root."""
    top = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
    return [*top, *sorted(each.relative_to(ROOT).as_posix() for each in ROOT.glob("docs/*.md"))]


def tokens(page: str) -> list[Token]:
    """Return the parts of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of code of a page in their order."""
    before: Token | None = None
    sections: list[tuple[int, Declaration | None]] = []
    level = 0
    for token in tokens(page):
        if token.type == "heading_open":
            level = int(token.tag[1:])
            sections = [each for each in sections if each[0] < level]
        elif token.type == "html_block" and before is not None and before.type == "heading_close":
            sections.append((level, declaration(token.content)))
        elif token.type in ("fence", "code_block"):
            above = declaration(before.content) if before and before.type == "html_block" else None
            of_sections = next((each for _, each in reversed(sections) if each), None)
            yield Block(
                page=page, line=(token.map or [0])[0] + 1, text=token.content,
                language=token.info.strip() if token.type == "fence" else "indented",
                declared=above or of_sections,
            )  # fmt: skip
        before = token


def declaration(text: str) -> Declaration | None:
    """Return what a comment says of the block or the section that it stands above."""
    found = _DECLARATION.match(text.strip())
    return Declaration(test=found["test"], reason=found["reason"]) if found else None


def commands_of(session: str) -> list[tuple[str, str]]:
    """Return each command of a console's session and what it is shown to print.

    >>> commands_of("$ a\\nx\\ny\\n$ b\\n")
    [('a', 'x\\ny'), ('b', '')]
    """
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n?", session, flags=re.MULTILINE)[1:]
    return [
        (command, shown.strip()) for command, shown in zip(parts[::2], parts[1::2], strict=True)
    ]


def usages(page: str) -> Iterator[tuple[str, str]]:
    """Yield where a page names a command or an option in passing, and the words."""
    for block in blocks(page):
        if block.language == "indented":
            for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
                found = re.search(r"(?<![\w./-])offpref (?!store\w)[a-z].*", line)
                if found and not line.lstrip().startswith("#"):
                    yield block.where, found[0].partition("  #")[0]
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("    "):
            for found in _INLINE.finditer(line):
                yield f"{page}:{number}", found[1].replace("\\|", "|")


def complaint(words: str) -> str | None:
    """Return what is wrong with a usage: an unknown command, option or choice; else None."""
    try:
        parts = [each for each in shlex.split(words) if each not in ("...", "…")]
    except ValueError:
        return None  # a quotation that goes on in the next line
    parts = parts[: next((n for n, each in enumerate(parts) if each in (">", "|")), None)]
    if parts[0] != "offpref":
        return None if _is_option(parts[0].partition("=")[0].rstrip(",.")) else "unknown option"
    command: click.Command = main
    rest = parts[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.commands.get(rest[0])
        if found is None:
            return f"unknown command {rest[0]}"
        command, rest = found, rest[1:]
    ctx = click.Context(command, info_name="offpref")
    try:
        given, _, _ = command.make_parser(ctx).parse_args(args=list(rest))
    except click.BadOptionUsage:
        return None  # named without its value
    except click.UsageError as error:
        return error.format_message()
    return next(filter(None, (_wrong_choice(each, given) for each in command.params)), None)


def _wrong_choice(option: click.Parameter, given: Mapping[str, object]) -> str | None:
    """Return which value is not a choice of an option: words in capitals stand for any of them."""
    values = given.get(str(option.name))
    if not isinstance(option.type, click.Choice):
        return None
    written = values if isinstance(values, list) else [values]
    for value in [each for words in written if isinstance(words, str) for each in words.split("|")]:
        if value not in option.type.choices and not value.isupper() and ":" not in value:
            return f"{value!r} is not one of {', '.join(option.type.choices)}"
    return None


def _is_option(name: str) -> bool:
    def known(command: click.Command) -> set[str]:
        own = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        below = command.commands.values() if isinstance(command, click.Group) else ()
        return own.union({"--help"}, *map(known, below))

    return name in known(main)
