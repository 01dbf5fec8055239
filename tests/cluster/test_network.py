"""A cluster that others have started, while a host joins it and while the wire between its hosts is cut."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.test_slurm import digits, expected, finish, sweep, two
from tests.sweep.running import arguments, at_step, eventually

__all__ = ["expected", "two"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HEAD = "10.77.0.1:6400"


def on(two: Hosts, name: str, words: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A process on a host, which knows its name."""
    named = ["unshare", "--uts", "bash", "-c", 'hostname "$0"; exec "$@"', name, *words]
    paced = {"PACED_GO": str(cwd / "go"), "RAY_TMPDIR": str(two.folder / name)}
    return two.on(name, named, cwd, two.environment() | paced)


def ray(two: Hosts, name: str, cwd: Path) -> None:
    """A host's part of the cluster, of one core; it goes with the hosts."""
    port = HEAD.rpartition(":")[2]
    where = ["--head", f"--port={port}"] if name == two.first else [f"--address={HEAD}"]
    address = "10.77.0.1" if name == two.first else "10.77.0.2"
    own = [f"--node-ip-address={address}", f"--temp-dir={two.folder / name / 'r'}", "--num-cpus=1"]
    on(two, name, ["ray", "start", "--block", "--disable-usage-stats", *where, *own], cwd)


def start(two: Hosts, file: Path, *more: str, nodes: int = 1) -> subprocess.Popen[str]:
    """The command, on the first host, once so many are part of the cluster."""
    words = arguments(file, "--address", HEAD, *more, epochs=20)

    def status() -> str:
        return on(two, two.first, ["ray", "status", f"--address={HEAD}"], file.parent).communicate()[0]

    eventually(lambda: status().count(" node_") >= nodes, "Ray")
    return on(two, two.first, ["python", "-m", "lmim.sweep", *words], file.parent)


def hosts_at_step(file: Path, step: int) -> set[str | None]:
    """Where the trials run that have passed a step."""
    return {state.host for state in at_step(file, step)}


def test_a_host_joins(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """A node that a queue gives an hour later would stand idle, or its trials have other figures."""
    file = sweep(tmp_path)
    ray(two, two.first, tmp_path)
    command = start(two, file)
    eventually(lambda: hosts_at_step(file, 5) == {two.first}, "a trial runs, and the other waits")
    ray(two, two.second, tmp_path)
    eventually(lambda: hosts_at_step(file, 5) == {two.first, two.second}, "the other runs on the new host")
    (tmp_path / "go").touch()
    finish(command, 0)
    assert digits(file) == expected


def test_the_wire_is_cut_for_a_while(two: Hosts, expected: dict[str, Any], tmp_path: Path) -> None:
    """A switch that restarts would cost the trials of half of the cluster, or have them run twice."""
    file = sweep(tmp_path)
    for name in (two.first, two.second):
        ray(two, name, tmp_path)
    command = start(two, file)
    eventually(lambda: hosts_at_step(file, 5) == {two.first, two.second}, "both trials train")
    two.cut()
    time.sleep(8.0)
    two.mend()
    (tmp_path / "go").touch()
    finish(command, 0)
    assert digits(file) == expected
