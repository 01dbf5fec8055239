"""The table as CSV, Markdown and LaTeX."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmim.analysis import claims, results, table
from tests.analysis.builders import PLAN, RUNS, plan_of


def test_diverged_trial_counts_but_has_no_value() -> None:
    """A diverged trial is a result: it stands in n and in the outcome, and its gap is said."""
    runs = [*RUNS]
    runs[1] = replace(runs[1], outcome="diverged", metrics={"system/seconds": 36.0})
    found = results.assemble(PLAN, runs)
    row = table.rows(found)[0]
    assert (row.n, row.metrics["eval/knn_top1"].n) == (3, 2)
    assert row.outcomes == {"collapsed": 2, "diverged": 1}
    assert "(n=2)" in table.cells(table.rows(found), found)[1][2]


def test_what_ended_early_is_marked_and_its_saving_told() -> None:
    """Figures of half a training would pass for those of a whole one, and nobody know what the rule gave."""
    runs = [*RUNS]
    saved = {**runs[0].metrics, "system/saved_core_seconds": 1800.0}
    runs[0] = replace(runs[0], early="collapsed: so", metrics=saved)
    found = results.assemble(PLAN, runs)
    head, *body = table.cells(table.rows(found), found)
    assert [line[head.index("outcome")] for line in body[:2]] == ["3 collapsed (1 ended early)", "3 learned"]
    assert "1 trial ended early" in table.caption(found)
    assert "saved about 0.500 core-hours" in table.caption(found)
    assert "early" not in table.caption(results.assemble(PLAN, RUNS))


@given(st.permutations(RUNS), st.permutations(PLAN["trials"]))
def test_order_of_trials_does_not_matter(runs: list[results.Trial], trials: list[dict[str, Any]]) -> None:
    """Trials end in any order; a table that depended on it would change from run to run."""
    found = results.assemble(PLAN | {"trials": trials}, runs)
    usual = results.assemble(PLAN, RUNS)
    assert table.to_csv(table.rows(found)) == table.to_csv(table.rows(usual))
    assert claims.judge(found) == claims.judge(usual)


def test_markdown_is_the_golden_one() -> None:
    """The README's table is this output: a change in it is to be seen."""
    found = results.assemble(PLAN | {"classes": 36, "stated": {"mse collapsed": 1.0}}, RUNS)
    found = replace(found, first={"mse": 0.5})
    golden = Path(__file__).with_name("table.md").read_text(encoding="utf-8")
    assert table.to_markdown(table.rows(found), found, claims.judge(found)) == golden


def test_what_an_arm_takes_stands_beside_what_it_gives() -> None:
    """Arms at equal epochs would pass for arms at equal compute."""
    found = results.assemble(PLAN | {"flops": {"mse": 2.5e12, "cosine": 3e12}}, RUNS)
    head, *body = table.cells(table.rows(found), found)
    column = head.index("TFLOPs")
    assert [line[column] for line in body] == ["2.5", "3", "-", "-", "-"]
    assert "TFLOPs are of one training" in table.caption(found)
    mse = next(csv.DictReader(io.StringIO(table.to_csv(table.rows(found)))))
    assert float(mse["flops"]) == 2.5e12
    without = results.assemble(PLAN, RUNS)
    assert "TFLOPs" not in table.cells(table.rows(without), without)[0] + [table.caption(without)]


def test_markdown_shows_names_as_they_are() -> None:
    """An arm is named by its values, and a value with <, * or | must not become mark-up of a README."""
    plan = plan_of({"<b>*x*|y": {}}, seeds=1, trials=[], question="Is $a_$ < b?")
    found = results.assemble(plan, [])
    text = table.to_markdown(table.rows(found), found)
    assert text.startswith(r"**Is \$a\_\$ \< b?**")
    assert r"| \<b\>\*x\*\|y |" in text


def test_latex_escapes_and_rules() -> None:
    """An underscore or per cent sign in a name would stop LaTeX."""
    found = results.assemble(PLAN, RUNS)
    text = table.to_latex(table.rows(found), found, claims.judge(found))
    assert r"patch\_discrimination & 3 & $14.53 \pm 1.25$" in text
    assert r"k-NN top-1 (\%)" in text
    assert text.count(r"\midrule") == 3
    assert (
        r"patch\_discrimination \textgreater{} mse & supported & supported & +7.43 [+7.15, +7.72] \\" in text
    )


def test_what_ran_on_a_gpu_is_priced_in_gpu_hours() -> None:
    """The cost of eight GPUs is not that of their cores; and a table from a CPU has no column of zeros."""
    usual = results.assemble(PLAN, RUNS)
    assert table.cells(table.rows(usual), usual)[0][-1] == "core-hours"
    runs = [replace(run, metrics={**run.metrics, "system/gpu_seconds": 36.0 * 8}) for run in RUNS]
    found = results.assemble(PLAN, runs)
    rows = table.rows(found)
    head, first, *_ = table.cells(rows, found)
    assert head[-2:] == ["core-hours", "GPU-hours"]
    assert first[-2:] == [f"{rows[0].n * hours:.3f}" for hours in (0.02, 0.08)]
    assert table.to_csv(rows).splitlines()[0].endswith("core_hours,gpu_hours")
    columns = table.to_markdown(rows, found).splitlines()[3]
    assert columns.endswith("| --- | ---: | ---: |"), columns


def test_chance_is_said_of_accuracies_alone() -> None:
    """A reader must see how far above guessing an arm is; of a rank, guessing is nothing."""
    found = results.assemble(PLAN | {"classes": 36}, RUNS)
    assert found.chance("eval/knn_top1") == 100 / 36
    assert found.chance("eval/rank_ratio") is None
    assert results.assemble(PLAN, RUNS).chance("eval/knn_top1") is None
    assert "Chance is 2.8 % top-1, with 36 classes." in table.caption(found)


def test_core_hours_are_those_that_were_journalled() -> None:
    """Else a trial that went on with other cores is priced as if it had had them all along."""
    runs = [replace(run, metrics={**run.metrics, "system/core_seconds": 50.0}) for run in RUNS]
    assert table.rows(results.assemble(PLAN, runs))[0].core_hours == 3 * 50.0 / 3600


def test_columns_are_headed_by_what_the_plan_says() -> None:
    """A new metric must not need an edit here; what a ladder selects by must not pass for a result."""
    new = {"eval/robust_accuracy": 1.0, "eval/seg_miou": 2.0, "val/knn_top1": 3.0}
    runs = [replace(run, metrics={**run.metrics, **new}) for run in RUNS]
    named = PLAN["metrics"] | {"eval/seg_miou": {"label": "segmentation", "unit": "mIoU"}}
    found = results.assemble(PLAN | {"metrics": named}, runs)
    head = table.cells(table.rows(found), found)[0]
    wanted = "k-NN top-1 (%), 1-NN top-1 (%), rank ratio, robust accuracy, segmentation (mIoU)"
    assert ", ".join(head[2:7]) == wanted
    assert not any("val" in name for name in head)


def test_trials_say_on_which_commit_they_were_replayed() -> None:
    """A figure of older code must not pass for one of the commit that the report names."""
    old = replace(RUNS[0], code="01d", commit="def5678", replayed="c0de")
    found = results.assemble(PLAN, [old, *RUNS[1:]])
    lines = list(csv.DictReader(io.StringIO(table.trials_csv(found))))
    assert [(t["commit"], t["replayed_on"]) for t in lines[:2]] == [("def5678", "abc1234"), ("abc1234", "")]
    machine = [lines[0][name] for name in ("python", "torch", "timm", "device", "host")]
    assert machine == ["3.11.9", "2.15.0", "1.0.31", "EPYC AVX512", "node7"]


def test_csv_says_what_became_of_the_claims_about_an_arm() -> None:
    """Else who reads the table alone knows no verdict."""
    found = results.assemble(PLAN, RUNS)
    lines = csv.DictReader(io.StringIO(table.to_csv(table.rows(found), claims.judge(found))))
    said = {line["arm"]: line["verdicts"] for line in lines}
    assert said["cosine"] == "mse > cosine: undecided"
    assert said["raw_pixels"] == ""
    assert len(said["mse"].split("; ")) == 4
