"""A sweep file, its base and its scale, read and checked: every value with the place where it was set.

Whatever is wrong is a `UserError` of one line that names the file, the line, the key, what was expected and
the nearest right name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError

from lmim.config import Section
from lmim.errors import fail, nearest, show
from lmim.metrics import Metric, full_name, known
from lmim.plan import designs, facts
from lmim.plan.located_yaml import Node, read_yaml
from lmim.plan.search import Search, Tune, read_search
from lmim.plan.settings import BASE, OWN, SCALE, Schema, Setting, Settings, expectation
from lmim.trial.ending import Collapse
from lmim.trial.evaluation import DATA, DEFAULT, PATH, EntryError, Evaluation, read_evaluations
from lmim.trial.figure import Figure, read_figures
from lmim.variants import Count

PROJECT_ABLATIONS = Path(__file__).parents[1] / "ablations"

PIXEL_MIM = {
    "objective": "pixel_mim",
    "loss": "norm_mse",
    "decoder": "self_attention",
    "decoder.cues": False,
    "mask.ratio": 0.75,
    "mask.gap": 0,
}
SUPERVISED = {"objective": "supervised"}
EQUAL_COMPUTE = "_equal_compute"
"""How the baselines end that get as many epochs as take the FLOPs of the base's."""
BASELINES: dict[str, dict[str, Any]] = {
    "random_encoder": {"optim.epochs": 0},
    "raw_pixels": {"objective": "raw_pixels", "optim.epochs": 0},
    "pixel_mim": PIXEL_MIM,
    f"pixel_mim{EQUAL_COMPUTE}": PIXEL_MIM,
    "supervised": SUPERVISED,
    f"supervised{EQUAL_COMPUTE}": SUPERVISED,
}
"""What stands in the same table as the arms: the floor that they must rise above, MAE and a classifier for as
many epochs, and for as many FLOPs, as the base."""


def _switched(given: object) -> object:
    """A rule that is written as `true` or `false`."""
    return ({} if given else None) if isinstance(given, bool) else given


class SweepFile(Section):
    """The keys of a sweep file with any design; a design's file adds its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z")]
    """What its results and its MLflow experiment are called."""
    question: str = ""
    """What the sweep is to find out; it heads the report."""
    base: str | None = None
    """A file of config keys, beside the sweep or in the project's `ablations/`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Config keys of every arm and baseline, laid over base and scale."""
    design: str = "grid"
    """A file of `designs/`."""
    seeds: list[Count] = Field(default_factory=lambda: [0])
    """Every arm is trained once with each."""
    evaluate: list[Any] = Field(default_factory=lambda: [*DEFAULT])
    """Protocols, each with its settings: `[nn, {knn: {k: 5}}, mine.py:gap]`."""
    metric: str = "knn_top1"
    """What arms are compared by; higher is better where a design selects."""
    tune: Tune | None = None
    """Keys in which each arm is tuned by itself, on validation data, before it is compared."""
    claims: list[str] = Field(default_factory=list)
    """What is expected, stated before it runs: `A > B`, `A < B on METRIC`, `A collapsed`, `A not
    collapsed`."""
    baselines: list[str] = Field(default_factory=list)
    """Rows to compare with: `random_encoder` and `raw_pixels`, which need no training; `pixel_mim`, which is
    MAE, and `supervised`, a classifier alone; `pixel_mim_equal_compute` and `supervised_equal_compute`, with
    as many epochs as take the FLOPs of the base's."""
    figures: list[Any] = Field(default_factory=list)
    """Further figures of the report, each with its settings, drawn of each arm's first seed: `[segmentation,
    {attention: {images: 4}}]`."""
    end_collapsed: Annotated[Collapse | None, BeforeValidator(_switched)] = None
    """End trials early that have collapsed: `true`, or `{rank: 0.5, cosine: 0.95, patience: 3}`, when so many
    looks in a row find the effective rank below that part of its first value and the cosine between images
    above. Not with claims about collapse."""


@dataclass(frozen=True)
class Sheet:
    """A sweep file as it is written, and what it may name."""

    path: Path
    tree: Node
    schema: Schema
    evaluations: tuple[Evaluation, ...] = ()
    figures: tuple[Figure, ...] = ()

    def where(self, *keys: str | int) -> str:
        """`file:line` of a place in it."""
        return f"{self.path}:{self.tree.at(keys).line}"

    def metric(self, name: str, where: str) -> Metric:
        """A metric by the name that the file gives it, or a UserError with the nearest."""
        measured = known(self.evaluations)
        if (found := measured.get(full_name(name))) is None or found.better is None:
            names = [n.removeprefix("eval/") for n, one in measured.items() if one.better]
            fail(where, f"expected one of {', '.join(names)}, found {show(name)}{nearest(name, names)}")
        return found


@dataclass(frozen=True)
class Cell:
    """An arm before its seeds: its name, and what it sets over the base."""

    name: str
    changes: Settings
    baseline: bool = False
    provisional: bool = False
    """It stands on a winner that the results do not tell yet."""


Opening = TypeVar("Opening", Evaluation, Figure)
"""What a list of the file has, and what may open data of its own."""
Axes = dict[str, list[Setting]]
Ids = Callable[[Cell], Sequence[str]]
"""The identities of a cell's trials, one a seed: their names in the results, and equal for equal configs."""
Results = Mapping[str, float | None]
"""The sweep's metric of each finished trial; None where it ended without one."""


@dataclass(frozen=True)
class Design:
    """What a design makes of its keys."""

    axes: Axes
    """The keys in which arms differ, with their values: what claims, tables and tags call an arm's axes."""
    count: int
    """How many cells it has, known before they are made."""
    cells: Callable[[Ids, Results], Iterable[Sequence[Cell]]] = field(compare=False)
    """The cells, given the results so far, in rounds: a round's cells are run side by side, seed by seed."""
    selects: bool = False
    """Results choose a winner."""
    by_seed: bool = False
    """Which trials there are hangs on the seeds that run: with others, it is another plan."""
    tell: Callable[[Ids, Results], Iterable[str]] = field(default=lambda ids, results: (), compare=False)
    """What the results so far have chosen, a sentence a choice."""


@dataclass(frozen=True)
class Spec:
    """A sweep file read and checked, before it is expanded."""

    sheet: Sheet
    file: SweepFile
    design: Design
    scale: str
    base: Settings
    """base, scale, the file's own config and --set together: what every arm stands on."""
    seeds: tuple[int, ...]
    """The file's, then those that the call adds; the call's alone where a design's cells hang on them."""
    wanted: tuple[int, ...]
    """The seeds to run now."""
    only: tuple[str, ...] | None
    search: Search | None = None
    """In which keys each arm is tuned, and how."""
    pairs: frozenset[tuple[str, int]] | None = None
    """Arm and seed of the trials that there are, where results decide it; else every arm has every seed."""

    # read from the protocols' sources, and asked for with every look at a trial: so once
    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """How the trials of the table are judged: as the file says, and on val where the design selects."""
        return self.sheet.evaluations + (self.selecting if self.design.selects else ())

    @cached_property
    def selection(self) -> str:
        """The metric that results select by: what selects must not be what is reported."""
        found = on_validation(self.sheet.evaluations, self.file.metric) if self.selects else None
        return found[1] if found else full_name(self.file.metric)

    @cached_property
    def selecting(self) -> tuple[Evaluation, ...]:
        """The protocol of the sweep's metric, on the validation split, where results select anything."""
        found = on_validation(self.sheet.evaluations, self.file.metric) if self.selects else None
        return found[:1] if found else ()

    @property
    def selects(self) -> bool:
        """Whether results choose something on which other trials stand."""
        return self.design.selects or self.search is not None

    @property
    def design_key(self) -> str:
        """The first of the keys that the design adds to the file: where its cells stand."""
        return next(
            (key for key in type(self.file).model_fields if key not in SweepFile.model_fields), "design"
        )


def read(
    path: Path,
    scale: str | None,
    sets: Sequence[str],
    seeds: Sequence[int] | None,
    only: Sequence[str] | None,
) -> Spec:
    """Read and check a sweep file, its base and its scale."""
    tree = read_yaml(path)
    sheet = Sheet(path, tree, Schema({}, {}))
    file, expand = _sweep_file(sheet)
    scale = scale or "demo"
    below = _below(file, sheet, scale)
    named = [(path, tree), *((found, node) for found, node, _ in below)]
    schema = Schema.of([(node, found.parent, str(found)) for found, node in named], sets)
    sheet = Sheet(path, tree, schema, _evaluations(file, sheet, schema), _figures(file, sheet, schema))
    arguments = schema.arguments(sets)
    base: Settings = {}
    for found, node, rank in below:
        base |= schema.settings_of(node, str(found), rank)
    if file.config:
        base |= schema.settings_of(tree.at(("config",)), str(path), OWN)
    base |= arguments
    design = expand(file, sheet)
    if both := [key for key in design.axes if key in arguments]:
        fail(
            arguments[both[0]].where,
            f"{both[0]}: is an axis of this sweep; use --only to choose among its arms",
        )
    if seeds is not None and (not seeds or min(seeds) < 0 or max(seeds) > 2**63 - 1):
        fail("--seeds", f"expected whole numbers from 0, found {show(','.join(map(str, seeds)))}")
    if not file.seeds:
        fail(sheet.where("seeds"), "seeds: expected at least one seed, found an empty grid")
    wanted = file.seeds if seeds is None else seeds
    sheet.metric(file.metric, f"{sheet.where('metric')}: metric")
    sheet = replace(sheet, figures=tuple(_located(sheet, file, design)))
    for number, name in enumerate(file.baselines):
        if name not in BASELINES:
            fail(
                f"{sheet.where('baselines', number)}: baselines",
                f"expected one of {', '.join(BASELINES)}, found {show(name)}{nearest(name, BASELINES)}",
            )
    every = tuple(dict.fromkeys(wanted if design.by_seed else [*file.seeds, *wanted]))
    return Spec(
        sheet,
        file,
        design,
        scale,
        base,
        every,
        tuple(dict.fromkeys(wanted)),
        None if only is None else tuple(only),
        _search(file, sheet, design, arguments, every),
    )


def on_validation(judged: Iterable[Evaluation], metric: str) -> tuple[Evaluation, str] | None:
    """The protocol of a metric on the validation split, and what the metric is called there.

    None where the metric is the trainer's own.
    """
    name = full_name(metric)
    for one in judged:
        for short, found in one.metrics.items():
            if found.name == name:
                there = replace(one, split="val")
                return there, there.metrics[short].name
    return None


def _search(
    file: SweepFile, sheet: Sheet, design: Design, arguments: Settings, seeds: Sequence[int]
) -> Search | None:
    if file.tune is None:
        return None
    if design.selects:
        fail(sheet.where("tune"), f"tune: expected a design that selects nothing itself, found {file.design}")
    better = sheet.metric(file.metric, f"{sheet.where('metric')}: metric").better
    found = on_validation(sheet.evaluations, file.metric)
    if found is None:
        wanted = "metric: expected one of a protocol, as tune looks at validation data"
        fail(sheet.where("metric"), f"{wanted}, found {file.metric}")
    return read_search(
        file.tune, sheet.schema, sheet.where, design.axes, arguments, (found[1], better), seeds
    )


def _evaluations(file: SweepFile, sheet: Sheet, schema: Schema) -> tuple[Evaluation, ...]:
    try:
        return with_data(read_evaluations(file.evaluate, schema.sources))
    except EntryError as error:
        fail(f"{sheet.where('evaluate', error.entry)}: evaluate", str(error))


def with_data(evaluations: Iterable[Evaluation]) -> tuple[Evaluation, ...]:
    """Evaluations with the versions of the data that they open.

    Raises:
        EntryError: data cannot be opened, or have not what the protocol needs.
    """
    return tuple(_with_data(number, one.protocol, one) for number, one in enumerate(evaluations))


def figures_with_data(found: Iterable[Figure]) -> tuple[Figure, ...]:
    """The same of figures."""
    return tuple(_with_data(number, one.name, one) for number, one in enumerate(found))


def _with_data(number: int, called: str, one: Opening) -> Opening:
    """An entry with the version of the data that it opens."""
    if (data := one.opens) is None:
        if DATA in one.settings and one.settings.get(PATH):
            raise EntryError(number, f"{called}.{PATH}: expected {called}.{DATA} beside it, the data's name")
        return one
    about = facts.dataset_of(data, one.sources)
    if about.error:
        raise EntryError(number, f"{called}: {about.error}")
    if "masks" in one.needs and not about.masks:
        wanted = "expected data with masks of objects, such as glyph_scenes or glyph_videos"
        raise EntryError(number, f"{called}.data: {wanted}, found {data.name}")
    if "clips" in one.needs and about.frames < 2:
        wanted = "expected data of clips, such as glyph_videos"
        raise EntryError(number, f"{called}.data: {wanted}, found {data.name}")
    return replace(one, version=str(about.version))


def _figures(file: SweepFile, sheet: Sheet, schema: Schema) -> tuple[Figure, ...]:
    try:
        return figures_with_data(read_figures(file.figures, schema.sources))
    except EntryError as error:
        fail(f"{sheet.where('figures', error.entry)}: figures", str(error))


def _located(sheet: Sheet, file: SweepFile, design: Design) -> Iterator[Figure]:
    """The figures, those over a sweep's axes with the axes and the metric that they show."""
    numeric = [key for key, values in design.axes.items() if _numbers(values) > 1]
    for number, one in enumerate(sheet.figures):
        where = f"{sheet.where('figures', number)}: figures"
        if one.name == "corruptions" and not any(e.protocol == "robustness" for e in sheet.evaluations):
            fail(where, "corruptions: expected robustness in this sweep's evaluate")
        if one.name != "heatmap":
            yield one
            continue
        given = {key: str(value) for key, value in one.settings.items() if value}
        for key in ("x", "y"):
            if key in given and given[key] not in numeric:
                wanted = f"{one.name}.{key}: expected a numeric axis of this sweep ({', '.join(numeric)})"
                fail(where, f"{wanted}, found {given[key]}{nearest(given[key], numeric)}")
        left = [key for key in numeric if key not in (given.get("x"), given.get("y"))]
        axes = [given.get(key) or (left.pop(0) if left else "") for key in ("x", "y")]
        if "" in axes or axes[0] == axes[1]:
            found = ", ".join(dict.fromkeys(filter(None, axes))) or "none"
            fail(where, f"{one.name}: expected a sweep with two numeric axes, found {found}")
        metric = sheet.metric(given.get("metric", file.metric), f"{where}: {one.name}.metric").name
        yield replace(one, settings={"x": axes[0], "y": axes[1], "metric": metric})


def _numbers(values: Sequence[Setting]) -> int:
    """How many numbers an axis has; 0 where some value of it is none."""
    found = [v for one in values if isinstance(v := one.value, int | float) and not isinstance(v, bool)]
    return len({*found}) if len(found) == len(values) else 0


def _below(file: SweepFile, sheet: Sheet, scale: str) -> list[tuple[Path, Node, int]]:
    """The files that lie below every arm, in their order: the base, then the scale."""
    folders = [sheet.path.parent, PROJECT_ABLATIONS]
    below: list[tuple[Path, Node, int]] = []
    if file.base is not None:
        candidates = [folder / file.base for folder in folders if "\0" not in file.base]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            known = [other.name for folder in folders if folder.is_dir() for other in folder.glob("*.yaml")]
            fail(
                sheet.where("base"),
                f"base: expected a file, found no {show(file.base)}{nearest(file.base, known)}",
            )
        folders.insert(1, found.parent)
        below.append((found, read_yaml(found), BASE))
    scale_path = find_scale(scale, folders)
    return [*below, (scale_path, read_yaml(scale_path), SCALE)]


def find_scale(scale: str, folders: Sequence[Path] = (PROJECT_ABLATIONS,)) -> Path:
    """The file of a scale, in the first of the folders that has one.

    Raises:
        UserError: there is none of that name; says the nearest.
    """
    known = sorted({f.stem for folder in folders for f in (folder / "scales").glob("*.yaml")})
    if scale not in known:
        fail(f"--scale {scale}", f"expected one of {', '.join(known) or 'none'}{nearest(scale, known)}")
    return next(p for folder in folders if (p := folder / "scales" / f"{scale}.yaml").is_file())


def _sweep_file(sheet: Sheet) -> tuple[SweepFile, Callable[[SweepFile, Sheet], Design]]:
    """The file's keys, and the function of its design that reads the rest of their meaning."""
    tree = sheet.tree
    if not isinstance(tree.value, dict):
        fail(sheet.where(), f"expected a mapping with name, axes and so on, found {show(tree.plain())}")
    given = tree.value.get("design", Node(SweepFile.model_fields["design"].default, 1)).plain()
    names = designs.names()
    if given not in names:
        fail(
            sheet.where("design"),
            f"design: expected one of {', '.join(names)}, found {show(given)}{nearest(given, names)}",
        )
    design = designs.find(given)
    try:
        return design.Keys.model_validate(tree.plain()), getattr(design, given)
    except ValidationError as error:
        _explain_file(error, sheet, given, design.Keys)
        raise


def _explain_file(error: ValidationError, sheet: Sheet, design: str, keys: type[SweepFile]) -> None:
    """Turn pydantic's error about a sweep file into ours."""
    # a key that is not known may well be the one that is missing
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    where = sheet.where(*first["loc"])
    leaf = first["loc"][-1] if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        takers = {n: f for n in designs.names() if (f := designs.find(n).Keys.model_fields.get(key))}
        if any(field.is_required() for field in takers.values()):
            fail(where, f"{key}: expected no {key} with design {design}, found {key}")
        if takers:
            fail(where, f"{key}: expected only with design {', '.join(takers)}, found it with {design}")
        known = _keys_at(keys, first["loc"][:-1])
        fail(where, f"unknown key {show(key)}; expected one of {', '.join(known)}{nearest(leaf, known)}")
    if first["type"] == "missing":
        if key in keys.model_fields and key not in SweepFile.model_fields:
            fail(sheet.where("design"), f"{key}: expected with design {design}, found none")
        fail(where, f"{key}: expected this key, found none")
    expected, names = expectation(first)
    fail(where, f"{key}: expected {expected}, found {show(first['input'])}{nearest(first['input'], names)}")


def _keys_at(model: type[Section], loc: Sequence[str | int]) -> list[str]:
    """The keys that a section inside of a model takes: of `stages: list[StageFile]`, StageFile's."""
    for step in loc:
        if step in model.model_fields:
            annotation = model.model_fields[str(step)].annotation
            model = next(
                (t for t in (annotation, *get_args(annotation)) if hasattr(t, "model_fields")), model
            )
    return [*model.model_fields]
