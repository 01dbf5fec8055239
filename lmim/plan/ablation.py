"""Sweep file to trials: designs, arms, seeds, identities.

A sweep file declares a set of trials and the claims they are to test. Planning is pure: it reads the file,
its `base` and a scale, and imports neither torch nor Ray. Whatever is wrong with them is a `UserError` of one
line that names the file, the line, the key, what was expected and the nearest right name.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lmim.config import Config
from lmim.errors import fail, nearest, show, word
from lmim.plan.located_yaml import scalar
from lmim.plan.sweep_file import ARM, BASELINES, METRICS, SET, Axes, Setting, Settings, Spec, read, resolve

MAX_TRIALS = 10_000

ON_DISK = ("imagefolder", "cifar10", "cifar100")
"""The datasets that `data.path` must lead to."""


@dataclass(frozen=True)
class Claim:
    """What the author of a sweep expects, stated before it runs.

    Each side names an arm, or selects several by `key=value` terms.
    """

    text: str
    left: str
    op: Literal[">", "<", "collapsed", "not collapsed"]
    right: str | None = None
    metric: str | None = None
    """Only where the claim says `on METRIC`; else the sweep's metric counts."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: a cell of the design, to be run with every seed."""

    name: str
    axes: dict[str, Any]
    baseline: bool = False
    provisional: bool = False
    """True while an earlier stage of a ladder, on whose winner this arm stands, is undecided."""


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


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved at one scale.

    `planned` is the whole of it: every arm with the file's seeds and those that the call adds. `trials` are
    those among them that the call asked for.
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

    def replan(self, results: Mapping[str, float | None]) -> "Sweep":
        """The same sweep, knowing the metric of finished trials (None: finished without one).

        Only a ladder changes: a stage all of whose trials are in `results` has a winner, and the next stage's
        trials are then no longer provisional.
        """
        return expand(self.spec, results)

    @property
    def settings(self) -> dict[str, str]:
        """What the call laid over every arm."""
        return {key: word(s.value) for key, s in self.spec.base.items() if s.rank == SET}

    def where(self, key: str) -> str:
        """Where a config key was set: `file:line` or the argument; the sweep file where nobody did."""
        axes = (self.spec.axes, *(stage.axes for stage in self.spec.stages))
        found = [axis[key][0] for axis in axes if axis.get(key)]
        found += [self.spec.base[key]] if key in self.spec.base else []
        return f"{found[0].where if found else self.path}: {key}"

    def check_paths(self, trials: Iterable[Trial]) -> None:
        """Whether the datasets that trials read lie on this machine.

        Raises:
            UserError: one does not; a trial would say so too, but each for itself, and late.
        """
        for data in {trial.config.data for trial in trials}:
            if data.name not in ON_DISK:
                continue
            path = Path(data.path or "").expanduser()
            if data.path is None or not path.is_dir():
                kind = "a file" if path.is_file() else "nothing there"
                found = "none given" if data.path is None else f"{kind}: {path}"
                fail(self.where("data.path"), f"expected the folder that holds {data.name}, found {found}")


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
    axes = [stage.axes for stage in spec.stages] or [spec.axes]
    if spec.file.design in ("grid", "ladder"):
        cells = sum(math.prod(len(values) for values in stage.values()) for stage in axes)
    else:
        cells = 1 + sum(len(values) for values in spec.axes.values())
    count = (cells + len(spec.file.baselines)) * len(spec.wanted)
    if count > MAX_TRIALS and not yes:
        fail(
            spec.where("stages" if spec.stages else "axes"),
            f"expected at most {MAX_TRIALS:,} trials, found {count:,}; say --yes to plan them all",
        )
    return expand(spec)


# ------------------------------------------------------------------------------
# Expansion


@dataclass(frozen=True)
class Cell:
    """An arm before its seeds: a name, what it sets, and the ladder's stage it belongs to."""

    name: str
    changes: Settings
    baseline: bool = False
    provisional: bool = False


def expand(spec: Spec, results: Mapping[str, float | None] | None = None) -> Sweep:
    """All trials of a sweep. A cell that occurs twice appears once, under its first name."""
    keys = list(spec.axes) or list(itertools.chain(*(stage.axes for stage in spec.stages)))
    labels = _labels(keys)
    builder = _Builder(spec, keys)
    design = spec.file.design
    if design == "grid":
        builder.add(_grid(spec, labels))
    elif design == "one_factor":
        builder.add([Cell("base", {})])
        builder.add(
            Cell(_name({key: setting}, labels), {key: setting})
            for key, settings in spec.axes.items()
            for setting in settings
        )
    elif design == "leave_one_out":
        builder.add([Cell("full", {})])
        for key, (setting,) in spec.axes.items():
            if not builder.add([Cell(f"without {labels[key]}", {key: setting})]):
                fail(
                    setting.where,
                    f"{key}: expected the value without it, found the full method's own "
                    f"{show(setting.value)}",
                )
    else:
        _climb(spec, labels, builder, results or {})
    for name in spec.file.baselines:
        changes = {
            key: Setting(key, value, spec.where("baselines"), ARM) for key, value in BASELINES[name].items()
        }
        builder.add([Cell(name, changes, baseline=True)])
    if not builder.arms:
        fail(spec.where("exclude"), "expected at least one trial, found an empty grid")
    arms = tuple(builder.arms)
    return Sweep(
        name=spec.file.name,
        question=" ".join(spec.file.question.split()),
        scale=spec.scale,
        metric=spec.file.metric,
        design=design,
        claims=_claims(spec, arms),
        seeds=spec.seeds,
        arms=arms,
        planned=tuple(builder.trials),
        trials=tuple(t for t in _only(spec, arms, builder.trials) if t.seed in spec.wanted),
        path=spec.path,
        spec=spec,
    )


class _Builder:
    """Collects arms and trials, each identity once."""

    def __init__(self, spec: Spec, keys: list[str]) -> None:
        self.spec = spec
        self.keys = keys
        self.arms: list[Arm] = []
        self.trials: list[Trial] = []
        self.seen: set[str] = set()

    def add(self, cells: Iterable[Cell]) -> list[list[str]]:
        """Add cells with every seed, seed by seed, so that a sweep cut short has seen every arm.

        Returns the trial ids of each cell that was new.
        """
        fresh: list[tuple[Arm, list[Trial]]] = []
        for cell in cells:
            trials = self.build(cell)
            if trials[0].id not in self.seen:
                self.seen.update(trial.id for trial in trials)
                first = trials[0]
                fresh.append((Arm(cell.name, first.axes, cell.baseline, cell.provisional), trials))
        self.arms += [arm for arm, _ in fresh]
        for number in range(len(self.spec.seeds)):
            self.trials += [trials[number] for _, trials in fresh]
        return [[trial.id for trial in trials] for _, trials in fresh]

    def build(self, cell: Cell) -> list[Trial]:
        settings = self.spec.base | cell.changes
        config = resolve(settings, str(self.spec.path))
        flat = {} if cell.baseline else config.flat()
        axes = {key: flat[key] for key in self.keys if key in flat}
        trials = []
        for seed in self.spec.seeds:
            seeded = config.model_copy(update={"seed": seed})
            trials.append(
                Trial(seeded.identity, cell.name, seed, axes, seeded, cell.baseline, cell.provisional)
            )
        return trials


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """What each axis is called in an arm's name: its leaf, or all of it where two leaves are the same.

    >>> list(_labels(["loss", "mask.gap", "encoder.depth", "projector.depth"]).values())
    ['loss', 'gap', 'encoder.depth', 'projector.depth']
    """
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def _name(cell: Settings, labels: Mapping[str, str]) -> str:
    """`mse` where the sweep has one axis, else `gap=1 similarity=0.1`."""
    if len(labels) == 1:
        return word(next(iter(cell.values())).value)
    return " ".join(f"{labels[key]}={word(setting.value)}" for key, setting in cell.items())


def _product(axes: Axes) -> Iterator[Settings]:
    for values in itertools.product(*axes.values()):
        yield {setting.key: setting for setting in values}


def _grid(spec: Spec, labels: Mapping[str, str]) -> Iterator[Cell]:
    for cell in _product(spec.axes):
        if not any(all(cell[key].value in values for key, values in rule.items()) for rule in spec.exclude):
            yield Cell(_name(cell, labels), cell)


def _climb(
    spec: Spec, labels: Mapping[str, str], builder: _Builder, results: Mapping[str, float | None]
) -> None:
    """The stages of a ladder in order, each on the winners so far, or on the base's values."""
    won: Settings = {}
    provisional = False
    for stage in spec.stages:
        cells = [
            Cell(_name(cell, labels), won | cell, provisional=provisional) for cell in _product(stage.axes)
        ]
        builder.add(cells)
        if stage.winner is not None:
            won = won | stage.winner
            continue
        best = None if provisional else _best([builder.build(cell) for cell in cells], results)
        if best is None:
            provisional = True
        else:
            won = cells[best].changes


def _best(cells: Sequence[Sequence[Trial]], results: Mapping[str, float | None]) -> int | None:
    """The cell with the highest mean over seeds; None while one trial is missing.

    A cell of which a seed ended without a metric (it diverged) cannot win.
    """
    if any(trial.id not in results for trials in cells for trial in trials):
        return None
    means: list[tuple[float, int]] = []
    for number, trials in enumerate(cells):
        values = [results[trial.id] for trial in trials]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) == len(values):
            means.append((sum(known) / len(known), -number))
    return -max(means)[1] if means else None


# ------------------------------------------------------------------------------
# Arms by name, and claims about them

CLAIM = re.compile(
    r"(?P<left>\S.*?)\s+(?:(?P<verdict>not collapsed|collapsed)"
    r"|(?P<op>[<>])\s+(?P<right>\S.*?)(?:\s+on\s+(?P<metric>\S+))?)\s*"
)


def parse_claim(text: str) -> Claim:
    """Read `A > B`, `A < B`, `A > B on METRIC`, `A collapsed` or `A not collapsed`.

    >>> parse_claim("gap=1 > gap=0 on linear_top1").metric
    'linear_top1'

    Raises:
        ValueError: for anything else.
    """
    match = CLAIM.fullmatch(text)
    if match is None:
        raise ValueError("expected A > B, A < B, A collapsed or A not collapsed")
    op = cast(Literal[">", "<", "collapsed", "not collapsed"], match["verdict"] or match["op"])
    return Claim(text, match["left"], op, match["right"], match["metric"])


def selects(side: str, name: str, axes: Mapping[str, Any]) -> bool:
    """Whether one side of a claim selects an arm: by its name, or by terms that all hold.

    >>> selects("gap=1", "gap=1 similarity=0.1", {"mask.gap": 1, "mask.similarity": 0.1})
    True
    >>> selects("mask.gap=0", "gap=1 similarity=0.1", {"mask.gap": 1, "mask.similarity": 0.1})
    False
    """
    if side == name:
        return True
    terms = [term.partition("=") for term in side.split()]
    return bool(terms) and all(
        equals
        and any(
            term.removesuffix(".kind") in (key, key.rpartition(".")[2]) and word(wanted) == word(axes[key])
            for key in axes
        )
        for term, equals, wanted in ((t, e, _lenient(v)) for t, e, v in terms)
    )


def _lenient(text: str) -> str | int | float | bool | None:
    try:
        return scalar(text)
    except ValueError:
        return text


def _claims(spec: Spec, arms: Sequence[Arm]) -> tuple[Claim, ...]:
    claims = []
    names = _sides(arms)
    for number, text in enumerate(spec.file.claims):
        where = f"{spec.where('claims', number)}: claims.{number}"
        try:
            claim = parse_claim(text)
        except ValueError as error:
            fail(where, f"{error}, found {show(text)}")
        if claim.metric is not None and claim.metric not in METRICS:
            fail(
                where,
                f"expected one of {', '.join(METRICS)}, found {show(claim.metric)}"
                + nearest(claim.metric, METRICS),
            )
        for leaf in re.findall(r"(?<!\S)(\w+)=", f"{claim.left} {claim.right or ''}"):
            meant = sorted({key for arm in arms for key in arm.axes if key.rpartition(".")[2] == leaf})
            if len(meant) > 1:
                fail(where, f"{leaf} is {' or '.join(meant)}: write it in full")
        chosen = [
            {arm.name for arm in arms if selects(side, arm.name, arm.axes)}
            for side in (claim.left, claim.right)
            if side is not None
        ]
        for side, found in zip((claim.left, claim.right), chosen, strict=False):
            if not found:
                fail(where, f"expected an arm ({_some(names)}), found {show(side)}{nearest(side, names)}")
        if len(chosen) == 2 and chosen[0] & chosen[1]:
            fail(
                where, f"expected two sides without a common arm, found {min(chosen[0] & chosen[1])} on both"
            )
        claims.append(claim)
    return tuple(claims)


def _only(spec: Spec, arms: Sequence[Arm], trials: list[Trial]) -> list[Trial]:
    if spec.only is None:
        return trials
    kept: set[str] = set()
    names = _sides(arms)
    for wanted in spec.only:
        found = {arm.name for arm in arms if selects(wanted, arm.name, arm.axes)}
        if not found:
            fail(
                f"--only {wanted}",
                f"expected an arm of {spec.path} ({_some(names)}), found none of that name"
                + nearest(wanted, names),
            )
        kept |= found
    return [trial for trial in trials if trial.arm in kept]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _sides(arms: Sequence[Arm]) -> list[str]:
    """What a claim or --only may say: the arms' names, or where those are several terms, the single terms."""
    return list(
        dict.fromkeys(t for arm in arms for t in (arm.name.split() if "=" in arm.name else [arm.name]))
    )
