"""MLflow holds what the folders hold: each point once, whatever was killed, and whenever it was fed."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmim import pages, tracking
from lmim.config import Config
from lmim.errors import UserError
from lmim.plan.ablation import Arm, load
from lmim.plan.record import Record, RecordedSearch, RecordedTrial
from lmim.tracking import Tracker, connect, default_uri, main, sync
from lmim.trial.code import code_digest, code_version
from lmim.trial.ending import Collapse, Ending
from lmim.trial.evaluation import Evaluation, read_evaluations
from lmim.trial.folder import Replay, TrialFolder
from tests.mlflow_server import Server, new_database, serving
from tests.sweep.running import REPOSITORY
from tests.trial.builders import record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass
class Stage:
    """A sweep of two arms and what MLflow holds of it."""

    out: Path
    uri: str
    folders: dict[str, TrialFolder] = field(default_factory=dict)

    def plan(
        self, scale: str = "demo", name: str = "loss", evaluations: tuple[Evaluation, ...] = ()
    ) -> Record:
        trials = []
        for arm in ("mse", "cosine"):
            config = Config.read({"loss": {"kind": arm}})
            trials.append(RecordedTrial(id=config.identity, arm=arm, seed=config.seed, data_version="v1"))
            self.folders[arm] = TrialFolder(self.out / "trials", config.identity)
            self.folders[arm].create(config)
        arms = tuple(Arm(arm, {"loss": arm}) for arm in ("mse", "cosine"))
        return Record(
            name=name,
            scale=scale,
            question="Which loss?",
            metric="knn_top1",
            design="grid",
            seeds=(0,),
            claims=("cosine > mse",),
            arms=arms,
            trials=tuple(trials),
            evaluations=evaluations,
        )

    def tracker(self) -> Tracker:
        return Tracker(self.uri, self.plan(), self.out)

    @property
    def client(self) -> "MlflowClient":
        return connect(self.uri)

    def runs(self, query: str = "", name: str = "loss") -> "list[Run]":
        experiment = self.client.get_experiment_by_name(name)
        return list(self.client.search_runs([experiment.experiment_id], query)) if experiment else []

    def parent(self) -> "Run":
        (run,) = (run for run in self.runs() if "lmim.sweep" in run.data.tags)
        return run

    def child(self, arm: str = "mse") -> "Run":
        (run,) = self.runs(f"tags.`lmim.arm` = '{arm}'")
        return run

    def points(self, metric: str = "train/loss", arm: str = "mse") -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.child(arm).info.run_id, metric)
        return sorted((point.step, point.value) for point in history)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return new_database(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def stage(tmp_path: Path, empty_database: bytes) -> Stage:
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    return Stage(tmp_path, default_uri(tmp_path))


def run_steps(folder: TrialFolder, *steps: int) -> None:
    for step in steps:
        folder.append(step, {"train/loss": step / 2})


def test_what_a_finished_sweep_leaves_in_mlflow(stage: Stage) -> None:
    """The report, which reads MLflow alone, would miss arms, seeds, configs or results."""
    (knn,) = evaluations = read_evaluations(["knn"])
    plan = stage.plan(evaluations=evaluations)
    folder = stage.folders["mse"]
    folder.update(
        status="done", outcome="learned", code="c1", commit="abc", torch="2.9", started=5.0, finished=9.0
    )
    folder.append(0, {"collapse/rank": 14.0})
    record(folder, knn, 31.5, code="c2")
    folder.record_replay(Replay(code="c3", commit="abd", of=folder.id))
    stage.folders["cosine"].update(status="failed", error="out of memory")
    assert Tracker(stage.uri, plan, stage.out).close()

    parent = stage.parent()
    assert parent.info.status == "FAILED"
    tags = {k: v for k, v in parent.data.tags.items() if k.startswith("lmim.")}
    assert abs(time.time() - int(tags.pop("lmim.updated"))) < 60
    assert tags == {
        "lmim.sweep": "loss",
        "lmim.scale": "demo",
        "lmim.place": "demo",
        "lmim.question": "Which loss?",
        "lmim.metric": "knn_top1",
        "lmim.design": "grid",
    }
    artifact = stage.client.download_artifacts(parent.info.run_id, "plan.json")
    assert Record.model_validate_json(Path(artifact).read_text()) == plan
    assert parent.info.artifact_uri.startswith((stage.out / "artifacts").as_uri())

    child = stage.child()
    tags = child.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["lmim.trial_id"], tags["lmim.arm"], tags["lmim.seed"]) == (folder.id, "mse", "0")
    assert (tags["lmim.axis.loss"], tags["lmim.scale"]) == ("mse", "demo")
    assert (tags["lmim.commit"], tags["lmim.dataset_version"], tags["lmim.torch"]) == ("abc", "v1", "2.9")
    assert (tags["lmim.code"], tags["lmim.replayed"], tags.get("lmim.differs")) == ("c1; then c2", "c3", None)
    assert (tags["lmim.outcome"], tags["lmim.status"]) == ("learned", "done")
    assert child.data.params == {key: str(value) for key, value in folder.config().flat().items()}
    assert child.data.metrics == {"collapse/rank": 14.0, "eval/knn_top1": 31.5}
    assert (child.info.status, child.info.start_time, child.info.end_time) == ("FINISHED", 5000, 9000)

    failed = stage.child("cosine")
    assert (failed.info.status, failed.data.tags["lmim.error"]) == ("FAILED", "out of memory")


def test_a_run_says_who_made_it_from_what(stage: Stage) -> None:
    """MLflow's columns of user, source, version and data would be empty, and two trials look alike."""
    plan = stage.plan().model_copy(update={"path": "/sweeps/loss.yaml", "commit": "abd"})
    stage.folders["mse"].update(status="done", commit="abc; then abd")
    for _ in range(2):
        assert Tracker(stage.uri, plan, stage.out).close()
    for run, name in ((stage.parent(), "loss demo"), (stage.child(), "mse seed 0")):
        tags = {key: run.data.tags[f"mlflow.{key}"] for key in ("user", "source.name", "source.git.commit")}
        assert tags == {"user": getuser(), "source.name": "/sweeps/loss.yaml", "source.git.commit": "abd"}
        assert run.info.run_name == name
        assert run.inputs is not None
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("glyphs", "v1", "training")


def test_what_the_plan_calls_a_trial_reaches_its_run(stage: Stage) -> None:
    """MLflow would show the name of before, which may be another arm's by now."""
    stage.folders = {}
    plan = stage.plan()
    stage.folders["mse"].update(status="done")
    Tracker(stage.uri, plan, stage.out).close()
    arms = (Arm("loss=mse", {"loss": "mse"}), *plan.arms[1:])
    twice = [plan.trials[0].model_copy(update={"arm": name}) for name in ("loss=mse", "again")]
    Tracker(stage.uri, plan.model_copy(update={"arms": arms, "trials": tuple(twice)}), stage.out).close()
    child = stage.child("loss=mse")
    assert (child.info.run_name, child.data.tags["lmim.axis.loss"]) == ("loss=mse seed 0", "mse")


def test_the_experiment_leads_to_its_sweeps(stage: Stage) -> None:
    """MLflow's page would open on one folded row, or lose what somebody wrote there."""
    stage.tracker().close()
    first = stage.client.get_experiment_by_name("loss")
    assert first is not None
    assert first.tags["mlflow.experimentKind"] == "custom_model_development"
    note = f"Mine.\n\n{first.tags[pages.NOTE]}"
    stage.client.set_experiment_tag(first.experiment_id, pages.NOTE, note)
    stage.tracker().close()
    Tracker(stage.uri, stage.plan(scale="gpu"), stage.out).close()
    found = stage.client.get_experiment_by_name("loss")
    assert found is not None
    gpu, rest = found.tags[pages.NOTE].split("\n\n", 1)
    assert (gpu[:13], rest) == ("[**loss gpu**", note)
    views = {
        key: json.loads(tag) for key, tag in found.tags.items() if key.startswith("mlflow.sharedViewState.")
    }
    assert len(views) == 2
    for key, view in views.items():
        assert view["searchFilter"].endswith(f"'{key.rpartition('.')[2]}'")
        assert "metrics.`eval/knn_top1`" in view["selectedColumns"]


ANOTHER = """
import sys
from pathlib import Path
from lmim.tracking import connect, default_uri
client = connect(default_uri(Path(sys.argv[1])))
print(Path(client.download_artifacts(sys.argv[2], "plan.json")).read_text())
client.log_artifact(sys.argv[2], sys.argv[3])
"""
"""Reads an artifact and adds one: in a process of its own, for MLflow remembers where a run's are."""


def test_a_results_folder_that_was_moved_has_its_artifacts(tmp_path: Path, empty_database: bytes) -> None:
    """They would be missed in MLflow, and new ones be written to where the folder was."""
    (first := tmp_path / "a b").mkdir()
    (first / "mlflow.db").write_bytes(empty_database)
    stage = Stage(first, default_uri(first))
    plan = stage.plan()
    Tracker(stage.uri, plan, first).close()
    run = stage.parent().info.run_id
    moved = Path(shutil.move(first, tmp_path / "c"))
    (tmp_path / "new").write_text("new")
    words = [sys.executable, "-c", ANOTHER, str(moved), run, str(tmp_path / "new")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    printed = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
    assert Record.model_validate_json(printed) == plan
    assert [path.parts[-6] for path in tmp_path.rglob("artifacts/new")] == ["c"]
    assert not first.exists()


def test_a_view_of_a_search_shows_the_rows_alone(stage: Stage) -> None:
    """The mean of an arm in MLflow would be one over all that its search tried."""
    row, tried = stage.plan().trials
    searches = (RecordedSearch(arm="mse", ranges={}, budget=1, metric="knn_top1", better="higher"),)
    trials = (row, tried.model_copy(update={"suggestion": 0}))
    plan = stage.plan().model_copy(update={"trials": trials, "searches": searches})
    for folder in stage.folders.values():
        folder.update(status="done")
    Tracker(stage.uri, plan, stage.out).close()
    experiment = stage.client.get_experiment_by_name("loss")
    assert experiment is not None
    (view,) = (json.loads(tag) for key, tag in experiment.tags.items() if "sharedViewState" in key)
    assert [run.data.tags["lmim.trial_id"] for run in stage.runs(view["searchFilter"])] == [row.id]
    every = view["searchFilter"].partition(" AND ")[0]
    assert len(stage.runs(every)) == 2


def test_a_protocol_that_is_asked_for_later_is_one_point_more(stage: Stage) -> None:
    """MLflow, and so the report, would lack the new column, or hold a figure twice."""
    knn, nn = read_evaluations(["knn", "nn"])
    plan = stage.plan(evaluations=(knn,))
    folder = stage.folders["mse"]
    folder.append(7, {"train/loss": 1.0})
    folder.update(status="done", step=7, finished=9.0)
    first = Tracker(stage.uri, plan, stage.out)
    first.feed()
    assert stage.child().info.status == "KILLED", "trained, and not judged"
    record(folder, knn, 31.5)
    assert first.close()
    assert stage.child().info.status == "FINISHED"
    for _ in range(2):
        later = Tracker(stage.uri, stage.plan(evaluations=(knn, nn)), stage.out)
        later.feed()
        record(folder, nn, 20.5)
        later.feed()
        later.feed()
    assert stage.child().data.metrics == {"train/loss": 1.0, "eval/knn_top1": 31.5, "eval/nn_top1": 20.5}
    assert stage.points("eval/knn_top1") == [(7, 31.5)]
    assert stage.points("eval/nn_top1") == [(7, 20.5)]
    assert len(stage.runs()) == 2


@pytest.mark.parametrize("again", [40.5, 12.5, math.nan, math.inf])
def test_a_trial_that_is_judged_anew_has_its_new_figure(stage: Stage, again: float) -> None:
    """The table would go on showing what was deleted because it was wrong."""
    (knn,) = read_evaluations(["knn"])
    plan = stage.plan(evaluations=(knn,))
    folder = stage.folders["mse"]
    folder.append(7, {"train/loss": 1.0})
    folder.update(status="done", step=7, finished=9.0)
    record(folder, knn, 31.5)
    for figure in (31.5, again, again):
        tracker = Tracker(stage.uri, plan, stage.out)
        tracker.feed()
        shown = stage.child().data.metrics["eval/knn_top1"]
        assert tracking._same(shown, figure)
        for file in (folder.path / "evaluations").iterdir():
            file.unlink()
        record(folder, knn, again)
        tracker.feed()
        tracker.close()
        assert tracking._same(stage.child().data.metrics["eval/knn_top1"], again)
    assert len(stage.points("eval/knn_top1")) == 2, "each once"


def test_a_protocol_that_failed_and_code_that_differs_are_told(stage: Stage) -> None:
    """The report would count a trial that must not count, or leave it out without the reason."""
    (knn,) = read_evaluations(["knn"])
    plan = stage.plan(evaluations=(knn,))
    folder = stage.folders["mse"]
    folder.update(status="done", code="c0de")
    record(folder, knn, None, error="knn: ValueError: no")
    folder.record_replay(Replay(code="c3", commit="abd", of=folder.id, difference="step 1: train/loss"))
    Tracker(stage.uri, plan, stage.out).feed()
    child = stage.child()
    assert child.info.status == "FAILED"
    assert child.data.tags["lmim.error"] == "knn: ValueError: no"
    assert (child.data.tags["lmim.differs"], child.data.tags.get("lmim.replayed")) == (
        "step 1: train/loss",
        None,
    )
    record(folder, knn, 30.0)
    folder.record_replay(Replay(code="c4", commit="abe", of=folder.id))
    Tracker(stage.uri, plan, stage.out).close()
    child = stage.child()
    assert child.info.status == "FINISHED"
    tags = {name: child.data.tags.get(f"lmim.{name}") for name in ("error", "differs", "replayed")}
    assert tags == {"error": "", "differs": "", "replayed": "c4"}
    assert child.data.metrics == {"eval/knn_top1": 30.0}


def test_a_trial_that_did_not_begin_has_no_run(stage: Stage) -> None:
    """MLflow's list would fill with empty runs."""
    stage.tracker().feed()
    assert [run.data.tags.get("lmim.arm") for run in stage.runs()] == [None]


def test_a_sweep_with_trials_to_come_is_not_finished(stage: Stage) -> None:
    """After --only, MLflow would call a sweep finished, or broken off, that only has not run whole."""
    tracker = stage.tracker()
    stage.folders["mse"].update(status="done")
    tracker.close()
    assert stage.parent().info.status == "SCHEDULED"


def test_feeding_while_it_trains_gives_each_point_once(stage: Stage) -> None:
    """Curves would have doubled or missing points."""
    tracker = stage.tracker()
    folder = stage.folders["mse"]
    with folder.lock():
        folder.update(status="running")
        for step in range(0, 6, 2):
            run_steps(folder, step, step + 1)
            assert tracker.feed()
            assert tracker.feed()
        assert stage.child().info.status == "RUNNING"
        assert stage.parent().info.status == "RUNNING"
    assert stage.points() == [(step, step / 2) for step in range(6)]


@pytest.mark.parametrize("kept", ["all tags", "no tags"])
def test_a_new_driver_sends_only_what_is_missing(stage: Stage, kept: str) -> None:
    """After kill -9 of the driver, also between two batches, points would be doubled or lost."""
    first = stage.tracker()
    folder = stage.folders["mse"]
    folder.update(status="running")
    run_steps(folder, 0, 1, 2)
    first.feed()
    if kept == "no tags":  # killed after the points, before the tag that counts them
        stage.client.delete_tag(stage.child().info.run_id, "lmim.fed")
    run_steps(folder, 3, 4)
    stage.tracker().feed()
    assert stage.points() == [(step, step / 2) for step in range(5)]
    assert len(stage.runs()) == 2


@pytest.mark.parametrize("driver", ["same driver", "new driver"])
def test_steps_trained_again_after_a_kill_give_no_second_row(stage: Stage, driver: str) -> None:
    """A trial resumed from its checkpoint would have two values a step."""
    tracker = stage.tracker()
    folder = stage.folders["mse"]
    folder.update(status="running")
    run_steps(folder, *range(8))
    tracker.feed()
    folder.rewind(3)
    if driver == "new driver":
        tracker = stage.tracker()
    run_steps(folder, *range(4, 8))
    tracker.feed()
    run_steps(folder, 8)
    tracker.feed()
    assert stage.points() == [(step, step / 2) for step in range(9)]


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
def test_rows_written_anew_may_end_at_the_old_offset(stage: Stage, killed: bool) -> None:
    """A resumed trial's rows would be skipped when its new journal lines up with the old one.

    Also where the first try to resume was killed when the journal was cut back and nothing else was written.
    """
    tracker = stage.tracker()
    folder = stage.folders["mse"]
    folder.update(status="running")
    run_steps(folder, *range(6))
    tracker.feed()
    size = folder.journal.stat().st_size
    if killed:
        code = (
            "import os, pathlib\nfrom lmim.trial.folder import TrialFolder\ntruncate = os.truncate\n"
            "os.truncate = lambda *cut: (truncate(*cut), os.kill(os.getpid(), 9))\n"
            f"TrialFolder(pathlib.Path({str(folder.root)!r}), {folder.id!r}).rewind(0)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
        assert 0 < folder.journal.stat().st_size < size
    folder.rewind(0)
    rows = [{"step": step, "time": 1, "metrics": {"a": step}} for step in range(1, 7)]
    lines = [json.dumps(row, separators=(",", ":")) for row in rows]
    padding = size - folder.journal.stat().st_size - sum(len(line) + 1 for line in lines)
    assert padding > 0
    with folder.journal.open("a") as file:
        file.write(" " * padding + "".join(f"{line}\n" for line in lines))
    assert folder.journal.stat().st_size == size
    tracker.feed()
    assert stage.points("a") == [(step, float(step)) for step in range(1, 7)]


def test_a_trial_begun_anew_replaces_its_run(stage: Stage) -> None:
    """The old result of a deleted and repeated trial would stay in the table."""
    tracker = stage.tracker()
    folder = stage.folders["mse"]
    folder.append(0, {"eval/knn_top1": 10.0})
    folder.update(status="failed", error="killed")
    tracker.feed()
    old = stage.child().info.run_id
    for file in folder.path.iterdir():
        file.unlink()
    stage.plan()
    folder.append(0, {"eval/knn_top1": 20.0})
    folder.update(status="done")
    for again in (tracker, stage.tracker()):
        again.feed()
        child = stage.child()
        assert child.info.run_id != old
        assert child.data.metrics == {"eval/knn_top1": 20.0}
        assert (child.info.status, child.data.tags.get("lmim.error")) == ("FINISHED", None)


def test_a_trial_that_goes_on_after_its_early_end_replaces_its_run(stage: Stage) -> None:
    """The figures of its unfinished training would stand in the report, as an evaluation has one point."""
    evaluations = read_evaluations(["knn"])
    ending = Ending(collapse=Collapse(patience=1))
    ruled = stage.plan(evaluations=evaluations).model_copy(update={"ending": ending})
    folder = stage.folders["mse"]
    for step, rank, cosine in ((0, 8.0, 0.5), (10, 1.0, 0.99)):
        folder.append(step, {"collapse/rank": rank, "collapse/image_cosine": cosine})
    folder.append(10, {"eval/rank_ratio": 0.1})
    reason = ending.verdict(folder.rows()[0])
    folder.update(status="done", outcome="collapsed", ended=reason, step=10, steps=20)
    record(folder, evaluations[0], 7.0)
    tracker = Tracker(stage.uri, ruled, stage.out)
    tracker.close()
    first = stage.child()
    assert (first.data.tags["lmim.status"], first.data.tags["lmim.ended"]) == ("done", reason)
    other = Tracker(stage.uri, stage.plan(evaluations=evaluations), stage.out)
    other.close()
    assert stage.child().data.tags["lmim.status"] == "interrupted", "without the rule"
    folder.reopen()
    folder.append(20, {"eval/rank_ratio": 0.2})
    folder.update(status="done", outcome="collapsed", step=20)
    record(folder, evaluations[0], 9.0)
    other.close()
    assert stage.child().info.run_id != first.info.run_id
    assert stage.points("eval/knn_top1") == [(20, 9.0)]
    assert "lmim.ended" not in stage.child().data.tags


def test_killed_runs_do_not_stay_running(stage: Stage) -> None:
    """MLflow would show trials as running for ever after the machine went down."""
    first = stage.tracker()
    with stage.folders["mse"].lock(), stage.folders["cosine"].lock():
        stage.folders["mse"].update(status="running")
        stage.folders["cosine"].update(status="running")
        first.feed()
        assert {run.info.status for run in stage.runs()} == {"RUNNING"}
    stage.folders["cosine"].update(status="done")
    second = stage.tracker()
    second.feed()
    assert (stage.child("mse").info.status, stage.child("cosine").info.status) == ("KILLED", "FINISHED")
    assert stage.child("mse").data.tags["lmim.status"] == "interrupted"
    second.close()
    assert stage.parent().info.status == "KILLED"

    third = stage.tracker()
    with stage.folders["mse"].lock():
        third.feed()
        assert stage.child("mse").info.status == "RUNNING"
        assert stage.parent().info.status == "RUNNING"
    stage.folders["mse"].update(status="done")
    third.close()
    assert {run.info.status for run in stage.runs()} == {"FINISHED"}


def test_params_of_a_run_cut_off_half_way_are_completed(stage: Stage) -> None:
    """A kill while a run is made would leave it without its config, or block it for ever."""
    stage.tracker().feed()
    parent = stage.parent()
    folder = stage.folders["mse"]
    half = stage.client.create_run(
        parent.info.experiment_id,
        tags={"mlflow.parentRunId": parent.info.run_id, "lmim.trial_id": folder.id, "lmim.arm": "mse"},
    )
    stage.client.log_param(half.info.run_id, "run.threads", "7")  # steered otherwise since
    folder.update(status="done")
    assert stage.tracker().feed()
    wanted = {key: str(value) for key, value in folder.config().flat().items()}
    assert stage.child().data.params == wanted | {"run.threads": "7"}


def test_runs_are_reused_and_scales_kept_apart(stage: Stage) -> None:
    """Each start would add a parent; or a demo's numbers stand under the paper's scale."""
    stage.plan()
    stage.folders["mse"].update(status="done")
    for _ in range(2):
        stage.tracker().close()
        Tracker(stage.uri, stage.plan(scale="gpu"), stage.out).close()
    runs = stage.runs()
    assert sorted(run.data.tags["lmim.scale"] for run in runs) == ["demo", "demo", "gpu", "gpu"]
    assert sum("lmim.sweep" in run.data.tags for run in runs) == 2


def test_the_newest_plan_counts(stage: Stage) -> None:
    """An arm or a claim added to the file would not reach the report."""
    stage.tracker().feed()
    changed = stage.plan().model_copy(update={"claims": ("mse > cosine",), "question": "And now?"})
    Tracker(stage.uri, changed, stage.out).feed()
    assert stage.parent().data.tags["lmim.question"] == "And now?"
    artifact = stage.client.download_artifacts(stage.parent().info.run_id, "plan.json")
    assert json.loads(Path(artifact).read_text())["claims"] == ["mse > cosine"]


def test_long_journals_and_odd_numbers(stage: Stage) -> None:
    """A journal of more than MLflow's batch, or a diverged trial, would be refused whole."""
    tracker = stage.tracker()
    folder = stage.folders["mse"]
    lines = (
        json.dumps({"step": step, "time": 1.0 + step, "metrics": {"train/loss": 0.5, "train/lr": 0.1}})
        for step in range(1250)
    )
    folder.journal.write_text("".join(f"{line}\n" for line in lines))
    folder.append(1250, {"train/loss": math.nan, "train/lr": math.inf})
    folder.update(status="done", outcome="diverged")
    assert tracker.feed()
    points = stage.points()
    assert len(points) == 1251
    assert math.isnan(points[-1][1])
    assert stage.points("train/lr")[-1][1] > 1e308


def test_a_damaged_folder_does_not_hold_up_the_others(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """One torn file would keep a whole sweep out of MLflow."""
    tracker = stage.tracker()
    (stage.folders["mse"].path / "state.json").write_text("{")
    stage.folders["cosine"].update(status="done")
    assert tracker.close()
    assert tracker.feed()
    assert stage.child("cosine").info.status == "FINISHED"
    assert stage.parent().info.status == "FAILED"
    assert [record.message.count("state.json") for record in caplog.records] == [1]


def test_sync_rebuilds_a_lost_database(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever deletes mlflow.db, or names another server, would lose the results."""
    tracker = stage.tracker()
    folder = stage.folders["mse"]
    run_steps(folder, 0, 1, 2)
    folder.update(status="done", outcome="learned")
    tracker.close()
    Tracker(stage.uri, stage.plan(name="other"), stage.out).close()
    before = (stage.child().data, stage.points(), stage.parent().data.tags["lmim.question"])

    elsewhere = Stage(stage.out, f"sqlite:///{stage.out}/elsewhere.db")
    for _ in range(2):
        assert main(["sync", "--out", str(stage.out), "--tracking-uri", elsewhere.uri]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["loss/demo: up to date", "other/demo: up to date"]
    child = elsewhere.child()
    after = (child.data, elsewhere.points(), elsewhere.parent().data.tags["lmim.question"])
    assert (after[0].params, after[0].metrics, *after[1:]) == (
        before[0].params,
        before[0].metrics,
        *before[1:],
    )
    assert child.info.status == "FINISHED"
    assert len(elsewhere.runs(name="other")) == 2


def test_sync_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong --out would look like success."""
    assert main(["sync", "--out", str(tmp_path)]) == 2
    assert "no sweep has been run here" in capsys.readouterr().err
    (tmp_path / "loss" / "demo").mkdir(parents=True)
    (tmp_path / "loss" / "demo" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        sync(tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "foo://x",
        "mlruns",
        "sqlite:///{out}/garbage.db",
        "sqlite://",
        "sqlite:///",
        "http://[bad",
        "mssql://x",
    ],
)
def test_a_uri_that_mlflow_refuses_is_an_error_at_the_start(stage: Stage, uri: str) -> None:
    """A typo in --tracking-uri would show only after hours of training."""
    (stage.out / "garbage.db").write_text("no database " * 100)
    with pytest.raises(UserError, match="--tracking-uri"):
        Tracker(uri.format(out=stage.out), stage.plan(), stage.out)


def test_a_missing_driver_is_named_with_what_to_install(stage: Stage) -> None:
    """`--tracking-uri mysql://...` would be a traceback, with the password in it."""
    expected = r"^[^\n]*MySQLdb, the database's driver, is not installed; pip install mysqlclient$"
    with pytest.raises(UserError, match=expected) as found:
        Tracker("mysql+mysqldb://me:secret@h/db", stage.plan(), stage.out)
    assert "secret" not in str(found.value)


def test_a_sweep_becomes_a_plan(tmp_path: Path) -> None:
    """What the report needs of the sweep file, and of the command line, would not be stored."""
    file = tmp_path / "loss.yaml"
    file.write_text(
        "name: loss\nquestion: q\naxes: {loss: [mse, cosine]}\nseeds: [0, 1]\nmetric: knn_top1\n"
        "claims: [mse > cosine]\nbaselines: [random_encoder]\n"
    )
    sweep = load(file, sets=["optim.epochs=1"], only=["mse"])
    plan = Record.of(sweep).model_dump(mode="json")
    assert plan.pop("trials") == [
        {"id": t.id, "arm": t.arm, "seed": t.seed, "data_version": t.config.data.version}
        | {"suggestion": None, "ending": None}
        for t in sweep.planned
    ]
    assert all(t.config.data.version for t in sweep.planned)
    assert [one["protocol"] for one in plan.pop("evaluations")] == ["nn", "knn", "linear"]
    metrics = plan.pop("metrics")
    assert metrics["eval/knn_top1"] == {
        "name": "eval/knn_top1",
        "label": "k-NN top-1",
        "unit": "%",
        "better": "higher",
    }
    assert {"eval/rank_ratio", "train/loss"} <= metrics.keys()
    assert abs(time.time() - plan.pop("stated").pop("mse > cosine on eval/knn_top1")) < 60
    assert plan.pop("flops").keys() == {"mse", "cosine"}
    assert plan == {
        "name": "loss",
        "scale": "demo",
        "settings": {"optim.epochs": "1"},
        "path": str(file),
        "notes": [],
        "classes": 36,
        "question": "q",
        "metric": "knn_top1",
        "design": "grid",
        "seeds": [0, 1],
        "claims": ["mse > cosine"],
        "ending": None,
        "selecting": [],
        "searches": [],
        "figures": [],
        "others": [],
        "sequential": False,
        "arms": [
            {"name": name, "axes": axes, "baseline": not axes, "provisional": False}
            for name, axes in (
                ("mse", {"loss": "mse"}),
                ("cosine", {"loss": "cosine"}),
                ("random_encoder", {}),
            )
        ],
        "code": code_digest(),
        "commit": code_version(),
    }


def test_mlflow_remembers_when_claims_were_stated(stage: Stage) -> None:
    """With the folder of plans gone, a claim stated years ago would pass for one that knew the results."""
    old = stage.plan().model_copy(update={"stated": {"cosine > mse on eval/knn_top1": 5.0}})
    Tracker(stage.uri, old, stage.out).feed()
    old.file(stage.out).unlink()
    again = old.model_copy(
        update={
            "claims": ("mse collapsed", "cosine > mse"),
            "stated": {"mse collapsed": 9.0, "cosine > mse on eval/knn_top1": 9.0},
        }
    )
    Tracker(stage.uri, again, stage.out).feed()
    stated = {"mse collapsed": 9.0, "cosine > mse on eval/knn_top1": 5.0}
    artifact = stage.client.download_artifacts(stage.parent().info.run_id, "plan.json")
    for file in (Path(artifact), old.file(stage.out)):
        assert json.loads(file.read_text())["stated"] == stated


def test_settings_have_a_parent_of_their_own(stage: Stage) -> None:
    """Trials of --set would stand under the scale's name, and each call hide the other's."""
    changed = stage.plan().model_copy(update={"settings": {"optim.epochs": "1", "run.cpus": "2"}})
    for plan in (stage.plan(), changed, stage.plan(), changed):
        Tracker(stage.uri, plan, stage.out).close()
    parents = [run.data.tags for run in stage.runs() if "lmim.sweep" in run.data.tags]
    assert sorted(tags["lmim.place"] for tags in parents) == ["demo", "demo+optim.epochs=1"]
    assert [*sync(stage.out, stage.uri)] == ["loss/demo", "loss/demo+optim.epochs=1"]


def test_import_is_cheap_and_making_a_tracker_is_quiet(tmp_path: Path) -> None:
    """A dry run would wait for MLflow; its migrations would scroll over the table; it would phone home."""
    code = (
        "import sys, pathlib, lmim.tracking as t\n"
        "assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "plan = t.Record(name='n', scale='s', question='', metric='m', design='grid', seeds=(0,), claims=(),"
        " arms=(), trials=())\n"
        "assert t.Tracker(None, plan, out).close()\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled; assert is_telemetry_disabled()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.fixture
def server(tmp_path: Path, empty_database: bytes) -> Iterator[Server]:
    with serving(tmp_path, empty_database) as made:
        yield made


def test_a_server_that_dies_and_comes_back(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead server would stop the training for minutes, flood the screen, or cost points."""
    caplog.set_level(logging.WARNING)
    stage = Stage(tmp_path, server.uri)
    tracker = stage.tracker()
    tracker.retry_seconds = 0.0
    folder = stage.folders["mse"]
    folder.update(status="running")
    run_steps(folder, 0, 1)
    assert tracker.feed()
    server.kill()
    # by itself MLflow asks again and again, for four minutes
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 1
    for step in (2, 3, 4):
        run_steps(folder, step)
        assert not tracker.feed()
    assert [record.name for record in caplog.records] == ["lmim.tracking"]
    assert "\n" not in caplog.records[0].message
    assert "takes nothing" in caplog.records[0].message
    server.start()
    folder.update(status="done")
    assert tracker.close()
    assert stage.points() == [(step, step / 2) for step in range(5)]
    assert len(stage.runs()) == 2
    artifact = stage.client.download_artifacts(stage.parent().info.run_id, "plan.json", str(tmp_path))
    assert Record.model_validate_json(Path(artifact).read_text()) == stage.plan()


def test_a_dead_server_is_left_alone_for_a_while(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn of the sweep's loop would wait for the time-out of a server that is gone."""
    tracker = Tracker("http://127.0.0.1:9", stage.plan(), stage.out)
    assert not tracker.feed()
    tries: list[int] = []
    monkeypatch.setattr(tracker, "_connect", lambda: tries.append(1))
    assert not tracker.feed()
    assert not tries
