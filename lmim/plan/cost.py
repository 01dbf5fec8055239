"""What trials cost before they run: FLOPs from the config, seconds from what was measured.

Measured means, in this order: like trials that are done; a record of `lmim.bench` of this machine; a record
that ships with the repository. Pure: planning imports neither torch nor numpy.
"""

import itertools
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lmim.config import Config
from lmim.trial.folder import State

SHIPPED = Path(__file__).parents[2] / "analysis" / "benchmarks"
ASSUMED_GPU = (
    4.5e13,
    "assuming 45 TFLOP/s on one GPU, an A100 at 15 % of its bfloat16 peak; a small model reaches far less",
)


class Size(NamedTuple):
    """What a plan needs to know of a dataset without opening it."""

    train: int
    test: int
    channels: int


SIZES = {
    "glyphs": Size(20_000, 4_000, 1),
    "digits": Size(1_347, 450, 1),
    "cifar10": Size(50_000, 10_000, 3),
    "cifar100": Size(50_000, 10_000, 3),
    "imagefolder": Size(1_281_167, 50_000, 3),  # taken to be ImageNet-1k
}


def size_of(config: Config) -> Size:
    """The config's dataset, cut to `data.train_images`."""
    whole = SIZES[config.data.name]
    return whole._replace(train=min(whole.train, config.data.train_images or whole.train))


# --------------------------------------------------------------------------------------------- FLOPs


def _linear(tokens: float, *widths: float) -> float:
    return sum(2 * tokens * a * b for a, b in itertools.pairwise(widths))


def _block(tokens: float, width: int, mlp_ratio: float) -> float:
    """Self-attention (four projections, scores and their sum) and MLP."""
    return _linear(tokens, width, (4 + 2 * mlp_ratio) * width) + 4 * tokens**2 * width


def _encoder(config: Config, patches: int, project: bool) -> float:
    """One forward pass over `patches` patches and the class token."""
    width, depth, hidden = config.encoder.width, config.projector.depth, config.projector.width
    pixels = config.encoder.patch_size**2 * SIZES[config.data.name].channels
    tokens = patches + 1
    widths = [width, *[hidden] * (depth - 1), width] if depth and project else []
    blocks = config.encoder.depth * _block(tokens, width, config.encoder.mlp_ratio)
    return _linear(patches, pixels, width) + blocks + _linear(tokens, *widths)


def _decoder(config: Config, visible: int, masked: int) -> float:
    latent, width, decoder = config.encoder.width, config.decoder.width, config.decoder
    context, queries = visible + 1, masked + 1
    ends = _linear(context, latent, width) + _linear(masked, width, latent)
    cues = 4 * masked * visible * width * decoder.cues
    if decoder.kind == "self_attention":
        block = _block(context + masked, width, decoder.mlp_ratio)
    else:
        cross = _linear(queries + context, width, 2 * width) + 4 * queries * context * width
        block = _block(queries, width, decoder.mlp_ratio) + cross
    return ends + cues + decoder.depth * block


def step_flops(config: Config) -> float:
    """FLOPs of a training step for each of its images, a multiplication and an addition counted as two.

    What learns counts three times: forward, and backward to the input and to the weights.
    """
    if config.objective == "raw_pixels":
        return 0.0
    visible, patches = config.num_visible, config.grid**2
    masked, width = patches - visible, config.encoder.width
    seen = patches if config.collapse.target_sees == "all" else masked
    target = _encoder(config, seen, project=True) * (3 if config.collapse.kind == "joint" else 1)
    if config.collapse.kind == "frozen_random":
        target = _linear(masked, config.encoder.patch_size**2 * SIZES[config.data.name].channels, width)
    compared = 2 * masked**2 * width if config.loss.kind == "patch_discrimination" else 0.0
    learns = _encoder(config, visible, project=True) + _decoder(config, visible, masked) + compared
    return 3 * learns + target


def evaluation_flops(config: Config, size: Size | None = None) -> float:
    """FLOPs of judging the encoder once: features of both splits, neighbours, the probe's moments."""
    data = size or size_of(config)
    pixels = min(config.data.image_size, 32) ** 2 * data.channels
    raw = config.objective == "raw_pixels"
    channels = pixels if raw else config.encoder.width
    encode = 0.0 if raw else _encoder(config, config.grid**2, project=False)
    compare = 2 * channels * (data.test + channels)
    return (data.train + data.test) * (encode + compare)


def training_flops(config: Config, epochs: int) -> float:
    """FLOPs of so many epochs, the watch on collapse included."""
    images = size_of(config).train // config.step_images * config.step_images
    watch = config.evaluate.probe_images * _encoder(config, config.grid**2, project=False)
    return epochs * (images * step_flops(config) + watch / config.evaluate.every_epochs)


# ------------------------------------------------------------------------------------------- seconds


@dataclass(frozen=True)
class Machine:
    """What trials run on, and how many of them at once at most."""

    cores: float
    gpus: float
    limit: int | None = None

    def device(self, config: Config) -> str:
        """`cuda` or `cpu`; a config that asks for a GPU is planned for one even where there is none."""
        auto = "cuda" if self.gpus else "cpu"
        return auto if config.run.device == "auto" else config.run.device

    def slots(self, config: Config) -> int:
        """Trials like this one that run at the same time."""
        run = config.run
        slots = math.floor(self.cores / (run.cpus * run.processes))
        if self.device(config) == "cuda":
            on_gpus = math.floor(max(self.gpus, 1) / (run.gpus * run.processes))
            slots = min(slots, on_gpus) if self.gpus else on_gpus
        return max(1, min(slots, self.limit or slots))


@dataclass(frozen=True)
class Estimate:
    """What is missing costs so much, by that measure."""

    wall_seconds: float
    slots: int
    core_hours: float
    gpu_hours: float
    basis: str


Pace = Callable[[Config, int], float]
"""Seconds that a slot takes for so many epochs of a config, and its evaluation."""


def estimate(
    missing: Iterable[tuple[Config, int]],
    finished: Iterable[tuple[Config, State]],
    machine: Machine,
    records: Sequence[tuple[str, Mapping[str, Any]]],
) -> Estimate | None:
    """The cost of the `missing` configs, each with its epochs left; None where nothing was measured."""
    paces = _paces(finished)
    slots = [0.0]
    hours = {"cpu": 0.0, "cuda": 0.0}
    bases: dict[str, None] = {}
    seconds: list[float] = []
    for config, epochs in missing:
        if config.data.name not in SIZES:  # a dataset of the user's own
            return None
        device = machine.device(config)
        flops = training_flops(config, epochs) + evaluation_flops(config)
        if pace := paces.get(kind(config, device)):
            seconds.append(flops * sum(pace) / len(pace))
            basis = "by like trials that are done"
        else:
            rate = _recorded(config, machine, records)
            if rate is None:
                return None
            training, evaluation, basis = rate
            # evaluation is the first process' alone
            apart = training_flops(config, epochs) / (training * config.run.processes)
            seconds.append(apart + evaluation_flops(config) / evaluation)
        bases[basis] = None
        share = config.run.processes * (config.run.gpus if device == "cuda" else config.run.cpus)
        hours[device] += seconds[-1] * share / 3600
        slots = max(slots, [0.0] * machine.slots(config), key=len)
    for one in sorted(seconds, reverse=True):  # each trial goes to the slot that is free first
        slots[slots.index(min(slots))] += one
    return Estimate(max(slots), len(slots), hours["cpu"], hours["cuda"], "; ".join(bases))


def kind(config: Config, device: str) -> str:
    """Trials whose seconds a FLOP are alike."""
    run, optim = config.run, config.optim
    how = f"{device} {optim.precision} {optim.batch_size} {run.compile} {run.processes}"
    return f"{config.objective} {config.optim.epochs > 0} {config.data} {config.encoder} {how}"


def _paces(finished: Iterable[tuple[Config, State]]) -> dict[str, list[float]]:
    """Seconds a FLOP of each kind of trial."""
    paces: dict[str, list[float]] = {}
    for config, state in finished:
        if state.status == "done" and state.outcome != "diverged" and config.data.name in SIZES:
            device = "cpu" if state.device in (None, platform.machine()) else "cuda"
            flops = training_flops(config, config.optim.epochs) + evaluation_flops(config)
            paces.setdefault(kind(config, device), []).append(state.seconds / flops)
    return paces


def _recorded(
    config: Config, machine: Machine, records: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[float, float, str] | None:
    """FLOP/s of one slot in training and in evaluation while the others run too, and who says so."""
    device = machine.device(config)
    flops = max(step_flops(config), 1.0)

    def unlike(entry: Mapping[str, Any]) -> tuple[bool, bool, float]:
        how = entry["precision"] != config.optim.precision, entry["compile"] != config.run.compile
        return *how, abs(math.log(entry["formula_flops_per_image"] / flops))

    for name, record in records:
        entries = [one for one in record["training"] if one["device"] == device and one["images_per_second"]]
        judged = [one for one in record["at_once"] if one["device"] == device and "evaluation_seconds" in one]
        if not entries or not judged:
            continue
        best = min(entries, key=unlike)
        nearest = min(judged, key=unlike)
        slowed = _sharing(record, device, best["scale"], machine.slots(config) / max(machine.gpus, 1))
        training: float = best["images_per_second"]["median"] * best["formula_flops_per_image"] * slowed
        return training, nearest["evaluation_flops_per_second"] * slowed, f"by {name}"
    return (ASSUMED_GPU[0] * config.run.gpus,) * 2 + (ASSUMED_GPU[1],) if device == "cuda" else None


def _sharing(record: Mapping[str, Any], device: str, scale: str, trials: float) -> float:
    """What part of its speed a trial keeps when so many share the machine, or the GPU."""
    counts = [
        entry
        for entry in record["at_once"]
        if entry["device"] == device and entry["scale"] == scale and entry["images_per_second"]
    ]
    if not counts:
        return 1.0 if device == "cpu" else 1 / max(trials, 1)
    alone = min(counts, key=lambda entry: entry["processes"])
    shared = min(counts, key=lambda entry: abs(entry["processes"] - trials))
    kept: float = shared["images_per_second"]["median"] / alone["images_per_second"]["median"]
    return min(1.0, kept)


def read_records(out: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The bench's records: this machine's own, then those that ship with the repository."""
    records: list[tuple[str, Mapping[str, Any]]] = []
    for file in (out / "bench.json", *sorted(SHIPPED.glob("*.json"))):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("format") == FORMAT:
            name = f"{out.name}/{file.name}"
            if file.parent == SHIPPED:
                name = f"{file.name} of another machine, {record['machine']['name']}"
            records.append((name, record))
    return records


FORMAT = 1
"""Of a record's keys; a record of another format is passed over."""
