"""Which code makes a result."""

import functools
import hashlib
import os
import subprocess
from pathlib import Path

from lmim import __version__

MAKES_RESULTS = (
    "axes",
    "config.py",
    "data",
    "encoder.py",
    "evaluate",
    "objectives",
    "train",
)
"""The part of the package that decides a trial's numbers; the rest only brings trials to it."""


@functools.cache
def code_version() -> str:
    """What code made a result: the last commit that touched what a result depends on, or a hash of it.

    `<commit>` when `MAKES_RESULTS` is as committed, `<commit>+dirty.<8 hex of the sources>` when it
    is not, `<version>+<8 hex of the sources>` when it was installed without git.
    """
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(file for name in MAKES_RESULTS for file in _sources(package / name)):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    sources = digest.hexdigest()[:8]
    commit = _git(package, "log", "-1", "--format=%h", "--abbrev=10", "--", *MAKES_RESULTS)
    if not commit:
        return f"{__version__}+{sources}"
    return (
        f"{commit}+dirty.{sources}"
        if _git(package, "status", "--porcelain", "--", *MAKES_RESULTS)
        else commit
    )


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))


def _git(folder: Path, *arguments: str) -> str:
    # inside a git hook these variables would point at another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
