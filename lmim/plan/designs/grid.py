"""The full product of the axes, less what is excluded."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from lmim.errors import fail
from lmim.plan.cells import Choices, flat, namer, pick, product, read_axes, together
from lmim.plan.settings import Settings
from lmim.plan.sweep_file import Cell, Design, Ids, Results, Sheet, SweepFile


class Keys(SweepFile):
    axes: dict[str, Any]
    """Config key to its values."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Cells to leave out: those in which all of an entry's axes have the value or one of the values."""


def grid(file: Keys, sheet: Sheet) -> Design:
    """Every combination of the axes' values."""
    axes = read_axes(sheet, ["axes"], file.axes)
    name = namer(axes)
    rules = [
        _excluded(entry, axes, sheet, sheet.where("exclude", number))
        for number, entry in enumerate(file.exclude)
    ]

    def cells(ids: Ids, results: Results) -> list[Sequence[Cell]]:
        kept = [
            Cell(name(cell := together(chosen)), cell)
            for chosen in product(axes)
            if not any(all(_values(chosen[key]) in out for key, out in rule.items()) for rule in rules)
        ]
        if not kept and not file.baselines:
            fail(sheet.where("exclude"), "expected at least one trial, found an empty grid")
        return [kept]

    return Design(flat(axes), math.prod(len(values) for values in axes.values()), cells)


def _values(one: Settings) -> dict[str, Any]:
    return {key: setting.value for key, setting in one.items()}


def _excluded(
    entry: dict[str, Any], axes: Choices, sheet: Sheet, where: str
) -> dict[str, list[dict[str, Any]]]:
    if not entry:
        fail(where, "exclude: expected axis: value, found an empty mapping")
    excluded = {}
    for written, given in entry.items():
        key = written if written in axes else sheet.schema.key(written, where)
        values = given if isinstance(given, list) else [given]
        excluded[key] = [_values(pick(key, value, axes, where)) for value in values]
    return excluded
