"""Trials that run at the same time, timed: real steps of a config in several processes for a few seconds.

`lmim.bench` uses it for its records, and a sweep whose `run.gpus` is auto for its choice (see `packing.py`):
`python -m lmim.sweep.crowd` reads a question on stdin and prints what it measured.
"""

import contextlib
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import psutil
import torch

from lmim.config import Config, merge
from lmim.data import Dataset
from lmim.data.reading import set_num_threads
from lmim.errors import out_of_memory
from lmim.sweep.packing import NEAR, Measured, fits
from lmim.train.loop import Run, choose_device, open_planned

Json = dict[str, Any]
MIB = 2**20
SECONDS = 4.0
"""What each number of processes is timed for."""


class Steps:
    """A run of the trainer, fed and timed."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.device = torch.device(config.run.device)
        torch.set_num_threads(config.run.threads)
        set_num_threads(config.run.cpus)
        self.run = Run(config, dataset, self.device)
        self.feed = self.run.feed(self.run.steps)
        self.images = config.step_images

    def seconds(self, steps: int = 1) -> float:
        """How long so many more steps take, on the device too."""
        begun = self._clock()
        for _ in range(steps):
            self.run.step(next(self.feed))
        return self._clock() - begun

    def within(self, seconds: float) -> int:
        """How many steps such a time is good for."""
        return max(1, round(seconds / self.seconds()))

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def crowd(
    config: Config,
    processes: int,
    seconds: float,
    data: Callable[[Config], Dataset] = open_planned,
    after: Callable[[Config, Steps], Json] | None = None,
) -> list[Json]:
    """What each of so many processes measures; none where memory, or a process, did not hold.

    Each builds its model on `data`, which a module must define, waits for the others, and makes steps for so
    many seconds. What `after` finds is added; it runs when the time is over.
    """
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        ready = manager.Barrier(processes, timeout=300)
        work = [pool.submit(_trial, config, seconds, ready, data, after) for _ in range(processes)]
    for error in filter(None, [one.exception() for one in work]):
        if out_of_memory(error) or isinstance(error, BrokenProcessPool):  # more than fit
            return []
        if not isinstance(error, BrokenBarrierError):  # which follows from another's error
            raise error
    return [one.result() for one in work]


def _trial(
    config: Config,
    seconds: float,
    ready: Barrier,
    data: Callable[[Config], Dataset],
    after: Callable[[Config, Steps], Json] | None,
) -> Json:
    """One of these processes."""
    try:
        steps = Steps(config, data(config))
        steps.seconds(4)
        chunk = steps.within(0.3)
        ready.wait()
    except Exception:
        ready.abort()
        raise
    done, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        steps.seconds(chunk)
        done += chunk
    found: Json = {"images_per_second": done * steps.images / (time.monotonic() - begun)}
    if steps.device.type == "cuda":
        with contextlib.suppress(ImportError, RuntimeError):
            found["gpu_percent"] = torch.cuda.utilization()
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / MIB
        free, total = torch.cuda.mem_get_info()  # of all processes, with what CUDA itself takes
        found["gpu_used_mib"] = (total - free) / MIB
    if after is not None:
        found |= after(config, steps)
    return found | peak_memory()


def peak_memory() -> Json:
    """Of this process alone, where Linux tells; getrusage would count the parent's at the fork too."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return {"peak_rss_mib": int(found[1]) / 1024}
    return {}


def ladder(config: Config, most: int, seconds: float = SECONDS) -> Iterator[Measured]:
    """1, 2, 4, ... `most` trials on one device, as long as there is room and more of them do more.

    On the CPU, where there is no GPU: its cores and memory are shared then.
    """
    device = choose_device(config).type
    # nothing ends while it is timed
    endless = {"run.device": device, "run.gpus": 1.0, "optim.epochs": 10**6}
    config = Config.read(merge(config.model_dump(), endless))
    trials, before = 1, 0.0
    while found := crowd(config, trials, seconds):
        rate = sum(one["images_per_second"] for one in found)
        if device == "cuda":
            used, total = max(one["gpu_used_mib"] for one in found) / trials, _gpu_mib()
        else:
            used = max(one.get("peak_rss_mib", 0.0) for one in found)
            total = psutil.virtual_memory().total / MIB
        yield (one := Measured(trials, rate, used, total))
        more = min(2 * trials, most)
        if more == trials or not fits(more, one) or rate * NEAR < before:
            return
        trials, before = more, rate


def _gpu_mib() -> float:
    total: float = torch.cuda.get_device_properties(0).total_memory / MIB
    return total


def main() -> int:
    """Answers {"config", "most"} on stdin with a JSON list of `Measured` on stdout."""
    question = json.load(sys.stdin)
    found = ladder(Config.read(question["config"]), question["most"])
    print(json.dumps([asdict(one) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
