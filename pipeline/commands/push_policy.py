"""The command ``push-policy``: a policy's model card, and the way to the Hub."""

from typing import Any

from offpref.pipeline.publishing.settings import PushSettings

from .options import command, options_of, settings_from, usage_errors
from .terminal import say


@command(options_of(PushSettings), name="push-policy", takes_store=False)
def push_policy(**options: Any) -> None:
    """Write the model card of the policy in DIR; with --push, push both to REPO on the Hub.

    Weights, configuration, tokenizer and card are pushed, into a private repository unless --public
    is given. Without --push nothing leaves this machine.
    """
    settings = settings_from(PushSettings, options)
    from offpref.pipeline.publishing.push import push_policy as run

    with usage_errors():
        done = run(settings)
    say(f"card       {done.card}")
    for each in done.files:
        say(f"  file     {each}")
    if done.address is not None:
        say(f"pushed     {done.num_bytes:,} bytes to {done.address}")
    else:
        say(f"not pushed {done.num_bytes:,} bytes; --push pushes them to {settings.repo}, private")
