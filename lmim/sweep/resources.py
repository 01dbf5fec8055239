"""What a machine or a cluster has, and what a trial takes of it."""

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmim.config import Config
from lmim.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What the machine, or the cluster, has for trials."""

    cpus: float
    gpus: float
    nodes: tuple["Resources", ...] = ()
    """Of a cluster: a trial runs on one of them, unless its `run.placement` is the cluster."""

    def share(
        self, config: Config, place: Callable[[str], str] = str, alone: bool = False
    ) -> dict[str, float]:
        """What a trial takes on a machine: all of it, or one process of those that the cluster spreads.

        `place` says where a key was set. `alone`: each process with a GPU to itself, or where there is none,
        and all are on one machine, all of its cores.

        Raises:
            UserError: it can never be met; Ray would wait for ever.
        """
        run = config.run
        on_cpu = run.device == "cpu" or (run.device == "auto" and not self.gpus)
        part = 1.0 if alone else run.gpu_share
        gpus, cpus = 0.0 if on_cpu else part * run.processes, float(run.cpus * run.processes)
        bundles = bundles_of(config)
        if alone and on_cpu and bundles == 1:
            cpus = float(math.floor(max(node.cpus for node in self.nodes or (self,))))
        if gpus > self.gpus:
            key = "run.processes" if run.processes > 1 else "run.device"
            less = "ask for fewer" if run.processes > 1 and self.gpus else "use --set run.device=cpu"
            raise UserError(
                f"{place(key)}: a trial asks for {gpus:g} GPUs, and {self.gpus:g} are found here; {less}, or "
                "name a cluster with --address"
            )
        if cpus > self.cpus:
            raise UserError(
                f"{place('run.cpus')}: a trial asks for {cpus:g} cores (run.cpus x run.processes), more than "
                f"the {self.cpus:g} found"
            )
        share = {"CPU": cpus / bundles, "GPU": gpus / bundles}
        if sum(node.room(share) for node in self.nodes or (self,)) < bundles:
            where = "one machine" if bundles == 1 else "as many machines as hold them whole"
            raise UserError(
                f"{place('run.processes')}: a trial asks for {gpus:g} GPUs and {cpus:g} cores on {where} "
                "of the cluster, and none has as many"
            )
        return share

    def room(self, share: Mapping[str, float]) -> int:
        """How many such shares fit on this machine."""
        has = {"CPU": self.cpus, "GPU": self.gpus}
        return min(math.floor(has[name] / much) for name, much in share.items() if much)


def bundles_of(config: Config) -> int:
    """In how many parts Ray places a trial."""
    return config.run.processes if config.run.placement == "cluster" else 1


def local_resources() -> Resources:
    """Cores that this process may use, and GPUs that it may see."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file() and (limit := quota.read_text().split())[0] != "max":
        cores = min(cores, max(1.0, int(limit[0]) // int(limit[1])))
    return Resources(cores, _local_gpus())


def _local_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    if not (tool := shutil.which("nvidia-smi")):
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=60)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
