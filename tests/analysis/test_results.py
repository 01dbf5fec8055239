"""Which trials count, and what is read of a real MLflow database."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lmim.analysis import load, results, table
from lmim.errors import UserError
from lmim.plan.sweep_file import SweepFile
from tests.analysis.builders import BASELINES, PLAN, RUNS, fill, plan_of


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"code": "01d", "commit": "def5678", "differs": "step 20: train/loss 0.4331 was 0.4330"},
            "other code (def5678): step 20: train/loss 0.4331 was 0.4330",
        ),
        ({"code": "01d", "commit": "def5678"}, "other code (def5678), not yet compared: run the sweep again"),
        ({"code": "01d", "replayed": "1d"}, "other code (abc1234), not yet compared"),
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


def test_no_majority_decides_whose_code_is_right() -> None:
    """A new arm edits a file that all arms share: it alone is of today's code, and must not be outvoted."""
    old = [replace(run, code="01d") for run in RUNS[:-1]]
    found = results.assemble(PLAN, [*old, RUNS[-1]])
    assert [trial.id for trial in found.trials] == [RUNS[-1].id]
    assert all(e.odd for e in found.excluded)
    again = results.assemble(PLAN, [replace(run, replayed="c0de") for run in old] + [RUNS[-1]])
    assert (len(again.trials), again.excluded) == (len(RUNS), ())
    assert [again.replayed_on(trial) for trial in again.trials[-2:]] == ["abc1234", ""]


def test_an_old_plan_compares_no_code() -> None:
    """Results from before code was compared must not vanish."""
    plan = {key: value for key, value in PLAN.items() if key not in ("code", "commit", "metrics")}
    found = results.assemble(plan, [replace(RUNS[0], code=""), *RUNS[1:]])
    assert (len(found.trials), found.excluded) == (len(RUNS), ())
    assert not any(map(found.replayed_on, found.trials))


def test_each_dataset_has_its_own_version() -> None:
    """A sweep over datasets has several versions by intent: none of them is odd."""
    plan = plan_of({name: {"data.name": name} for name in ("glyphs", "digits")}, seeds=2)
    trials = [
        results.Trial(t["id"], t["arm"], t["seed"], t["id"], code="c0de", dataset_version=f"{t['arm']}-v1")
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
    runs = [replace(RUNS[s], id=f"same-{s}", arm="gap=0", run_id=f"run{s}") for s in range(2)]
    found = results.assemble(plan, runs)
    assert [row.n for row in table.rows(found)] == [2, 2, 0, 0]
    assert found.excluded == ()


def test_the_scale_that_ran_last(tmp_path: Path) -> None:
    """A report without --scale is of what the user just ran, not of the scale that was begun last."""
    plan = PLAN | {"trials": []}
    fill(tmp_path, plan, [])
    uri = fill(tmp_path, plan | {"scale": "gpu"}, [])
    assert results.read("loss", None, uri).scale == "gpu"
    [demo] = [run for run in MlflowClient(uri).search_runs(["1"]) if run.data.tags["lmim.scale"] == "demo"]
    MlflowClient(uri).set_tag(demo.info.run_id, "lmim.updated", str(demo.info.start_time / 1000 + 60))
    assert results.read("loss", None, uri).scale == "demo"


@pytest.mark.parametrize("key", ["name", "scale"])
def test_a_plan_cannot_choose_where_to_write(tmp_path: Path, key: str) -> None:
    """Whoever may write to a shared MLflow must not thereby write anywhere on the disk of who reads it."""
    uri = fill(tmp_path, PLAN | {"trials": [], key: "../../evil"}, [])
    with pytest.raises(UserError, match=rf"{key}: expected at most 64 letters, .* found \.\./\.\./evil"):
        results.read("loss", None, uri)


def test_names_are_those_of_a_sweep_file() -> None:
    """A sweep that may be run must also be reported."""
    [rule] = SweepFile.model_fields["name"].metadata
    assert rule.pattern == rf"^{results.NAME.pattern}\z"


def test_curves(tmp_path: Path) -> None:
    """A curve of a part of the points, or of another trial's, would be drawn without a sign of it."""
    uri = fill(tmp_path, PLAN, RUNS[:3])
    trials = results.read("loss", "demo", uri).trials
    client = MlflowClient(uri)
    for value, time in ((math.inf, 50), (7.0, 60)):
        client.log_metric(trials[1].run_id, "train/loss", value, timestamp=time, step=36 + (time == 50))
    client.log_metric(trials[0].run_id, "train/loss", 1.0, timestamp=99, step=0)
    found = results.curves(uri, trials, ["train/loss", "collapse/std"])
    assert found["collapse/std"] == {}
    first, second, third = (found["train/loss"][trial.run_id] for trial in trials)
    assert list(first) == list(third) == list(range(0, 40, 4))
    assert first[0] == 1.0, "the later value of a step counts"
    assert (second[36], second[37]) == (7.0, math.inf)


def test_garbage_is_no_database(tmp_path: Path) -> None:
    """A wrong file is named, not answered with a traceback."""
    (tmp_path / "mlflow.db").write_text("garbage")
    with pytest.raises(UserError, match="not a database"):
        results.read("loss", "demo", f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_sweep_as_a_frame(tmp_path: Path) -> None:
    """Else whoever wants another figure than the report's must read MLflow, and decide anew what counts."""
    runs = [*RUNS]
    runs[1] = replace(runs[1], status="failed")
    uri = fill(tmp_path, PLAN, runs)
    frame = load("loss", out=tmp_path)
    assert frame.equals(load("loss", "demo", uri=uri))
    assert [*frame.columns[:6]] == ["trial", "arm", "baseline", "seed", "loss", "outcome"]
    assert len(frame) == len(RUNS) - 1
    means = frame[~frame.baseline].groupby("loss")["eval/knn_top1"].mean()
    assert means["mse"] == pytest.approx((6.7 + 7.1) / 2)
    assert frame[frame.arm == "raw_pixels"]["eval/rank_ratio"].isna().all()
    with pytest.raises(UserError, match="did you mean loss"):
        load("lose", out=tmp_path)
