"""What this machine does: the trainer's speed, how many trials fit, and what a sweep adds to its trials.

    python -m lmim.bench

Prints one JSON object and writes it to OUT/bench.json, from which `lmim.sweep --dry-run` knows what a sweep
costs here. The images are noise, so that no dataset is needed; reading and decoding files is not measured.
"""

import contextlib
import importlib
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int, UInt8
from rich.console import Console
from timm.models import vision_transformer
from torch import Tensor, nn

from lmim import interop
from lmim.command import Parser, exit_code, out_folder
from lmim.config import Config, merge
from lmim.data import Dataset, open_dataset
from lmim.data.augment import WHOLE
from lmim.errors import UserError
from lmim.evaluate import judge
from lmim.files import write_atomic
from lmim.plan import ablation, cost, facts
from lmim.sweep.crowd import MIB, Json, Steps, crowd, peak_memory
from lmim.sweep.resources import local_resources
from lmim.trial.code import code_version
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder

Hows = Sequence[tuple[str, bool]]
"""Pairs of precision and whether the step is compiled."""

ABLATIONS = Path(__file__).parent / "ablations"
SWEEP = ABLATIONS / "loss.yaml"
ARM = "patch_discrimination"
OBJECTIVES = {
    "latent_mim": ("loss", ARM),
    "pixel_mim": ("contrastive_mim", "pixel_mim"),
    "block_mim": ("block_mim", "blocks=4"),
    "contrastive_mim": ("contrastive_mim", "cmae"),
    "supervised": ("supervised_mim", "supervised"),
    "supervised_mim": ("supervised_mim", "latents_full"),
    "video_mim": ("video_mim", "full"),
}
"""Of each objective a sweep file and an arm; none whose target has to be fitted first."""
BLOCKS = (1, 2, 4)
DEEP = {
    **{"data.image_size": 96, "encoder.patch_size": 8, "encoder.width": 192, "encoder.depth": 12},
    **{"encoder.heads": 3, "decoder.width": 96, "decoder.heads": 3, "optim.batch_size": 64},
}
"""Enough layers and patches for activations to be what takes the memory."""
OF_ALL_IMAGES = (
    *("nn", "knn", "linear", "retrieval", {"linear_sgd": {"epochs": 1}}, {"fewshot": {"draws": 1}}),
    *({"attentive": {"epochs": 1}}, "robustness", "collapse", "invariance"),
)
"""Protocols that look at all images of the data. By default `linear_sgd` has 90 epochs, `attentive` 20, and
`fewshot` draws five times."""
THEIRS = {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3} | {
    **{"decoder_embed_dim": 128, "decoder_depth": 4, "decoder_num_heads": 4, "mask_ratio": 0.75},
    **{"mlp_ratio": 4.0, "norm_pix_loss": True},
}
"""A ViT-Ti/16 as MAE's authors name it, of which a CPU makes a step in seconds."""
SHORT = ("data.train_images=5000", "optim.epochs=3", "run.device=cpu")
"""Trials of a quarter of a minute."""


def config_of(
    scale: str,
    device: str,
    precision: str | None = None,
    compiled: bool = False,
    sweep: Path = SWEEP,
    arm: str = ARM,
) -> Config:
    """An arm at a scale, the method's own, on this device; in the scale's precision unless one is named."""
    trial = ablation.load(sweep, scale, seeds=[0], only=[arm]).trials[0]
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


def noisy(config: Config) -> Dataset:
    """Noise as large as the config's own data."""
    return noise(config, facts.data_of(config))


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
            steps = Steps(config, noisy(config))
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
    in_turns(runs, repeats, seconds)
    return entries


def in_turns(runs: Sequence[tuple[Json, Steps, list[float]]], repeats: int, seconds: float) -> None:
    """Time each run's steps, again and again one after the other, and enter what they make."""
    for _ in range(repeats):
        for _, steps, rates in runs:
            count = steps.within(seconds)
            rates.append(count * steps.images / steps.seconds(count))
    for entry, _, rates in runs:
        entry["images_per_second"] = spread(rates)
        entry["flops_per_second"] = statistics.median(rates) * entry["flops_per_image"]


def each_objective(scale: str, device: str, repeats: int, seconds: float) -> list[Json]:
    """Images a second of every objective's step, in turns; of clips, clips a second."""
    runs: list[tuple[Json, Steps, list[float]]] = []
    for name, (sweep, arm) in OBJECTIVES.items():
        say(f"training steps of {name}, {scale} scale, {device}")
        config = config_of(scale, device, sweep=ABLATIONS / f"{sweep}.yaml", arm=arm)
        steps = Steps(config, noisy(config))
        steps.seconds(3)
        runs.append(({"objective": name, "arm": arm} | head(scale, config), steps, []))
    in_turns(runs, repeats, seconds)
    return [entry for entry, _, _ in runs]


def block_memory(device: str) -> list[Json]:
    """What a step takes in memory, block by block and end to end (1), each in a process of its own."""
    entries = []
    base = config_of("demo", device, sweep=ABLATIONS / "block_mim.yaml", arm="blocks=1").model_dump()
    for blocks in BLOCKS:
        say(f"memory of block_mim, {blocks} of 12 layers, {device}")
        config = Config.read(merge(base, DEEP | {"block_mim.blocks": blocks, "data.version": None}))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            entries.append({"blocks": blocks, "device": device} | pool.submit(_step_memory, config).result())
    return entries


def _step_memory(config: Config) -> Json:
    """The peak over what there is before the first step."""
    steps = Steps(config, noise(config, facts.Data("bench", 10_000, 10, 10, 3, 10)))
    if steps.device.type == "cuda":
        before = torch.cuda.memory_allocated() / MIB
        steps.seconds(3)
        return {"step_mib": torch.cuda.max_memory_allocated() / MIB - before}
    before = psutil.Process().memory_info().rss / MIB
    steps.seconds(3)
    return {"step_mib": peak_memory().get("peak_rss_mib", math.nan) - before}


def against_mae(clone: Path, repeats: int, seconds: float) -> Json:
    """pixel_mim's step and that of MAE's authors, from a clone of theirs, in turns on one thread of the CPU.

    Ours crops and normalises its images too; theirs is given noise that is ready. Both use AdamW.

    Raises:
        UserError: there is no such clone.
    """
    say(f"pixel_mim against {clone}")
    config = interop.official.translate_mae(THEIRS)
    change = {"optim.batch_size": 8, "optim.epochs": 1, "run.device": "cpu"}
    config = Config.read(merge(config.model_dump(), change))
    ours = Steps(config, noise(config, facts.Data("bench", 100_000, 10, 10, 3, 10)))
    model = _model_of_mae(clone)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    images = torch.randn(8, 3, 224, 224)

    def step() -> float:
        begun = time.monotonic()
        loss, *_ = model(images, mask_ratio=THEIRS["mask_ratio"])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return time.monotonic() - begun

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(2 + repeats):
        for name, once in (("ours", ours.seconds), ("theirs", step)):
            spent, count = 0.0, 0
            while spent < seconds or not count:
                spent, count = spent + once(), count + 1
            rates[name].append(8 * count / spent)
    found: Json = {f"{name}_images_per_second": spread(values[2:]) for name, values in rates.items()}
    ratios = [a / b for a, b in zip(*(values[2:] for values in rates.values()), strict=True)]
    return found | {"ratio": spread(ratios), "model": THEIRS}


def _model_of_mae(clone: Path) -> nn.Module:
    """Their model, which was written for timm 0.3.2 and an older numpy."""
    if not (clone / "models_mae.py").is_file():
        raise UserError(f"--mae {clone}: expected a clone of github.com/facebookresearch/mae")
    block = vision_transformer.Block
    sys.path.insert(0, str(clone))
    try:
        # what has left timm and numpy since
        vars(vision_transformer)["Block"] = lambda *sizes, qk_scale=None, **how: block(*sizes, **how)
        vars(np)["float"] = float
        kind = importlib.import_module("models_mae").MaskedAutoencoderViT
        sizes = {key: value for key, value in THEIRS.items() if key != "mask_ratio"}
        made: nn.Module = kind(**sizes, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        return made
    finally:
        sys.path.remove(str(clone))
        vars(vision_transformer)["Block"] = block
        del vars(np)["float"]


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
    judging = partial(evaluation, judged) if processes == 1 else None
    if not (found := crowd(config, processes, seconds, noisy, judging)):
        return entry | {"unavailable": "out of memory"}
    most = {key: max(one[key] for one in found) for key in found[0] if key != "gpu_used_mib"}
    rates = [one["images_per_second"] for one in found]
    return entry | most | {"images_per_second": spread(rates), "images_per_second_sum": sum(rates)}


def evaluation(most: int, config: Config, steps: Steps) -> Json:
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


def judging(device: str, train: int = 1_281_167, judged: int = 50_000, width: int = 768) -> list[Json]:
    """What protocols take that look at all images, at ImageNet's size unless told less.

    Each in a process of its own, on noise, with four patches an image. Its peak memory has in it what
    of the features' file is mapped, which the system takes back where it is short.
    """
    entries = []
    for protocol in OF_ALL_IMAGES:
        say(f"judging {judged:,} images by {train:,}, {device}: {protocol}")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(_judging, protocol, device, train, judged, width).result()
        entries.append({"protocol": protocol, "device": device, "train": train, "judged": judged} | found)
    return entries


def _judging(protocol: Any, device: str, train: int, judged: int, width: int) -> Json:
    config = Config.read({"data": {"image_size": 8}, "run": {"device": device}})
    dataset = replace(noise(config, facts.Data("bench", train, 10, judged, 3, 1000)), classes=1000)

    def encode(images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        return torch.randn(len(images), width, device=images.device)

    def patches(images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 4 d"]:
        return torch.randn(len(images), 4, width, device=images.device)

    asked = read_evaluations([protocol])
    ((_, told),) = judge(encode, dataset, 8, asked, torch.device(device), patches=patches)
    found: Json = {"seconds": told.seconds, "error": told.error or None}
    if device == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found | peak_memory()


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
        times = [trial_times(TrialFolder(root, path.name)) for path in root.iterdir()]
    spent = sum(end - start for start, end in times)
    starts, ends = sorted(start for start, _ in times), sorted(end for _, end in times)
    return {
        "trials": len(times),
        "workers": workers,
        "trial_seconds_mean": spent / len(times),
        "command_seconds": seconds,
        "efficiency": spent / (workers * seconds),
        "seconds_before_first_trial": starts[0] - begun,
        "seconds_after_last_trial": begun + seconds - ends[-1],
        "efficiency_while_trials_run": spent / (workers * (ends[-1] - starts[0])),
        "gap_between_trials_seconds": spread(gaps(starts, ends, workers)),
        "command_seconds_nothing_missing": again,
    }


def trial_times(folder: TrialFolder) -> tuple[float, float]:
    """When a trial began, and when it had been trained and judged."""
    state = folder.state()
    judged = [file.stat().st_mtime for file in folder.path.glob("evaluations/*.json")]
    return state.started or math.nan, max([state.finished or math.nan, *judged])


def gaps(starts: Sequence[float], ends: Sequence[float], workers: int) -> list[float]:
    """How long a free slot waits for its next trial: start number `workers` + i follows end number i.

    >>> gaps([0, 0, 6, 9], [5, 8, 11, 15], workers=2)
    [1, 1]
    """
    return [start - end for start, end in zip(starts[workers:], ends, strict=False)]


def _command(words: Sequence[str]) -> float:
    """Seconds that the sweep command takes."""
    environment = os.environ | {"PYTHONPATH": str(SWEEP.parent.parent)}
    begun = time.monotonic()
    command = [sys.executable, "-m", "lmim.sweep", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"lmim.sweep exited with {done.returncode}: {done.stdout[-999:]}{done.stderr[-999:]}")
    return time.monotonic() - begun


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


def measure(quick: bool, skip: Sequence[str], mae: Path | None = None, large: bool = False) -> Json:
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
    record["objectives"] = each_objective("demo", "cpu", repeats, seconds)
    record["block_memory"] = [] if quick else block_memory("cpu")
    if about["gpu"]:
        record["objectives"] += each_objective("gpu", "cuda", repeats, seconds)
        record["block_memory"] += block_memory("cuda")
    record["judging"] = judging("cuda" if about["gpu"] else "cpu") if large else []
    record["mae"] = against_mae(mae, repeats, seconds) if mae else None
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
    parser.add_argument(
        "--mae",
        type=Path,
        metavar="CLONE",
        help="a clone of github.com/facebookresearch/mae, whose step pixel_mim's is compared with",
    )
    parser.add_argument(
        "--judging",
        action="store_true",
        help="also what judging takes at ImageNet's size: 4 GB where TMPDIR is, on a CPU hours",
    )
    arguments = parser.parse_args(argv)
    skip = [*arguments.skip, *(("compile", "sweep") if arguments.quick else ())]
    with tempfile.TemporaryDirectory(prefix="lmim-bench-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what an earlier run compiled would flatter this one
        record = measure(arguments.quick, skip, arguments.mae, arguments.judging)
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
