"""Sweeps of tiny trials from the command line, watched through their folders."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from lmim.trial.folder import State, TrialFolder
from lmim.trial.standing import standing

REPOSITORY = Path(__file__).parents[2]
TINY = [
    *("data.name=digits", "data.image_size=8", "data.train_images=128", "encoder.patch_size=2"),
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "projector.width=16", "projector.depth=1"),
    *("decoder.width=16", "decoder.depth=1", "decoder.heads=2", "optim.batch_size=64"),
    *("watch.every_epochs=1000", "run.log_every=1", "run.checkpoint_seconds=0.0"),
]


def write(
    folder: Path, name: str = "tiny", arms: str = "[mse, cosine]", seeds: str = "[0, 1]", more: str = ""
) -> Path:
    """A sweep file of small trials."""
    file = folder / f"{name}.yaml"
    head = f"name: {name}\nquestion: does it run?\nmetric: knn_top1\n"
    file.write_text(f"{head}axes: {{loss: {arms}}}\nseeds: {seeds}\n{more}")
    return file


def arguments(file: Path, *more: str, epochs: int = 1) -> list[str]:
    """The command's arguments for tiny trials, with everything under the file's folder."""
    sets = [word for setting in [*TINY, f"optim.epochs={epochs}"] for word in ("--set", setting)]
    return [str(file), "--out", str(file.parent / "out"), *sets, *more]


def reported(file: Path) -> Path:
    """Where the report of `arguments` lies."""
    (folder,) = (file.parent / "out" / file.stem).iterdir()
    return folder


def start(words: list[str], **given: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with what its environment is given besides."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | given
    return subprocess.Popen(
        [sys.executable, "-m", "lmim.sweep", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=Path(words[0]).parent,
    )


def run(words: list[str], code: int = 0) -> str:
    """Run the command to its end; what it printed."""
    process = start(words)
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == code, printed
    return printed


def eventually(holds: Callable[[], Any], what: str, seconds: float = 200.0) -> Any:
    """Wait for something true, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def folders(file: Path) -> list[TrialFolder]:
    """The trials' folders beside a sweep file."""
    root = file.parent / "out" / "trials"
    return [TrialFolder(root, path.name) for path in sorted(root.glob("*"))] if root.is_dir() else []


def at_step(file: Path, step: int) -> list[State]:
    """States of the trials that run and have passed a step."""
    found = [standing(folder) for folder in folders(file)]
    return [one.state for one in found if one.status == "running" and one.state.step > step]


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that nobody has reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
