"""Settings: config keys with the place where each was written, and the config that they make together."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from lmim import config, variants
from lmim.config import ALWAYS, KINDS, CombinationError, Config, Data, merge
from lmim.errors import fail, nearest, show
from lmim.plan import facts, tokenizers
from lmim.plan.located_yaml import Node, scalar


@dataclass(frozen=True)
class Setting:
    """A value for one config key, where it was written, and the rank of that place in the merge."""

    key: str
    value: Any
    where: str
    rank: int


Settings = dict[str, Setting]
BASE, SCALE, OWN, ARM, SET = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Schema:
    """The config keys that a sweep may name: the package's, and those of the user's own code in it."""

    types: Mapping[str, tuple[Any, ...]]
    """Flat key to the types that it may have."""
    sources: Mapping[str, str]
    """The user's own files and modules, with their text."""

    @classmethod
    def of(cls, places: Sequence[tuple[Node, Path, str]], sets: Sequence[str] = ()) -> "Schema":
        """The schema of files, each with its folder and its name, the sweep's first, and of --set.

        Raises:
            UserError: code of the user's is named that is not there, or cannot be called as it must.
        """
        own: dict[str, list[str]] = {}
        sources: dict[str, str] = {}
        named = [(folder, f"{file}:{line}", s, r) for n, folder, file in places for s, r, line in _own(n, ())]
        home = places[0][1]
        for argument in sets:
            key, _, ref = argument.partition("=")
            named += [
                (home, f"--set {argument}", s, ref) for s in _section(key.split(".")) if variants.own(ref)
            ]
        for folder, where, section, ref in named:
            try:
                file, text = variants.read_source(ref, folder)
                if sources.setdefault(file, text) != text:
                    raise ValueError(f"expected one file named {file}, found two")
                variants.describe(section, ref, sources)
            except ValueError as error:
                fail(f"{where}: {section}", str(error))
            own.setdefault(section, []).append(ref)
        own.pop("evaluate", None)
        return cls(config.fields(own, sources), sources)

    @functools.cached_property
    def sections(self) -> frozenset[str]:
        """The names under which keys stand."""
        return frozenset(key.partition(".")[0] for key in self.types if "." in key)

    def key(self, name: str, where: str) -> str:
        """The one spelling of a config key (`loss.kind` is `loss`), or a UserError with the nearest."""
        section, _, leaf = name.partition(".")
        if leaf == "kind" and section in KINDS:
            return section
        if name not in self.types:
            if name in self.sections:
                fail(where, f"{name}: expected keys under {name}, found a single value")
            fail(where, f"unknown key {show(name)}{nearest(name, self.types)}")
        return name

    def leaves(self, node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """The config keys that a mapping sets, written nested or dotted, each with its value."""
        if isinstance(node.value, dict) and (not prefix or prefix in self.sections):
            for name, child in node.value.items():
                yield from self.leaves(child, f"{prefix}.{name}" if prefix else name)
        else:
            yield prefix, node

    def settings_of(self, node: Node, file: str, rank: int) -> Settings:
        """The settings of a mapping in a file, checked key by key; their fit together comes later."""
        found: Settings = {}
        if node.value is None:
            return found
        if not isinstance(node.value, dict):
            fail(f"{file}:{node.line}", f"expected a mapping of config keys, found {show(node.plain())}")
        for name, leaf in self.leaves(node):
            where = f"{file}:{leaf.line}"
            key = self.key(name, where)
            if key in found:
                fail(where, f"duplicate key {key}, first at {found[key].where}")
            if key == "seed":
                fail(where, "seed: expected in the sweep's seeds, found here")
            found[key] = self.checked(Setting(key, leaf.plain(), where, rank))
        return found

    def arguments(self, sets: Sequence[str]) -> Settings:
        """The settings of `--set key=value`; the last of a key counts."""
        found: Settings = {}
        for argument in sets:
            where = f"--set {argument}"
            name, equals, text = argument.partition("=")
            if not equals:
                fail(where, "expected key=value")
            key = self.key(name.strip(), where)
            if key == "seed":
                fail(where, "seed: expected --seeds, found --set")
            try:
                found[key] = self.checked(Setting(key, scalar(text.strip()), where, SET))
            except ValueError as error:
                fail(where, f"{key}: expected {error}, found {show(text)}")
        return found

    def checked(self, setting: Setting) -> Setting:
        """The setting, if its value is one that its key may have, whatever the others are."""
        if wrong := self._wrong(setting.key, setting.value):
            expected, names = wrong
            near = nearest(setting.value, names)
            fail(f"{setting.where}: {setting.key}", f"expected {expected}, found {show(setting.value)}{near}")
        return setting

    def _wrong(self, key: str, value: Any) -> tuple[str, tuple[str, ...]] | None:
        """What a key expects and this value is not, and the right names."""
        section = "data" if key == "data.name" else key
        if section not in variants.PLACES:
            found: tuple[str, tuple[str, ...]] = "", ()
            for kind in self.types[key]:
                try:
                    _adapter(kind).validate_python(value, strict=True)
                    return None
                except ValidationError as error:
                    found = expectation(error.errors()[0])
            return found
        if not isinstance(value, str):
            return "a string", ()
        try:
            variants.describe(section, value, self.sources)
            return None
        except ValueError as error:
            return str(error).removeprefix("expected "), variants.choices(section)

    def resolve(self, settings: Settings, where: str) -> Config:
        """The config that settings make over the defaults, without what nothing in it reads.

        Raises:
            UserError: they do not go together; names the one to blame.
        """
        values = {key: setting.value for key, setting in settings.items()}
        kinds = tuple((key, value) for key, value in values.items() if key in KINDS)
        named = values.get("objective", Config.model_fields["objective"].default), kinds
        reads = _reads(*named, values.get("data.name", Data().name), tuple(self.sources.items()))
        values = {key: value for key, value in values.items() if key in reads}
        used = [str(value).partition(":")[0] for value in values.values() if variants.own(str(value))]
        sources = {file: text for file, text in self.sources.items() if file in used}
        try:
            found = Config.read(merge({}, values) | {"sources": sources})
        except ValidationError as error:
            _explain(error, settings, where)
            raise
        data = facts.data_of(found)
        if not data.error and (wrong := found.too_few_frames(data.frames)):
            _blame(CombinationError("data.name", wrong), settings, where)
        if data.classes < 2 and "logits" in variants.describe("objective", named[0], sources).methods:
            has = "one class" if data.classes else "no labels"
            wrong = f"{found.data.name} has {has}, {found.objective} needs two or more"
            _blame(CombinationError("data.name", wrong), settings, where)
        found = found.model_copy(update={"data": found.data.model_copy(update={"version": data.version})})
        if not found.has_ids:
            return found
        ids = facts.ids_of(found)
        if ids.error:
            blamed = settings.get("collapse.path", settings["collapse"])
            fail(f"{blamed.where}: collapse.path", ids.error.removeprefix("collapse.path: "))
        for key, wrong in tokenizers.misfits(found, ids, data):
            _blame(CombinationError(key, wrong), settings, where)
        collapse = found.section("collapse").model_copy(update={"version": ids.version})
        return found.model_copy(update={"collapse": collapse})


@functools.cache
def _reads(
    objective: str, kinds: tuple[tuple[str, str], ...], data: str, sources: tuple[tuple[str, str], ...]
) -> frozenset[str]:
    """The flat keys that a config of these variants has."""
    chosen, texts = dict(kinds), dict(sources)
    described = variants.describe("objective", objective, texts)
    found = {"objective", *(f"{objective.rpartition(':')[2]}.{key}" for key in described.settings)}
    for section in {*ALWAYS, *described.reads}:
        kind = config.part_of(section, described)
        found |= {section if key == "kind" else f"{section}.{key}" for key in kind.model_fields}
        if section in KINDS or section == "data":
            default = data if section == "data" else kind.model_fields["kind"].default
            own = variants.describe(section, chosen.get(section, default), texts).settings
            found |= {f"{section}.{key}" for key in own}
    return frozenset(found)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _section(path: Sequence[str]) -> list[str]:
    """The section whose variant a path of keys names, if it names one."""
    return [name for name in path if name in variants.PLACES][-1:]


def _own(node: Node, path: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    """What a file names of the user's own code: section, name and line."""
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            if _section(path) == ["evaluate"] and variants.own(name):
                yield "evaluate", name, child.line
            yield from _own(child, (*path, *name.split(".")))
    elif isinstance(node.value, list):
        for item in node.value:
            yield from _own(item, path)
    elif isinstance(node.value, str) and variants.own(node.value) and " " not in node.value:
        for section in _section(path):
            yield section, node.value, node.line


def _explain(error: ValidationError, settings: Settings, where: str) -> None:
    """Turn pydantic's error into ours."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, CombinationError):
        _blame(cause, settings, where)
    key = ".".join(str(part) for part in first["loc"])
    key = key.removesuffix(".kind") if key.removesuffix(".kind") in KINDS else key
    setting = settings.get(key)
    expected, names = expectation(first)
    fail(
        f"{setting.where if setting else where}: {key}",
        f"expected {expected}, found {show(first['input'])}{nearest(first['input'], names)}",
    )


def _blame(cause: CombinationError, settings: Settings, where: str) -> NoReturn:
    """Name the place of the change that was laid on last: it broke what held before it."""
    named = {cause.key, *re.findall(r"\w+\.\w+|\bobjective\b", cause.message)}
    suspects = [s for key, s in settings.items() if key in named]
    blamed = max(suspects, key=lambda s: (s.rank, s.key == cause.key), default=None)
    place = f"{blamed.where}: {blamed.key}" if blamed else where
    fail(place, f"impossible combination: {cause.key} {cause.message}")


def expectation(error: Any) -> tuple[str, tuple[str, ...]]:
    """What pydantic expected, in our words, and the names that are right there."""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.removeprefix("expected ")
    names: tuple[str, ...] = ()
    if error["type"] == "string_pattern_mismatch":  # the sweep's name, which becomes a folder's
        message = "at most 64 letters, digits, - and _"
    elif error["type"] == "literal_error":
        names = tuple(re.findall(r"'([^']*)'", message))
        message = f"one of {', '.join(names)}"
    message = (
        message.replace("a valid integer", "an integer")
        .replace("valid ", "")
        .replace("dictionary", "mapping")
    )
    return message, names
