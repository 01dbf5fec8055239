"""What a report says of the arms' searches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmim.analysis import figures, report, results, search_figure, searches, table
from tests.analysis.builders import PLAN, RUNS, fill

RATES = [0.004, 0.001, 0.002, 0.016, 0.032, 0.008]


def recorded(arm: str, values: list[float | None], ranges: dict[str, Any]) -> dict[str, Any]:
    """A search as the plan holds it."""
    params = [{"optim.base_lr": rate, "loss.tau": 0.1 + rate} for rate in RATES]
    return {
        "arm": arm,
        "ranges": ranges,
        "budget": 6,
        "metric": "val/knn_top1",
        "better": "higher",
        "recipe": True,
        "study": "5154f6826281",
        "suggestions": [
            {"params": {key: one[key] for key in ranges}, "trials": [f"{arm}-try{n}"], "value": value}
            for n, (one, value) in enumerate(zip(params, values, strict=False))
        ],
    }


LR, TAU = ["log", [0.001, 0.032]], ["linear", [0.05, 0.8]]
SEARCHES = [
    recorded("mse", [7.0, None, 6.0, 8.0, 9.5, 7.5], {"optim.base_lr": LR}),
    recorded("patch_discrimination", [15.0, 9.0, 11.0, 16.0, 12.0], {"optim.base_lr": LR, "loss.tau": TAU}),
]
TRIED = [
    replace(RUNS[0], id=trial, arm=one["arm"], seed=9, run_id=trial, metrics={"system/core_seconds": 36.0})
    for one in SEARCHES
    for suggestion in one["suggestions"]
    for trial in suggestion["trials"]
]
TUNED = PLAN | {
    "searches": SEARCHES,
    "trials": PLAN["trials"] + [{"id": t.id, "arm": t.arm, "seed": 9, "suggestion": 0} for t in TRIED],
}


@pytest.fixture(scope="module")
def found() -> results.Results:
    return results.assemble(TUNED, [*RUNS, *TRIED])


def test_what_a_search_tried_is_no_row(found: results.Results) -> None:
    """It was chosen by, and would count with seeds that the table reports."""
    whole = results.assemble(PLAN, RUNS)
    assert found.trials == whole.trials
    assert found.excluded == ()
    assert table.rows(found) == table.rows(whole)


def test_equal_budgets_are_seen(found: results.Results) -> None:
    """A reader must see that no arm was tuned more than another, what it gained, and what it cost."""
    assert searches.lines(found) == [
        [
            "arm",
            "suggestions",
            "best knn top1",
            "the recipe's own",
            "optim.base_lr",
            "loss.tau",
            "core-hours",
        ],
        ["mse", "6 of 6", "9.50", "7.00", "0.032*", "-", "0.060"],
        ["patch_discrimination", "5 of 6", "16.00", "15.00", "0.016", "0.116", "0.050"],
    ]
    assert "optim.base_lr log 0.001 to 0.032; loss.tau linear 0.05 to 0.8" in searches.note(found)
    markdown = table.to_markdown(table.rows(found), found)
    assert "| mse | 6 of 6 | 9.50 | 7.00 | 0.032\\* | - | 0.060 |" in markdown


def test_every_suggestion_is_in_the_file(found: results.Results) -> None:
    """Every value that was tried traces to its trial."""
    lines = searches.to_csv(found).splitlines()
    assert lines[0] == "arm,suggestion,optim.base_lr,loss.tau,val/knn_top1,trials"
    assert lines[2] == "mse,2,0.001,,,mse-try1"
    assert len(lines) == 1 + 11


def test_the_figure_shows_every_arm(found: results.Results, tmp_path: Path) -> None:
    """A name that reads as a formula, or a suggestion without a value, must not end the report."""
    figure = search_figure.search(found, table.rows(found))
    figures.save(figure, tmp_path / "search")
    assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "best so far",
        "optim.base_lr",
        "loss.tau",
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "mse"
    assert names[1].startswith("patch_discrimination (")


def test_importances_add_up_where_there_are_several_keys(found: results.Results) -> None:
    """With one key there is nothing to weigh, and of three values nothing to learn."""
    one, two = found.searches
    assert search_figure.importances(one) == {}
    weights = search_figure.importances(two)
    assert weights.keys() == {"optim.base_lr", "loss.tau"}
    assert sum(weights.values()) == pytest.approx(1.0)
    few = two.model_copy(update={"suggestions": two.suggestions[:3]})
    assert search_figure.importances(few) == {}


def test_the_report_has_the_search(tmp_path: Path) -> None:
    """Of a sweep that tuned its arms, the page, the files and MLflow must show how."""
    uri = fill(tmp_path, TUNED, [*RUNS, *TRIED])
    built = report.build("loss", None, tmp_path, uri)
    assert all((built.path / name).is_file() for name in report.SEARCH_FILES)
    page = (built.path / "report.html").read_text()
    assert "<h2" in page
    assert "5 of 6" in page
    assert not report.build("loss", None, tmp_path, uri).built
