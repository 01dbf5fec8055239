"""A sweep that asks for figures: they are drawn at its end, stand in its report, and change nothing else."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lmim.analysis.album import load
from lmim.analysis.report import build
from lmim.plan.ablation import load as plan
from lmim.tracking import default_uri
from tests.sweep.running import TINY, arguments, folders, reported, run, write

FIGURES = "[{neighbours: {queries: 1}}, attention, reconstruction, {neighbours: {nearest: 2}}, heatmap]"


def file(folder: Path, figures: str) -> Path:
    """A sweep of two arms that differ in two numbers."""
    made = write(folder, seeds="[1, 0]", more="evaluate: [knn]\ndesign: list\n")
    arms = (
        "arms: {far: {mask.ratio: 0.75, mask.similarity: 0.1}, near: {mask.ratio: 0.5, mask.similarity: 0}}"
    )
    text = made.read_text().replace("axes: {loss: [mse, cosine]}", arms)
    made.write_text(text + (f"figures: {figures}\n" if figures else ""))
    return made


def test_figures_stand_in_the_report(tmp_path: Path) -> None:
    """They would be drawn by hand after every sweep, of whichever trial lay nearest."""
    made = file(tmp_path, FIGURES)
    sets = [*TINY, "optim.epochs=1"]
    identities = [trial.id for trial in plan(made, sets=sets).trials]
    assert identities == [trial.id for trial in plan(file(tmp_path, ""), sets=sets).trials]
    made = file(tmp_path, FIGURES)
    run(arguments(made, "--serial"))
    report = reported(made)
    said = json.loads((report / "report.json").read_text())["figures"]
    pages = [*(["neighbours"], ["attention"], [], ["neighbours-2"], ["heatmap"])]
    assert [one["pages"] for one in said] == pages
    assert said[2]["notes"] == ["far, near: its targets are no pixels"], "one line for all arms"
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + 4
    assert "far, near: its targets are no pixels" in page
    shown = {one.id for one in folders(made) if [*one.path.glob("figures/*.npz")]}
    zero = {trial.id for trial in plan(made, sets=sets).trials if trial.seed == 0}
    assert shown == zero, "one trial an arm, of its first seed"
    # what MLflow holds is what the report is drawn of
    client = MlflowClient(default_uri(tmp_path / "out"))
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`lmim.figures` LIKE '%neighbours%'")
    assert {one.data.tags["lmim.trial_id"] for one in runs} == zero
    artifacts = {one.path for one in client.list_artifacts(runs[0].info.run_id, "figures")}
    assert artifacts == {f"figures/{name}" for name in runs[0].data.tags["lmim.figures"].split()}

    before = {path: path.stat().st_mtime_ns for one in folders(made) for path in one.path.glob("figures/*")}
    assert not build("tiny", None, tmp_path / "out").built, "it is up to date"
    run(arguments(file(tmp_path, "[attention]"), "--serial"))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is made again"
    assert (report / "attention.pdf").is_file()
    assert not [*report.glob("neighbours*"), *report.glob("heatmap*")], "what nobody asks for is gone"


def test_a_file_that_is_no_archive_is_said(tmp_path: Path) -> None:
    """An artifact cut short would end the report with a traceback."""
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(Exception, match=r"cut.npz: damaged"):
        load(tmp_path / "cut.npz")
