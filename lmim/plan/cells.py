"""Axes of a sweep file, read and checked, and the cells that they span."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmim.errors import fail, nearest, show, word
from lmim.plan.located_yaml import Node
from lmim.plan.settings import ARM, Setting, Settings
from lmim.plan.sweep_file import Axes, Sheet


def read_axes(sheet: Sheet, at: Sequence[str | int], raw: Iterable[str], one: bool = False) -> Axes:
    """The axes `raw` of a mapping in the file; `one` for designs where an axis has a single value."""
    axes = axes_of(((name, sheet.tree.at((*at, name))) for name in raw), sheet, one)
    if not axes:
        fail(sheet.where(*at), "axes: expected at least one axis, found an empty grid")
    return axes


def axes_of(named: Iterable[tuple[str, Node]], sheet: Sheet, one: bool) -> Axes:
    """Config keys with each value checked by itself."""
    axes: Axes = {}
    for name, node in named:
        where = f"{sheet.path}:{node.line}"
        key = sheet.schema.key(name, where)
        if key == "seed" or key.startswith("run."):
            fail(
                where,
                f"{key}: expected a key that affects results, found "
                + ("the seed; use seeds" if key == "seed" else "orchestration"),
            )
        if key in axes:
            fail(where, f"duplicate key {key}: this axis is already named")
        if isinstance(node.value, list) == one:
            wanted = "one value" if one else "a list of values"
            fail(where, f"{key}: expected {wanted}, found {show(node.plain())}")
        axes[key] = []
        for item in node.value if isinstance(node.value, list) else [node]:
            setting = Setting(key, item.plain(), f"{sheet.path}:{item.line}", ARM)
            if isinstance(setting.value, str) and not (setting.value.isprintable() and setting.value):
                fail(setting.where, f"{key}: expected printable text, found {show(setting.value)}")
            axes[key].append(sheet.schema.checked(setting))
        if not axes[key]:
            fail(where, f"{key}: expected at least one value, found an empty grid")
    return axes


def pick(key: str, value: Any, axes: Axes, where: str) -> Setting:
    """The setting of an axis that holds a value; a UserError where the axis or the value is not there."""
    if key not in axes:
        fail(
            where, f"{show(key)}: expected an axis ({', '.join(axes)}), found another key{nearest(key, axes)}"
        )
    values = {word(setting.value): setting for setting in axes[key]}
    if word(value) not in values:
        fail(
            where,
            f"{key}: expected one of {', '.join([*values][:20])}, found {show(value)}"
            + nearest(value, values),
        )
    return values[word(value)]


def product(axes: Axes) -> Iterator[Settings]:
    """Every combination of the axes' values, the last axis fastest."""
    for values in itertools.product(*axes.values()):
        yield {setting.key: setting for setting in values}


def labels(keys: Iterable[str]) -> dict[str, str]:
    """What each axis is called in an arm's name: its leaf, or all of it where two leaves are the same.

    >>> list(labels(["loss", "mask.gap", "encoder.depth", "projector.depth"]).values())
    ['loss', 'gap', 'encoder.depth', 'projector.depth']
    """
    leaves = {key: key.rpartition(".")[2] for key in keys}
    named = list(leaves.values())
    return {key: leaf if named.count(leaf) == 1 else key for key, leaf in leaves.items()}


def name(changes: Settings, labels: Mapping[str, str]) -> str:
    """`mse` where the sweep has one axis, else `gap=1 similarity=0.1`."""
    if len(labels) == 1:
        return word(next(iter(changes.values())).value)
    return " ".join(f"{labels[key]}={word(setting.value)}" for key, setting in changes.items())
