"""The base, and each change of it alone."""

from typing import Any

from lmim.plan.cells import labels, name, read_axes
from lmim.plan.sweep_file import Cell, Design, Sheet, SweepFile


class Keys(SweepFile):
    axes: dict[str, Any]
    """Config key to its values."""


def one_factor(file: Keys, sheet: Sheet) -> Design:
    """The base first, then the changes side by side."""
    axes = read_axes(sheet, ["axes"], file.axes)
    named = labels(axes)
    changes = [{key: setting} for key, settings in axes.items() for setting in settings]
    rounds = [[Cell("base", {})], [Cell(name(change, named), change) for change in changes]]
    return Design(axes, 1 + len(changes), lambda ids, results: rounds)
