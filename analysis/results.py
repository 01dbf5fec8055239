"""What MLflow knows of a sweep: which trials count, which do not, and why."""

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmim.errors import UserError, brief, redacted
from lmim.plan.sweep_file import full_name

if TYPE_CHECKING:  # importing MLflow takes a second, and only `read` and `curves` need it
    from mlflow import MlflowClient

SQLITE = b"SQLite format 3\0"
"""How a database of SQLite begins."""
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
    commit: str = ""
    dataset_version: str = ""
    scale: str = ""
    started: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Excluded:
    """A planned trial that is in no mean, and the reason."""

    id: str
    arm: str
    seed: int
    reason: str
    odd: bool = False
    """It is done, but of another commit, dataset version or scale than the others."""


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

    @property
    def setting(self) -> str:
        """The scale, and what the command line changed of it."""
        changed = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.scale} with {changed}" if changed else self.scale

    def of(self, arm: str) -> list[Trial]:
        """The trials of an arm that count."""
        return [trial for trial in self.trials if trial.arm == arm]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The sweep's metric, then the other eval/* metrics, then the effective rank."""
        found = {key for trial in self.trials for key in trial.metrics}
        others = sorted(key for key in found if key.startswith("eval/"))
        order = [self.metric, *others, *(["collapse/rank"] if "collapse/rank" in found else [])]
        return tuple(dict.fromkeys(order))


def count(number: int, word: str) -> str:
    """A number of things.

    >>> count(1, "trial"), count(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{number} {word}{'' if number == 1 else 's'}"


def assemble(plan: Mapping[str, Any], runs: Iterable[Trial]) -> Results:
    """Plan and child runs -> results. A run counts when it is planned, done, and of the majority's kind.

    Same commit, dataset version and scale as most of the done trials; a sweep that varies the data has one
    majority of dataset versions for each of its datasets.
    """
    arms = tuple(
        sorted((Arm(a["name"], a["axes"], a["baseline"]) for a in plan["arms"]), key=lambda arm: arm.baseline)
    )
    place = {arm.name: index for index, arm in enumerate(arms)}
    newest = {
        run.id: run for run in sorted(runs, key=lambda run: (run.status == "done", run.started, run.run_id))
    }
    cells = [(Trial(t["id"], t["arm"], t["seed"]), newest.get(t["id"])) for t in plan["trials"]]
    # a trial that stands in several arms has one run; which arms those are, the plan says
    found = [replace(run, arm=cell.arm, seed=cell.seed) for cell, run in cells if run is not None]
    done = [run for run in found if run.status == "done"]

    planned = {cell.id for cell, _ in cells}
    excluded = [
        *(_excluded(cell, NO_RUN) for cell, run in cells if run is None),
        *(
            _excluded(run, f"{run.status}: {run.error}".removesuffix(": "))
            for run in found
            if run.status != "done"
        ),
        *(_excluded(run, OLD_PLAN) for run in newest.values() if run.id not in planned),
    ]

    reasons: dict[tuple[str, str], list[str]] = {(run.id, run.arm): [] for run in done}
    data = {arm.name: _data_axes(arm) for arm in arms}
    baseline = {arm.name: arm.baseline for arm in arms}
    kinds: tuple[tuple[str, Callable[[Trial], str], Callable[[Trial], object]], ...] = (
        ("commit", lambda run: run.commit, lambda run: None),
        ("dataset version", lambda run: run.dataset_version, lambda run: data[run.arm]),
        ("scale", lambda run: run.scale, lambda run: None),
    )
    for word, value, cell in kinds:
        for group in {cell(run) for run in done}:
            members = [run for run in done if cell(run) == group]
            # what is only evaluated is done in seconds, and must not outvote hours of training
            usual = _majority([run for run in members if not baseline[run.arm]] or members, value)
            same = sum(value(run) == usual for run in members)
            for run in members:
                if (own := value(run)) != usual:
                    reasons[run.id, run.arm].append(
                        f"{word} {own or 'unknown'} is not the {usual or 'unknown'} of {count(same, 'other')}"
                    )
    excluded += [
        Excluded(run.id, run.arm, run.seed, "; ".join(why), odd=True)
        for run in done
        if (why := reasons[run.id, run.arm])
    ]

    def order(item: Trial | Excluded) -> tuple[int, int, str, str]:
        return place.get(item.arm, len(place)), item.seed, item.arm, item.id

    return Results(
        name=plan["name"],
        scale=plan["scale"],
        settings=plan.get("settings", {}),
        question=plan["question"],
        metric=full_name(plan["metric"]),
        design=plan["design"],
        seeds=tuple(plan["seeds"]),
        claims=tuple(plan["claims"]),
        arms=arms,
        trials=tuple(sorted((run for run in done if not reasons[run.id, run.arm]), key=order)),
        excluded=tuple(sorted(excluded, key=order)),
        digest=_digest(plan, newest.values()),
    )


def _data_axes(arm: Arm) -> tuple[tuple[str, str], ...]:
    """Where an arm has data of its own: its dataset's version may differ from the other arms'."""
    return tuple(sorted((key, str(value)) for key, value in arm.axes.items() if key.split(".")[0] == "data"))


def _majority(runs: Sequence[Trial], value: Callable[[Trial], str]) -> str:
    """The most frequent value; of equally frequent ones, the one with the newest run."""
    times = Counter(value(run) for run in runs)
    latest = {name: max(run.started for run in runs if value(run) == name) for name in times}
    return max(times, key=lambda name: (times[name], latest[name], name))


def _excluded(trial: Trial, reason: str) -> Excluded:
    return Excluded(trial.id, trial.arm, trial.seed, reason)


def _digest(plan: Mapping[str, Any], runs: Iterable[Trial]) -> str:
    """Equal when a report built from these would be equal."""
    lines = [json.dumps(plan, sort_keys=True), *sorted(map(repr, runs))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Reading MLflow


def connect(uri: str) -> "MlflowClient":
    """A client of a database or server that is there; raises UserError where it is not."""
    if uri.startswith("sqlite:"):
        path = Path(uri.partition("sqlite:///")[2])
        if not path.is_file():
            raise UserError(f"{path}: no MLflow database there; run a sweep first, or give --out")
        with path.open("rb") as file:
            if file.read(len(SQLITE)) != SQLITE:
                raise UserError(f"{path}: not a database; give the --out of a sweep, or --tracking-uri")
    # MLflow's own retries would hold a user for minutes before saying that a server is gone
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def read(name: str, scale: str | None, uri: str) -> Results:
    """Read a sweep at a scale (without one: the scale that ran last).

    Raises UserError for a sweep or scale that is not there, with the nearest name, and for a server that
    does not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _read(connect(uri), name, scale)
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"{redacted(uri)}: cannot be read ({brief(error)}); check --tracking-uri") from error


def _read(client: "MlflowClient", name: str, scale: str | None) -> Results:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = [e.name for e in client.search_experiments() if e.name != "Default"]
        raise UserError(f"no sweep named {name} in MLflow; {_nearest(name, names)}")
    where = [experiment.experiment_id]
    parents = client.search_runs(where, "tags.`lmim.sweep` != ''", order_by=["attributes.start_time DESC"])
    scales = list(dict.fromkeys(run.data.tags.get("lmim.scale", "") for run in parents))
    if not parents or (scale is not None and scale not in scales):
        raise UserError(f"sweep {name} has no runs at scale {scale}; {_nearest(scale or '', scales)}")
    parent = next(run for run in parents if scale in (None, run.data.tags.get("lmim.scale")))
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = client.download_artifacts(parent.info.run_id, "plan.json", folder)
        except OSError as error:
            raise UserError(
                f"sweep {name}: its plan.json is not at {parent.info.artifact_uri}; run the sweep again"
            ) from error
        plan = json.loads(Path(file).read_text(encoding="utf-8"))
    runs, token = [], None
    while True:
        page = client.search_runs(
            where, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=1000, page_token=token
        )
        runs += [_trial(run) for run in page]
        token = page.token
        if not token:
            return assemble(plan, runs)


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
        commit=tags.get("lmim.commit", ""),
        dataset_version=tags.get("lmim.dataset_version", ""),
        scale=tags.get("lmim.scale", ""),
        started=run.info.start_time or 0,
        metrics={key: finite_or_inf(value) for key, value in sorted(run.data.metrics.items())},
        params=dict(sorted(run.data.params.items())),
    )


def finite_or_inf(value: float) -> float:
    """Undo MLflow's spelling of infinity.

    >>> finite_or_inf(-1.7976931348623157e308), finite_or_inf(2.0)
    (-inf, 2.0)
    """
    return math.copysign(math.inf, value) if abs(value) > LARGEST else value


def curve(client: "MlflowClient", run_id: str, key: str) -> dict[int, float]:
    """Step to value, ascending; of a step that was logged twice the later value."""
    history = client.get_metric_history(run_id, key)
    points = sorted(history, key=lambda point: (point.step, point.timestamp))
    return {point.step: finite_or_inf(point.value) for point in points}


def _nearest(name: str, names: Sequence[str]) -> str:
    if not names:
        return "it holds none yet: run the sweep first"
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(names))}"
