"""The command: plan a sweep, skip what is done, run the rest on Ray Tune, report.

    python -m lmim.sweep ablations/loss.yaml --seeds 0,1,2

A trial's folder (see `trial.py`) says whether it is done, so the command may be killed anywhere and
run again. Ray only brings trials to workers, which `worker.py` runs there.

Planning imports neither torch nor Ray nor MLflow.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lmim import ablation, cost
from lmim.command import Parser, brief, exit_code, out_folder, redacted
from lmim.config import Config, UserError
from lmim.sweep_file import full_name
from lmim.trial import ProcessKilled, State, TrialFolder
from lmim.worker import GRACE, RESTARTS, fail, run_here, run_on_worker

if TYPE_CHECKING:
    from lmim.tracking import Tracker

FEED_EVERY = 2.0
LINE_EVERY = 15.0
SHOWN = 40
"""Rows of the live table."""


# ---------------------------------------------------------------- executors


@dataclass(frozen=True)
class Resources:
    """What the machine, or the cluster, has for trials."""

    cpus: float
    gpus: float
    nodes: tuple["Resources", ...] = ()
    """Of a cluster: a trial runs on one of them."""

    def share(self, config: Config, place: Callable[[str], str] = str) -> dict[str, float]:
        """What one trial takes; `place` says where a key was set.

        Raises:
            UserError: it can never be met; Ray would wait for ever.
        """
        run = config.run
        on_cpu = run.device == "cpu" or (run.device == "auto" and not self.gpus)
        gpus, cpus = 0.0 if on_cpu else run.gpus * run.processes, float(run.cpus * run.processes)
        if gpus > self.gpus:
            key = "run.processes" if run.processes > 1 else "run.device"
            less = "ask for fewer" if run.processes > 1 and self.gpus else "use --set run.device=cpu"
            raise UserError(
                f"{place(key)}: a trial asks for {gpus:g} GPUs, and {self.gpus:g} are found here; {less}, or "
                "name a cluster with --address"
            )
        if cpus > self.cpus:
            raise UserError(
                f"{place('run.cpus')}: a trial asks for {cpus:g} cores (run.cpus x run.processes), more than "
                f"the {self.cpus:g} found"
            )
        if self.nodes and not any(gpus <= node.gpus and cpus <= node.cpus for node in self.nodes):
            raise UserError(
                f"{place('run.processes')}: a trial asks for {gpus:g} GPUs and {cpus:g} cores on one machine "
                "of the cluster, and none has as many"
            )
        return {"CPU": cpus, "GPU": gpus}


def local_resources() -> Resources:
    """Cores that this process may use, and GPUs that it may see."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file() and (limit := quota.read_text().split())[0] != "max":
        cores = min(cores, max(1.0, int(limit[0]) // int(limit[1])))
    return Resources(cores, _local_gpus())


def _local_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    if not (tool := shutil.which("nvidia-smi")):
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=60)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@dataclass
class Stop:
    """The wish to stop, seen by this process and, through a file on the shared disk, by every worker."""

    file: Path
    signals: int = 0

    def wanted(self) -> bool:
        """Whether someone asked."""
        return self.signals > 0

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """A signal handler."""
        self.signals += 1
        self.file.touch()
        # not by print, which the signal may have interrupted
        later = b"Once more: leave at once." if self.signals == 1 else b"Leaving."
        os.write(2, b"\nStopping: the trials save a checkpoint. " + later + b"\n")

    def listen(self) -> None:
        """Take over Ctrl-C and SIGTERM (also from Ray, whose own handlers exit at once)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.ask)

    def close(self) -> None:
        """Give the signals their usual meaning again: there is nothing left to stop."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.file.unlink(missing_ok=True)


Executor = Callable[[Sequence[ablation.Trial]], None]
"""Runs trials until all are over or a stop is wanted; what came of each is in its folder."""


@contextlib.contextmanager
def serial(root: Path, stop: Stop) -> Iterator[Executor]:
    """One trial after the other in this process, without Ray."""
    resources = local_resources()

    def execute(trials: Sequence[ablation.Trial]) -> None:
        for trial in trials:
            resources.share(trial.config)
        for trial in trials:
            folder = TrialFolder(root, trial.id)
            try:
                run_here(trial.config, folder, stop.wanted)
            except ProcessKilled as killed:
                fail(folder, str(killed))

    yield execute


@contextlib.contextmanager
def on_ray(
    root: Path, stop: Stop, address: str | None, limit: int | None, dashboard: bool
) -> Iterator[Executor]:
    """Ray Tune, on a cluster of our own that lets no stranger in, or on the one that was named."""
    scratch = Path(tempfile.mkdtemp(prefix="lmim-", dir="/tmp" if os.path.isdir("/tmp") else None))
    found = local_resources()
    # before the import, which reads them
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    }
    if address is None:
        os.environ |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on 127.0.0.1; of one host only
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
    import ray

    own: dict[str, Any] = {
        "include_dashboard": dashboard,
        "num_cpus": math.floor(found.cpus),
        "num_gpus": math.floor(found.gpus),
        "object_store_memory": 100 * 2**20,
        "_temp_dir": str(scratch),
    }
    try:
        try:
            if address and ":" in address:  # Ray itself would try for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(own if address is None else {}),
            )
        except (OSError, ValueError) as error:
            if address is None:
                raise
            raise UserError(f"--address {address}: no Ray cluster answers there ({brief(error)})") from None
        stop.listen()
        if address is not None:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            nodes = tuple(Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive)
            found = Resources(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes), nodes)
        # workers elsewhere must see Tune's folder, so that it lies beside the trials then
        storage = scratch if address is None else root.parent / f".{scratch.name}"
        yield partial(_fit, root=root, stop=stop, resources=found, limit=limit, storage=storage)
    finally:
        ray.shutdown()
        for folder in (scratch, root.parent / f".{scratch.name}"):
            shutil.rmtree(folder, ignore_errors=True)


def _fit(
    trials: Sequence[ablation.Trial],
    root: Path,
    stop: Stop,
    resources: Resources,
    limit: int | None,
    storage: Path,
) -> None:
    """A new Tuner over an explicit list of trials: `Tuner.restore` would ignore what is new."""
    from ray import tune

    class Wanted(tune.Stopper):
        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop.wanted()

    requests = [
        {
            "root": str(root),
            "id": trial.id,
            "config": trial.config.model_dump_json(),
            "halt": str(stop.file),
            "cwd": os.getcwd(),
            "share": resources.share(trial.config),
        }
        for trial in trials
    ]
    logging.getLogger("ray").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(
            _trainable, lambda config: tune.PlacementGroupFactory([config["trial"]["share"]])
        ),
        param_space={"trial": tune.grid_search(requests)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=limit),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            stop=Wanted(),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    tuner.fit()


def _trainable(config: dict[str, Any]) -> dict[str, Any]:
    run_on_worker(config["trial"])
    return {"over": True}


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """A sweep's trials, each with how it stands."""

    sweep: ablation.Sweep
    root: Path
    states: Mapping[str, State] = field(default_factory=dict)

    @classmethod
    def read(cls, sweep: ablation.Sweep, root: Path, known: Mapping[str, State] | None = None) -> "Plan":
        """Look at the folders; what is `known` to be done is not read again."""
        states = {}
        for trial in sweep.planned:
            old = known.get(trial.id) if known else None
            states[trial.id] = old if old and old.status == "done" else standing(TrialFolder(root, trial.id))
        return cls(sweep, root, states)

    def where(self, *status: str) -> list[ablation.Trial]:
        """The trials that stand so, each identity once."""
        unique = {trial.id: trial for trial in self.sweep.trials}
        return [trial for trial in unique.values() if self.states[trial.id].status in status]

    def missing(self, todo: Sequence[str]) -> list[ablation.Trial]:
        """The trials to run now: in a ladder, those of the stages whose predecessor has its winner."""
        return [trial for trial in self.where(*todo) if not trial.provisional]

    def settled(self) -> "Plan":
        """The plan after what is known by now: a ladder's stage that is over names the next one's trials."""
        name = full_name(self.sweep.metric)
        # a failed trial has no result: its stage has no winner before it is run again
        known = {key: state.metrics.get(name) for key, state in self.states.items() if state.status == "done"}
        sweep = self.sweep.replan(known)
        if sweep == self.sweep:
            return self
        return Plan.read(sweep, self.root).settled()

    def rows(self) -> list[dict[str, Any]]:
        """What --json prints."""
        return [
            {
                "id": trial.id,
                "arm": trial.arm,
                "seed": trial.seed,
                "config": trial.config.model_dump(mode="json"),
                "status": self.states[trial.id].status,
            }
            for trial in self.sweep.trials
        ]


def standing(folder: TrialFolder) -> State:
    """A trial's state; one that calls itself running though no process holds it was interrupted."""
    state = folder.state()
    if state.status == "running" and not folder.locked():
        return state.model_copy(update={"status": "interrupted"})
    return state


def cost_of(plan: Plan, out: Path, limit: int | None) -> cost.Estimate | None:
    """What is missing costs, by the trials in the results folder and the bench's records."""
    finished = []
    for path in sorted(plan.root.iterdir()) if plan.root.is_dir() else ():
        folder = TrialFolder(plan.root, path.name)
        with contextlib.suppress(UserError):  # of another version: says nothing about this one
            finished.append((folder.config(), plan.states.get(folder.id) or folder.state()))
    missing = [
        (trial.config, max(0, trial.config.optim.epochs - plan.states[trial.id].epoch))
        for trial in plan.where("new", "interrupted", "running")
    ]
    found = local_resources()
    machine = cost.Machine(found.cpus, found.gpus, limit)
    return cost.estimate(missing, finished, machine, cost.read_records(out))


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42), duration(100), duration(5000), duration(200_000)
    ('42 s', '1 min 40 s', '1 h 23 min', '2 d 7 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


# ---------------------------------------------------------------- what people see


def trial_table(plan: Plan, running_only: bool = False) -> Table:
    """The trials as a table: all of them, or those that say something now."""
    metric = plan.sweep.metric
    table = Table("arm", "seed", "state", "epoch", metric, "time left", box=None, header_style="bold")
    if running_only:
        table.caption, table.caption_justify = f" {summary(plan)}", "left"
    trials = list(plan.sweep.trials)
    if running_only and len(trials) > SHOWN:
        order = {"running": 0, "failed": 1, "interrupted": 2, "new": 3, "done": 4}
        trials = sorted(trials, key=lambda trial: order[plan.states[trial.id].status])[:SHOWN]
    for trial in trials:
        state = plan.states[trial.id]
        look = {"done": "green", "failed": "red", "running": "cyan"}.get(state.status, "dim")
        shown = state.outcome if state.outcome in ("collapsed", "diverged") else state.status
        table.add_row(
            trial.arm,
            str(trial.seed),
            f"[{look}]{'waiting' if state.status == 'new' else shown}[/]",
            f"{state.epoch}/{trial.config.optim.epochs}",
            _measure(state, metric),
            duration(state.eta_seconds) if state.status == "running" and state.eta_seconds else "",
        )
    if len(trials) < len(plan.sweep.trials):
        table.add_row(f"… {len(plan.sweep.trials) - len(trials)} more", "", "", "", "", "")
    return table


def _measure(state: State, metric: str) -> str:
    name = full_name(metric)
    if name in state.metrics:
        return f"{state.metrics[name]:.2f}"
    loss = state.metrics.get("train/loss")
    return "" if loss is None or state.status == "done" else f"loss {loss:.3f}"


def summary(plan: Plan) -> str:
    """One line: how many stand how."""
    words = {
        "done": "done",
        "running": "running",
        "failed": "failed",
        "interrupted": "interrupted",
        "new": "to do",
    }
    counts = [(len(plan.where(status)), word) for status, word in words.items()]
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "no trials"


def watch(
    work: "Future[None]",
    sweep: ablation.Sweep,
    root: Path,
    tracker: "Tracker",
    stop: Stop,
    console: Console,
) -> Plan:
    """Feed MLflow and show the trials until the work is over; when a stop is wanted, not much longer."""
    plan = Plan.read(sweep, root)
    fed, lined = 0.0, time.monotonic()
    leave_at = math.inf
    live = Live(trial_table(plan, running_only=True), console=console, auto_refresh=False, transient=True)
    with live if console.is_terminal else contextlib.nullcontext():
        while not work.done():
            wait_for([work], timeout=0.5)
            now = time.monotonic()
            if stop.wanted():
                leave_at = min(leave_at, now + GRACE) if stop.signals == 1 else now
                if now >= leave_at:
                    break
            plan = Plan.read(sweep, root, plan.states)
            if now - fed >= FEED_EVERY:
                tracker.feed()
                fed = time.monotonic()
            if console.is_terminal:
                live.update(trial_table(plan, running_only=True), refresh=True)
            elif now - lined >= LINE_EVERY:
                line = f"{time.strftime('%H:%M:%S')} {_progress(plan)}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                lined = now
    return Plan.read(sweep, root, plan.states)


def _progress(plan: Plan) -> str:
    running = [
        f"{trial.arm}/{trial.seed} {state.epoch}/{trial.config.optim.epochs} "
        + _measure(state, plan.sweep.metric)
        for trial in plan.where("running")
        for state in [plan.states[trial.id]]
    ]
    return "; ".join([summary(plan), *running[:8]])


def conclude(plan: Plan, out: Path, uri: str, console: Console, as_json: bool) -> None:
    """The result table, the verdict on each claim, and where to read on."""
    from analysis import report

    built = report.build(plan.sweep.name, plan.sweep.scale, out, uri)
    if as_json:
        print(json.dumps(plan.rows()))
    report.show(built, console)
    place = shlex.quote(redacted(uri))
    console.print(f"MLflow: mlflow ui --backend-store-uri {place}", soft_wrap=True, highlight=False)


# ---------------------------------------------------------------- the command


DESCRIPTION = (
    "Bring a sweep up to date: run what is missing. --only and --seeds choose what runs now; the report has "
    "whatever is done of the file's arms, with its seeds and those given, and names what is not."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = Parser(prog="python -m lmim.sweep", description=DESCRIPTION)
    parse.add_argument("file", type=Path, help="sweep file, e.g. ablations/loss.yaml")
    parse.add_argument("--scale", help="a file of scales/: demo, gpu, paper")
    parse.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parse.add_argument("--seeds", type=_seeds, help="run these, in the file or not, e.g. 0,1,2")
    parse.add_argument("--only", metavar="ARM", action="append", help="run this arm alone; may be repeated")
    parse.add_argument("--dry-run", action="store_true", help="print the plan and its cost; run nothing")
    parse.add_argument("--json", action="store_true", help="print the trials as a JSON array")
    parse.add_argument("--out", type=out_folder, default=Path("results"))
    parse.add_argument("--tracking-uri", help="MLflow (default: sqlite in --out)")
    where = parse.add_mutually_exclusive_group()
    where.add_argument("--address", metavar="RAY", help="a Ray cluster that runs already")
    where.add_argument("--serial", action="store_true", help="one trial at a time in this process, no Ray")
    parse.add_argument("--max-concurrent", type=_positive, metavar="N")
    parse.add_argument("--retry-failed", action="store_true")
    parse.add_argument("--yes", action="store_true", help=f"run even more than {ablation.MAX_TRIALS} trials")
    parse.add_argument("--dashboard", action="store_true", help="Ray's dashboard, on this host only")
    return parse


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers from 0 on like 0,1,2, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0: all done, 1: some failed, 2: wrong file or arguments, 130: interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    return exit_code(lambda: command(parser().parse_args(words), words))


def command(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Plan, run, report; the exit code."""
    sweep = ablation.load(
        args.file,
        scale=args.scale,
        sets=args.sets,
        seeds=args.seeds,
        only=args.only or None,
        yes=args.yes,
    )
    out: Path = args.out.resolve()
    root = out / "trials"
    plan = Plan.read(sweep, root).settled()
    # stdout carries nothing but JSON when JSON was asked for
    console = Console(stderr=args.json, width=None if sys.stdout.isatty() else 120)
    if args.dry_run:
        if args.json:
            print(json.dumps(plan.rows()))
        else:
            show_plan(plan, out, console, 1 if args.serial else args.max_concurrent)
        return 0
    from lmim.tracking import default_uri

    out.mkdir(parents=True, exist_ok=True)
    uri = args.tracking_uri or default_uri(out)
    todo = ["new", "interrupted", "running", *(["failed"] if args.retry_failed else [])]
    stop = Stop(out / f".stop-{os.getpid()}-{secrets.token_hex(4)}")

    if not plan.missing(todo):
        console.print(f"{sweep.name}: nothing is missing ({summary(plan)})", highlight=False)
        tracker = _open_tracker(uri, sweep, out)
        tracker.feed()
        tracker.close()
    else:
        plan = bring_up_to_date(plan, args, uri, todo, stop, console)
        if stop.wanted():
            console.print(
                f"Interrupted: {summary(plan)}. To go on:\n  python -m lmim.sweep {shlex.join(words)}",
                highlight=False,
                soft_wrap=True,
            )
            return 130
    try:
        conclude(plan, out, uri, console, args.json)
    except UserError as error:
        raise UserError(
            f"{error}; {summary(plan)}, kept in {out}: the same command makes the report"
        ) from None
    failed = plan.where("failed")
    for trial in failed:
        console.print(
            f"failed: {trial.arm} seed {trial.seed} ({trial.id}): {plan.states[trial.id].error}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if failed:
        console.print("To run what failed again, add --retry-failed.", highlight=False)
    waiting = [trial for trial in plan.sweep.trials if trial.provisional]
    if waiting:
        console.print(
            f"{len(waiting)} trials wait for the winner of an earlier stage, which has none: every arm of it "
            "failed or diverged, or was left out by --only",
            style="red",
            highlight=False,
        )
    return 1 if failed or waiting else 0


def bring_up_to_date(
    plan: Plan, args: argparse.Namespace, uri: str, todo: Sequence[str], stop: Stop, console: Console
) -> Plan:
    """Run what is missing; how the sweep stands then."""
    root = plan.root
    if args.address is None:
        resources = local_resources()
        plan.sweep.check_paths(plan.missing(todo))
        for trial in plan.missing(todo):
            resources.share(trial.config, plan.sweep.where)
    _prepare(plan.missing(todo), plan)  # before Ray starts: a folder may be damaged
    stop.listen()
    note = "" if args.serial else "; starting Ray"
    console.print(f"{plan.sweep.name} at scale {plan.sweep.scale}: {summary(plan)}{note}", highlight=False)
    cluster = (
        serial(root, stop)
        if args.serial
        else on_ray(root, stop, args.address, args.max_concurrent, args.dashboard)
    )
    try:
        with cluster as execute, ThreadPoolExecutor(1) as pool:
            while (missing := plan.missing(todo)) and not stop.wanted():
                _prepare(missing, plan)
                begun = {trial.id: plan.states[trial.id].step for trial in missing}
                todo = [status for status in todo if status != "failed"]  # one more try, not for ever
                tracker = _open_tracker(uri, plan.sweep, root.parent)
                try:
                    work = pool.submit(execute, missing)
                    plan = watch(work, plan.sweep, root, tracker, stop, console)
                    if not stop.wanted():
                        work.result()
                        _close(missing, root, begun)
                    tracker.feed()
                finally:
                    tracker.close()
                plan = Plan.read(plan.sweep, root).settled()
    finally:
        stop.close()
    return Plan.read(plan.sweep, root)


def _close(trials: Sequence[ablation.Trial], root: Path, begun: Mapping[str, int]) -> None:
    """Fail what has no result: Tune ends a trial in silence when its worker keeps dying.

    A trial that a scheduler preempted has saved; it goes on in the next round if it came further in this one.
    """
    for trial in trials:
        folder = TrialFolder(root, trial.id)
        state = folder.state()
        if state.status != "interrupted" or state.step <= begun[trial.id]:
            fail(folder, f"no result: its worker died {RESTARTS + 1} times, or never began")


def _open_tracker(uri: str, sweep: ablation.Sweep, out: Path) -> "Tracker":
    """One process at a time: two that both make the tables of a new database get in each other's way."""
    from lmim.tracking import Tracker

    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        return Tracker(uri, sweep, out)
    finally:
        os.close(folder)


def _prepare(trials: Sequence[ablation.Trial], plan: Plan) -> None:
    for trial in trials:
        folder = TrialFolder(plan.root, trial.id)
        folder.create(trial.config)
        if plan.states[trial.id].status == "failed":
            folder.update(status="interrupted", error=None)


def cost_line(found: cost.Estimate | None) -> str:
    """The cost of what is missing, for people.

    >>> cost_line(cost.Estimate(1800.0, 4, 1.99, 0.0, "by results/bench.json"))
    'cost of what is missing: 30 min 0 s, 4 at a time, 1.99 core-hours (by results/bench.json)'
    """
    if found is None:
        return "cost of what is missing: unknown (run python -m lmim.bench, or one trial, to know)"
    spent = [(found.core_hours, "core"), (found.gpu_hours, "GPU")]
    hours = [f", {hours:,.{2 if hours < 10 else 0}f} {device}-hours" for hours, device in spent if hours]
    wall = f"{duration(found.wall_seconds)}, {found.slots} at a time"
    basis = f" ({found.basis})" if found.basis else ""
    return f"cost of what is missing: {wall}{''.join(hours)}{basis}"


def show_plan(plan: Plan, out: Path, console: Console, limit: int | None = None) -> None:
    """What --dry-run prints."""
    sweep = plan.sweep
    console.print(f"{sweep.name} at scale {sweep.scale}: {sweep.question}", highlight=False)
    console.print(trial_table(plan))
    console.print(f"{summary(plan)}; {cost_line(cost_of(plan, out, limit))}", highlight=False, soft_wrap=True)
    for claim in sweep.claims:
        console.print(f"claim: {claim.text}", markup=False, highlight=False)


if __name__ == "__main__":
    # by its real name, so that workers import what this process refers to
    from lmim.sweep import main as entry

    sys.exit(entry())
