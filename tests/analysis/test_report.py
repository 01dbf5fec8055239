"""The report against statistics worked by hand, on a real MLflow database."""

import doctest
import json
import math
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from scipy import stats

from analysis import claims, intervals, report, results, table
from analysis.intervals import interval
from lmim.errors import UserError

ARMS = ("mse", "cosine", "patch_discrimination")
BASELINES = ("random_encoder", "raw_pixels")
NN = {
    "mse": [6.7, 7.5, 7.1],
    "cosine": [6.5, 6.9, 8.3],
    "patch_discrimination": [14.0, 15.0, 14.6],
    "random_encoder": [7.5, 7.4, 7.7],
    "raw_pixels": [35.5, 35.5, 35.5],
}
CLAIMS = ["patch_discrimination > mse", "mse > patch_discrimination", "mse > cosine", "mse collapsed"]


def plan_of(arms: Mapping[str, Mapping[str, Any]], seeds: int = 3, **fields: Any) -> dict[str, Any]:
    """A plan as the sweep writes it."""
    names = [*arms, *BASELINES]
    return {
        "name": "loss",
        "scale": "demo",
        "question": "Does patch discrimination avoid the trivial solutions?",
        "metric": "knn_top1",
        "design": "grid",
        "seeds": list(range(seeds)),
        "claims": CLAIMS,
        "arms": [
            {"name": name, "axes": dict(arms.get(name, {})), "baseline": name in BASELINES} for name in names
        ],
        "trials": [{"id": f"{name}-{s}", "arm": name, "seed": s} for name in names for s in range(seeds)],
    } | fields


def runs_of(plan: Mapping[str, Any]) -> list[results.Trial]:
    """All of a plan's trials, done, with the figures above."""
    found = []
    for index, t in enumerate(plan["trials"]):
        value = NN[t["arm"]][t["seed"]]
        metrics = {"eval/knn_top1": value, "eval/nn_top1": value / 2, "system/seconds": 36.0}
        if t["arm"] != "raw_pixels":
            ratio = (0.1 if t["arm"] == "mse" else 0.9) + 0.01 * t["seed"]
            metrics |= {"eval/rank_ratio": ratio, "collapse/rank": 20 * ratio}
        found.append(
            results.Trial(
                id=t["id"],
                arm=t["arm"],
                seed=t["seed"],
                run_id=f"run{index}",
                outcome="collapsed" if t["arm"] == "mse" else "learned",
                commit="abc1234",
                dataset_version="v1",
                scale="demo",
                metrics=metrics,
                params={"run.cpus": "2"},
            )
        )
    return found


PLAN = plan_of({arm: {"loss": arm} for arm in ARMS})
RUNS = runs_of(PLAN)


def fill(out: Path, plan: Mapping[str, Any], runs: list[results.Trial]) -> str:
    """Write a sweep into a new MLflow database the way the tracker does; returns its URI."""
    uri = f"sqlite:///{out / 'mlflow.db'}"
    client = MlflowClient(uri)
    where = client.create_experiment(plan["name"], artifact_location=str(out / "artifacts"))
    tags = {f"lmim.{key}": str(plan[key]) for key in ("scale", "question", "metric", "design")}
    parent = client.create_run(where, tags=tags | {"lmim.sweep": plan["name"]}).info.run_id
    client.log_dict(parent, dict(plan), "plan.json")
    for trial in runs:
        tags = {
            "mlflow.parentRunId": parent,
            "lmim.trial_id": trial.id,
            "lmim.arm": trial.arm,
            "lmim.seed": str(trial.seed),
            "lmim.commit": trial.commit,
            "lmim.dataset_version": trial.dataset_version,
            "lmim.scale": trial.scale,
            "lmim.outcome": trial.outcome,
            "lmim.status": trial.status,
        }
        run = client.create_run(where, tags=tags).info.run_id
        last = [Metric(key, value, 9, 40) for key, value in trial.metrics.items()]
        rng = random.Random(trial.id)
        course = [
            Metric(key, start * math.exp(-rate * step / 10) + 0.05 * rng.random(), step, step)
            for step in range(0, 40, 4)
            for key, start, rate in (("train/loss", 2.0, 1.0), ("collapse/image_cosine", 0.9, 0.3))
        ]
        client.log_batch(run, metrics=last + course, tags=[RunTag("lmim.axis.loss", trial.arm)])
        client.log_param(run, "run.cpus", trial.params.get("run.cpus", "1"))
        client.set_terminated(run)
    return uri


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, report.Report]:
    """A results folder with a finished sweep, one odd and one failed trial, and its report."""
    out = tmp_path_factory.mktemp("results")
    plan = plan_of({arm: {"loss": arm} for arm in ARMS}, seeds=3)
    runs = runs_of(plan)
    runs[3] = replace(runs[3], commit="def5678")
    runs[5] = replace(runs[5], status="failed")
    fill(out, plan, runs)
    return out, report.build("loss", "demo", out)


def test_interval_is_the_t_interval() -> None:
    """Wrong intervals would turn noise into findings."""
    values = [6.7, 7.5, 7.1, 9.0]
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    found = interval(values)
    assert found.mean == pytest.approx(7.575)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_by_plain_numbers() -> None:
    """Mean 2, standard error 1/sqrt(3), t quantile 4.30265 for two degrees of freedom."""
    found = interval([1.0, 2.0, 3.0])
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_paired_claim_equals_ttest_rel() -> None:
    """A verdict that is not the paired t-test's would not be what the report says it is."""
    verdict = claims.judge_claim("patch_discrimination > mse", results.assemble(PLAN, RUNS))
    test = stats.ttest_rel(NN["patch_discrimination"], NN["mse"])
    bounds = test.confidence_interval(0.95)
    assert verdict.verdict == "supported"
    assert verdict.effect.mean == pytest.approx((7.3 + 7.5 + 7.5) / 3)
    assert (verdict.effect.low, verdict.effect.high) == pytest.approx((bounds.low, bounds.high))
    assert verdict.effect.p == pytest.approx(test.pvalue)


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("patch_discrimination > mse", "supported"),
        ("mse < patch_discrimination", "supported"),
        ("mse > patch_discrimination", "contradicted"),
        ("mse > cosine", "undecided"),
        ("mse collapsed", "supported"),
        ("mse not collapsed", "contradicted"),
        ("cosine not collapsed", "supported"),
        ("cosine collapsed", "contradicted"),
        ("random_encoder > mse", "undecided"),
        ("loss=patch_discrimination > loss=mse", "supported"),
        ("raw_pixels > patch_discrimination", "supported"),
        ("raw_pixels collapsed", "undecided"),
        ("nonsense > mse", "undecided"),
    ],
)
def test_verdicts(claim: str, expected: str) -> None:
    """Each kind of claim gets the verdict that its figures give, baselines included."""
    assert claims.judge_claim(claim, results.assemble(PLAN, RUNS)).verdict == expected


def test_one_seed_decides_nothing() -> None:
    """A single pair has no interval: calling it supported would be a guess."""
    plan = plan_of({arm: {"loss": arm} for arm in ARMS}, seeds=1)
    verdict = claims.judge_claim("patch_discrimination > mse", results.assemble(plan, runs_of(plan)))
    assert verdict.verdict == "undecided"
    assert "two values" in verdict.reason


def test_terms_pair_over_the_remaining_axes() -> None:
    """`gap=1 > gap=0` compares within each similarity and seed; mixing them would drown the effect."""
    grid = {
        f"gap={g} similarity={s}": {"mask.gap": g, "mask.similarity": s} for g in (0, 1) for s in (0.0, 0.1)
    }
    plan = plan_of(grid, seeds=2)
    runs = []
    for t in plan["trials"]:
        axes = grid.get(t["arm"], {"mask.gap": 0, "mask.similarity": 0.0})
        effect = axes["mask.gap"] * (1.0 + 0.1 * t["seed"])
        value = 100 * axes["mask.similarity"] + effect
        runs.append(results.Trial(t["id"], t["arm"], t["seed"], t["id"], metrics={"eval/knn_top1": value}))
    found = results.assemble(plan, runs)
    verdict = claims.judge_claim("gap=1 > mask.gap=0", found)
    assert verdict.effect.n == 2, "cells of one seed are no independent draws"
    assert verdict.effect.mean == pytest.approx(1.05)
    assert "2 seeds, each the mean over 2 cells" in verdict.reason
    assert verdict.verdict == "supported"
    whole = claims.judge_claim("gap=1 similarity=0.1 > gap=0 similarity=0.1", found)
    assert whole.effect.n == 2


def test_diverged_trial_counts_but_has_no_value() -> None:
    """A diverged trial is a result: it stands in n and in the outcome, and its gap is said."""
    runs = [*RUNS]
    runs[1] = replace(runs[1], outcome="diverged", metrics={"system/seconds": 36.0})
    found = results.assemble(PLAN, runs)
    row = table.rows(found)[0]
    assert (row.n, row.metrics["eval/knn_top1"].n) == (3, 2)
    assert row.outcomes == {"collapsed": 2, "diverged": 1}
    assert "(n=2)" in table.cells(table.rows(found))[1][2]
    verdict = claims.judge_claim("patch_discrimination > mse", found)
    assert verdict.effect.n == 2
    assert "1 trial without a finite value" in verdict.reason
    assert claims.judge_claim("mse < patch_discrimination", found).verdict == "supported"
    assert claims.judge_claim("mse > patch_discrimination", found).verdict == "contradicted"


def test_an_arm_does_not_win_by_the_seeds_that_it_survived() -> None:
    """An arm that diverges on one seed of three is not better, however good the other two are."""
    runs = [replace(r, metrics={}) if r.id == "patch_discrimination-1" else r for r in RUNS]
    found = results.assemble(PLAN, runs)
    for claim in ("patch_discrimination > mse", "mse > patch_discrimination", "mse < patch_discrimination"):
        verdict = claims.judge_claim(claim, found)
        assert verdict.verdict == "undecided"
        assert "by the seeds that did not diverge alone" in verdict.reason


def test_seeds_without_spread_decide_nothing() -> None:
    """Two may agree by chance, and an interval of no width would be certain of it."""
    runs = [replace(r, metrics={"eval/knn_top1": 9.0 if r.arm == "mse" else 8.0}) for r in RUNS]
    verdict = claims.judge_claim("mse > cosine", results.assemble(PLAN, runs))
    assert verdict.verdict == "undecided"
    assert "nothing of their spread" in verdict.reason


def test_baselines_do_not_outvote_the_training() -> None:
    """Baselines run again in seconds after an edit would throw hours of training out of the table."""
    runs = [replace(r, commit="new") if r.arm in BASELINES or r.id == "mse-0" else r for r in RUNS]
    odd = {e.arm for e in results.assemble(PLAN, runs).excluded}
    assert odd == {*BASELINES, "mse"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"commit": "def5678"}, "commit def5678 is not the abc1234 of"),
        ({"dataset_version": "v2"}, "dataset version v2 is not the v1 of"),
        ({"scale": "gpu"}, "scale gpu is not the demo of"),
        ({"status": "failed", "error": "out of memory"}, "failed: out of memory"),
        ({"status": "interrupted"}, "interrupted"),
    ],
)
def test_odd_trials_are_excluded_with_the_reason(change: dict[str, Any], reason: str) -> None:
    """A mean over trials that are not alike is wrong without a sign of it."""
    odd = replace(RUNS[1], **change, metrics={"eval/knn_top1": 99.0})
    found = results.assemble(PLAN, [odd if run.id == odd.id else run for run in RUNS])
    assert [(e.id, e.seed) for e in found.excluded] == [(odd.id, 1)]
    assert found.excluded[0].reason.startswith(reason)
    row = table.rows(found)[0]
    assert row.n == 2
    assert row.metrics["eval/knn_top1"].mean == pytest.approx((6.7 + 7.1) / 2)


def test_each_dataset_has_its_own_version() -> None:
    """A sweep over datasets has several versions by intent: none of them is odd."""
    plan = plan_of({name: {"data.name": name} for name in ("glyphs", "digits")}, seeds=2)
    trials = [
        results.Trial(t["id"], t["arm"], t["seed"], t["id"], dataset_version=f"{t['arm']}-v1")
        for t in plan["trials"]
        if t["arm"] not in BASELINES
    ]
    found = results.assemble(plan, trials)
    assert len(found.trials) == 4


def test_trials_without_a_run_or_a_plan_are_listed() -> None:
    """A trial that is missing, or left over from an older plan, must not vanish without a word."""
    stray = replace(RUNS[0], id="old", run_id="old")
    reasons = {e.id: e.reason for e in results.assemble(PLAN, [*RUNS[1:], stray]).excluded}
    assert reasons == {"mse-0": "no run yet", "old": "not in the newest plan"}


def test_a_trial_of_two_arms_counts_in_both() -> None:
    """Cells that resolve to the same config train once: their one run belongs to each of their rows."""
    arms = {"gap=0": {"mask.gap": 0}, "base": {"mask.gap": 0}}
    plan = plan_of(arms, seeds=2, claims=[])
    plan["trials"] = [{"id": f"same-{s}", "arm": arm, "seed": s} for arm in arms for s in range(2)]
    runs = [results.Trial(f"same-{s}", "gap=0", s, f"run{s}", metrics={"eval/knn_top1": s}) for s in range(2)]
    found = results.assemble(plan, runs)
    assert [row.n for row in table.rows(found)] == [2, 2, 0, 0]
    assert found.excluded == ()


def test_claim_on_another_metric() -> None:
    """`on nn_top1` must be judged by that metric, not by the sweep's."""
    verdict = claims.judge_claim("patch_discrimination > mse on nn_top1", results.assemble(PLAN, RUNS))
    assert verdict.metric == "eval/nn_top1"
    assert verdict.effect.mean == pytest.approx((7.3 + 7.5 + 7.5) / 6)


@pytest.mark.parametrize("module", [intervals, results, claims, table])
def test_examples(module: ModuleType) -> None:
    """An example in a docstring that is wrong misleads whoever reads it."""
    ran = doctest.testmod(module)
    assert ran.attempted > 0
    assert ran.failed == 0


@given(st.permutations(RUNS), st.permutations(PLAN["trials"]))
def test_order_of_trials_does_not_matter(runs: list[results.Trial], trials: list[dict[str, Any]]) -> None:
    """Trials end in any order; a table that depended on it would change from run to run."""
    found = results.assemble(PLAN | {"trials": trials}, runs)
    usual = results.assemble(PLAN, RUNS)
    assert table.to_csv(table.rows(found)) == table.to_csv(table.rows(usual))
    assert claims.judge(found) == claims.judge(usual)


def test_markdown_is_the_golden_one() -> None:
    """The README's table is this output: a change in it is to be seen."""
    found = results.assemble(PLAN, RUNS)
    golden = Path(__file__).with_name("table.md").read_text(encoding="utf-8")
    assert table.to_markdown(table.rows(found), found) == golden


def test_latex_escapes_and_rules() -> None:
    """An underscore or per cent sign in a name would stop LaTeX."""
    found = results.assemble(PLAN, RUNS)
    text = table.to_latex(table.rows(found), found)
    assert r"patch\_discrimination & 3 & $14.53 \pm 1.25$" in text
    assert r"k-NN top-1 (\%)" in text
    assert text.count(r"\midrule") == 2


def test_what_ran_on_a_gpu_is_priced_in_gpu_hours() -> None:
    """The cost of eight GPUs is not that of their cores; and a table from a CPU has no column of zeros."""
    assert table.cells(table.rows(results.assemble(PLAN, RUNS)))[0][-1] == "core-hours"
    runs = [replace(run, metrics={**run.metrics, "system/gpu_seconds": 36.0 * 8}) for run in RUNS]
    found = results.assemble(PLAN, runs)
    rows = table.rows(found)
    head, first, *_ = table.cells(rows)
    assert head[-2:] == ["core-hours", "GPU-hours"]
    assert first[-2:] == [f"{rows[0].n * hours:.3f}" for hours in (0.02, 0.08)]
    assert table.to_csv(rows).splitlines()[0].endswith("core_hours,gpu_hours")
    columns = table.to_markdown(rows, found).splitlines()[3]
    assert columns.endswith("| --- | ---: | ---: |"), columns


def test_outputs(sweep: tuple[Path, report.Report]) -> None:
    """Every promised file is there and holds what MLflow holds."""
    _, built = sweep
    for name in report.FILES:
        assert (built.path / name).stat().st_size > 0, name
    assert (built.path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (built.path / "training.pdf").read_bytes().startswith(b"%PDF")
    assert not list(built.path.glob(".*.??????*")), "partial files are left"
    mse, cosine = built.rows[:2]
    assert mse.metrics["eval/knn_top1"].mean == pytest.approx(7.1)
    assert mse.core_hours == pytest.approx(3 * 36 * 2 / 3600)
    assert cosine.n == 1
    assert {e.reason.split(" is ")[0] for e in built.excluded} == {"commit def5678", "failed"}


def test_notebook_ran_and_html_stands_alone(sweep: tuple[Path, report.Report]) -> None:
    """The report opens without a network, and shows verdicts, exclusions and provenance."""
    _, built = sweep
    notebook = json.loads((built.path / "report.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    page = (built.path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    for text in (
        "supported",
        "commit def5678 is not the abc1234 of",
        "abc1234",
        "v1",
        "patch_discrimination-2",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 2


def test_second_build_changes_nothing(sweep: tuple[Path, report.Report]) -> None:
    """A sweep ends with its report each time: an unchanged one must cost nothing."""
    out, built = sweep
    before = {path: path.stat().st_mtime_ns for path in built.path.iterdir()}
    again = report.build("loss", None, out)
    assert not again.built
    assert again == replace(built, built=False)
    assert {path: path.stat().st_mtime_ns for path in built.path.iterdir()} == before


def test_a_new_point_rebuilds(sweep: tuple[Path, report.Report], monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that missed a change in MLflow would show old figures for ever."""
    out, built = sweep
    stale: list[str] = []
    monkeypatch.setattr(report, "_write", lambda found, rows, folder, uri: stale.append(found.name))
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    trial = results.read("loss", "demo", f"sqlite:///{out / 'mlflow.db'}").trials[0]
    client.log_metric(trial.run_id, "eval/knn_top1", 8.0, step=41)
    assert report.build("loss", "demo", out).built
    assert stale == ["loss"]
    (built.path / "table.csv").rename(built.path / "kept.csv")
    assert report.build("loss", "demo", out).built, "a deleted output is made again"
    shutil.move(built.path / "kept.csv", built.path / "table.csv")


def test_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a database: one line and exit code 2, and none is created."""
    assert report.main(["loss", "--out", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "no MLflow database" in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_password_in_messages(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is gone is told in one line, and in seconds, without the user's password."""
    assert report.main(["loss", "--tracking-uri", "http://me:secret@127.0.0.1:9"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: http://127.0.0.1:9: cannot be read")
    assert "secret" not in text


def test_garbage_is_no_database(tmp_path: Path) -> None:
    """A wrong file is named, not answered with a traceback."""
    (tmp_path / "mlflow.db").write_text("garbage")
    with pytest.raises(UserError, match="not a database"):
        report.build("loss", "demo", tmp_path)


def test_unknown_names(sweep: tuple[Path, report.Report], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped sweep or scale is answered with the nearest name."""
    out, _ = sweep
    assert report.main(["lose", "--out", str(out)]) == 2
    assert "did you mean loss?" in capsys.readouterr().err
    with pytest.raises(UserError, match="no runs at scale dem; did you mean demo"):
        report.build("loss", "dem", out)
