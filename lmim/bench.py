"""What this machine does: the trainer's speed, how many trials fit, and what a sweep adds to its trials.

    python -m lmim.bench

Prints one JSON object and writes it to OUT/bench.json, from which `lmim.sweep --dry-run` knows what a sweep
costs here. The images are noise, so that no dataset is needed; reading and decoding files is not measured.
"""

import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from rich.console import Console
from torch import Tensor

from lmim.command import Parser, exit_code, out_folder
from lmim.config import Config, merge
from lmim.data import Dataset, open_dataset
from lmim.data.augment import WHOLE
from lmim.errors import UserError
from lmim.evaluate import judge
from lmim.files import write_atomic
from lmim.plan import ablation, cost, facts
from lmim.sweep.executors import local_resources
from lmim.train.batches import batches
from lmim.train.loop import Run
from lmim.trial.code import code_version
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder

Json = dict[str, Any]
Hows = Sequence[tuple[str, bool]]
"""Pairs of precision and whether the step is compiled."""

SWEEP = Path(__file__).parent / "ablations" / "loss.yaml"
ARM = "patch_discrimination"
SHORT = ("data.train_images=5000", "optim.epochs=3", "run.device=cpu")
"""Trials of a quarter of a minute."""
MIB = 2**20


def config_of(scale: str, device: str, precision: str | None = None, compiled: bool = False) -> Config:
    """The method's own arm at a scale, on this device; in the scale's precision unless one is named."""
    (trial,) = ablation.load(SWEEP, scale, seeds=[0], only=[ARM]).trials
    change: Json = {"run.device": device, "run.compile": compiled}
    change |= {"optim.precision": precision} if precision else {}
    return Config.read(merge(trial.config.model_dump(), change))


# ------------------------------------------------------------------------------------- what is timed


class Noise:
    """A split of random images that lie on the device: a few, over and over."""

    def __init__(self, images: UInt8[Tensor, "k c s s"], count: int) -> None:
        self.images, self.labels, self.aspect = images, torch.arange(count) % 10, torch.ones(count)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c s s"], Float[Tensor, "b 4"]]:
        """The whole images."""
        boxes = WHOLE.repeat(len(indices), 1) if boxes is None else boxes
        return self.images[indices % len(self.images)], boxes

    def read_clips(
        self,
        indices: Int[Tensor, " b"],
        side: int,
        boxes: Float[Tensor, "b v 4"],
        times: Int[Tensor, "b v"],
    ) -> tuple[UInt8[Tensor, "b v c s s"], Float[Tensor, "b v 4"]]:
        """An image for every frame."""
        return self.images[(indices[:, None] + times) % len(self.images)], boxes


def noise(config: Config, size: facts.Data) -> Dataset:
    """A dataset of this size, and of the shape of the config's."""
    shape = (512, size.channels, config.data.image_size, config.data.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(config.run.device)
    middle = (0.5,) * size.channels
    splits = Noise(images, size.train), Noise(images, 1), Noise(images, size.test)
    stats = size.channels, 10, middle, middle, config.data.flip
    return Dataset("noise", "bench", *stats, *splits, frames=size.frames)


class Steps:
    """A run of the trainer, fed and timed."""

    def __init__(self, config: Config) -> None:
        self.device = torch.device(config.run.device)
        torch.set_num_threads(config.run.threads)
        self.run = Run(config, noise(config, facts.data_of(config)), self.device)
        self.feed = batches(self.run.dataset.train, config, self.run.objective, 0, self.run.steps)
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


# ------------------------------------------------------------------------------------------ the parts


def head(scale: str, config: Config) -> Json:
    """What an entry of the record is about."""
    return {
        "scale": scale,
        "device": config.run.device,
        "precision": config.optim.precision,
        "compile": config.run.compile,
        "flops_per_image": cost.works([config])[config.arm].step,
        "images_per_second": None,
    }


def training(scale: str, device: str, hows: Hows, repeats: int, seconds: float) -> list[Json]:
    """Images a second for each way to run the step, measured in turns because machines are noisy."""
    entries: list[Json] = []
    runs: list[tuple[Json, Steps, list[float]]] = []
    for precision, compiled in hows:
        say(f"training steps, {scale} scale, {precision}{', compiled' if compiled else ''}")
        config = config_of(scale, device, precision, compiled)
        entries.append(entry := head(scale, config))
        try:
            steps = Steps(config)
            first = steps.seconds()
            if compiled:
                entry["first_step_seconds"] = first
            steps.seconds(3)
        except RuntimeError as error:
            if not compiled and not isinstance(error, torch.OutOfMemoryError):
                raise
            entry["unavailable"] = type(getattr(error, "inner_exception", error)).__name__
            continue
        runs.append((entry, steps, []))
    for _ in range(repeats):
        for _, steps, rates in runs:
            count = steps.within(seconds)
            rates.append(count * steps.images / steps.seconds(count))
    for entry, _, rates in runs:
        entry["images_per_second"] = spread(rates)
        entry["flops_per_second"] = statistics.median(rates) * entry["flops_per_image"]
    return entries


def spread(values: Sequence[float]) -> Json:
    """Median and range.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def at_once(scale: str, device: str, processes: int, seconds: float, judged: int) -> Json:
    """Speed and memory of so many trials at the same time; of one alone also the evaluation's time."""
    say(f"{processes} at once, {scale} scale, {device}")
    config = config_of(scale, device)
    entry = head(scale, config) | {"processes": processes}
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        ready = manager.Barrier(processes, timeout=300)
        work = [pool.submit(_trial, config, seconds, judged, ready) for _ in range(processes)]
    for error in filter(None, [one.exception() for one in work]):
        if isinstance(error, torch.OutOfMemoryError | BrokenProcessPool):  # more than fit
            return entry | {"unavailable": type(error).__name__}
        if not isinstance(error, BrokenBarrierError):  # which follows from another's error
            raise error
    found = [one.result() for one in work]
    most = {key: max(one[key] for one in found) for key in found[0]}
    rates = [one["images_per_second"] for one in found]
    return entry | most | {"images_per_second": spread(rates), "images_per_second_sum": sum(rates)}


def _trial(config: Config, seconds: float, judged: int, ready: Barrier) -> Json:
    """One of these processes."""
    try:
        steps = Steps(config)
        steps.seconds(4)
        chunk = steps.within(0.3)
        ready.wait()
    except RuntimeError:
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
    if ready.parties == 1:
        found |= evaluation(config, steps, judged)
    return found | _peak_memory()


def evaluation(config: Config, steps: Steps, most: int) -> Json:
    """What judging the encoder takes, on so many images of each split at most."""
    size = facts.data_of(config)
    size = replace(size, train=min(size.train, most), test=min(size.test, most))
    dataset, encode = noise(config, size), steps.run.objective.eval().features
    evaluations, (flops,) = read_evaluations(), facts.flops_of([config])
    begun = time.monotonic()
    list(judge(encode, dataset, config.data.image_size, evaluations, steps.device))
    spent = time.monotonic() - begun
    return {
        "evaluation_images": size.train + size.test,
        "evaluation_seconds": spent,
        "evaluation_flops_per_second": cost.evaluation(flops, size.train, size.test) / spent,
    }


def _peak_memory() -> Json:
    """Of this process alone, where Linux tells; getrusage would count the parent's at the fork too."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return {"peak_rss_mib": int(found[1]) / 1024}
    return {}


def sweep(workers: int, per_worker: int = 3, settings: Sequence[str] = SHORT) -> Json:
    """What the command adds to its trials: a small real sweep on Ray, as its user sees it."""
    say("a small sweep on Ray, and once more with nothing missing")
    seeds = ",".join(str(seed) for seed in range(workers * per_worker))
    open_dataset(config_of("demo", "cpu").data)  # drawn once in a machine's life
    with tempfile.TemporaryDirectory(prefix="lmim-bench-") as folder:
        words = [str(SWEEP), "--scale", "demo", "--only", ARM, "--seeds", seeds, "--out", folder]
        words += ["--max-concurrent", str(workers)]
        words += [word for setting in settings for word in ("--set", setting)]
        begun = time.time()
        seconds, again = _command(words), _command(words)
        root = Path(folder) / "trials"
        states = [TrialFolder(root, path.name).state() for path in root.iterdir()]
    spent = sum(state.seconds for state in states)
    starts = sorted(state.started or math.nan for state in states)
    ends = sorted(state.finished or math.nan for state in states)
    return {
        "trials": len(states),
        "workers": workers,
        "trial_seconds_mean": spent / len(states),
        "command_seconds": seconds,
        "efficiency": spent / (workers * seconds),
        "seconds_before_first_trial": starts[0] - begun,
        "seconds_after_last_trial": begun + seconds - ends[-1],
        "efficiency_while_trials_run": spent / (workers * (ends[-1] - starts[0])),
        "gap_between_trials_seconds": spread(gaps(starts, ends, workers)),
        "command_seconds_nothing_missing": again,
    }


def gaps(starts: Sequence[float], ends: Sequence[float], workers: int) -> list[float]:
    """How long a free slot waits for its next trial: start number `workers` + i follows end number i.

    >>> gaps([0, 0, 6, 9], [5, 8, 11, 15], workers=2)
    [1, 1]
    """
    return [start - end for start, end in zip(starts[workers:], ends, strict=False)]


def _command(words: Sequence[str]) -> float:
    """Seconds that the sweep command takes."""
    environment = os.environ | {"PYTHONPATH": str(SWEEP.parent.parent)}
    begun = time.time()
    command = [sys.executable, "-m", "lmim.sweep", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"lmim.sweep exited with {done.returncode}: {done.stdout[-999:]}{done.stderr[-999:]}")
    return time.time() - begun


def machine() -> Json:
    """What these figures are of."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    cores = round(local_resources().cpus)
    return {
        "name": f"{cores} cores of {name}" + (f", {len(gpus)} x {gpus[0].name}" if gpus else ""),
        "cpu": name,
        "cores": cores,
        "gpu": gpus[0].name if gpus else None,
        "gpu_memory_mib": gpus[0].total_memory / MIB if gpus else None,
        "load_average": os.getloadavg(),
    }


# ------------------------------------------------------------------------------------------- command


def say(what: str) -> None:
    """Progress, on stderr."""
    Console(stderr=True).print(f"{time.strftime('%H:%M:%S')} {what}", highlight=False)


def measure(quick: bool, skip: Sequence[str]) -> Json:
    """All of it."""
    repeats, seconds, judged = (2, 0.2, 1000) if quick else (7, 0.7, 20_000)
    about = machine()
    record: Json = {
        "format": cost.FORMAT,
        "quick": quick,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": code_version(),
        "torch": torch.__version__,
        "machine": about,
    }
    hows = [("float32", False), ("bfloat16", False)]
    if "compile" not in skip:
        hows += [(precision, True) for precision, _ in hows]
    crowds = [("demo", "cpu", count) for count in sorted({1, 2 if quick else about["cores"]})]
    if about["gpu"]:
        crowds += [("paper", "cuda", 1), *(("gpu", "cuda", count) for count in (1, 2, 4, 8))]
    # these first: what follows leaves memory taken in this process
    record["at_once"] = [at_once(*crowd, 5 * seconds, judged) for crowd in crowds]
    record["training"] = training("demo", "cpu", hows, repeats, seconds)
    if about["gpu"]:
        record["training"] += training("gpu", "cuda", hows, repeats, seconds)
        halves = [how for how in hows if how[0] == "bfloat16"]
        record["training"] += training("paper", "cuda", halves, 2, 3 * seconds)
    ray = "sweep" not in skip and importlib.util.find_spec("ray")
    record["sweep"] = sweep(about["cores"]) if ray else None
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m lmim.bench`: measure, print, write."""
    return exit_code(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lmim.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=out_folder, default=Path("results"), help="default: results")
    parser.add_argument("--quick", action="store_true", help="a first look, without compiling and sweeping")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=("compile", "sweep"),
        help="leave this out; may be repeated",
    )
    arguments = parser.parse_args(argv)
    skip = [*arguments.skip, *(("compile", "sweep") if arguments.quick else ())]
    with tempfile.TemporaryDirectory(prefix="lmim-bench-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what an earlier run compiled would flatter this one
        record = measure(arguments.quick, skip)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(record), indent=2) + "\n"
    write_atomic(arguments.out / "bench.json", text)
    print(text, end="")
    return 0


def rounded(value: Any) -> Any:
    """Four digits of every number are more than the noise leaves true.

    >>> rounded({"a": [1.23456, 1234567.8], "b": 2, "c": None})
    {'a': [1.235, 1235000.0], 'b': 2, 'c': None}
    """
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
