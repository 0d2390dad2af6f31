"""The builder of commands: their options come from the settings of the stages, and become them.

A command is built of the options of some settings (`options_of`); what a person gave becomes
settings again (`settings_from`). Where values come from (the shell, a TOML file, the environment)
is click's, what they may be is the settings'. `usage_errors` makes wrong usage of what settings
and plans refuse, and belongs around nothing else: an error inside a run is a bug of ours.
"""

import os
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from datetime import date
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from offpref.pipeline.settings import check_value, nearest, setting
from offpref.stores.files.verified import Policy

from .group import VERBOSE
from .help import SettingCommand, SettingOption
from .names import COMPLETED

Settings = TypeVar("Settings")

_VERIFY, _VERBOSE = "OFFPREF_VERIFY", "OFFPREF_VERBOSE"
_LONGEST_CHOICES = 30
"""Longer choices stand behind an option's help, not beside its name."""
_DISPLACING = (("num_epochs", "max_steps"), ("warmup_ratio", "warmup_steps"))
"""Options that say one thing in two ways: what is typed wins over what a file says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSettings:
    """What every command that takes a store asks for."""

    store: Path = setting("Folder of the store.", is_argument=True)
    verify: str = setting(
        "Hash files before their first use and when they have changed, in every process that uses "
        "them, or not at all (docs/store.md).", default="once", choices=get_args(Policy),
    )  # fmt: skip


class _Words(click.Choice[str]):
    """Words that help and completion show; whether a value is one, the settings say."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:  # Any: click's
        return str(value)


class _Numbers(click.FloatRange):
    """A range that help shows; whether a number is in it, the settings say."""

    def __init__(self, number: click.ParamType[Any], **ends: Any) -> None:
        super().__init__(**ends)
        self._number = number
        self.name = number.name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: click's
        return self._number.convert(value, param, ctx)


class _Day(click.ParamType[date]):
    """A day as YYYY-MM-DD; a TOML file may have it as a date of its own."""

    name = "day"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> date:  # Any: click's
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except (TypeError, ValueError):
            self.fail(f"expected a day as YYYY-MM-DD, got {value!r}", param, ctx)


def command(
    *options: Sequence[click.Parameter],
    name: str,
    takes_store: bool = True,
    takes_config: bool = False,
) -> Callable[[Callable[..., None]], click.Command]:
    """Return what makes a command of a function, whose docstring is its help.

    Help shows required options first, then the others in their order, and last what is common to
    many commands.

    Args:
        options: As `options_of` returns them.
        name: Of the command.
        takes_store: Whether it takes the argument ``STORE`` and ``--verify``.
        takes_config: Whether it takes ``--config``, a file with defaults of the options.
    """
    own = [each for some in options for each in some]
    own.sort(key=lambda each: (isinstance(each, click.Option), not each.required))
    store, verify = options_of(StoreSettings)
    verify.envvar, verify.expose_value, verify.callback = _VERIFY, False, _set_verify
    first, last = ([store], [verify]) if takes_store else ([], [])
    if takes_config:
        last.append(_config_option())
    return click.command(
        name=name, cls=SettingCommand, params=[*first, *own, *last, _verbose_option()]
    )


def options_of(
    kind: type,
    *,
    without: Collection[str] = (),
    required: Collection[str] = (),
    optional: Mapping[str, str] | None = None,
) -> list[click.Parameter]:
    """Return an option for every field of settings that has help.

    Args:
        kind: The settings' class.
        without: Fields that the command finds out itself.
        required: Fields that the command needs, though the settings have a default.
        optional: Fields that the command does without, though the settings do not, with their
            help there.
    """
    hints, optional = get_type_hints(kind), optional or {}
    return [
        _parameter(
            each, hints[each.name],
            is_required=(each.default is MISSING or each.name in required)
            and each.name not in optional,
            help=optional.get(each.name) or each.metadata["help"],
        )
        for each in fields(kind)
        if "help" in each.metadata and each.name not in without
    ]  # fmt: skip


def settings_from(kind: type[Settings], options: Mapping[str, Any], **given: Any) -> Settings:
    """Return settings made of those options that are theirs, and of what is given beside.

    Raises:
        UsageError: If the settings refuse a value.
    """
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type] # a dataclass
    own = {name: value for name, value in options.items() if name in names}
    with usage_errors():
        return kind(**{**own, **_displaced(own), **given})


def _displaced(options: Mapping[str, Any]) -> dict[str, None]:
    """Return the options of a file whose place another one takes that was typed: they are None."""
    context = click.get_current_context(silent=True)

    def is_from(name: str, source: ParameterSource) -> bool:
        assert context is not None
        return options.get(name) is not None and context.get_parameter_source(name) is source

    return {
        other: None
        for pair in _DISPLACING
        for typed, other in (pair, pair[::-1])
        if context is not None
        and is_from(typed, ParameterSource.COMMANDLINE)
        and is_from(other, ParameterSource.DEFAULT_MAP)
    }


@contextmanager
def usage_errors() -> Iterator[None]:
    """Make wrong usage of a ValueError: around settings and planning, never around a run."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _parameter(each: Field[Any], hint: Any, *, is_required: bool, help: str) -> click.Parameter:
    """Return the option of a field, or its argument."""
    said = each.metadata
    kinds = [kind for kind in get_args(hint) if kind not in (NoneType, Ellipsis)]
    kind = kinds[0] if kinds else hint
    completes = None if said["choices"] else COMPLETED.get(each.name)
    if said["is_argument"]:
        return click.Argument(
            [each.name], type=_type(said, kind), required=is_required, metavar=said["metavar"],
            nargs=-1 if get_origin(hint) is tuple else 1, shell_complete=completes,
        )  # fmt: skip
    flag = said["flag"] or f"--{each.name.replace('_', '-')}"
    names = [*([said["short"]] if said["short"] else []), flag, each.name]
    place = {"section": said["section"], "is_rare": said["is_rare"]}
    if kind is bool:
        return SettingOption(names, is_flag=True, help=help, **place)
    metavar = said["metavar"]
    if len("|".join(said["choices"])) > _LONGEST_CHOICES:
        metavar = metavar or "NAME"
        help = f"{help}  [one of: {', '.join(said['choices'])}]"
    if said["shown"] is not None:
        help = f"{help}  [default: {said['shown']}]"
    has_default = each.default is not MISSING and each.default not in (None, ())
    default: dict[str, Any] = {"default": each.default, "show_default": True} if has_default else {}
    return SettingOption(
        names, type=_type(said, kind), required=is_required, multiple=get_origin(hint) is tuple,
        help=help, metavar=metavar, shell_complete=completes, **place, **default,
    )  # fmt: skip


def _type(said: Mapping[str, Any], kind: Any) -> click.ParamType[Any]:
    """Return click's type for the values of a setting."""
    if said["choices"]:
        return _Words(said["choices"])
    if kind is Path:
        return click.Path(
            exists=said["path"] == "existing file",
            file_okay=said["path"] != "folder",
            dir_okay=said["path"] in ("folder", "any"),
            path_type=Path,
        )
    if kind is date:
        return _Day()
    number: click.ParamType[Any] = click.types.convert_type(kind)
    ends = said["range"]
    if ends is None or str(ends) == "finite":
        return number
    low, high = (ends.above, ends.below) if ends.least is None else (ends.least, ends.below)
    return _Numbers(
        number,
        min=low, min_open=ends.least is None and ends.above is not None,
        max=high if ends.most is None else ends.most, max_open=ends.below is not None,
    )  # fmt: skip


def _set_verify(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
    """Set it for this command, its threads and the processes that it starts."""
    with usage_errors():
        check_value(StoreSettings.__dataclass_fields__["verify"], value)
    _set_variable(ctx, _VERIFY, value)


def _set_verbose(ctx: click.Context, parameter: click.Parameter, is_verbose: bool) -> None:
    """Set it for this command and the processes that it starts."""
    if is_verbose:
        ctx.meta[VERBOSE] = True
        _set_variable(ctx, _VERBOSE, "1")


def _set_variable(ctx: click.Context, name: str, value: str) -> None:
    """Set a variable of the environment until the command ends."""
    before = os.environ.get(name)
    os.environ[name] = value

    def put_back() -> None:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before

    ctx.call_on_close(put_back)


def _verbose_option() -> click.Option:
    return click.Option(
        ["--verbose"], is_flag=True, envvar=_VERBOSE, expose_value=False, callback=_set_verbose,
        help="Show the traceback above an error, such as one in your own code.",
    )  # fmt: skip


def _config_option() -> click.Option:
    """Return ``--config``, whose values are defaults of the other options."""
    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="TOML file with values for these options; what is given here wins.",
    )


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take the defaults of a command's options from a TOML file."""
    if path is None:
        return
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: expected a TOML file, got: {error}") from error
    # A file may serve several commands, each with a table of its own.
    has_tables = any(isinstance(value, dict) for value in settings.values())
    own = settings.get(ctx.info_name or "", {} if has_tables else settings)
    options = {
        word.lstrip("-").replace("-", "_"): each
        for each in ctx.command.params
        if isinstance(each, click.Option)
        for word in (*each.opts, str(each.name))
    }
    given = {}
    for word, value in own.items():
        each = options.get(word.replace("-", "_"))
        if each is None:
            raise click.BadParameter(
                f"{path}: {word!r} is not an option of {ctx.info_name}; there are: "
                f"{', '.join(sorted(options))}{nearest(word, options)}"
            )
        is_one = each.multiple and isinstance(value, str | int | float)
        given[str(each.name)] = [value] if is_one else value
    ctx.default_map = {**(ctx.default_map or {}), **given}
