"""What every command of the project does alike: errors of one line, exit codes, Ctrl-C."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lmim.config import UserError


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are a UserError."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; see {self.prog} --help")


def out_folder(text: str) -> Path:
    """The type of `--out`: a folder, there or yet to be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, found the file {text}")
    return path


def redacted(text: str) -> str:
    """Text without the user and password that a URI in it may carry.

    >>> redacted("no https://me:s@cret@host/mlflow there")
    'no https://host/mlflow there'
    """
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def brief(error: Exception) -> str:
    """Another library's error in one short line, without passwords; of a connection that failed, its cause.

    >>> brief(OSError("HTTPConnectionPool: no (Caused by NewError('Connection(x): Connection refused'))"))
    'Connection refused'
    """
    text = redacted(" ".join(str(error).split()).partition(" [SQL: ")[0])
    if "(Caused by " in text:
        text = text.rpartition("(Caused by ")[2].rpartition(": ")[2].rstrip("\"')")
    return text if len(text) <= 160 else f"{text[:157]}..."


def cause(error: Exception) -> str:
    """An exception in one line.

    >>> cause(ValueError("no such image\\nat all"))
    'ValueError: no such image'
    """
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}".rstrip(": ")


def exit_code(command: Callable[[], int]) -> int:
    """What the command returns; 2 and one line for what the user can mend; 130 for Ctrl-C.

    >>> exit_code(lambda: 0)
    0
    """
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # the disk is full, a folder is not ours, and the like
        if error.errno is None:
            raise
        print(f"error: {': '.join(str(p) for p in (error.filename, error.strerror) if p)}", file=sys.stderr)
        return 2
