"""Data parallel training: the processes of one trial that share each batch.

The trial's own process is the first: it alone writes the trial's folder, hears a stop, and evaluates. The
others, its replicas, hold the same weights, take their part of every step, and end with it. The mean of their
gradients is DistributedDataParallel's, so each process makes the same update: between GPUs by NCCL, between
CPUs by gloo.

On one machine the first process starts the others; they meet through a file that only their user can open,
and talk on loopback alone. Replicas on several machines are started by whoever placed them (see
`lmim/sweep/nodes.py`), who tells all of them, by the environment variable `RENDEZVOUS`, where they meet.
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
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from torch import Tensor, distributed
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lmim.errors import UserError, cause
from lmim.trial.folder import RENDEZVOUS, ProcessKilled

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds in which the cause of a failed exchange must show, a failure be noticed, or a replica end."""


def rank() -> int:
    """This process' number within its trial; 0 is the trial's own."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes share each batch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_reduce(tensor: Tensor) -> None:
    """Replace it by its sum over all processes; does not wait for the device."""
    if size() > 1:
        distributed.all_reduce(tensor)


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

    place: str
    """A file's absolute path, or HOST:PORT of a store."""
    size: int
    gpus: bool = False
    number: int = 0
    """How many teams met there before."""

    def store(self) -> Store:
        """What all of them read and write.

        Raises:
            RuntimeError: nobody keeps it any more.
        """
        host, _, port = self.place.rpartition(":")
        local = os.path.isabs(self.place)
        store = FileStore(self.place, self.size) if local else TCPStore(host, int(port))
        return PrefixStore(str(self.number), store)

    def interface(self) -> str:
        """The network interface by which the others are reached."""
        if os.path.isabs(self.place):
            return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        host, _, port = self.place.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as link:
            own = link.getsockname()[0]
        named: dict[str, list[Any]] = psutil.net_if_addrs()
        return next(name for name, found in named.items() if own in [one.address for one in found])

    @contextlib.contextmanager
    def join(self, rank: int, store: Store | None = None) -> Iterator[None]:
        """Be the process number `rank` of the team; begins when all are there.

        After an exception the team is not left, as that would wait for all of its processes: see `_abandon`.
        """
        interface = self.interface()
        os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        store = store or self.store()
        store.set(f"here {rank}", "")
        backend = "cpu:gloo,cuda:nccl" if self.gpus else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=self.size)
        yield
        distributed.destroy_process_group()


Work = Callable[..., None]
"""What a replica runs: `work(team, rank, *arguments)`, a function of a module; it joins the team itself."""


@dataclass(frozen=True)
class _Replicas:
    """The other processes, as the first one sees them."""

    team: Team
    store: Store
    codes: Callable[[], list[int]]
    """Exit codes, negative for a signal, 0 for those that still run or ended well."""

    def cause(self) -> BaseException:
        """Why the first replica to end badly did: those that it made fail come later."""
        time.sleep(0.5)  # one that was killed makes others fail: all are there to see by now
        codes = self.codes()
        for rank, code in enumerate(codes, 1):
            if code < 0:
                return ProcessKilled(rank, -code)
        if not self.store.check(["cause 1"]):
            rank, code = next((rank, code) for rank, code in enumerate(codes, 1) if code)
            return RuntimeError(f"process {rank} of the trial exited with {code}")
        told = json.loads(self.store.get("cause 1"))
        if told["user"]:
            return UserError(told["cause"])
        return RuntimeError(f"process {told['rank']} of the trial: {told['cause']}")


@contextlib.contextmanager
def with_replicas(size: int, gpus: bool, work: Work, *arguments: object) -> Iterator[None]:
    """Be the first of `size` processes while the block runs; the others run `work`, and end with it.

    Where `RENDEZVOUS` is set, they wait there and are told the arguments alone, as JSON.

    Raises:
        ProcessKilled: one of them was killed.
        UserError, RuntimeError: one of them raised, in one line; its traceback goes to stderr.
    """
    if size == 1:
        yield
        return
    placed = os.environ.get(RENDEZVOUS)
    started = _elsewhere(placed, size, gpus, arguments) if placed else _here(size, gpus, work, arguments)
    over = threading.Event()
    try:
        with started as replicas:
            threading.Thread(target=_watch, args=(replicas, over), daemon=True).start()
            try:
                while not replicas.store.check([f"here {rank}" for rank in range(1, size)]):
                    if any(replicas.codes()):
                        raise replicas.cause()
                    time.sleep(0.05)
                with replicas.team.join(0, None if placed else replicas.store):
                    yield
            except RuntimeError as error:  # so an exchange fails when one of its processes has gone
                deadline = time.monotonic() + PATIENCE
                while time.monotonic() < deadline:
                    if any(replicas.codes()):
                        raise replicas.cause() from error
                    time.sleep(0.05)
                raise
            over.set()
    finally:
        over.set()
        _abandon(gpus)


@contextlib.contextmanager
def _here(size: int, gpus: bool, work: Work, arguments: Sequence[object]) -> Iterator[_Replicas]:
    """Replicas on this machine, that are killed where they did not end with the block."""
    with tempfile.TemporaryDirectory(prefix="lmim-") as folder:
        team = Team(str(Path(folder, "store")), size, gpus)
        store = team.store()  # one for all polls: each that is closed counts as a process that has left
        processes = _start(team, work, arguments)
        try:
            yield _Replicas(team, store, lambda: [process.exitcode or 0 for process in processes])
            for process in processes:
                process.join(PATIENCE)
                if process.exitcode != 0:
                    log.warning("%s ended the trial's training badly (%s)", process.name, process.exitcode)
        finally:
            for process in processes:
                process.kill()
                process.join()


@contextlib.contextmanager
def _elsewhere(place: str, size: int, gpus: bool, arguments: Sequence[object]) -> Iterator[_Replicas]:
    """Replicas that wait at a store, and are ended by whoever started them."""
    meeting = Team(place, size, gpus)
    team = replace(meeting, number=meeting.store().add("teams", 1) - 1)
    store = team.store()
    store.set("work", json.dumps([gpus, *arguments]))
    yield _Replicas(team, store, partial(_told, store, size))


def _told(store: Store, size: int) -> list[int]:
    """The exit codes that the keeper of the store has put there; all are killed where he is gone."""
    try:
        names = [f"code {rank}" for rank in range(1, size)]
        return [int(store.get(name)) if store.check([name]) else 0 for name in names]
    except RuntimeError:
        return [-signal.SIGKILL] * (size - 1)


def replica(team: Team, rank: int, parent: int, work: Work) -> None:
    """Be a replica that others have started, the process `parent`: wait for the first process, and work."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD_BY_THE_FIRST)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    store = team.store()
    while not store.check(["work"]):
        time.sleep(0.1)
    gpus, *arguments = json.loads(store.get("work"))
    _work(rank, replace(team, gpus=gpus), work, arguments)


HEARD_BY_THE_FIRST = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""The signals that replicas leave to the first process."""


def _start(team: Team, work: Work, arguments: Sequence[object]) -> list[SpawnProcess]:
    """The replicas, with the signals blocked that are for the first process to hear."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # which would unblock them when the first replica is started
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD_BY_THE_FIRST)
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
    """The whole life of a replica that the first process has started."""
    threading.Thread(target=_follow, args=(first,), daemon=True).start()
    _work(rank, team, work, arguments)


def _work(rank: int, team: Team, work: Work, arguments: Sequence[object]) -> None:
    """Work, and tell the first process why where it fails."""
    try:
        work(team, rank, *arguments)
    except Exception as error:  # noqa: BLE001  the first process raises it
        traceback.print_exc()
        sys.stderr.flush()
        with contextlib.suppress(RuntimeError):  # the store may have gone, and the trial with it
            store = team.store()
            told = {"rank": rank, "user": isinstance(error, UserError), "cause": cause(error)}
            store.set(f"cause {store.add('causes', 1)}", json.dumps(told))
        os._exit(1)  # at once: an orderly exit from an exchange between GPUs waits for the others


def _follow(parent: int) -> NoReturn:
    """Not left behind when the parent is killed: an exchange between GPUs would wait for others."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _watch(replicas: _Replicas, over: threading.Event) -> None:
    """End this process if a replica has ended and it does not notice, because it waits for its GPU."""
    while not over.wait(0.25):
        if any(replicas.codes()) and not over.wait(PATIENCE):
            error = replicas.cause()
            print(f"error: {error}", file=sys.stderr, flush=True)
            if isinstance(error, ProcessKilled):
                error.die()
            os._exit(1)


def _abandon(gpus: bool) -> None:
    """Leave an exchange whose other processes are gone, so that this one can begin another."""
    if not distributed.is_initialized():
        return
    if gpus:
        distributed.distributed_c10d._abort_process_group()
    else:
        distributed.destroy_process_group()
