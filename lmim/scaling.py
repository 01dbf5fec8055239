"""What a sweep of thousands of trials takes beside its trials, which are faked; all else is real.

    python -m lmim.scaling --trials 10000 --workers 500

Prints one JSON object and writes it to OUT/scaling.json. Faked are the workers and what they train: one
process stands in for all of them, and leaves in each trial's folder what a trial leaves, in its time: lock,
heartbeats, journal, evaluations. Real are the plan, the folders, the command's own loop, MLflow's database
and the report. With --ray the workers are Ray's own too, one a core, and find each trial finished when they
come to it.
"""

import bisect
import contextlib
import heapq
import json
import math
import multiprocessing
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from lmim.command import Parser, exit_code, out_folder
from lmim.errors import UserError, fail
from lmim.files import write_atomic
from lmim.plan import ablation
from lmim.sweep import command
from lmim.sweep.executors import Executor, Job, Stop, on_ray
from lmim.sweep.standing import Plan
from lmim.tracking import default_uri
from lmim.trial.code import code_digest, code_version, libraries
from lmim.trial.evaluation import Evaluation, Result, write_result
from lmim.trial.folder import TrialFolder

Json = dict[str, Any]
MIB = 2**20
SEEDS = 10
EPOCHS = 8
"""Of a faked trial: how often it writes a row and its state."""
SAMPLES = 20
SETTINGS = ("data.name=digits", "data.image_size=8", "encoder.patch_size=2", f"optim.epochs={EPOCHS}")
"""Nothing is drawn or read to plan them."""
ROWS = ("runs", "params", "tags", "metrics", "latest_metrics", "inputs")
"""MLflow's tables."""


def write_sweep(folder: Path, trials: int) -> Path:
    """A sweep file of so many trials, ten seeds an arm."""
    rates = ", ".join(f"{0.001 * (1 + number / 100):.5f}" for number in range(math.ceil(trials / SEEDS)))
    file = folder / "scaling.yaml"
    file.write_text(
        "name: scaling\nquestion: What does the command take?\nmetric: knn_top1\nevaluate: [nn, knn]\n"
        f"axes: {{optim.base_lr: [{rates}]}}\nseeds: {[*range(SEEDS)]}\n",
        encoding="utf-8",
    )
    return file


# ------------------------------------------------------------------------------------ the faked trials


@dataclass
class Faked:
    """A trial in the hands of a faked worker, between two of its events."""

    folder: TrialFolder
    evaluations: Sequence[Evaluation]
    version: str
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    epoch: int = -1

    def advance(self) -> bool:
        """Begin, or one epoch more; whether it was the last, after which the trial is judged."""
        self.epoch += 1
        if self.epoch == 0:
            self.held.enter_context(self.folder.lock())
            fields: Json = {"steps": EPOCHS, "epochs": EPOCHS, "started": time.time(), "pid": os.getpid()}
            self.folder.update(status="running", code=code_digest(), commit=code_version(), **fields)
            return False
        loss = {"train/loss": 1 / self.epoch, "train/lr": 1e-3, "train/epoch": float(self.epoch)}
        metrics = loss | {"collapse/rank": 9.0, "collapse/image_cosine": 0.5, "collapse/rank_ratio": 1.0}
        self.folder.append(self.epoch, metrics)
        newest: Json = {"step": self.epoch, "epoch": self.epoch, "metrics": metrics, "seconds": 1.0}
        over = self.epoch == EPOCHS
        if over:
            for one in self.evaluations:
                write_result(one.file(self.folder.path, self.version), self.judged(one))
            newest |= {"status": "done", "outcome": "learned", "finished": time.time()}
        self.folder.write(self.folder.state().model_copy(update=newest), durable=over)
        if over:
            self.held.close()
        return over

    def judged(self, one: Evaluation) -> Result:
        """What a protocol found: the first digits of the trial's identity."""
        metrics = {metric.name: int(self.folder.id[:4], 16) / 1000 for metric in one.metrics.values()}
        how: Json = {"code": code_digest(), "commit": code_version(), "device": "cpu", "seconds": 1.0}
        how |= {"date": "2026-01-01T00:00:00Z", "data_version": self.version, "error": ""}
        return Result(**vars(one), **libraries(), metrics=metrics, sample={}, **how)


def work(trials: Sequence[Faked], workers: int, seconds: float, halt: Path) -> int:
    """Be so many workers, whose trials take so many seconds each; how many events that were."""
    waiting, events, begun = list(reversed(trials[workers:])), 0, time.monotonic()
    # not all at the same moment
    due = [(begun + seconds * number / workers, number, one) for number, one in enumerate(trials[:workers])]
    while due and not halt.exists():
        at, number, trial = heapq.heappop(due)
        time.sleep(max(0.0, at - time.monotonic()))
        events += 1
        if not trial.advance():
            heapq.heappush(due, (max(at + seconds / EPOCHS, time.monotonic()), number, trial))
        elif waiting:
            heapq.heappush(due, (time.monotonic(), number, waiting.pop()))
    return events


Worked = list[tuple[int, float]]
"""Of each round: the events, and the seconds."""


@contextlib.contextmanager
def faked(root: Path, stop: Stop, workers: int, seconds: float, worked: Worked) -> Iterator[Executor]:
    """Faked workers, in a process of their own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        def execute(jobs: Sequence[Job]) -> None:
            trials, begun = list(map(fake(root), jobs)), time.monotonic()
            events = pool.submit(work, trials, workers, seconds, stop.file).result()
            worked.append((events, time.monotonic() - begun))

        yield execute


@contextlib.contextmanager
def finished(root: Path, stop: Stop, worked: Worked) -> Iterator[Executor]:
    """Ray's own workers, which find each trial finished."""
    with on_ray(root, stop, None, None, False) as run:

        def execute(jobs: Sequence[Job]) -> None:
            for trial in map(fake(root), jobs):
                while not trial.advance():
                    pass
            begun = time.monotonic()
            run(jobs)
            worked.append((len(jobs), time.monotonic() - begun))

        yield execute


def fake(root: Path) -> Callable[[Job], Faked]:
    """What makes a job's trial one that is faked."""
    return lambda job: Faked(
        TrialFolder(root, job.trial.id), job.evaluations, job.trial.config.data.version or ""
    )


# ------------------------------------------------------------------------------------------- what is timed


@contextlib.contextmanager
def memory(every: float) -> Iterator[list[tuple[float, float]]]:
    """This process' memory over time, in MiB, sampled every so many seconds."""
    found: list[tuple[float, float]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(every):
            found.append((time.time(), psutil.Process().memory_info().rss / MIB))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def drive(file: Path, out: Path, workers: int, seconds: float, ray: bool) -> Json:
    """Run a sweep of faked trials as the command does, and time its parts."""
    begun, worked = time.time(), Worked()
    args = command.parser().parse_args([str(file), "--out", str(out), *([] if ray else ["--serial"])])
    plan = Plan.read(ablation.load(file, sets=SETTINGS, yes=True), out / "trials").settled()
    planned = time.time()
    stop = Stop(out / ".stop")
    cluster = finished(plan.root, stop, worked) if ray else faked(plan.root, stop, workers, seconds, worked)
    console = Console(stderr=True, width=120)
    with memory(1.0) as samples:
        plan = command.bring_up_to_date(plan, args, default_uri(out), command.MISSING, stop, console, cluster)
    ran = time.time()
    states = [plan.states[trial.id].state for trial in plan.sweep.trials]
    if left := sum(state.finished is None for state in states):
        raise UserError(f"{left} of {len(states)} trials have no end: {out}")
    starts, ends = sorted(state.started or 0.0 for state in states), sorted(s.finished or 0.0 for s in states)
    rows = mlflow_rows(out)
    found: Json = {
        "trials": len(states),
        "seconds_to_plan": planned - begun,
        "events_per_second": worked[0][0] / worked[0][1],
        "mlflow_rows": rows,
        "mlflow_rows_per_second": sum(rows.values()) / (ran - planned),
        "seconds_to_run": ran - planned,
    }
    if not ray:
        found |= {"workers": workers, "trial_seconds": seconds}
        found |= {"seconds_before_first_trial": starts[0] - begun, "seconds_after_last_trial": ran - ends[-1]}
    say("report")
    begun = time.time()
    command.conclude(plan, out, default_uri(out), console, as_json=False)
    found["seconds_to_report"] = time.time() - begun
    (table,) = out.glob("scaling/*/trials.csv")
    if (shown := len(table.read_text(encoding="utf-8").splitlines()) - 1) != len(states):
        raise UserError(f"{shown} of {len(states)} trials are in the report")
    step = max(1, len(samples) // SAMPLES)
    found["driver_memory"] = [
        {"seconds": at - planned, "trials_done": bisect.bisect(ends, at), "mib": mib}
        for at, mib in samples[::step]
    ]
    return found


def mlflow_rows(out: Path) -> dict[str, int]:
    """How many rows MLflow's tables hold."""
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as database:
        return {name: database.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ROWS}


def measure(trials: int, workers: int, seconds: float, ray: bool) -> Json:
    """All of it, in a folder that is made for it."""
    with tempfile.TemporaryDirectory(prefix="lmim-scaling-") as name:
        out = Path(name)
        file = write_sweep(out, trials)
        found = drive(file, out, workers, seconds, ray)
        found["driver_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say("again, with nothing missing")
        sets = [word for one in SETTINGS for word in ("--set", one)]
        words = [str(file), "--yes", "--out", str(out), *sets]
        found["seconds_nothing_missing"] = _command(words)
        found["seconds_dry_run"] = _command([*words, "--dry-run"])
    return found


def _command(words: Sequence[str]) -> float:
    """Seconds that the command takes, in a process of its own."""
    begun = time.time()
    subprocess.run([sys.executable, "-m", "lmim.sweep", *words], stdout=subprocess.DEVNULL, check=True)
    return time.time() - begun


def say(what: str) -> None:
    """Progress, on stderr."""
    Console(stderr=True).print(f"{time.strftime('%H:%M:%S')} {what}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m lmim.scaling`: measure, print, write."""
    return exit_code(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lmim.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=out_folder, default=Path("results"), help="default: results")
    parser.add_argument("--trials", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--workers", type=int, default=500, help="faked ones; default: 500")
    parser.add_argument("--seconds", type=float, default=30.0, help="that a faked trial takes; default: 30")
    parser.add_argument("--ray", action="store_true", help="Ray's own workers, which find their trials done")
    given = parser.parse_args(argv)
    if min(given.trials, given.workers) < 1 or given.seconds < 0:
        fail("--trials, --workers, --seconds", "expected numbers from 1 on, and no negative time")
    record: Json = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": code_version(),
        "load_average": os.getloadavg(),
        "ray": given.ray,
    }
    record |= measure(given.trials, given.workers, given.seconds, given.ray)
    from lmim.bench import machine, rounded  # which import torch: it would stand in the driver's memory

    record["machine"] = machine()
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(record), indent=2) + "\n"
    write_atomic(given.out / "scaling.json", text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
