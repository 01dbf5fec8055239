"""What a call may spend: `--budget 2h`, `90min`, `10coreh`, `40gpuh`.

The missing trials run in rounds, one seed of every arm, so that what is there is balanced wherever it stops.
A round begins when its estimate fits into what is left, a trial when its own does (`Allowance.allows`, asked
where the trial runs); and when all is spent, the trials that still run save a checkpoint, as at Ctrl-C.
Hours of cores and of GPUs are those of this call's trials, by their states' seconds and their share.
"""

import argparse
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from lmim.config import Config
from lmim.errors import UserError, listed, nearest
from lmim.plan import cost
from lmim.plan.ablation import Trial
from lmim.sweep.allowance import Allowance, Share, taken
from lmim.sweep.executors import Job
from lmim.sweep.screen import duration, say
from lmim.sweep.standing import Plan, cost_of
from lmim.trial.folder import TrialFolder

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "coreh": 3600, "gpuh": 3600}
"""Of each unit; the last two are of a core's and of a GPU's time."""
SPELT = {
    **{"sec": "s", "second": "s", "m": "min", "minute": "min", "hr": "h", "hour": "h", "day": "d"},
    **{"cpuh": "coreh", "corehr": "coreh", "corehour": "coreh", "cpuhour": "coreh"},
    **{"gpuhr": "gpuh", "gpuhour": "gpuh"},
}
"""How people write them besides."""
Kind = Literal["wall", "core", "gpu"]


@dataclass(frozen=True)
class Budget:
    """What `--budget` says."""

    text: str
    seconds: float
    kind: Kind

    def of(self, found: cost.Estimate) -> float:
        """What of an estimate is to be paid of this budget, in seconds."""
        hours = {"core": found.core_hours, "gpu": found.gpu_hours}
        return hours[self.kind] * 3600 if self.kind in hours else found.wall_seconds

    def rate(self, config: Config, machine: cost.Machine) -> float:
        """What a second of a trial takes of it; of the clock, whose seconds trials share, none."""
        on_gpu, run = machine.device(config) == "cuda", config.run
        per_process = {"wall": 0.0, "core": float(run.cpus), "gpu": run.gpu_share if on_gpu else 0.0}
        return per_process[self.kind] * run.processes


def read_budget(text: str) -> Budget:
    """The type of `--budget`.

    >>> read_budget("90min"), read_budget("1.5coreh").kind
    (Budget(text='90min', seconds=5400.0, kind='wall'), 'core')
    """
    expected = "expected a number and a unit, such as 90min, 2h, 1d, 10coreh or 40gpuh"
    number, unit = re.fullmatch(r"\s*([\d.,]*)\s*(.*?)\s*", text, re.DOTALL).groups()  # type: ignore[union-attr]
    bare = re.sub(r"[^a-z]", "", unit.lower())
    bare = SPELT.get(bare.removesuffix("s"), bare)
    amount = number.replace(",", ".")
    whole = re.fullmatch(r"\d+(\.\d*)?|\.\d+", amount)
    if whole and unit in SECONDS and amount == number:
        if float(amount) == 0:
            raise argparse.ArgumentTypeError(f"expected more than nothing, found {text}")
        kind: Kind = "core" if unit == "coreh" else "gpu" if unit == "gpuh" else "wall"
        return Budget(text, float(amount) * SECONDS[unit], kind)
    near = f"; did you mean {amount}{bare}?" if bare in SECONDS else nearest(bare, SECONDS)
    raise argparse.ArgumentTypeError(f"{expected}, found {text!r}" + (near if whole else ""))


@dataclass
class Purse:
    """A budget while it is spent."""

    budget: Budget
    machine: cost.Machine
    began: float = field(default_factory=time.monotonic)
    """By a clock that nobody sets."""
    spent: float = 0.0
    """By the rounds that are over, in seconds of cores or GPUs."""
    expired: bool = False
    """Running trials had to be stopped."""

    def left(self) -> float:
        """In seconds, of the clock or of what it is a budget of."""
        gone = time.monotonic() - self.began if self.budget.kind == "wall" else self.spent
        return self.budget.seconds - gone

    def fits(self, found: cost.Estimate | None) -> bool:
        """Whether there is enough left; of what nobody knows the cost of, as long as there is anything."""
        return self.left() > 0 and (found is None or self.budget.of(found) <= self.left())

    def allowance(self, trials: Sequence[Trial], found: cost.Estimate | None, root: Path) -> Allowance:
        """What a round of these trials may take."""
        needs = found.seconds if found else (0.0,) * len(trials)
        shares = {
            trial.id: Share(
                taken(TrialFolder(root, trial.id)), seconds, self.budget.rate(trial.config, self.machine)
            )
            for trial, seconds in zip(trials, needs, strict=True)
        }
        if self.budget.kind == "wall":
            return Allowance(shares, until=time.time() + self.left())
        return Allowance(shares, left=self.left())

    @contextlib.contextmanager
    def enforced(self, round: Allowance, root: Path, ask: Callable[[], None]) -> Iterator[None]:
        """Ask the trials to stop when nothing is left; what the round took is taken off in the end."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                if self.left() <= 0 if self.budget.kind == "wall" else round.over(root):
                    self.expired = True
                    ask()
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()
            self.spent += round.spent(root)

    def told(self) -> str:
        """What of it is spent, for people."""
        gone = self.budget.seconds - self.left()
        unit = {"wall": "h", "core": " core-hours", "gpu": " GPU-hours"}[self.budget.kind]
        return f"{gone / 3600:.3g}{unit} of {self.budget.text}"


def rounds(trials: Sequence[Trial], seeds: Sequence[int]) -> list[list[Trial]]:
    """Trials by seed: those of searches, which have seeds of their own, then those of the rows."""
    order = dict.fromkeys([*(trial.seed for trial in trials if trial.seed not in seeds), *seeds])
    return [some for seed in order if (some := [trial for trial in trials if trial.seed == seed])]


def check_first(plan: Plan, address: str | None, purse: Purse, todo: Sequence[str], console: Console) -> None:
    """Whether the first round can be paid.

    Raises:
        UserError: it cannot, or the trials take none of what the budget is of.
    """
    budget = purse.budget
    # before a search has suggested anything, its rows are priced as they stand
    trials = [job.trial for job in plan.missing(todo)] or plan.where(*todo)
    _check_kind(budget, purse.machine, trials, address)
    if not trials:
        return
    first = rounds(trials, plan.sweep.seeds)[0]
    found = cost_of(plan, plan.root.parent, purse.machine, first)
    if found is None:
        line = f"--budget {budget.text}: what trials cost is unknown; the first round measures it"
        say(console, line)
    elif not purse.fits(found):
        each = "one trial of each arm" if len(first) == len(plan.sweep.arms) else f"the next {listed(first)}"
        unit = {"wall": "", "core": " of cores", "gpu": " of GPUs"}[budget.kind]
        raise UserError(
            f"--budget {budget.text}: {each} takes about {duration(budget.of(found))}{unit}; give more or "
            "choose arms with --only"
        )


def _check_kind(budget: Budget, machine: cost.Machine, trials: Sequence[Trial], address: str | None) -> None:
    """Whether the trials take any of what the budget is of.

    Raises:
        UserError: it is of GPUs, and there are none here, or no trial asks for one.
    """
    if budget.kind == "gpu" and not machine.gpus and address is None:
        raise UserError(
            f"--budget {budget.text}: this machine shows no GPU; give it in coreh or h, or name a cluster "
            "with --address"
        )
    if budget.kind == "gpu" and trials and not any(budget.rate(t.config, machine) for t in trials):
        raise UserError(f"--budget {budget.text}: no trial runs on a GPU; give it in coreh or h")


def reach(plan: Plan, purse: Purse, todo: Sequence[str]) -> str:
    """Which trials a budget reaches, by the estimate."""
    fit: list[Trial] = []
    left, missing = purse.left(), [job.trial for job in plan.missing(todo)]
    for some in rounds(missing, plan.sweep.seeds):
        found = cost_of(plan, plan.root.parent, purse.machine, some)
        if found is None:
            return f"--budget {purse.budget.text}: what trials cost is unknown; the first round measures it"
        if purse.budget.of(found) > left:
            break
        left -= purse.budget.of(found) - (found.around if purse.budget.kind == "wall" else 0.0)
        fit += some
    return f"--budget {purse.budget.text}: reaches {listed(fit)} of {len(missing)} that are missing"


def payable(plan: Plan, jobs: Sequence[Job], purse: Purse) -> list[Job]:
    """Of the jobs those of one seed, each with its allowance, if they can be paid."""
    if not jobs:
        return []
    trials = rounds([job.trial for job in jobs], plan.sweep.seeds)[0]
    found = cost_of(plan, plan.root.parent, purse.machine, trials)
    if not purse.fits(found):
        return []
    allowance = purse.allowance(trials, found, plan.root)
    return [replace(job, allowance=allowance) for job in jobs if job.trial in trials]
