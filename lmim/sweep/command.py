"""The command: plan a sweep, skip what is done, run the rest on Ray Tune, report.

    python -m lmim.sweep ablations/loss.yaml --seeds 0,1,2

A trial's folder (see `trial/folder.py`) says whether it is done, so the command may be killed anywhere and
run again. Ray only brings trials to workers, which `worker.py` runs there.

Planning imports neither torch nor Ray nor MLflow.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from lmim import pages
from lmim.command import Parser, exit_code, out_folder
from lmim.errors import UserError, count, fail, listed, redacted
from lmim.plan import ablation, cost, record, tokenizers
from lmim.sweep import budget, sequential, studies
from lmim.sweep.budget import Purse, read_budget
from lmim.sweep.executors import Executor, Job, Stop, on_ray, serial
from lmim.sweep.resources import bundles_of, local_resources
from lmim.sweep.screen import cost_line, saving, say, show_plan, summary, watch
from lmim.sweep.standing import Plan, cost_of, machine_of
from lmim.sweep.worker import RESTARTS, record_failure
from lmim.trial.ending import goes_on
from lmim.trial.figure import Figure
from lmim.trial.folder import Busy, State, TrialFolder
from lmim.trial.store import PUSH_SECONDS, store_of, stored

if TYPE_CHECKING:
    from lmim.tracking import Tracker


def conclude(plan: Plan, out: Path, uri: str, console: Console, as_json: bool) -> None:
    """The result table, the verdict on each claim, and where to read on."""
    from lmim.analysis import report

    where = record.place(plan.sweep.scale, plan.sweep.settings)
    built = report.build(plan.sweep.name, where, out, uri)
    if as_json:
        print(json.dumps({"trials": plan.rows(), "verdicts": report.verdicts(built)}))
    report.show(built, console)
    if line := saving(plan):
        say(console, line)
    where_to = pages.how_to_open(uri, built.found.experiment, built.found.parent)
    console.print(f"MLflow: {where_to}", markup=False, soft_wrap=True, highlight=False)


MISSING = ("new", "interrupted", "running", "trained")
"""How trials stand that are to run."""
DISK_WAITS = 16
"""How many files are waited for at a time until they are on the disk."""
DESCRIPTION = (
    "Bring a sweep up to date: run what is missing. --only and --seeds choose what runs now; the report has "
    "whatever is done of the file's arms, with its seeds and those given, and names what is not."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = Parser(prog="python -m lmim.sweep", description=DESCRIPTION)
    parse.add_argument("file", type=Path, help="sweep file, e.g. ablations/loss.yaml")
    explain = "what a config key means and may be, or all of them (also in ablations/KEYS.md); runs nothing"
    parse.add_argument("--explain", metavar="KEY", action=_Explain, help=explain)
    parse.add_argument("--scale", help="a file of scales/: demo (the default), gpu, paper")
    parse.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="sets",
        help="lay a config key over every arm, e.g. data.path=/images; may be repeated",
    )
    parse.add_argument("--seeds", type=_seeds, help="run these, in the file or not, e.g. 0,1,2")
    parse.add_argument("--only", metavar="ARM", action="append", help="run this arm alone; may be repeated")
    until = "add seeds where a claim is open, until all are decided; intervals then hold for every look"
    parse.add_argument("--until-decided", action="store_true", help=until)
    most = f"with --until-decided: at most N seeds an arm (default: {sequential.MAX_SEEDS})"
    parse.add_argument("--max-seeds", type=_positive, metavar="N", help=most)
    parse.add_argument("--dry-run", action="store_true", help="print the plan and its cost; run nothing")
    parse.add_argument(
        "--json",
        action="store_true",
        help="print the trials as a JSON array; of a run, in an object with the verdicts",
    )
    parse.add_argument(
        "--out",
        type=out_folder,
        default=Path("results"),
        help="folder of all results, or an object store's, as s3://bucket/results (default: results)",
    )
    parse.add_argument("--tracking-uri", help="MLflow (default: sqlite in --out)")
    where = parse.add_mutually_exclusive_group()
    where.add_argument("--address", metavar="RAY", help="a Ray cluster that runs already")
    where.add_argument("--serial", action="store_true", help="one trial at a time in this process, no Ray")
    most = "run at most N trials at a time (default: as many as the cores or GPUs are good for)"
    parse.add_argument("--max-concurrent", type=_positive, metavar="N", help=most)
    budget = (
        "start no trial that would not end in so much time, or core- or GPU-hours: 90min, 2h, 10coreh, 40gpuh"
    )
    parse.add_argument("--budget", type=read_budget, metavar="AMOUNT", help=budget)
    parse.add_argument("--retry-failed", action="store_true", help="run once more what failed")
    parse.add_argument("--yes", action="store_true", help=f"run even more than {ablation.MAX_TRIALS} trials")
    parse.add_argument("--dashboard", action="store_true", help="Ray's dashboard, on this host only")
    return parse


class _Explain(argparse.Action):
    """Prints what a key is and leaves, as --help does; no file is needed."""

    def __call__(self, parse: argparse.ArgumentParser, *given: object) -> NoReturn:
        from lmim.plan.keys import explain

        print(explain(str(given[1])))
        parse.exit()


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
    """Run the command.

    0: all done, 1: some failed or do not count, 2: wrong words, 3: the budget is spent and some are missing,
    130: interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)

    def run() -> int:
        args = parser().parse_args(words)
        with stored(args.out):
            return command(args, words)

    return exit_code(run)


def command(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Plan, run, report; the exit code."""
    out: Path = args.out.resolve()
    root = out / "trials"
    plan = _planned(args, out)
    # stdout carries nothing but JSON when JSON was asked for
    console = Console(stderr=args.json, width=None if sys.stdout.isatty() else 120)
    todo = [*MISSING, *(["failed"] if args.retry_failed else [])]
    machine = machine_of(1 if args.serial else args.max_concurrent, _on_gpus_elsewhere(args))
    purse = args.budget and Purse(args.budget, machine)
    for note in plan.sweep.notes:
        say(console, f"note: {note}")
    if args.until_decided:
        plan = _grown(plan, args, todo, console)
    if args.dry_run:
        _show(plan, args, todo, console, machine, purse)
        _check(plan, args, todo)
        return 0
    from lmim.tracking import default_uri

    out.mkdir(parents=True, exist_ok=True)
    uri = args.tracking_uri or default_uri(out)
    if purse:
        budget.check_first(plan, args.address, purse, todo, console)
    stop = Stop(out / f".stop-{os.getpid()}-{secrets.token_hex(4)}")
    runs = bool(plan.missing(todo) or plan.stale() or any(search.left for search in plan.searches()))
    if runs:
        tell = partial(say, console)
        cluster = (
            serial(root, stop)
            if args.serial
            else on_ray(root, stop, args.address, args.max_concurrent, args.dashboard, tell)
        )
        plan = bring_up_to_date(plan, args, uri, todo, stop, console, cluster, purse)
        if stop.signals > (purse.expired if purse else 0):
            line = f"Interrupted: {summary(plan)}. To go on:\n  {_again(words)}"
            console.print(line, highlight=False, soft_wrap=True)
            return 130
    else:
        all_counts = "nothing is to run" if plan.excluded() else "nothing is missing"
        console.print(f"{plan.sweep.name}: {all_counts} ({summary(plan)})", highlight=False)
    # who won the last stage; seeds that were there already; what figures show
    if _see(plan, console) or not runs or plan.sweep.selects or plan.sweep.sequential:
        _open_tracker(uri, plan.sweep, out).close()
    try:
        conclude(plan, out, uri, console, args.json)
    except UserError as error:
        raise UserError(
            f"{error}; {summary(plan)}, kept in {out}: the same command makes the report"
        ) from None
    failed = _exit_code(plan, console)
    if purse and (missing := _left_out(plan)):
        found = cost_line(cost_of(plan, out, machine))
        say(
            console,
            f"The budget is spent ({purse.told()}). Missing: {listed(missing)}; {found}. To go on:\n"
            f"  {_again(words)}",
        )
        return failed or 3
    return failed


def _planned(args: argparse.Namespace, out: Path) -> Plan:
    """What the file and the words ask for, and how far that is."""
    sweep = ablation.load(
        args.file,
        scale=args.scale,
        sets=args.sets,
        seeds=args.seeds,
        only=args.only or None,
        yes=args.yes,
    )
    record.check_file(sweep, out)
    if args.max_seeds and not args.until_decided:
        fail("--max-seeds", "expected with --until-decided alone")
    args.max_seeds = args.max_seeds or sequential.MAX_SEEDS
    if args.until_decided:
        sweep = sequential.begin(sweep, out, args.max_seeds)
    return Plan.read(sweep, out / "trials").settled()


def _again(words: Sequence[str]) -> str:
    """The line that goes on, for a log that others read: without the password in MLflow's address.

    >>> _again(["loss.yaml", "--tracking-uri", "https://me:secret@host/"])
    'python -m lmim.sweep loss.yaml --tracking-uri https://host/'
    """
    return f"python -m lmim.sweep {shlex.join(map(redacted, words))}"


def _on_gpus_elsewhere(args: argparse.Namespace) -> bool:
    """Whether a budget is of a cluster's GPUs, of which this machine knows nothing."""
    return bool(args.address and args.budget and args.budget.kind == "gpu")


def _left_out(plan: Plan) -> list[ablation.Trial]:
    """The trials that a budget did not reach."""
    return [trial for trial in plan.where(*MISSING) if not trial.provisional]


def _show(
    plan: Plan,
    args: argparse.Namespace,
    todo: Sequence[str],
    console: Console,
    machine: cost.Machine,
    purse: Purse | None,
) -> None:
    """What --dry-run prints."""
    if args.json:
        print(json.dumps(plan.rows()))
    else:
        show_plan(plan, plan.root.parent, console, machine)
        if purse:
            say(console, budget.reach(plan, purse, todo))
        if args.until_decided:
            most = sequential.at_most(plan, args.max_seeds)
            console.print(f"more seeds follow where a claim stays open: at most {most} trials in all")
        for config in tokenizers.needed(job.trial.config for job in plan.missing(todo)):
            there = tokenizers.folder(config, config.data.version).is_dir()
            word = "is there" if there else "will be fitted first"
            console.print(f"{tokenizers.tell(config)}: {word}", markup=False, highlight=False)


def _exit_code(plan: Plan, console: Console) -> int:
    """1 where something has no result, each named."""
    failed = plan.where("failed")
    for trial in failed:
        console.print(
            f"failed: {trial.called} seed {trial.seed} ({trial.id}): {plan.states[trial.id].error}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if failed:
        console.print("To run what failed again, add --retry-failed.", highlight=False)
    excluded = plan.excluded()
    if excluded:
        arms = ", ".join(dict.fromkeys(trial.arm for trial in excluded))
        console.print(
            f"of other code, whose figures today's does not give, and in no table: "
            f"{count(len(excluded), 'trial')} of {arms}; to train one anew, delete its folder in {plan.root}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    undecided = plan.sweep.undecided and not _left_out(plan)
    if undecided:
        console.print(
            "What stands on the winner of a stage or of a search waits for it, as there is none: all that it "
            "chooses from failed, diverged, is of other code, or was left out by --only",
            style="red",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if failed or excluded or undecided else 0


def bring_up_to_date(
    plan: Plan,
    args: argparse.Namespace,
    uri: str,
    todo: Sequence[str],
    stop: Stop,
    console: Console,
    cluster: AbstractContextManager[Executor],
    purse: Purse | None = None,
) -> Plan:
    """Run what is missing, then compare what other code made with today's; how the sweep stands then."""
    root, plan = plan.root, _suggest(plan)
    prepared = _prepare(_check(plan, args, todo), plan)  # before Ray starts: a folder may be damaged
    _fit(plan.missing(todo), root, console)
    stop.listen()
    note = "" if args.serial else "; starting Ray"
    console.print(f"{plan.sweep.name} at scale {plan.sweep.scale}: {summary(plan)}{note}", highlight=False)
    replayed: set[str] = set()
    nothing = contextlib.nullcontext()
    tries: Counter[str] = Counter()  # of a trial that is trained: how often it was to be judged
    try:
        with cluster as execute, ThreadPoolExecutor(1) as pool:
            while not stop.wanted():
                plan = _suggest(plan)
                jobs = plan.missing(todo)
                if purse:
                    jobs = budget.payable(plan, jobs, purse)
                _prepare([job for job in jobs if job.trial.id not in prepared], plan)
                prepared = frozenset()
                if not jobs:
                    jobs = [job for job in plan.stale() if job.trial.id not in replayed]
                    replayed |= {job.trial.id for job in jobs}
                if not jobs and args.until_decided:
                    before, plan = plan, _grown(plan, args, todo, console)
                    if plan is not before:
                        continue
                if not jobs:
                    break
                if jobs[0].replay:
                    line = f"the code has changed: replaying {len(jobs)} trials, one of each arm"
                    console.print(line, highlight=False)
                trained = {trial.id for trial in plan.where("trained")}
                tries.update(job.trial.id for job in jobs if job.trial.id in trained)
                allowance = jobs[0].allowance
                paid = purse.enforced(allowance, root, stop.ask) if purse and allowance else nothing
                with paid:
                    plan = _round(
                        plan, jobs, lambda some: pool.submit(execute, some), uri, stop, console, tries
                    )
                todo = [status for status in todo if status != "failed"]  # one more try, not for ever
    finally:
        stop.close()
    return plan


def _grown(plan: Plan, args: argparse.Namespace, todo: Sequence[str], console: Console) -> Plan:
    """The plan with something to run, if nothing is left and a claim is open."""
    while not plan.missing(todo) and not plan.stale():
        before, plan = plan, sequential.more(plan, args.max_seeds, console)
        if plan is before:
            break
    return plan


def _suggest(plan: Plan) -> Plan:
    """The plan with what the searches of its arms suggest next, as far as it was not tried already."""
    while plan.searches() and studies.advance(plan.searches(), plan.root.parent):
        plan = plan.settled()
    return plan


def _fit(jobs: Sequence[Job], root: Path, console: Console) -> None:
    """Fit the tokenizers that trials wait for; those that go on from a checkpoint have theirs."""
    begin = [job.trial.config for job in jobs if not TrialFolder(root, job.trial.id).checkpoint.exists()]
    if configs := tokenizers.needed(begin):
        from lmim.tokenizer import ensure, told

        for config in configs:
            if not tokenizers.folder(config, config.data.version).is_dir():
                line = f"{tokenizers.tell(config)}: {told(*ensure([config]))}"
                say(console, line)


def _see(plan: Plan, console: Console) -> bool:
    """Make what figures show of each arm, of its first seed that counts; whether any was missing."""
    figures = [one for one in plan.sweep.figures if not one.of_sweep]
    first: dict[str, ablation.Trial] = {}
    for trial in sorted(plan.sweep.planned, key=lambda trial: trial.seed) if figures else ():
        stands = plan.states[trial.id]
        if trial.suggestion is None and stands.status == "done" and not stands.excluded:
            first.setdefault(trial.arm, trial)
    missing: dict[str, list[Figure]] = {}
    for arm, trial in first.items():
        where = plan.root / trial.id, trial.config.data.version or ""
        if left := [one for one in figures if not one.file(*where).is_file()]:
            missing[arm] = left
    if missing:
        from lmim.figures import make

        for arm, left in missing.items():
            with console.status(f"figures of {arm} ..."):
                failed = [*make(TrialFolder(plan.root, first[arm].id), left)]
            for line in failed:
                say(console, f"no figure of {arm}: {line}")
    return bool(missing)


def _check(plan: Plan, args: argparse.Namespace, todo: Sequence[str]) -> Sequence[Job]:
    """The jobs to begin with.

    Raises:
        UserError: they cannot run here: their data cannot be opened, or their resources are not there.
    """
    jobs = plan.missing(todo)
    plan.sweep.check_data([job.trial for job in jobs])
    if store_of(plan.root.parent) and any(bundles_of(job.trial.config) > 1 for job in jobs):
        fail(
            plan.sweep.where("run.placement"),
            "processes of a trial on several nodes read its folder, which all must see: give --out a folder",
        )
    if args.address is None:
        resources = local_resources()
        for job in jobs:
            resources.share(job.trial.config, plan.sweep.where)
    return jobs


def _round(
    plan: Plan,
    jobs: Sequence[Job],
    submit: Callable[[Sequence[Job]], Future[None]],
    uri: str,
    stop: Stop,
    console: Console,
    rounds: Mapping[str, int],
) -> Plan:
    """Run some jobs, watched and fed to MLflow; how the sweep stands then."""
    begun = {job.trial.id: plan.states[job.trial.id].state for job in jobs}
    tracker = _open_tracker(uri, plan.sweep, plan.root.parent)
    try:
        work = submit(jobs)
        plan = watch(work, plan.sweep, plan.root, tracker, stop, console)
        if not stop.wanted():
            work.result()
            if (store := store_of(plan.root.parent)) is not None:
                store.refresh(patience=2 * PUSH_SECONDS)
            _close([job for job in jobs if not job.replay], plan.root, begun, rounds)
            _tell_of_memory(jobs, plan.root, begun, console)
    finally:
        tracker.close()
    return Plan.read(plan.sweep, plan.root).settled()


def _close(jobs: Sequence[Job], root: Path, begun: Mapping[str, State], rounds: Mapping[str, int]) -> None:
    """Fail what has no result: Tune ends a trial in silence when its worker keeps dying.

    A trial that a scheduler preempted has saved, and goes on in the next round if it came further in this.
    One that was being judged has nothing to show for it, and is judged again a few times. So does one that
    ran out of memory, with more.
    """
    for job in jobs:
        folder = TrialFolder(root, job.trial.id)
        if job.allowance and not job.allowance.allows(folder):
            continue  # it was not to start, or not again
        state = folder.state()
        further = state.step > begun[folder.id].step or state.status != begun[folder.id].status
        further = further or state.memory != begun[folder.id].memory
        if state.status == "done" and rounds[folder.id] > RESTARTS:
            record_failure(folder, f"no result in {rounds[folder.id]} rounds", job.evaluations)
        elif state.status != "done" and (state.status != "interrupted" or not further):
            record_failure(folder, f"no result: its worker died {RESTARTS + 1} times, or never began")


def _tell_of_memory(jobs: Sequence[Job], root: Path, begun: Mapping[str, State], console: Console) -> None:
    """Say which trials ran out of it and are to go on with more."""
    for job in jobs:
        memory = TrialFolder(root, job.trial.id).state().memory
        if memory != begun[job.trial.id].memory:
            how = " with activation checkpointing" if memory == "checkpointing" else ""
            line = f"out of memory: {job.trial.called} seed {job.trial.seed} goes on alone{how}"
            say(console, line)


def _open_tracker(uri: str, sweep: ablation.Sweep, out: Path) -> "Tracker":
    """One process at a time: two that both make the tables of a new database get in each other's way."""
    from lmim.tracking import Tracker

    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        return Tracker(uri, sweep, out)
    finally:
        os.close(folder)


def _prepare(jobs: Sequence[Job], plan: Plan) -> frozenset[str]:
    """Make the trials' folders, from which workers read what to do; forget failures that are tried again."""

    def create(job: Job) -> None:
        TrialFolder(plan.root, job.trial.id).create(job.trial.config)

    with ThreadPoolExecutor(DISK_WAITS) as pool:  # each waits for the disk
        for _ in pool.map(create, jobs):
            pass
    for job in jobs:
        folder = TrialFolder(plan.root, job.trial.id)
        if plan.states[folder.id].status == "interrupted":
            with contextlib.suppress(Busy), folder.lock():
                if goes_on(folder.state(), folder, job.ending):
                    folder.reopen()
        if plan.states[folder.id].status == "failed":
            with contextlib.suppress(Busy), folder.lock():  # who holds it has begun to try again
                folder.forget_failures()
                if folder.state().status == "failed":
                    folder.update(status="interrupted", error=None)
    return frozenset(job.trial.id for job in jobs)
