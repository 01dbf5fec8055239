"""What MLflow knows of a sweep: which trials count, which do not, and why."""

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from lmim.errors import UserError, brief, fail, nearest, redacted, show
from lmim.metrics import full_name
from lmim.plan.record import RecordedSearch, place
from lmim.tracking import FIGURES, connect, place_of
from lmim.trial.figure import Figure

if TYPE_CHECKING:  # importing MLflow takes a second, and only `read` and `curves` need it
    from mlflow import MlflowClient

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A sweep's name and its scale, which become folders."""
MACHINE = ("python", "torch", "timm", "device", "host")
"""What of a trial's provenance is not its code or its data."""
NO_RUN = "no run yet"
OLD_PLAN = "not in the newest plan"
LARGEST = 1.7e308
"""MLflow stores infinity as the largest double."""


@dataclass(frozen=True)
class Arm:
    """One row to be: a variant under comparison, or a baseline."""

    name: str
    axes: Mapping[str, Any]
    """Dotted config key to value, as far as the sweep varies it."""
    baseline: bool = False
    flops: float = 0.0
    """Of one training; 0 where nothing is trained, or it was not counted."""


@dataclass(frozen=True)
class Trial:
    """One child run."""

    id: str
    arm: str
    seed: int
    run_id: str = ""
    status: str = "done"
    outcome: str = "learned"
    """Empty for what was only evaluated."""
    error: str = ""
    early: str = ""
    """Why it ended before its last step, if it did."""
    code: str = ""
    """Digest of the code that trained it."""
    commit: str = ""
    replayed: str = ""
    """The code under which a replay gave the same digits; empty if none."""
    differs: str = ""
    """What a replay found to be different."""
    dataset_version: str = ""
    python: str = ""
    torch: str = ""
    timm: str = ""
    device: str = ""
    """The model of the GPU or the processor."""
    host: str = ""
    started: int = 0
    ended: int = 0
    """In milliseconds, as `started`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[str, ...] = ()
    """What it has for figures to be drawn of, by the files' names."""

    @property
    def core_seconds(self) -> float:
        """What it took of the processors."""
        if "system/core_seconds" in self.metrics:
            return self.metrics["system/core_seconds"]
        # an older trial's: right where no resume took other cores
        cores = float(self.params.get("run.cpus", 1)) * float(self.params.get("run.processes", 1))
        return self.metrics.get("system/seconds", 0.0) * cores


@dataclass(frozen=True)
class Excluded:
    """A planned trial that is in no mean, and the reason."""

    id: str
    arm: str
    seed: int
    reason: str
    odd: bool = False
    """It is done, but by code of which no replay has shown that it does what today's does."""


@dataclass(frozen=True)
class Results:
    """A sweep at one scale: its plan, the trials that count, and those that do not."""

    name: str
    scale: str
    settings: Mapping[str, str]
    """What the command line set, laid over every arm."""
    question: str
    metric: str
    design: str
    seeds: tuple[int, ...]
    claims: tuple[str, ...]
    arms: tuple[Arm, ...]
    """In the order of the file, the baselines last."""
    trials: tuple[Trial, ...]
    excluded: tuple[Excluded, ...]
    digest: str
    """Of all that was read."""
    experiment: str = ""
    parent: str = ""
    """The sweep's run in MLflow."""
    code: str = ""
    """Digest of the code that was today's when the sweep ran; empty in an old plan: then none is compared."""
    commit: str = ""
    """The commit of that code."""
    described: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Metric to its `label`, `unit` and which way is `better`."""
    stated: Mapping[str, float] = field(default_factory=dict)
    """Claim, by `statement`, to when it was first stated, in seconds; without those of which nobody knows."""
    first: Mapping[str, float] = field(default_factory=dict)
    """Arm to when the first of its trials had ended, in seconds, whether it counts or not."""
    notes: tuple[str, ...] = ()
    """Which arms are one, which images cannot be read, and what results chose of a design that selects."""
    classes: int = 0
    """Of the data; 0 where it is not known, or not the same for all arms."""
    sequential: bool = False
    """Results decided how many seeds there are: no interval of one look holds."""
    searches: tuple[RecordedSearch, ...] = ()
    """Of the arms that were tuned."""
    figures: tuple[Figure, ...] = ()
    """What the sweep's file asks for."""
    searched: Mapping[str, Trial] = field(default_factory=dict)
    """The runs that searches tried, by their identities."""

    @property
    def place(self) -> str:
        """The scale with the settings, as a folder's name."""
        return place(self.scale, self.settings)

    @property
    def setting(self) -> str:
        """The scale, and what the command line changed of it."""
        changed = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.scale} with {changed}" if changed else self.scale

    def of(self, arm: str) -> list[Trial]:
        """The trials of an arm that count."""
        return list(self._of.get(arm, ()))

    @cached_property
    def _of(self) -> Mapping[str, Sequence[Trial]]:
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            found.setdefault(trial.arm, []).append(trial)
        return found

    def label(self, metric: str) -> str:
        """A metric's name for people, with its unit: `k-NN top-1 (%)`; of an unknown one, its own words."""
        known = self.described.get(metric, {})
        text = known.get("label") or metric.rpartition("/")[2].replace("_", " ")
        return f"{text} ({known['unit']})" if known.get("unit") else text

    def chance(self, metric: str) -> float | None:
        """What guessing gives, where the metric is a top-1 accuracy in per cent, by its name."""
        percent = self.described.get(metric, {}).get("unit") == "%" and "top1" in metric
        return 100 / self.classes if percent and self.classes else None

    def replayed_on(self, trial: Trial) -> str:
        """The commit that gave the digits of a trial that counts again; empty where its code trained it."""
        return (self.commit or self.code) if self.code not in ("", trial.code) else ""

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The sweep's metric, then the other eval/* metrics, then the effective rank."""
        found = {key for trial in self.trials for key in trial.metrics}
        others = sorted(key for key in found if key.startswith("eval/"))
        order = [self.metric, *others, *(["collapse/rank"] if "collapse/rank" in found else [])]
        return tuple(dict.fromkeys(order))


def assemble(plan: Mapping[str, Any], runs: Iterable[Trial]) -> Results:
    """Plan and child runs -> results.

    A run counts when it is planned, done, and of the plan's code: trained by it, or replayed on it with the
    same digits.
    """
    arms = _arms(plan)
    place = {arm.name: index for index, arm in enumerate(arms)}
    newest = _newest(runs)
    rows_of = [t for t in plan["trials"] if t.get("suggestion") is None]
    cells = [(Trial(t["id"], t["arm"], t["seed"]), newest.get(t["id"])) for t in rows_of]
    # a trial that stands in several arms has one run; which arms those are, the plan says
    found = [replace(run, arm=cell.arm, seed=cell.seed) for cell, run in cells if run is not None]
    done = [run for run in found if run.status == "done"]

    code = plan.get("code", "")
    alike = {run.id for run in done if not code or code in (run.code, run.replayed)}
    planned = {t["id"] for t in plan["trials"]}  # what a search tried is in no table, and not left out of it
    excluded = [
        *(_excluded(cell, NO_RUN) for cell, run in cells if run is None),
        *(_excluded(run, _unfinished(run)) for run in found if run.status != "done"),
        *(_excluded(run, OLD_PLAN) for run in newest.values() if run.id not in planned),
        *(replace(_excluded(run, _of_other_code(run)), odd=True) for run in done if run.id not in alike),
    ]

    def order(item: Trial | Excluded) -> tuple[int, int, str, str]:
        return place.get(item.arm, len(place)), item.seed, item.arm, item.id

    others, unlike = _others(plan)
    arms += tuple(Arm(one.arm, {}, baseline=True) for one in others)
    place |= {one.arm: len(place) + number for number, one in enumerate(others)}
    counted = [*(run for run in done if run.id in alike), *others]

    return Results(
        name=plan["name"],
        scale=plan["scale"],
        settings=plan.get("settings", {}),
        question=" ".join(plan["question"].split()),
        metric=full_name(plan["metric"]),
        design=plan["design"],
        seeds=tuple(plan["seeds"]),
        claims=tuple(plan["claims"]),
        arms=arms,
        trials=tuple(sorted(counted, key=order)),
        excluded=tuple(sorted([*excluded, *unlike], key=order)),
        digest=_digest(plan, newest.values()),
        code=code,
        commit=plan.get("commit", ""),
        described=plan.get("metrics", {}),
        stated=plan.get("stated", {}),
        first=_first(done),
        notes=tuple(plan.get("notes", ())),
        classes=plan.get("classes", 0),
        sequential=plan.get("sequential", False),
        searches=tuple(map(RecordedSearch.model_validate, plan.get("searches", ()))),
        figures=TypeAdapter(tuple[Figure, ...]).validate_python(plan.get("figures", ())),
        searched={
            run.id: run for run in newest.values() if run.id in planned - {cell.id for cell, _ in cells}
        },
    )


def _newest(runs: Iterable[Trial]) -> dict[str, Trial]:
    """Of each trial the last run that is done, or else the last."""
    return {
        run.id: run for run in sorted(runs, key=lambda run: (run.status == "done", run.started, run.run_id))
    }


def _arms(plan: Mapping[str, Any]) -> tuple[Arm, ...]:
    flops = plan.get("flops", {})
    arms = [Arm(a["name"], a["axes"], a["baseline"], flops.get(a["name"], 0.0)) for a in plan["arms"]]
    return tuple(sorted(arms, key=lambda arm: arm.baseline))


def _others(plan: Mapping[str, Any]) -> tuple[list[Trial], list[Excluded]]:
    """Others' encoders that stand beside the trials, and those that do not, for what has changed since."""
    versions = {trial.get("data_version", "") for trial in plan["trials"]}
    found, unlike = [], []
    for one in plan.get("others", ()):
        changed = "data" if one["beside"] not in versions else ""
        changed = "code" if plan.get("code") not in ("", None, one["code"]) else changed
        if changed:
            unlike.append(
                Excluded(one["encoder"], one["name"], 0, f"judged with other {changed}: judge it again")
            )
        else:
            found.append(_other(one))
    return found, unlike


def _other(one: Mapping[str, Any]) -> Trial:
    """Others' encoder as a trial without a run; it was not trained here, so that it came to no outcome."""
    return Trial(
        id=one["encoder"],
        arm=one["name"],
        seed=0,
        outcome="",
        code=one["code"],
        commit=one["commit"],
        dataset_version=one["data_version"],
        torch=one["torch"],
        timm=one["timm"],
        device=one["device"],
        ended=int(1000 * one["judged"]),
        metrics={"system/core_seconds": one["seconds"]} | {k: float(v) for k, v in one["metrics"].items()},
    )


def _first(done: Iterable[Trial]) -> dict[str, float]:
    first: dict[str, float] = {}
    for run in done:
        if run.ended:
            first[run.arm] = min(run.ended / 1000, first.get(run.arm, math.inf))
    return first


def _excluded(trial: Trial, reason: str) -> Excluded:
    return Excluded(trial.id, trial.arm, trial.seed, reason)


def _unfinished(run: Trial) -> str:
    return f"{run.status}: {run.error}".removesuffix(": ")


def _of_other_code(run: Trial) -> str:
    where = f"other code ({run.commit or 'unknown'})"
    return f"{where}: {run.differs}" if run.differs else f"{where}, not yet compared: run the sweep again"


def _digest(plan: Mapping[str, Any], runs: Iterable[Trial]) -> str:
    """Equal when a report built from these would be equal."""
    lines = [json.dumps(plan, sort_keys=True), *sorted(map(repr, runs))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Reading MLflow


@contextmanager
def reading(uri: str) -> "Iterator[MlflowClient]":
    """A client of a database or server that is there; UserError where it is not, or does not answer."""
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not file.is_file():  # MLflow would make one
        raise UserError(f"{file}: no MLflow database there; run a sweep first, or give --out")
    client = connect(uri)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield client
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"{redacted(uri)}: cannot be read ({brief(error)}); check --tracking-uri") from error


def read(name: str, scale: str | None, uri: str) -> Results:
    """Read a sweep at a scale, `demo`, or with settings, `demo+optim.epochs=1` (None: what ran last).

    Raises UserError for a sweep or scale that is not there, with the nearest name, and for a server that
    does not answer.
    """
    with reading(uri) as client:
        return _read(client, name, scale)


def _read(client: "MlflowClient", name: str, scale: str | None) -> Results:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = [e.name for e in client.search_experiments() if e.name != "Default"]
        raise UserError(f"no sweep named {name} in MLflow{_known(name, names)}")
    where = [experiment.experiment_id]
    parents = sorted(client.search_runs(where, "tags.`lmim.sweep` != ''"), key=_updated, reverse=True)
    scales = list(dict.fromkeys(map(place_of, parents)))
    if not parents or (scale is not None and scale not in scales):
        raise UserError(f"sweep {name} has no runs at scale {scale}{_known(scale or '', scales)}")
    parent = next(run for run in parents if scale in (None, place_of(run)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = client.download_artifacts(parent.info.run_id, "plan.json", folder)
        except OSError as error:
            raise UserError(
                f"sweep {name}: its plan.json is not at {parent.info.artifact_uri}; run the sweep again"
            ) from error
        plan = json.loads(Path(file).read_text(encoding="utf-8"))
    for key in ("name", "scale"):
        if not NAME.fullmatch(str(plan[key])):
            expected = f"{key}: expected at most 64 letters, digits, - and _, found {show(plan[key])}"
            fail(f"plan.json of sweep {name} in MLflow", expected)
    runs, token = [], None
    while True:
        page = client.search_runs(
            where, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=1000, page_token=token
        )
        runs += [_trial(run) for run in page]
        token = page.token
        if not token:
            return replace(assemble(plan, runs), experiment=where[0], parent=parent.info.run_id)


def _updated(parent: Any) -> float:
    """When a sweep last ran at a scale, in seconds; an old one says only when it first did."""
    return float(parent.data.tags.get("lmim.updated") or (parent.info.start_time or 0) / 1000)


def _trial(run: Any) -> Trial:
    """An MLflow child run as a trial."""
    tags = run.data.tags
    return Trial(
        id=tags.get("lmim.trial_id", run.info.run_id),
        arm=tags.get("lmim.arm", ""),
        seed=int(tags.get("lmim.seed", -1)),
        run_id=run.info.run_id,
        status=tags.get("lmim.status", "unknown"),
        outcome=tags.get("lmim.outcome", ""),
        error=tags.get("lmim.error", ""),
        early=tags.get("lmim.ended", ""),
        code=tags.get("lmim.code", ""),
        commit=tags.get("lmim.commit", ""),
        replayed=tags.get("lmim.replayed", ""),
        differs=tags.get("lmim.differs", ""),
        dataset_version=tags.get("lmim.dataset_version", ""),
        **{name: tags.get(f"lmim.{name}", "") for name in MACHINE},
        started=run.info.start_time or 0,
        ended=run.info.end_time or 0,
        metrics={key: finite_or_inf(value) for key, value in sorted(run.data.metrics.items())},
        params=dict(sorted(run.data.params.items())),
        figures=tuple(tags.get(FIGURES, "").split()),
    )


def finite_or_inf(value: float) -> float:
    """Undo MLflow's spelling of infinity.

    >>> finite_or_inf(-1.7976931348623157e308), finite_or_inf(2.0)
    (-inf, 2.0)
    """
    return math.copysign(math.inf, value) if abs(value) > LARGEST else value


def curves(uri: str, trials: Iterable[Trial], keys: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Metric -> run id -> step -> value, ascending; of a step that was logged twice the later value.

    MLflow's client has no request for more than one run and metric: a server is asked eight at a time, which
    takes a fifth of the time; a database is no faster for it.
    """
    at_once = 1 if uri.startswith("sqlite:") else 8
    wanted = list(dict.fromkeys((key, t.run_id) for t in trials for key in keys if key in t.metrics))
    found: dict[str, dict[str, dict[int, float]]] = {key: {} for key in keys}
    with reading(uri) as client, ThreadPoolExecutor(at_once) as pool:
        histories = pool.map(lambda job: client.get_metric_history(job[1], job[0]), wanted)
        for (key, run), history in zip(wanted, histories, strict=True):
            points = sorted(history, key=lambda point: (point.step, point.timestamp))
            found[key][run] = {point.step: finite_or_inf(point.value) for point in points}
    return found


def _known(name: str, names: Sequence[str]) -> str:
    """What is there instead."""
    others = f"; there are {', '.join(sorted(names))}" if names else "; run the sweep first"
    return nearest(name, names) or others
