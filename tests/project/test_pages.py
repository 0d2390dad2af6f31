"""What the pages promise: every link leads somewhere, every example is run, the site has it all."""

import doctest
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import page_blocks
import pytest
import site_api
import site_commands
import site_pages
import yaml
from markdown_it.token import Token
from page_blocks import (
    MIN_REASON_WORDS,
    OTHERS,
    ROOT,
    RUN,
    blocks,
    complaint,
    page_paths,
    tokens,
    usages,
)
from site_api import kernel_members, python_members
from site_commands import command_pages, commands, escaped, options
from site_notebooks import notebook_page
from site_pages import (
    ELSEWHERE,
    is_address,
    linked_file,
    links,
    pages,
    site_path,
    with_site_links,
    write_pages,
)

import offpref
from offpref.kernels import linear
from offpref.stores.query.views import view_names
from offpref.stores.schema import TABLES

MEANT_TO_BE_WRONG = ("--lr", "--ref-model")
"""Options in the pages that are there because offpref knows what was meant by them."""
DOCS_TABLE = re.compile(r"\]\((docs/[\w/]+\.(?:md|ipynb))\)")


def anchors(text_tokens: list[Token]) -> list[str]:
    """Return the anchors of a page's headings as GitHub and the site make them."""
    return [
        re.sub(r"[^\w\- ]", "", following.content.replace("`", "").lower()).replace(" ", "-")
        for token, following in pairwise(text_tokens)
        if token.type == "heading_open"
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the site, written as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    write_pages(folder)
    return folder


@pytest.fixture(scope="module")
def navigation() -> list[str]:
    """The pages that mkdocs.yml lists, in their order."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = yaml.safe_load(re.sub(r"!!python/\S+", "", text))["nav"]

    def leaves(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        below = entry.values() if isinstance(entry, dict) else entry
        assert isinstance(below, list | type({}.values()))
        return [leaf for each in below for leaf in leaves(each)]

    return leaves(entries)


@pytest.mark.parametrize("page", pages())
def test_links_and_anchors_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = notebook_page(ROOT / page) if page.endswith(".ipynb") else text

    for target in filter(lambda each: not is_address(each), links(text)):
        path = ROOT / linked_file(page, target)
        assert path.exists(), f"{page}: no {target}"
        anchor = target.partition("#")[2]
        if anchor:
            found = anchors(tokens(path.relative_to(ROOT).as_posix()))
            assert found.count(anchor) == 1, (
                f"{page}: {target} is there {found.count(anchor)} times"
            )


def test_links_of_the_site_lead_to_its_own_pages(site: Path) -> None:
    for path in site.rglob("*.md"):
        if path.relative_to(site).parts[0] == "source":
            continue
        for target in links(path.read_text(encoding="utf-8")):
            name = target.partition("#")[0]
            assert is_address(target) or (path.parent / name).exists(), f"{path}: {target}"


def test_links_in_code_and_addresses_stay_as_they_are() -> None:
    text = (
        "[a](../tests/conftest.py) `[b](c.md)` [d](https://example.org/x.md)\n```\n[e](f.md)\n```\n"
    )

    turned = with_site_links("docs/data.md", text)

    assert turned == text.replace("../tests/conftest.py", "source/tests/conftest.py.md")
    assert with_site_links("README.md", "| `a\\|b` | c \\| d |") == "| `a|b` | c \\| d |"
    assert with_site_links("README.md", "[x](docs/data.md#y)") == "[x](data.md#y)"
    assert with_site_links("benchmarks/README.md", "[x](../docs/data.md)") == "[x](data.md)"


def test_navigation_lists_every_page_of_the_site_once(site: Path, navigation: list[str]) -> None:
    written = [each.relative_to(site).as_posix() for each in site.rglob("*.md")]

    assert Counter(navigation) == Counter(
        each for each in written if not each.startswith("source/")
    )


def test_readme_lists_every_page_of_the_documentation() -> None:
    listed = DOCS_TABLE.findall(
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## Documentation")[2]
    )

    assert sorted(listed) == sorted(page for page in pages() if page not in ELSEWHERE)


def test_every_public_name_of_python_has_its_docstring_in_the_reference(site: Path) -> None:
    page = (site / "reference/python.md").read_text(encoding="utf-8")
    members = {each.name: each for each in python_members()}

    expected = {f"offpref.{name}" for name in offpref.__all__ if name != "__version__"}
    for owner in ("OpenStore", "Pairs", "Run", "Scores", "AnswerTable", "Batches", "PairBatch"):
        names = dir(getattr(offpref, owner))
        expected |= {
            f"offpref.{owner}.{name}"
            for name in names
            if name[0] != "_" and callable(getattr(getattr(offpref, owner), name))
        }
    assert expected <= members.keys()
    assert [name for name, each in members.items() if not each.text] == []
    for name in members:
        short = name.rpartition(".")
        heading = name if not short[0].rpartition(".")[2][:1].isupper() else None
        shown = heading or f"{short[0].rpartition('.')[2]}.{short[2]}"
        assert f"# {shown.replace('_', chr(92) + '_')}\n" in page, name


def test_every_public_name_of_the_kernels_has_its_docstring_in_the_reference(site: Path) -> None:
    page = (site / "reference/kernels.md").read_text(encoding="utf-8")
    members = {each.name: each for each in kernel_members()}

    assert {f"offpref.kernels.linear.{name}" for name in linear.__all__} <= members.keys()
    assert [name for name, each in members.items() if not each.text] == []
    assert (
        "hidden: Tensor,  # [T, H]"
        in members["offpref.kernels.linear.linear_token_scores"].signature
    )
    assert all(each.signature in page for each in members.values())


def test_every_command_has_its_full_help_in_the_reference() -> None:
    text = "\n".join(command_pages().values())

    for name, command in commands().items():
        assert f"# offpref {name}\n" in text
        for option in options(command):
            assert f"{option.opts[-1]}" in text, (name, option.name)
            assert escaped(" ".join((option.help or "").split())) in text, (name, option.name)


def test_every_table_and_view_is_in_the_reference(site: Path) -> None:
    page = (site / "reference/tables.md").read_text(encoding="utf-8")

    for view in view_names():
        assert f"\n## {escaped(view)}\n" in page
    for table in TABLES.values():
        assert all(f"| `{each.name}` |" in page for each in table.schema)


@pytest.mark.parametrize("page", page_paths())
def test_every_example_is_run_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        if block.declared is not None:
            assert len(block.declared.reason.split()) >= MIN_REASON_WORDS, block.where
            if block.declared.test is not None:
                test = (ROOT / block.declared.test).read_text(encoding="utf-8")
                assert Path(page).name in test, (
                    f"{block.where}: {block.declared.test} does not read it"
                )
        elif block.language == "indented":
            begins_as_code = re.match(r"\s*(\$ |import |from \w+ import |>>> )", block.text)
            assert not begins_as_code, f"{block.where}: a session is a fenced block, which is run"
        else:
            assert block.language in RUN + OTHERS, f"{block.where}: {block.language!r} is not run"


@pytest.mark.parametrize("page", page_paths())
def test_pages_name_commands_options_and_choices_that_exist(page: str) -> None:
    wrong = [
        f"{where}: {words}: {problem}"
        for where, words in usages(page)
        if words not in MEANT_TO_BE_WRONG and (problem := complaint(words))
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("offpref scroe STORE", "unknown command scroe"),
        ("offpref train STORE --bata 0.1", "--bata"),
        ("offpref store verify --deep STORE", None),
        ("offpref score STORE --kernels torch|triton", None),
        ("offpref score STORE --kernels cuda", "'cuda' is not one of"),
        ("offpref train --mask", None),  # named without its value
        ("--learning-rate", None),
        ("--learnig-rate", "unknown option"),
    ],
)
def test_usages_that_are_wrong_are_found(words: str, problem: str | None) -> None:
    found = complaint(words)

    assert found is None if problem is None else found is not None and problem in found


@pytest.mark.parametrize("module", [page_blocks, site_api, site_commands, site_pages])
def test_examples_in_what_makes_and_reads_the_pages(module: ModuleType) -> None:
    found = doctest.testmod(module)

    assert found.attempted > 0
    assert found.failed == 0


def test_every_page_has_one_title_and_says_what_it_is() -> None:
    for page in page_paths():
        heads = [each for each in tokens(page) if each.type == "heading_open" and each.tag == "h1"]
        assert len(heads) == 1, page
    assert len({site_path(page) for page in pages()}) == len(pages())
