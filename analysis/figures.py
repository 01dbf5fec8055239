"""The comparison of the arms and their training curves, as Matplotlib figures without a screen."""

import contextlib
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lmim.analysis.results import Results
from lmim.analysis.table import Row
from lmim.files import write_atomic
from lmim.metrics import COLLAPSED, RANK_RATIO, full_name
from lmim.plan.claims import parse_claim

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which vanishes on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
"""Tell the arms apart once the colours are used up."""
GREY = "#6b6b6b"
SMALL: Any = {"fontsize": 7.5, "color": GREY}

CURVES = ("train/loss", "collapse/rank", "collapse/image_cosine")
ACROSS = 3
"""Panels of the comparison side by side."""
MOST = 100
"""Arms that a figure shows: each trial's curves are asked for, and a picture has its greatest height."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.direction": "out",
    "pdf.fonttype": 42,
}

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metric -> run id -> step -> value."""


def styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Arm -> colour and dashes, the same in every figure; baselines are grey."""
    found: dict[str, dict[str, Any]] = {}
    arms = [row.arm for row in rows if not row.baseline]
    for index, arm in enumerate(arms):
        dashes = DASHES[(index // len(COLOURS)) % len(DASHES)]
        found[arm] = {"color": COLOURS[index % len(COLOURS)], "linestyle": dashes}
    for row, dashes in zip([row for row in rows if row.baseline], cycle(reversed(DASHES)), strict=False):
        found[row.arm] = {"color": GREY, "linestyle": dashes}
    return found


def first(rows: Sequence[Row], note: str = "") -> tuple[Sequence[Row], str]:
    """The rows that a figure has room for, and its note, which says so where there are more."""
    more = f"; the first {MOST} of {len(rows)} arms" if len(rows) > MOST else ""
    return rows[:MOST], note + more


def comparison(results: Results, rows: Sequence[Row]) -> Figure:
    """A line an arm, a panel a metric: the mean on its 95 % t-interval, below it a point for each seed."""
    rows, note = first(rows, "Diamond: mean on its 95 % t-interval; small points: seeds; grey: baselines")
    with mpl.rc_context(STYLE):
        metrics = _compared(results)
        widths = [1.6, *[1.0] * (min(len(metrics), ACROSS) - 1)]
        lines = math.ceil(len(metrics) / ACROSS)
        arms = sum(not row.baseline for row in rows)
        places = [index + (0.4 if row.baseline and arms else 0.0) for index, row in enumerate(rows)]
        bottom = max(places, default=0.0) + 0.6
        longest = max((len(row.arm) for row in rows), default=0)
        size = (2.3 * sum(widths) + 0.085 * longest + 0.3, 0.75 + lines * (0.6 + 0.4 * (bottom + 0.6)))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, wspace=0.04))
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, len(widths), sharey=True, squeeze=False, width_ratios=widths)
        panels = [*grid.flat]
        for spare in panels[len(metrics) :]:
            spare.set_axis_off()
        for axes, metric in zip(panels, metrics, strict=False):
            _panel(axes, metric, results, rows, places)
            if arms and arms < len(rows):
                axes.axhline(places[arms] - 0.7, color="#c8c8c8", linewidth=0.8)
        panels[0].set_ylim(bottom, -0.6)
        for axes in grid[:, 0]:
            axes.set_yticks(places, [plain(row.arm) for row in rows])
            for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
                style = "italic" if row.baseline else "normal"
                tick.set(color=GREY if row.baseline else "#111111", style=style)
        figure.supxlabel(_note(results, note, figure), x=0.012, ha="left", **SMALL)
        _title(figure, results)
        return figure


def _compared(results: Results) -> list[str]:
    """The sweep's metric and those that claims name, or else the next one, and the rank ratio."""
    others = [key for key in results.metrics if key not in (results.metric, RANK_RATIO)]
    claimed = [key for key in _claimed(results) if key in others] or others[:1]
    return [key for key in dict.fromkeys([results.metric, *claimed, RANK_RATIO]) if key in results.metrics]


def _claimed(results: Results) -> Iterator[str]:
    for text in results.claims:
        with contextlib.suppress(ValueError):  # of an old plan: its verdict says so
            if metric := parse_claim(text).metric:
                yield full_name(metric)


def _panel(axes: Axes, metric: str, results: Results, rows: Sequence[Row], places: Sequence[float]) -> None:
    looks = styles(rows)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(plain(results.label(metric)), weight="bold" if metric == results.metric else "normal")
    if metric == RANK_RATIO:
        axes.axvspan(0, COLLAPSED, color="#f3f0ea", zorder=0)
        above, middle = axes.get_xaxis_transform(), COLLAPSED / 2
        axes.text(middle, 1.0, "less than half", transform=above, **SMALL, ha="center", va="bottom")
    reach, low, high = _in_reach(metric, results, rows)
    for row, place in zip(rows, places, strict=True):
        colour = looks[row.arm]["color"]
        values = [value for value in _of_seeds(metric, results, row) if math.isfinite(value)]
        found = row.metrics[metric]
        across = axes.get_yaxis_transform()
        if found.mean is None:
            note = "no value" if row.n else "no trial that counts"
            axes.text(0.99, place, note, transform=across, **SMALL, ha="right", va="center")
            continue
        if metric != RANK_RATIO and row.arm not in reach:
            below = found.mean < low
            text, edge = (f"← {found.mean:.1f}", 0.01) if below else (f"{found.mean:.1f} →", 0.99)
            side = "left" if below else "right"
            axes.text(edge, place, text, transform=across, **SMALL, ha=side, va="center")
            continue
        lower = [place + 0.24] * len(values)
        axes.scatter(values, lower, s=11, color=colour, alpha=0.6, linewidths=0, zorder=2)
        middle = place - 0.08
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [middle, middle], color=colour, linewidth=2.2, zorder=3)
        face = "white" if row.baseline else colour
        axes.scatter([found.mean], [middle], s=34, marker="D", color=face, edgecolors=colour, zorder=4)
    chance = results.chance(metric)
    if metric == RANK_RATIO:
        axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 1.05))
    elif math.isfinite(low):
        margin = 0.05 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=4)  # more labels than that touch each other
    left, right = axes.get_xlim()
    if chance is not None and left <= chance <= right:
        axes.axvline(chance, color=GREY, linewidth=0.8, linestyle=DASHES[2], zorder=0)
        axes.text(
            chance, 1.0, "chance", transform=axes.get_xaxis_transform(), **SMALL, ha="center", va="bottom"
        )


APART = 0.2
"""Of an axis, the part that the arms keep to themselves."""


def _in_reach(metric: str, results: Results, rows: Sequence[Row]) -> tuple[set[str], float, float]:
    """Which rows are drawn, and from where to where: not baselines that would squeeze the arms."""
    values = {
        row.arm: [v for v in (*_of_seeds(metric, results, row), *_bounds(row, metric)) if math.isfinite(v)]
        for row in rows
    }
    reach = {row.arm for row in rows if not row.baseline}
    arms = [value for arm in reach for value in values[arm]]
    if not arms:
        return {*values}, math.nan, math.nan
    low, high = min(arms), max(arms)
    span = max(high - low, 1e-9)
    others = {row.arm: values[row.arm] for row in rows if row.baseline and values[row.arm]}
    if (chance := results.chance(metric)) is not None:
        others[""] = [chance]
    for arm, found in sorted(others.items(), key=lambda other: max(high, *other[1]) - min(low, *other[1])):
        if span >= APART * (max(high, *found) - min(low, *found)):
            reach.add(arm)
            low, high = min(low, *found), max(high, *found)
    return reach, low, high


def _of_seeds(metric: str, results: Results, row: Row) -> list[float]:
    return [trial.metrics.get(metric, math.nan) for trial in results.of(row.arm)]


def _bounds(row: Row, metric: str) -> list[float]:
    found = row.metrics[metric]
    return [bound for bound in (found.mean, found.low, found.high) if bound is not None]


def training(results: Results, rows: Sequence[Row], curves: Curves) -> Figure:
    """Loss and collapse measures over the steps: an arm's mean in full, its seeds thin.

    A mean ends where its shortest seed ends, so that a diverged seed does not bend it.
    """
    rows, note = first(rows, "Thick: mean over seeds, up to where the shortest ends; thin: seeds")
    with mpl.rc_context(STYLE):
        keys = [key for key in CURVES if any(len(line) > 1 for line in curves.get(key, {}).values())]
        drawn = {run for key in keys for run, line in curves[key].items() if len(line) > 1}
        shown = [row for row in rows if any(trial.run_id in drawn for trial in results.of(row.arm))]
        width = 3.5 * max(len(keys), 1) + 0.4
        figure = Figure(figsize=(width, 3.9), layout=ConstrainedLayoutEngine(w_pad=0.08))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, max(len(keys), 1), squeeze=False)[0]
        looks = styles(rows)
        for axes, key in zip(panels, keys, strict=False):
            for row in shown:
                lines = [curves[key].get(trial.run_id, {}) for trial in results.of(row.arm)]
                _lines(axes, [line for line in lines if line], looks[row.arm])
            several = key == "train/loss" and any("loss" in row.axes for row in shown)
            title = plain(results.label(key)) + (" (each its own)" if several else "")
            axes.set_title(title, loc="left", fontsize=9, weight="bold")
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            _scale(axes, [value for line in curves[key].values() for value in line.values()])
        if not keys:
            panels[0].text(0.5, 0.5, "no curves in MLflow", **SMALL, ha="center", va="center")
            panels[0].set_axis_off()
        explained(figure, results, {row.arm: looks[row.arm] for row in shown}, note)
        return figure


def explained(figure: Figure, results: Results, looks: Mapping[str, Mapping[str, Any]], note: str) -> None:
    """Put the question over a figure and, below it, what its lines are and what it shows."""
    names, width = list(looks), figure.get_figwidth()
    handles = [Line2D([], [], linewidth=2, **look) for look in looks.values()]
    longest = max(map(len, names), default=1)
    columns = max(1, min(len(names), int(width * 12 / (longest + 7))))
    figure.set_figheight(3.5 + 0.2 * math.ceil(len(names) / columns))
    look: Any = {"title": _note(results, note, figure), "title_fontproperties": {"size": 7.5}}
    look |= {"alignment": "left", "frameon": False, "handlelength": 2.6, "loc": "outside lower left"}
    figure.legend(handles, list(map(plain, names)), ncols=columns, **look).get_title().set_color(GREY)
    _title(figure, results)


def _lines(axes: Axes, lines: Sequence[Mapping[int, float]], look: Mapping[str, Any]) -> None:
    for line in lines:
        axes.plot(list(line), list(line.values()), linewidth=0.7, alpha=0.35, **look)
    if lines:
        shared = sorted(set.intersection(*(set(line) for line in lines)))
        axes.plot(shared, [fmean(line[step] for line in lines) for step in shared], linewidth=1.8, **look)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Losses of different kinds lie decades apart: a logarithm shows them all."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 50 * min(finite):
        axes.set_yscale("log")
    elif finite and 0 <= min(finite) < max(finite) / 2:  # else lines near 0.99 would lie on the frame
        axes.set_ylim(bottom=0)


def _title(figure: Figure, results: Results) -> None:
    question = textwrap.fill(results.question, int(figure.get_figwidth() * 9.5))
    figure.suptitle(plain(question), x=0.012, ha="left", fontsize=12, weight="bold")


def _note(results: Results, text: str, figure: Figure) -> str:
    """What a figure shows, in lines that it has room for; it grows by those after the first."""
    whole = f"{results.name}, scale {results.setting}. {text}."
    lines = textwrap.wrap(whole, int(figure.get_figwidth() * 17))
    figure.set_figheight(figure.get_figheight() + 0.14 * (len(lines) - 1))
    return plain("\n".join(lines))


def plain(text: str) -> str:
    """Text in which Matplotlib finds no formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Replace `path`.png and `path`.pdf, each as a whole; the same bytes for the same figure."""
    for kind, stamp in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        drawn = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(drawn, format=kind, dpi=180, metadata=stamp)
        write_atomic(path.with_suffix(f".{kind}"), drawn.getvalue())
