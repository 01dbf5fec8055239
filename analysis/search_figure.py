"""The searches of a sweep's arms as a figure. The only file here that imports Optuna.

Optuna's own Matplotlib plots are one figure a study, each with its style; arms that are to be compared stand
in one figure here, with the importances that Optuna reckons.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lmim.analysis.figures import STYLE, explained, plain, styles
from lmim.analysis.results import Results
from lmim.analysis.searches import tuned_keys
from lmim.analysis.table import Row
from lmim.plan.record import RecordedSearch
from lmim.plan.search import distribution

ENOUGH = 4
"""Suggestions with a value, from which on the importance of the keys is reckoned."""


def search(results: Results, rows: Sequence[Row]) -> Figure:
    """The budget curve of each arm, and every suggestion over each key."""
    with mpl.rc_context(STYLE):
        searches = results.searches
        keys = tuned_keys(results)
        figure = Figure(
            figsize=(3.3 * (1 + len(keys)) + 0.4, 3.9), layout=ConstrainedLayoutEngine(w_pad=0.08)
        )
        FigureCanvasAgg(figure)
        budget, *slices = figure.subplots(1, 1 + len(keys), squeeze=False, sharey=True)[0]
        looks = styles(rows)
        weights = {one.arm: importances(one) for one in searches}
        budget.set_ylabel(plain(results.label(searches[0].metric)))
        budget.set_title("best so far", loc="left", fontsize=9, weight="bold")
        budget.set_xlabel("suggestion")
        budget.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for one in searches:
            _budget(budget, one, looks[one.arm])
        for axes, key in zip(slices, keys, strict=True):
            axes.set_title(plain(key), loc="left", fontsize=9, weight="bold")
            for one in searches:
                if key in one.ranges:
                    _slice(axes, one, key, looks[one.arm])
        text = "Small points: suggestions, judged on validation data; stars: the best of each arm"
        if any(weights.values()):
            text += "; in brackets: how much each key matters (fANOVA)"
        explained(
            figure, results, {_named(one.arm, weights[one.arm]): looks[one.arm] for one in searches}, text
        )
        return figure


def _named(arm: str, weights: dict[str, float]) -> str:
    said = ", ".join(f"{key.rpartition('.')[2]} {weight:.2f}" for key, weight in weights.items())
    return f"{arm} ({said})" if said else arm


def _budget(axes: Axes, one: RecordedSearch, look: dict[str, Any]) -> None:
    values = [math.nan if s.value is None else s.value for s in one.suggestions]
    numbers = range(1, len(values) + 1)
    better = min if one.better == "lower" else max
    best = [better((v for v in values[:n] if math.isfinite(v)), default=math.nan) for n in numbers]
    axes.step(numbers, best, where="post", linewidth=1.8, **look)
    axes.scatter(numbers, values, s=11, color=look["color"], alpha=0.6, linewidths=0)


def _slice(axes: Axes, one: RecordedSearch, key: str, look: dict[str, Any]) -> None:
    kind, _ = one.ranges[key]
    valued = [(s.params[key], s.value) for s in one.suggestions if s.value is not None]
    across = [str(x) if kind == "categorical" else x for x, _ in valued]
    axes.scatter(across, [y for _, y in valued], s=16, color=look["color"], alpha=0.6, linewidths=0)
    if one.best is not None and one.best.value is not None:
        x = one.best.params[key]
        x = str(x) if kind == "categorical" else x
        axes.scatter(
            [x], [one.best.value], s=90, marker="*", color=look["color"], edgecolors="white", zorder=4
        )
    if kind == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def importances(one: RecordedSearch) -> dict[str, float]:
    """How much of the variance each key explains, by functional ANOVA (Hutter et al. 2014).

    None where there is one key alone, or too few suggestions have a value.
    """
    valued = [(s.params, s.value) for s in one.suggestions if s.value is not None]
    if len(one.ranges) < 2 or len(valued) < ENOUGH or len({value for _, value in valued}) < 2:
        return {}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    spaces = {key: distribution(kind, values) for key, (kind, values) in one.ranges.items()}
    for params, value in valued:
        study.add_trial(optuna.create_trial(params=dict(params), distributions=spaces, value=value))
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))
