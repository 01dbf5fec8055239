"""The report and its command, on a real MLflow database."""

import doctest
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from mlflow import MlflowClient
from rich.console import Console

from lmim.analysis import claims, intervals, report, results, table
from lmim.errors import UserError
from tests.analysis.builders import ARMS, fill, plan_of, runs_of


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, report.Report]:
    """A results folder with a finished sweep, one odd and one failed trial, and its report."""
    out = tmp_path_factory.mktemp("results")
    plan = plan_of({arm: {"loss": arm} for arm in ARMS}, seeds=3)
    runs = runs_of(plan)
    runs[3] = replace(runs[3], code="01d", commit="def5678")
    runs[4] = replace(runs[4], code="01d", commit="def5678", replayed="c0de")
    runs[5] = replace(runs[5], status="failed")
    fill(out, plan, runs)
    return out, report.build("loss", "demo", out)


@pytest.mark.parametrize("module", [intervals, results, claims, table])
def test_examples(module: ModuleType) -> None:
    """An example in a docstring that is wrong misleads whoever reads it."""
    ran = doctest.testmod(module)
    assert ran.attempted > 0
    assert ran.failed == 0


def test_outputs(sweep: tuple[Path, report.Report]) -> None:
    """Every promised file is there and holds what MLflow holds."""
    _, built = sweep
    for name in report.FILES:
        assert (built.path / name).stat().st_size > 0, name
    assert (built.path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (built.path / "training.pdf").read_bytes().startswith(b"%PDF")
    assert [path.name for path in built.path.glob(".*")] == [".digest"], "partial files are left"
    mse, cosine = built.rows[:2]
    assert mse.metrics["eval/knn_top1"].mean == pytest.approx(7.1)
    assert mse.core_hours == pytest.approx(3 * 36 * 2 / 3600)
    assert cosine.n == 1
    assert {e.reason.partition(",")[0] for e in built.found.excluded} == {"other code (def5678)", "failed"}
    facts = json.loads((built.path / "report.json").read_text(encoding="utf-8"))
    assert "13 trials in the figures (1 of other code, replayed on abc1234), 2 not;" in facts["summary"]
    assert [v["verdict"] for v in facts["verdicts"]] == [v.verdict for v in built.verdicts]
    assert facts["verdicts"][0]["mean"] == built.verdicts[0].effect.mean
    said = json.loads((built.path / "verdicts.json").read_text(encoding="utf-8"))
    assert [(v["claim"], v["verdict"]) for v in said] == [(v.claim, v.verdict) for v in built.verdicts]
    assert said[0]["p"] == built.verdicts[0].effect.p
    for name in ("table.md", "table.csv", "table.tex"):
        assert "contradicted" in (built.path / name).read_text(encoding="utf-8"), name


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
        "other code (def5678), not yet compared",
        "replayed on",
        "abc1234",
        "v1",
        "patch_discrimination-2",
        "2.15.0",
        "EPYC AVX512",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 2


def test_names_are_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan calls a thing must not run in the browser of who opens the report, nor stop the figures.

    The database's URI is relative, as a user types it.
    """
    evil = "<script>x</script>*$x_$"
    plan = plan_of({evil: {"loss": evil}, "mse": {"loss": "mse"}}, seeds=2, question=f"Is {evil}?")
    plan |= {"claims": ["mse > raw_pixels"], "settings": {"a": evil}}
    plan["trials"] = [t for t in plan["trials"] if t["arm"] == "mse"]
    runs = [replace(run, outcome=evil, differs=evil, commit=evil) for run in runs_of(plan)]
    runs[0] = replace(runs[0], code="01d")
    fill(tmp_path, plan, runs)
    monkeypatch.chdir(tmp_path)
    built = report.build("loss", None, Path("out"), "sqlite:///mlflow.db")
    page = (built.path / "report.html").read_text(encoding="utf-8")
    assert "<script>x" not in page
    assert "<em>$x" not in page
    assert page.count("&lt;script&gt;x&lt;/script&gt;*$x_$") >= 7


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
    monkeypatch.setattr(report, "_write", lambda built, uri: stale.append(built.found.name))
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


def test_no_database_at_a_relative_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped relative URI is one line too, and makes no empty database."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^x\.db: no MLflow database there"):
        report.build("loss", None, Path("out"), "sqlite:///x.db")
    assert not list(tmp_path.iterdir())


def test_no_password_in_messages(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is gone is told in one line, and in seconds, without the user's password."""
    assert report.main(["loss", "--tracking-uri", "http://me:secret@127.0.0.1:9"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: http://127.0.0.1:9: cannot be read")
    assert "secret" not in text


def test_unknown_names(sweep: tuple[Path, report.Report], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped sweep or scale is answered with the nearest name."""
    out, _ = sweep
    assert report.main(["lose", "--out", str(out)]) == 2
    assert "did you mean loss?" in capsys.readouterr().err
    with pytest.raises(UserError, match="no runs at scale dem; did you mean demo"):
        report.build("loss", "dem", out)


def test_a_report_says_what_a_number_cannot(tmp_path: Path) -> None:
    """Else a claim made afterwards looks like a prediction, and a p-value of 0 like certainty."""
    plan = plan_of({"mse": {"loss": "mse"}, "cosine": {"loss": "cosine"}}, seeds=3)
    plan |= {"claims": ["raw_pixels > mse"], "stated": {"raw_pixels > mse on eval/knn_top1": 2e9}}
    runs = runs_of(plan)
    runs[1] = replace(runs[1], device="H100")
    fill(tmp_path, plan, runs)
    built = report.build("loss", None, tmp_path)
    page = (built.path / "report.html").read_text(encoding="utf-8")
    assert '<td class="supported post hoc">supported, post hoc</td>' in page
    assert "<td>&lt; 0.001</td>" in page
    assert "python 3.11.9, torch 2.15.0, timm 1.0.31, host node7." in page
    assert "<td>H100</td>" in page
    (said,) = json.loads((built.path / "verdicts.json").read_text(encoding="utf-8"))
    assert (said["verdict"], said["post_hoc"]) == ("supported", True)
    assert all(len(line) <= 60 or "/" in line for line in printed(built, 60, terminal=True))


def printed(built: report.Report, width: int, terminal: bool) -> list[str]:
    """What the command shows of a report, line by line."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True)
    report.show(built, console)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()


def test_a_narrow_terminal_keeps_what_matters(sweep: tuple[Path, report.Report]) -> None:
    """Else the sweep's own metric goes before the others, and sentences break inside words."""
    _, built = sweep
    lines = printed(built, 80, terminal=True)
    head = lines[0]
    assert head.split()[:5] == ["arm", "n", "k-NN", "top-1", "(%)"]
    assert "outcome" in head
    path = str(built.path)
    assert all(len(line) <= 80 or path in line for line in lines)
    whole = " ".join(" ".join(lines).split())
    assert all(f"({v.reason})" in whole for v in built.verdicts)
    narrow = printed(built, 40, terminal=True)[0]
    assert narrow.split() == ["arm", "n", "k-NN", "top-1", "(%)"]
    piped = printed(built, 40, terminal=False)
    assert any(f"({built.verdicts[2].reason})" in line for line in piped), "a pipe gets whole lines"


def test_one_is_no_plural() -> None:
    """Else a report opens with "1 baselines"."""
    plan = plan_of({"mse": {"loss": "mse"}}, seeds=1)
    plan |= {"arms": plan["arms"][:2], "trials": plan["trials"][:2]}
    found = results.assemble(plan, runs_of(plan))
    built = report.Report(Path(), found, table.rows(found), (), False)
    assert "1 arm and 1 baseline; 2 trials in the figures, 0 not" in report.summary(built)


def test_settings_have_a_report_of_their_own(sweep: tuple[Path, report.Report]) -> None:
    """Else a quick look with --set overwrites the report that took a day."""
    out, built = sweep
    plan = plan_of({"mse": {"loss": "mse"}}, seeds=2, settings={"optim.epochs": "1"})
    fill(out, plan, runs_of(plan), updated="9999999999")
    uri = f"sqlite:///{out / 'mlflow.db'}"
    assert results.read("loss", None, uri).place == "demo+optim.epochs=1", "it ran last"
    assert results.read("loss", "demo", uri).arms == built.found.arms
    assert report.build("loss", "demo+optim.epochs=1", out).path == out / "loss" / "demo+optim.epochs=1"
    with pytest.raises(UserError, match=r"no runs at scale demo\+optim.epochs=2; did you mean demo\+optim"):
        results.read("loss", "demo+optim.epochs=2", uri)
