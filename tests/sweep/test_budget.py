"""A budget: what it reaches, what it leaves, and that nothing of it is lost."""

import argparse
import csv
import re
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lmim.plan import cost
from lmim.plan.ablation import Trial, load
from lmim.sweep import command, worker
from lmim.sweep.allowance import Allowance, Share
from lmim.sweep.budget import Budget, Purse, payable, read_budget, rounds
from lmim.sweep.standing import Plan, machine_of
from lmim.trial.folder import TrialFolder
from tests.sweep.running import TINY, arguments, folders, reported, run, write

HOUR = 3600.0


def plant(file: Path, seconds: float, epochs: int = 1) -> None:
    """Leave trials of other seeds as done that took so long: what the sweep's own are priced by."""
    sweep = load(file, sets=[*TINY, f"optim.epochs={epochs}"], seeds=range(90, 99))
    for trial in sweep.trials:
        folder = TrialFolder(file.parent / "out" / "trials", trial.id)
        folder.create(trial.config)
        folder.update(status="done", outcome="learned", seconds=seconds, step=epochs * 2, steps=epochs * 2)


@pytest.mark.parametrize(
    ("text", "seconds", "kind"),
    [
        ("90min", 5400, "wall"),
        ("2h", 7200, "wall"),
        ("1d", 86400, "wall"),
        ("10s", 10, "wall"),
        (".5h", 1800, "wall"),
        ("2 h", 7200, "wall"),
        ("1.5coreh", 5400, "core"),
        ("40gpuh", 144000, "gpu"),
    ],
)
def test_a_budget_is_read(text: str, seconds: float, kind: str) -> None:
    """Otherwise an hour of a GPU is taken for an hour of the clock."""
    found = read_budget(text)
    assert (found.seconds, found.kind) == (seconds, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2hours", "found '2hours'; did you mean 2h?"),
        ("40 gpu-hours", "did you mean 40gpuh?"),
        ("90m", "did you mean 90min?"),
        ("1,5h", "did you mean 1.5h?"),
        ("3corh", "did you mean coreh?"),
        ("7", "expected a number and a unit, such as 90min, 2h, 1d, 10coreh or 40gpuh, found '7'"),
        ("soon", "expected a number and a unit"),
        ("-2h", "expected a number and a unit"),
        ("", "expected a number and a unit"),
        ("0h", "expected more than nothing, found 0h"),
        ("0.0gpuh", "expected more than nothing"),
    ],
)
def test_a_budget_that_cannot_be_read_is_named(text: str, message: str) -> None:
    """Otherwise a sweep runs for minutes instead of hours, or for ever."""
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        read_budget(text)


def test_what_does_not_fit_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an unbalanced table is what the budget was spent on."""
    file = write(tmp_path)
    plant(file, HOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for words, message in {
        (
            "--budget",
            "10s",
        ): r"--budget 10s: one trial of each arm takes about 2 h 0 min; give more or choose "
        "arms with --only",
        (
            "--budget",
            "1coreh",
        ): r"--budget 1coreh: one trial of each arm takes about 2 h 0 min of cores; give",
        ("--budget", "1gpuh"): r"--budget 1gpuh: this machine shows no GPU; give it in coreh or h",
        ("--budget", "2hours"): r"argument --budget: expected .*; did you mean 2h\?",
    }.items():
        assert command.main(arguments(file, "--serial", *words)) == 2
        printed = capsys.readouterr()
        assert re.match(f"error: {message}", printed.err.splitlines()[-1]), printed.err
        assert "starting" not in printed.out
    assert not [f for f in folders(file) if f.state().status == "running" or f.journal.exists()]


def test_a_dry_run_tells_what_a_budget_reaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise one learns what a budget is good for by spending it."""
    file = write(tmp_path, seeds="[0, 1, 2]")
    plant(file, HOUR)
    for text, reached in {
        "5coreh": "4 trials: mse (seed 0, 1), cosine (seed 0, 1) of 6",
        "5h": "4 trials: mse (seed 0, 1), cosine (seed 0, 1) of 6",
        "1d": "6 trials: mse (seed 0, 1, 2), cosine (seed 0, 1, 2) of 6",
        "10min": "0 trials of 6",
    }.items():
        assert command.main(arguments(file, "--serial", "--dry-run", "--budget", text)) == 0
        assert f"--budget {text}: reaches {reached} that are missing" in capsys.readouterr().out


def test_each_round_must_fit_into_what_is_left(tmp_path: Path) -> None:
    """Otherwise a budget is overdrawn by all that was underestimated, or a seed is begun and not ended."""
    file = write(tmp_path, seeds="[0, 1, 2]")
    plant(file, HOUR)
    sweep, root = load(file, sets=[*TINY, "optim.epochs=1"]), tmp_path / "out" / "trials"
    machine = machine_of(1)
    purse = Purse(Budget("5coreh", 5 * HOUR, "core"), machine)
    plan = Plan.read(sweep, root)
    todo = command.MISSING
    jobs = payable(plan, plan.missing(todo), purse)
    assert [(job.trial.arm, job.trial.seed) for job in jobs] == [("mse", 0), ("cosine", 0)]
    allowance = jobs[0].allowance
    assert allowance
    with purse.enforced(allowance, root, lambda: None):
        for job in jobs:
            folder = TrialFolder(root, job.trial.id)
            folder.create(job.trial.config)
            assert allowance.allows(folder)
            folder.update(status="failed", seconds=2 * HOUR)
    assert purse.left() == HOUR
    plan = Plan.read(sweep, root)
    assert plan.missing(todo)
    assert payable(plan, plan.missing(todo), purse) == []
    assert purse.told() == "4 core-hours of 5coreh"


def shares(root: Path, *needs: float) -> dict[str, Share]:
    for number in range(len(needs)):
        (root / f"t{number}").mkdir(parents=True)
    return {f"t{number}": Share(0.0, seconds, 1.0) for number, seconds in enumerate(needs)}


def test_a_trial_that_would_not_end_in_time_is_not_started(tmp_path: Path) -> None:
    """Otherwise the end of every budget is trials cut in two."""
    clock = Allowance(shares(tmp_path, 10.0, 1000.0), until=time.time() + 500.0)
    short, long = (TrialFolder(tmp_path, name) for name in ("t0", "t1"))
    assert (clock.allows(short), clock.allows(long)) == (True, False)
    assert Allowance.read(asdict(clock)) == clock, "as it travels to a worker"
    hours = Allowance(clock.shares, left=1005.0)
    assert hours.allows(long)
    short.update(status="running", seconds=1.0)
    assert not hours.allows(long), "what has begun takes what it needs"
    short.update(status="done", seconds=2.0)
    assert not hours.allows(long), "and what was refused stays refused"
    assert hours.allows(short)
    assert not hours.over(tmp_path)
    short.update(seconds=2000.0)
    assert hours.over(tmp_path)


def test_a_worker_leaves_a_trial_that_would_not_end(tmp_path: Path) -> None:
    """Otherwise the executor's queue, which starts trials later than planned, overdraws the budget."""
    file = write(tmp_path)
    trial: Trial = load(file, sets=TINY).trials[0]
    folder = TrialFolder(tmp_path / "trials", trial.id)
    folder.create(trial.config)
    allowance = Allowance({trial.id: Share(0.0, 100.0, 1.0)}, until=time.time() + 50.0)
    worker.run_here(trial.config, folder, [], lambda: False, None, allowance)
    assert (folder.state().status, folder.journal.exists()) == ("new", False)


def test_rounds_are_seeds_of_all_arms_baselines_too(tmp_path: Path) -> None:
    """Otherwise a budget ends with an arm of four seeds beside one of none."""
    file = write(tmp_path, seeds="[3, 1]", more="baselines: [raw_pixels]\n")
    sweep = load(file, sets=TINY)
    found = [[(t.arm, t.seed) for t in some] for some in rounds(sweep.trials, sweep.seeds)]
    assert found == [[(arm, seed) for arm in ("mse", "cosine", "raw_pixels")] for seed in (3, 1)]


def test_what_nobody_knows_the_cost_of_begins(tmp_path: Path) -> None:
    """Otherwise the first sweep of a machine cannot have a budget, as nothing was measured."""
    purse = Purse(Budget("1h", HOUR, "wall"), cost.Machine(1, 0))
    assert purse.fits(None)
    trial = load(write(tmp_path), sets=TINY).trials[0]
    allowance = purse.allowance([trial], None, tmp_path)
    assert allowance.allows(TrialFolder(tmp_path, trial.id))
    long_ago = time.monotonic() - 2 * HOUR
    assert not Purse(Budget("1h", HOUR, "wall"), cost.Machine(1, 0), began=long_ago).fits(None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_a_budget_stopped_ends_in_the_same_table(tmp_path: Path) -> None:
    """Otherwise who has no time for the whole sweep at once gets other results."""
    file = write(tmp_path)
    run(arguments(file, "--only", "mse", "--seeds", "0", "--serial"))
    plant(file, HOUR)  # so many that what really runs does not change the estimate
    printed = run(arguments(file, "--budget", "1.5coreh"), code=3)  # on Ray
    assert re.search(
        r"The budget is spent \(\S+ core-hours of 1\.5coreh\)\. Missing: 2 trials: mse \(seed 1\), ", printed
    )
    assert "2.00 core-hours (by like trials that are done). To go on:\n  python -m lmim.sweep" in printed
    assert "failed" not in printed
    lines = list(csv.DictReader((reported(file) / "table.csv").read_text().splitlines()))
    assert [(line["arm"], line["n"]) for line in lines] == [("mse", "1"), ("cosine", "1")], "balanced"
    run(arguments(file, "--serial"))

    (other := tmp_path / "other").mkdir()
    undisturbed = write(other)
    run(arguments(undisturbed, "--serial"))
    tables = [(reported(one) / "table.csv").read_text().splitlines() for one in (file, undisturbed)]
    first, second = (
        [{k: v for k, v in line.items() if "hours" not in k} for line in csv.DictReader(table)]
        for table in tables
    )
    assert first == second


@pytest.mark.slow
def test_what_runs_when_all_is_spent_is_kept(tmp_path: Path) -> None:
    """Otherwise a trial that takes longer than it was estimated to is lost, or overdraws the budget."""
    file = write(tmp_path, arms="[mse]", seeds="[0]")
    plant(file, 0.01, epochs=100_000)  # by these, the one takes a moment; it would take an hour
    words = arguments(file, "--serial", "--budget", "0.001coreh", epochs=100_000)
    steps = []
    for _ in range(2):
        printed = run(words, code=3)
        assert "Missing: 1 trial: mse (seed 0)" in printed
        (state,) = [s for f in folders(file) if (s := f.state()).steps == 200_000 and s.code]
        assert state.status == "interrupted"
        steps.append(state.step)
    assert 0 < steps[0] < steps[1]
