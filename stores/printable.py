"""Text from data that goes to a terminal: control characters are shown, not executed."""


def printable(text: str, kept: str = "") -> str:
    r"""Return ``text`` with control characters spelled out: they could move the cursor, or worse.

    Args:
        text: Any text, of a store or a file.
        kept: Characters that stay as they are: the ends of our own lines.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)
