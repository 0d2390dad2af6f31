"""The command ``add``: data becomes a pair set."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.settings import OUTPUT

from .help import SettingOption
from .options import command, options_of, settings_from, usage_errors
from .terminal import say, say_lines, say_styled

if TYPE_CHECKING:
    from offpref.pipeline.adding.preview import PreviewedPart


PREVIEW = SettingOption(
    ["--preview"], section=OUTPUT, type=click.IntRange(min=1), metavar="N",
    help="Show N rows as they would be scored, token by token, and write nothing.",
)  # fmt: skip
COLOURS = {"prompt": "blue", "chosen": "green", "rejected": "red"}
OTHERS_COLOUR = "bright_black"
"""Of tokens that are not the assistant's own."""


@command(options_of(AddSettings), [PREVIEW], name="add", takes_config=True)
def add(store: Path, preview: int | None, **options: Any) -> None:
    """Put pairs, prompts with completions, lists, or unpaired labels into STORE."""
    settings = settings_from(AddSettings, options)
    if preview is None:
        add_data(store, settings)
    else:
        _show(settings, preview)


def add_data(store: Path, settings: AddSettings) -> None:
    """Add a pair set to the store at ``store``, which is made if there is none, and say so."""
    from offpref.pipeline.adding.add import add_pairs, check_sources, plan_add
    from offpref.pipeline.api.lines import pair_set_lines
    from offpref.pipeline.progress import RowBar
    from offpref.stores.store import Store

    settings = with_length(settings)
    check_sources(settings)
    opened = Store.create(store)
    with usage_errors():
        planned = plan_add(opened, settings)
    with RowBar("add") as bar:
        found, is_new = add_pairs(opened, planned, bar.advance)
    say_lines(pair_set_lines(opened, found, is_new=is_new))


def _show(settings: AddSettings, num_rows: int) -> None:
    """Print the first rows of the data; colours only on a terminal that wants them."""
    from offpref.pipeline.adding.add import check_sources
    from offpref.pipeline.adding.preview import preview_rows

    settings = with_length(settings)
    check_sources(settings)
    form = None
    for row in preview_rows(settings, num_rows):
        if row.form != form:
            form = row.form
            say(f"form       {form}")
        say(f"row        {row.row:,} of {row.file}" + (f": {row.problem}" if row.problem else ""))
        for part in row.parts:
            say_styled(f"  {part.name:<9}{len(part.tokens):>5} tokens  ", *_pieces(part))
        for finding in row.findings:
            say(f"  counted    {finding}")


def _pieces(part: "PreviewedPart") -> Iterator[tuple[str, str | None]]:
    """Yield the tokens of a part, each with its colour; a turn of another begins with its role."""
    role: str | None = "assistant"
    colour = COLOURS.get(part.name, COLOURS["chosen"])
    for token in part.tokens:
        is_others = part.name != "prompt" and token.role != "assistant"
        if part.name != "prompt" and token.role != role:
            yield f"|({token.role or 'template'})", OTHERS_COLOUR
            role = token.role
        yield f"|{token.text}", OTHERS_COLOUR if is_others else colour
    yield "|", None


def with_length(settings: AddSettings) -> AddSettings:
    """Return settings whose longest sequence fits the model in the tokenizer's folder, if any."""
    from offpref.pipeline.adding.add import fitted

    with usage_errors():  # a model of one position
        return fitted(settings)


def add_options() -> list[click.Parameter]:
    """Return the options of a command that adds data before it does its own work."""
    return options_of(
        AddSettings, without=("pair_set", "tokenizer"),
        optional={"data": "Add this first; as for add."},
    )  # fmt: skip


def added_settings(options: Mapping[str, Any], tokenizer: Path) -> AddSettings | None:
    """Return how data is added first; None where there is none.

    Raises:
        UsageError: If the settings refuse a value, or one is given and no data.
    """
    if options["data"]:
        return settings_from(AddSettings, options, tokenizer=tokenizer)
    source = click.get_current_context().get_parameter_source
    for each in add_options():
        name = str(each.name)
        if name != "data" and source(name) not in (ParameterSource.DEFAULT, None):
            raise click.UsageError(f"{each.opts[0]} has no effect without --data")
    return None
