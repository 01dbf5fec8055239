"""MLflow, fed from the trials' folders: in batches, beside the training, each point once.

    python -m lmim.tracking sync [--out results] [--tracking-uri URI]

One experiment a sweep, in it one parent run a scale, under it one child run a trial. The folders
stay the truth: a database that is lost, or a server that was away, is filled again by `sync`.
The only module that imports MLflow, and only once a Tracker is made: the import takes seconds.
"""

import contextlib
import getpass
import json
import logging
import math
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from lmim import pages
from lmim.command import Parser, exit_code, out_folder
from lmim.errors import UserError, brief, redacted
from lmim.files import write_atomic
from lmim.plan.record import Record, RecordedTrial, kept
from lmim.trial.folder import State, TrialFolder
from lmim.trial.standing import NOT_COMPARED, Standing, standing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

    from lmim.plan.ablation import Sweep

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # it would print the address of each run, with a password that the server was named with
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own defaults hold a caller up for four minutes when the server is gone
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""What to install for a database's module, where that is not the module's own name."""
FIGURES = "lmim.figures"
"""The tag that names what a run has under figures/; a name says what is in the file."""
METRICS_PER_BATCH = 800  # MLflow takes 1000 of metrics, params and tags together
PAIRS_PER_BATCH = 90  # and 100 params, or tags


@dataclass
class _Child:
    """What MLflow is known to hold of one trial."""

    run: str
    status: str
    tags: dict[str, str]
    offset: int = 0
    """Bytes of the journal that were read."""
    rewinds: int = 0
    last: dict[str, int] = field(default_factory=dict)
    """The newest step of each metric: a point at or before it is there already."""
    new: bool = False
    """Made by this process, and so empty at first."""
    read_back: bool = False
    judged: dict[str, float] = field(default_factory=dict)
    """The newest figure of each metric, of which an evaluation has one point, and one more if judged anew."""
    data: set[tuple[str, str]] = field(default_factory=set)
    """Name and version of the datasets that are named as its input."""
    over: tuple[tuple[int, int], ...] = ()
    """Of a trial that is over, the files of which MLflow was told all; see `_stamp`."""


def default_uri(out: Path) -> str:
    """The database under `out`; absolute, because MLflow's default follows the working directory.

    >>> default_uri(Path("/data/results"))
    'sqlite:////data/results/mlflow.db'
    """
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


def connect(uri: str) -> "MlflowClient":
    """MLflow's client, without its telemetry, its chatter and its long waits.

    A database gets its tables here; a server is not asked anything yet.

    Raises:
        UserError: MLflow refuses the URI or the database.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name, level in (("alembic", logging.WARNING), ("urllib3.connectionpool", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    try:
        _prepare(uri)
        return MlflowClient(uri)
    except ImportError as error:
        package = DRIVERS.get(error.name or "", error.name)
        raise UserError(
            f"--tracking-uri {redacted(uri)}: {error.name}, the database's driver, is not installed; "
            f"pip install {package}"
        ) from None
    except (MlflowException, SQLAlchemyError, OSError, ValueError, sqlite3.Error) as error:
        file = Path(uri.removeprefix("sqlite:///"))
        hint = "; move it away, and a new one is filled from the trials' folders" if file.is_file() else ""
        raise UserError(f"--tracking-uri {redacted(uri)}: {brief(error)}{hint}") from None


def runs_of(trial: TrialFolder, uri: str | None = None) -> list[str]:
    """The runs that MLflow has of a trial; none where there is no database."""
    uri = uri or default_uri(trial.root.parent)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return []
    client = connect(uri)
    where = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(where, f"tags.`lmim.trial_id` = '{trial.id}'")
    return [f"run {run.info.run_id} of experiment {run.info.experiment_id}" for run in found]


class Tracker:
    """Feeds one sweep's trials to MLflow.

    `feed` never raises for a server that does not answer: it warns once and catches up later.

    Args:
        uri: MLflow's tracking URI; None is `default_uri(out)`.
        sweep: what to track; it is written to <out>/<name>/<place>/plan.json first.
        out: the folder that holds `trials/`.

    Raises:
        UserError: MLflow refuses the URI or the database.
    """

    retry_seconds = 30.0
    """How long to leave a server alone that did not answer."""

    def __init__(self, uri: str | None, sweep: "Sweep | Record", out: Path) -> None:
        self.uri = uri or default_uri(out)
        self.out = out.resolve()
        plan = sweep if isinstance(sweep, Record) else Record.of(sweep)
        self.plan = plan.since(kept(plan.name, self.out))
        self._axes = {arm.name: arm.axes for arm in self.plan.arms}
        self._parent: str | None = None
        self._data: set[tuple[str, str]] = set()
        self._experiment = ""
        self._children: dict[str, _Child] = {}
        self._left: list[RecordedTrial] = []
        """What a feed had no time for, the next one last."""
        self._seen: dict[str, str] = {}
        """How each trial stood when it was last fed."""
        self._silent_until = 0.0
        self._warned: set[str] = set()

        self.plan.file(self.out).parent.mkdir(parents=True, exist_ok=True)
        self._keep()
        self._client = connect(self.uri)
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self._failures = (MlflowException, SQLAlchemyError, OSError)

    def _keep(self) -> str:
        """Write the plan; its text."""
        text = self.plan.model_dump_json(indent=2) + "\n"
        write_atomic(self.plan.file(self.out), text)
        return text

    @property
    def behind(self) -> bool:
        """Whether the last feed had no time for all trials."""
        return bool(self._left)

    def feed(self, seconds: float = math.inf) -> bool:
        """Bring MLflow up to date with the folders; False if it could not be reached.

        With so many `seconds`, as far as they reach, a trial at least: the next such feed goes on from there.
        """
        until = time.monotonic() + seconds
        if time.monotonic() < self._silent_until:
            return False
        try:
            if self._parent is None:
                self._connect()
            if not self._left or seconds == math.inf:
                self._left = _once(self.plan.trials)[::-1]
            late = False
            while self._left and not late:
                trial = self._left.pop()
                try:
                    self._seen[trial.id] = self._feed(trial)
                except UserError as error:  # one damaged folder must not hold up the others
                    self._seen[trial.id] = "failed"
                    self._warn(str(error))
                late = time.monotonic() >= until
        except self._failures as error:
            self._parent, self._left = None, []  # what arrived is unknown: read it back
            self._silent_until = time.monotonic() + self.retry_seconds
            self._warn(
                f"MLflow at {redacted(self.uri)} takes nothing ({brief(error)}); training goes on, and "
                "the metrics follow when it is back, or with: python -m lmim.tracking sync"
            )
            return False
        self._warned = {text for text in self._warned if not text.startswith("MLflow at ")}
        return True

    def close(self) -> bool:
        """Feed what is left and set the parent's status; False if MLflow could not be reached."""
        self._silent_until = 0.0
        if not self.feed() or self._parent is None:
            return False
        try:
            self._finish(self._parent, _overall(set(self._seen.values())))
        except self._failures as error:
            self._warn(f"MLflow at {redacted(self.uri)} takes nothing ({brief(error)})")
            return False
        return True

    def _warn(self, text: str) -> None:
        kind = "MLflow at " if text.startswith("MLflow at ") else text
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning(text)

    def _standing(self, folder: TrialFolder, trial: RecordedTrial) -> Standing:
        judged, ending = self.plan.judged_by(trial), trial.ending or self.plan.ending
        return standing(folder, judged, trial.data_version, ending)

    def _folder(self, trial: str) -> TrialFolder:
        return TrialFolder(self.out / "trials", trial)

    def _connect(self) -> None:
        """Find or make the experiment and the parent, and what they hold of each trial."""
        plan = self.plan
        self._experiment = self._find_experiment().experiment_id
        parents = [run for run in self._search("tags.`lmim.sweep` LIKE '%'") if place_of(run) == plan.place]
        parent = parents[0] if parents else None
        tags = {
            "lmim.sweep": plan.name,
            "lmim.scale": plan.scale,
            "lmim.place": plan.place,
            "lmim.question": plan.question,
            "lmim.metric": plan.metric,
            "lmim.design": plan.design,
            "lmim.updated": str(int(time.time())),
        }
        source = {"mlflow.source.name": plan.path, "mlflow.source.git.commit": plan.commit}
        tags |= {"mlflow.source.type": "LOCAL"} | {key: value for key, value in source.items() if value}
        if parent is None:
            tags["mlflow.user"] = _user()  # it cannot be changed later
            parent = self._client.create_run(
                self._experiment, tags=tags, run_name=f"{plan.name} {plan.place}"
            )
        log_batches(self._client, parent.info.run_id, tags=_changed(parent.data.tags, tags))
        self._data = _datasets(parent)
        shown = self._client.get_experiment(self._experiment).tags
        wanted = pages.experiment_tags(plan, self._experiment, parent.info.run_id, shown)
        for key, value in _changed(shown, wanted).items():
            self._client.set_experiment_tag(self._experiment, key, value)
        self.plan = plan.since(self._recorded(parent.info.run_id))
        self._client.log_text(parent.info.run_id, self._keep(), "plan.json")
        if parent.info.status != "RUNNING" and _overall(set(map(self._status, plan.trials))) != "FINISHED":
            self._client.update_run(parent.info.run_id, status="RUNNING")

        self._children = {}
        planned = {trial.id for trial in plan.trials}
        for run in self._search(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"):
            trial = run.data.tags.get("lmim.trial_id", "")
            if trial in self._children:  # made twice, by a request that was answered too late
                self._client.delete_run(run.info.run_id)
                continue
            self._children[trial] = _child(run)
            if trial not in planned and run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")
        self._parent = parent.info.run_id

    def _recorded(self, run: str) -> list[Record]:
        """The plan that the parent holds: it may know claims of which the folders know no longer."""
        if not any(file.path == "plan.json" for file in self._client.list_artifacts(run)):
            return []
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):
            text = Path(self._client.download_artifacts(run, "plan.json", folder)).read_bytes()
            return [Record.model_validate_json(text)]
        return []

    def _find_experiment(self) -> "Experiment":
        experiment = self._client.get_experiment_by_name(self.plan.name)
        if experiment is None:
            # a server keeps artifacts where it was told to; a database keeps them beside itself
            local = self.uri.startswith("sqlite:")
            location = (self.out / "artifacts" / self.plan.name).as_uri() if local else None
            # the page of some versions opens on language models without it; of others, see pages.py
            tags = {"mlflow.experimentKind": "custom_model_development"}
            created = self._client.create_experiment(self.plan.name, location, tags)
            experiment = self._client.get_experiment(created)
        elif experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment

    def _search(self, query: str) -> "Iterable[Run]":
        """The active runs that match, oldest first."""
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], query, order_by=["attributes.start_time ASC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _feed(self, trial: RecordedTrial) -> str:
        """Tell MLflow of one trial; how it stands."""
        folder = self._folder(trial.id)
        child = self._children.get(trial.id)
        stamp = _stamp(folder)
        if child is not None and child.over and child.over == stamp:
            return self._seen[trial.id]
        # before the rows: a trial that is done has written all of them
        stands = self._standing(folder, trial)
        state = stands.state
        if state.status == "new":
            return "new"
        born = folder.born()
        if child is not None and (
            (born and child.tags.get("lmim.born", repr(born)) != repr(born))
            or (child.tags.get("lmim.ended") and not state.ended)
        ):
            # The trial began anew, from its first step, or from where it had been ended early: what MLflow
            # holds are another run's results.
            self._client.delete_run(child.run)
            child = None
        if child is None:
            child = self._children[trial.id] = self._create(trial, state)
        params: dict[str, str] = {}
        if "lmim.fed" not in child.tags:  # made just now, or by a feed that was cut off here
            have = {} if child.new else self._client.get_run(child.run).data.params
            params = {key: str(value) for key, value in folder.config().flat().items()}
            # logged once: MLflow refuses to change a param
            params = {key: value for key, value in params.items() if key not in have}
        if not child.data:  # made just now, or by a version that did not name them
            self._name_data(child, folder, trial.data_version)
        points, offset = self._points(child, folder, stands)
        tags = _tags(stands, folder, trial) | {"lmim.fed": f"{state.rewinds} {offset}"}
        tags |= self._labels(trial) | self._figures(child, folder, trial.data_version)
        if born:
            tags["lmim.born"] = repr(born)
        changed = _changed(child.tags, {k: v for k, v in tags.items() if v or k in child.tags})
        log_batches(self._client, child.run, points, params, changed)
        child.tags |= changed
        self._tell_status(child, stands)
        child.over = stamp if stands.status in ("done", "failed") else ()
        return stands.status

    def _tell_status(self, child: _Child, stands: Standing) -> None:
        state = stands.state
        status = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED"}.get(stands.status, "KILLED")
        if status == child.status:
            return
        if status == "RUNNING":
            self._client.update_run(child.run, status=status)
        else:
            ended = state.finished or state.heartbeat
            self._client.set_terminated(child.run, status, int(ended * 1000) if ended else None)
        child.status = status

    def _points(
        self, child: _Child, folder: TrialFolder, stands: Standing
    ) -> tuple[list[tuple[str, float, int, int]], int]:
        """What MLflow has not of the journal and of the evaluations, and how far the journal was read."""
        state = stands.state
        if child.rewinds != state.rewinds:
            child.offset, child.rewinds = 0, state.rewinds
        rows, offset = folder.rows(child.offset)
        if rows and not child.read_back:
            self._read_back(child)
        points = []
        for row in rows:
            for name, value in row.metrics.items():
                if row.step > child.last.get(name, -1):
                    child.last[name] = row.step
                    points.append((name, value, int(row.time * 1000), row.step))
        child.offset = offset
        now = int((state.finished or state.heartbeat or time.time()) * 1000)
        for name, value in stands.metrics.items():
            known = child.judged.get(name)
            if name not in state.metrics and (known is None or not _same(known, value)):
                # of points of one step MLflow shows the latest
                points.append((name, value, now if known is None else int(time.time() * 1000), state.step))
                child.judged[name] = value
        return points, offset

    def _figures(self, child: _Child, folder: TrialFolder, version: str) -> dict[str, str]:
        """Log what the plan's figures are drawn of; the tag that names it."""
        kept = [one.kept(folder.path, version) for one in self.plan.figures if not one.of_sweep]
        files = {file.name: file for file in kept if file is not None}
        for name in files.keys() - set(child.tags.get(FIGURES, "").split()):
            self._client.log_artifact(child.run, str(files[name]), "figures")
        return {FIGURES: " ".join(sorted(files))}

    def _labels(self, trial: RecordedTrial) -> dict[str, str]:
        """What the plan calls a trial, which may change while its results stay."""
        number = trial.suggestion
        of_search = {} if number is None else {"lmim.suggestion": str(number + 1)}
        which = "" if number is None else f" suggestion {number + 1}"
        return {
            "mlflow.runName": f"{trial.arm}{which} seed {trial.seed}",
            "lmim.arm": trial.arm,
            "lmim.seed": str(trial.seed),
            **of_search,
            **{f"lmim.axis.{key}": str(value) for key, value in self._axes.get(trial.arm, {}).items()},
        }

    def _create(self, trial: RecordedTrial, state: State) -> _Child:
        tags = {
            "mlflow.parentRunId": self._parent,
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            **({"mlflow.source.name": self.plan.path} if self.plan.path else {}),
            "lmim.trial_id": trial.id,
            "lmim.scale": self.plan.scale,
            **self._labels(trial),
        }
        run = self._client.create_run(
            self._experiment, start_time=int(state.started * 1000) if state.started else None, tags=tags
        )
        child = _child(run)
        child.new = child.read_back = True
        return child

    def _name_data(self, child: _Child, folder: TrialFolder, version: str) -> None:
        """Name what a trial read as its input, and as the sweep's."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = folder.config().data
        source = json.dumps({"uri": data.path or data.name})
        found = Dataset(data.name, version[:36] or "unknown", "local", source)  # MLflow takes no more
        named = [DatasetInput(found, [InputTag("mlflow.data.context", "training")])]
        for run, have in ((self._parent or "", self._data), (child.run, child.data)):
            if (found.name, found.digest) not in have:
                self._client.log_inputs(run, named)
                have.add((found.name, found.digest))

    def _read_back(self, child: _Child) -> None:
        """Learn which points of a run that was found MLflow has."""
        for name in self._client.get_run(child.run).data.metrics:
            history = self._client.get_metric_history(child.run, name)
            child.last[name] = max((point.step for point in history), default=-1)
        child.read_back = True

    def _status(self, trial: RecordedTrial) -> str:
        try:
            return self._standing(self._folder(trial.id), trial).status
        except UserError:
            return "failed"

    def _finish(self, run: str, status: str) -> None:
        info = self._client.get_run(run).info
        if info.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run, status=status)
        else:
            self._client.set_terminated(run, status)


def sync(out: Path, uri: str | None = None) -> dict[str, bool]:
    """Feed MLflow again from the folders under `out`: plan's name to whether it arrived.

    Raises:
        UserError: there is no plan, or one is damaged.
    """
    files = sorted(out.glob("*/*/plan.json"))
    if not files:
        raise UserError(f"{out}: no sweep has been run here (no <name>/<place>/plan.json); pass its --out")
    arrived = {}
    for file in files:
        try:
            plan = Record.model_validate_json(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: damaged ({brief(error)}); run the sweep again") from None
        arrived[f"{plan.name}/{plan.place}"] = Tracker(uri, plan, out).close()
    return arrived


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 all arrived, 1 MLflow does not answer, 2 wrong arguments."""
    return exit_code(lambda: _command(arguments))


def _command(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m lmim.tracking", description="Feed MLflow from the trials' folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sync", help="feed MLflow again from the trials' folders")
    command.add_argument("--out", type=out_folder, default=Path("results"), help="the sweeps' folder")
    command.add_argument("--tracking-uri", help="MLflow's URI; default: the database under --out")
    options = parser.parse_args(arguments)
    arrived = sync(options.out, options.tracking_uri)
    for name, done in arrived.items():
        print(f"{name}: {'up to date' if done else 'not sent'}")
    return 0 if all(arrived.values()) else 1


def place_of(parent: "Run") -> str:
    """The scale with the settings; an old parent holds whatever settings ran last."""
    tags: Mapping[str, str] = parent.data.tags
    return tags.get("lmim.place", tags.get("lmim.scale", ""))


def log_batches(
    client: "MlflowClient",
    run: str,
    points: Sequence[tuple[str, float, int, int]] = (),
    params: Mapping[str, str] = {},
    tags: Mapping[str, str] = {},
) -> None:
    """Metrics in order (name, value, milliseconds, step), params, tags, in batches that MLflow takes.

    The tags are written with the last of the metrics, or after it: they may say that those are there.
    """
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(*point) for point in points]
    pairs = [Param(key, value) for key, value in params.items()]
    marks = [RunTag(key, value) for key, value in tags.items()]
    rest = max(len(pairs) - 1, 0) // PAIRS_PER_BATCH * PAIRS_PER_BATCH
    for start in range(0, rest, PAIRS_PER_BATCH):
        client.log_batch(run, params=pairs[start : start + PAIRS_PER_BATCH])
    last = max(len(metrics) - 1, 0) // METRICS_PER_BATCH * METRICS_PER_BATCH
    for start in range(0, last, METRICS_PER_BATCH):
        client.log_batch(run, metrics=metrics[start : start + METRICS_PER_BATCH])
    if metrics or pairs or marks:
        client.log_batch(run, metrics[last:], pairs[rest:], marks[:PAIRS_PER_BATCH])
    for start in range(PAIRS_PER_BATCH, len(marks), PAIRS_PER_BATCH):
        client.log_batch(run, tags=marks[start : start + PAIRS_PER_BATCH])


def _child(run: "Run") -> _Child:
    """What a run that was found tells of itself; `lmim.fed` is written after the points it counts."""
    tags = dict(run.data.tags)
    rewinds, _, offset = tags.get("lmim.fed", "").partition(" ")
    fed = rewinds.isdigit() and offset.isdigit()
    return _Child(
        run=run.info.run_id,
        status=run.info.status,
        tags=tags,
        offset=int(offset) if fed else 0,
        rewinds=int(rewinds) if fed else 0,
        judged=dict(run.data.metrics),
        data=_datasets(run),
    )


def _datasets(run: "Run") -> set[tuple[str, str]]:
    """Name and version of what is named as a run's input."""
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    return {(one.dataset.name, one.dataset.digest) for one in inputs}


def _overall(words: set[str]) -> str:
    """The parent's status, from those of all trials."""
    for word, status in (
        ("running", "RUNNING"),
        ("interrupted", "KILLED"),
        ("trained", "KILLED"),
        ("new", "SCHEDULED"),
    ):
        if word in words:
            return status
    return "FAILED" if "failed" in words else "FINISHED"


def _stamp(folder: TrialFolder) -> tuple[tuple[int, int], ...]:
    """What changes whenever something is written of a trial that is over."""
    stamps = []
    for name in ("state.json", "journal.jsonl", "evaluations", "figures", "replay.json"):
        with contextlib.suppress(FileNotFoundError):
            found = (folder.path / name).stat()
            stamps.append((found.st_ino, found.st_mtime_ns))
    return tuple(stamps)


def _once(trials: Sequence[RecordedTrial]) -> list[RecordedTrial]:
    """Each run in the plan: a trial that stands in several arms has one, named for the first of them."""
    return list({trial.id: trial for trial in reversed(trials)}.values())[::-1]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _tags(stands: Standing, folder: TrialFolder, trial: RecordedTrial) -> dict[str, str]:
    """What the report must know of a trial besides its metrics."""
    state, replayed = stands.state, folder.replayed()
    lived = "outcome ended commit python torch timm device host"
    found = {name: getattr(state, name) for name in lived.split()}
    found |= {"status": stands.status, "error": stands.error, "dataset_version": trial.data_version}
    found["code"] = "; then ".join(sorted(stands.codes))
    if replayed is not None:
        differs = replayed.difference or ("" if stands.excluded == NOT_COMPARED else stands.excluded)
        found |= {"replayed": "" if differs else replayed.code, "differs": differs}
    newest = {"mlflow.source.git.commit": (state.commit or "").rpartition("; then ")[2]}
    return newest | {f"lmim.{name}": str(value or "")[:5000] for name, value in found.items()}


def _same(known: float, value: float) -> bool:
    """Whether MLflow has this figure; it keeps the largest number there is for infinity."""
    huge = math.isinf(value) and abs(known) > 1e308 and known * value > 0
    return known == value or huge or (math.isnan(known) and math.isnan(value))


def _changed(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in new.items() if old.get(key) != value}


def _prepare(uri: str) -> None:
    """Let MLflow's UI read a database while we write (its file remembers it); follow a folder that moved."""
    if not uri.startswith("sqlite:"):
        return
    file = uri.removeprefix("sqlite:///")
    if file in ("", uri):
        raise ValueError("names no file; expected sqlite:////folder/mlflow.db")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            _follow(connection, Path(file).resolve().parent)
    finally:
        connection.close()


def _follow(database: sqlite3.Connection, folder: Path) -> None:
    """Name the artifacts that lie beside a database as lying there: MLflow keeps where they were first.

    Else those of a results folder that was moved or copied are missed, and new ones written to where it was.
    """
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return
    kept = database.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
    for experiment, location in kept:
        above, _, name = (location or "").rpartition("/artifacts/")
        here = f"{folder.as_uri()}/artifacts/{name}"
        if (
            above.startswith("file://")
            and here != location
            and (folder / "artifacts" / unquote(name)).is_dir()
        ):
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, experiment)
            )
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (f"{here}/", len(location) + 2, experiment, len(location) + 1, f"{location}/"),
            )


if __name__ == "__main__":
    sys.exit(main())
