"""The figures, drawn without a screen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lmim.analysis import figures, results, table
from tests.analysis.builders import PLAN, RUNS, plan_of


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """A question with `$x_$` is text: read as a formula it would end the report with a traceback."""
    arms = {"mse": "$x_$", "cosine": "$y$"}
    plan = plan_of({name: {"loss": name} for name in arms.values()}, question="Is $x_$ or $y$?")
    plan |= {"settings": {"a": "$_$"}, "metrics": {"eval/knn_top1": {"label": "$_$", "unit": "$"}}}
    runs = [replace(r, arm=arms[r.arm], id=f"{arms[r.arm]}-{r.seed}") for r in RUNS if r.arm in arms]
    found = results.assemble(plan, runs)
    rows = table.rows(found)
    line = {step: 1.0 / (step + 1) for step in range(4)}
    curves = {"train/loss": {run.run_id: line for run in runs}}
    for name, figure in (
        ("comparison", figures.comparison(found, rows)),
        ("training", figures.training(found, rows, curves)),
    ):
        figures.save(figure, tmp_path / name)
    kinds = {path.name: path.read_bytes()[:4] for path in tmp_path.iterdir()}
    png, pdf = b"\x89PNG", b"%PDF"
    names = ("comparison", "training")
    assert kinds == {f"{n}.png": png for n in names} | {f"{n}.pdf": pdf for n in names}


def test_the_comparison_shows_what_claims_are_about() -> None:
    """A verdict on a metric that no figure shows has to be believed."""
    more = {f"eval/m{number}": {"label": f"m{number}", "unit": "", "better": "higher"} for number in range(4)}
    runs = [replace(run, metrics=dict(run.metrics) | dict.fromkeys(more, 1.0 + run.seed)) for run in RUNS]
    claims = ["cosine > mse on m2", "cosine > mse", "cosine > mse on m0", "cosine > mse on m3", "no claim"]
    found = results.assemble(PLAN | {"claims": claims, "metrics": PLAN["metrics"] | more}, runs)
    panels = figures.comparison(found, table.rows(found)).axes
    labels = [axes.get_xlabel() for axes in panels if axes.axison]
    assert labels == ["k-NN top-1 (%)", "m2", "m0", "m3", "rank ratio"]
    plain = figures.comparison(found := results.assemble(PLAN, RUNS), table.rows(found)).axes
    assert [axes.get_xlabel() for axes in plain] == ["k-NN top-1 (%)", "1-NN top-1 (%)", "rank ratio"]


@pytest.mark.parametrize(("level", "shown"), [(0.3, True), (3.0, False)])
def test_a_baseline_is_drawn_whole_or_pointed_to(level: float, shown: bool) -> None:
    """Half an interval at the edge, with a figure over it, tells neither where it lies nor how sure."""
    runs = [run for run in RUNS if run.arm in ("mse", "random_encoder")]
    values = {"mse": 10.0, "random_encoder": 10.0 + 10 * level}
    found = results.assemble(
        PLAN,
        [replace(r, metrics=dict(r.metrics) | {"eval/knn_top1": values[r.arm] + 0.5 * r.seed}) for r in runs],
    )
    axes = figures.comparison(found, table.rows(found)).axes[0]
    low, high = axes.get_xlim()
    drawn = [float(x) for marks in axes.collections for x in np.asarray(marks.get_offsets())[:, 0]]
    assert all(low < x < high for x in drawn), "nothing is cut at the edge"
    assert (max(drawn) > 10 + 5 * level) == shown
    assert any("→" in text.get_text() for text in axes.texts) != shown


def test_arms_look_the_same_in_every_figure() -> None:
    """A reader follows an arm from figure to figure by its colour; no two arms may share their look."""
    rows = table.rows(results.assemble(PLAN, RUNS))
    looks = figures.styles(rows)
    assert [*looks] == [row.arm for row in rows]
    assert len({str(look) for look in looks.values()}) == len(rows)
    assert all((looks[row.arm]["color"] == figures.GREY) == row.baseline for row in rows)


def drawn(settings: dict[str, str], level: float = 0.0) -> dict[str, Figure]:
    """Both figures; the curves lie from a level on."""
    found = results.assemble(PLAN | {"settings": settings, "classes": 36}, RUNS)
    rows = table.rows(found)
    curves = {
        key: {run.run_id: {step: level + (1 - level) / (step + 1) for step in range(9)} for run in RUNS}
        for key in figures.CURVES
    }
    return {
        "comparison": figures.comparison(found, rows),
        "training": figures.training(found, rows, curves),
    }


@pytest.mark.parametrize("name", ["comparison", "training"])
def test_a_caption_of_many_settings_stays_on_the_page(name: str) -> None:
    """Else who reads a figure does not learn that it is not the scale's own."""
    figure = drawn({f"optim.setting{number}": "0.125" for number in range(12)})[name]
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()  # type: ignore[no-untyped-call]
    width = figure.bbox.width
    texts = [text for text in figure.findobj(match=Text) if "setting11" in text.get_text()]
    assert texts
    assert all(box.x0 >= 0 and box.x1 <= width for text in texts for box in [text.get_window_extent()])


def test_lines_near_one_are_not_squeezed_onto_the_frame() -> None:
    """Else a cosine of 0.99 that falls to 0.97 looks like one that does not move."""
    near, far = (drawn({}, level)["training"].axes[0].get_ylim() for level in (0.97, 0.0))
    assert near[0] > 0.9
    assert far[0] == 0.0


def test_chance_is_drawn_where_it_is_near() -> None:
    """Else one cannot see whether an arm is better than guessing."""
    panels = drawn({})["comparison"].axes
    marked = [any(text.get_text() == "chance" for text in panel.texts) for panel in panels]
    assert marked == [True, True, False], "two accuracies and a rank"


def test_a_figure_of_many_arms_has_the_first_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a picture of a thousand arms is too large to be drawn, and there is no report at all."""
    monkeypatch.setattr(figures, "MOST", 2)
    for name, figure in drawn({}).items():
        texts = {text.get_text().replace("\n", " ") for text in figure.findobj(Text)}
        assert {"mse", "cosine"} <= texts, name
        assert "patch_discrimination" not in texts, name
        assert any("the first 2 of 5 arms" in text for text in texts), name
