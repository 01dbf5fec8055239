"""Where a trial goes on: a checkpoint is the old one or the new one, whenever the process dies.

torch's file is a zip archive with a CRC-32 of each tensor, which torch itself does not look at: a flipped bit
would be gone on with. The checkpoint before the newest is kept until the trial is done.
"""

import contextlib
import errno
import io
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lmim.files import write_atomic

log = logging.getLogger(__name__)

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What `load` raises of a damaged file, and of one that may not be read."""


def before(path: Path) -> Path:
    """Where the checkpoint before the newest is kept.

    >>> before(Path("checkpoint.pt")).name
    'checkpoint.before.pt'
    """
    return path.with_suffix(f".before{path.suffix}")


def save(path: Path, state: dict[str, Any], last: bool = False) -> None:
    """Replace the checkpoint; the one that there was is kept beside it, unless this is the `last`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    if path.exists() and not last:
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a file system without links keeps the newest alone
            os.link(path, link)  # so that at every moment there is one under its own name
            link.replace(before(path))
        link.unlink(missing_ok=True)  # which a rename onto the same file leaves
    write_atomic(path, buffer.getbuffer())
    if last:
        before(path).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU; loaded without unpickling code."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise zipfile.BadZipFile(f"{wrong}: its checksum is not that of what was written")
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def load_or_set_aside(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None where there is nothing that can be read.

    A damaged one is kept beside, under another name, and the one before it takes its place.
    """
    for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what torch says of a file cut short
            raise
        aside = path.replace(path.with_suffix(".damaged"))
        reason = str(error).partition("\n")[0][:100]
        older = before(path)
        going_on = "gone on with the one before" if older.exists() else "begun anew"
        log.warning("%s cannot be read (%s): kept as %s, %s", path, reason, aside.name, going_on)
        if not older.exists():
            return None
        older.replace(path)
        return load_or_set_aside(path)
