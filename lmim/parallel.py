"""Data parallel training: the processes of one trial, on one machine, that share each batch.

The trial's own process is the first: it alone writes the trial's folder, hears a stop, and evaluates. The
others, its replicas, hold the same weights, take their part of every step, and end with it. Gradients are
added up once a step, so each process makes the same update: between GPUs by NCCL, between CPUs by gloo, on
loopback alone. The processes meet through a file that only their user can open.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lmim.config import UserError

PATIENCE = 10.0
"""Seconds in which the cause of a failed exchange must show, and the first process must notice one."""


def rank() -> int:
    """This process' number within its trial; 0 is the trial's own."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes share each batch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one exchange; does not wait for the device."""
    if size() > 1:
        flat = parameters_to_vector(tensors)
        distributed.all_reduce(flat)
        vector_to_parameters(flat, tensors)


def agree(wish: bool) -> bool:
    """The first process' wish, in every process. Waits for the other hosts, not for a device."""
    if size() == 1:
        return wish
    told = torch.tensor([wish])
    distributed.broadcast(told, 0)
    return bool(told)


@dataclass(frozen=True)
class Team:
    """Where the processes of one trial meet."""

    file: str
    size: int
    gpus: bool

    @contextlib.contextmanager
    def join(self, rank: int) -> Iterator[None]:
        """Be the process number `rank` of the team; returns when all are there."""
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        store = FileStore(self.file, self.size)
        store.set(f"here {rank}", "")
        backend = "cpu:gloo,cuda:nccl" if self.gpus else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=self.size)
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def complete(self) -> bool:
        """Whether every replica is ready to join."""
        names = [f"here {rank}" for rank in range(1, self.size)]
        return bool(FileStore(self.file, self.size).check(names))


Work = Callable[..., None]
"""What a replica runs: `work(team, rank, *arguments)`, a function of a module; it joins the team itself."""


@contextlib.contextmanager
def with_replicas(size: int, gpus: bool, work: Work, *arguments: object) -> Iterator[None]:
    """Be the first of `size` processes while the block runs; the others run `work`.

    When a replica is killed, this process is killed with it: the processes of a trial live and die together,
    and go on from its checkpoint.

    Raises:
        UserError, RuntimeError: what ended a replica, in one line; its traceback goes to stderr.
    """
    if size == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lmim-") as folder:
        team = Team(f"{folder}/store", size, gpus)
        given = os.getpid(), work, team, arguments
        replicas = start_processes(_replica, given, size - 1, join=False, daemon=True)  # type: ignore[no-untyped-call]
        over = threading.Event()
        threading.Thread(target=_watch, args=(replicas, over), daemon=True).start()
        try:
            while not team.complete():
                if _failed(replicas):
                    raise _cause(replicas)
                time.sleep(0.05)
            with team.join(0):
                try:
                    yield
                except RuntimeError as error:  # so an exchange fails when one of its processes has gone
                    deadline = time.monotonic() + PATIENCE
                    while time.monotonic() < deadline:
                        if _failed(replicas):
                            raise _cause(replicas) from error
                        time.sleep(0.05)
                    raise
            over.set()
            for process in replicas.processes:
                process.join(PATIENCE)
        finally:
            over.set()
            for process in replicas.processes:
                process.kill()
                process.join()
            for file in replicas.error_files:
                Path(file).unlink(missing_ok=True)


def _failed(replicas: ProcessContext) -> list[tuple[int, int]]:
    """Rank and exit code of the replicas that did not end well."""
    codes = [process.exitcode for process in replicas.processes]
    return [(rank, code) for rank, code in enumerate(codes, 1) if code]


def _cause(replicas: ProcessContext) -> Exception:
    """What ended the first replica that did not end well. Does not return if one was killed."""
    time.sleep(0.5)  # one that is killed makes others fail: both are there to see by now
    for rank, code in _failed(replicas):
        if code < 0:
            name = signal.Signals(-code).name
            on = "run again, the trial goes on from its checkpoint"
            print(f"process {rank} of the trial was killed by {name}: {on}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        replicas.join(0)
    except ProcessRaisedException as error:
        print(error.msg, file=sys.stderr, flush=True)
        last = error.msg.strip().rpartition("\n")[2]
        mended_by_user = f"{UserError.__module__}.{UserError.__name__}: "
        if last.startswith(mended_by_user):
            return UserError(last.removeprefix(mended_by_user))
        return RuntimeError(f"process {error.error_index + 1} of the trial: {last}")
    except ProcessExitedException as error:
        return RuntimeError(f"process {error.error_index + 1} of the trial exited with {error.exit_code}")
    return RuntimeError("a process of the trial ended before its time")


def _watch(replicas: ProcessContext, over: threading.Event) -> None:
    """End this process when a replica has ended and it does not notice, as it waits for its GPU."""
    while not over.wait(0.25):
        if _failed(replicas) and not over.wait(PATIENCE):
            _cause(replicas)
            os._exit(1)


def _replica(index: int, first: int, work: Work, team: Team, arguments: Sequence[object]) -> None:
    """A replica's whole life. What a signal means is for the first process to decide."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(first,), daemon=True).start()
    work(team, index + 1, *arguments)


def _follow(first: int) -> NoReturn:
    """Not left behind when the first process is killed: an exchange between GPUs would wait for it."""
    while os.getppid() == first:
        time.sleep(0.25)
    os._exit(1)
