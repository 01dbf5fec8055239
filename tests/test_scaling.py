"""What a large sweep does for each trial it does once: counted, as a time would be this machine's alone."""

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lmim import scaling, variants
from lmim.plan import ablation
from lmim.plan.ablation import load
from lmim.sweep.executors import Job
from lmim.sweep.standing import Plan
from lmim.tracking import Tracker, default_uri
from lmim.trial.folder import TrialFolder

REQUESTS = ("create_run", "get_run", "log_batch", "log_inputs", "set_terminated", "update_run")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often MLflow is asked, a trial's state read, and a variant's source or the plan gone through."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        really = getattr(owner, name)

        def counting(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return really(*given, **named)

        monkeypatch.setattr(owner, name, counting)

    for name in REQUESTS:
        count(MlflowClient, name)
    for owner, name in ((TrialFolder, "state"), (variants, "describe"), (ablation, "expand")):
        count(owner, name)
    return counts


def finished(out: Path, trials: int) -> Plan:
    """A sweep of so many trials, all of which are faked and over."""
    out.mkdir(exist_ok=True)
    plan = Plan.read(load(scaling.write_sweep(out, trials), sets=scaling.SETTINGS), out / "trials")
    for trial in plan.sweep.trials:
        TrialFolder(plan.root, trial.id).create(trial.config)
        faked = scaling.fake(plan.root)(Job(trial, plan.sweep.judged_by(trial)))
        while not faked.advance():
            pass
    return plan


def test_mlflow_is_told_of_a_trial_once_and_in_few_requests(tmp_path: Path, counted: Counter[str]) -> None:
    """Otherwise each look at ten thousand trials costs more than the last, and the sweep waits for MLflow."""
    told = {}
    for trials in (10, 20):
        out = tmp_path / str(trials)
        plan = finished(out, trials)
        tracker = Tracker(default_uri(out), plan.sweep, out)
        counted.clear()
        assert tracker.feed()
        told[trials] = Counter(counted)
        counted.clear()
        assert tracker.feed()
        assert not counted, "nothing has changed"
        folder = TrialFolder(plan.root, plan.sweep.trials[3].id)
        folder.update(error="looked at again")
        counted.clear()
        assert tracker.feed()
        assert (counted["log_batch"], counted["state"]) == (0, 1), "the one that has changed is read"
        assert tracker.close()
    more = {name: told[20][name] - told[10][name] for name in told[20]}
    assert {name: more.get(name, 0) for name in REQUESTS} == {
        **{"create_run": 10, "log_batch": 10, "log_inputs": 10, "set_terminated": 10},
        **{"get_run": 0, "update_run": 0},
    }
    assert more["describe"] == 0, "a protocol's source is read once"


def test_a_feed_that_has_no_time_goes_on_where_it_was(tmp_path: Path, counted: Counter[str]) -> None:
    """Otherwise the command is deaf to Ctrl-C while MLflow catches up, or the last trials are never fed."""
    plan = finished(tmp_path, 10)
    tracker = Tracker(default_uri(tmp_path), plan.sweep, tmp_path)
    for fed in range(1, 11):
        assert tracker.feed(0.0)
        assert counted["create_run"] == 1 + fed, "the sweep's own, and each trial's"
        assert tracker.behind is (fed < 10)
    assert tracker.feed(0.0)
    assert tracker.behind, "a new round begins"
    assert tracker.close()
    assert counted["create_run"] == 11


def test_the_driver_keeps_nothing_of_what_it_has_fed(tmp_path: Path) -> None:
    """Otherwise its memory grows for as long as the sweep runs."""
    plan = finished(tmp_path, 10)
    folders = [TrialFolder(plan.root, trial.id) for trial in plan.sweep.trials]
    tracker = Tracker(default_uri(tmp_path), plan.sweep, tmp_path)

    def feed(first: int, steps: int) -> None:
        for folder in folders:
            for step in range(first, first + steps):
                folder.append(step, {"train/loss": float(step), "train/lr": 0.1})
            folder.update(step=first)
        assert tracker.feed()

    for first in (100, 200, 300):  # SQLAlchemy keeps the statements that it has seen
        feed(first, 100)
    tracemalloc.start()
    try:
        feed(1000, 100)
        before = tracemalloc.get_traced_memory()[0]
        for first in range(2000, 12000, 1000):
            feed(first, 100)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    points = 10 * 10 * 100 * 2
    assert kept < 20 * points, "a point that is kept takes a hundred bytes at least"


def test_what_is_done_is_not_looked_at_again(tmp_path: Path, counted: Counter[str]) -> None:
    """Otherwise the driver spends a core on trials that are over, or plans again what cannot have changed."""
    plan = finished(tmp_path, 20)
    counted.clear()
    plan = Plan.read(plan.sweep, plan.root)
    assert counted["state"] == 20
    assert len(plan.where("done")) == 20
    Plan.read(plan.sweep, plan.root, plan.states).settled()
    assert (counted["state"], counted["expand"], counted["describe"]) == (20, 0, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [["--seconds", "0.5", "--workers", "10"], ["--ray"]])
def test_the_whole_is_measured(tmp_path: Path, how: list[str]) -> None:
    """Otherwise the figures are of something else than the command, or of trials that were left out."""
    # a process of its own: Ray reads once how its callers prove who they are
    command = [sys.executable, "-m", "lmim.scaling", "--trials", "30", "--out", str(tmp_path), *how]
    record = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert record == json.loads((tmp_path / "scaling.json").read_text())
    assert record["trials"] == 30
    points = 30 * (6 * scaling.EPOCHS + 2)
    assert record["mlflow_rows"]["runs"] == 31
    assert record["mlflow_rows"]["metrics"] == points
    done = [sample["trials_done"] for sample in record["driver_memory"]]
    assert done == sorted(done)
    assert all(sample["mib"] > 10 for sample in record["driver_memory"])
    assert all(record[name] > 0 for name in record if name.startswith("seconds") or "per_second" in name)
