"""The comparison of the arms and their training curves, as Matplotlib figures without a screen."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from analysis.claims import COLLAPSED_BELOW, RANK_RATIO
from analysis.results import Results
from analysis.table import Row, label

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which vanishes on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
"""Tell the arms apart once the colours are used up."""
GREY = "#6b6b6b"
PANELS = 4

CURVES = ("train/loss", "collapse/rank", "collapse/image_cosine")

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


def comparison(results: Results, rows: Sequence[Row]) -> Figure:
    """A line an arm, a panel a metric: a point for each seed, the mean, its 95 % t-interval."""
    with mpl.rc_context(STYLE):
        metrics = list(results.metrics)[:PANELS]
        widths = [1.7, *[1.0] * (len(metrics) - 1)]
        arms = sum(not row.baseline for row in rows)
        places = [index + (0.6 if row.baseline and arms else 0.0) for index, row in enumerate(rows)]
        names = max((len(row.arm) for row in rows), default=0)
        width = 2.2 * sum(widths) + 0.075 * names + 0.6
        figure = Figure(
            figsize=(width, 1.75 + 0.34 * (places[-1] + 1 if places else 1)), layout="constrained"
        )
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False, width_ratios=widths)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _panel(axes, metric, results, rows, places)
        first = panels[0]
        first.set_yticks(places, [row.arm for row in rows])
        first.set_ylim((places[-1] if places else 0) + 0.6, -0.6)
        for tick, row in zip(first.get_yticklabels(), rows, strict=True):
            tick.set(color=GREY if row.baseline else "#111111", style="italic" if row.baseline else "normal")
        _title(figure, results, "point = seed, diamond = mean, line = 95 % t-interval; baselines in grey")
        return figure


def _panel(axes: Axes, metric: str, results: Results, rows: Sequence[Row], places: Sequence[float]) -> None:
    looks = styles(rows)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label(metric), weight="bold" if metric == results.metric else "normal")
    if metric == RANK_RATIO:
        axes.axvline(COLLAPSED_BELOW, color=GREY, linewidth=1, linestyle=(0, (3, 2)))
        axes.text(COLLAPSED_BELOW, -0.55, "collapsed ", ha="right", va="center", fontsize=7, color=GREY)
    for row, place in zip(rows, places, strict=True):
        colour = looks[row.arm]["color"]
        values = [trial.metrics.get(metric, math.nan) for trial in results.of(row.arm)]
        values = [value for value in values if math.isfinite(value)]
        found = row.metrics[metric]
        if not values or found.mean is None:
            note = "no finished trial" if row.n == 0 else "no value"
            axes.text(
                0.02, place, note, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=GREY
            )
            continue
        spread = [place + 0.2 * (index / max(len(values) - 1, 1) - 0.5) for index in range(len(values))]
        axes.scatter(values, spread, s=14, color=colour, alpha=0.55, linewidths=0, zorder=2)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2, zorder=3)
        face = "white" if row.baseline else colour
        axes.scatter([found.mean], [place], s=38, marker="D", color=face, edgecolors=colour, zorder=4)


def training(results: Results, rows: Sequence[Row], curves: Curves) -> Figure:
    """Loss and collapse measures over the steps: an arm's mean in full, its seeds thin.

    A mean ends where its shortest seed ends, so that a diverged seed does not bend it.
    """
    with mpl.rc_context(STYLE):
        keys = [key for key in CURVES if any(len(line) > 1 for line in curves.get(key, {}).values())]
        shown = [
            r
            for r in rows
            if any(len(curves[k].get(t.run_id, {})) > 1 for k in keys for t in results.of(r.arm))
        ]
        figure = Figure(figsize=(3.5 * max(len(keys), 1) + 0.4, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, max(len(keys), 1), squeeze=False)[0]
        looks = styles(rows)
        for axes, key in zip(panels, keys, strict=False):
            for row in shown:
                lines = [curves[key].get(trial.run_id, {}) for trial in results.of(row.arm)]
                _lines(axes, [line for line in lines if line], looks[row.arm])
            axes.set_title(label(key), loc="left", fontsize=9, weight="bold")
            axes.set_xlabel("step")
            _scale(axes, [v for line in curves[key].values() for v in line.values()])
        if not keys:
            panels[0].text(0.5, 0.5, "no curves in MLflow", ha="center", va="center", color=GREY)
            panels[0].set_axis_off()
        handles = [Line2D([], [], linewidth=2, **looks[row.arm]) for row in shown]
        longest = max((len(row.arm) for row in shown), default=1)
        columns = max(1, min(len(shown), int(figure.get_figwidth() * 13 / (longest + 7))))
        figure.legend(
            handles, [row.arm for row in shown], loc="outside lower center", ncols=columns, frameon=False
        )
        figure.set_figheight(3.7 + 0.2 * math.ceil(len(shown) / columns))
        _title(figure, results, "thick = mean over seeds, thin = seed")
        return figure


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
    elif finite and min(finite) >= 0:
        axes.set_ylim(bottom=0)


def _title(figure: Figure, results: Results, note: str) -> None:
    columns = int(figure.get_figwidth() * 10)
    question = textwrap.fill(results.question, columns)
    figure.suptitle(question, x=0.01, ha="left", fontsize=12, weight="bold")
    small = f"{results.name}, scale {results.scale}: {note}"
    figure.text(0.01, 0.005, small, fontsize=7, color=GREY, va="bottom")
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0.22 / figure.get_figheight(), 1, 1 - 0.22 / figure.get_figheight()))


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as a png or pdf file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    stamp = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=180, metadata=stamp)
    return buffer.getvalue()
