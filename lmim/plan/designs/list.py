"""Arms written out one by one: cells that are no product, such as a width that goes with a depth."""

from collections.abc import Sequence
from typing import Any

from lmim.errors import fail, show
from lmim.plan.cells import axes_of, flat, together
from lmim.plan.claims import sayable
from lmim.plan.sweep_file import BASELINES, Axes, Cell, Design, Ids, Results, Sheet, SweepFile


class Keys(SweepFile):
    arms: dict[str, dict[str, Any]]
    """An arm's name to the config keys that it sets; none for the base itself."""


def list(file: Keys, sheet: Sheet) -> Design:
    """The arms in the file's order."""
    axes: Axes = {}
    arms = []
    for arm in file.arms:
        where = sheet.where("arms", arm)
        if arm in BASELINES:
            fail(where, f"arms: expected a name of the arm's own, found the baseline {arm}")
        if not sayable(arm):
            fail(
                where,
                "arms: expected a printable name without what claims are written with (=, >, <, on, not), "
                f"found {show(arm) or 'an empty one'}",
            )
        changes = axes_of(sheet.schema.leaves(sheet.tree.at(("arms", arm))), sheet, one=True)
        for key, settings in flat(changes).items():
            axes.setdefault(key, []).extend(settings)
        arms.append(Cell(arm, together({key: value for key, (value,) in changes.items()})))
    if not arms:
        fail(sheet.where("arms"), "arms: expected at least one arm, found an empty mapping")

    def cells(ids: Ids, results: Results) -> Sequence[Sequence[Cell]]:
        first: dict[str, str] = {}
        for arm in arms:
            twin = first.setdefault(ids(arm)[0], arm.name)
            if twin != arm.name:
                fail(
                    sheet.where("arms", arm.name),
                    f"arms: expected arms that differ, found one config in {show(twin)} and {show(arm.name)}",
                )
        return [arms]

    return Design(axes, len(arms), cells)
