"""A sweep file, its base and its scale, read and checked: every value with the place where it was set.

Whatever is wrong is a `UserError` of one line that names the file, the line, the key, what was expected and
the nearest right name.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from lmim.config import KINDS, CombinationError, Config, Count, Section, merge
from lmim.errors import fail, nearest, show, word
from lmim.plan.located_yaml import Node, read_yaml, scalar

PROJECT_ABLATIONS = Path(__file__).parents[2] / "ablations"

METRICS = (
    *("nn_top1", "knn_top1", "linear_top1", "rank_ratio"),
    *("eval/nn_top1", "eval/knn_top1", "eval/linear_top1", "eval/rank_ratio"),
    *("collapse/rank", "collapse/image_cosine", "collapse/patch_cosine", "collapse/std"),
    "train/loss",
)
LESS_IS_BETTER = ("collapse/image_cosine", "collapse/patch_cosine", "train/loss")

BASELINES: dict[str, dict[str, Any]] = {
    "random_encoder": {"optim.epochs": 0},
    "raw_pixels": {"objective": "raw_pixels", "optim.epochs": 0},
}
"""What needs no training and stands in the same table: the floor that an arm must rise above."""


# ------------------------------------------------------------------------------
# Settings: config keys with where they were set


@dataclass(frozen=True)
class Setting:
    """A value for one config key, where it was written, and the rank of that place in the merge."""

    key: str
    value: Any
    where: str
    rank: int


Settings = dict[str, Setting]
BASE, SCALE, ARM, SET = 1, 2, 3, 4
KEYS = tuple(Config().flat())
SECTIONS = frozenset(key.partition(".")[0] for key in KEYS if "." in key)


def full_name(metric: str) -> str:
    """A metric as MLflow has it: a bare word is an evaluation's.

    >>> full_name("knn_top1"), full_name("collapse/rank")
    ('eval/knn_top1', 'collapse/rank')
    """
    return metric if "/" in metric else f"eval/{metric}"


def config_key(key: str, where: str) -> str:
    """The one spelling of a config key (`loss.kind` is `loss`), or a UserError with the nearest."""
    section, _, leaf = key.partition(".")
    if leaf == "kind" and section in KINDS:
        return section
    if key not in KEYS:
        if key in SECTIONS:
            fail(where, f"{key}: expected keys under {key}, found a single value")
        fail(where, f"unknown key {show(key)}{nearest(key, KEYS)}")
    return key


def settings_of(node: Node, file: str, rank: int) -> Settings:
    """The settings of a base or scale file, checked key by key; their fit together comes later."""
    found: Settings = {}

    def walk(node: Node, prefix: str) -> None:
        where = f"{file}:{node.line}"
        if isinstance(node.value, dict) and (not prefix or prefix in SECTIONS):
            for name, child in node.value.items():
                walk(child, f"{prefix}.{name}" if prefix else name)
            return
        key = config_key(prefix, where)
        if key in found:
            fail(where, f"duplicate key {key}, first at {found[key].where}")
        if key == "seed":
            fail(where, "seed: expected in the sweep's seeds, found here; a base or scale has none")
        found[key] = Setting(key, node.plain(), where, rank)

    if node.value is None:
        return found
    if not isinstance(node.value, dict):
        fail(f"{file}:{node.line}", f"expected a mapping of config keys, found {show(node.plain())}")
    walk(node, "")
    _check(found)
    return found


def settings_from_arguments(sets: Sequence[str]) -> Settings:
    """The settings of `--set key=value`; the last of a key counts."""
    found: Settings = {}
    for argument in sets:
        where = f"--set {argument}"
        name, equals, text = argument.partition("=")
        if not equals:
            fail(where, "expected key=value")
        key = config_key(name.strip(), where)
        if key == "seed":
            fail(where, "seed: expected --seeds, found --set")
        try:
            found[key] = Setting(key, scalar(text.strip()), where, SET)
        except ValueError as error:
            fail(where, f"{key}: expected {error}, found {show(text)}")
    _check(found)
    return found


def _check(settings: Settings) -> None:
    """Check settings by themselves, so that an error in a file shows even where it is overridden."""
    try:
        Config.model_validate(merge({}, {key: s.value for key, s in settings.items()}))
    except ValidationError as error:
        _explain(error, settings, "", combinations=False)


def resolve(settings: Settings, where: str) -> Config:
    """The config that settings make over the defaults, or a UserError that names the one to blame."""
    try:
        return Config.model_validate(merge({}, {key: s.value for key, s in settings.items()}))
    except ValidationError as error:
        _explain(error, settings, where)
        raise


def _explain(error: ValidationError, settings: Settings, where: str, combinations: bool = True) -> None:
    """Turn pydantic's error into ours."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, CombinationError):
        if combinations:
            named = {cause.key, *re.findall(r"[a-z_]+\.[a-z_]+", cause.message)}
            suspects = [s for key, s in settings.items() if key in named]
            # the change that was laid on last broke what held before it
            blamed = max(suspects, key=lambda s: (s.rank, s.key == cause.key), default=None)
            place = f"{blamed.where}: {blamed.key}" if blamed else where
            fail(place, f"impossible combination: {cause.key} {cause.message}")
        return
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    key = key.removesuffix(".kind") if key.removesuffix(".kind") in KINDS else key
    setting = settings.get(key)
    expected, names = _expectation(first, key)
    fail(
        f"{setting.where if setting else where}: {key}",
        f"expected {expected}, found {show(first['input'])}{nearest(first['input'], names)}",
    )


def _expectation(error: Any, key: str) -> tuple[str, tuple[str, ...]]:
    """What pydantic expected, in our words, and the names that are right there."""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.removeprefix("expected ")
    names: tuple[str, ...] = ()
    if message.startswith("one of "):
        names = tuple(message.removeprefix("one of ").split(", "))
    elif error["type"] == "string_pattern_mismatch":  # the sweep's name, which becomes a folder's
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


# ------------------------------------------------------------------------------
# The sweep file


class StageFile(Section):
    """One stage of a ladder."""

    axes: dict[str, Any]
    select: Any = "best"
    """`best`, or the winner fixed beforehand: a value for each axis of the stage."""


class SweepFile(Section):
    """The keys of a sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z")]
    question: str = ""
    base: str | None = None
    """A file of config keys, beside the sweep or in the project's `ablations/`."""
    design: Literal["grid", "one_factor", "leave_one_out", "ladder"] = "grid"
    axes: dict[str, Any] = Field(default_factory=dict)
    """Config key to its values; with `leave_one_out`, a component's key to the value without it."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Cells to leave out of a grid: those in which all of an entry's axes have value or one of the values."""
    stages: list[StageFile] = Field(default_factory=list)
    seeds: list[Count] = Field(default_factory=lambda: [0])
    metric: str = "knn_top1"
    """What arms are compared by; higher is better where a ladder chooses."""
    claims: list[str] = Field(default_factory=list)
    baselines: list[str] = Field(default_factory=list)


Axes = dict[str, list[Setting]]


@dataclass(frozen=True)
class Stage:
    """One stage of a ladder: its axes, and the winner where the file fixes it."""

    axes: Axes
    winner: Settings | None


@dataclass(frozen=True)
class Spec:
    """A sweep file read and checked, before it is expanded."""

    path: Path
    file: SweepFile
    tree: Node
    scale: str
    base: Settings
    """base, scale and --set together: what every arm stands on."""
    axes: Axes
    exclude: tuple[dict[str, tuple[Any, ...]], ...]
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    """The file's, then those that the call adds; a ladder, whose winners hang on it, has the call's."""
    wanted: tuple[int, ...]
    """The seeds to run now."""
    only: tuple[str, ...] | None

    def where(self, *path: str | int) -> str:
        """`file:line` of a place in the sweep file."""
        return f"{self.path}:{self.tree.at(path).line}"


def read(
    path: Path,
    scale: str | None,
    sets: Sequence[str],
    seeds: Sequence[int] | None,
    only: Sequence[str] | None,
) -> Spec:
    """Read and check a sweep file, its base and its scale."""
    tree = read_yaml(path)
    file = _sweep_file(tree, path)

    def where(*keys: str | int) -> str:
        return f"{path}:{tree.at(keys).line}"

    folders = [path.parent, PROJECT_ABLATIONS]
    base: Settings = {}
    if file.base is not None:
        candidates = [folder / file.base for folder in folders if "\0" not in file.base]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            known = [other.name for folder in folders if folder.is_dir() for other in folder.glob("*.yaml")]
            fail(
                where("base"), f"base: expected a file, found no {show(file.base)}{nearest(file.base, known)}"
            )
        folders.insert(1, found.parent)
        base = settings_of(read_yaml(found), str(found), BASE)
    scale = scale or "demo"
    known = sorted({f.stem for folder in folders for f in (folder / "scales").glob("*.yaml")})
    if scale not in known:
        fail(f"--scale {scale}", f"expected one of {', '.join(known) or 'none'}{nearest(scale, known)}")
    scale_path = next(p for folder in folders if (p := folder / "scales" / f"{scale}.yaml").is_file())
    arguments = settings_from_arguments(sets)
    base = base | settings_of(read_yaml(scale_path), str(scale_path), SCALE) | arguments

    if not file.axes and "axes" in file.model_fields_set and file.design != "ladder":
        fail(where("axes"), "axes: expected at least one axis, found an empty grid")
    for key, belongs in (
        ("axes", file.design != "ladder"),
        ("stages", file.design == "ladder"),
    ):
        if belongs != (key in file.model_fields_set):
            fail(
                where(key) if not belongs else where("design"),
                f"{key}: expected {'with' if belongs else 'no ' + key + ' with'} design {file.design}, "
                f"found {'none' if belongs else key}",
            )
    if file.exclude and file.design != "grid":
        fail(where("exclude"), f"exclude: expected only with design grid, found it with {file.design}")
    axes = _axes(tree, path, ("axes",), file.axes, one=file.design == "leave_one_out")
    stages: list[Stage] = []
    for number, stage in enumerate(file.stages):
        here = ("stages", number)
        stage_axes = _axes(tree, path, (*here, "axes"), stage.axes)
        for key in stage_axes:
            if any(key in earlier.axes for earlier in stages):
                fail(where(*here, "axes", key), f"{key}: expected an axis of one stage, found it in two")
        stages.append(Stage(stage_axes, _winner(stage.select, stage_axes, where(*here, "select"))))
    if file.design == "ladder" and not stages:
        fail(where("stages"), "stages: expected at least one stage, found an empty grid")
    for key in itertools.chain(axes, *(stage.axes for stage in stages)):
        if key in arguments:
            fail(
                arguments[key].where, f"{key}: is an axis of this sweep; use --only to choose among its arms"
            )
    exclude = tuple(
        _excluded(entry, axes, where("exclude", number)) for number, entry in enumerate(file.exclude)
    )

    if seeds is not None and (not seeds or min(seeds) < 0 or max(seeds) > 2**63 - 1):
        fail("--seeds", f"expected whole numbers from 0, found {show(','.join(map(str, seeds)))}")
    if not file.seeds:
        fail(where("seeds"), "seeds: expected at least one seed, found an empty grid")
    wanted = file.seeds if seeds is None else seeds
    planned = wanted if file.design == "ladder" else [*file.seeds, *wanted]
    if file.metric not in METRICS:
        fail(
            where("metric"),
            f"metric: expected one of {', '.join(METRICS)}, found {show(file.metric)}"
            + nearest(file.metric, METRICS),
        )
    if file.metric in LESS_IS_BETTER and any(stage.select == "best" for stage in file.stages):
        fail(where("metric"), f"metric: a stage keeps the highest, and of {file.metric} less is better")
    for number, name in enumerate(file.baselines):
        if name not in BASELINES:
            fail(
                where("baselines", number),
                f"baselines: expected one of {', '.join(BASELINES)}, "
                f"found {show(name)}{nearest(name, BASELINES)}",
            )
    return Spec(
        path,
        file,
        tree,
        scale,
        base,
        axes,
        exclude,
        tuple(stages),
        tuple(dict.fromkeys(planned)),
        tuple(dict.fromkeys(wanted)),
        None if only is None else tuple(only),
    )


def _sweep_file(tree: Node, path: Path) -> SweepFile:
    if not isinstance(tree.value, dict):
        fail(
            f"{path}:{tree.line}", f"expected a mapping with name, axes and so on, found {show(tree.plain())}"
        )
    try:
        return SweepFile.model_validate(tree.plain())
    except ValidationError as error:
        # a key that is not known may well be the one that is missing
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        where = f"{path}:{tree.at(first['loc']).line}"
        leaf = first["loc"][-1] if first["loc"] else ""
        known = StageFile.model_fields if first["loc"][:1] == ("stages",) else SweepFile.model_fields
        if first["type"] == "extra_forbidden":
            fail(where, f"unknown key {show(key)}; expected one of {', '.join(known)}{nearest(leaf, known)}")
        if first["type"] == "missing":
            fail(where, f"{key}: expected this key, found none")
        expected, names = _expectation(first, key)
        fail(
            where, f"{key}: expected {expected}, found {show(first['input'])}{nearest(first['input'], names)}"
        )


def _axes(tree: Node, path: Path, at: tuple[str | int, ...], raw: dict[str, Any], one: bool = False) -> Axes:
    """Axes with each value checked by itself; `one` for designs where an axis has a single value."""
    axes: Axes = {}
    for name, given in raw.items():
        node = tree.at((*at, name))
        where = f"{path}:{node.line}"
        key = config_key(name, where)
        if key == "seed" or key.startswith("run."):
            fail(
                where,
                f"{key}: expected a key that affects results, found "
                + ("the seed; use seeds" if key == "seed" else "orchestration"),
            )
        if key in axes:
            fail(where, f"duplicate key {key}: this axis is already named")
        if isinstance(given, list) == one:
            fail(where, f"{key}: expected {'one value' if one else 'a list of values'}, found {show(given)}")
        items = node.value if isinstance(node.value, list) else [node]
        axes[key] = []
        for item in items:
            setting = Setting(key, item.plain(), f"{path}:{item.line}", ARM)
            if isinstance(setting.value, str) and not (setting.value.isprintable() and setting.value):
                fail(setting.where, f"{key}: expected printable text, found {show(setting.value)}")
            _check({key: setting})
            axes[key].append(setting)
        if not axes[key]:
            fail(where, f"{key}: expected at least one value, found an empty grid")
    if not axes and at != ("axes",):
        fail(f"{path}:{tree.at(at).line}", "axes: expected at least one axis, found an empty grid")
    return axes


def _pick(key: str, value: Any, axes: Axes, where: str) -> Setting:
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


def _winner(select: Any, axes: Axes, where: str) -> Settings | None:
    if select == "best":
        return None
    if not isinstance(select, dict):
        fail(
            where,
            f"select: expected best or a mapping of axis to value, found {show(select)}"
            + nearest(select, ["best"]),
        )
    fixed = {config_key(key, where): value for key, value in select.items()}
    winner = {key: _pick(key, value, axes, where) for key, value in fixed.items()}
    missing = [key for key in axes if key not in winner]
    if missing:
        fail(
            where, f"select: expected a value for each axis of the stage, found none for {', '.join(missing)}"
        )
    return winner


def _excluded(entry: dict[str, Any], axes: Axes, where: str) -> dict[str, tuple[Any, ...]]:
    if not entry:
        fail(where, "exclude: expected axis: value, found an empty mapping")
    excluded = {}
    for name, given in entry.items():
        key = config_key(name, where)
        values = given if isinstance(given, list) else [given]
        excluded[key] = tuple(_pick(key, value, axes, where).value for value in values)
    return excluded
