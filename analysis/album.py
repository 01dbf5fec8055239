"""The figures that a sweep's file asks for, on pages: what MLflow has of each arm, drawn by `pictures`.

Each arm is shown by one trial, of its first seed that has what is to be drawn; the page says which.
"""

import io
import math
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from lmim.analysis import figures, pictures
from lmim.analysis.intervals import Interval, interval
from lmim.analysis.pictures import PICTURES, Arrays
from lmim.analysis.results import Results, Trial, reading
from lmim.analysis.table import Row, decimals
from lmim.errors import UserError, word
from lmim.trial.figure import Figure as Wanted

WIDE, NARROW, TALL = 180 / 25.4, 90 / 25.4, 225 / 25.4
"""Inches: two columns of a journal, one, and the height of a page."""
ACROSS = 6
"""Axes side by side."""
REASON = "reason"
ERROR = "eval/error_"
"""How the errors begin that `robustness` measures, one a corruption."""
NONE_YET = "nothing to draw is there: run the sweep again"


@dataclass(frozen=True)
class Shown:
    """What a figure shows of one arm."""

    label: str
    """The arm, or whatever else the trial is called."""
    trial: str
    """Which trial, for people."""
    arrays: Arrays

    @property
    def reason(self) -> str:
        """Why there is nothing to draw; empty where there is."""
        return str(self.arrays[REASON]) if REASON in self.arrays else ""


@dataclass(frozen=True)
class Album:
    """A figure of the sweep, drawn."""

    name: str
    """What the sweep's file calls it."""
    caption: str
    pages: tuple[Figure, ...]
    notes: tuple[str, ...]
    """Of which arms it shows nothing, a line for each reason."""


def albums(uri: str, found: Results, rows: Sequence[Row]) -> Iterator[Album]:
    """The figures of a sweep, in the order of its file."""
    for one in found.figures:
        if one.of_sweep:
            yield _corruptions(one, found) if one.name == "corruptions" else _heatmaps(one, found, rows)
        else:
            yield album(one, _shown(uri, found, one))


def album(one: Wanted, shown: Sequence[Shown]) -> Album:
    """A figure of some trials, on as many pages as it takes."""
    drawn = [part for part in shown if not part.reason]
    lacking: dict[str, list[str]] = {}
    for part in shown:
        if part.reason:
            lacking.setdefault(part.reason, []).append(part.label)
    notes = tuple(f"{', '.join(labels)}: {reason}" for reason, labels in lacking.items())
    about = ", ".join(f"{key} {word(value)}" for key, value in one.settings.items() if value != "")
    if one.name == "similarity":
        pages, caption = _curves(drawn), CURVES
    else:
        pages, caption = _pages(one.name, drawn), PICTURES[one.name].caption
    return Album(one.name, f"{caption}. One trial an arm, of its first seed ({about}).", tuple(pages), notes)


def save(found: Album, folder: Path, number: int = 1) -> list[str]:
    """Write the pages, each as PNG and PDF; their names, without suffix.

    `number` counts the figures of one name: `tsne`, `tsne-2`; of several pages `tsne-2-page-1`.
    """
    name = found.name if number == 1 else f"{found.name}-{number}"
    several = len(found.pages) > 1
    names = [f"{name}-page-{page}" if several else name for page, _ in enumerate(found.pages, 1)]
    for file, page in zip(names, found.pages, strict=True):
        figures.save(page, folder / file)
    return names


# ------------------------------------------------------------------------------ out of MLflow


def _shown(uri: str, found: Results, one: Wanted) -> list[Shown]:
    """What MLflow has of each arm, in the order of the table."""
    shown = []
    with reading(uri) as client, tempfile.TemporaryDirectory() as folder:
        for arm in found.arms:
            trials = found.of(arm.name)
            have = ((trial, _artifact(trial, one)) for trial in trials)
            trial, name = next(((t, n) for t, n in have if n), (None, ""))
            if trial is None:
                missing = NONE_YET if trials else "no trial of it counts"
                shown.append(Shown(arm.name, "", {REASON: np.array(missing)}))
                continue
            try:
                path = client.download_artifacts(trial.run_id, f"figures/{name}", folder)
            except OSError:
                shown.append(Shown(arm.name, "", {REASON: np.array(NONE_YET)}))
                continue
            shown.append(Shown(arm.name, f"trial {trial.id}, seed {trial.seed}", load(Path(path))))
    return shown


def _artifact(trial: Trial, one: Wanted) -> str:
    """What a trial's run has of a figure, by whichever code; empty if nothing."""
    stem = one.stem(trial.id, trial.dataset_version)
    return next((name for name in trial.figures if name.startswith(f"{stem}-")), "")


def load(file: Path) -> Arrays:
    """What `lmim.figures` has kept; nothing in it is unpickled.

    Raises:
        UserError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{file.name}: damaged ({error}); delete it and run the sweep again") from None


# ------------------------------------------------------------------------------ onto pages


def _pages(name: str, shown: Sequence[Shown]) -> Iterator[Figure]:
    """Arms one below the other, each under its name."""
    page: list[Shown] = []
    for one in shown:
        if page and sum(_height(name, part) for part in [*page, one]) > TALL:
            yield _page(name, page)
            page = []
        page.append(one)
    if page:
        yield _page(name, page)


def _grid(name: str, one: Shown) -> tuple[int, int, int]:
    """Examples side by side, and the rows and columns of axes that all of them take."""
    picture = PICTURES[name]
    columns, examples = picture.columns(one.arrays), len(one.arrays[picture.counted])
    beside = max(1, min(examples, ACROSS // columns))
    return beside, math.ceil(examples / beside) * picture.rows, beside * columns


def _height(name: str, one: Shown) -> float:
    """Inches that an arm takes: square axes with a title, and a line for the arm's name."""
    _, rows, columns = _grid(name, one)
    titled = rows // PICTURES[name].rows
    return 0.32 + rows * WIDE / max(columns, ACROSS // 2) + 0.16 * titled


def _page(name: str, shown: Sequence[Shown]) -> Figure:
    heights = [_height(name, one) for one in shown]
    with mpl.rc_context(figures.STYLE):
        engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.035, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=(WIDE, sum(heights)), layout=engine)
        FigureCanvasAgg(figure)
        parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, one in zip(parts, shown, strict=True):
            _named(part, one)
            beside, rows, columns = _grid(name, one)
            axes = part.subplots(rows, max(columns, ACROSS // 2), squeeze=False)
            for spare in axes[:, columns:].flat:
                spare.set_axis_off()
            _examples(name, one.arrays, axes[:, :columns], beside)
        return figure


def _named(part: Any, one: Shown) -> None:
    """The arm over its axes, and of which trial they are."""
    part.suptitle(figures.plain(one.label), x=0.008, ha="left", fontsize=9, weight="bold")
    top = 1 - 0.05 * part.figure.dpi / part.bbox.height
    part.text(0.992, top, one.trial, ha="right", va="top", **figures.SMALL)


def _examples(name: str, data: Arrays, axes: Any, beside: int) -> None:
    picture = PICTURES[name]
    columns = axes.shape[1] // beside
    for number in range(math.ceil(axes.shape[0] / picture.rows) * beside):
        row, column = number // beside * picture.rows, number % beside * columns
        block: list[Axes] = [*axes[row : row + picture.rows, column : column + columns].flat]
        if number < len(data[picture.counted]):
            picture.draw(block, data, number)
        else:
            for axis in block:
                axis.set_axis_off()


CURVES = (
    "Similarity within an image over training, by the journal: of the encoder's patches on test images, of "
    "predictions, targets and visible latents on training images (at both ends: of trials whose journal has "
    "them not, with the first and with the last weights, on test images); mean cosine of all pairs, each "
    "patch with itself included, as the constraint has it"
)


def _curves(shown: Sequence[Shown]) -> Iterator[Figure]:
    """Three arms side by side, on one scale, under one legend."""
    for start in range(0, len(shown), 12):
        page = shown[start : start + 12]
        rows = math.ceil(len(page) / 3)
        columns = min(3, len(page))
        with mpl.rc_context(figures.STYLE):
            size = (WIDE if columns > 1 else NARROW, 0.75 + 1.9 * rows)
            figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.05))
            FigureCanvasAgg(figure)
            axes = [*figure.subplots(rows, columns, squeeze=False, sharey=True).flat]
            handles: dict[str, Any] = {}
            for axis, one in zip(axes, page, strict=False):
                pictures.similarity(axis, one.arrays)
                title = textwrap.fill(figures.plain(one.label), 34)
                axis.set_title(title, loc="left", fontsize=8.5, weight="bold", pad=14)
                axis.text(0, 1.03, one.trial, transform=axis.transAxes, va="bottom", **figures.SMALL)
                lines, names = axis.get_legend_handles_labels()
                handles |= dict(zip(names, lines, strict=True))
                if axis not in axes[::columns]:
                    axis.set_ylabel("")
            for spare in axes[len(page) :]:
                spare.set_axis_off()
            look: Any = {"frameon": False, "fontsize": 7.5, "loc": "outside lower left"}
            figure.legend([*handles.values()], [*handles], ncols=3 if columns > 1 else 2, **look)
        yield figure


# ------------------------------------------------------------------------------ of the table


def _heatmaps(one: Wanted, found: Results, rows: Sequence[Row]) -> Album:
    """A metric over two axes, a panel for each combination of the other axes' values."""
    x, y, metric = (str(one.settings[key]) for key in ("x", "y", "metric"))
    panels: dict[str, dict[tuple[float, float], Interval]] = {}
    without = []
    for row in rows:
        if row.baseline or x not in row.axes or y not in row.axes:
            continue
        value = row.metrics.get(metric)
        rest = ", ".join(f"{k.rpartition('.')[2]} {word(v)}" for k, v in row.axes.items() if k not in (x, y))
        if value is None or value.mean is None:
            without.append(row.arm)
        else:
            panels.setdefault(rest, {})[_number(row.axes[x]), _number(row.axes[y])] = value
    label = found.label(metric)
    what = "the mean over seeds ± half of its 95 % t-interval, in one scale of colours"
    pages = (_heat(panels, (x, y), label),) if panels else ()
    notes = (f"{', '.join(without)}: no value yet",) if without else ()
    return Album(one.name, f"{label} over {x} and {y}: {what}.", pages, notes)


def _corruptions(one: Wanted, found: Results) -> Album:
    """Errors under corruptions over those of an arm, as arXiv 1903.12261 has them over AlexNet's."""
    arms = [arm.name for arm in found.arms]
    to = str(one.settings["to"]) or arms[0]
    entries: dict[str, list[str]] = {}  # robustness may be asked for twice, by other settings
    for key in found.described:
        if key.startswith(ERROR):
            entries.setdefault(key.partition(".")[2], []).append(key)
    against = {trial.seed: trial.metrics for trial in found.of(to)}
    pages, without = [], [] if entries else arms
    for keys in entries.values():
        ratios = {
            arm: [r for t in found.of(arm) if (r := _over(t, against.get(t.seed, {}), keys))] for arm in arms
        }
        without = [arm for arm in arms if arm in without or not ratios[arm]]
        if shown := [arm for arm in arms if ratios[arm]]:
            pages.append(_ratios(shown, ratios, keys, found))
    caption = (
        f"Error under each corruption, a mean over five strengths, over the error of {to} at equal seed; "
        "the mean over the corruptions stands last, and by the arm with half of its 95 % t-interval over "
        "seeds. Below 1: fewer errors"
    )
    notes = (f"{', '.join(without)}: no errors at a seed of {to} yet",) if without else ()
    return Album(one.name, caption, tuple(pages), notes)


def _over(trial: Trial, to: Mapping[str, float], keys: Sequence[str]) -> list[float]:
    """A trial's errors over those of another, and their mean last; empty where there are none to compare."""
    pairs = [(trial.metrics.get(key), to.get(key)) for key in keys]
    each = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
    return [*each, math.fsum(each) / len(each)] if each and len(each) == len(keys) else []


def _ratios(
    arms: Sequence[str], ratios: Mapping[str, Sequence[Sequence[float]]], keys: Sequence[str], found: Results
) -> Figure:
    """An arm a row, a corruption a column, their mean the last."""
    columns = [[interval(column) for column in zip(*ratios[arm], strict=True)] for arm in reversed(arms)]
    told = [
        found.label(key).removeprefix("error under ").removesuffix(" (%)").partition(", ") for key in keys
    ]
    labels, settings = [name for name, _, _ in told], told[0][2]
    means = [one[-1] for one in columns]
    names = [
        figures.plain(arm) + (f"\n{one.mean:.3f} ± {one.half:.3f}" if one.half else "")
        for arm, one in zip(reversed(arms), means, strict=True)
    ]
    values = _grid_of(columns, "mean")
    data = {"x": np.array([*labels, "mean"]), "y": np.array(names), "values": values}
    with mpl.rc_context(figures.STYLE):
        size = (WIDE, 1.2 + 0.36 * len(arms))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05))
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        pictures.heatmap(axis, data)
        axis.tick_params("x", rotation=40)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        axis.axvline(len(keys) - 0.5, color="white", linewidth=3)
        axis.set_title(settings)
    return figure


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _heat(
    panels: Mapping[str, Mapping[tuple[float, float], Interval]], keys: tuple[str, str], label: str
) -> Figure:
    cells = [cell for panel in panels.values() for cell in panel]
    across, up = (sorted({cell[place] for cell in cells}) for place in (0, 1))
    values = [one.mean or 0.0 for panel in panels.values() for one in panel.values()]
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(figures.STYLE):
        size = (NARROW if columns == 1 else WIDE, rows * (0.9 + 0.46 * len(up)) + 0.25)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05))
        FigureCanvasAgg(figure)
        axes = [*figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat]
        ends = {"low": np.array(min(values)), "high": np.array(max(values))}
        for axis, (rest, panel) in zip(axes, panels.items(), strict=False):
            found = [[panel.get((x, y)) for x in across] for y in up]
            data = {"x": np.array(across), "y": np.array(up), "values": _grid_of(found, "mean")}
            image = pictures.heatmap(axis, data | {"half": _grid_of(found, "half")} | ends, decimals(values))
            axis.set_title(figures.plain(rest), loc="left", fontsize=9, weight="bold")
            axis.set(xlabel=figures.plain(keys[0]), ylabel=figures.plain(keys[1]))
            axis.label_outer()
        for spare in axes[len(panels) :]:
            spare.set_axis_off()
        bar = figure.colorbar(image, ax=axes, label=figures.plain(label), aspect=14)
        bar.ax.grid(visible=False)
    return figure


def _grid_of(cells: Sequence[Sequence[Interval | None]], part: str) -> NDArray[np.float64]:
    """A part of each cell's interval; NaN where there is none."""
    return np.array([[getattr(one, part, None) for one in row] for row in cells], dtype=np.float64)
