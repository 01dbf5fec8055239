"""Where a trial goes on: a checkpoint is the old one or the new one, whenever the process dies."""

import errno
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from lmim.files import write_atomic

log = logging.getLogger(__name__)

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)
"""What `load` raises of a damaged file, and of one that may not be read."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU; loaded without unpickling code."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def load_or_set_aside(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None where there is nothing that can be read.

    A damaged one is kept beside, under another name: nothing in it could be gone on from.
    """
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what torch says of a file cut short
            raise
        aside = path.replace(path.with_suffix(".damaged"))
        reason = str(error).partition("\n")[0][:100]
        log.warning("%s cannot be read (%s): kept as %s, begun anew", path, reason, aside.name)
        return None
