"""What every command of the project does alike: errors of one line, exit codes, Ctrl-C."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from lmim.errors import UserError, redacted


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are a UserError."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; see {self.prog} --help")


def out_folder(text: str) -> Path:
    """The type of `--out`: a folder, there or yet to be made; of an object store its mirror, up to date."""
    if "://" in text:
        from lmim.trial.store import Store

        with Console(stderr=True).status(f"reading {redacted(text)} ..."):
            store = Store.open(text)
            store.pull_rest()
            store.refresh(patience=0.0)
        return store.out
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, found the file {text}")
    return path


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
