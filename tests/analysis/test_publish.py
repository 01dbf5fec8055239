"""The report in MLflow, on the sweep's own run: all of it, once, and never in the way of the one on disk."""

import doctest
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from lmim import pages
from lmim.analysis import publish, report
from lmim.analysis.intervals import interval
from lmim.analysis.table import Row
from tests.analysis.builders import ARMS, fill, plan_of, runs_of

PLAN = plan_of({arm: {"loss": arm} for arm in ARMS}, seeds=3)


def test_examples() -> None:
    """An example in a docstring that is wrong misleads whoever reads it."""
    assert doctest.testmod(publish) == (0, 1)


def test_a_sweeps_run_tells_what_came_out(tmp_path: Path) -> None:
    """Who opens MLflow would find a run without description, figures or verdicts, or each of them twice."""
    client = MlflowClient(fill(tmp_path, PLAN, runs_of(PLAN)))
    built = report.build("loss", "demo", tmp_path)
    run = client.get_run(built.found.parent)
    first, summary, *rest = run.data.tags[pages.NOTE].split("\n\n")
    question, answer = first.split("  \n")
    assert question == f"**{PLAN['question']}**"
    assert answer.startswith("4 claims: 2 supported, 1 contradicted, 1 undecided · [report](#/experiments/1/")
    assert "15 trials" in summary
    assert rest == (built.path / "table.md").read_text(encoding="utf-8").split("\n\n")[1:]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {*report.FILES, "plan.json"}
    file = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(file).read_bytes() == (built.path / "report.html").read_bytes()
    assert run.data.metrics["mean/eval/knn_top1/mse"] == built.rows[0].metrics["eval/knn_top1"].mean
    assert run.data.metrics["claims/supported"] == 2
    assert "mean/collapse/rank/raw_pixels" not in run.data.metrics, "it has none"
    assert run.data.tags["lmim.verdict.2"] == "contradicted: mse > patch_discrimination"

    assert report.build("loss", "demo", tmp_path).found == built.found
    client.delete_tag(run.info.run_id, publish.DIGEST)  # as if the first was killed at its very end
    report.build("loss", "demo", tmp_path)
    for name in run.data.metrics:
        assert len(client.get_metric_history(run.info.run_id, name)) == 1, name


def test_an_unchanged_report_is_not_sent_again(tmp_path: Path) -> None:
    """Each look at a finished sweep would send all files anew, and undo what a person wrote since."""
    client = MlflowClient(fill(tmp_path, PLAN, runs_of(PLAN)))
    parent = report.build("loss", "demo", tmp_path).found.parent
    client.set_tag(parent, pages.NOTE, "mine")
    report.build("loss", "demo", tmp_path)
    assert client.get_run(parent).data.tags[pages.NOTE] == "mine"


def test_what_is_no_longer_so_does_not_stay(tmp_path: Path) -> None:
    """MLflow forgets no metric: the mean of an arm that has no result any more would stand there for ever."""
    client = MlflowClient(fill(tmp_path, PLAN, runs_of(PLAN)))
    built = report.build("loss", "demo", tmp_path)
    mse, *others = built.rows
    found, parent = built.found, built.found.parent
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def send(rows: list[Row], digest: str) -> dict[str, float]:
        publish.publish(uri, found, rows, built.verdicts[:1], built.path, report.FILES, digest)
        return dict(client.get_run(parent).data.metrics)

    half = replace(mse.metrics["eval/knn_top1"], mean=mse.metrics["eval/knn_top1"].mean or 1 / 2)
    fewer = send([replace(mse, metrics=dict(mse.metrics) | {"eval/knn_top1": half}), *others[1:]], "a")
    assert fewer["mean/eval/knn_top1/mse"] == half.mean
    assert math.isnan(fewer["mean/eval/knn_top1/cosine"])
    assert [key for key in client.get_run(parent).data.tags if "verdict" in key] == ["lmim.verdict.1"]
    again = send([mse, *others], "b")
    assert again["mean/eval/knn_top1/cosine"] == others[0].metrics["eval/knn_top1"].mean
    assert len(client.get_metric_history(parent, "mean/eval/knn_top1/cosine")) == 3


def test_names_that_mlflow_refuses(tmp_path: Path) -> None:
    """One arm whose name has a sign that MLflow does not take would keep the whole report out of it."""
    row = Row("", {}, False, 1, {"eval/a": interval([1.0])}, {}, 0.0, 0.0)
    arms = ("gap=1", "gap:1", "..", "ä/%", "x" * 300)
    found = publish.means([replace(row, arm=arm) for arm in arms], ())
    assert len(found) == len(arms) + 3
    client = MlflowClient(fill(tmp_path, PLAN, []))
    run = report.build("loss", "demo", tmp_path).found.parent
    client.log_batch(run, metrics=[Metric(name, value, 1, 0) for name, value in found.items()])
    assert client.get_run(run).data.metrics.keys() >= found.keys()


def test_a_server_that_is_gone_leaves_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A report that is done would end in a traceback, or in silence."""
    fill(tmp_path, PLAN, runs_of(PLAN))
    built = report.build("loss", "demo", tmp_path)
    with caplog.at_level(logging.WARNING):
        publish.publish(
            "http://127.0.0.1:9", built.found, built.rows, built.verdicts, built.path, report.FILES, "other"
        )
    (line,) = [record.message for record in caplog.records if record.name == publish.__name__]
    assert line.startswith(f"the report is in {built.path}, but not in MLflow: ")
    assert "\n" not in line
