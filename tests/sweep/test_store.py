"""Sweeps whose results lie in an object store, by drivers and workers that share no disk."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lmim.analysis import load
from lmim.trial.folder import TrialFolder
from lmim.trial.store import Store
from tests.mlflow_server import new_database, serving
from tests.sweep.running import REPOSITORY, TINY, arguments, eventually, run, write
from tests.trial.object_store import URI, machine, s3_server

QUICK = """
import sys
from lmim.trial import store
store.LEASE_SECONDS, store.RENEW_SECONDS, store.PUSH_SECONDS, store.LOOK_SECONDS = 5.0, 0.2, 0.5, 0.5
from lmim.sweep.command import main
sys.exit(main(sys.argv[1:]))
"""
"""The command, with leases of seconds."""


SLOW = """
import os, time
from pathlib import Path

def slow(prediction, target):
    time.sleep(0.0 if Path(os.environ["GATE"]).exists() else 0.2)
    return (prediction - target).square().mean()
"""
"""A loss that takes its time until the gate is there."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    with s3_server() as found:
        for key, value in found.items():
            monkeypatch.setenv(key, value)
        yield


def slow(folder: Path) -> Path:
    """A sweep file of a trial that is slow until the gate is there."""
    (folder / "slow.py").write_text(SLOW)
    return write(folder, arms="[slow.py:slow]", seeds="[0]")


def words(file: Path, *more: str, epochs: int = 1) -> list[str]:
    """The command's arguments, with everything in the store."""
    sets = [word for setting in [*TINY, f"optim.epochs={epochs}"] for word in ("--set", setting)]
    return [str(file), "--out", URI, *sets, *more]


def driver(cache: Path, *words: str) -> subprocess.Popen[str]:
    """The command on a machine of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "LMIM_CACHE": str(cache)},
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a driver printed, when it is over."""
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == code, printed
    return printed


def trials(store: Store) -> list[TrialFolder]:
    store.refresh(patience=0.0)
    root = store.out / "trials"
    return [TrialFolder(root, path.name) for path in sorted(root.glob("[!.]*"))]


def figures(out: Path, uri: str | None = None) -> list[dict[str, object]]:
    """What a sweep's trials came to, as its report reads it."""
    (place,) = (out / "tiny").iterdir()
    rows = json.loads(load("tiny", place.name, out, uri).to_json(orient="records"))
    kinds = ("arm", "seed", "outcome", "collapse/", "eval/", "train/loss")
    return [{key: value for key, value in row.items() if key.startswith(kinds)} for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_two_drivers_want_the_same_trials(tmp_path: Path) -> None:
    """Each trial would be trained twice, or its journal hold the rows of two trainings.

    MLflow is a server's, as a team has it, which keeps its artifacts in the object store too.
    """
    file = write(tmp_path)
    run(arguments(file, "--serial"))
    with serving(tmp_path, new_database(tmp_path), "--artifacts-destination", "s3://bucket/mlflow") as mlflow:
        line = words(file, "--serial", "--tracking-uri", mlflow.uri)
        for process in [driver(tmp_path / name, *line) for name in "ab"]:
            ended(process)
        found = [figures(machine(tmp_path / name).out, mlflow.uri) for name in "ab"]
    here = figures(tmp_path / "out")
    assert here
    assert found == [here, here]
    kept = machine(tmp_path / "c").system[0].find("bucket/mlflow")
    assert [path for path in kept if path.endswith("/report.html")], kept
    made = trials(machine(tmp_path / "c"))
    assert len(made) == 4
    for folder in made:
        steps = [row.step for row in folder.rows()[0]]
        assert steps == sorted(steps)
        assert (folder.state().status, folder.state().rewinds) == ("done", 0), "each was trained once"


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_sweep_goes_on_where_a_machine_was_lost(tmp_path: Path) -> None:
    """What a machine had done would be gone with it, or what it held never be taken up."""
    file = slow(tmp_path)
    lost = driver(tmp_path / "a", *words(file, "--serial", epochs=300))
    here = machine(tmp_path / "b")
    try:
        eventually(lambda: [one for one in trials(here) if one.state().step > 2], "steps are in the store")
    finally:
        lost.kill()
        lost.communicate()
    (tmp_path / "gate").touch()
    (lost_at,) = (one.born() for one in trials(here))
    ended(driver(tmp_path / "b", *words(file, "--serial", epochs=300)))
    assert [one.born() for one in trials(here)] == [lost_at], "it went on, not anew"
    run(arguments(file, "--serial", epochs=300))
    assert figures(here.out) == figures(tmp_path / "out")


@pytest.fixture
def cluster(tmp_path: Path, server: None) -> Iterator[str]:
    """A cluster whose workers have another cache than the driver's: nothing but the store is shared."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1"),
            *(f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1"),
            *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir=/tmp/lm{os.getpid()}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "LMIM_CACHE": str(tmp_path / "worker")},
    )
    try:
        yield address
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
        head.wait()


@pytest.mark.slow
def test_a_cluster_that_shares_no_disk(cluster: str, tmp_path: Path) -> None:
    """Workers would look for the driver's files, and the driver for theirs."""
    file = slow(tmp_path)
    there, here = machine(tmp_path / "worker"), machine(tmp_path / "driver")
    line = words(file, "--address", cluster, epochs=300)
    first = driver(tmp_path / "driver", *line)
    eventually(
        lambda: any(TrialFolder(path.parent, path.name).state().step for path in there.out.glob("trials/*")),
        "a worker has made a step",
    )
    first.send_signal(signal.SIGTERM)
    assert "To go on:" in ended(first, 130)
    elsewhere = machine(tmp_path / "c")
    eventually(
        lambda: [one.state().status for one in trials(elsewhere)] == ["interrupted"],
        "the trial has saved and is in the store",
    )
    (tmp_path / "gate").touch()
    ended(driver(tmp_path / "driver", *line))
    run(arguments(file, "--serial", epochs=300))
    assert figures(here.out) == figures(tmp_path / "out")
    assert not any(path.name.startswith(".lmim-") for path in here.out.iterdir())
    left = here.system[0].find("bucket/results/stops") + here.system[0].glob("bucket/results/.lmim-*")
    assert left == [], "what Tune and the stop have left"
