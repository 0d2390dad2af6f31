"""The reference of the Python API and of the kernels, made of signatures and docstrings.

Signatures are taken from the source, with the shapes behind their arguments.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import offpref
from offpref.kernels import linear, reference
from offpref.pipeline.api import results

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$")
_FIELD = re.compile(r"^(\**[\w., ]+):\s+(.*)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A public name that the reference describes."""

    name: str
    """As a user writes it."""
    signature: str
    """Source of the definition without its body; empty for what has none."""
    text: str
    """Its docstring."""


def python_members() -> list[Member]:
    """Return every public name of `offpref`, then what its verbs return."""
    names = [name for name in sorted(offpref.__all__) if name != "__version__"]
    objects = {f"offpref.{name}": getattr(offpref, name) for name in names}
    for name, value in vars(results).items():
        is_own = inspect.isclass(value) and value.__module__ == results.__name__
        if is_own and not name.startswith("_") and value not in objects.values():
            objects[f"offpref.pipeline.api.results.{name}"] = value
    return [member for name, value in objects.items() for member in _members(name, value)]


def kernel_members() -> list[Member]:
    """Return every public name of `offpref.kernels.linear`, then the plain forms."""
    found = []
    for name in linear.__all__:
        value = getattr(linear, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found += list(_members(f"offpref.kernels.linear.{name}", value))
        else:
            found.append(_constant(name))
    for name, value in vars(reference).items():
        is_own = inspect.isfunction(value) and value.__module__ == reference.__name__
        if is_own and not name.startswith("_"):
            found += list(_members(f"offpref.kernels.reference.{name}", value))
    return found


def python_page() -> str:
    """Return the page on the Python API."""
    lead = (
        "# Python API\n\nEvery public name of `offpref`, from its docstring. "
        "[Python](../python.md) shows how they are used.\n\n## offpref.\\_\\_version\\_\\_\n\n"
        "The version that is installed.\n\n"
    )
    return lead + "\n".join(map(_shown, python_members()))


def kernels_page() -> str:
    """Return the page on the kernels' API."""
    lead = (
        "# Kernels API\n\nEvery public name of `offpref.kernels.linear`, and the plain PyTorch "
        "forms that the kernels are tested against (`offpref.kernels.reference`). "
        "[Kernels](../kernels.md) shows how they are used, and what they cost.\n\n"
    )
    return lead + "\n".join(map(_shown, kernel_members()))


def _members(name: str, value: Any) -> Iterator[Member]:
    if not inspect.isclass(value):
        yield Member(name=name, signature=_signature(value), text=inspect.getdoc(value) or "")
        return
    bases = [each.__name__ for each in value.__bases__ if each is not object]
    head = f"class {value.__name__}" + (f"({', '.join(bases)})" if bases else "")
    body = "\n".join(f"    {each}" for each in _fields(value))
    text = inspect.getdoc(value) or ""
    described = "\n".join(f"    {n}: {meaning}" for n, meaning in _field_texts(value).items())
    if described:
        text = f"{text}\n\nArgs:\n{described}"
    yield Member(name=name, signature=head + (f":\n{body}" if body else ""), text=text)
    for key, (owner, each) in _methods(value).items():
        is_property = isinstance(each, property)
        function = each.fget if is_property else getattr(each, "__func__", each)
        yield Member(
            name=f"{name}.{key}", signature="@property\n" * is_property + _signature(function),
            text=inspect.getdoc(each) or inspect.getdoc(getattr(owner, key)) or "",
        )  # fmt: skip


def _methods(value: type) -> dict[str, tuple[type, Any]]:
    """Return the public methods and properties of a class by name, in the order of its bases."""
    found: dict[str, tuple[type, Any]] = {}
    for owner in value.__mro__:
        if not owner.__module__.startswith("offpref"):
            continue
        for key, each in vars(owner).items():
            is_shown = isinstance(
                each, property | classmethod | staticmethod
            ) or inspect.isfunction(each)
            if is_shown and not key.startswith("_"):
                found.setdefault(key, (owner, each))
    return found


def _class_body(value: type) -> list[ast.stmt]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    (node,) = tree.body
    assert isinstance(node, ast.ClassDef)
    return node.body


def _fields(value: type) -> list[str]:
    """Return the declared fields of a class and of its bases, as they stand in the source."""
    found: dict[str, str] = {}
    for owner in reversed(value.__mro__):
        if owner.__module__.startswith("offpref"):
            lines = textwrap.dedent(inspect.getsource(owner)).splitlines()
            for each in _class_body(owner):
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    shown = lines[each.lineno - 1 : each.end_lineno]  # with the shape behind it
                    if not each.target.id.startswith("_"):
                        found[each.target.id] = "\n".join(line[4:] for line in shown)
    return list(found.values())


def _field_texts(value: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for owner in reversed(value.__mro__):
        if owner.__module__.startswith("offpref"):
            body = _class_body(owner)
            for each, after in pairwise(body):
                if (
                    isinstance(each, ast.AnnAssign)
                    and isinstance(each.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                ):
                    found[each.target.id] = " ".join(after.value.value.split())
    return found


def _constant(name: str) -> Member:
    """Return a constant or an alias of the kernels, from the module that assigns it."""
    for module in [each for key, each in sys.modules.items() if key.startswith("offpref.kernels.")]:
        source = inspect.getsource(module)
        body = ast.parse(source).body
        for each, after in zip(body, [*body[1:], None], strict=True):
            target = getattr(each, "target", None) or next(iter(getattr(each, "targets", ())), None)
            if isinstance(target, ast.Name) and target.id == name:
                text = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    text = inspect.cleandoc(str(after.value.value))
                shown = ast.get_source_segment(source, each) or ""
                return Member(name=f"offpref.kernels.linear.{name}", signature=shown, text=text)
    raise LookupError(f"expected {name} to be assigned in a module of the kernels")


def _signature(function: Any) -> str:
    """Return the source of a definition up to its body, shapes in comments included."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    return "\n".join(lines) if lines else source.splitlines()[node.lineno - 1].strip()


def _shown(member: Member) -> str:
    """Return the section of a member.

    A method stands below its class: its name has one more point than that.
    """
    owner, _, last = member.name.rpartition(".")
    is_method = owner.rpartition(".")[2][:1].isupper()
    level = "###" if is_method else "##"
    name = f"{owner.rpartition('.')[2]}.{last}" if is_method else member.name
    lines = [f"{level} {name.replace('_', chr(92) + '_')}", ""]
    if member.signature:
        lines += ["```python", member.signature, "```", ""]
    return "\n".join([*lines, markdown(member.text), ""])


def markdown(docstring: str) -> str:
    r"""Return a docstring of Google's style as Markdown.

    >>> markdown("Return ``x``.\n\nArgs:\n    n: How many.")
    'Return `x`.\n\n**Args**\n\n- `n`: How many.\n'
    """
    lines: list[str] = []
    is_in_list = False
    blocks = docstring.splitlines()
    for number, line in enumerate(blocks):
        head = _SECTION.match(line)
        if head:
            lines += [f"**{head[1]}**", ""]
            is_in_list = head[1] in ("Args", "Raises")
        elif line.startswith("    ") and is_in_list:
            field = _FIELD.match(line.strip())
            if field and not line.startswith("     "):
                lines.append(f"- `{field[1]}`: {_words(field[2])}")
            else:
                lines.append(f"  {_words(line.strip())}")
        elif line.startswith(">>>"):
            is_first = number == 0 or not blocks[number - 1].strip()
            lines += ["```pycon"] * is_first + [line]
        elif lines and _is_in_example(lines):
            lines += [line] if line.strip() else ["```", ""]
        else:
            is_in_list = is_in_list and not line.strip()
            lines.append(_words(line.strip()) if line.startswith("    ") else _words(line))
    if _is_in_example(lines):
        lines.append("```")
    return "\n".join(lines).rstrip() + "\n"


def _is_in_example(lines: list[str]) -> bool:
    return "\n".join(lines).count("```") % 2 == 1


def _words(text: str) -> str:
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text.replace("``", "`"))
    parts = text.split("`")
    for number in range(0, len(parts), 2):
        for sign in ("*", "_", "<"):
            parts[number] = parts[number].replace(sign, "&lt;" if sign == "<" else f"\\{sign}")
    return "`".join(parts)
