"""The base, and each change of it alone."""

from typing import Any

from lmim.plan.cells import flat, namer, read_axes
from lmim.plan.sweep_file import Cell, Design, Sheet, SweepFile


class Keys(SweepFile):
    axes: dict[str, Any]
    """Config key to its values."""


def one_factor(file: Keys, sheet: Sheet) -> Design:
    """The base first, then the changes side by side."""
    axes = read_axes(sheet, ["axes"], file.axes)
    name = namer(axes)
    changes = [value for values in axes.values() for value in values]
    rounds = [[Cell("base", {})], [Cell(name(change), change) for change in changes]]
    return Design(flat(axes), 1 + len(changes), lambda ids, results: rounds)
