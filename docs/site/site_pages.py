"""The pages of the site, written into a folder from what the repository holds.

    python docs/site/site_pages.py FOLDER

Pages are the Markdown files of the repository with their links turned to the site's pages, the
notebooks, and the reference, which is made of docstrings, of the commands' own options and of the
declared tables. A file that a page links to and that is no page (a test, a result) becomes a page
that shows its text, so that no link leaves the site for the repository. ``mkdocs.yml`` lists the
pages; `make docs` builds them strictly and needs no network.
"""

import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from site_api import kernels_page, python_page
from site_commands import command_pages
from site_notebooks import notebook_page
from site_tables import tables_page

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE: Mapping[str, str] = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages that do not lie in docs/, and where the site has them."""
PICTURES = (".png", ".svg")
MAX_SOURCE_CHARACTERS = 60_000
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"

_CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]+`|\]\((?P<target>[^)\s]+)\)", re.M | re.S)
_COMMENT = re.compile(r"^<!--.*?-->\n", re.M | re.S)


def pages() -> list[str]:
    """Return every page that is written by hand, as a path from the root."""
    docs = ROOT / "docs"
    found = [*docs.glob("*.md"), *docs.glob("notebooks/*.ipynb")]
    return [*ELSEWHERE, *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def site_path(path: str) -> str:
    """Return where the site has a file of the repository.

    >>> site_path("docs/data.md"), site_path("tests/a/test_b.py"), site_path("docs/images/a.png")
    ('data.md', 'source/tests/a/test_b.py.md', 'images/a.png')
    """
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    within = path.removeprefix("docs/")
    if path.endswith(PICTURES) or (within != path and path.endswith(".md")):
        return within
    if within != path and path.endswith(".ipynb"):
        return within.removesuffix(".ipynb") + ".md"
    return f"source/{path}.md"


def links(text: str) -> Iterator[str]:
    """Yield the targets of the links and pictures of a page, those in code left out."""
    for found in _CODE_OR_LINK.finditer(text):
        if found["target"]:
            yield found["target"]


def is_address(target: str) -> bool:
    """Say whether a link leaves the repository."""
    return re.match(r"[a-z]+:", target) is not None


def linked_file(page: str, target: str) -> str:
    """Return the file that a link of a page names, as a path from the root."""
    name = target.partition("#")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), name)) if name else page


def with_site_links(page: str, text: str) -> str:
    """Return a page's text with its links turned to where the site has what they name."""
    here = posixpath.dirname(site_path(page))

    def turned(found: re.Match[str]) -> str:
        target = found["target"]
        if found[0].startswith("`"):  # in a table GitHub wants the bar escaped in code, too
            return found[0] if found[0].startswith("```") else found[0].replace("\\|", "|")
        if not target or is_address(target) or target.startswith("#"):
            return found[0]
        place = site_path(linked_file(page, target))
        _, mark, anchor = target.partition("#")
        return f"]({posixpath.relpath(place, here or '.')}{mark}{anchor})"

    return _CODE_OR_LINK.sub(turned, _COMMENT.sub("", text))


def source_page(path: str) -> str:
    """Return the page that shows a file of the repository as it is, or lists a folder."""
    if (ROOT / path).is_dir():
        names = "\n".join(f"- `{each.name}`" for each in sorted((ROOT / path).iterdir()))
        return f"{NOT_SEARCHED}# {path}\n\n{names}\n"
    text = (ROOT / path).read_text(encoding="utf-8")
    shown = text[:MAX_SOURCE_CHARACTERS]
    more = "" if shown == text else f"\n\nThe file has {len(text):,} characters; this is its start."
    lexer = get_lexer_by_name({"py": "python", "json": "json"}.get(path.rpartition(".")[2], "text"))
    return f"{NOT_SEARCHED}# {path}\n\n{highlight(shown, lexer, HtmlFormatter())}{more}\n"


def write_pages(folder: Path) -> list[str]:
    """Write every page into a folder, which is emptied first; return their paths in it."""
    shutil.rmtree(folder, ignore_errors=True)
    written: dict[str, str] = {}
    sources: set[str] = set()
    for page in pages():
        text = notebook_page(ROOT / page) if page.endswith(".ipynb") else None
        text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
        sources |= {
            linked_file(page, each)
            for each in links(text)
            if not is_address(each) and not site_path(linked_file(page, each)).endswith(PICTURES)
        }
        written[site_path(page)] = with_site_links(page, text)
    for path in sources - set(pages()):
        written[site_path(path)] = source_page(path)
    written |= {f"reference/{name}": text for name, text in command_pages().items()}
    written["reference/python.md"] = python_page()
    written["reference/kernels.md"] = kernels_page()
    written["reference/tables.md"] = tables_page()
    for name, text in written.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    for picture in (ROOT / "docs").rglob("*.png"):
        place = folder / site_path(picture.relative_to(ROOT).as_posix())
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, place)
    return sorted(written)


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
