"""A slot on a worker: one trial after the other, each in a clean process that is ready at once.

A slot keeps a server process that has imported the trainer and forks a process for each trial. A trial so
inherits nothing from the one before (seeds, device memory), costs no import, and can be killed when it hangs.
"""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from lmim import variants
from lmim.config import Config, merge
from lmim.errors import cause, out_of_memory
from lmim.sweep.allowance import Allowance
from lmim.trial.code import code_digest, code_version, libraries
from lmim.trial.ending import Ending, goes_on
from lmim.trial.evaluation import Evaluation, Result, write_result
from lmim.trial.folder import RENDEZVOUS, Busy, Memory, ProcessKilled, TrialFolder, signal_name
from lmim.trial.store import LOOK_SECONDS, Store
from lmim.variants import place_of

RESTARTS = 3
"""How often a trial whose process died goes on from its checkpoint before it counts as failed."""
HUNG = -1000
"""What stands for the exit code of a process that was killed because it hung: no signal's."""
GRACE = 20.0
"""Seconds that trials get to checkpoint when the sweep is stopped."""
WITHHELD = (
    "RAY_AUTH_TOKEN",
    *(f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN")),
)
"""Of the environment: a trial has no business with the cluster, nor with MLflow."""


# ---------------------------------------------------------------- one trial, in a process of its own


class _Recorded:
    """Turns an exception in a trial into the trial's result: failed with its cause, or to be given memory."""

    def __init__(
        self, folder: TrialFolder, sources: Mapping[str, str], evaluations: Sequence[Evaluation], alone: bool
    ) -> None:
        self.folder, self.sources, self.evaluations, self.alone = folder, sources, evaluations, alone

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        (self.folder.path / "error.txt").write_text("".join(traceback.format_exception(error)))
        told = cause(error) + place_of(error, self.sources)
        if out_of_memory(error):
            record_out_of_memory(self.folder, told, self.evaluations, self.alone)
        else:
            record_failure(self.folder, told)
        return True


def run_here(
    config: Config,
    folder: TrialFolder,
    evaluations: Sequence[Evaluation],
    stop: Callable[[], bool],
    ending: Ending | None = None,
    allowance: Allowance | None = None,
    alone: bool = True,
) -> None:
    """Train and judge in this process; wait for another one that is at the same trial.

    Nothing is done where the trial would not end within the `allowance`.
    `alone`: no other trial shares its GPU, or the machine's cores.

    Raises:
        ProcessKilled: one of the trial's other processes was.
    """
    from lmim.tokenizer import ensure_for
    from lmim.train.loop import train

    def over() -> bool:
        state = folder.state()
        done = state.status == "done" and not goes_on(state, folder, ending)
        return done and not folder.missing(evaluations, config.data.version)

    while not stop() and not over() and (allowance is None or allowance.allows(folder)):
        with _Recorded(folder, config.sources, evaluations, alone):
            ensure_for(folder, config)
            try:
                train(config, folder, evaluations, stop=stop, ending=ending)
            except Busy:
                time.sleep(0.5)
                continue
            with contextlib.suppress(FileNotFoundError):  # of an earlier try
                (folder.path / "error.txt").unlink()
        return


def replay_here(folder: TrialFolder, alike: Sequence[str]) -> None:
    """Compare today's code with a trial in this process."""
    from lmim.replay import replay

    replay(folder, [TrialFolder(folder.root, one) for one in alike])


def serve() -> None:
    """Fork a process for each trial asked for on stdin; answer its exit code on stdout.

    A request is one line of JSON, `stop` asks the running trial to checkpoint and exit, and so does
    the end of stdin. CUDA is never touched here, so that each child has its own.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    import lmim.replay  # noqa: F401  the point of this process: its children find the imports done

    for name in variants.choices("objective"):  # which are imported by name, and with them timm
        variants.load("objective", name, {})
    # of the code just imported; a child that asked later would name an edit that it never saw
    code_version()
    code_digest()

    requests = os.fdopen(0, "rb", buffering=0, closefd=False)
    while request := requests.readline():
        if request == b"stop\n":
            continue  # it crossed the end of the trial that it was meant for
        server = os.getpid()
        child = os.fork()
        if child == 0:
            _child(json.loads(request), server)
        print(_wait(child, requests, _Stall.of(json.loads(request))), file=replies, flush=True)


@dataclass
class _Stall:
    """Whether a trial hangs: whether nothing in its folder has changed for `seconds`, if that is asked."""

    folder: Path
    seconds: float
    seen: frozenset[tuple[str, int, int]] = frozenset()
    since: float = 0.0
    look_at: float = 0.0

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "_Stall":
        root = Store.open(request["store"]).out / "trials" if request["store"] else Path(request["root"])
        return cls(root / request["id"], request["stall"], since=time.monotonic())

    def over(self) -> bool:
        """Whether it is over the time; looks a hundred times in it, and once a second at most."""
        now = time.monotonic()
        if not self.seconds or now < self.look_at:
            return False
        self.look_at = now + min(1.0, self.seconds / 100)
        found = set()
        for path in self.folder.rglob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                about = path.stat()
                found.add((str(path), about.st_size, about.st_mtime_ns))
        if found != self.seen:
            self.seen, self.since = frozenset(found), now
        return now - self.since > self.seconds


def _wait(child: int, requests: BinaryIO, stall: _Stall) -> int:
    """The child's exit code, negative for a signal; `HUNG` where it had to be killed for that."""
    kill_at = math.inf
    listening = True
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > kill_at:
            os.kill(child, signal.SIGKILL)
        elif stall.over():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HUNG
        if not listening:
            time.sleep(0.02)
        elif select.select([requests], [], [], 0.02)[0]:
            listening = bool(requests.readline())
            os.kill(child, signal.SIGTERM)
            kill_at = time.monotonic() + GRACE


def _child(request: Mapping[str, Any], server: int) -> NoReturn:
    """One trial, from fork to exit."""
    code = 1
    try:
        with contextlib.suppress(OSError):  # on another machine it may not be there
            os.chdir(request["cwd"])  # Tune moves its workers elsewhere, and data.path may be relative
        folder = _folder(request)
        folder.path.mkdir(parents=True, exist_ok=True)
        if request["rendezvous"]:
            os.environ[RENDEZVOUS] = request["rendezvous"]
        output = os.open(folder.path / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        stopping = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
        signal.signal(signal.SIGUSR1, lambda number, frame: stopping.set())  # Slurm's warning
        threading.Thread(target=_watch_parent, args=(server, stopping), daemon=True).start()
        if request["replay"]:
            replay_here(folder, request["replay"])
        else:
            evaluations = [Evaluation(**one) for one in request["evaluations"]]
            config = Config.read(merge(folder.config().model_dump(), {"run": request["run"]}))
            ending = request["ending"] and Ending.model_validate(request["ending"])
            allowance = request["allowance"] and Allowance.read(request["allowance"])
            alone = request["alone"]
            run_here(config, folder, evaluations, stopping.is_set, ending, allowance, alone)
        code = 0
    except ProcessKilled as killed:  # the server starts the trial again, as if this process had been
        print(killed, file=sys.stderr, flush=True)
        killed.die()
    finally:
        # never unwinds into the server's loop, whatever happened
        traceback.print_exc() if code else None
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _folder(request: Mapping[str, Any]) -> TrialFolder:
    """The trial's folder on this machine; of one in an object store, with what the driver has put there."""
    if not request["store"]:
        return TrialFolder(Path(request["root"]), request["id"])
    store = Store.open(request["store"])
    folder = TrialFolder(store.out / "trials", request["id"])
    if not folder.locked():
        store.pull(folder.id)
    return folder


def _halt(request: Mapping[str, Any]) -> Callable[[], bool]:
    """Whether the driver wants its trials to stop: it leaves a file, or an object, that says so."""
    file = Path(request["halt"])
    if not request["store"]:
        return file.exists
    store, asked_at, wished = Store.open(request["store"]), 0.0, False

    def halt() -> bool:
        nonlocal asked_at, wished
        if not wished and time.monotonic() - asked_at >= LOOK_SECONDS:
            asked_at, wished = time.monotonic(), store.is_wished(file.name)
        return wished or file.exists()

    return halt


def _watch_parent(server: int, stopping: threading.Event) -> None:
    """An orphan checkpoints and goes, however its server, actor or driver died."""
    while os.getppid() == server:
        time.sleep(0.25)
    stopping.set()
    time.sleep(GRACE)
    os._exit(1)


# ---------------------------------------------------------------- a slot on a worker


def environment(gpu: bool) -> dict[str, str]:
    """What a process of a worker's own is started with."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {key: value for key, value in os.environ.items() if key not in WITHHELD}
    found["PYTHONPATH"] = os.pathsep.join(paths)
    found["OMP_NUM_THREADS"] = found["MKL_NUM_THREADS"] = "1"
    if not gpu:  # num_gpus=0 would leave every GPU in sight
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


@dataclass
class _Server:
    """The end of `serve` that an actor holds."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, gpu: bool) -> "_Server":
        command = [sys.executable, "-c", "from lmim.sweep.worker import serve; serve()"]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, env=environment(gpu)))

    def run(self, request: Mapping[str, Any], stop: Callable[[], bool]) -> int:
        """Run one trial; its exit code, negative for a signal."""
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None
        assert replies is not None
        asked = False
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            while not select.select([replies], [], [], 0.2)[0]:
                if stop() and not asked:
                    asked = True
                    requests.write(b"stop\n")
        except BrokenPipeError:
            return self.close()
        reply = replies.readline()
        return int(reply) if reply else self.close()

    def close(self) -> int:
        """The exit code of a server that is going down."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.process.wait()


_SERVERS: dict[bool, _Server] = {}
"""This actor's server: with GPU or without."""


Placed = Callable[[Mapping[str, Any]], AbstractContextManager[str]]
"""Keeps a trial's processes on other machines, and says where they wait; empty where it has none."""


def nowhere(request: Mapping[str, Any]) -> AbstractContextManager[str]:
    """All of a trial's processes are on this machine."""
    return contextlib.nullcontext("")


def run_on_worker(request: dict[str, Any], placed: Placed = nowhere) -> None:
    """What Ray Tune runs: one trial by this actor's server, restarted when its process dies."""
    folder, stop = _folder(request), _halt(request)
    gpu = bool(request["share"]["GPU"])
    code = 0
    for _ in range(RESTARTS + 1):
        if stop():
            return
        server = _SERVERS.get(gpu) or _SERVERS.setdefault(gpu, _Server.start(gpu))
        with placed(request) as rendezvous:
            code = server.run(request | {"rendezvous": rendezvous}, stop)
        if server.process.poll() is not None:
            del _SERVERS[gpu]
        if code >= 0:
            break
    if code and not stop():
        error = f"the trial's process {_died(code, request['stall'])}; see {folder.path / 'output.txt'}"
        evaluations = [Evaluation(**one) for one in request["evaluations"]]
        if -code == signal.SIGKILL and not request["replay"]:  # as the kernel does where memory is full
            record_out_of_memory(folder, error, evaluations, request["alone"])
        else:
            record_failure(folder, error, evaluations)


def _died(code: int, stall: float) -> str:
    """How it ended, when it did so once more than it may.

    >>> _died(-9, 0.0), _died(HUNG, 600.0)
    ('died 4 times, last by SIGKILL', 'hung or died 4 times, last for 600 s (run.stall_timeout)')
    """
    times = f"{RESTARTS + 1} times, last"
    if code == HUNG:
        return f"hung or died {times} for {stall:g} s (run.stall_timeout)"
    return f"died {times} by {signal_name(-code)}" if code < 0 else f"exited with {code}"


def record_out_of_memory(
    folder: TrialFolder, error: str, evaluations: Sequence[Evaluation], alone: bool
) -> None:
    """Let a trial go on with more memory, in the sweep's next round; where there is no more it has failed.

    It is first run `alone`, if it was not, then with activation checkpointing, which is no help to judging.
    """
    with contextlib.suppress(Busy), folder.lock():
        state = folder.state()
        trained = state.status == "done"
        more: Memory = "checkpointing" if alone or state.memory else "alone"
        if state.memory != "checkpointing" and not (trained and more == "checkpointing"):
            folder.update(memory=more, status="done" if trained else "interrupted")
            return
    how = "alone" if folder.state().status == "done" else "alone and with run.checkpointing"
    less = (
        "it takes a GPU or machine with more, or a smaller model or optim.batch_size, which are other trials"
    )
    record_failure(folder, f"out of memory even {how} ({error}); {less}", evaluations)


def record_failure(folder: TrialFolder, error: str, evaluations: Sequence[Evaluation] = ()) -> None:
    """Record a failure of the training or, if that is done, of the `evaluations` that have no result.

    Not where the trial has recorded its own, or another process is at it.
    """
    with contextlib.suppress(Busy), folder.lock():
        state = folder.state()
        if state.status not in ("done", "failed"):
            folder.update(status="failed", error=error)
        elif state.status == "done":
            version = folder.config().data.version or ""
            for one in folder.missing(evaluations, version):
                result = Result(
                    **vars(one),
                    **libraries(),
                    data_version=version,
                    metrics={},
                    sample={},
                    seconds=0.0,
                    error=f"{one.protocol}: {error}",
                    code=code_digest(),
                    commit=code_version(),
                    device=state.device or "",
                    date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                )
                write_result(one.file(folder.path, version), result)
