"""Several processes that share the steps of one trial: the same result, and one life."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lmim.config import Config, merge
from lmim.errors import UserError
from lmim.plan import cost
from lmim.sweep.resources import Resources
from lmim.train.loop import train
from lmim.trial.ending import Collapse, Ending
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import standing
from tests.objectives.subclasses import of_latent_mim
from tests.trial.leavings import series, weights

REPOSITORY = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 480},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 3, "batch_size": 10, "accumulate": 4, "base_lr": 1e-2, "warmup_epochs": 0.5},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 3, "checkpoint_seconds": 0.0},
}


def tiny(processes: int, **changes: Any) -> Config:
    changes["run__processes"] = processes
    return Config.read(merge(TINY, {key.replace("__", "."): v for key, v in changes.items()}))


TRIAL = """
import sys, time
from pathlib import Path
from lmim.train.loop import train
from lmim.trial.folder import TrialFolder
if __name__ == "__main__":
    folder = TrialFolder(Path(sys.argv[1]), sys.argv[2])
    train(folder.config(), folder, report=lambda step, metrics: time.sleep(float(sys.argv[3])))
"""


def begin(folder: TrialFolder, config: Config, pause: float = 0.1) -> subprocess.Popen[str]:
    """The trial in a process of its own, slow enough to be caught at it."""
    folder.create(config)
    words = [sys.executable, "-c", TRIAL, str(folder.root), folder.id, str(pause)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they have ended, reaped or not, within a while."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        states = [one.status() for one in processes if one.is_running()]
        if set(states) <= {psutil.STATUS_ZOMBIE}:
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """No process outlives its test, whatever fails in it."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until_step(folder: TrialFolder, step: int, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait for it; the trial's replicas."""
    deadline = time.monotonic() + 120
    while folder.state().step < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    return replicas_of(process.pid)


def replicas_of(pid: int | None) -> list[psutil.Process]:
    """The other processes of a trial."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # git, that the trial asked for its commit, is gone by now
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


SPARING = of_latent_mim(
    "Sparing",
    """\
    def forward(self, views, labels, own, scheduled):
        found = super().forward(views, labels, own, scheduled)
        found["steep"] = (0 * self.decoder.mask_token).sum().sqrt()  # nobody asks for its gradient, a NaN
        if views.mean() < 0.25:
            found["loss"] = self.decoder.mask_token.square().sum()
        return found
""",
)


BLOCKS: dict[str, Any] = {
    "objective": "block_mim",
    "loss": "norm_mse",
    "mask": {"ratio": 0.75, "gap": 0},
    "decoder": {"kind": "self_attention", "cues": False},
    "encoder.depth": 2,
    "block_mim.blocks": 2,
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="the method"),
        pytest.param({"run.checkpointing": True}, id="computed again"),
        pytest.param(BLOCKS, id="block by block"),
        pytest.param({"objective": "mine.py:Sparing"}, id="parameters left out of some micro-batches"),
        pytest.param({"run.compile": True}, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_processes_share_a_step_without_changing_it(tmp_path: Path, change: dict[str, Any]) -> None:
    """Otherwise the number of GPUs would be another axis of every ablation, one that no table shows."""
    tree = merge(TINY, {"optim.epochs": 1, "run.log_every": 1} | change)
    if change is BLOCKS:
        del tree["projector"]
    journals = []
    for processes in (1, 2):
        config = Config.read(merge(tree, {"run.processes": processes}) | {"sources": {"mine.py": SPARING}})
        folder = TrialFolder(tmp_path / str(processes), config.identity)
        assert train(config, folder).outcome == "learned"
        journals.append([row for row in series(folder) if "train/loss" in row])
    alone, shared = journals
    assert len(alone) == 12
    for one, other in zip(alone, shared, strict=True):
        # rounding alone: AdamW makes steps of some size even of it, so that it grows
        assert other == pytest.approx(one, rel=1e-6 if one["step"] == 1 else 1e-4)


def test_the_processes_of_a_trial_live_and_die_together(tmp_path: Path) -> None:
    """Those left behind would hold their GPUs or wait for ever; and what goes on must end bit-identical."""
    config = tiny(2)
    whole, killed = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "killed"))
    train(config, whole)

    with ended(begin(killed, config)) as first:
        replicas = until_step(killed, 9, first)
        first.kill()
        assert gone(replicas)

    with ended(begin(killed, config)) as first:
        (replica,) = until_step(killed, 18, first)
        replica.kill()
        _, told = first.communicate(timeout=60)
        assert first.returncode == 1
        assert told.splitlines()[-1].endswith(
            "ProcessKilled: process 1 of the trial was killed by SIGKILL; its checkpoint is kept"
        )

    assert 18 <= killed.state().step < killed.state().steps
    assert train(config, killed).status == "done"
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(killed)[name]), name
    assert series(whole) == series(killed)


@pytest.mark.slow
def test_four_processes_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """The sum of two is the same in any order, of four it is not: rounding would tell who was preempted."""
    config = tiny(4, optim__epochs=1)
    whole, cut = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "cut"))
    train(config, whole)
    asked = itertools.count(1)
    assert train(config, cut, stop=lambda: next(asked) == 5).status == "interrupted"
    assert train(config, cut).status == "done"
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name


def test_no_stranger_can_join(tmp_path: Path) -> None:
    """Gradients are exchanged without a password, so that nobody else may reach the sockets."""
    config = tiny(2)
    folder = TrialFolder(tmp_path, config.identity)
    with ended(begin(folder, config)) as process:
        replicas = until_step(folder, 3, process)
        found = [c for one in (psutil.Process(process.pid), *replicas) for c in one.net_connections()]
        assert {connection.laddr.ip for connection in found} <= {"127.0.0.1", "::1"}
        assert any(connection.status == psutil.CONN_LISTEN for connection in found), "gloo listens"


@pytest.mark.parametrize("step", [0, 5], ids=["as the others start", "in training"])
def test_ctrl_c_reaches_all_and_the_first_decides(tmp_path: Path, step: int) -> None:
    """The terminal interrupts every process at once; each by itself would stop at another step, or die."""
    (tmp_path / "tiny.yaml").write_text("name: tiny\naxes: {loss: [mse]}\n")
    sets = ["data.name=digits", "data.image_size=8", "encoder.patch_size=2", "run.log_every=1"]
    sets += [
        "optim.epochs=1000",
        "optim.batch_size=16",
        "optim.accumulate=2",
        "run.processes=2",
        "run.device=cpu",
    ]
    words = [str(tmp_path / "tiny.yaml"), "--arm", "mse", "--seed", "0", "--out", str(tmp_path / "out")]
    trial = subprocess.Popen(
        [sys.executable, "-m", "lmim.train", *words, *(word for pair in sets for word in ("--set", pair))],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    with ended(trial) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/trials/*/state.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        (path,) = (tmp_path / "out" / "trials").iterdir()
        folder = TrialFolder(path.parent, path.name)
        replicas: list[psutil.Process] = []
        while not replicas:
            replicas = until_step(folder, step, process)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130, told
        assert "Traceback" not in told
        assert folder.state().status == "interrupted"
        assert gone(replicas)


def test_a_trial_that_is_ended_early_ends_in_every_process(tmp_path: Path) -> None:
    """The others would wait for the first for ever, or train on without it."""
    joint = {"collapse": "joint", "loss": "mse", "mask__similarity": 0.0, "optim__base_lr": 0.05}
    config = tiny(2, **joint, optim__epochs=30)
    folder = TrialFolder(tmp_path, config.identity)
    state = train(config, folder, ending=Ending(collapse=Collapse(patience=2)))
    assert (state.status, state.outcome) == ("done", "collapsed")
    assert 0 < state.step < state.steps


def test_a_diverged_run_ends_in_every_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that stopped alone would leave the others waiting for its part."""
    config = tiny(2, optim__base_lr=1e30, loss="mse")
    assert train(config, TrialFolder(tmp_path, config.identity)).outcome == "diverged"
    assert not caplog.messages, "a replica had to be ended"


WORK = """
import os, signal, sys, time
from lmim.errors import UserError
from lmim.train.processes import all_reduce, check_alike, with_replicas
from lmim.trial.folder import ProcessKilled
import torch

def unreadable(team, rank):
    raise UserError("x.jpg: cannot be read any more: restore the file")

def steps(team, rank, between=lambda: None):
    with team.join(rank):
        check_alike("a")
        all_reduce(torch.ones(1))
        if rank == 2:
            between()
        all_reduce(torch.ones(1))

def unreadable_later(team, rank):
    steps(team, rank, lambda: unreadable(team, rank))

def fail():
    raise ValueError("no such thing")

def broken(team, rank):
    steps(team, rank, fail)

def stray(team, rank):
    with team.join(rank):
        check_alike("b" if rank == 2 else "a")
        all_reduce(torch.ones(1))

def gone(team, rank):
    sys.exit(3)

def killed(team, rank):
    steps(team, rank, lambda: os.kill(os.getpid(), signal.SIGSEGV))

def main(work):
    with with_replicas(3, False, work):
        check_alike("a")
        all_reduce(torch.ones(1))
        ones = torch.ones(1)
        all_reduce(ones)
    return ones.item()

if __name__ == "__main__":
    try:
        main(globals()[sys.argv[1]])
    except (Exception, ProcessKilled) as error:
        print(type(error).__name__, error)
    if sys.argv[1] in ("broken", "killed"):
        assert main(steps) == 3
"""


WATCHED = of_latent_mim(
    "Watched",
    """\
    def patch_features(self, images):
        with open({told!r}, "a") as file:
            print(os.getpid(), file=file)
        return super().patch_features(images)
""",
)


def test_the_first_process_alone_watches_for_collapse(tmp_path: Path) -> None:
    """Eight GPUs would each encode the probe and drop what they found."""
    told = tmp_path / "told"
    tree = merge(TINY, {"objective": "mine.py:Watched", "optim.epochs": 1, "run.processes": 2})
    config = Config.read(tree | {"sources": {"mine.py": WATCHED.format(told=str(told))}})
    state = train(config, TrialFolder(tmp_path, config.identity))
    assert state.status == "done"
    assert set(told.read_text().split()) == {str(os.getpid())}


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("unreadable", "UserError x.jpg: cannot be read any more: restore the file"),
        ("unreadable_later", "UserError x.jpg: cannot be read any more: restore the file"),
        ("broken", "RuntimeError process 2 of the trial: ValueError: no such thing"),
        ("stray", "RuntimeError process 2 of the trial: RuntimeError: weights, data or step differ"),
        ("gone", r"RuntimeError process [12] of the trial exited with 3"),
        ("killed", "ProcessKilled process 2 of the trial was killed by SIGSEGV; its checkpoint is kept"),
    ],
)
def test_what_ends_a_replica_is_the_trials_error(tmp_path: Path, work: str, expected: str) -> None:
    """Otherwise a failure is that a connection was closed, and not why; or the next trial hangs."""
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "work.py"), work],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
    )
    assert re.match(expected, done.stdout), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["work.py"], "files are left behind"


@pytest.mark.slow
def test_a_worker_restarts_a_trial_that_lost_a_process(tmp_path: Path) -> None:
    """One GPU process of eight that is killed must cost its trial minutes, not the whole run."""
    config = tiny(2, optim__epochs=40, run__log_every=20, run__checkpoint_seconds=0.5)
    folder = TrialFolder(tmp_path / "trials", config.identity)
    folder.create(config)
    evaluations = read_evaluations(["knn"])
    request = {
        "root": str(folder.root),
        "store": None,
        "stall": 0.0,
        "id": folder.id,
        "evaluations": [asdict(one) for one in evaluations],
        "replay": [],
        "ending": None,
        "allowance": None,
        "halt": str(tmp_path / "halt"),
        "cwd": str(tmp_path),
        "run": {},
        "share": Resources(cpus=4, gpus=0).share(config),
        "alone": False,
    }
    code = (
        "import sys, json; from lmim.sweep.worker import run_on_worker, _SERVERS\n"
        "run_on_worker(json.loads(sys.argv[1]))\n"
        "[server.close() for server in _SERVERS.values()]"
    )
    popen = subprocess.Popen([sys.executable, "-c", code, json.dumps(request)], cwd=REPOSITORY, text=True)
    with ended(popen) as worker:
        deadline = time.monotonic() + 120
        while folder.state().step < 20 and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        pid = folder.state().pid
        (replica,) = replicas_of(pid)
        replica.kill()
        assert worker.wait(timeout=120) == 0
    state = folder.state()
    assert (state.status, state.error) == ("done", None)
    assert standing(folder, evaluations).status == "done"
    assert state.pid != pid
    assert "process 1 of the trial was killed by SIGKILL" in (folder.path / "output.txt").read_text()


# ---------------------------------------------------------------- the plan


def test_a_trial_takes_what_its_processes_take() -> None:
    """Otherwise eight processes are put onto the cores, or the GPU, of one."""
    here = Resources(cpus=64, gpus=8)
    config = tiny(4, run__device="cuda", run__cpus=12)
    assert here.share(config) == {"CPU": 48.0, "GPU": 4.0}
    with pytest.raises(
        UserError, match=r"run\.processes: a trial asks for 4 GPUs, and 2 are found here; ask for fewer"
    ):
        Resources(cpus=64, gpus=2).share(config)
    with pytest.raises(UserError, match=r"run\.cpus: a trial asks for 48 cores"):
        Resources(cpus=16, gpus=8).share(config)
    two = Resources(cpus=128, gpus=6, nodes=(Resources(64, 3), Resources(64, 3)))
    with pytest.raises(UserError, match="4 GPUs and 48 cores on one machine of the cluster"):
        two.share(config)
    assert two.share(tiny(2, run__device="cuda")) == {"CPU": 2.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"run__processes": 3}, r"run\.processes.* 3 does not divide optim\.accumulate 4"),
        (
            {"run__processes": 2, "run__device": "auto", "run__gpus": 0.5},
            r"run\.gpus.*set it to 1, or run\.device=cpu",
        ),
        ({"run__gpus": 8.0}, r"run\.gpus.*set run\.processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_the_plan(change: dict[str, Any], expected: str) -> None:
    """Otherwise it fails hours later, in the words of NCCL."""
    with pytest.raises(ValueError, match=expected):
        tiny(**{"processes": change.pop("run__processes", 1), **change})


def test_the_number_of_processes_is_priced_and_makes_no_other_trial() -> None:
    """Otherwise the plan promises the GPU-hours of one GPU, or trains all again on another machine."""
    big = {"optim__accumulate": 8, "encoder__width": 4096, "encoder__depth": 24, "run__device": "cuda"}
    one, eight = (tiny(p, optim__epochs=500, **big) for p in (1, 8))
    assert one.identity == eight.identity
    spent, slots = [], []
    for config in (one, eight):
        found = [
            cost.estimate([cost.Missing(config, epochs)], [], cost.Machine(96, 8), [])
            for epochs in (500, 250)
        ]
        whole, half = (one for one in found if one is not None)
        spent.append((whole.wall_seconds - half.wall_seconds, whole.gpu_hours - half.gpu_hours))
        slots.append(whole.slots)
    (alone, _), (shared, hours) = spent
    assert shared == pytest.approx(alone / 8)
    assert slots == [8, 1]
    assert hours == pytest.approx(8 * shared / 3600)
