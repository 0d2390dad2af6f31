"""What the runs of a sweep lack, said at once: each reason once, and the commands that mend all."""

import shlex
from collections.abc import Iterable, Iterator, Mapping

from offpref.stores.errors import MissingError

_RUN = "; run: "
_ADDED = ("--kl-pairs", "--tier")
"""Options with which `offpref score` writes more of what it writes without them."""


def all_missing(missing: Mapping[str, MissingError], num_runs: int) -> MissingError:
    """Return one error for all runs that lack something.

    Args:
        missing: What each lacks, by its name.
        num_runs: Runs of the sweep.
    """
    lines = [(name, line) for name, error in missing.items() for line in str(error).splitlines()]
    reasons: dict[str, list[str]] = {}
    for name, line in lines:
        reasons.setdefault(line.partition(_RUN)[0], []).append(name)
    commands = merged_commands(line.partition(_RUN)[2] for _, line in lines if _RUN in line)
    said = [
        f"{len(missing):,} of {num_runs:,} runs lack scores or rewards, and none is started; "
        "run what is missing, then the sweep again:",
        *commands,
        *(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()),
    ]
    return MissingError("\n".join(said))


def merged_commands(commands: Iterable[str]) -> list[str]:
    """Return each command once, and one for those that differ in what they score beside.

    >>> merged_commands(["offpref score s --model m", "offpref score s --model m --tier hidden"])
    ['offpref score s --model m --tier hidden']
    """
    found: dict[tuple[str, ...], dict[tuple[str, ...], None]] = {}
    for command in commands:
        words = shlex.split(command)
        start = next((i for i, word in enumerate(words) if word in _ADDED), len(words))
        added = found.setdefault(tuple(words[:start]), {})
        added.update(dict.fromkeys(_options(words[start:])))
    return [
        shlex.join([*base, *(word for option in added for word in option)])
        for base, added in found.items()
    ]


def _options(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield options with their values."""
    option: list[str] = []
    for word in words:
        if word.startswith("--") and option:
            yield tuple(option)
            option = []
        option.append(word)
    if option:
        yield tuple(option)
