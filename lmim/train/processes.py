"""Data parallel training: the processes of one trial, on one machine, that share each batch.

The trial's own process is the first: it alone writes the trial's folder, hears a stop, and evaluates. The
others, its replicas, hold the same weights, take their part of every step, and end with it. Gradients are
added up once a step, so each process makes the same update: between GPUs by NCCL, between CPUs by gloo, on
loopback alone. The processes meet through a file that only their user can open.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lmim.errors import UserError, cause
from lmim.trial.folder import ProcessKilled

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds in which the cause of a failed exchange must show, a failure be noticed, or a replica end."""


def rank() -> int:
    """This process' number within its trial; 0 is the trial's own."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes share each batch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one exchange; does not wait for the device."""
    if size() > 1:
        flat = parameters_to_vector(tensors)
        distributed.all_reduce(flat)
        vector_to_parameters(flat, tensors)


def broadcast(wish: bool) -> bool:
    """The first process' wish, in every process. Waits for the other processes, not for a device."""
    if size() == 1:
        return wish
    told = torch.tensor([wish])
    distributed.broadcast(told, 0)
    return bool(told)


def check_alike(*facts: object) -> None:
    """Whether all processes, of which there are several, stand where the first one does.

    Raises:
        RuntimeError: this one does not.
    """
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
    mine = int.from_bytes(digest, "little", signed=True)
    told = torch.tensor([mine])
    distributed.broadcast(told, 0)
    if told != mine:
        raise RuntimeError(f"weights, data or step differ from the first process': {facts}")


@dataclass(frozen=True)
class Team:
    """Where the processes of one trial meet."""

    folder: Path
    size: int
    gpus: bool

    def store(self) -> FileStore:
        """What all of them read and write."""
        return FileStore(str(self.folder / "store"), self.size)

    @contextlib.contextmanager
    def join(self, rank: int, store: FileStore | None = None) -> Iterator[None]:
        """Be the process number `rank` of the team; begins when all are there.

        After an exception the team is not left, as that would wait for all of its processes: see `_abandon`.
        """
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        store = store or self.store()
        store.set(f"here {rank}", "")
        backend = "cpu:gloo,cuda:nccl" if self.gpus else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=self.size)
        yield
        distributed.destroy_process_group()


Work = Callable[..., None]
"""What a replica runs: `work(team, rank, *arguments)`, a function of a module; it joins the team itself."""


@contextlib.contextmanager
def with_replicas(size: int, gpus: bool, work: Work, *arguments: object) -> Iterator[None]:
    """Be the first of `size` processes while the block runs; the others run `work`, and end with it.

    Raises:
        ProcessKilled: one of them was killed.
        UserError, RuntimeError: one of them raised, in one line; its traceback goes to stderr.
    """
    if size == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lmim-") as folder:
        team = Team(Path(folder), size, gpus)
        store = team.store()  # one for all polls: each that is closed counts as a process that has left
        replicas = _start(team, work, arguments)
        over = threading.Event()
        threading.Thread(target=_watch, args=(replicas, team, over), daemon=True).start()
        try:
            while not store.check([f"here {rank}" for rank in range(1, size)]):
                if any(_codes(replicas)):
                    raise _cause(replicas, team)
                time.sleep(0.05)
            with team.join(0, store):
                try:
                    yield
                except RuntimeError as error:  # so an exchange fails when one of its processes has gone
                    deadline = time.monotonic() + PATIENCE
                    while time.monotonic() < deadline:
                        if any(_codes(replicas)):
                            raise _cause(replicas, team) from error
                        time.sleep(0.05)
                    raise
            over.set()
            for process in replicas:
                process.join(PATIENCE)
                if process.exitcode != 0:
                    log.warning("%s ended the trial's training badly (%s)", process.name, process.exitcode)
        finally:
            over.set()
            for process in replicas:
                process.kill()
                process.join()
            _abandon(team)


def _start(team: Team, work: Work, arguments: Sequence[object]) -> list[SpawnProcess]:
    """The replicas, with the signals blocked that are for the first process to hear."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # which would unblock them when the first replica is started
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:
        replicas = []
        for rank in range(1, team.size):
            given = rank, os.getpid(), team, work, arguments
            replicas.append(context.Process(target=_replica, args=given, name=f"process {rank}", daemon=True))
            replicas[-1].start()
        return replicas
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def _replica(rank: int, first: int, team: Team, work: Work, arguments: Sequence[object]) -> None:
    """A replica's whole life."""
    threading.Thread(target=_follow, args=(first,), daemon=True).start()
    try:
        work(team, rank, *arguments)
    except Exception as error:  # noqa: BLE001  the first process raises it
        traceback.print_exc()
        told = {"user": isinstance(error, UserError), "cause": cause(error)}
        (team.folder / f"cause {rank}").write_text(json.dumps(told), encoding="utf-8")
        sys.stderr.flush()
        os._exit(1)  # at once: an orderly exit from an exchange between GPUs waits for the others


def _follow(first: int) -> NoReturn:
    """Not left behind when the first process is killed: an exchange between GPUs would wait for it."""
    while os.getppid() == first:
        time.sleep(0.25)
    os._exit(1)


def _codes(replicas: Sequence[SpawnProcess]) -> list[int]:
    """Exit codes, 0 for those that still run."""
    return [process.exitcode or 0 for process in replicas]


def _cause(replicas: Sequence[SpawnProcess], team: Team) -> BaseException:
    """Why the first replica to end badly did: those that it made fail come later."""
    time.sleep(0.5)  # one that was killed makes others fail: all are there to see by now
    for rank, code in enumerate(_codes(replicas), 1):
        if code < 0:
            return ProcessKilled(rank, -code)
    causes = sorted(team.folder.glob("cause *"), key=lambda path: path.stat().st_mtime_ns)
    if not causes:
        rank, code = next((rank, code) for rank, code in enumerate(_codes(replicas), 1) if code)
        return RuntimeError(f"process {rank} of the trial exited with {code}")
    told = json.loads(causes[0].read_text(encoding="utf-8"))
    if told["user"]:
        return UserError(told["cause"])
    who = causes[0].name.replace("cause", "process")
    return RuntimeError(f"{who} of the trial: {told['cause']}")


def _watch(replicas: Sequence[SpawnProcess], team: Team, over: threading.Event) -> None:
    """End this process if a replica has ended and it does not notice, because it waits for its GPU."""
    while not over.wait(0.25):
        if any(_codes(replicas)) and not over.wait(PATIENCE):
            error = _cause(replicas, team)
            print(f"error: {error}", file=sys.stderr, flush=True)
            if isinstance(error, ProcessKilled):
                error.die()
            os._exit(1)


def _abandon(team: Team) -> None:
    """Leave an exchange whose other processes are gone, so that this one can begin another."""
    if not distributed.is_initialized():
        return
    if team.gpus:
        distributed.distributed_c10d._abort_process_group()
    else:
        distributed.destroy_process_group()
