"""The batch script for Slurm: what it promises, with real Ray on two hosts under stubs of Slurm's words."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmim.trial.folder import TrialFolder
from tests.cluster.hosts import JOB, SCRIPT, Hosts, hosts, why_not
from tests.sweep.running import arguments, at_step, eventually, folders, run, write

PACED = """
import os, pathlib, time
from torch.nn import functional as F

GO, seen = pathlib.Path(os.environ["PACED_GO"]), 0

def paced(prediction, target):
    global seen
    seen += 1
    until = time.monotonic() + 2
    while seen > 12 and not GO.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return F.mse_loss(prediction, target)
"""
"""A loss that waits after some steps of a process, so that no machine is too fast for a test."""
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", ray.cluster_resources())
"""


def test_what_slurm_reads_of_it() -> None:
    """Otherwise a preempted job is lost, its log is overwritten, or one dead node ends the whole sweep."""
    words = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--requeue", "--no-kill", "--open-mode=append", "--signal=B:USR1@120"} <= set(words)


def test_shellcheck_finds_nothing() -> None:
    """Otherwise a word that is split or a variable that is empty ends a job of many nodes."""
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def sweep(folder: Path) -> Path:
    """A sweep file of two trials, one for each host."""
    (folder / "paced.py").write_text(PACED)
    return write(folder, arms='["paced.py:paced"]', seeds="[0, 1]")


def digits(file: Path) -> dict[str, Any]:
    """What each trial came to: all figures of its training and its evaluations but the clock's."""

    def figures(folder: TrialFolder) -> Any:
        rows = [
            (row.step, {name: value for name, value in row.metrics.items() if not name.startswith("system/")})
            for row in folder.rows()[0]
        ]
        return [row for row in rows if row[1]], {one.protocol: one.metrics for one in folder.results()}

    assert {folder.state().status for folder in folders(file)} == {"done"}
    return {folder.id: figures(folder) for folder in folders(file)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sweep comes to on one machine, a trial after the other."""
    file = sweep(tmp_path_factory.mktemp("serial"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACED_GO", str(file))
        run(arguments(file, "--serial", epochs=20))
    return digits(file)


@pytest.fixture
def two() -> Iterator[Hosts]:
    """Two hosts.

    Skips where none can be made, and says why.
    """
    if reason := why_not():
        pytest.skip(reason)
    with hosts() as found:
        yield found


def start(two: Hosts, file: Path) -> subprocess.Popen[str]:
    """The job, in the sweep's folder; its trials wait for the file `go`."""
    return two.submit(arguments(file, epochs=20), file.parent, PACED_GO=str(file.parent / "go"))


def finish(job: subprocess.Popen[str], code: int) -> str:
    """Wait for the end of the job; what it printed."""
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == code, printed
    return printed


def refused(two: Hosts, cwd: Path) -> None:
    """A stranger on the network, without the token or with another, does not get in."""
    port = 20000 + JOB % 10000
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    for extra in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        words = [sys.executable, "-c", STRANGER, f"10.77.0.1:{port}"]
        stranger = two.on(two.second, words, cwd, plain | {"RAY_TMPDIR": str(two.folder)} | extra)
        told, _ = stranger.communicate(timeout=120)
        assert stranger.returncode != 0
        assert "joined" not in told
        assert "auth" in told.lower(), told


def shown(token: str, two: Hosts, file: Path) -> list[str]:
    """Where a stranger on the hosts, or a reader of logs and results, could find the token."""
    lists = [Path(f"/proc/{pid}/{name}") for pid in two.pids() for name in ("cmdline", "environ")]
    written = [
        path
        for root in (two.folder, file.parent / "out")
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    found = []
    for path in [*lists, *written]:
        try:
            if token.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:  # it has ended, or is gone
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_on_two_hosts(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise a sweep on a cluster has other figures, lets strangers in, or leaves Ray on the nodes."""
    file = sweep(tmp_path)
    job = start(two, file)
    running = eventually(lambda: len(at_step(file, 5)) == 2 and at_step(file, 5), "both trials train")
    assert {state.host for state in running} == {two.first, two.second}
    private = tmp_path / f".lmim-{JOB}"
    token = private / "token"
    assert (private.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)
    ray = two.folder / two.first / f"ray-{JOB}"
    assert ray.stat().st_mode & 0o777 == 0o700, "sockets and logs are no other user's"
    assert not shown(token.read_text(), two, file)
    refused(two, tmp_path)
    (tmp_path / "go").touch()
    printed = finish(job, 0)
    assert "2 of 2 nodes" in printed
    assert digits(file) == expected
    assert not private.exists()
    assert not [*two.folder.glob(f"{two.first}/*"), *two.folder.glob(f"{two.second}/*")]
    eventually(lambda: not two.pids(), "no process is left on the hosts", 30)
    assert not (two.folder / "asked").exists(), "what is done is not queued again"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preempted_job_goes_on_in_its_next_allocation(
    two: Hosts, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Otherwise hours are lost each time that an allocation ends."""
    file = sweep(tmp_path)
    job = start(two, file)
    eventually(lambda: len(at_step(file, 5)) == 2, "both trials train")
    job.send_signal(signal.SIGUSR1)
    printed = finish(job, 130)
    assert "Stopping" in printed
    assert [folder.state().status for folder in folders(file)] == ["interrupted"] * 2
    steps = {folder.id: folder.state().step for folder in folders(file)}
    assert (two.folder / "asked").read_text() == f"requeue {JOB}\n"
    eventually(lambda: not two.pids(), "no process is left on the hosts", 30)

    job = start(two, file)
    (tmp_path / "go").touch()
    finish(job, 0)
    assert all(steps[folder.id] > 5 for folder in folders(file))
    assert digits(file) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_host_is_lost(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise one dead node ends the sweep, or its trial is lost with it."""
    file = sweep(tmp_path)
    job = start(two, file)
    eventually(lambda: len(at_step(file, 5)) == 2, "both trials train")
    two.cut()  # first, so that nothing is told to the head
    two.kill(two.second)
    (tmp_path / "go").touch()
    finish(job, 0)
    assert digits(file) == expected
    assert {folder.state().host for folder in folders(file)} == {two.first}
