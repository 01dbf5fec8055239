"""How a sweep stands: its trials, each with what its folder says."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmim.errors import UserError
from lmim.plan import ablation, cost
from lmim.plan.search import Searched
from lmim.sweep.executors import Job
from lmim.sweep.resources import local_resources
from lmim.sweep.studies import suggested
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import NOT_COMPARED, Standing, standing
from lmim.trial.store import store_of


@dataclass(frozen=True)
class Plan:
    """A sweep's trials, each with how it stands."""

    sweep: ablation.Sweep
    root: Path
    states: Mapping[str, Standing] = field(default_factory=dict)

    @classmethod
    def read(cls, sweep: ablation.Sweep, root: Path, known: Mapping[str, Standing] | None = None) -> "Plan":
        """Look at the folders; what is `known` to be done is not read again."""
        if (store := store_of(root.parent)) is not None:
            store.refresh()
        states = {}
        for trial in sweep.planned:
            old = known.get(trial.id) if known else None
            states[trial.id] = old if old and old.status == "done" else _look(sweep, trial, root)
        return cls(sweep, root, states)

    def where(self, *status: str) -> list[ablation.Trial]:
        """The trials that stand so, each identity once."""
        unique = {trial.id: trial for trial in self.sweep.trials}
        return [trial for trial in unique.values() if self.states[trial.id].status in status]

    def excluded(self) -> list[ablation.Trial]:
        """What is done and in no table: code of another kind than today's made it."""
        return [trial for trial in self.where("done") if self.states[trial.id].excluded]

    def missing(self, todo: Sequence[str]) -> list[Job]:
        """What to run now: in a ladder, trials of the stages whose predecessor has its winner."""
        wanted = [trial for trial in self.where(*todo) if not trial.provisional]
        return [
            Job(
                trial,
                self.sweep.judged_by(trial),
                ending=self.sweep.ending_of(trial),
                memory=self.states[trial.id].state.memory,
            )
            for trial in wanted
        ]

    def stale(self) -> list[Job]:
        """One trial of each arm and code that is not today's and was not yet compared with it."""
        groups: dict[tuple[str, frozenset[str]], list[ablation.Trial]] = {}
        for trial in {trial.id: trial for trial in self.sweep.planned}.values():
            stands = self.states[trial.id]
            if stands.status in ("done", "failed") and stands.excluded == NOT_COMPARED:
                groups.setdefault((trial.config.arm, stands.codes), []).append(trial)
        return [Job(group[0], replay=[trial.id for trial in group]) for group in groups.values()]

    def settled(self) -> "Plan":
        """The plan after what is known by now.

        A ladder's stage that is over names the next one's trials, a search that is over those of its arm.
        """
        if not self.sweep.selects:
            return self
        # what failed, or is in no table, cannot win: its stage has no winner before it is run again
        name = self.sweep.selection
        counts = {key: s for key, s in self.states.items() if s.status == "done" and not s.excluded}
        known = {key: stands.metrics.get(name) for key, stands in counts.items()}
        # a suggestion that fails has been tried: every arm has as many
        known |= {one.id: None for one in self.where("failed") if one.suggestion is not None}
        studies = [search.study for search in self.sweep.searches]
        sweep = self.sweep.replan(known, suggested(studies, self.root.parent) if studies else None)
        if sweep == self.sweep:
            return self
        return Plan.read(sweep, self.root).settled()

    def searches(self) -> list[Searched]:
        """The searches of the arms that run now."""
        arms = {trial.arm for trial in self.sweep.trials}
        return [search for search in self.sweep.searches if search.study.arm in arms]

    def rows(self) -> list[dict[str, Any]]:
        """What --json prints."""
        return [
            {
                "id": trial.id,
                "arm": trial.arm,
                "seed": trial.seed,
                **({} if trial.suggestion is None else {"suggestion": trial.suggestion}),
                "config": trial.config.model_dump(mode="json"),
                "status": stands.status,
                "error": stands.error,
                "excluded": stands.excluded,
                "metrics": {k: v if math.isfinite(v) else None for k, v in stands.metrics.items()},
            }
            for trial in self.sweep.trials
            for stands in [self.states[trial.id]]
        ]


def _look(sweep: ablation.Sweep, trial: ablation.Trial, root: Path) -> Standing:
    version = trial.config.data.version or ""
    judged, ending = sweep.judged_by(trial), sweep.ending_of(trial)
    return standing(TrialFolder(root, trial.id), judged, version, ending)


def machine_of(limit: int | None, gpus: bool = False) -> cost.Machine:
    """What trials are priced for: this machine, or one like it with a GPU at least."""
    found = local_resources()
    return cost.Machine(found.cpus, max(found.gpus, 1.0) if gpus else found.gpus, limit)


def cost_of(
    plan: Plan,
    out: Path,
    machine: cost.Machine,
    trials: Sequence[ablation.Trial] | None = None,
) -> cost.Estimate | None:
    """What is missing costs, by the trials in the results folder and the bench's records; or what some do."""
    finished = []
    for path in sorted(plan.root.glob("[!.]*")):
        folder = TrialFolder(plan.root, path.name)
        with contextlib.suppress(UserError):  # of another version: says nothing about this one
            state = plan.states[folder.id].state if folder.id in plan.states else folder.state()
            finished.append(cost.Finished(folder.config(), state, folder.results()))
    todo = plan.where("new", "interrupted", "running", "trained") if trials is None else trials
    missing = [_missing(plan, trial) for trial in todo]
    # what is yet to be suggested is taken to be like the recipe
    for search in plan.searches() if trials is None else ():
        config, seeds = search.study.config, len(search.study.search.seeds)
        like = cost.Missing(config, config.optim.epochs, plan.sweep.evaluations)
        missing += [like] * search.left * seeds
    return cost.estimate(missing, finished, machine, cost.read_records(out))


def _missing(plan: Plan, trial: ablation.Trial) -> cost.Missing:
    folder, config = plan.root / trial.id, trial.config
    epochs = max(0, config.optim.epochs - plan.states[trial.id].state.epoch)
    asked, version = plan.sweep.judged_by(trial), config.data.version or ""
    return cost.Missing(config, epochs, [one for one in asked if not one.file(folder, version).is_file()])
