"""The command, from the command line: planning, real Ray sweeps, kills, and what bad input gets."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from lmim.config import Config
from lmim.errors import UserError
from lmim.plan.ablation import load
from lmim.sweep import command
from lmim.sweep.executors import Resources
from lmim.sweep.standing import standing
from lmim.trial.folder import State, TrialFolder

REPOSITORY = Path(__file__).parents[2]
TINY = [
    *("data.name=digits", "data.image_size=8", "data.train_images=128", "encoder.patch_size=2"),
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "projector.width=16", "projector.depth=1"),
    *("decoder.width=16", "decoder.depth=1", "decoder.heads=2", "optim.batch_size=64"),
    *("evaluate.every_epochs=1000", "run.log_every=1", "run.checkpoint_seconds=0.0"),
]


def write(folder: Path, name: str = "tiny", arms: str = "[mse, cosine]", seeds: str = "[0, 1]") -> Path:
    """A sweep file of small trials."""
    file = folder / f"{name}.yaml"
    file.write_text(
        f"name: {name}\nquestion: does it run?\naxes: {{loss: {arms}}}\nseeds: {seeds}\nmetric: knn_top1\n"
    )
    return file


def arguments(file: Path, *more: str, epochs: int = 1) -> list[str]:
    """The command's arguments for tiny trials, with everything under the file's folder."""
    sets = [word for setting in [*TINY, f"optim.epochs={epochs}"] for word in ("--set", setting)]
    return [str(file), "--out", str(file.parent / "out"), *sets, *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "LMIM_CACHE": str(Path(words[0]).parent / "cache"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lmim.sweep", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=Path(words[0]).parent,
    )


def run(words: list[str]) -> str:
    """Run the command to its end; what it printed."""
    process = start(words)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    return printed


def eventually(holds: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait for something true, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def folders(file: Path) -> list[TrialFolder]:
    """The trials' folders beside a sweep file."""
    root = file.parent / "out" / "trials"
    return [TrialFolder(root, path.name) for path in sorted(root.glob("*"))] if root.is_dir() else []


def at_step(file: Path, step: int) -> list[State]:
    """States of the trials that run and have passed a step."""
    states = [standing(folder) for folder in folders(file)]
    return [state for state in states if state.status == "running" and state.step > step]


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that nobody has reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
    assert (file.parent / "out" / "tiny" / "demo" / "report.html").is_file()
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
    begun = time.monotonic()
    printed = run(arguments(file))
    assert time.monotonic() - begun < 10
    assert "nothing is missing" in printed
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
    assert [set(row) for row in rows] == [{"id", "arm", "seed", "config", "status"}] * 4
    assert {(row["arm"], row["seed"]): row["status"] for row in rows} == {
        ("mse", 0): "done",
        ("cosine", 0): "done",
        ("mse", 7): "new",
        ("cosine", 7): "new",
    }
    assert all(Config.model_validate(row["config"]).identity == row["id"] for row in rows)


def test_a_dry_run_estimates_the_cost(swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise one learns what a sweep costs by paying it."""
    file, _ = swept
    assert command.main(arguments(file, "--dry-run", "--seeds", "5")) == 0
    assert re.search(r"cost of what is missing: \d+ s", capsys.readouterr().out)


CLUSTER = """
import sys
from pathlib import Path
from lmim.sweep.executors import Stop, on_ray
root = Path(sys.argv[1])
with on_ray(root / "trials", Stop(root / "stop"), None, None, False):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    ray.get(ray.remote(lambda: 1).remote())
    print("worked", flush=True)
    sys.stdin.read()
"""
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", ray.cluster_resources())
"""


def test_the_cluster_lets_no_stranger_in(tmp_path: Path) -> None:
    """Otherwise anyone on the network, or another user of the host, runs code as the user of a sweep."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(tmp_path)], stdin=pipe, stdout=pipe, text=True, env=environment
    )
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert cluster.stdout.readline() == "worked\n"
        processes = [psutil.Process(cluster.pid), *psutil.Process(cluster.pid).children(recursive=True)]
        listening = [
            (process.name(), socket.laddr.ip)
            for process in processes
            for socket in process.net_connections("inet")
            if socket.status == psutil.CONN_LISTEN
        ]
        assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
        assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
        plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        plain["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or it would not even look on the loopback
        for extra in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            stranger = subprocess.run(
                [sys.executable, "-c", STRANGER, address],
                capture_output=True,
                text=True,
                env=plain | extra,
                timeout=60,
                check=False,
            )
            assert stranger.returncode != 0
            assert "joined" not in stranger.stdout
            assert "auth" in stranger.stderr.lower(), stranger.stderr
    finally:
        cluster.communicate(timeout=60)
    assert cluster.returncode == 0


def test_a_sweep_survives_every_kill(tmp_path: Path) -> None:
    """Otherwise hours of training are lost to Ctrl-C, to the out-of-memory killer or to a lost machine."""
    file = write(tmp_path, seeds="[0]")
    words = arguments(file, epochs=300)

    # Ctrl-C: stops within seconds, says how to go on
    process = start(words)
    eventually(lambda: len(at_step(file, 5)) == 2, "both trials train")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 15
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
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    for folder in folders(file):
        state = folder.state()
        assert state.status == "done"
        trained = [row.step for row in folder.rows()[0] if "train/lr" in row.metrics]
        assert trained == list(range(1, state.steps + 1)), "no step is missing and none is there twice"


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
        assert [found.data.metrics["eval/knn_top1"] for found in runs] == [
            folder.state().metrics["eval/knn_top1"]
        ]


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
    assert command.main([*arguments(write(tmp_path)), *more]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert not list(tmp_path.glob("out/trials/*"))


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    """Otherwise a dry run takes seconds instead of a blink."""
    code = (
        "import sys; from lmim.sweep import main\n"
        f"assert main([{str(write(tmp_path))!r}, '--dry-run']) == 0\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    assert printed.stdout.splitlines()[-1] == "[]"


def test_a_part_of_a_gpu_is_asked_for_where_there_is_one() -> None:
    """Otherwise trials do not share a GPU, or wait for ever for one."""
    found = Resources(cpus=8, gpus=1)
    quarter = Config.model_validate({"run": {"gpus": 0.25}})
    assert found.share(quarter) == {"CPU": 1.0, "GPU": 0.25}
    assert Resources(cpus=8, gpus=0).share(quarter) == {"CPU": 1.0, "GPU": 0.0}
    with pytest.raises(UserError, match=r"run\.device: a trial asks for 0\.25 GPUs, and 0 are found here"):
        Resources(cpus=8, gpus=0).share(Config.model_validate({"run": {"device": "cuda", "gpus": 0.25}}))


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
            folder.update(status="done", outcome="diverged", commit="c", dataset_version="d")
    assert command.main(arguments(file)) == 1
    assert "2 trials wait for the winner" in capsys.readouterr().out
