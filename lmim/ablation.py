"""Sweep file to trials: designs, arms, seeds, identities.

A sweep file declares a set of trials and the claims they are to test. Planning is pure: it reads the file,
its `base` and a scale, and imports neither torch nor Ray. Whatever is wrong with them is a `UserError` of one
line that names the file, the line, the key, what was expected and the nearest right name.
"""

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from lmim.config import (
    KINDS,
    Config,
    Count,
    GeometryError,
    Section,
    UserError,
    merge,
)

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 32
MAX_TRIALS = 10_000

EMBEDDED = ("glyphs", "digits")
"""The datasets that come with the package: `data.path` says nothing about them."""

PROJECT_ABLATIONS = Path(__file__).parent.parent / "ablations"

METRICS = (
    *("nn_top1", "knn_top1", "linear_top1", "rank_ratio"),
    *("eval/nn_top1", "eval/knn_top1", "eval/linear_top1", "eval/rank_ratio"),
    *("collapse/rank", "collapse/image_cosine", "collapse/patch_cosine", "collapse/std"),
    "train/loss",
)

BASELINES: dict[str, dict[str, Any]] = {
    "random_encoder": {"optim.epochs": 0},
    "raw_pixels": {"objective": "raw_pixels", "optim.epochs": 0},
}
"""What needs no training and stands in the same table: the floor that an arm must rise above."""


@dataclass(frozen=True)
class Claim:
    """What the author of a sweep expects, stated before it runs.

    Each side names an arm, or selects several by `key=value` terms.
    """

    text: str
    left: str
    op: Literal[">", "<", "collapsed", "not collapsed"]
    right: str | None = None
    metric: str | None = None
    """Only where the claim says `on METRIC`; else the sweep's metric counts."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: a cell of the design, to be run with every seed."""

    name: str
    axes: dict[str, Any]
    baseline: bool = False
    provisional: bool = False
    """True while an earlier stage of a ladder, on whose winner this arm stands, is undecided."""


@dataclass(frozen=True)
class Trial:
    """One training: an arm with a seed. `id` is its config's identity."""

    id: str
    arm: str
    seed: int
    axes: dict[str, Any]
    config: Config
    baseline: bool = False
    provisional: bool = False


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved at one scale.

    `planned` is the whole of it: every arm with the file's seeds and those that the call adds. `trials` are
    those among them that the call asked for.
    """

    name: str
    question: str
    scale: str
    metric: str
    design: str
    claims: tuple[Claim, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    planned: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    path: Path
    spec: "Spec"

    def replan(self, results: Mapping[str, float | None]) -> "Sweep":
        """The same sweep, knowing the metric of finished trials (None: finished without one).

        Only a ladder changes: a stage all of whose trials are in `results` has a winner, and the next stage's
        trials are then no longer provisional.
        """
        return expand(self.spec, results)

    def where(self, key: str) -> str:
        """Where a config key was set: `file:line` or the argument; the sweep file where nobody did."""
        axes = (self.spec.axes, *(stage.axes for stage in self.spec.stages))
        found = [axis[key][0] for axis in axes if axis.get(key)]
        found += [self.spec.base[key]] if key in self.spec.base else []
        return f"{found[0].where if found else self.path}: {key}"

    def check_paths(self, trials: Iterable[Trial]) -> None:
        """Whether the datasets that trials read lie on this machine.

        Raises:
            UserError: one does not; a trial would say so too, but each for itself, and late.
        """
        for data in {trial.config.data for trial in trials}:
            path = Path(data.path or ".").expanduser()
            if data.name not in EMBEDDED and not path.is_dir():
                kind = "a file" if path.exists() else "nothing there"
                fail(
                    self.where("data.path"),
                    f"expected the folder that holds {data.name}, found {kind}: {path}",
                )


# ------------------------------------------------------------------------------
# Errors: one line each


def fail(where: str, message: str) -> NoReturn:
    """Raise a UserError that is one printable line whatever the file held."""
    text = f"{where}: {message}"
    raise UserError("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def show(value: object) -> str:
    """A value as it is named in a message: as YAML would write it, and short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = word(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(found: object, names: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no name is near."""
    text, known = str(found)[:100], list(names)
    # a bare leaf is the likeliest slip, and difflib alone finds `epochs` far from `optim.epochs`
    near = [name for name in known if "." in name and name.rpartition(".")[2] == text]
    near = near or difflib.get_close_matches(text, known[:1000], 1, 0.6)
    near = near or [name for name in known if len(text) > 1 and name.startswith(text)]
    return f"; did you mean {near[0]}?" if near else ""


def word(value: object) -> str:
    """A scalar as it stands in an arm's name: `true`, `0.1`, `0` for 0.0.

    >>> [word(v) for v in (True, 0.0, 0.1, 3, "mse", None)]
    ['true', '0', '0.1', '3', 'mse', 'null']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


# ------------------------------------------------------------------------------
# YAML 1.2 with line numbers


@dataclass
class Node:
    """A value of a YAML file and the line on which it (or its key) stands."""

    value: "dict[str, Node] | list[Node] | str | int | float | bool | None"
    line: int

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: Iterable[str | int]) -> "Node":
        """The deepest node along a path."""
        node = self
        for step in path:
            inside = node.value
            if isinstance(inside, list):
                inside = {str(number): item for number, item in enumerate(inside)}
            if not isinstance(inside, dict) or str(step) not in inside:
                break
            node = inside[str(step)]
        return node


INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def scalar(text: str) -> str | int | float | bool | None:
    """A plain scalar by YAML 1.2's core schema: `yes`, `on` and dates are words, `1e-3` is a number.

    >>> [scalar(t) for t in ("yes", "true", "1e-3", "0x10", "", "mse")]
    ['yes', True, 0.001, 16, None, 'mse']
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        whole = None if len(text) > 20 else int(text) if text.lstrip("-+").isdigit() else int(text, 0)
        if whole is None or not -(2**63) <= whole < 2**63:
            raise ValueError("a number of at most 64 bits")
        return whole
    if REAL.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError("a finite number")
        return number
    return text


def read_yaml(path: Path) -> Node:
    """Parse one YAML file into nodes; anything but one sane document is a UserError.

    Built from the parser's events, so nothing in the file can construct an object, and depth and size are
    bounded before they can hurt. Anchors, aliases and tags have no use in a sweep and are refused.
    """
    where = str(path)
    try:
        if not path.is_file():
            if path.is_dir():
                fail(where, "expected a YAML file, found a folder")
            siblings = [str(other) for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            fail(where, "expected a YAML file, found no such file" + nearest(path, siblings))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            fail(where, f"expected at most {MAX_BYTES:,} bytes, found a larger file")
        text = raw.decode("utf-8-sig")
    except OSError as error:
        fail(where, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        fail(where, f"expected UTF-8 text, found byte {raw[error.start]:#04x} at offset {error.start}")
    except ValueError as error:  # a null byte in the path
        fail(where, f"cannot be read: {error}")
    return parse_yaml(text, where)


def parse_yaml(text: str, where: str) -> Node:
    """The nodes of a YAML text; `where` is the file that messages name."""
    try:
        return _build(text, where)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        fail(f"{where}{line}", f"does not parse as YAML: {' '.join(str(problem).split())[:200]}")
    except (ValueError, OverflowError, IndexError, RecursionError) as error:
        # ruamel's scanner lets some malformed escapes and directives through as these
        fail(where, f"does not parse as YAML: {' '.join(str(error).split())[:200]}")


def _build(text: str, where: str) -> Node:
    root: Node | None = None
    stack: list[tuple[Node, tuple[str, int] | None]] = []  # open collections, each with the key that waits
    documents = nodes = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        here = f"{where}:{line}"
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                fail(here, "expected one YAML document, found a second")
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            fail(
                here,
                f"anchors and aliases are not supported, found {show(event.anchor)}; write the value out",
            )
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            stack.pop()
            continue
        if not isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            continue
        nodes += 1
        if nodes > MAX_NODES or len(stack) > MAX_DEPTH:
            fail(here, f"expected at most {MAX_NODES:,} values, {MAX_DEPTH} deep, found more")
        if getattr(event, "tag", None) is not None:
            fail(here, f"tags are not supported, found {show(str(event.tag))}; write a plain value")
        parent, key = stack[-1] if stack else (None, None)
        if parent is not None and isinstance(parent.value, dict) and key is None:
            if not isinstance(event, ScalarEvent):
                fail(here, "expected a word as the key, found a mapping or a list")
            name = _characters(event.value, here)
            if name in parent.value:
                fail(here, f"duplicate key {show(name)}, first on line {parent.value[name].line}")
            stack[-1] = (parent, (name, line))
            continue
        node = Node(None, line)
        if isinstance(event, MappingStartEvent):
            node.value = {}
        elif isinstance(event, SequenceStartEvent):
            node.value = []
        else:
            node.value = _characters(event.value, here)
            if event.style in (None, "") and event.implicit[0]:
                try:
                    node.value = scalar(event.value)
                except ValueError as error:
                    fail(here, f"expected {error}, found {show(event.value)}")
        if parent is None:
            root = node
        elif isinstance(parent.value, dict) and key is not None:
            node.line = key[1]
            parent.value[key[0]] = node
            stack[-1] = (parent, None)
        elif isinstance(parent.value, list):
            parent.value.append(node)
        if isinstance(node.value, dict | list):
            stack.append((node, None))
    return root or Node(None, 1)


def _characters(text: str, where: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        fail(where, f"expected text, found a lone surrogate in {show(text)}")
    return text


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
        _explain(error, settings, "", geometry=False)


def resolve(settings: Settings, where: str) -> Config:
    """The config that settings make over the defaults, or a UserError that names the one to blame."""
    try:
        return Config.model_validate(merge({}, {key: s.value for key, s in settings.items()}))
    except ValidationError as error:
        _explain(error, settings, where)
        raise


def _explain(error: ValidationError, settings: Settings, where: str, geometry: bool = True) -> None:
    """Turn pydantic's error into ours."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, GeometryError):
        if geometry:
            named = {cause.key, *re.findall(r"[a-z_]+\.[a-z_]+", cause.message)}
            suspects = [s for key, s in settings.items() if key in named]
            # the change that was laid on last broke what held before it
            blamed = max(suspects, key=lambda s: (s.rank, s.key == cause.key), default=None)
            place = f"{blamed.where}: {blamed.key}" if blamed else where
            fail(place, f"impossible geometry: {cause.key} {cause.message}")
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


def load(
    path: str | Path,
    scale: str | None = None,
    sets: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    yes: bool = False,
) -> Sweep:
    """Read a sweep file and expand it.

    Args:
        path: the sweep file.
        scale: a file of `scales/` without its suffix; looked for beside the sweep, beside its base, then in
            the project's `ablations/`. `demo` where None.
        sets: `key=value` arguments, laid over every arm.
        seeds: the seeds of `trials`, in place of the file's.
        only: the arms of `trials`, by name or by `key=value` terms.
        yes: allow more than 10,000 trials.

    Raises:
        UserError: for whatever the user can mend.
    """
    spec = read(Path(path), scale, sets, seeds, only)
    axes = [stage.axes for stage in spec.stages] or [spec.axes]
    if spec.file.design in ("grid", "ladder"):
        cells = sum(math.prod(len(values) for values in stage.values()) for stage in axes)
    else:
        cells = 1 + sum(len(values) for values in spec.axes.values())
    count = (cells + len(spec.file.baselines)) * len(spec.wanted)
    if count > MAX_TRIALS and not yes:
        fail(
            spec.where("stages" if spec.stages else "axes"),
            f"expected at most {MAX_TRIALS:,} trials, found {count:,}; say --yes to plan them all",
        )
    return expand(spec)


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
    for setting in axes[key]:
        if word(setting.value) == word(value):
            return setting
    words = [word(setting.value) for setting in axes[key]]
    fail(where, f"{key}: expected one of {', '.join(words[:20])}, found {show(value)}{nearest(value, words)}")


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


# ------------------------------------------------------------------------------
# Expansion


@dataclass(frozen=True)
class Cell:
    """An arm before its seeds: a name, what it sets, and the ladder's stage it belongs to."""

    name: str
    changes: Settings
    baseline: bool = False
    provisional: bool = False


def expand(spec: Spec, results: Mapping[str, float | None] | None = None) -> Sweep:
    """All trials of a sweep. A cell that occurs twice appears once, under its first name."""
    keys = list(spec.axes) or list(itertools.chain(*(stage.axes for stage in spec.stages)))
    labels = _labels(keys)
    builder = _Builder(spec, keys)
    design = spec.file.design
    if design == "grid":
        builder.add(_grid(spec, labels))
    elif design == "one_factor":
        builder.add([Cell("base", {})])
        builder.add(
            Cell(_name({key: setting}, labels), {key: setting})
            for key, settings in spec.axes.items()
            for setting in settings
        )
    elif design == "leave_one_out":
        builder.add([Cell("full", {})])
        for key, (setting,) in spec.axes.items():
            if not builder.add([Cell(f"without {labels[key]}", {key: setting})]):
                fail(
                    setting.where,
                    f"{key}: expected the value without it, found the full method's own "
                    f"{show(setting.value)}",
                )
    else:
        _climb(spec, labels, builder, results or {})
    for name in spec.file.baselines:
        changes = {
            key: Setting(key, value, spec.where("baselines"), ARM) for key, value in BASELINES[name].items()
        }
        builder.add([Cell(name, changes, baseline=True)])
    if not builder.arms:
        fail(spec.where("exclude"), "expected at least one trial, found an empty grid")
    arms = tuple(builder.arms)
    return Sweep(
        name=spec.file.name,
        question=" ".join(spec.file.question.split()),
        scale=spec.scale,
        metric=spec.file.metric,
        design=design,
        claims=_claims(spec, arms),
        seeds=spec.seeds,
        arms=arms,
        planned=tuple(builder.trials),
        trials=tuple(t for t in _only(spec, arms, builder.trials) if t.seed in spec.wanted),
        path=spec.path,
        spec=spec,
    )


class _Builder:
    """Collects arms and trials, each identity once."""

    def __init__(self, spec: Spec, keys: list[str]) -> None:
        self.spec = spec
        self.keys = keys
        self.arms: list[Arm] = []
        self.trials: list[Trial] = []
        self.seen: set[str] = set()

    def add(self, cells: Iterable[Cell]) -> list[list[str]]:
        """Add cells with every seed, seed by seed, so that a sweep cut short has seen every arm.

        Returns the trial ids of each cell that was new.
        """
        fresh: list[tuple[Arm, list[Trial]]] = []
        for cell in cells:
            trials = self.build(cell)
            if trials[0].id not in self.seen:
                self.seen.update(trial.id for trial in trials)
                first = trials[0]
                fresh.append((Arm(cell.name, first.axes, cell.baseline, cell.provisional), trials))
        self.arms += [arm for arm, _ in fresh]
        for number in range(len(self.spec.seeds)):
            self.trials += [trials[number] for _, trials in fresh]
        return [[trial.id for trial in trials] for _, trials in fresh]

    def build(self, cell: Cell) -> list[Trial]:
        settings = self.spec.base | cell.changes
        config = resolve(settings, str(self.spec.path))
        flat = {} if cell.baseline else config.flat()
        axes = {key: flat[key] for key in self.keys if key in flat}
        trials = []
        for seed in self.spec.seeds:
            seeded = config.model_copy(update={"seed": seed})
            trials.append(
                Trial(seeded.identity, cell.name, seed, axes, seeded, cell.baseline, cell.provisional)
            )
        return trials


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """What each axis is called in an arm's name: its leaf, or all of it where two leaves are the same.

    >>> list(_labels(["loss", "mask.gap", "encoder.depth", "projector.depth"]).values())
    ['loss', 'gap', 'encoder.depth', 'projector.depth']
    """
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def _name(cell: Settings, labels: Mapping[str, str]) -> str:
    """`mse` where the sweep has one axis, else `gap=1 similarity=0.1`."""
    if len(labels) == 1:
        return word(next(iter(cell.values())).value)
    return " ".join(f"{labels[key]}={word(setting.value)}" for key, setting in cell.items())


def _product(axes: Axes) -> Iterator[Settings]:
    for values in itertools.product(*axes.values()):
        yield {setting.key: setting for setting in values}


def _grid(spec: Spec, labels: Mapping[str, str]) -> Iterator[Cell]:
    for cell in _product(spec.axes):
        if not any(all(cell[key].value in values for key, values in rule.items()) for rule in spec.exclude):
            yield Cell(_name(cell, labels), cell)


def _climb(
    spec: Spec, labels: Mapping[str, str], builder: _Builder, results: Mapping[str, float | None]
) -> None:
    """The stages of a ladder in order, each on the winners so far, or on the base's values."""
    won: Settings = {}
    provisional = False
    for stage in spec.stages:
        cells = [
            Cell(_name(cell, labels), won | cell, provisional=provisional) for cell in _product(stage.axes)
        ]
        builder.add(cells)
        if stage.winner is not None:
            won = won | stage.winner
            continue
        best = None if provisional else _best([builder.build(cell) for cell in cells], results)
        if best is None:
            provisional = True
        else:
            won = cells[best].changes


def _best(cells: Sequence[Sequence[Trial]], results: Mapping[str, float | None]) -> int | None:
    """The cell with the highest mean over seeds; None while one trial is missing.

    A cell of which a seed ended without a metric (it diverged) cannot win.
    """
    if any(trial.id not in results for trials in cells for trial in trials):
        return None
    means: list[tuple[float, int]] = []
    for number, trials in enumerate(cells):
        values = [results[trial.id] for trial in trials]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) == len(values):
            means.append((sum(known) / len(known), -number))
    return -max(means)[1] if means else None


# ------------------------------------------------------------------------------
# Arms by name, and claims about them

CLAIM = re.compile(
    r"(?P<left>\S.*?)\s+(?:(?P<verdict>not collapsed|collapsed)"
    r"|(?P<op>[<>])\s+(?P<right>\S.*?)(?:\s+on\s+(?P<metric>\S+))?)\s*"
)


def parse_claim(text: str) -> Claim:
    """Read `A > B`, `A < B`, `A > B on METRIC`, `A collapsed` or `A not collapsed`.

    >>> parse_claim("gap=1 > gap=0 on linear_top1").metric
    'linear_top1'

    Raises:
        ValueError: for anything else.
    """
    match = CLAIM.fullmatch(text)
    if match is None:
        raise ValueError("expected A > B, A < B, A collapsed or A not collapsed")
    op = cast(Literal[">", "<", "collapsed", "not collapsed"], match["verdict"] or match["op"])
    return Claim(text, match["left"], op, match["right"], match["metric"])


def selects(side: str, name: str, axes: Mapping[str, Any]) -> bool:
    """Whether one side of a claim selects an arm: by its name, or by terms that all hold.

    >>> selects("gap=1", "gap=1 similarity=0.1", {"mask.gap": 1, "mask.similarity": 0.1})
    True
    >>> selects("mask.gap=0", "gap=1 similarity=0.1", {"mask.gap": 1, "mask.similarity": 0.1})
    False
    """
    if side == name:
        return True
    terms = [term.partition("=") for term in side.split()]
    return bool(terms) and all(
        equals
        and any(
            term.removesuffix(".kind") in (key, key.rpartition(".")[2]) and word(wanted) == word(axes[key])
            for key in axes
        )
        for term, equals, wanted in ((t, e, _lenient(v)) for t, e, v in terms)
    )


def _lenient(text: str) -> str | int | float | bool | None:
    try:
        return scalar(text)
    except ValueError:
        return text


def _claims(spec: Spec, arms: Sequence[Arm]) -> tuple[Claim, ...]:
    claims = []
    names = _sides(arms)
    for number, text in enumerate(spec.file.claims):
        where = f"{spec.where('claims', number)}: claims.{number}"
        try:
            claim = parse_claim(text)
        except ValueError as error:
            fail(where, f"{error}, found {show(text)}")
        if claim.metric is not None and claim.metric not in METRICS:
            fail(
                where,
                f"expected one of {', '.join(METRICS)}, found {show(claim.metric)}"
                + nearest(claim.metric, METRICS),
            )
        chosen = [
            {arm.name for arm in arms if selects(side, arm.name, arm.axes)}
            for side in (claim.left, claim.right)
            if side is not None
        ]
        for side, found in zip((claim.left, claim.right), chosen, strict=False):
            if not found:
                fail(where, f"expected an arm ({_some(names)}), found {show(side)}{nearest(side, names)}")
        if len(chosen) == 2 and chosen[0] & chosen[1]:
            fail(
                where, f"expected two sides without a common arm, found {min(chosen[0] & chosen[1])} on both"
            )
        claims.append(claim)
    return tuple(claims)


def _only(spec: Spec, arms: Sequence[Arm], trials: list[Trial]) -> list[Trial]:
    if spec.only is None:
        return trials
    kept: set[str] = set()
    names = _sides(arms)
    for wanted in spec.only:
        found = {arm.name for arm in arms if selects(wanted, arm.name, arm.axes)}
        if not found:
            fail(
                f"--only {wanted}",
                f"expected an arm of {spec.path} ({_some(names)}), found none of that name"
                + nearest(wanted, names),
            )
        kept |= found
    return [trial for trial in trials if trial.arm in kept]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _sides(arms: Sequence[Arm]) -> list[str]:
    """What a claim or --only may say: the arms' names, or where those are several terms, the single terms."""
    return list(
        dict.fromkeys(t for arm in arms for t in (arm.name.split() if "=" in arm.name else [arm.name]))
    )
