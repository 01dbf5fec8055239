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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmim.config import Config
from lmim.errors import UserError, count, nearest
from lmim.plan import cost
from lmim.plan.ablation import Trial
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


# ------------------------------------------------------------------------------------------- a round


@dataclass(frozen=True)
class Share:
    """One trial's part of a round: what it had taken before, what it is estimated to take, in seconds."""

    before: float
    needs: float
    rate: float
    """What a second of it takes of the budget."""


@dataclass(frozen=True)
class Allowance:
    """What a round may take: it travels to the workers, who ask it before a trial starts."""

    shares: Mapping[str, Share]
    until: float | None = None
    """Of a budget of the clock: when it ends, in Unix seconds."""
    left: float | None = None
    """Of one of cores or GPUs: what the round began with, in seconds."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Allowance":
        """What `dataclasses.asdict` made of it."""
        return cls(**dict(given) | {"shares": {key: Share(**one) for key, one in given["shares"].items()}})

    def allows(self, folder: TrialFolder) -> bool:
        """Whether a trial would end in time if it started now. What is refused once is refused later too.

        So the trials that have started count with what they were estimated to take, or more.
        """
        own = self.shares[folder.id]
        if self.until is not None:
            return time.time() + own.needs <= self.until
        used = {one: self._used(folder.root, one) for one in self.shares}
        begun = {one for one, seconds in used.items() if seconds > 0} | {folder.id}
        taken = [max(used[one], self.shares[one].needs) * self.shares[one].rate for one in begun]
        return self.left is None or sum(taken) <= self.left

    def spent(self, root: Path) -> float:
        """What the round has taken, in seconds; of the clock, nothing is told by the trials."""
        return sum(self._used(root, one) * share.rate for one, share in self.shares.items())

    def over(self, root: Path) -> bool:
        """Whether there is nothing left."""
        if self.until is not None:
            return time.time() >= self.until
        return self.left is not None and self.spent(root) >= self.left

    def _used(self, root: Path, trial: str) -> float:
        return max(0.0, taken(TrialFolder(root, trial)) - self.shares[trial].before)


def taken(folder: TrialFolder) -> float:
    """The seconds of a trial so far, its judging included."""
    return folder.state().seconds + sum(result.seconds for result in folder.results())


@dataclass
class Purse:
    """A budget while it is spent."""

    budget: Budget
    machine: cost.Machine
    began: float = field(default_factory=time.time)
    spent: float = 0.0
    """By the rounds that are over, in seconds of cores or GPUs."""
    expired: bool = False
    """Running trials had to be stopped."""

    def left(self) -> float:
        """In seconds, of the clock or of what it is a budget of."""
        gone = time.time() - self.began if self.budget.kind == "wall" else self.spent
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
            return Allowance(shares, until=self.began + self.budget.seconds)
        return Allowance(shares, left=self.left())

    @contextlib.contextmanager
    def enforced(self, round: Allowance, root: Path, ask: Callable[[], None]) -> Iterator[None]:
        """Ask the trials to stop when nothing is left; what the round took is taken off in the end."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                if round.over(root):
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


def listed(trials: Sequence[Trial]) -> str:
    """Trials for people: `4 trials: mse (seed 1, 2), cosine (seed 1, 2)`."""
    arms: dict[str, list[str]] = {}
    for trial in trials:
        arms.setdefault(trial.arm, []).append(str(trial.seed))
    named = [f"{arm} (seed {', '.join(seeds)})" for arm, seeds in arms.items()]
    some = ", ".join(named[:10]) + (", ..." if named[10:] else "")
    return f"{count(len(trials), 'trial')}: {some}".removesuffix(": ")


def check_kind(budget: Budget, machine: cost.Machine, trials: Sequence[Trial], address: str | None) -> None:
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
