"""The full method, and it without each of its components."""

from collections.abc import Iterator, Sequence
from typing import Any

from lmim.errors import fail, show
from lmim.plan.cells import labels, read_axes
from lmim.plan.sweep_file import Cell, Design, Ids, Results, Sheet, SweepFile


class Keys(SweepFile):
    axes: dict[str, Any]
    """A component's config key to the value without it."""


def leave_one_out(file: Keys, sheet: Sheet) -> Design:
    """The full method first, then without one component after the other."""
    axes = read_axes(sheet, ["axes"], file.axes, one=True)

    def cells(ids: Ids, results: Results) -> Iterator[Sequence[Cell]]:
        full = Cell("full", {})
        yield [full]
        whole = ids(full)
        for key, label in labels(axes).items():
            (setting,) = axes[key]
            less = Cell(f"without {label}", {key: setting})
            if ids(less) == whole:
                fail(
                    setting.where,
                    f"{key}: expected the value without it, found the full method's own "
                    f"{show(setting.value)}",
                )
            yield [less]

    return Design(axes, 1 + len(axes), cells)
