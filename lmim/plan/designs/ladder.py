"""Stages in order, each on the winner of the last: the paper's own way through its questions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmim.config import Section
from lmim.errors import fail, nearest, show
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
        won: Settings = {}
        provisional = False
        for stage in stages:
            cells = map(together, product(stage.axes))
            tried = [Cell(name(cell), won | cell, provisional=provisional) for cell in cells]
            yield tried
            if stage.winner is not None:
                won = won | stage.winner
                continue
            best = None if provisional else _best(tried, ids, results)
            provisional = best is None
            won = best.changes if best else won

    count = sum(math.prod(len(values) for values in stage.axes.values()) for stage in stages)
    return Design(flat(axes), count, cells, selects=selects, by_seed=True)


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


def _best(cells: Sequence[Cell], ids: Ids, results: Results) -> Cell | None:
    """The cell with the highest mean over its trials, the first of equals; None while one trial is missing.

    A cell of which a seed ended without a metric (it diverged) cannot win.
    """
    means = []
    for cell in cells:
        trials = ids(cell)
        if any(trial not in results for trial in trials):
            return None
        values = [math.nan if (value := results[trial]) is None else value for trial in trials]
        means.append(sum(values) / len(values))
    finite = [number for number, mean in enumerate(means) if math.isfinite(mean)]
    return cells[max(finite, key=means.__getitem__)] if finite else None
