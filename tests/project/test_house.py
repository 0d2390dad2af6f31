"""The rules of the tree. Each failure names the file, the line and the rule."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import house
import pytest
from house import ROOT, modules, parsed, room_of

FORBIDDEN_AT_START = "torch transformers pyarrow pandas numpy duckdb"


def test_a_room_imports_lower_rooms_only() -> None:
    wrong = [
        f"{each.where}: rank {house.RANKS[room]} of {room} must be above that of {other}, "
        f"{house.RANKS[other]}: {each.module}"
        for path in modules()
        for each in house.imports(path)
        if (target := house.file_of(each))
        and (room := room_of(path)) != (other := room_of(target))
        and house.RANKS[room] <= house.RANKS[other]
    ]

    assert not wrong, "\n".join(wrong)


def test_the_rooms_of_stores_import_lower_ones_only() -> None:
    def rank(path: Path) -> int:
        is_base = path.parent == Path("stores") and path.stem in house.STORE_BASE
        return 0 if is_base else house.STORE_RANKS[path.parent.as_posix()]

    wrong = [
        f"{each.where}: rank {rank(path)} must be above that of {target}, {rank(target)}"
        for path in modules()
        if path.parts[0] == "stores" and path.name != "__init__.py"
        for each in house.imports(path)
        if (target := house.file_of(each)) and target.name != "__init__.py"
        and path.parent != target.parent and rank(path) <= rank(target)
    ]  # fmt: skip

    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports_not_even_a_lazy_one() -> None:
    assert not house.circles(), "these files import each other: " + str(house.circles())


def test_imports_are_relative_inside_a_room_and_absolute_across() -> None:
    wrong = [
        f"{each.where}: {'relative' if each.is_relative else 'absolute'} import of {target}"
        for path in modules()
        for each in house.imports(path)
        if (target := house.file_of(each)) and each.is_relative != (path.parent == target.parent)
    ]

    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_have_owners() -> None:
    wrong = [
        f"{each.where}: {library} belongs to {', '.join(owners)}"
        for path in modules()
        for each in house.imports(path)
        if (owners := house.OWNERS.get(library := each.module.split(".")[0]))
        and not path.as_posix().startswith(owners)
    ]

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", house.PACKAGES)
def test_a_folder_holds_few_modules(package: str) -> None:
    counts = Counter(path.parent.as_posix() for path in modules() if path.name != "__init__.py")
    limits = {"pipeline/commands": house.MAX_COMMANDS}
    wrong = [
        f"{folder}: {number} modules, at most {limits.get(folder, house.MAX_MODULES)}"
        for folder, number in counts.items()
        if folder.split("/")[0] == package and number > limits.get(folder, house.MAX_MODULES)
    ]

    assert not wrong, "\n".join(wrong)


def test_a_file_is_short() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in modules()}
    wrong = [f"{p}: {n} lines" for p, n in lengths.items() if n > house.MAX_FILE_LINES]

    assert not wrong, f"at most {house.MAX_FILE_LINES} lines per file: " + "\n".join(wrong)


def functions() -> list[tuple[Path, ast.FunctionDef]]:
    return [
        (path, node)
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
    ]


def is_launched(path: Path, node: ast.FunctionDef) -> bool:
    """A Triton kernel or its launcher, which counts out the kernel's parameters."""
    is_kernel = any("triton" in ast.unparse(each) for each in node.decorator_list)
    return is_kernel or path.as_posix() in house.LAUNCHERS


def test_a_function_fits_a_screen_or_two() -> None:
    lengths = [(p, f, (f.end_lineno or 0) - f.lineno + 1) for p, f in functions()]
    wrong = [
        f"{path}:{node.lineno}: {node.name} has {length} lines, at most {house.MAX_FUNCTION_LINES}"
        for path, node, length in lengths
        if length > house.MAX_FUNCTION_LINES and not is_launched(path, node)
    ]

    assert not wrong, "\n".join(wrong)


def test_a_function_takes_few_parameters_by_place() -> None:
    def num_by_place(node: ast.FunctionDef) -> int:
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        return len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))

    wrong = [
        f"{path}:{node.lineno}: {node.name} takes {num_by_place(node)} by place, at most "
        f"{house.MAX_PARAMETERS}"
        for path, node in functions()
        if num_by_place(node) > house.MAX_PARAMETERS and not is_launched(path, node)
    ]  # fmt: skip

    assert not wrong, "\n".join(wrong)


def test_a_public_class_name_is_there_once() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    wrong = [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]

    assert not wrong, "a name is one thing: " + "\n".join(wrong)


def test_the_packages_are_the_folders() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {path.parent.as_posix().replace("/", ".") for path in modules()}

    assert set(packages) == {"offpref"} | {f"offpref.{f}" for f in folders if f != "offpref"}


@pytest.mark.parametrize(
    "start",
    [
        "import offpref",
        "import sys; sys.argv = ['offpref', '--help']\n"
        "from offpref.pipeline.commands.start import start\n"
        "try: start()\nexcept SystemExit: pass",
    ],
    ids=["import", "--help"],
)
def test_heavy_libraries_wait_until_they_are_needed(start: str) -> None:
    code = f"{start}\nimport sys\nprint('#', *({FORBIDDEN_AT_START.split()} & sys.modules.keys()))"
    code = code.replace(f"{FORBIDDEN_AT_START.split()}", f"set({FORBIDDEN_AT_START.split()})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1].strip() == "#"


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["query", "--help"], set()),
        (["store", "--help"], set()),
        (["train", "--help"], set()),
        (["store", "ls", "{store}"], set()),
        (["query", "{store}", "runs"], {"duckdb"}),
        (["query", "{store}", "accuracy"], {"duckdb"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_store_is_looked_at_without_heavy_libraries(
    arguments: list[str], needed: set[str], scored_once: Path
) -> None:
    words = [each.format(store=scored_once) for each in arguments]
    code = (
        f"import sys; sys.argv = ['offpref', *{words}]\n"
        "from offpref.pipeline.commands.start import start\n"
        "try: start()\nexcept SystemExit as end: assert not end.code\n"
        f"print('#', *(set({FORBIDDEN_AT_START.split()}) & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set(done.stdout.splitlines()[-1].split()[1:]) == needed


def test_contributing_prints_the_rules() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    assert house.printed_in(page) == house.tables(), (
        "CONTRIBUTING.md is out of date: python tests/support/house.py CONTRIBUTING.md"
    )
