"""Define errors whose message is a line for people."""

from __future__ import annotations


class UserError(Exception):
    """Report something that the user can put right, in a message of one line.

    Attributes:
        shared: all processes of a run come upon it, so that one of them says it for all.
    """

    shared = True


class CheckpointError(UserError, ValueError):
    """Report a weight file that cannot be used."""


class DataError(UserError):
    """Report a file of a data set that cannot be used; the message names it."""

    shared = False  # each process has images of its own

    def __init__(self, message: str) -> None:
        # A data loader's worker sends its traceback before the message.
        line = message.strip().splitlines()[-1]
        super().__init__(line.removeprefix(f"{__name__}.{type(self).__name__}: "))


def short(text: object, most: int = 80) -> str:
    """Cut text of a file for a line on a terminal: printable, and `most` characters at most."""
    line = text[: most + 1] if isinstance(text, str) else type(text).__name__
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= most else line[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    """Cut an exception's message to its first line."""
    lines = str(error).strip().splitlines()
    return short(lines[0], 300) if lines else type(error).__name__


def describe(error: BaseException) -> str:
    """Name somebody else's error by its kind and first line."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
