"""Arrays that are costly to make, kept in files that many trials may share."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmim.errors import UserError


def cache_root() -> Path:
    """$LMIM_CACHE, or ~/.cache/lmim."""
    chosen = os.environ.get("LMIM_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "lmim"


def cached_arrays(name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays that `make` returns, memory-mapped from the folder `name` of the cache.

    The folder appears whole, by one rename, so a reader never meets half of it. Processes that make it at
    once each make their own, and the first to finish wins.
    """
    folder = cache_root() / name
    if not folder.is_dir():
        arrays = make()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                for key, array in arrays.items():
                    with (draft / f"{key}.npy").open("wb") as file:
                        np.save(file, array)
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
        except OSError as error:
            raise UserError(f"{folder}: cannot write the cache ({error.strerror}): set LMIM_CACHE") from error
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
