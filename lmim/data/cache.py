"""Arrays that are costly to make, kept in files that many trials may share; how long making them takes."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from lmim.errors import UserError
from lmim.files import cache_root

Item = TypeVar("Item")


def digest(rows: object) -> str:
    """Twelve hex digits over what JSON can say, such as the names and sizes of files."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def cached_arrays(name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays that `make` returns, memory-mapped from the folder `name` of the cache."""
    folder = cached(name, lambda: {f"{key}.npy": array for key, array in make().items()}, np.save)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def cached(name: str, make: Callable[[], Mapping[str, Item]], save: Callable[[BinaryIO, Item], Any]) -> Path:
    """The folder `name` of the cache, with a file for each thing that `make` returns, as `save` writes it.

    The folder appears whole, by one rename, so a reader never meets half of it. Of processes that want it at
    once one makes it, and the others wait; where a file system has no locks, each makes its own, and the
    first to finish wins.
    """
    folder = cache_root() / name
    if not folder.is_dir():
        with _alone(folder):
            if not folder.is_dir():
                _keep(folder, make(), save)
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold what others who want the folder wait for; the kernel lets go when this process dies."""
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / f".{folder.name}.lock").open("a")
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keep(folder: Path, things: Mapping[str, Item], save: Callable[[BinaryIO, Item], Any]) -> None:
    with _writing(folder):
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for key, thing in things.items():
                with (draft / key).open("wb") as file:
                    save(file, thing)
                    file.flush()
                    os.fsync(file.fileno())
            draft.chmod(0o755)
            draft.rename(folder)
        except OSError:
            # another process was first: renaming onto its folder is refused
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot write the cache ({error.strerror}): set LMIM_CACHE") from error


def noted(what: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The same items; after two seconds stderr tells how far they are, a terminal until all are through."""
    terminal = sys.stderr.isatty()
    begun, due = time.monotonic(), 2.0
    try:
        for done, item in enumerate(items, 1):
            yield item
            spent = time.monotonic() - begun
            if spent >= due:
                line = f"{what}: {done:,} of {total:,}, {spent / done * (total - done):.0f} s left"
                print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr)
                sys.stderr.flush()
                due = spent + 0.5 if terminal else 2 * spent  # a log gets ever fewer lines
    finally:
        if terminal and due > 2:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
