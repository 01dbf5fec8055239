"""Sweep file to trials: arms, seeds, identities.

A sweep file declares a set of trials and the claims they are to test. Planning is pure: it reads the file,
its `base` and a scale, and imports neither torch nor Ray. Whatever is wrong with them is a `UserError` of one
line that names the file, the line, the key, what was expected and the nearest right name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmim.config import Config
from lmim.errors import UserError, count, fail, nearest, show, word
from lmim.plan import cost, facts
from lmim.plan.cells import labels
from lmim.plan.claims import Claim, read_claims, read_only
from lmim.plan.search import Made, Searched, Study, Suggestions, Tried, tried
from lmim.plan.settings import ARM, SET, Setting, Settings
from lmim.plan.sweep_file import BASELINES, EQUAL_COMPUTE, Cell, Results, Spec, read
from lmim.trial.ending import Ending
from lmim.trial.evaluation import Evaluation, steps_of
from lmim.trial.figure import Figure

MAX_TRIALS = 10_000


@dataclass(frozen=True)
class Arm:
    """One row of the table: a cell of the design, to be run with every seed."""

    name: str
    axes: dict[str, Any]
    baseline: bool = False
    provisional: bool = False
    """True while a winner on which this arm stands is undecided, as an earlier stage's of a ladder."""


@dataclass(frozen=True)
class Trial:
    """One training: an arm with a seed. `id` is its config's identity."""

    id: str
    arm: str
    seed: int
    axes: dict[str, Any]
    config: Config
    baseline: bool = False
    provisional: bool = False
    suggestion: int | None = None
    """Which of its arm's search it tries, from 0; None for a trial of the table."""
    ending: Ending | None = None
    """What may end it early where that is its own: of a suggestion that is behind the others."""

    @property
    def called(self) -> str:
        """The arm, and which suggestion."""
        return self.arm if self.suggestion is None else f"{self.arm}, suggestion {self.suggestion + 1}"


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved at one scale.

    `planned` is the whole of it: every arm with the file's seeds and those that the call adds (where results
    decide how many seeds there are, those in use), and what its search suggests. `trials` are those among
    them that the call asked for.
    """

    name: str
    question: str
    scale: str
    metric: str
    design: str
    claims: tuple[Claim, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    planned: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    path: Path
    spec: Spec
    notes: tuple[str, ...] = ()
    """Which arms of the design are one config, and so one arm; which images cannot be read."""
    undecided: bool = False
    """Whether a stage stands on a winner that there is not."""
    choices: tuple[str, ...] = ()
    """What results have chosen of a design that selects: for people."""
    searches: tuple[Searched, ...] = ()
    """How far the search of each arm that is tuned came."""

    def replan(self, results: Results, suggestions: Suggestions | None = None) -> "Sweep":
        """The same sweep, knowing the metric of finished trials (None: finished without one).

        Only what selects changes: once `results` have all that a winner is chosen from, the trials that stand
        on it are no longer provisional. `suggestions` are those made so far.
        """
        return expand(self.spec, results, suggestions)

    @property
    def selects(self) -> bool:
        """Whether results choose a winner on which other trials stand."""
        return self.spec.selects

    @property
    def sequential(self) -> bool:
        """Whether results decide how many seeds each arm has."""
        return self.spec.pairs is not None

    @property
    def selection(self) -> str:
        """The metric that winners are chosen by, on the validation split where it is a protocol's."""
        return self.spec.selection

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """How the trials of the table are judged."""
        return self.spec.evaluations

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What the report shows besides the table's own figures."""
        return self.spec.sheet.figures

    def judged_by(self, trial: Trial) -> tuple[Evaluation, ...]:
        """How a trial is judged: one that a search tries on validation data alone."""
        return self.spec.evaluations if trial.suggestion is None else self.spec.selecting

    @property
    def ending(self) -> Ending | None:
        """What may end a trial of the table early."""
        rule = self.spec.file.end_collapsed
        return Ending(collapse=rule) if rule else None

    def ending_of(self, trial: Trial) -> Ending | None:
        """What may end a trial early."""
        return trial.ending or self.ending

    @property
    def settings(self) -> dict[str, str]:
        """What the call laid over every arm; of data that it named by their path, what they are."""
        found = {key: word(s.value) for key, s in self.spec.base.items() if s.rank == SET}
        if "data.path" in found:
            found["data.version"] = self.planned[0].config.data.version or "unknown"
        return found

    def where(self, key: str) -> str:
        """Where a config key was set: `file:line` or the argument; the sweep file where nobody did."""
        return _where(self.spec, key)

    def check_data(self, trials: Iterable[Trial]) -> None:
        """Whether the datasets that trials read can be opened on this machine.

        Raises:
            UserError: one cannot; a trial would say so too, but each for itself, and late.
        """
        for config in {trial.config.arm: trial.config for trial in trials}.values():
            if error := facts.data_of(config).error:
                fail(self.where("data.path"), error.removeprefix("data.path: "))


def load(
    path: str | Path,
    scale: str | None = None,
    sets: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    yes: bool = False,
) -> Sweep:
    """Read a sweep file and expand it.

    Args:
        path: the sweep file.
        scale: a file of `scales/` without its suffix; looked for beside the sweep, beside its base, then in
            the project's `ablations/`. `demo` where None.
        sets: `key=value` arguments, laid over every arm.
        seeds: the seeds of `trials`, in place of the file's.
        only: the arms of `trials`, by name or by `key=value` terms.
        yes: allow more than 10,000 trials.

    Raises:
        UserError: for whatever the user can mend.
    """
    spec = read(Path(path), scale, sets, seeds, only)
    each = len(spec.wanted) + (spec.search.trials * len(spec.search.seeds) if spec.search else 0)
    asked = (spec.design.count + len(spec.file.baselines)) * each
    if asked > MAX_TRIALS and not yes:
        fail(
            spec.sheet.where(spec.design_key),
            f"expected at most {MAX_TRIALS:,} trials, found {asked:,}; say --yes to plan them all",
        )
    return expand(spec)


# ------------------------------------------------------------------------------
# Expansion


def expand(spec: Spec, results: Results | None = None, suggestions: Suggestions | None = None) -> Sweep:
    """All trials of a sweep. A cell that occurs twice appears once, under its first name."""
    builder = _Builder(spec, results or {}, suggestions or {})
    for cells in spec.design.cells(builder.ids, results or {}):
        builder.add(cells)
    for name in spec.file.baselines:
        builder.add([_baseline(spec, name)])
    written = [s for s in spec.base.values() if s.rank == SET]
    if spec.search:
        written += [one.setting(one.values[0]) for one in spec.search.ranges]
    for setting in [*written, *(one for axis in spec.design.axes.values() for one in axis)]:
        if setting.key not in builder.read:
            fail(setting.where, f"{setting.key}: no arm of this sweep reads it")
    arms = {arm.name: arm.axes for arm in builder.arms}
    configs = {trial.arm: trial.config for trial in builder.trials}
    _check_evaluations(spec, configs)
    _check_figures(spec, [*arms])
    claims = read_claims(spec, arms, configs)
    only = read_only(spec, arms)
    planned = [t for t in builder.trials if spec.pairs is None or (t.arm, t.seed) in spec.pairs]
    return Sweep(
        name=spec.file.name,
        question=" ".join(spec.file.question.split()),
        scale=spec.scale,
        metric=spec.file.metric,
        design=spec.file.design,
        claims=claims,
        seeds=spec.seeds,
        arms=tuple(builder.arms),
        planned=tuple(planned),
        trials=tuple(
            t for t in planned if t.arm in only and (t.suggestion is not None or t.seed in spec.wanted)
        ),
        path=spec.sheet.path,
        spec=spec,
        notes=(*builder.notes(), *_skipped(builder.trials), *_still(spec, builder.trials)),
        undecided=builder.undecided,
        choices=tuple(spec.design.tell(builder.ids, results or {})),
        searches=tuple(builder.searches),
    )


def _check_figures(spec: Spec, arms: Sequence[str]) -> None:
    """Whether there is the arm that a figure holds the others against."""
    for number, one in enumerate(spec.sheet.figures):
        to = one.settings.get("to", "")
        if to and to not in arms:
            where = f"{spec.sheet.where('figures', number)}: figures"
            fail(where, f"{one.name}.to: expected an arm, found {show(to)}{nearest(to, arms)}")


def _check_evaluations(spec: Spec, configs: Mapping[str, Config]) -> None:
    """Whether some arm has what each protocol needs, and every arm the layer that it looks at."""
    for number, one in enumerate(spec.sheet.evaluations):
        where = f"{spec.sheet.where('evaluate', number)}: evaluate"
        if not any(one.applies(config) for config in configs.values()):
            fail(where, f"{one.protocol}: no arm of this sweep has {', '.join(one.methods)}")
        for arm, config in configs.items():
            if hasattr(config, "encoder") and one.layers > (depth := config.section("encoder").depth):
                wanted = f"expected at most the encoder.depth of {arm}, {depth}, found {one.layers}"
                fail(where, f"{one.protocol}.layer: {wanted}")
            if one.protocol == "finetune" and one.applies(config):
                try:
                    steps_of(one.settings["batch_size"], config.optim.accumulate)
                except UserError as error:
                    fail(where, str(error))
            if (data := one.opens) is not None:
                theirs, ours = facts.dataset_of(data, one.sources), facts.data_of(config)
                if not ours.error and theirs.channels != ours.channels:
                    wanted = f"expected data of {ours.channels} channels, as {arm} has seen"
                    fail(where, f"{one.protocol}.data: {wanted}, found {data.name} of {theirs.channels}")


def _baseline(spec: Spec, name: str) -> Cell:
    where = spec.sheet.where("baselines")
    changes = {key: Setting(key, value, where, ARM) for key, value in BASELINES[name].items()}
    if name.endswith(EQUAL_COMPUTE):
        pairs = spec.base, spec.base | changes
        base, other = (spec.sheet.schema.resolve(settings, str(spec.sheet.path)) for settings in pairs)
        if base.optim.epochs:
            works = cost.works([base, other])
            epochs = max(1, round(base.optim.epochs * works[base.arm].epoch / works[other.arm].epoch))
            changes["optim.epochs"] = Setting("optim.epochs", epochs, where, ARM)
    return Cell(name, changes, baseline=True)


def _skipped(trials: Iterable[Trial]) -> Iterator[str]:
    """What of each dataset no trial sees."""
    for config in {trial.config.data.model_dump_json(): trial.config for trial in trials}.values():
        data = facts.data_of(config)
        if data.skipped:
            more = ", ..." if data.skipped > len(data.skipped_names) else ""
            named = ", ".join(data.skipped_names)
            files = count(data.skipped, "file")
            yield f"{config.data.path}: {files} cannot be read and left out: {named}{more}"


def _still(spec: Spec, trials: Iterable[Trial]) -> Iterator[str]:
    """Which objectives see of clips one frame alone."""
    for name, config in {(t.config.data.name, t.config.objective): t.config for t in trials}.items():
        frames = facts.data_of(config).frames
        if frames > 1 and config.optim.epochs and not config.frames:
            yield (
                f"{_where(spec, 'data.name')}: of {name[0]}'s clips of {frames} frames {name[1]} sees the "
                "middle ones alone"
            )


def _where(spec: Spec, key: str) -> str:
    base = spec.base.get(key)
    found = next(iter(spec.design.axes.get(key, ())), base)
    return f"{found.where if found else spec.sheet.path}: {key}"


class _Builder:
    """Collects arms and trials, each identity once."""

    def __init__(self, spec: Spec, results: Results, suggestions: Suggestions) -> None:
        self.spec, self.results, self.suggestions = spec, results, suggestions
        self.searches: list[Searched] = []
        self.arms: list[Arm] = []
        self.trials: list[Trial] = []
        self.undecided = False
        self.seen: dict[str, str] = {}
        """A trial of each arm, and the arm."""
        self.same: dict[str, list[str]] = {}
        """An arm, and the cells after its own that are the same config."""
        self.read: set[str] = set()
        """The config keys that some cell reads."""

    def add(self, cells: Iterable[Cell]) -> None:
        """Add cells with every seed, seed by seed, so that a sweep cut short has seen every arm."""
        fresh: list[list[Trial]] = []
        for cell in cells:
            self.undecided |= cell.provisional
            trials = self.build(cell)
            first = trials[0]
            if twin := self.seen.get(first.id):
                if not cell.provisional:  # else it is the winner's place, and not yet its config
                    self.same.setdefault(twin, []).append(cell.name)
            else:
                self.seen |= {trial.id: first.arm for trial in trials}
                fresh.append(self.tuned(cell, trials))
                self.arms.append(Arm(first.arm, first.axes, cell.baseline, cell.provisional))
        for number in range(len(self.spec.seeds)):
            self.trials += [trials[number] for trials in fresh]

    def tuned(self, cell: Cell, trials: list[Trial]) -> list[Trial]:
        """A cell's trials as its search has tuned them, and what the search tries beside them."""
        study = self.spec.search and self.spec.search.study(trials[0].arm, trials[0].config)
        if not study:
            return trials
        made = self.suggestions.get(study.identity, ())[: study.search.trials]
        if not made:
            for end in [one.setting(value) for one in study.ranges for value in one.values]:
                self.build(cell, {end.key: end})  # a UserError where an end does not go with the arm
        search = Searched(study, tuple(self.suggested(cell, study, n, made) for n in range(len(made))))
        self.searches.append(search)
        if not search.over or search.best is None:
            self.undecided = True
            return [replace(trial, provisional=True) for trial in trials]
        return self.build(cell, study.settings(search.best.params))

    def suggested(self, cell: Cell, study: Study, number: int, made: Sequence[Made]) -> Tried:
        """What a suggestion is tried with, and what came of it."""
        try:
            built = self.build(cell, study.settings(made[number].params), study.search.seeds)
            prune = study.prune(made[:number])
            ending = Ending(collapse=self.spec.file.end_collapsed, prune=prune) if prune else None
            trials = [replace(trial, suggestion=number, ending=ending) for trial in built]
        except UserError:  # values that do not go together
            trials = []
        self.trials += trials
        return tried(made[number].params, [trial.id for trial in trials], self.results)

    def build(
        self, cell: Cell, tuned: Settings | None = None, seeds: Sequence[int] | None = None
    ) -> list[Trial]:
        settings = self.spec.base | cell.changes | (tuned or {})
        config = self.spec.sheet.schema.resolve(settings, str(self.spec.sheet.path))
        flat = config.flat()
        self.read |= flat.keys()
        axes = {} if cell.baseline else {k: flat[k] for k in self.spec.design.axes if k in flat}
        name = self._name(cell, axes)
        trials = []
        for seed in self.spec.seeds if seeds is None else seeds:
            seeded = config.model_copy(update={"seed": seed})
            trials.append(Trial(seeded.identity, name, seed, axes, seeded, cell.baseline, cell.provisional))
        return trials

    def _name(self, cell: Cell, axes: dict[str, Any]) -> str:
        """The cell's name without the terms of axes that its variants do not read."""
        if cell.baseline or all(key in axes for key in cell.changes):
            return cell.name
        named = labels(self.spec.design.axes)
        unread = tuple(f"{named[key]}=" for key in cell.changes if key not in axes)
        return " ".join(term for term in cell.name.split(" ") if not term.startswith(unread))

    def notes(self) -> Iterator[str]:
        """No cell of a design goes without a word."""
        for arm, cells in self.same.items():
            named = [f"{name} again" if name == arm else name for name in dict.fromkeys(cells)]
            more = f" and {len(named) - 3} more" if named[3:] else ""
            yield f"{', '.join(named[:3])}{more}: the same config as {arm}, so one arm"

    def ids(self, cell: Cell) -> list[str]:
        return [trial.id for trial in self.build(cell)]
