"""Chaos: a sweep of many short trials under random faults, against the same sweep undisturbed.

    python -m lmim.chaos --trials 200 --seconds 600

Prints one JSON object: how many faults of which kind there were, and whether any trial was lost or trained
twice, or any figure differs. The faults are real: processes are killed and stopped, checkpoints cut short.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from rich.console import Console

from lmim.command import Parser, exit_code
from lmim.errors import UserError
from lmim.trial.code import code_version
from lmim.trial.folder import TrialFolder

ARMS = ("mse", "cosine", "smooth_l1", "norm_mse", "patch_discrimination")
TINY = (
    *("data.name=digits", "data.image_size=8", "data.train_images=128", "encoder.patch_size=2"),
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "projector.width=16", "projector.depth=1"),
    *("decoder.width=16", "decoder.depth=1", "decoder.heads=2", "optim.batch_size=32", "optim.epochs=40"),
    *("watch.every_epochs=1000", "run.log_every=1", "run.checkpoint_seconds=0.0", "run.device=cpu"),
)
"""Trials of some seconds, that have a checkpoint to go on from at every step."""
STALL_SECONDS = 10.0
"""After which a stopped process is taken to hang."""
PAUSE = (0.5, 4.0)
"""Seconds between two faults, drawn evenly."""
TIMES = ("system/", "time")
"""What differs between two runs of the same trial: names that begin so."""


def sweep_file(folder: Path, trials: int) -> Path:
    """A sweep of so many trials, rounded up to whole seeds."""
    seeds = [*range(-(-trials // len(ARMS)))]
    file = folder / "chaos.yaml"
    file.write_text(
        f"name: chaos\nquestion: is anything lost?\nmetric: knn_top1\naxes: {{loss: [{', '.join(ARMS)}]}}\n"
        f"seeds: {seeds}\nevaluate: [nn, knn]\n"
    )
    return file


def start(file: Path, out: Path) -> subprocess.Popen[str]:
    """The command, as a user types it again and again; what failed of too many faults is tried again."""
    sets = [word for setting in (*TINY, f"run.stall_timeout={STALL_SECONDS}") for word in ("--set", setting)]
    words = ["-m", "lmim.sweep", str(file), "--out", str(out), *sets, "--retry-failed", "--yes"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (out.parent / f"{out.name}.txt").open("a") as told:
        return subprocess.Popen(
            [sys.executable, *words], stdout=told, stderr=subprocess.STDOUT, text=True, env=environment
        )


# ---------------------------------------------------------------------------------------------- faults


def running(root: Path) -> list[TrialFolder]:
    """The trials whose process is at work now."""
    folders = [TrialFolder(root, path.name) for path in root.glob("[!.]*")]
    found = []
    for folder in folders:
        with contextlib.suppress(UserError):
            if folder.state().status == "running" and folder.locked():
                found.append(folder)
    return found


def signalled(number: signal.Signals) -> Callable[[TrialFolder], bool]:
    """Sends a signal to a trial's process; whether there was one."""

    def fault(folder: TrialFolder) -> bool:
        pid = folder.state().pid
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid and "lmim.sweep.worker" in " ".join(psutil.Process(pid).cmdline()):
                os.kill(pid, number)
                return True
        return False

    return fault


def cut_short(folder: TrialFolder) -> bool:
    """Kills a trial's process and takes the end of its checkpoint away; whether there was one."""
    if not signalled(signal.SIGKILL)(folder) or not folder.checkpoint.exists():
        return False
    # another process may have gone on with the trial by now: its next checkpoint is a file of its own
    os.truncate(folder.checkpoint, folder.checkpoint.stat().st_size // 2)
    return True


FAULTS: dict[str, Callable[[TrialFolder], bool]] = {
    "trial killed": signalled(signal.SIGKILL),
    "trial stopped": signalled(signal.SIGSTOP),
    "trial asked to save": signalled(signal.SIGTERM),
    "checkpoint cut short": cut_short,
}
DRIVER = "driver killed"


def disturb(file: Path, out: Path, seconds: float, draw: random.Random) -> Counter[str]:
    """Run the sweep to its end, under faults for so many seconds; how many of which kind there were."""
    faults: Counter[str] = Counter()
    driver, until = start(file, out), time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            time.sleep(draw.uniform(*PAUSE))
            if driver.poll() is not None:
                if driver.returncode == 0:
                    return faults
                driver = start(file, out)
            kind = draw.choice([*FAULTS, DRIVER])
            if kind == DRIVER and faults[DRIVER] < seconds / 60:  # each costs the start of another
                driver.kill()
                driver.wait()
                faults[kind] += 1
                driver = start(file, out)
            elif kind in FAULTS and (at := running(out / "trials")):
                faults[kind] += FAULTS[kind](draw.choice(at))
        for _ in range(3):  # what had too many faults has failed, and is tried again
            if driver.wait() == 0:
                break
            driver = start(file, out)
        return faults
    finally:
        if driver.poll() is None:
            driver.terminate()
            driver.wait()


# ------------------------------------------------------------------------------------------- outcome


def figures(out: Path) -> dict[str, dict[str, float]]:
    """What each finished trial came to, without what depends on the machine's pace."""
    found = {}
    for path in sorted((out / "trials").glob("[!.]*")):
        folder = TrialFolder(path.parent, path.name)
        if folder.state().status == "done":
            metrics = folder.metrics().items()
            found[folder.id] = {name: value for name, value in metrics if not name.startswith(TIMES)}
    return found


def repeated(out: Path) -> list[str]:
    """The trials whose journal has a step twice, in the same kind of row."""
    found = []
    for path in sorted((out / "trials").glob("[!.]*")):
        rows = [(row.step, *sorted(row.metrics)) for row in TrialFolder(path.parent, path.name).rows()[0]]
        found += [path.name] * (len(rows) != len(set(rows)))
    return found


def chaos(trials: int, seconds: float, seed: int) -> dict[str, object]:
    """The record of one run."""
    console, draw = Console(stderr=True), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="lmim-chaos-") as folder:
        file = sweep_file(Path(folder), trials)
        begun = time.monotonic()
        with console.status(f"{trials} trials, undisturbed ..."):
            if (code := start(file, Path(folder, "calm")).wait()) != 0:
                told = Path(folder, "calm.txt").read_text().splitlines()[-1:]
                raise UserError(f"lmim.sweep ended with {code} though nothing disturbed it: {told}")
        calm = time.monotonic() - begun
        with console.status(f"{trials} trials, under faults for {seconds:g} s ..."):
            faults = disturb(file, Path(folder, "storm"), seconds, draw)
        before, after = figures(Path(folder, "calm")), figures(Path(folder, "storm"))
        return {
            "trials": len(before),
            "seconds_undisturbed": calm,
            "seconds_disturbed": time.monotonic() - begun - calm,
            "seconds_of_faults": seconds,
            "seed": seed,
            "faults": dict(faults),
            "lost": sorted(before.keys() - after.keys()),
            "steps_twice": repeated(Path(folder, "storm")),
            "different": sorted(one for one in before.keys() & after.keys() if before[one] != after[one]),
            "commit": code_version(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing was lost and nothing differs, 1: something was or does, 2: wrong arguments."""
    return exit_code(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lmim.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200, help="default: 200")
    parser.add_argument("--seconds", type=float, default=600.0, help="of faults; default: 600")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default: 0")
    arguments = parser.parse_args(argv)
    record = chaos(arguments.trials, arguments.seconds, arguments.seed)
    print(json.dumps(record, indent=2))
    return int(bool(record["lost"] or record["steps_twice"] or record["different"]))


if __name__ == "__main__":
    sys.exit(main())
