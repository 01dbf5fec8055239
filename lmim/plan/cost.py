"""What trials cost before they run: FLOPs that the model was counted for, seconds from what was measured.

Measured means, in this order: like trials that are done; a record of `lmim.bench` of this machine; a record
that ships with the repository. Pure: planning imports neither torch nor numpy.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from lmim.config import Config
from lmim.plan import facts
from lmim.trial.evaluation import Evaluation, Result
from lmim.trial.folder import State

SHIPPED = Path(__file__).parents[1] / "analysis" / "benchmarks"
ASSUMED_GPU = (
    4.5e13,
    "assuming 45 TFLOP/s on one GPU, an A100 at 15 % of its bfloat16 peak; a small model reaches far less",
)
STEP_SECONDS = 0.015
"""Less than this no step takes, however small the model: Python, the optimiser, the journal."""
TRIAL_SECONDS = 0.5
"""What a trial takes besides its steps and its evaluation: data, modules, checkpoint, the gap before it."""
SWEEP_SECONDS = 20.0
"""From the command to the first trial and from the last to the report, where no record says."""


@dataclass(frozen=True)
class Work:
    """What a config has to do, in FLOPs that the model itself was counted for."""

    epoch: float
    """One epoch of training, the watch on collapse included, and its share of what the objective seeks."""
    evaluation: float
    """Features of all splits, neighbours, the probe's moments."""
    step: float
    """One image of a step."""
    steps: float
    """Steps an epoch, each look at collapse counted as one: what they take at least is no matter of FLOPs."""


def works(configs: Iterable[Config]) -> dict[str, Work]:
    """Arm to its work; of more models than `MODELS`, those in between are priced at the others' mean."""
    unique = {config.arm: config for config in configs}
    if not unique:
        return {}
    arms = list(unique)
    chosen = arms[:: max(1, math.ceil(len(arms) / MODELS))]
    counted = dict(zip(chosen, facts.flops_of([unique[arm] for arm in chosen]), strict=True))
    typical = facts.Flops(*(fmean(values) for values in zip(*counted.values(), strict=True)))
    return {arm: _work(config, counted.get(arm, typical)) for arm, config in unique.items()}


def _work(config: Config, flops: facts.Flops) -> Work:
    data = facts.data_of(config)
    train = min(data.train, config.data.train_images or data.train)
    images = train // config.step_images * config.step_images
    watch = config.watch.images * flops.encode / config.watch.every_epochs
    epochs = config.optim.epochs
    passes = (epochs - 1) // flops.seeks_every if flops.seeks_every else 0.0
    return Work(
        epoch=images * flops.step + watch + train * flops.encode * passes / epochs if epochs else 0.0,
        evaluation=evaluation(flops, train, data.test),
        step=flops.step,
        steps=train // config.step_images + 1 / config.watch.every_epochs,
    )


def evaluation(flops: facts.Flops, train: int, test: int) -> float:
    """FLOPs of judging an encoder once, by neighbours and by the probe's moments."""
    return (train + test) * (flops.encode + 2 * flops.width * (test + flops.width))


MODELS = 50
"""Distinct models whose FLOPs a plan counts."""


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
            on_gpus = math.floor(max(self.gpus, 1) / (run.gpu_share * run.processes))
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
    around: float = 0.0
    """Of the wall seconds, those before the first trial and after the last."""
    seconds: tuple[float, ...] = ()
    """Of each trial, in the order in which they were given."""


class Missing(NamedTuple):
    """A trial that is not yet all there."""

    config: Config
    epochs: int
    """Those left to train."""
    evaluations: Sequence[Evaluation] = ()
    """Those left to judge it by; the features, neighbours and the probe are in its work."""


class Finished(NamedTuple):
    """A trial that ran."""

    config: Config
    state: State
    results: Sequence[Result] = ()
    """What it was judged by."""


def estimate(
    missing: Sequence[Missing],
    finished: Sequence[Finished],
    machine: Machine,
    records: Sequence[tuple[str, Mapping[str, Any]]],
) -> Estimate | None:
    """The cost of what is `missing`; None where nothing was measured."""
    if not missing:
        return Estimate(0.0, 0, 0.0, 0.0, "")
    wanted = {kind(one.config, machine.device(one.config)) for one in missing}
    done = [one for one in finished if one.state.status == "done"]
    alike = [one for one in done if kind(one.config, _device(one.state)) in wanted]
    work = works([*(one.config for one in missing), *(one.config for one in alike)])
    measured = _measured(alike, work, machine, records)
    slots = [0.0]
    hours = {"cpu": 0.0, "cuda": 0.0}
    bases: dict[str, None] = {}
    seconds: list[float] = []
    for config, epochs, evaluations in missing:
        device, own = machine.device(config), work[config.arm]
        rates = _recorded(config, own, machine, records)
        like = measured.get(kind(config, device))
        if rates is None and like is None:
            return None
        fixed, pace, judged = like or (TRIAL_SECONDS, 1.0, {})
        tuning = pace * _epoch(config, own, rates)
        judging = _judging(config, evaluations, tuning, judged)
        seconds.append(fixed + pace * _moving(config, epochs, own, rates) + judging)
        basis = "by like trials that are done" if like else rates[2] if rates else ""
        bases[basis] = None
        share = config.run.processes * (config.run.gpu_share if device == "cuda" else config.run.cpus)
        hours[device] += seconds[-1] * share / 3600
        slots = max(slots, [0.0] * machine.slots(config), key=len)
    if any(facts.data_of(config).error for config, *_ in missing):
        bases["taking data that are not here for ImageNet-1k"] = None
    for one in sorted(seconds, reverse=True):  # each trial goes to the slot that is free first
        slots[slots.index(min(slots))] += one
    kept = next((record["sweep"] for _, record in records if record.get("sweep")), None)
    around = kept["seconds_before_first_trial"] + kept["seconds_after_last_trial"] if kept else SWEEP_SECONDS
    wall, basis = max(slots) + around, "; ".join(bases)
    return Estimate(wall, len(slots), hours["cpu"], hours["cuda"], basis, around, tuple(seconds))


def kind(config: Config, device: str) -> str:
    """Trials that are alike in what takes them their time."""
    run, optim = config.run, config.optim
    how = f"{device} {optim.precision} {optim.batch_size} {run.compile} {run.processes}"
    sections = f"{config.data} {getattr(config, 'encoder', '')}"
    return f"{config.objective} {config.optim.epochs > 0} {sections} {how}"


def _device(state: State) -> str:
    return "cuda" if "system/gpu_seconds" in state.metrics else "cpu"


Rates = tuple[float, float, str]
"""FLOP/s of a slot in training and in evaluation, and who says so."""
NOMINAL: Rates = (1e10, 1e10, "")
"""What like trials are related to each other by where nothing was recorded."""


def _moving(config: Config, epochs: int, work: Work, rates: Rates | None) -> float:
    """The seconds that hang on how much a trial has to do."""
    _, evaluation, _ = rates or NOMINAL
    judging = work.evaluation / evaluation  # which is the first process' alone
    return epochs * _epoch(config, work, rates) + judging


def _epoch(config: Config, work: Work, rates: Rates | None) -> float:
    training, *_ = rates or NOMINAL
    return max(work.epoch / (training * config.run.processes), work.steps * STEP_SECONDS)


def _judging(
    config: Config, evaluations: Iterable[Evaluation], epoch: float, measured: Mapping[str, float]
) -> float:
    """The seconds of the further protocols: those of like trials, or by their own files, as if on a core.

    One that trains takes the trial's own seconds an epoch.
    """
    data = facts.data_of(config)
    images = min(data.train, config.data.train_images or data.train) + data.test
    asked = [one for one in evaluations if _further(one) and one.applies(config)]
    return sum(
        measured.get(_settled(one), one.seconds * images / SECONDS_OF + one.epochs * epoch) for one in asked
    )


def _further(one: Evaluation) -> bool:
    """Whether a protocol is priced by itself, as it takes more than the features that all share."""
    return one.seconds + one.epochs > 0


def _settled(one: Evaluation) -> str:
    return f"{one.protocol} {json.dumps(one.settings, sort_keys=True)}"


SECONDS_OF = 24_000
"""Images of which a protocol's file says the seconds."""


def _measured(
    finished: Iterable[Finished],
    work: Mapping[str, Work],
    machine: Machine,
    records: Sequence[tuple[str, Mapping[str, Any]]],
) -> dict[str, tuple[float, float, Mapping[str, float]]]:
    """Of each kind of trial its fixed seconds, by what factor the others are longer than reckoned, and the
    seconds of each further protocol.

    A short trial tells the one, a long one the other: the start of a trial of two steps is no pace.
    """
    found: dict[str, tuple[list[float], list[float], dict[str, list[float]]]] = {}
    for config, state, results in finished:
        if state.outcome != "diverged":
            own = work[config.arm]
            epochs = state.epoch if state.ended else config.optim.epochs
            moving = _moving(config, epochs, own, _recorded(config, own, machine, records))
            fixed, paces, judged = found.setdefault(kind(config, _device(state)), ([], [], {}))
            seconds = state.seconds
            for result in results:
                if _further(result.evaluation):
                    judged.setdefault(_settled(result.evaluation), []).append(result.seconds)
                else:
                    seconds += result.seconds
            if moving > TRIAL_SECONDS:
                paces.append(max(0.0, seconds - TRIAL_SECONDS) / moving)
            else:
                fixed.append(max(0.0, seconds - moving))
    return {
        key: (
            median(fixed or [TRIAL_SECONDS]),
            median(paces or [1.0]),
            {protocol: median(seconds) for protocol, seconds in judged.items()},
        )
        for key, (fixed, paces, judged) in found.items()
    }


def _recorded(
    config: Config, work: Work, machine: Machine, records: Sequence[tuple[str, Mapping[str, Any]]]
) -> Rates | None:
    """The rates while the others run too."""
    device = machine.device(config)
    flops = max(work.step, 1.0)

    def unlike(entry: Mapping[str, Any]) -> tuple[bool, bool, float]:
        how = entry["precision"] != config.optim.precision, entry["compile"] != config.run.compile
        return *how, abs(math.log(entry["flops_per_image"] / flops))

    for name, record in records:
        entries = [one for one in record["training"] if one["device"] == device and one["images_per_second"]]
        judged = [one for one in record["at_once"] if one["device"] == device and "evaluation_seconds" in one]
        if not entries or not judged:
            continue
        best = min(entries, key=unlike)
        nearest = min(judged, key=unlike)
        slowed = _sharing(record, device, best["scale"], machine.slots(config) / max(machine.gpus, 1))
        training: float = best["images_per_second"]["median"] * best["flops_per_image"] * slowed
        return training, nearest["evaluation_flops_per_second"] * slowed, f"by {name}"
    return (ASSUMED_GPU[0] * config.run.gpu_share,) * 2 + (ASSUMED_GPU[1],) if device == "cuda" else None


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


FORMAT = 2
"""Of a record's keys; a record of another format is passed over."""
