"""What of a trial is here, in a folder, and what there, in an object store: see `store.py`."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmim.files import write_atomic

MARKER, RECORD = "store.json", ".mirror.json"
LOCAL = ("lock", "figures", "checkpoint.before.pt", "checkpoint.damaged")
"""What of a trial's folder stays in the mirror, as does what begins with a dot."""
LOCAL_RESULTS = (
    "artifacts",
    MARKER,
    "trials",
    "stops",
    "mlflow.db",
    "mlflow.db-wal",
    "mlflow.db-shm",
    "mlruns",
    "mlartifacts",
)
"""What of a results folder stays there; trials and stops have their own ways."""
LARGE = ".pt"
"""Checkpoints: fetched only by who asks for them."""
STATE = "state.json"
Versions = dict[str, str]
"""File to what tells its content from another: the store's entity tag, or size and time."""


@dataclass
class Objects:
    """What a store has of one trial."""

    plain: Versions = field(default_factory=dict)
    """What the trial is."""
    held: dict[int, Versions] = field(default_factory=dict)
    """By the holder's number: what it left."""

    @property
    def newest(self) -> int:
        """The number of the newest holder; 0 where there was none."""
        return max(self.held, default=0)

    @property
    def whole(self) -> int:
        """The number of the newest holder whose copy is whole; 0 where there is none."""
        return max((number for number, files in self.held.items() if STATE in files), default=0)

    @property
    def left(self) -> Versions:
        """The files of that copy."""
        return {
            name: version
            for name, version in self.held.get(self.whole, {}).items()
            if name not in ("lease", "released")
        }

    @property
    def free(self) -> bool:
        """Whether its newest holder, if any, has let go."""
        return not self.newest or "released" in self.held[self.newest]


def trials_of(found: Versions) -> dict[str, Objects]:
    """What `find` lists under `trials/`, by trial."""
    trials: dict[str, Objects] = {}
    for path, version in found.items():
        trial, _, rest = path.partition("/")
        number, _, name = rest.partition("/")
        objects = trials.setdefault(trial, Objects())
        if number.isdigit() and name:
            objects.held.setdefault(int(number), {})[name] = version
        elif rest:
            objects.plain[rest] = version
    return trials


@dataclass
class Synced:
    """What of a folder is the same here and there, as `.mirror.json` keeps it."""

    number: int = 0
    """Of the holder whose copy it is."""
    files: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Version there; size and time of change here."""

    @classmethod
    def read(cls, folder: Path) -> "Synced":
        """What was kept; nothing where that is gone or damaged, and all is copied again."""
        try:
            kept = json.loads((folder / RECORD).read_bytes())
            return cls(kept["number"], {name: (v, size, at) for name, (v, size, at) in kept["files"].items()})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Keep it."""
        write_atomic(folder / RECORD, json.dumps(vars(self)), durable=False)

    def note(self, name: str, version: str, here: tuple[int, int]) -> None:
        """A file was copied."""
        self.files[name] = (version, *here)

    def same_there(self, name: str, version: str) -> bool:
        """Whether the store has what was copied."""
        return name in self.files and self.files[name][0] == version

    def same_here(self, name: str, here: tuple[int, int] | None) -> bool:
        """Whether the folder has what was copied."""
        return name in self.files and self.files[name][1:] == here


def stat_of(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def names_of(folder: Path, local: tuple[str, ...]) -> list[str]:
    """The files of a folder that a store is to have."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix()
        for name in found
        if name.parts[0] not in local and not any(part.startswith(".") for part in name.parts)
    )


def version_of(about: dict[str, Any]) -> str:
    """What tells an object's content from another that had its name."""
    tag = about.get("ETag") or about.get("etag") or about.get("md5Hash")
    changed = about.get("mtime") or about.get("LastModified") or about.get("created")
    return str(tag or f"{about.get('size')} {changed}")


def is_plain(name: str) -> bool:
    """Whether a file of a trial's folder is written whole by whoever has something to say of the trial."""
    return name in ("config.json", "replay.json") or name.startswith("sources/")


@contextlib.contextmanager
def snapshot(folder: Path) -> Iterator[tuple[dict[str, Path | bytes], dict[str, tuple[int, int]]]]:
    """The files of a trial that is being trained, such that none says more than those it goes with.

    The state is read first, then a link keeps the checkpoint, then the journal is read: so its rows reach as
    far as the checkpoint, and what the state says has happened. Beside them, size and time of each.
    """
    names = sorted(names_of(folder, LOCAL), key=lambda name: (name != STATE, not name.endswith(LARGE)))
    files: dict[str, Path | bytes] = {}
    stats: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory(prefix=".push", dir=folder) as held:
        for number, name in enumerate(names):
            file = folder / name
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                if is_plain(name) or (here := stat_of(file)) is None:
                    continue
                if name.endswith(LARGE):
                    kept = Path(held, str(number))
                    try:
                        os.link(file, kept)
                    except OSError:  # a file system without links
                        shutil.copy2(file, kept)
                    files[name] = kept
                else:
                    files[name] = file.read_bytes()
                stats[name] = here
        yield files, stats
