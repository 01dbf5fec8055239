"""Axes of a sweep file, read and checked, and the cells that they span."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmim import variants
from lmim.config import KINDS, flatten
from lmim.errors import fail, nearest, show, word
from lmim.plan.located_yaml import Node
from lmim.plan.settings import ARM, Setting, Settings
from lmim.plan.sweep_file import Axes, Sheet

Choices = dict[str, list[Settings]]
"""An axis to its values, each of which sets the axis' own key, or as a mapping several keys as one."""


def read_axes(sheet: Sheet, at: Sequence[str | int], raw: Iterable[str], one: bool = False) -> Choices:
    """The axes `raw` of a mapping in the file; `one` for designs where an axis has a single value."""
    axes = axes_of(((name, sheet.tree.at((*at, name))) for name in raw), sheet, one)
    if not axes:
        fail(sheet.where(*at), "axes: expected at least one axis, found an empty grid")
    return axes


def axes_of(named: Iterable[tuple[str, Node]], sheet: Sheet, one: bool) -> Choices:
    """Config keys with their values, each checked by itself; of a section, mappings of its keys."""
    axes: Choices = {}
    owner: dict[str, str] = {}
    for name, node in named:
        where = f"{sheet.path}:{node.line}"
        items = node.value if isinstance(node.value, list) else [node]
        whole = name in sheet.schema.sections and all(isinstance(item.value, dict) for item in items)
        key = name if whole else sheet.schema.key(name, where)
        if key in axes:
            fail(where, f"duplicate key {key}: this axis is already named")
        if isinstance(node.value, list) == one:
            wanted = "one value" if one else "a list of values"
            fail(where, f"{key}: expected {wanted}, found {show(node.plain())}")
        if not items:
            fail(where, f"{key}: expected at least one value, found an empty grid")
        axes[key] = [_value(key, item, sheet) for item in items]
        for part in flat({key: axes[key]}):
            if owner.setdefault(part, key) != key:
                fail(where, f"{part}: expected a key of one axis, found it in {owner[part]} and {key}")
    return axes


def _value(axis: str, node: Node, sheet: Sheet) -> Settings:
    """One value of an axis: what it sets, which of a mapping is several keys."""
    found: Settings = {}
    parts = [(axis, node)]
    if isinstance(node.value, dict) and axis in sheet.schema.sections:
        parts = list(sheet.schema.leaves(node, axis))
    for name, leaf in parts:
        where = f"{sheet.path}:{leaf.line}"
        key = sheet.schema.key(name, where)
        if key == "seed" or key.startswith("run."):
            fail(
                where,
                f"{key}: expected a key that affects results, found "
                + ("the seed; use seeds" if key == "seed" else "orchestration"),
            )
        if key in found:
            fail(where, f"duplicate key {key}: this value sets it already")
        setting = Setting(key, leaf.plain(), where, ARM)
        if isinstance(setting.value, str) and not (setting.value.isprintable() and setting.value):
            fail(where, f"{key}: expected printable text, found {show(setting.value)}")
        found[key] = sheet.schema.checked(setting)
    if not found:
        fail(f"{sheet.path}:{node.line}", f"{axis}: expected keys of {axis}, found an empty mapping")
    if len(found) > 1 and axis in KINDS and axis in found:  # a variant that has these settings, or a mistake
        kind = str(found[axis].value)
        known = [f"{axis}.{key}" for key in variants.describe(axis, kind, sheet.schema.sources).settings]
        if unread := [one for key, one in found.items() if key not in (axis, *known)]:
            fail(unread[0].where, f"{unread[0].key}: {kind} does not read it{nearest(unread[0].key, known)}")
    return found


def flat(axes: Choices) -> Axes:
    """Every config key that the axes set, with its values."""
    keys: Axes = {}
    for values in axes.values():
        for value in values:
            for key, setting in value.items():
                keys.setdefault(key, []).append(setting)
    return keys


def pick(key: str, value: Any, axes: Choices, where: str) -> Settings:
    """The value of an axis that says the same; a UserError where the axis or the value is not there."""
    if key not in axes:
        fail(
            where, f"{show(key)}: expected an axis ({', '.join(axes)}), found another key{nearest(key, axes)}"
        )
    values = {_words({k: s.value for k, s in one.items()}): one for one in axes[key]}
    if (wanted := _words(flatten({key: value}))) not in values:
        call = namer({key: axes[key]})
        names = list(dict.fromkeys(call(one) for one in axes[key]))
        fail(
            where,
            f"{key}: expected one of {', '.join(names[:20])}, found {show(value)}{nearest(value, names)}",
        )
    return values[wanted]


def _words(values: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((key, word(value)) for key, value in values.items())


def product(axes: Choices) -> Iterator[dict[str, Settings]]:
    """Every combination of the axes' values, the last axis fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def together(chosen: Mapping[str, Settings]) -> Settings:
    """What the chosen values of several axes set."""
    return {key: setting for value in chosen.values() for key, setting in value.items()}


def labels(keys: Iterable[str]) -> dict[str, str]:
    """What each axis is called in an arm's name: its leaf, or all of it where two leaves are the same.

    >>> list(labels(["loss", "mask.gap", "encoder.depth", "projector.depth"]).values())
    ['loss', 'gap', 'encoder.depth', 'projector.depth']
    """
    leaves = {key: key.rpartition(".")[2] for key in keys}
    named = list(leaves.values())
    return {key: leaf if named.count(leaf) == 1 else key for key, leaf in leaves.items()}


def namer(axes: Choices) -> Callable[[Settings], str]:
    """What calls a cell by its values: `gap=1 similarity=0.1`; with one axis, its words alone: `mse`."""
    named = labels(flat(axes))
    alone = next(iter(axes)) if len(axes) == 1 else None

    def name(cell: Settings) -> str:
        return " ".join(
            word(one.value)
            if key == alone and isinstance(one.value, str)
            else f"{named[key]}={word(one.value)}"
            for key, one in cell.items()
        )

    return name
