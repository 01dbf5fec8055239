"""One trial on two hosts: its processes placed by real Ray, and what becomes of it when one is killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster import test_network as network
from tests.cluster.hosts import Hosts, hosts, why_not
from tests.cluster.test_slurm import PACED, digits, finish
from tests.sweep.running import arguments, at_step, eventually, folders, run, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TWO = [
    *("--set", "run.processes=2", "--set", "run.placement=cluster", "--set", "run.device=cpu"),
    *("--set", "optim.batch_size=32", "--set", "optim.accumulate=2"),
]
"""Each host has one core, so that two processes must spread."""


def words(file: Path, *more: str) -> list[str]:
    """The arguments of a trial on two hosts."""
    return arguments(file, *TWO, *more, epochs=20)


def sweep(folder: Path) -> Path:
    """A sweep file of one trial, that is fine-tuned to be judged."""
    (folder / "paced.py").write_text(PACED)
    tuned = "evaluate: [knn, {finetune: {epochs: 1, batch_size: 32, recipe: plain}}]\n"
    return write(folder, arms='["paced.py:paced"]', seeds="[0]", more=tuned)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the trial comes to on one machine, with as many processes."""
    file = sweep(tmp_path_factory.mktemp("serial"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACED_GO", str(file))
        run(words(file, "--serial"))
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
    """The job, in the sweep's folder; its trial waits for the file `go`."""
    return two.submit(words(file), file.parent, PACED_GO=str(file.parent / "go"))


def replicas(two: Hosts, name: str) -> list[psutil.Process]:
    """The processes on a host that others' trials have placed there."""
    found = []
    for pid in two.pids(name):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            if "lmim.train.replica" in (one := psutil.Process(pid)).cmdline():
                found.append(one)
    return found


def placed(two: Hosts, file: Path, step: int) -> tuple[int, psutil.Process]:
    """The trial's own process and the other one, once it has passed a step on both hosts."""

    def both() -> tuple[int | None, str, psutil.Process] | None:
        for state in at_step(file, step):
            own, away = (two.first, two.second)[:: 1 if state.host == two.first else -1]
            others = replicas(two, away)
            if len(others) == 1 and state.pid in two.pids(own):  # else it is told of the one before
                return state.pid, own, others[0]
        return None

    pid, own, other = eventually(both, f"the trial passes step {step} on both hosts")
    assert not replicas(two, own)
    return pid, other


def listening(pid: int) -> dict[str, str]:
    """What listens on a process' host: socket to ADDRESS:PORT, as the kernel prints them."""
    files = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    rows = [line.split() for file in files for line in file.read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]": row[1] for row in rows if row[3] == "0A"}


def of(host: str) -> str:
    """An address as the kernel prints it."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


def test_a_trial_on_two_hosts(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise a model that no machine holds has other figures, or is exchanged on a public network."""
    file = sweep(tmp_path)
    job = start(two, file)
    first, other = placed(two, file, 5)
    for pid in (first, other.pid):
        held = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
        exchange = {place.split(":")[0] for opened, place in listening(pid).items() if opened in held}
        assert exchange
        assert exchange <= {of("10.77.0.1"), of("10.77.0.2")}
    host, _, port = other.environ()["LMIM_RENDEZVOUS"].rpartition(":")
    store = [place for place in listening(first).values() if int(place.split(":")[1], 16) == int(port)]
    assert store == [f"{of(host)}:{int(port):04X}"]
    (tmp_path / "go").touch()
    finish(job, 0)
    assert digits(file) == expected
    eventually(lambda: not two.pids(), "no process is left on the hosts", 100)


def test_a_process_is_killed_on_either_host(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise the others wait for it for ever, or hours are lost with it."""
    file = sweep(tmp_path)
    job = start(two, file)
    first, other = placed(two, file, 14)
    other.kill()
    eventually(lambda: first not in two.pids(), "the trial's own process ends too", 30)

    first, other = placed(two, file, 16)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(other.pid), "the other ends too", 30)

    _, other = placed(two, file, 18)
    worker = other.parent()
    assert worker is not None
    worker.kill()
    eventually(lambda: not psutil.pid_exists(other.pid), "a process whose worker was killed ends too", 30)

    (tmp_path / "go").touch()
    finish(job, 0)
    assert digits(file) == expected
    (folder,) = folders(file)
    told = (folder.path / "output.txt").read_text()
    assert told.count("process 1 of the trial was killed by SIGKILL; its checkpoint is kept") == 2


def test_a_host_is_lost_and_another_joins(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise the processes that are left wait for ever and nobody knows for what, or the trial is over."""
    file = sweep(tmp_path)
    for name in (two.first, two.second):
        network.ray(two, name, tmp_path)
    command = network.start(two, file, *TWO, nodes=2)
    placed(two, file, 5)
    two.cut()  # first, so that nothing is told to the head
    two.kill(two.second)
    assert command.stdout is not None
    told = (line for line in command.stdout if "a trial waits for a node" in line)
    assert "it asks for 2 x 1 cores" in next(told)
    two.mend()
    network.ray(two, two.second, tmp_path)
    (tmp_path / "go").touch()
    finish(command, 0)
    assert digits(file) == expected
