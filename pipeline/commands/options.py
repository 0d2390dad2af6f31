"""Options that several commands share: where their values come from and what they become."""

import os
import tomllib
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from datetime import date
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import click

if TYPE_CHECKING:
    from offpref.pipeline.pairs.settings import AddSettings

Command = TypeVar("Command", bound=Callable[..., Any])

PRECISIONS = ("float32", "bf16", "bf16-autocast")

VERIFY_POLICIES = ("once", "always", "never")
"""As in ``stores.verified``, here so that help needs no more than click."""


def store_argument(command: Command) -> Command:
    """Add the argument ``STORE``, and ``--verify``, which says how far its bytes are trusted."""
    verify = click.option(
        "--verify",
        type=click.Choice(VERIFY_POLICIES),
        default="once",
        show_default=True,
        envvar="OFFPREF_VERIFY",
        expose_value=False,
        callback=_set_verify,
        help="Hash files before their first use and when they have changed, in every process that "
        "uses them, or not at all (docs/store.md).",
    )
    argument = click.argument("store", type=click.Path(file_okay=False, path_type=Path))
    return argument(verify(command))


def _set_verify(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
    """Set it for this command, its threads and the processes that it starts."""
    before = os.environ.get("OFFPREF_VERIFY")
    os.environ["OFFPREF_VERIFY"] = value

    def put_back() -> None:
        del os.environ["OFFPREF_VERIFY"]
        if before is not None:
            os.environ["OFFPREF_VERIFY"] = before

    ctx.call_on_close(put_back)


def config_option(command: Command) -> Command:
    """Add ``--config``, whose values are defaults of the other options."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="TOML file with values for these options; what is given here wins.",
    )(command)


def data_options(command: Command) -> Command:
    """Add the options that say how data becomes a pair set."""
    options = [
        click.option("--split-column", help="Column that names the split of each row."),
        click.option(
            "--eval-fraction",
            type=float,
            default=0.0,
            show_default=True,
            help="Share of the prompts held out as split 'eval', by a hash of the prompt.",
        ),
        click.option(
            "--max-length",
            type=int,
            help="Longest sequence in tokens, prompt and completion.  [default: as many as the "
            "model in the tokenizer's folder has positions]",
        ),
        click.option(
            "--truncation",
            type=click.Choice(["drop", "keep-start"]),
            default="drop",
            show_default=True,
            help="Reject a longer row, or cut its completion's end off.",
        ),
        click.option(
            "--template-date",
            metavar="YYYY-MM-DD",
            help="Day that the chat template is told, if it asks.  [default: that of the versions "
            "that are there, else today]",
        ),
        *(
            click.option(f"--{part}-column", help=f"Column of the {part}, if not called as usual.")
            for part in ("prompt", "chosen", "rejected", "completion", "label", "weight")
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def train_options(
    *, without: Collection[str] = (), optional: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Add an option for every field of the settings of a training run.

    Args:
        without: Fields that the command sets itself.
        optional: Required fields that the command can find out.
    """
    from offpref.pipeline.training.settings import TrainSettings

    def add(command: Command) -> Command:
        hints = get_type_hints(TrainSettings)
        for each in reversed(fields(TrainSettings)):
            if each.name not in without:
                command = _train_option(each, hints[each.name], each.name in optional)(command)
        return command

    return add


def _train_option(each: Field[Any], hint: Any, is_optional: bool) -> Callable[[Command], Command]:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    kind: Any = kinds[0] if kinds else hint
    more: dict[str, Any] = {"type": kind}
    if kind is bool:
        more = {"is_flag": True}
    elif kind is Path:
        more["type"] = click.Path(file_okay=False, path_type=Path)
    elif choices := each.metadata.get("choices"):
        more["type"] = click.Choice(choices)
    if each.default is MISSING:
        more["required"] = not is_optional
    elif kind is not bool:
        shown = each.metadata.get("shown")
        more |= {"default": each.default, "show_default": f"{shown}" if shown else True}
    more["multiple"] = get_origin(hint) is tuple
    name = f"--{each.name.replace('_', '-')}"
    return click.option(name, help=each.metadata["help"], **more)


def take_data_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `data_options` out of ``options``."""
    names = ["split_column", "eval_fraction", "max_length", "truncation", "template_date"]
    names += [name for name in options if name.endswith("_column") and name not in names]
    return {name: options.pop(name) for name in names}


def add_settings(
    data: tuple[str, ...], pair_set: str, tokenizer: Path, options: dict[str, Any]
) -> "AddSettings":
    """Return the settings of `add` from the options of `data_options`.

    Raises:
        UsageError: If one cannot take effect.
    """
    from offpref.pipeline.models.fingerprints import default_max_length
    from offpref.pipeline.pairs.settings import AddSettings

    columns = {
        name.removesuffix("_column"): value
        for name, value in options.items()
        if name.endswith("_column") and name != "split_column" and value
    }
    try:
        return AddSettings(
            data=data,
            pair_set=pair_set,
            tokenizer=tokenizer,
            max_length=default_max_length(tokenizer)
            if options["max_length"] is None
            else options["max_length"],
            truncation=options["truncation"],
            split_column=options["split_column"],
            eval_fraction=options["eval_fraction"],
            columns=columns,
            template_date=_day(options["template_date"]),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"template_date must be a day as YYYY-MM-DD, got {text!r}") from error


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
    known = {each.name for each in ctx.command.params if isinstance(each, click.Option)}
    given = {name.replace("-", "_"): value for name, value in own.items()}
    if unknown := sorted(set(given) - known):
        raise click.BadParameter(
            f"{path}: {unknown[0]!r} is no option of {ctx.info_name}; "
            f"there are: {', '.join(sorted(str(name) for name in known))}"
        )
    for each in ctx.command.params:
        if each.multiple and isinstance(given.get(each.name or ""), str | int | float):
            given[each.name or ""] = [given[each.name or ""]]
    ctx.default_map = {**(ctx.default_map or {}), **given}
