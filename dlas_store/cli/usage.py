"""Usage of the command line: a parser whose errors begin with the error and name the nearest words, and its help."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

PROGRAM = "dlas-store"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to a word, "" if none is near.

    >>> nearest("improt", ["import", "export"])
    "; did you mean 'import'?"
    """
    words = list(known)
    near = difflib.get_close_matches(word.lower(), words, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class CommandParser(argparse.ArgumentParser):
    """A parser of arguments that prints an error in two lines: what is wrong, and where the help is."""

    def error(self, message: str) -> NoReturn:
        """Print an error and end the program with status 2."""
        message = message.replace("the following arguments are required:", "missing:")
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the arguments\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a value against an argument's choices; argparse calls this for every value."""
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            what = "there is no command" if isinstance(action, argparse._SubParsersAction) else "no such value"
            raise argparse.ArgumentError(
                None if isinstance(action, argparse._SubParsersAction) else action,
                f"{what} {value!r}{nearest(str(value), known) or '; there are ' + ', '.join(known)}",
            )


def parse(
    parser: CommandParser, commands: dict[str, CommandParser], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line; a word that no argument takes is an error that names the nearest option.

    Args:
        parser: parser of the program, which sets the attribute ``command``.
        commands: parser of each command.
        arguments: the words of the command line, None for those of this process.
    """
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = commands.get(options.command, parser)
        word = unknown[0].split("=")[0]
        if word.startswith("-"):
            command.error(f"there is no option {word}{nearest(word, command._option_string_actions)}")
        command.error(f"too many arguments: {' '.join(unknown)}")
    return options
