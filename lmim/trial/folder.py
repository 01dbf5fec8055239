"""A trial's own folder: the truth about what it is, how far it got and what it measured.

    <out>/trials/<id>/
        config.json      the resolved config, written once
        state.json       how it stands (replaced atomically, with a heartbeat)
        journal.jsonl    the metrics, one row a line, append-only
        checkpoint.pt    where to go on; in the end, what is judged (until then also checkpoint.before.pt)
        evaluations/     what each protocol found, a file each
        sources/         the user's own code that it was trained with
        replay.json      whether the present code gives the same figures
        lock             held by the process that runs the trial

Everything else (MLflow, tables) is derived from these files and may be deleted.
Imports neither torch nor Ray nor MLflow.
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmim.config import Config
from lmim.errors import UserError
from lmim.files import write_atomic
from lmim.metrics import SECONDS, VAL_NN
from lmim.trial.evaluation import Evaluation, Result, read_result
from lmim.trial.store import Leased, Store, store_of

Status = Literal["new", "running", "interrupted", "done", "failed"]
Outcome = Literal["learned", "collapsed", "diverged", "pruned"]
UNJUDGED = ("diverged", "pruned")
"""Outcomes that no protocol is asked about."""
Memory = Literal["", "alone", "checkpointing"]
"""What a trial that ran out of memory is given: a GPU, or the cores, to itself; then checkpointing too."""
RENDEZVOUS = "LMIM_RENDEZVOUS"
"""The environment variable with HOST:PORT of the store where a trial meets whose replicas others start."""


class Busy(UserError):
    """Another process runs this trial; `holder` says which, as far as it is known."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path}: the trial is being run by {holder}")


class ProcessKilled(BaseException):
    """One of the processes of a data parallel trial was killed; the trial goes on from its checkpoint.

    No `Exception`, as it says nothing of the trial: like the end of the trial's own process.
    """

    def __init__(self, rank: int, number: int) -> None:
        self.number = number
        name = signal_name(number)
        super().__init__(f"process {rank} of the trial was killed by {name}; its checkpoint is kept")

    def die(self) -> NoReturn:
        """End this process in the same way."""
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(self.number, signal.SIG_DFL)
        os.kill(os.getpid(), self.number)
        os._exit(1)


def signal_name(number: int) -> str:
    """A signal for people.

    >>> signal_name(9), signal_name(99)
    ('SIGKILL', 'signal 99')
    """
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class State(BaseModel):
    """How a trial stands. Times are Unix seconds; `seconds` sums over all resumes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    status: Status = "new"
    outcome: Outcome | None = None
    ended: str = ""
    """Why it ended before its last step (see `ending.py`); empty where it did not."""
    error: str | None = None
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    images_per_second: float | None = None
    eta_seconds: float | None = None
    heartbeat: float | None = None
    seconds: float = 0.0
    started: float | None = None
    finished: float | None = None
    code: str | None = None
    """What trained it, by `code_digest`; several where it went on with other code."""
    commit: str | None = None
    python: str | None = None
    torch: str | None = None
    timm: str | None = None
    device: str | None = None
    host: str | None = None
    pid: int | None = None
    memory: Memory = ""
    rewinds: int = 0
    """How often the journal was cut back, or might have been; a reader that sees it change starts over."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """The newest of each that the journal has."""


@dataclass(frozen=True)
class Row:
    """One line of the journal."""

    step: int
    time: float
    metrics: dict[str, float]


class Replay(BaseModel):
    """What a replay by other code than the trial's found: see `lmim/replay.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    """The code that was compared, by `code_digest`."""
    commit: str
    of: str
    """The trial that was replayed: this one, or one of the same arm and code."""
    difference: str = ""
    """The first figure of training that differs; empty where none does."""
    judged: dict[str, str] = {}
    """Metrics of evaluations that differ, each with the first of its evaluation's: the others stand."""


@dataclass(frozen=True)
class TrialFolder:
    """The folder of the trial `id` under `root` (`<out>/trials`). Holds no state of its own."""

    root: Path
    id: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / self.id

    @property
    def checkpoint(self) -> Path:
        """Where the trainer keeps its newest checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def journal(self) -> Path:
        """The metrics, one JSON object a line."""
        return self.path / "journal.jsonl"

    @property
    def store(self) -> Store | None:
        """The object store that the folder mirrors, if it does."""
        return store_of(self.root.parent)

    def create(self, config: Config) -> None:
        """Make the folder for `config`, or find it made.

        Raises:
            UserError: the folder belongs to another identity.
        """
        file = self.path / "config.json"
        if file.exists():
            found = self.config()
            if found.identity != config.identity:
                raise UserError(
                    f"{file}: holds the trial {found.identity}, not {config.identity}; "
                    "use another --out, or move this folder away"
                )
            if found == config:
                return
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(file, config.model_dump_json(indent=2) + "\n")
        for name, text in config.sources.items():
            copy = self.path / "sources" / (name if name.endswith(".py") else f"{name}.py")
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(copy, text)
        if self.store:
            self.store.publish(self.id)

    def config(self) -> Config:
        """The config that the folder was made for."""
        file = self.path / "config.json"
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{file}: no such trial") from None
        try:
            return Config.read_json(text)
        except ValueError as error:  # not JSON, not UTF-8, or of another version's schema
            raise UserError(
                f"{file}: not a config of this version ({_first(error)}); python -m lmim.migrate reads older "
                "ones, else move it away"
            ) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the trial; the kernel lets go when this process dies, however it dies.

        Of one in an object store the folder is brought up to date first, without its checkpoint (`fetch`).

        Raises:
            Busy: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            # locked() takes the lock for an instant: a few tries tell it from one who stays; a look at what
            # the store has takes longer
            tries = 100 if self.store else 5
            for attempt in range(tries):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == tries - 1:
                        holder = (self.path / "lock").read_text().strip() or "(unknown)"
                        raise Busy(self.path, f"process {holder}") from None
                    time.sleep(0.02)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                with self.store.hold(self.id) if self.store else contextlib.nullcontext():
                    yield
            except Leased as error:
                raise Busy(self.path, str(error)) from None
            finally:
                # explicit, because a forked child that still lives shares the open file
                fcntl.flock(file, fcntl.LOCK_UN)

    def locked(self) -> bool:
        """Whether a living process runs the trial now, whatever its state says."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            return True
        return self.store is not None and self.store.is_held(self.id)

    def fetch(self) -> None:
        """Have the checkpoint here, if the trial has one and an object store keeps it."""
        if self.store:
            self.store.fetch(self.id)

    def state(self) -> State:
        """The newest state; status "new" where there is none.

        Raises:
            UserError: the file is damaged.
        """
        file = self.path / "state.json"
        try:
            text = file.read_text(encoding="utf-8")
            # what a host may leave that dies before a heartbeat is on its disk
            return State.model_validate_json(text) if text else State(status="interrupted")
        except FileNotFoundError:
            return State()
        except ValueError as error:
            raise UserError(
                f"{file}: damaged or of another version ({_first(error)}); "
                f"delete {self.path} to run the trial again"
            ) from None

    def update(self, **fields: Any) -> State:
        """Change some fields of the state, stamp the heartbeat, and put it on disk."""
        return self.write(State.model_validate(self.state().model_dump() | fields))

    def write(self, state: State, durable: bool = True) -> State:
        """Put a state on disk as a whole, its heartbeat stamped; `durable` waits for the disk."""
        state = state.model_copy(update={"heartbeat": time.time()})
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / "state.json", state.model_dump_json(indent=2) + "\n", durable)
        return state

    def missing(self, evaluations: Sequence[Evaluation], version: str | None) -> list[Evaluation]:
        """Those that have no result yet; `version` is that of the trial's data.

        What diverged or was pruned has none.
        """
        absent = [one for one in evaluations if not one.file(self.path, version or "").is_file()]
        absent = [one for one in absent if self.is_judged_by(one)]
        return absent if absent and self.state().outcome not in UNJUDGED else []

    def is_judged_by(self, evaluation: Evaluation) -> bool:
        """Whether the trial's objective has what a protocol needs."""
        return not evaluation.methods or evaluation.applies(self.config())

    def results(self) -> list[Result]:
        """Every evaluation that is there.

        Raises:
            UserError: a file is damaged.
        """
        files = sorted((self.path / "evaluations").glob("*.json"))
        return [result for result in map(read_result, files) if result is not None]

    def metrics(self) -> dict[str, float]:
        """The newest of training, and those of every evaluation on the trial's data, by their full names."""
        version = self.config().data.version or ""
        judged = [result.metrics for result in self.results() if result.data_version == version]
        return dict(self.state().metrics) | {name: value for one in judged for name, value in one.items()}

    def forget_failures(self) -> None:
        """Drop the evaluations that failed, so that they are missing again."""
        for file in (self.path / "evaluations").glob("*.json"):
            if (result := read_result(file)) is not None and result.error:
                file.unlink()

    def replayed(self) -> Replay | None:
        """The newest replay, if there was one."""
        try:
            return Replay.model_validate_json((self.path / "replay.json").read_bytes())
        except (FileNotFoundError, ValueError):  # a damaged one is made again
            return None

    def record_replay(self, found: Replay) -> None:
        """Remember what a replay found."""
        write_atomic(self.path / "replay.json", found.model_dump_json(indent=2) + "\n")
        if self.store:
            self.store.publish(self.id)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one row to the journal. Steps never decrease (see `rewind`); `sync` makes it durable."""
        row = {"step": step, "time": time.time(), "metrics": {k: _to_json(v) for k, v in metrics.items()}}
        with self.journal.open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def sync(self) -> None:
        """Wait until the journal is on the disk: before a checkpoint, which must not be newer than it."""
        with self.journal.open("ab") as file:
            os.fsync(file.fileno())

    def rows(self, offset: int = 0) -> tuple[list[Row], int]:
        """The complete rows from byte `offset` on, and the offset to go on from.

        A line that is still being written is left for the next call. An `offset` that no longer
        stands at the start of a line (the journal was cut back meanwhile) reads from the top.
        """
        try:
            content = self.journal.read_bytes() if not offset else _tail(self.journal, offset)
        except FileNotFoundError:
            return [], 0
        if content is None:
            return self.rows()
        whole = content[: content.rfind(b"\n") + 1]
        rows = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                fields = json.loads(line)
                values = {name: float(value) for name, value in fields["metrics"].items()}
                rows.append(Row(int(fields["step"]), float(fields["time"]), values))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{self.journal}: damaged in line {number} after byte {offset}; "
                    f"delete {self.path} to run the trial again"
                ) from None
        return rows, offset + len(whole)

    def looks(self) -> dict[int, float]:
        """What a search prunes by, by the epoch after which it was measured."""
        return {
            int(row.metrics["train/epoch"]): row.metrics[VAL_NN]
            for row in self.rows()[0]
            if VAL_NN in row.metrics
        }

    def born(self) -> float | None:
        """The first row's time: it stays through every resume, and changes when a trial begins anew."""
        try:
            with self.journal.open("rb") as file:
                line = file.readline()
            return float(json.loads(line)["time"]) if line.endswith(b"\n") else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.journal}: damaged in line 1; delete {self.path} to run the trial again"
            ) from None

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, and a line that a kill left unfinished: called on resume."""
        rows, end = self.rows()
        if not self.journal.exists():
            return
        keep = sum(row.step <= step for row in rows)
        if keep < len(rows):
            lines = self.journal.read_bytes()[:end].splitlines(keepends=True)
            end = sum(len(line) for line in lines[:keep])
        # Steps never decrease, so what goes is the end of the file, and one system call drops it.
        os.truncate(self.journal, end)
        # Also where nothing was left to drop: a kill may have come between these two, and nothing is
        # appended before a reader can see that its place in the file is no longer its place.
        self.update(rewinds=self.state().rewinds + 1)

    def reopen(self) -> None:
        """Have a trial that was ended early go on: drop what was made of its unfinished training.

        The state goes last: a kill on the way leaves a trial that was ended early, to be reopened again.
        """
        for made in ("evaluations", "figures"):
            shutil.rmtree(self.path / made, ignore_errors=True)
        rows, end = self.rows()
        keep = [row for row in rows if SECONDS not in row.metrics]  # which the last row of all has
        if len(keep) < len(rows):
            os.truncate(
                self.journal, sum(map(len, self.journal.read_bytes()[:end].splitlines(True)[: len(keep)]))
            )
        metrics = {name: value for row in keep for name, value in row.metrics.items()}
        self.update(
            status="interrupted",
            outcome=None,
            ended="",
            finished=None,
            metrics=metrics,
            rewinds=self.state().rewinds + 1,
        )


def _tail(file: Path, offset: int) -> bytes | None:
    """The bytes from `offset` on, or None if no line starts there."""
    with file.open("rb") as stream:
        stream.seek(offset - 1)
        content = stream.read()
    return content[1:] if content.startswith(b"\n") else None


def _to_json(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _first(error: ValueError) -> str:
    """One line about a validation error."""
    if isinstance(error, ValidationError):
        details = error.errors(include_url=False)[0]
        return ": ".join(filter(None, [".".join(str(part) for part in details["loc"]), details["msg"]]))
    return str(error).splitlines()[0]
