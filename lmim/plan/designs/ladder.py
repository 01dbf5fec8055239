"""Stages in order, each on the winner of the last: the paper's own way through its questions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmim.config import Section
from lmim.errors import count, fail, nearest, show
from lmim.plan.cells import Choices, flat, namer, pick, product, read_axes, together
from lmim.plan.settings import Settings
from lmim.plan.sweep_file import (
    Cell,
    Design,
    Ids,
    Results,
    Sheet,
    SweepFile,
)

Namer = Callable[[Settings], str]
"""See `namer`."""


class StageFile(Section):
    """One stage of a ladder."""

    axes: dict[str, Any]
    """Config key to its values."""
    select: Any = "best"
    """`best`, or the winner fixed beforehand: a value for each axis of the stage."""


class Keys(SweepFile):
    stages: list[StageFile]
    """In order: each has its axes, and stands on the winner of the last."""


@dataclass(frozen=True)
class Stage:
    """The axes of a stage, and its winner where the file fixes it."""

    axes: Choices
    winner: Settings | None


@dataclass(frozen=True)
class Step:
    """A stage with the results so far."""

    stage: Stage
    tried: Sequence[Cell]
    means: Sequence[float]
    """Of each cell, NaN where a seed ended without a metric; none while one trial is missing."""
    seeds: int

    @property
    def ranked(self) -> list[tuple[float, Cell]]:
        """The cells that may win, the best first, of equals the first."""
        able = [pair for pair in zip(self.means, self.tried, strict=False) if math.isfinite(pair[0])]
        return sorted(able, key=lambda pair: -pair[0])

    def told(self, name: Namer, metric: str) -> str:
        """Who won, and by how much."""
        if self.stage.winner is not None:
            return f"{name(self.stage.winner)} is fixed by the file"
        if not self.ranked:
            return "not decided yet"
        (best, cell), *others = self.ranked
        text = f"{cell.name} won with {best:.2f}"
        if others:
            text += f", {best - others[0][0]:.2f} more than {others[0][1].name}"
        return f"{text} (validation {metric}, mean over {count(self.seeds, 'seed')})"


def ladder(file: Keys, sheet: Sheet) -> Design:
    """The stages in order, each on the winners so far, or on the base's values while one is undecided."""
    stages = _stages(file, sheet)
    axes = {key: settings for stage in stages for key, settings in stage.axes.items()}
    name = namer(axes)
    selects = any(stage.winner is None for stage in stages)
    if selects and sheet.metric(file.metric, f"{sheet.where('metric')}: metric").better == "lower":
        fail(
            sheet.where("metric"),
            f"metric: a stage keeps the highest, and of {file.metric} less is better",
        )

    def cells(ids: Ids, results: Results) -> Iterator[Sequence[Cell]]:
        return (step.tried for step in _climb(stages, name, ids, results))

    def tell(ids: Ids, results: Results) -> Iterator[str]:
        metric = sheet.metric(file.metric, f"{sheet.where('metric')}: metric").heading
        for number, step in enumerate(_climb(stages, name, ids, results), 1):
            yield f"stage {number} ({', '.join(step.stage.axes)}): {step.told(name, metric)}"

    most = sum(math.prod(len(values) for values in stage.axes.values()) for stage in stages)
    return Design(flat(axes), most, cells, selects=selects, by_seed=True, tell=tell)


def _stages(file: Keys, sheet: Sheet) -> list[Stage]:
    stages: list[Stage] = []
    for number, stage in enumerate(file.stages):
        at = ("stages", number)
        axes = read_axes(sheet, (*at, "axes"), stage.axes)
        for key in flat(axes):
            if any(key in flat(earlier.axes) for earlier in stages):
                fail(sheet.where(*at, "axes", key), f"{key}: expected an axis of one stage, found it in two")
        stages.append(Stage(axes, _winner(stage.select, axes, sheet, sheet.where(*at, "select"))))
    if not stages:
        fail(sheet.where("stages"), "stages: expected at least one stage, found an empty grid")
    return stages


def _winner(select: Any, axes: Choices, sheet: Sheet, where: str) -> Settings | None:
    if select == "best":
        return None
    if not isinstance(select, dict):
        fail(
            where,
            f"select: expected best or a mapping of axis to value, found {show(select)}"
            + nearest(select, ["best"]),
        )
    fixed = {key if key in axes else sheet.schema.key(key, where): value for key, value in select.items()}
    winner = {key: pick(key, value, axes, where) for key, value in fixed.items()}
    missing = [key for key in axes if key not in winner]
    if missing:
        fail(
            where, f"select: expected a value for each axis of the stage, found none for {', '.join(missing)}"
        )
    return together(winner)


def _climb(stages: Sequence[Stage], name: Namer, ids: Ids, results: Results) -> Iterator[Step]:
    """The stages, each on the winner of the last.

    What stands on a winner that is undecided is provisional, and has the base's cell in its place, or the
    first: any other would make another number of trials, as some of a stage's are those of the one before.
    """
    won: Settings = {}
    provisional = False
    for stage in stages:
        cells = map(together, product(stage.axes))
        tried = [Cell(name(cell), won | cell, provisional=provisional) for cell in cells]
        step = Step(stage, tried, [] if provisional else _means(tried, ids, results), len(ids(tried[0])))
        yield step
        if stage.winner is not None:
            won = won | stage.winner
        elif step.ranked:
            won = step.ranked[0][1].changes
        else:
            provisional, base = True, ids(Cell("", won))
            won = next((cell for cell in tried if ids(cell) == base), tried[0]).changes


def _means(cells: Sequence[Cell], ids: Ids, results: Results) -> list[float]:
    """Each cell's mean over its trials; none while one trial is missing.

    A cell of which a seed ended without a metric (it diverged) cannot win.
    """
    trials = [ids(cell) for cell in cells]
    if any(trial not in results for one in trials for trial in one):
        return []
    values = [[math.nan if (found := results[trial]) is None else found for trial in one] for one in trials]
    return [sum(one) / len(one) for one in values]
