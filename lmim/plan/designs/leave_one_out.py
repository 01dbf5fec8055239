"""The full method, and it without each of its components."""

from collections.abc import Iterator, Sequence
from typing import Any

from lmim.errors import fail, show
from lmim.plan.cells import flat, read_axes
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
        for key, (value,) in axes.items():
            less = Cell(f"without {_called(key, sheet)}", value)
            if ids(less) == whole:
                first = next(iter(value.values()))
                fail(
                    first.where,
                    f"{key}: expected the value without it, found the full method's own {show(first.value)}",
                )
            yield [less]

    return Design(flat(axes), 1 + len(axes), cells)


def _called(key: str, sheet: Sheet) -> str:
    """The leaf of a key where no other config key has the same: `cues`, but `encoder.depth`."""
    leaf = key.rpartition(".")[2]
    return leaf if sum(one.rpartition(".")[2] == leaf for one in sheet.schema.types) < 2 else key
