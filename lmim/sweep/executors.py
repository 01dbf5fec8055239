"""Where trials run: one after the other in this process, or on Ray Tune.

Only this file and `nodes.py` import Ray.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lmim.config import Config, merge
from lmim.errors import UserError, brief, redacted
from lmim.plan import ablation
from lmim.sweep import nodes, packing
from lmim.sweep.allowance import Allowance
from lmim.sweep.resources import Resources, bundles_of, local_resources
from lmim.sweep.worker import (
    RESTARTS,
    environment,
    record_failure,
    replay_here,
    run_here,
    run_on_worker,
)
from lmim.trial.ending import Ending
from lmim.trial.evaluation import Evaluation
from lmim.trial.folder import Memory, ProcessKilled, TrialFolder
from lmim.trial.store import store_of


@dataclass
class Stop:
    """The wish to stop, seen by this process and, through a file on the shared disk, by every worker.

    Workers that share an object store alone see what `spread` puts there.
    """

    file: Path
    signals: int = 0
    told: bool = False

    def wanted(self) -> bool:
        """Whether someone asked."""
        return self.signals > 0

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """A signal handler."""
        self.signals += 1
        self.file.touch()
        # not by print, which the signal may have interrupted
        later = b"Once more: leave at once." if self.signals == 1 else b"Leaving."
        os.write(2, b"\nStopping: the trials save a checkpoint. " + later + b"\n")

    def spread(self) -> None:
        """Tell those who do not see the file; a signal handler must not wait for a store."""
        if self.wanted() and not self.told and (store := store_of(self.file.parent)) is not None:
            with contextlib.suppress(UserError):  # it does not answer: the next time
                store.wish(self.file.name)
                self.told = True

    def listen(self) -> None:
        """Take over Ctrl-C, SIGTERM (also from Ray, whose own handlers exit at once) and Slurm's warning."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self.ask)

    def close(self) -> None:
        """Give the signals their usual meaning again: there is nothing left to stop."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self.file.unlink(missing_ok=True)
        if self.told and (store := store_of(self.file.parent)) is not None:
            with contextlib.suppress(UserError):  # it does not answer, and what is left there harms nobody
                store.unwish(self.file.name)


@dataclass(frozen=True)
class Job:
    """A trial to be trained and judged; or, where `alike` names others, replayed for itself and them."""

    trial: ablation.Trial
    evaluations: Sequence[Evaluation] = ()
    replay: Sequence[str] = ()
    ending: Ending | None = None
    allowance: Allowance | None = None
    memory: Memory = ""
    """What it is to be given because it ran out of it."""

    def run(self, gpus: float) -> dict[str, Any]:
        """What is laid over the config's section `run`; `gpus` is what `auto` comes to."""
        if self.memory:
            return {
                "gpus": 1.0,
                "checkpointing": self.memory == "checkpointing" or self.trial.config.run.checkpointing,
            }
        return {"gpus": gpus} if self.trial.config.run.gpus == "auto" else {}

    def config(self, gpus: float = 1.0) -> Config:
        """The trial's config, as it is to run."""
        return Config.read(merge(self.trial.config.model_dump(), {"run": self.run(gpus)}))


Executor = Callable[[Sequence[Job]], None]
"""Runs jobs until all are over or a stop is wanted; what came of each is in its trial's folder."""


@contextlib.contextmanager
def serial(root: Path, stop: Stop) -> Iterator[Executor]:
    """One trial after the other in this process, without Ray."""
    resources = local_resources()

    def execute(jobs: Sequence[Job]) -> None:
        for job in jobs:
            resources.share(job.trial.config)
        for job in jobs:
            folder = TrialFolder(root, job.trial.id)
            if job.replay:
                replay_here(folder, job.replay)
                continue
            try:
                run_here(job.config(), folder, job.evaluations, stop.wanted, job.ending, job.allowance)
            except ProcessKilled as killed:
                record_failure(folder, str(killed))

    yield execute


ANSWER_SECONDS = 10.0
"""A cluster that says nothing for so long is none."""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of gRPC, which Ray speaks, begins with: the preface of HTTP/2 and its empty settings."""


def answering(address: str) -> str:
    """The address of a cluster, once something that speaks gRPC answers; `auto` is the last one started here.

    Raises:
        UserError: nothing does. Ray itself would try for minutes, and print what it tries.
    """
    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    try:
        if address == "auto" and not place:
            folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
            place = Path(folder, "ray", "ray_current_cluster").read_text(encoding="utf-8").strip()
        if ":" in place:
            host, _, port = place.removeprefix("ray://").rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as link:
                link.sendall(HELLO)
                if link.recv(9)[3:4] != b"\4" and not os.environ.get("RAY_USE_TLS"):  # no settings in return
                    raise ConnectionError("what listens there is no Ray")
    except (OSError, ValueError) as error:
        said = f" ({brief(error)})"
        if isinstance(error, FileNotFoundError):
            said = ": none was started on this machine; give its address"
        at = f" at {place}" if place not in ("", address) else " there"
        raise UserError(f"--address {address}: no Ray cluster answers{at}{said}") from None
    return place


@contextlib.contextmanager
def on_ray(
    root: Path,
    stop: Stop,
    address: str | None,
    limit: int | None,
    dashboard: bool,
    say: Callable[[str], None] = print,
) -> Iterator[Executor]:
    """Ray Tune, on a cluster of our own that lets no stranger in, or on the one that was named.

    `say` is told how many trials share a GPU, and why.

    Raises:
        UserError: the cluster does not answer, or the dashboard is not installed.
    """
    if dashboard and not address and not importlib.util.find_spec("aiohttp_cors"):  # which it alone brings
        raise UserError("--dashboard: Ray's dashboard is not installed; pip install 'ray[default]'")
    place = address and answering(address)
    scratch = Path(tempfile.mkdtemp(prefix="lmim-", dir="/tmp" if os.path.isdir("/tmp") else None))
    found = local_resources()
    os.environ |= _settings(address)  # before the import, which reads them
    import ray

    _hide_secrets()
    own: dict[str, Any] = {
        "include_dashboard": dashboard,
        "num_cpus": math.floor(found.cpus),
        "num_gpus": math.floor(found.gpus),
        "object_store_memory": 100 * 2**20,
        "_temp_dir": str(scratch / "ray"),  # in one that is ours alone: Ray opens its own to every user
    }
    try:
        try:
            ray.init(
                address=place or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(own if address is None else {}),
            )
        except (OSError, ValueError) as error:
            if address is None:
                raise
            raise UserError(f"--address {address}: no Ray cluster answers there ({brief(error)})") from None
        stop.listen()
        if address is not None:
            alive = _alive()
            found = Resources(sum(node.cpus for node in alive), sum(node.gpus for node in alive), alive)
        # workers elsewhere must see Tune's folder, so that it lies beside the trials then
        shared = address is not None
        storage = storage_of(root.parent, f".{scratch.name}") if shared else {"storage_path": str(scratch)}
        with _telling_of_room(say) if shared else contextlib.nullcontext():
            yield partial(_fit, root=root, stop=stop, resources=found, limit=limit, storage=storage, say=say)
    finally:
        ray.shutdown()
        for folder in (scratch, root.parent / f".{scratch.name}"):
            shutil.rmtree(folder, ignore_errors=True)
        if address is not None and (store := store_of(root.parent)) is not None:
            with contextlib.suppress(UserError):  # it does not answer
                store.remove(f".{scratch.name}")


def _settings(address: str | None) -> dict[str, str]:
    """What Ray is told by its environment; of a cluster of our own, that it lets no stranger in."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    }
    if address is not None:
        return settings
    return settings | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on 127.0.0.1; of one host only
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _hide_secrets() -> None:
    """In how this process was called, which Ray's dashboard tells everyone."""
    import ray

    words = " ".join(sys.orig_argv)
    if (harmless := redacted(words)) != words:
        ray._raylet.setproctitle(harmless)  # type: ignore[attr-defined]


def _alive() -> tuple[Resources, ...]:
    """The cluster's nodes, as they are now."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)


@contextlib.contextmanager
def _telling_of_room(say: Callable[[str], None], every: float = 10.0) -> Iterator[None]:
    """Say, for as long as the block lasts, when a trial waits for a node: Ray waits without a word."""
    over = threading.Event()

    def watch() -> None:
        told = ""
        while not over.wait(every):
            try:
                found = waits_for_a_node()
            except Exception:  # noqa: BLE001  the cluster is out of reach: who runs trials there says so
                continue
            if found not in ("", told):
                say(found)
            told = found

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(5.0)  # it may wait for a cluster that is gone


def waits_for_a_node() -> str:
    """What a trial asks for that no nodes of the cluster have, busy or not; empty where none waits so."""
    import ray

    alive = _alive()
    for group in ray.util.placement_group_table().values():
        shares = list(group["bundles"].values())
        waits = group["state"] in ("PENDING", "RESCHEDULING")
        if waits and sum(node.room(shares[0]) for node in alive) < len(shares):
            asked = {"cores": shares[0].get("CPU", 0.0), "GPUs": shares[0].get("GPU", 0.0)}
            each = " and ".join(f"{much:g} {name}" for name, much in asked.items() if much)
            return (
                f"a trial waits for a node: it asks for {len(shares)} x {each}, and the cluster's "
                f"{len(alive)} now do not have them; it goes on when one joins"
            )
    return ""


def storage_of(out: Path, name: str) -> dict[str, Any]:
    """Where Tune keeps its notes such that every worker sees them: beside the trials."""
    store = store_of(out)
    if store is None:
        return {"storage_path": str(out / name)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, base = store.system
    return {"storage_path": f"{base}/{name}", "storage_filesystem": PyFileSystem(FSSpecHandler(system))}


def _fit(
    jobs: Sequence[Job],
    root: Path,
    stop: Stop,
    resources: Resources,
    limit: int | None,
    storage: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """A new Tuner over an explicit list of trials: `Tuner.restore` would ignore what is new."""
    from ray import tune
    from ray.tune.execution import class_cache

    # Tune would send the object store's keys to its workers, through a log and the dashboard
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]
    )

    class Wanted(tune.Stopper):
        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return stop.wanted()

    part = 1 / _packed(jobs, root.parent, stop, resources, say)
    store = store_of(root.parent)
    common = {
        "root": str(root),
        "store": store and store.uri,
        "halt": str(stop.file),
        "cwd": os.getcwd(),
    }
    requests = [common | _request(job, part, resources) for job in jobs]
    logging.getLogger("ray").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(
            _trainable,
            lambda config: tune.PlacementGroupFactory(
                [config["trial"]["share"]] * config["trial"]["bundles"], strategy="PACK"
            ),
        ),
        param_space={"trial": tune.grid_search(requests)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=limit),
        run_config=tune.RunConfig(
            name="tune",
            **storage,
            stop=Wanted(),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    tuner.fit()


def _request(job: Job, gpus: float, resources: Resources) -> dict[str, Any]:
    """What a worker is told of this trial alone; `gpus` is its part of one where that is left to us."""
    config = job.config(gpus)
    whole = resources.share(config, alone=True)
    share = whole if job.memory else resources.share(config)
    return {
        "id": job.trial.id,
        "evaluations": [asdict(one) for one in job.evaluations],
        "replay": list(job.replay),
        "ending": job.ending and job.ending.model_dump(),
        "allowance": job.allowance and asdict(job.allowance),
        "run": job.run(gpus),
        "share": share,
        "bundles": bundles_of(config),
        "alone": share == whole,
        "stall": config.run.stall_timeout,
    }


def _packed(
    jobs: Sequence[Job], out: Path, stop: Stop, resources: Resources, say: Callable[[str], None]
) -> int:
    """How many trials share a GPU where that is left to us: what was measured, or is now, says it."""
    waiting = [job for job in jobs if not job.replay and not job.memory]
    config = packing.heaviest(job.trial.config for job in waiting) if resources.gpus else None
    if config is None or config.run.device == "cpu":
        return 1
    node = max(resources.nodes or (resources,), key=lambda node: node.gpus)
    by_cores = math.floor(node.cpus / max(node.gpus, 1)) // config.run.cpus
    # no more than there are: a GPU that nobody is left for helps no one
    most = max(1, min(by_cores, math.ceil(len(waiting) / resources.gpus)))
    measured, device = None, _accelerators()
    if most > 1 and (measured := packing.remembered(out, config, device, most)) is None:
        say("run.gpus: measuring how many trials share a GPU")
        try:
            measured = _measure(config, most, stop)
        except (RuntimeError, ValueError) as error:
            say(f"run.gpus: 1 trial a GPU, as it could not be measured ({brief(error)})")
            return 1
        packing.remember(out, config, device, most, measured)
    choice = packing.fit(measured or [], most)
    if measured:
        say(f"run.gpus: {choice.reason}")
    return choice.trials


def _accelerators() -> str:
    """The kinds of GPU that the cluster has, as Ray names them."""
    import ray

    kinds = {name for node in ray.nodes() for name in node["Resources"] if name.startswith("accelerator_")}  # type: ignore[no-untyped-call]
    return " ".join(sorted(kinds)) or "GPU"


def _measure(config: Config, most: int, stop: Stop) -> list[packing.Measured]:
    """What the trials of a crowd do on a GPU of the cluster; nothing where a stop is wanted first.

    Raises:
        RuntimeError, ValueError: it fails there.
    """
    import ray

    question = {"config": config.model_dump(), "most": most, "cwd": os.getcwd()}
    task = ray.remote(num_gpus=1, num_cpus=most * config.run.cpus, max_retries=0)(_crowd)
    answer = task.remote(question)
    while not ray.wait([answer], timeout=0.5)[0]:
        if stop.wanted():
            ray.cancel(answer, force=True)
            return []
    return [packing.Measured(**one) for one in json.loads(ray.get(answer))]


def _crowd(question: Mapping[str, Any]) -> str:
    """On the worker, in a process of its own: it takes the GPU's memory, and gives it back."""
    done = subprocess.run(
        [sys.executable, "-m", "lmim.sweep.crowd"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=question["cwd"],
        env=environment(gpu=True),
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout


def _trainable(config: dict[str, Any]) -> dict[str, Any]:
    run_on_worker(config["trial"], nodes.placed)
    return {"over": True}
