"""The command, from the command line: planning, real Ray sweeps, kills, and what bad input gets."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from lmim.config import Config
from lmim.plan.ablation import load
from lmim.sweep import command
from lmim.sweep.executors import Job
from lmim.sweep.standing import Plan
from lmim.trial.code import code_digest
from lmim.trial.folder import TrialFolder
from tests.mlflow_server import new_database, serving
from tests.sweep.running import (
    REPOSITORY,
    TINY,
    alive,
    arguments,
    at_step,
    eventually,
    folders,
    reported,
    run,
    start,
    write,
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of four trials run on Ray, and what it printed."""
    file = write(tmp_path_factory.mktemp("swept"))
    return file, run(arguments(file))


def test_a_ray_sweep_runs_every_trial_and_reports(swept: tuple[Path, str]) -> None:
    """Otherwise the main command does not do its job: trials, MLflow, table, report."""
    file, printed = swept
    assert [folder.state().status for folder in folders(file)] == ["done"] * 4, printed
    database = file.parent / "out" / "mlflow.db"
    assert f"mlflow ui --backend-store-uri sqlite:///{database}" in printed
    assert (reported(file) / "report.html").is_file()
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [found for found in runs if "mlflow.parentRunId" in found.data.tags]
    assert {found.data.tags["lmim.trial_id"] for found in children} == {folder.id for folder in folders(file)}
    assert all(
        found.info.status == "FINISHED" and "eval/knn_top1" in found.data.metrics for found in children
    )


def test_nothing_is_left_behind(swept: tuple[Path, str]) -> None:
    """Otherwise every sweep litters the results folder, or leaves processes that hold memory."""
    file, _ = swept
    assert not [path for path in (file.parent / "out").iterdir() if path.name.startswith(".")]
    pids = [state.pid for state in (folder.state() for folder in folders(file)) if state.pid]
    assert len(set(pids)) == 4, "each trial has a process of its own"
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_second_run_finds_nothing_missing(swept: tuple[Path, str]) -> None:
    """Otherwise people wait, or train again what they have."""
    file, _ = swept
    before = {folder.id: folder.state() for folder in folders(file)}
    printed = run(arguments(file))
    assert "nothing is missing" in printed
    assert "starting Ray" not in printed
    assert {folder.id: folder.state() for folder in folders(file)} == before


def test_a_new_seed_runs_alone(swept: tuple[Path, str]) -> None:
    """Otherwise widening a finished sweep costs it all again, or hides what was done before."""
    file, _ = swept
    before = {folder.id: folder.state() for folder in folders(file)}
    printed = run(arguments(file, "--seeds", "2", "--only", "mse", "--serial"))
    after = {folder.id: folder.state() for folder in folders(file)}
    assert len(after) == 5, printed
    assert {key: after[key] for key in before} == before
    # the report holds what was there before, and says what is not
    assert re.search(r"^mse .*\b3\b.*\ncosine .*\b2\b", printed, re.MULTILINE), printed
    assert "not run  1 trial: cosine (seed 2)" in printed


def test_the_plan_as_json(swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise scripts that read the plan break."""
    file, _ = swept
    assert command.main(arguments(file, "--dry-run", "--json", "--seeds", "0,7")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [set(row) for row in rows] == [
        {*["id", "arm", "seed", "config", "status", "error", "excluded", "metrics"]}
    ] * 4
    assert {(row["arm"], row["seed"]): row["status"] for row in rows} == {
        ("mse", 0): "done",
        ("cosine", 0): "done",
        ("mse", 7): "new",
        ("cosine", 7): "new",
    }
    assert all(Config.read(row["config"]).identity == row["id"] for row in rows)


def test_the_results_as_json(swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise a script must open the report's files to know what came out."""
    file, _ = swept
    text = file.read_text()
    file.write_text(f"{text}claims: [mse > cosine]\n")
    assert command.main(arguments(file, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [0 < row["metrics"]["eval/knn_top1"] <= 100 for row in found["trials"]] == [True] * 4
    (verdict,) = found["verdicts"]
    assert (verdict["claim"], verdict["n"], verdict["post_hoc"]) == ("mse > cosine", 2, True)
    file.write_text(text)


def test_a_file_of_the_same_name_is_refused(
    swept: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise it overwrites the other's report, and its trials stand among the other's in MLflow."""
    file, _ = swept
    other = write(tmp_path, arms="[mse]")
    words = arguments(other, "--out", str(file.parent / "out"))
    for more in (["--dry-run"], ["--serial"]):
        assert command.main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert f"{other}:1: name: " in error
        assert f"holds the results of {file}, which is named tiny too" in error


def test_a_dry_run_estimates_the_cost(swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise one learns what a sweep costs by paying it."""
    file, _ = swept
    assert command.main(arguments(file, "--dry-run", "--seeds", "5")) == 0
    assert re.search(r"cost of what is missing: \d+ s", capsys.readouterr().out)


def test_an_arm_that_is_another_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise a row that was asked for is missing, without a word."""
    file = write(tmp_path, arms="[mse, {kind: mse}]")
    assert command.main(arguments(file, "--dry-run")) == 0
    assert "note: mse again: the same config as mse, so one arm\n" in capsys.readouterr().out


def untouched(folder: TrialFolder) -> tuple[Any, ...]:
    """What another training would change."""
    files = [folder.journal, folder.checkpoint, folder.path / "state.json"]
    return tuple((file.read_bytes(), file.stat().st_mtime_ns) for file in files)


def test_a_protocol_that_is_added_trains_nothing(
    swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise one more column in the table costs the whole sweep again."""
    file, _ = swept
    before = {folder.id: untouched(folder) for folder in folders(file)}
    file.write_text(file.read_text() + "evaluate: [nn, knn, linear, {knn: {k: 3}}]\n")
    assert command.main(arguments(file, "--dry-run")) == 0
    assert len(re.findall(r"^ *(mse|cosine) +[01] +to judge", printed := capsys.readouterr().out, re.M)) == 4
    assert "4 to judge" in printed
    run(arguments(file, "--serial"))
    assert {folder.id: untouched(folder) for folder in folders(file)} == before
    with (reported(file) / "table.csv").open() as table:
        rows = list(csv.DictReader(table))
    figures = {row["arm"]: float(row["eval/knn_top1.k3"]) for row in rows}
    assert figures.keys() == {"mse", "cosine"}
    assert all(10 < figure <= 100 for figure in figures.values()), "beyond chance"


OWN_LOSS = """
from lmim.variants import Positive

def huber2(prediction, target, *, scale: Positive = 1.0):
    return (prediction - target).abs().clamp(max=scale).mean()

def broken(prediction, target):
    return prediction.no_such_method()
"""
OWN_PROTOCOL = """
from pathlib import Path
from lmim.variants import Positive

METRICS = {"half": {"label": "half", "better": "higher"}}

def half(frozen, *, of: Positive = 1.0):
    if not Path("ready").exists():
        raise ValueError("not ready")
    return {"half": of / 2}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep with a loss and a protocol of the user's own, both of which have their failures, run on Ray."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_losses.py").write_text(OWN_LOSS)
    (folder / "my_protocols.py").write_text(OWN_PROTOCOL)
    arms = "[mse, 'my_losses.py:huber2', 'my_losses.py:broken']"
    file = write(folder, "own", arms, "[0]", "evaluate: [knn, 'my_protocols.py:half']\n")
    return file, run(arguments(file), code=1)


def by_arm(file: Path) -> dict[str, TrialFolder]:
    return {folder.config().section("loss").kind.rpartition(":")[2]: folder for folder in folders(file)}


def test_a_loss_of_ones_own_is_swept_like_any_other(own: tuple[Path, str]) -> None:
    """Otherwise a new loss must be written into the package; or its failure leaves one searching."""
    file, printed = own
    trials = by_arm(file)
    assert trials.keys() == {"mse", "huber2", "broken"}
    assert (trials["huber2"].path / "sources" / "my_losses.py").read_text() == OWN_LOSS
    state = trials["huber2"].state()
    assert (state.status, state.step) == ("done", state.steps)
    (judged,) = (one for one in trials["huber2"].results() if one.protocol == "knn")
    assert judged.metrics["eval/knn_top1"] > 10.0
    failed = trials["broken"].state()
    assert failed.status == "failed"
    error = "AttributeError: 'Tensor' object has no attribute 'no_such_method' (my_losses.py:8)"
    assert failed.error == error
    assert error in printed


def test_a_protocol_that_raises_is_a_failure_that_costs_no_training(
    own: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a broken protocol passes for a result, or to mend its cause trains everything again."""
    file, printed = own
    trials = by_arm(file)
    line = "ValueError: not ready (my_protocols.py:9)"
    for arm in ("mse", "huber2"):
        assert re.search(rf"failed: \S*{arm} seed 0 .*{re.escape(line)}", printed), printed
        assert [bool(one.error) for one in trials[arm].results()] == [True, False]
    before = {arm: untouched(trials[arm]) for arm in ("mse", "huber2")}
    (file.parent / "ready").touch()
    monkeypatch.chdir(file.parent)
    assert command.main(arguments(file, "--serial")) == 1
    assert "ValueError: not ready" in capsys.readouterr().out, "it is judged again only when asked"
    assert command.main(arguments(file, "--serial", "--retry-failed")) == 1
    printed = capsys.readouterr().out
    assert "not ready" not in printed
    assert "no_such_method" in printed
    assert {arm: untouched(trials[arm]) for arm in ("mse", "huber2")} == before
    for arm in ("mse", "huber2"):
        (found,) = (one for one in trials[arm].results() if one.protocol == "my_protocols.py:half")
        assert found.metrics == {"eval/half": 0.5}


def test_slurms_warning_stops_a_sweep(tmp_path: Path) -> None:
    """Otherwise SIGUSR1 ends the command at once, and the steps since the last checkpoint are lost."""
    file = write(tmp_path, arms="[mse]", seeds="[0]")
    process = start(arguments(file, "--serial", "--set", "run.checkpoint_seconds=1000.0", epochs=3000))
    eventually(lambda: at_step(file, 5), "the trial trains")
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    (folder,) = folders(file)
    assert folder.state().status == "interrupted"
    assert folder.checkpoint.is_file()


def test_a_password_of_mlflow_is_told_to_nobody(tmp_path: Path) -> None:
    """Otherwise who reads a log, a report or MLflow's pages may write to the server."""
    file = write(tmp_path, arms="[mse]", seeds="[0]")
    served = tmp_path / "served"
    served.mkdir()
    with serving(served, new_database(served)) as server:
        printed = run(
            arguments(file, "--serial", "--tracking-uri", server.uri.replace("://", "://me:s3cr3t@"))
        )
    assert server.uri in printed
    assert "s3cr3t" not in printed
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"server.db", "report.html", "config.json"} <= {path.name for path in kept}
    assert not [path for path in kept if b"s3cr3t" in path.read_bytes()]


def planned(tmp_path: Path) -> tuple[Plan, list[Job], TrialFolder]:
    """A sweep of one trial that has failed, as its command sees it."""
    file = write(tmp_path, arms="[mse]", seeds="[0]", more="evaluate: [knn]\n")
    sweep = load(file, sets=TINY)
    (trial,) = sweep.trials
    folder = TrialFolder(tmp_path / "out" / "trials", trial.id)
    folder.create(trial.config)
    folder.update(status="failed", error="killed")
    plan = Plan.read(sweep, folder.root)
    return plan, plan.missing(["failed"]), folder


def test_two_that_retry_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Otherwise a trial that another command has begun to run again counts as interrupted."""
    plan, jobs, folder = planned(tmp_path)
    with folder.lock():
        folder.update(status="running", error=None)
        command._prepare(jobs, plan)
        assert folder.state().status == "running"
    folder.update(status="done")
    command._prepare(jobs, plan)
    assert folder.state().status == "done"
    folder.update(status="failed", error="killed")
    command._prepare(jobs, plan)
    assert (folder.state().status, folder.state().error) == ("interrupted", None)


def test_a_trial_that_is_preempted_while_judged_is_judged_again_but_not_for_ever(tmp_path: Path) -> None:
    """Otherwise two preemptions are a failure, or a protocol that kills its worker runs in a circle."""
    plan, jobs, folder = planned(tmp_path)
    folder.update(status="done", error=None, step=3)
    begun = {folder.id: folder.state()}
    for rounds in range(1, 4):
        command._close(jobs, plan.root, begun, {folder.id: rounds})
        plan = Plan.read(plan.sweep, plan.root)
        assert [trial.id for trial in plan.where("trained")] == [folder.id]
    command._close(jobs, plan.root, begun, {folder.id: 4})
    stands = Plan.read(plan.sweep, plan.root).states[folder.id]
    assert (stands.status, stands.error) == ("failed", "knn: no result in 4 rounds")
    assert folder.state().status == "done", "it is trained"


PACED = """
import pathlib, time
from torch.nn import functional as F

GO, seen = pathlib.Path({go!r}), 0

def paced(prediction, target):
    global seen
    seen += 1
    until = time.monotonic() + 2
    while seen > 12 and not GO.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return F.mse_loss(prediction, target)

def paced_too(prediction, target):
    return paced(prediction, target) * 2
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_survives_every_kill(tmp_path: Path) -> None:
    """Otherwise hours of training are lost to Ctrl-C, to the out-of-memory killer or to a lost machine."""
    # a loss that waits after some steps of a process, so that no machine is too fast to be killed in time
    go = tmp_path / "go"
    (tmp_path / "paced.py").write_text(PACED.format(go=str(go)))
    file = write(tmp_path, arms='["paced.py:paced", "paced.py:paced_too"]', seeds="[0]")
    words = arguments(file, epochs=150)

    # Ctrl-C: stops within seconds, says how to go on
    process = start(words)
    eventually(lambda: len(at_step(file, 5)) == 2, "both trials train")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert printed.index("Stopping") < printed.index(f"python -m lmim.sweep {file}")
    states = [folder.state() for folder in folders(file)]
    assert [state.status for state in states] == ["interrupted"] * 2
    steps = min(state.step for state in states)

    # again: a trial's process, then its worker, then the driver die by SIGKILL
    process = start(words)
    first = eventually(lambda: at_step(file, steps + 5), "the trials go on from their checkpoints")[0]
    os.kill(first.pid, signal.SIGKILL)
    second = eventually(
        lambda: [s for s in at_step(file, first.step) if s.pid != first.pid and s.started == first.started],
        "a trial whose process died goes on",
    )[0]
    worker = psutil.Process(second.pid).parent().parent()
    assert worker.name().startswith("ray::")
    worker.kill()
    third = eventually(
        lambda: [
            s for s in at_step(file, second.step) if s.pid != second.pid and s.started == second.started
        ],
        "a trial whose worker died goes on",
    )[0]
    family = psutil.Process(process.pid).children(recursive=True)
    # two of Ray's own agents look for its server for a minute before they go
    ours = [one for one in family if "Agent" not in " ".join(one.cmdline())]
    assert third.pid in [one.pid for one in ours]
    process.kill()
    process.wait()
    eventually(lambda: not any(alive(one) for one in ours), "no process outlives the driver for long", 30)
    assert [folder.state().status for folder in folders(file)] == ["interrupted"] * 2, "all was saved"
    assert not any(folder.locked() for folder in folders(file))

    # and to the end, though a scheduler preempts a trial on the way
    process = start(words)
    fourth = eventually(lambda: at_step(file, third.step + 1), "the trials go on")[0]
    os.kill(fourth.pid, signal.SIGUSR1)
    go.touch()
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    for folder in folders(file):
        state = folder.state()
        assert state.status == "done"
        trained = [row.step for row in folder.rows()[0] if "train/lr" in row.metrics]
        assert trained == list(range(1, state.steps + 1)), "no step is missing and none is there twice"


@pytest.mark.slow
def test_two_sweeps_at_once_train_a_shared_cell_once(tmp_path: Path) -> None:
    """Otherwise the base cell of every ablation is paid for again, or two processes spoil one folder."""
    files = [write(tmp_path, "one", "[mse]", "[0]"), write(tmp_path, "two", "[mse]", "[0]")]
    processes = [start(arguments(file, "--serial", epochs=60)) for file in files]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (folder,) = folders(files[0])
    trained = [row.step for row in folder.rows()[0] if "train/lr" in row.metrics]
    assert trained == list(range(1, folder.state().steps + 1))
    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    for name in ("one", "two"):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], f"tags.`lmim.trial_id` = '{folder.id}'")
        (figure,) = (one.metrics["eval/knn_top1"] for one in folder.results() if one.protocol == "knn")
        assert [found.data.metrics["eval/knn_top1"] for found in runs] == [figure]


def test_failed_trials_are_named_and_run_again_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a failure hides behind exit code 0, or costs its time at every run."""
    file = write(tmp_path, arms="[mse]", seeds="[0]")
    (trial,) = load(file, sets=[*TINY, "optim.epochs=1"]).trials
    folder = TrialFolder(tmp_path / "out" / "trials", trial.id)
    folder.create(trial.config)
    folder.update(status="failed", error="OutOfMemoryError: too large")
    assert command.main(arguments(file)) == 1
    assert "failed: mse seed 0" in (printed := capsys.readouterr().out)
    assert "OutOfMemoryError: too large" in printed
    assert command.main(arguments(file, "--serial", "--retry-failed")) == 0
    assert folder.state().status == "done"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--seeds", "one"], "--seeds"),
        (["--seeds", "0,-1"], "--seeds"),
        (["--max-concurrent", "0"], "--max-concurrent"),
        (["--serial", "--address", "local"], "not allowed"),
        (["--no-such-option"], "--no-such-option"),
        (["--only", "msee"], "mse"),
        (["--set", "optim.epoch=1"], "optim.epochs"),
        (["--scale", "dmo"], "demo"),
        (["--set", "run.device=cuda"], "run.device"),
        (["--set", "run.cpus=100000"], "run.cpus"),
        (["--set", "encoder.heads=7"], "encoder.heads"),
    ],
)
def test_bad_arguments_get_one_line_and_exit_code_2(
    more: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a typing error ends in a traceback, or a sweep waits for ever for what is not there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    load(write(tmp_path), sets=TINY)  # data that are seen for the first time have a line of their own
    capsys.readouterr()
    assert command.main([*arguments(write(tmp_path)), *more]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert not list(tmp_path.glob("out/trials/*"))


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (
            ["data.name=imagefolder", "data.path=nowhere"],
            "error: --set data.path=nowhere: data.path: nowhere is not",
        ),
        (
            ["run.device=cuda"],
            "error: --set run.device=cuda: run.device: a trial asks for 0.1 GPUs, and 0 are found",
        ),
        (["run.cpus=100000"], "error: --set run.cpus=100000: run.cpus: a trial asks for 100000 cores"),
    ],
)
def test_a_dry_run_checks_what_the_run_checks(
    sets: list[str],
    expected: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a plan looks sound, with its cost, for data or a GPU that are not there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = arguments(write(tmp_path)) + [word for one in sets for word in ("--set", one)]
    assert command.main(words) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(expected)
    assert command.main([*words, "--dry-run"]) == 2
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1] == line
    assert "4 to do; cost of what is missing: " in printed.out, (
        "whoever plans for another machine sees the price"
    )


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    """Otherwise a dry run takes seconds instead of a blink."""
    code = (
        "import sys; from lmim.sweep.command import main\n"
        f"assert main({arguments(write(tmp_path), '--dry-run')!r}) == 0\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == "[]"


def test_a_ladder_without_a_winner_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise its later stages are never run, and the command calls that nothing missing."""
    file = tmp_path / "ladder.yaml"
    file.write_text(
        "name: ladder\ndesign: ladder\nmetric: knn_top1\n"
        "stages:\n  - axes: {loss: [mse, cosine]}\n  - axes: {loss.tau: [1, 2]}\n"
    )
    plan = load(file, sets=[*TINY, "optim.epochs=1"])
    for trial in plan.trials:
        if not trial.provisional:
            folder = TrialFolder(tmp_path / "out" / "trials", trial.id)
            folder.create(trial.config)
            folder.update(status="done", outcome="diverged", code=code_digest())
    assert command.main(arguments(file)) == 1
    assert "the winner of a stage or of a search waits for it" in capsys.readouterr().out


JUMPING = """
import itertools, time
now, calls = time.time, itertools.count()
time.time = lambda: now() + 86_400 * (next(calls) // 7 % 3 - 1)
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """A clock that is set, or a host that wakes, would end a budget, or have a trial taken for dead."""
    file = write(tmp_path, seeds="[0]")
    run(arguments(file, "--serial"))
    undisturbed = table_of(file)
    (jumping := tmp_path / "jumping").mkdir()
    (jumping / "sitecustomize.py").write_text(JUMPING)
    other = write(jumping, seeds="[0]")
    paths = os.pathsep.join([str(jumping), str(REPOSITORY)])
    command = [sys.executable, "-m", "lmim.sweep", *arguments(other, "--serial", "--budget", "3h")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(abs(row.time - time.time()) for one in folders(other) for row in one.rows()[0]) > 80_000
    assert table_of(other) == undisturbed
    assert all(one.state().seconds < 3600 for one in folders(other))


def table_of(file: Path) -> list[dict[str, str]]:
    """A sweep's table, without what depends on the machine's pace."""
    with (reported(file) / "table.csv").open() as lines:
        return [{k: v for k, v in line.items() if "hours" not in k} for line in csv.DictReader(lines)]
