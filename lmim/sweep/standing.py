"""How a sweep stands: its trials, each with the state of its folder."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmim.errors import UserError
from lmim.plan import ablation, cost
from lmim.plan.sweep_file import full_name
from lmim.sweep.executors import local_resources
from lmim.trial.folder import State, TrialFolder


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
