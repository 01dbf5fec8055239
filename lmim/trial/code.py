"""Which code makes a result: provenance (the commit), and whether it is the code of before."""

import functools
import hashlib
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from lmim import __version__
from lmim.variants import digest

MAKES_RESULTS = (
    "axes",
    "config.py",
    "data",
    "encoder.py",
    "evaluate",
    "objectives",
    "quantise.py",
    "schedules.py",
    "tokenizer.py",
    "train",
    "variants.py",
)
"""The part of the package that decides a trial's numbers; the rest only brings trials to it."""
LIBRARIES = ("torch", "timm")


@functools.cache
def code_digest(*names: str) -> str:
    """Twelve hex digits that change when some part of the package, or a library that computes, does.

    All of `MAKES_RESULTS` where no part is named. Comments and layout are not in it.

    Whether a change changes any number, a digest cannot tell: `lmim.replay` can.
    """
    package = Path(__file__).parent.parent
    files = sorted(file for name in names or MAKES_RESULTS for file in _sources(package / name))
    parts = [f"{file.relative_to(package)} {digest(file.read_text(encoding='utf-8'))}" for file in files]
    parts += [f"{name} {found}" for name, found in libraries().items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def libraries() -> dict[str, str]:
    """The versions of what computes a result."""
    return {name: version(name) for name in LIBRARIES}


@functools.cache
def code_version() -> str:
    """The commit of the code that makes results, for people.

    `<commit>` when `MAKES_RESULTS` is as committed, `<commit>+dirty` when it is not, the version when it was
    installed without git.
    """
    package = Path(__file__).parent.parent
    commit = _git(package, "log", "-1", "--format=%h", "--abbrev=10", "--", *MAKES_RESULTS) or __version__
    dirty = "+dirty" if _git(package, "status", "--porcelain", "--", *MAKES_RESULTS) else ""
    return commit + dirty


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
