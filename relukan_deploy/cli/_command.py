"""What every command shares: its parser's form, and how errors become messages and exit codes.

Exit codes: 0 done; 1 unexpected; 2 usage or bad input; 3 parity out of tolerance; 4 a needed
package, GPU or driver is missing; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from .. import __version__
from ..errors import RelukanError

__all__ = ["console", "count", "make_parser", "result_console", "run"]

# People read standard error; standard output is for what the next program reads.
console = Console(stderr=True, highlight=False)


def result_console(*, json: bool) -> Console:
    """Where a command's result goes: standard output, or beside the JSON on standard error.

    At least 76 columns wide, since a narrower table would leave out columns.
    """
    screen = Console(stderr=json, highlight=False)
    return screen if screen.width >= 76 else Console(stderr=json, highlight=False, width=76)


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """An argument parser with --version, in the form all commands share."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--version", action="version", version=f"relukan-deploy {__version__}")
    return parser


def count(text: str) -> int:
    """The type of an argument that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses `argv`, runs the command, and returns the exit code. Other errors keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without arrows is no reason to fail
    arguments = parser.parse_args(argv)
    try:
        command(arguments)
    except RelukanError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return 0
