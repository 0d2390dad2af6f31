"""How a command shows its options: in sections, the common ones first, those of a loss marked.

A command with many options shows the common ones by ``--help`` and all of them by ``--help-all``.
If a loss is named beside ``--help``, help marks what acts on it and names what would be an error.
An unknown option is answered with the nearest one, by its letters or by other tools' names.
"""

from collections.abc import Collection, Sequence
from typing import Any

import click

from offpref.pipeline.nearest_words import nearest_word
from offpref.pipeline.settings import LOSS, LOSS_OPTIONS, SECTIONS

MANY = 12
"""More options than this are shown in sections."""
OTHERS = "Common to commands"
_LOSSES, _ALL = "offpref.help.losses", "offpref.help.all"


class SettingOption(click.Option):
    """An option that belongs to a section of help, and may be shown by `--help-all` alone."""

    def __init__(
        self, names: Sequence[str], *, section: str | None = None, is_rare: bool = False,
        **given: Any,  # click's
    ) -> None:  # fmt: skip
        super().__init__(names, **given)
        self.section = section
        self.is_rare = is_rare


class SettingCommand(click.Command):
    """A command whose help has sections, and which knows what was meant by a wrong option."""

    def __init__(self, name: str, **given: Any) -> None:  # Any: click's
        super().__init__(name, **given)
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False,
                hidden=not self._has_rare, callback=_show_all, help="Show every option and exit.",
            )
        )  # fmt: skip

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line; see click."""
        if ctx.resilient_parsing and args and args[-1].startswith("-"):
            # A shell completes this option's value: without one it would hide the arguments.
            args = args[:-1]
        try:
            if {"--help", "--help-all"} & set(args):
                given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
                ctx.meta[_LOSSES] = tuple(given.get("loss_type") or ())
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [name for each in self.get_params(ctx) for name in each.opts]
            found = nearest_word(error.option_name, [each for each in known if each[:2] == "--"])
            hint = f"did you mean {found}?" if found else f"see {ctx.command_path} --help"
            raise click.UsageError(f"unknown option {error.option_name}; {hint}", ctx) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in sections if there are many."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        if len(options) <= MANY:
            super().format_options(ctx, formatter)
            return
        losses = ctx.meta.get(_LOSSES, ())
        acting = _acting(losses) if losses else frozenset()
        shows_all = bool(ctx.meta.get(_ALL))
        for section in (*SECTIONS, OTHERS):
            own = [each for each in options if _section(each) == section]
            is_of_loss = bool(losses) and section in (LOSS, LOSS_OPTIONS)
            if is_of_loss:
                shown = [each for each in own if shows_all or each.name in acting]
            else:
                shown = [each for each in own if shows_all or not _is_rare(each)]
            marked = acting if is_of_loss else frozenset()
            title = f"{section} (* acts on {', '.join(losses)})" if is_of_loss else section
            _write(ctx, formatter, title, shown, marked)
        if losses:
            of_losses = [each for each in options if _section(each) in (LOSS, LOSS_OPTIONS)]
            wrong = [each.opts[-1] for each in of_losses if each.name not in acting]
            formatter.write_paragraph()
            formatter.write_text(
                f"An error with {', '.join(losses)}, on which they have no effect: "
                f"{', '.join(wrong)}."
            )
        if not shows_all and self._has_rare:
            _write_rest(ctx, formatter, options, has_losses="loss_type" in _names(options))

    @property
    def _has_rare(self) -> bool:
        return len(self.params) > MANY and any(_is_rare(each) for each in self.params)


def _show_all(ctx: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _acting(losses: Sequence[str]) -> frozenset[str]:
    """Return the settings that act on losses.

    Raises:
        UsageError: If there is no such loss.
    """
    from offpref.pipeline.losses.names import check_loss_type

    try:
        for each in losses:
            check_loss_type(each)
        from offpref.pipeline.losses.acting import acting_settings  # brings torch

        return frozenset(acting_settings(losses))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _write(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    title: str,
    options: Sequence[click.Option],
    marked: Collection[str],
) -> None:
    """Write a section, unless nothing of it is shown."""
    records = []
    for each in options:
        record = each.get_help_record(ctx)
        if record is not None:
            mark = "* " if each.name in marked else "  " if marked else ""
            records.append((f"{mark}{record[0]}", record[1]))
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def _write_rest(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    options: Sequence[click.Option],
    *,
    has_losses: bool,
) -> None:
    """Say how to see what is not shown."""
    number = sum(_is_rare(each) for each in options)
    text = f"{ctx.command_path} --help-all also shows the {number} options that few runs need"
    if has_losses:
        text += "; --loss-type NAME --help shows those that act on a loss"
    formatter.write_paragraph()
    formatter.write_text(f"{text}.")


def _names(options: Sequence[click.Option]) -> set[str]:
    return {str(each.name) for each in options}


def _section(option: click.Parameter) -> str:
    return getattr(option, "section", None) or OTHERS


def _is_rare(option: click.Parameter) -> bool:
    return bool(getattr(option, "is_rare", False))
