"""The rules of the tree: who may know whom, who owns a heavy library, how large things may grow.

The tests hold the tree to these constants, and CONTRIBUTING.md prints them:

    python tests/support/house.py CONTRIBUTING.md
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("offpref", "kernels", "stores", "pipeline")

RANKS: Mapping[str, int] = {
    "kernels": 0,
    "stores": 0,
    "pipeline": 1,
    "pipeline/models": 2,
    "pipeline/losses": 2,
    "pipeline/tokenization": 2,
    "pipeline/boards": 2,
    "pipeline/pairs": 3,
    "pipeline/adding": 4,
    "pipeline/scores": 5,
    "pipeline/rewards": 6,
    "pipeline/training": 7,
    "pipeline/evaluation": 7,
    "pipeline/sweeps": 8,
    "pipeline/api": 9,
    "pipeline/translation": 9,
    "pipeline/publishing": 9,
    "offpref": 10,
    "pipeline/commands": 10,
}
"""A room imports rooms of a lower rank only; those of one rank do not know each other. `stores` has
rooms of its own, `STORE_RANKS`, and is one room to all others."""
STORE_RANKS: Mapping[str, int] = {
    "stores/files": 1,
    "stores/sources": 1,
    "stores": 2,
    "stores/query": 3,
    "stores/maintenance": 4,  # it finds what is to be put away by asking
    "stores/report": 4,
}
STORE_BASE = ("schema", "run_tables", "columns", "errors", "keys", "printable")
"""Modules at the top of `stores` that its files may know, too."""

OWNERS: Mapping[str, tuple[str, ...]] = {
    "click": ("pipeline/commands/",),
    "torch": ("kernels/", "pipeline/"),
    "triton": ("kernels/",),
    "transformers": (
        "pipeline/models/", "pipeline/tokenization/", "pipeline/rewards/",
        "pipeline/training/", "pipeline/evaluation/sampling.py",
        "pipeline/evaluation/end_tokens.py", "pipeline/small_world.py",
    ),
    "peft": ("pipeline/training/policies.py", "pipeline/models/loading.py"),
    "pyarrow": ("stores/", "pipeline/"),
    "duckdb": ("stores/query/", "stores/sources/"),
    "pandas": ("stores/query/notebook.py", "stores/query/answer_table.py"),
    "plotly": ("stores/report/template.py",),
    "matplotlib": ("stores/query/plots.py",),
    "tensorboard": ("pipeline/boards/tensorboard_board.py",),
    "wandb": ("pipeline/boards/wandb_board.py", "pipeline/boards/wandb_files.py"),
    "trackio": ("pipeline/boards/trackio_board.py",),
    "mlflow": ("pipeline/boards/mlflow_board.py",),
    "fsspec": ("stores/sources/opening.py",),
    "rich": ("pipeline/displays.py", "pipeline/commands/tables.py"),
    "huggingface_hub": ("pipeline/publishing/push.py", "pipeline/models/relevant_config.py"),
    "yaml": ("pipeline/translation/translate.py",),
}  # fmt: skip
"""Who may import a heavy library, by the beginning of the path."""

MAX_MODULES, MAX_COMMANDS = 20, 30
LAUNCHERS = ("kernels/triton_rows.py", "kernels/triton_kernels.py")
"""Where kernels are launched, with as many arguments as they take."""
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 500, 60, 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """An import of a module or of a name in one, as a statement names it."""

    path: Path
    """File with the statement, from the root."""
    line: int
    module: str
    """Absolute, as Python would import it."""
    name: str | None
    """What is taken from it; None for the module itself."""
    is_relative: bool

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.path.as_posix()}:{self.line}"


def modules() -> list[Path]:
    """Return every module of the product, as paths from the root."""
    return sorted(
        path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    )


def parsed(path: Path) -> ast.Module:
    """Return the syntax of a module."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[Import]:
    """Yield all imports of a module: lazy ones and those for types as well."""
    package = dotted(path.parent)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield Import(path=path, line=node.lineno, module=each.name, name=None,
                             is_relative=False)  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(base) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            for each in node.names:
                yield Import(path=path, line=node.lineno, module=module, name=each.name,
                             is_relative=bool(node.level))  # fmt: skip


def dotted(path: Path) -> str:
    """Return a path from the root as Python names it."""
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return name if name.split(".")[0] == "offpref" else f"offpref.{name}"


def file_of(found: Import) -> Path | None:
    """Return the product's file that an import reaches; None where it leads outside."""
    parts = found.module.split(".")
    if parts[0] != "offpref":
        return None
    inside = Path(*parts[1:]) if len(parts) > 1 else Path("offpref")
    candidates = [inside.with_suffix(".py"), inside / "__init__.py"]
    if found.name:
        candidates.insert(0, inside / f"{found.name}.py")
    for path in candidates:
        if (ROOT / path).is_file() and path != Path("offpref.py"):
            return path
    return None


def room_of(path: Path) -> str:
    """Return the room of a module, one of `RANKS`."""
    if path.parts[0] == "pipeline":
        return path.parent.as_posix()
    return path.parts[0]


def circles() -> list[list[str]]:
    """Return the circles among files, each as the files in it; lazy imports count."""
    graph = {
        path: {target for each in imports(path) if (target := file_of(each)) and target != path}
        for path in modules()
    }
    return [sorted(map(str, group)) for group in _components(graph) if len(group) > 1]


def floors() -> int:
    """Return how many floors of imports there are: the longest chain of files."""
    graph = {
        path: {target for each in imports(path) if (target := file_of(each)) and target != path}
        for path in modules()
    }
    heights: dict[Path, int] = {}

    def height(path: Path, above: frozenset[Path]) -> int:
        if path not in heights:
            below = [t for t in graph[path] if t not in above]
            heights[path] = 1 + max((height(t, above | {path}) for t in below), default=0)
        return heights[path]

    return max(height(path, frozenset()) for path in graph)


def _components(graph: Mapping[Path, set[Path]]) -> Iterator[set[Path]]:
    """Yield the strongly connected parts of a graph (Tarjan)."""
    index: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []

    def visit(node: Path) -> Iterator[set[Path]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                yield from visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            yield set(stack[at:])
            del stack[at:]

    for node in graph:
        if node not in index:
            yield from visit(node)


def tables() -> str:
    """Return ranks and owners as CONTRIBUTING.md prints them."""
    by_rank: dict[int, list[str]] = {}
    for room, rank in RANKS.items():
        by_rank.setdefault(rank, []).append(f"`{room}`")
    lines = ["| rank | rooms |", "|--:|---|"]
    lines += [f"| {rank} | {', '.join(rooms)} |" for rank, rooms in sorted(by_rank.items())]
    lines += ["", "| library | imported by |", "|---|---|"]
    lines += [
        f"| {name} | {', '.join(f'`{p}`' for p in paths)} |" for name, paths in OWNERS.items()
    ]
    return "\n".join(lines)


MARKS = "<!-- house -->", "<!-- /house -->"


def printed_in(text: str) -> str:
    """Return what stands between the marks of a page."""
    found = re.search(f"{MARKS[0]}\n(.*)\n{MARKS[1]}", text, re.DOTALL)
    return found[1] if found else ""


if __name__ == "__main__":
    page = Path(sys.argv[1])
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{tables()}\n{MARKS[1]}{after}", encoding="utf-8")
