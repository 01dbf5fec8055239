"""Each arm's search: the same suggestions whoever runs them and whatever is killed."""

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import psutil
import pytest
from matplotlib import pyplot
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.visualization import matplotlib as plots

from lmim.errors import UserError
from lmim.metrics import VAL_NN
from lmim.plan.ablation import Sweep, load
from lmim.plan.search import Made, Tried
from lmim.sweep.studies import advance, suggested
from lmim.trial.folder import TrialFolder
from tests.plan.conftest import Folder
from tests.sweep.running import arguments, eventually, folders, reported, run, start, write

TUNE = """\
tune:
  keys: {optim.base_lr: {log: [0.001, 0.03]}, loss.tau: {linear: [0.1, 1.0]}}
  trials: 6
  at_once: 2
  seeds: [9]
"""
ARMS = "[mse, patch_discrimination]"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "files").mkdir()
    return Folder(tmp_path / "files")


def studies(file: Path) -> dict[str, list[Any]]:
    """What each arm's search suggested, in order, and what came of it."""
    plan = json.loads((reported(file) / "plan.json").read_text())
    return {search["arm"]: search["suggestions"] for search in plan["searches"]}


def table(file: Path) -> list[str]:
    """The table without the hours."""
    lines = (reported(file) / "table.csv").read_text().splitlines()
    keep = [number for number, key in enumerate(lines[0].split(",")) if "hours" not in key]
    return [",".join(line.split(",")[number] for number in keep) for line in lines]


def begun(file: Path) -> int:
    """How many trials there are."""
    return len([one for one in folders(file) if one.state().status != "new"])


def _there(file: Path, goal: int, process: subprocess.Popen[str]) -> bool:
    return begun(file) >= goal or process.poll() is not None


def killed_until_done(file: Path, words: list[str], kills: int) -> None:
    """Kill the command, and what it started, each time that it has come a trial further."""
    for number in range(kills):
        process = start(words)
        goal = begun(file) + 1
        eventually(partial(_there, file, goal, process), "a trial begins")
        assert process.poll() is None, f"it was over before kill {number + 1}: {process.communicate()[0]}"
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            if one.is_running():
                one.kill()
        process.wait()
        psutil.wait_procs(family, timeout=60)
    run(words)


def check_equal(tmp_path: Path, kills: int, *more: str) -> None:
    files = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        files[name] = write(tmp_path / name, arms=ARMS, seeds="[0, 1]", more=TUNE)
    run(arguments(files["whole"], "--serial"))
    killed_until_done(files["killed"], arguments(files["killed"], *more), kills)
    found = studies(files["whole"])
    assert {arm: len(tried) for arm, tried in found.items()} == {"mse": 6, "patch_discrimination": 6}
    assert len({json.dumps(one["params"]) for tried in found.values() for one in tried}) == 12
    assert studies(files["killed"]) == found
    assert table(files["killed"]) == table(files["whole"])
    assert "nothing is missing" in run(arguments(files["killed"], "--serial"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_that_was_killed_goes_on_as_if_it_never_had_been(tmp_path: Path) -> None:
    """Else a restart repeats or loses suggestions, and the winner hangs on when the machine went down."""
    check_equal(tmp_path, 3, "--serial")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_on_ray_that_was_killed_ten_times_ends_in_the_table_of_a_serial_one(tmp_path: Path) -> None:
    """Else what is found hangs on who ran it."""
    check_equal(tmp_path, 10)


def study_of(identity: str, out: Path) -> optuna.Study:
    file = out / "studies" / f"{identity}.log"
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(file))))


def over(sweep: Sweep, value: float) -> Sweep:
    """The sweep when all that was suggested came to a value that the suggestion gives."""
    results = {
        trial: value + index
        for search in sweep.searches
        for index, one in enumerate(search.tried)
        for trial in one.trials
    }
    made = {s.study.identity: [Made(one.params, {}) for one in s.tried] for s in sweep.searches}
    return sweep.replan(results, made)


def ask(sweep: Sweep, out: Path) -> Sweep:
    advance(sweep.searches, out)
    return sweep.replan({}, suggested([search.study for search in sweep.searches], out))


@pytest.fixture
def sweep(folder: Folder) -> Sweep:
    return folder.load(f"axes: {{loss: {ARMS}}}\nseeds: [3]\n{TUNE}")


def test_nothing_is_asked_before_the_last_lot_is_over(sweep: Sweep, tmp_path: Path) -> None:
    """A suggestion that came early would hang on which trial happened to end first."""
    asked = ask(sweep, tmp_path)
    assert [len(search.tried) for search in asked.searches] == [2, 2]
    assert not advance(asked.searches, tmp_path)
    further = over(asked, 1.0)
    assert advance(further.searches, tmp_path)
    assert not advance(further.searches[:0], tmp_path)


def test_every_arm_gets_its_budget_and_no_more(sweep: Sweep, tmp_path: Path) -> None:
    """Arms with other budgets are not compared at their best."""
    now = sweep
    for _ in range(5):
        now = over(ask(now, tmp_path), 1.0)
    assert [len(search.tried) for search in now.searches] == [6, 6]
    assert all(search.over for search in now.searches)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_own_plots_open_a_search(sweep: Sweep, tmp_path: Path) -> None:
    """Whoever knows Optuna would have to learn another tool to look at a search."""
    matplotlib.use("Agg")
    asked = ask(sweep, tmp_path)
    told = over(asked, 1.0)
    advance(told.searches, tmp_path)
    for search in told.searches:
        study = study_of(search.study.identity, tmp_path)
        drawn = plots.plot_optimization_history(study).collections[0]
        assert len(np.asarray(drawn.get_offsets())) == len(search.tried)
        assert plots.plot_slice(study) is not None
    pyplot.close("all")


def test_two_commands_do_not_both_ask(sweep: Sweep, tmp_path: Path) -> None:
    """Else the arms of a sweep that two people run get twice the suggestions."""
    assert advance(sweep.searches, tmp_path)
    assert advance(sweep.searches, tmp_path), "the other learns that there are some now"
    assert [len(search.tried) for search in ask(sweep, tmp_path).searches] == [2, 2]


def test_a_failed_suggestion_is_told_as_one(sweep: Sweep, tmp_path: Path) -> None:
    """It counts for the budget, and the sampler learns nothing wrong from it."""
    asked = ask(sweep, tmp_path)
    first = asked.searches[0]
    lost = [Tried(one.params, one.trials, over=True, value=None) for one in first.tried]
    advance([replace(first, tried=tuple(lost))], tmp_path)
    study = study_of(first.study.identity, tmp_path)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "RUNNING", "RUNNING"]


def test_a_pruned_suggestion_is_told_with_what_it_reached(sweep: Sweep, tmp_path: Path) -> None:
    """A sampler that took it for a failure would look there again."""
    asked = ask(sweep, tmp_path)
    first = asked.searches[0]
    folder = TrialFolder(tmp_path / "trials", first.tried[0].trials[0])
    folder.update(status="done", outcome="pruned")
    for epoch, value in ((1, 7.0), (2, 9.0)):
        folder.append(epoch, {VAL_NN: value, "train/epoch": epoch})
    lost = replace(first.tried[0], over=True, value=None)
    advance([replace(first, tried=(lost, *first.tried[1:]))], tmp_path)
    made = suggested([first.study], tmp_path)[first.study.identity]
    assert [one.reached for one in made] == [{1: 7.0, 2: 9.0}, {}]
    assert study_of(first.study.identity, tmp_path).trials[0].state.name == "PRUNED"


def test_looking_writes_nothing(sweep: Sweep, tmp_path: Path) -> None:
    """--dry-run must leave a search as it is."""
    ask(sweep, tmp_path)
    before = {file: file.read_bytes() for file in (tmp_path / "studies").glob("*.log")}
    suggested([search.study for search in sweep.searches], tmp_path)
    assert {file: file.read_bytes() for file in (tmp_path / "studies").glob("*.log")} == before


def test_a_damaged_study_is_named(sweep: Sweep, tmp_path: Path, folder: Folder) -> None:
    """A disk that lost a line must not end in a traceback."""
    ask(sweep, tmp_path)
    file = next((tmp_path / "studies").glob("*.log"))
    file.write_bytes(file.read_bytes()[:-40] + b"\n{}\n")
    with pytest.raises(UserError, match="damaged") as caught:
        suggested([search.study for search in sweep.searches], tmp_path)
    assert str(file) in str(caught.value)


def test_more_suggestions_go_on_with_a_search(folder: Folder, tmp_path: Path) -> None:
    """Another budget must repeat nothing."""
    text = f"axes: {{loss: {ARMS}}}\nseeds: [3]\n{TUNE}"
    now = folder.load(text)
    for _ in range(4):
        now = over(ask(now, tmp_path), 1.0)
    more = load(
        folder.write("sweep.yaml", "name: test\nbase: base.yaml\n" + text.replace("trials: 6", "trials: 8"))
    )
    further = ask(over(more.replan({}, suggested([s.study for s in more.searches], tmp_path)), 1.0), tmp_path)
    for old, new in zip(now.searches, further.searches, strict=True):
        assert [one.params for one in new.tried[:6]] == [one.params for one in old.tried]
        assert len(new.tried) == 8
