"""What people see of a sweep: the plan, the live table, lines of progress."""

import contextlib
import math
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from lmim.errors import count
from lmim.metrics import SAVED, full_name
from lmim.plan import ablation, cost
from lmim.plan.record import RecordedSearch
from lmim.sweep.executors import Stop
from lmim.sweep.standing import Plan, cost_of
from lmim.sweep.worker import GRACE
from lmim.trial.folder import UNJUDGED
from lmim.trial.standing import Standing

if TYPE_CHECKING:
    from lmim.tracking import Tracker

LOOK_EVERY = 0.5
FEED_EVERY = 2.0
LINE_EVERY = 15.0
SHOWN = 40
"""Rows of the live table."""


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


def say(console: Console, line: str) -> None:
    """Print a line as it is: names in it are no mark-up, and a file gets it unbroken."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def trial_table(plan: Plan, running_only: bool = False) -> Table:
    """The trials as a table: all of them, or those that say something now."""
    metric = plan.sweep.metric
    table = Table("arm", "seed", "state", "epoch", metric, "time left", box=None, header_style="bold")
    if running_only:
        table.caption, table.caption_justify = f" {summary(plan)}", "left"
    trials = list(plan.sweep.trials)
    if running_only and len(trials) > SHOWN:
        order = {"running": 0, "failed": 1, "interrupted": 2, "trained": 3, "new": 4, "done": 5}
        trials = sorted(trials, key=lambda trial: order[plan.states[trial.id].status])[:SHOWN]
    for trial in trials:
        stands = plan.states[trial.id]
        state, status = stands.state, stands.status
        look = {"done": "green", "failed": "red", "running": "cyan"}.get(status, "dim")
        ended = status == "done" and state.outcome in ("collapsed", *UNJUDGED)
        shown = {"new": "waiting", "trained": "to judge"}.get(status, status)
        if trial.provisional:  # its folder is that of the stand-in for the winner
            look, ended, shown = "dim", False, "no winner yet"
        table.add_row(
            escape(trial.called),
            str(trial.seed),
            "[red]of other code[/]" if stands.excluded else f"[{look}]{state.outcome if ended else shown}[/]",
            f"{state.epoch}/{trial.config.optim.epochs}",
            _measure(stands, metric if trial.suggestion is None else plan.sweep.selection),
            duration(state.eta_seconds) if status == "running" and state.eta_seconds else "",
        )
    if len(trials) < len(plan.sweep.trials):
        table.add_row(f"… {len(plan.sweep.trials) - len(trials)} more", "", "", "", "", "")
    return table


def _measure(stands: Standing, metric: str) -> str:
    name = full_name(metric)
    if name in stands.metrics:
        return f"{stands.metrics[name]:.2f}"
    loss = stands.metrics.get("train/loss")
    return "" if loss is None or stands.status == "done" else f"loss {loss:.3f}"


def summary(plan: Plan) -> str:
    """One line: how many stand how."""
    words = {
        "done": "done",
        "running": "running",
        "failed": "failed",
        "interrupted": "interrupted",
        "trained": "to judge",
        "new": "to do",
    }
    # a trial whose winner is undecided is not the one that will run, however that one stands
    counts = [(sum(not t.provisional for t in plan.where(status)), word) for status, word in words.items()]
    counts += [(len({t.id for t in plan.sweep.trials if t.provisional}), "waiting for a winner")]
    said = ", ".join(f"{count} {word}" for count, word in counts if count) or "no trials"
    excluded = len(plan.excluded())
    return f"{said}; {excluded} of those done of other code and in no table" if excluded else said


def saving(plan: Plan) -> str:
    """What it saved that trials were ended early, if any were."""
    done = [plan.states[trial.id] for trial in plan.where("done")]
    ended = [stands.metrics for stands in done if stands.state.ended]
    if not ended:
        return ""
    spent = [(sum(one.get(name, 0.0) for one in ended) / 3600, name) for name in SAVED.values()]
    hours = [f"{found:.3f} {'GPU' if 'gpu' in name else 'core'}-hours" for found, name in spent if found]
    return f"{count(len(ended), 'trial')} ended early, which saved about {' and '.join(hours)}"


def watch(
    work: "Future[None]",
    sweep: ablation.Sweep,
    root: Path,
    tracker: "Tracker",
    stop: Stop,
    console: Console,
) -> Plan:
    """Feed MLflow and show the trials until the work is over; when a stop is wanted, not much longer."""
    plan, pause = Plan.read(sweep, root), LOOK_EVERY
    fed, lined = 0.0, time.monotonic()
    leave_at = math.inf
    live = Live(trial_table(plan, running_only=True), console=console, auto_refresh=False, transient=True)
    with live if console.is_terminal else contextlib.nullcontext():
        while not work.done():
            wait_for([work], timeout=0.0 if tracker.behind else pause)
            now = time.monotonic()
            stop.spread()
            if stop.wanted():
                leave_at = min(leave_at, now + GRACE) if stop.signals == 1 else now
                if now >= leave_at:
                    break
            plan = Plan.read(sweep, root, plan.states)
            # of thousands of folders it takes a core's time, which is the trials'
            pause = max(LOOK_EVERY, 4 * (time.monotonic() - now))
            if tracker.behind or now - fed >= FEED_EVERY:
                tracker.feed(FEED_EVERY)
                fed = time.monotonic()
            if console.is_terminal:
                live.update(trial_table(plan, running_only=True), refresh=True)
            elif now - lined >= LINE_EVERY:
                line = f"{time.strftime('%H:%M:%S')} {_progress(plan)}"
                say(console, line)
                lined = now
    return Plan.read(sweep, root, plan.states)


def _progress(plan: Plan) -> str:
    running = [
        f"{trial.called}/{trial.seed} {stands.state.epoch}/{trial.config.optim.epochs} "
        + _measure(stands, plan.sweep.metric if trial.suggestion is None else plan.sweep.selection)
        for trial in plan.where("running")
        for stands in [plan.states[trial.id]]
    ]
    return "; ".join([summary(plan), *running[:8]])


def cost_line(found: cost.Estimate | None) -> str:
    """The cost of what is missing, for people.

    >>> cost_line(cost.Estimate(1800.0, 4, 1.99, 0.0, "by results/bench.json"))
    'cost of what is missing: 30 min 0 s, 4 at a time, 1.99 core-hours (by results/bench.json)'
    """
    if found is None:
        return "cost of what is missing: unknown (run python -m lmim.bench, or one trial, to know)"
    if not found.slots:
        return "nothing is missing"
    spent = [(found.core_hours, "core"), (found.gpu_hours, "GPU")]
    hours = [f", {hours:,.{2 if hours < 10 else 0}f} {device}-hours" for hours, device in spent if hours]
    wall = f"{duration(found.wall_seconds)}, {found.slots} at a time"
    basis = f" ({found.basis})" if found.basis else ""
    return f"cost of what is missing: {wall}{''.join(hours)}{basis}"


def show_plan(plan: Plan, out: Path, console: Console, machine: cost.Machine) -> None:
    """What --dry-run prints."""
    sweep = plan.sweep
    console.print(f"{sweep.name} at scale {sweep.scale}: {sweep.question}", markup=False, highlight=False)
    console.print(trial_table(plan))
    console.print(
        f"{summary(plan)}; {cost_line(cost_of(plan, out, machine))}", highlight=False, soft_wrap=True
    )
    searched = [f"search: {RecordedSearch.of(search)}" for search in sweep.searches]
    for line in [*sweep.choices, *searched, *(f"claim: {claim.text}" for claim in sweep.claims)]:
        say(console, line)
