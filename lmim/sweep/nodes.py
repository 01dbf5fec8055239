"""A trial on several nodes of a Ray cluster: its processes placed, told where to meet, and ended together.

Each process has a bundle of the trial's placement group. The trial's own runs in the first, as any trial
does; the others are tasks of Ray, each of which holds a process for one team after another (a trial that is
fine-tuned to be judged makes several). They meet in a store on the first one's node, at the address by which
Ray knows it, and the store is where the first one reads how the others ended.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lmim.sweep.worker import environment
from lmim.trial.folder import RENDEZVOUS

PATIENCE = 10.0
"""Seconds in which a trial's other processes must have ended when it has."""


@contextlib.contextmanager
def placed(request: Mapping[str, Any]) -> Iterator[str]:
    """HOST:PORT of the store where the trial's other processes wait; empty for a trial without any elsewhere.

    They last as long as the block.
    """
    if request["bundles"] == 1:
        yield ""
        return
    import ray
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    # by a socket of our own, as the store itself would listen on all interfaces
    with socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as listener:
        port = listener.getsockname()[1]
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(listener.fileno())
        )
    address, over = f"{host}:{port}", threading.Event()
    group = ray.util.get_current_placement_group()
    assert group is not None
    given = _beginning(request, address, group), partial(_nodes, group), request["bundles"], store, over
    keeper = threading.Thread(target=_keep, args=given, daemon=True)
    keeper.start()
    try:
        yield address
    finally:
        over.set()
        keeper.join()


def _beginning(request: Mapping[str, Any], address: str, group: Any) -> Callable[[int, int], Any]:
    """What starts the process of a rank, in its bundle, for a team; its exit code is to come."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    share = request["share"]

    def begin(rank: int, team: int) -> Any:
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        options = {"num_cpus": share["CPU"], "num_gpus": share["GPU"], "max_retries": 0}
        task = ray.remote(scheduling_strategy=where, **options)(_replica)
        return task.remote(dict(request), address, rank, team)

    return begin


def _nodes(group: Any) -> dict[int, str]:
    """The node of each bundle, empty while it has none; of no bundle while the cluster does not answer."""
    import ray

    try:
        found: dict[int, str] = ray.util.placement_group_table(group)["bundles_to_node_id"]
    except Exception:  # noqa: BLE001  its head is out of reach: Ray itself gives up where it stays so
        return {}
    return found


def _keep(
    begin: Callable[[int, int], Any],
    nodes: Callable[[], Mapping[int, str]],
    size: int,
    store: Any,
    over: threading.Event,
) -> None:
    """Have a process for each rank but the first until it is over, and tell of each how it ended.

    Of a node that is lost the cluster knows before its tasks do: these wait for what a dead connection says.
    """
    import ray

    running = {begin(rank, 0): (rank, 0) for rank in range(1, size)}
    now = nodes()
    while not over.is_set():
        ended = {answer: _code(answer) for answer in ray.wait([*running], timeout=0.25)[0]}
        before, now = now, nodes() or now
        for answer, (rank, _) in running.items():
            if before.get(rank, "") not in ("", now.get(rank)):
                ended.setdefault(answer, -signal.SIGKILL)
        for answer, code in ended.items():
            rank, team = running.pop(answer)
            store.set(f"{team}/code {rank}", str(code))
            running[begin(rank, team + 1)] = rank, team + 1
    for answer in running:
        ray.cancel(answer)  # an interrupt, at which the process is killed
    for answer in ray.wait([*running], num_returns=len(running), timeout=PATIENCE)[1]:
        ray.cancel(answer, force=True)


def _code(answer: Any) -> int:
    """How a process ended."""
    import ray

    try:
        return int(ray.get(answer))
    except ray.exceptions.RayError:  # it went with its worker, or its node
        return -signal.SIGKILL


def _replica(request: Mapping[str, Any], address: str, rank: int, team: int) -> int:
    """On its node: a process of a trial, to its end; its exit code, negative for a signal."""
    words = map(str, (rank, request["bundles"], team, os.getpid()))
    with Path(request["root"], request["id"], "output.txt").open("ab") as output:
        return subprocess.run(
            [sys.executable, "-m", "lmim.train.replica", *words],
            cwd=request["cwd"] if Path(request["cwd"]).is_dir() else None,
            env=environment(bool(request["share"]["GPU"])) | {RENDEZVOUS: address},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
