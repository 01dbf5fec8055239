"""Two hosts on one machine, in network namespaces with addresses of their own, and what Slurm does there.

`srun` and `scontrol` are stubs that know the little that the batch script asks of them; all that they start
is real. The hosts share the file system, as a cluster's nodes do, and have each a folder of its own for Ray.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sweep.running import REPOSITORY

SCRIPT = REPOSITORY / "cluster" / "slurm" / "sweep.sbatch"
JOB = 4242
SRUN = """#!/usr/bin/env bash
# a task on each node of --nodelist; TERM is the end of them all, as Slurm has it
while [[ $1 == --* ]]; do
    case $1 in --nodelist=*) nodes=${1#*=} ;; esac
    shift
done
tasks=()
for node in ${nodes//,/ }; do
    SLURMD_NODENAME=$node SLURM_CPUS_ON_NODE=1 RAY_TMPDIR=$HOSTS/$node ip netns exec "$node" \\
        unshare --uts bash -c 'hostname "$0"; exec "$@"' "$node" "$@" &
    tasks+=($!)
done
trap 'kill -KILL "${tasks[@]}" 2> /dev/null' TERM
code=0
for task in "${tasks[@]}"; do
    wait "$task" || wait "$task" || code=$?
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") tr , '\\n' <<< "$3" ;;
    *) echo "$@" >> "$HOSTS/asked" ;;
esac
"""


def ip(*words: str) -> str:
    """What `ip` says.

    Raises:
        subprocess.CalledProcessError: it cannot do that.
    """
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60).stdout


def why_not() -> str:
    """Why no namespace can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need `ip` (iproute2)"
    name = f"lm{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {error.stderr.strip()}"
    return ""


@dataclass(frozen=True)
class Hosts:
    """Two of them, connected to each other and to nothing else; named as their namespaces are."""

    folder: Path
    """With `bin`, the stubs, and a folder for each host's Ray. Its path is short, as those of sockets are."""
    first: str
    second: str

    def pids(self, *names: str) -> list[int]:
        """The processes on these hosts, or on both."""
        return [
            int(pid)
            for name in names or (self.first, self.second)
            for pid in ip("netns", "pids", name).split()
        ]

    def environment(self) -> dict[str, str]:
        """What a batch script is started with."""
        path = os.pathsep.join(
            [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        slurm = {"SLURM_JOB_ID": str(JOB), "SLURM_JOB_NODELIST": f"{self.first},{self.second}"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return kept | slurm | {"PATH": path, "HOSTS": str(self.folder), "PYTHONPATH": str(REPOSITORY)}

    def submit(self, words: Sequence[str], cwd: Path, **more: str) -> subprocess.Popen[str]:
        """The batch script on the first host, as Slurm runs it: a copy of it, in the folder of the sbatch."""
        spooled = shutil.copy(SCRIPT, self.folder / "slurm_script")
        return self.on(self.first, ["bash", str(spooled), *words], cwd, self.environment() | more)

    def on(
        self, name: str, words: Sequence[str], cwd: Path, environment: dict[str, str]
    ) -> subprocess.Popen[str]:
        """A process on a host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", name, *words],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut(self) -> None:
        """Cut the wire between them."""
        ip("-n", self.second, "link", "set", "wire", "down")

    def mend(self) -> None:
        """Join it again."""
        ip("-n", self.second, "link", "set", "wire", "up")

    def kill(self, *names: str) -> None:
        """End all processes on these hosts, or on both, at once."""
        for pid in self.pids(*names):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def hosts() -> Iterator[Hosts]:
    """Two hosts, that go with all that runs there."""
    folder = Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    found = Hosts(folder, f"lm{os.getpid()}a", f"lm{os.getpid()}b")
    addresses = {found.first: "10.77.0.1", found.second: "10.77.0.2"}
    names = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
    try:
        (folder / "bin").mkdir()
        for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)
        for name in addresses:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            (folder / name).mkdir()
            Path("/etc/netns", name).mkdir(parents=True)
            Path("/etc/netns", name, "hosts").write_text(names)
        ip(
            "link",
            "add",
            "wire",
            "netns",
            found.first,
            "type",
            "veth",
            "peer",
            "name",
            "wire",
            "netns",
            found.second,
        )
        for name, address in addresses.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        yield found
    finally:
        for name in addresses:
            with contextlib.suppress(subprocess.CalledProcessError):
                found.kill(name)
                ip("netns", "delete", name)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
        with contextlib.suppress(OSError):  # where it holds nothing else
            Path("/etc/netns").rmdir()
        shutil.rmtree(folder, ignore_errors=True)
