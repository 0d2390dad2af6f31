"""The command ``completion``: what a shell needs to complete commands, options and values.

zsh and fish take click's own scripts. bash divides a line at ``=``, ``:`` and ``@``, which names
here may contain: it has a script of ours, which hands over the line as it is and gets back what
stands behind the last of these.
"""

import os
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from offpref.pipeline.settings import check_settings, setting

from .options import command, options_of, settings_from

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_OFFPREF_COMPLETE"
_LINE = "_OFFPREF_LINE"
_BREAKS = "=:@"

_BASH = """\
_offpref_completion() {
    local IFS=$'\\n' response kind value
    COMPREPLY=()
    response=$(%(line)s="${COMP_LINE:0:COMP_POINT}" %(variable)s=bash_complete "$1" 2>/dev/null)
    for value in $response; do
        kind=${value%%%%,*}
        value=${value#*,}
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            open) compopt -o nospace; COMPREPLY+=("$value") ;;
            *) COMPREPLY+=("$(printf %%q "$value")") ;;
        esac
    done
}
complete -o nosort -F _offpref_completion offpref
"""


class BashScript(ShellComplete):
    """Completion for bash, from 4.4 on."""

    name = "bash"
    source_template = _BASH

    def source_vars(self) -> Any:  # a type of click's own
        """Return what the script is filled with."""
        return {"line": _LINE, "variable": VARIABLE}

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to be completed, and its beginning."""
        line = os.environ.get(_LINE, "")
        words = split_arg_string(line)[1:]
        if not words or line[-1:].isspace():
            return words, ""
        return words[:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        """Return values without what bash takes for words before them."""
        found = super().get_completions(args, incomplete)
        start = 1 + max(incomplete.rfind(each) for each in _BREAKS)
        for each in found:
            each.value = str(each.value)[start:]
        return found

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return a line of the answer: its kind and the value."""
        kind = "open" if item.type == "plain" and item.value.endswith("=") else item.type
        return f"{kind},{item.value}"


add_completion_class(BashScript)
_CLASSES: dict[str, type[ShellComplete]] = {
    "bash": BashScript, "zsh": ZshComplete, "fish": FishComplete,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionSettings:
    """Whose script is printed."""

    shell: str = setting(
        "The shell.", choices=SHELLS, is_argument=True, metavar="[bash|zsh|fish]"
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)


@command(options_of(CompletionSettings), name="completion", takes_store=False)
def completion(**options: Any) -> None:
    r"""Print what completes offpref's commands, options and values in a shell.

    \b
    bash  eval "$(offpref completion bash)"     in ~/.bashrc; from bash 4.4 on
    zsh   eval "$(offpref completion zsh)"      in ~/.zshrc, after compinit
    fish  offpref completion fish > ~/.config/fish/completions/offpref.fish
    """
    settings = settings_from(CompletionSettings, options)
    root = click.get_current_context().find_root().command
    script = _CLASSES[settings.shell](root, {}, "offpref", VARIABLE)
    click.echo(script.source(), nl=False)
