"""The figures, drawn without a screen."""

from dataclasses import replace
from pathlib import Path

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


def test_arms_look_the_same_in_every_figure() -> None:
    """A reader follows an arm from figure to figure by its colour; no two arms may share their look."""
    rows = table.rows(results.assemble(PLAN, RUNS))
    looks = figures.styles(rows)
    assert [*looks] == [row.arm for row in rows]
    assert len({str(look) for look in looks.values()}) == len(rows)
    assert all((looks[row.arm]["color"] == figures.GREY) == row.baseline for row in rows)
