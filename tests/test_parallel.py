"""Several processes that share the steps of one trial: the same result, and one life."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lmim import cost
from lmim.config import Config, UserError, merge
from lmim.sweep import Resources
from lmim.train import train
from lmim.trial import TrialFolder

REPOSITORY = Path(__file__).parent.parent
TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 480},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 3, "batch_size": 10, "accumulate": 4, "base_lr": 1e-2, "warmup_epochs": 0.5},
    "evaluate": {"probe_images": 64},
    "run": {"device": "cpu", "log_every": 3, "checkpoint_seconds": 0.0},
}


def tiny(processes: int, **changes: Any) -> Config:
    changes["run__processes"] = processes
    return Config.model_validate(merge(TINY, {key.replace("__", "."): v for key, v in changes.items()}))


def weights(folder: TrialFolder) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(folder.checkpoint, weights_only=True)["objective"]
    return saved


def series(folder: TrialFolder) -> list[dict[str, float]]:
    """What the journal holds but for the times."""
    rows = folder.rows()[0]
    return [
        {"step": row.step} | {k: v for k, v in row.metrics.items() if not k.startswith("system/")}
        for row in rows
    ]


TRIAL = """
import sys, time
from pathlib import Path
from lmim.train import train
from lmim.trial import TrialFolder
if __name__ == "__main__":
    folder = TrialFolder(Path(sys.argv[1]), sys.argv[2])
    train(folder.config(), folder, lambda step, metrics: time.sleep(float(sys.argv[3])))
"""


def begin(folder: TrialFolder, config: Config, pause: float = 0.1) -> subprocess.Popen[str]:
    """The trial in a process of its own, slow enough to be caught at it."""
    folder.create(config)
    words = [sys.executable, "-c", TRIAL, str(folder.root), folder.id, str(pause)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def until_step(folder: TrialFolder, step: int, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait for it; the trial's replicas."""
    deadline = time.monotonic() + 120
    while folder.state().step < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_processes_share_a_step_without_changing_it(tmp_path: Path) -> None:
    """Otherwise the number of GPUs would be another axis of every ablation, one that no table shows."""
    journals = []
    for processes in (1, 2):
        config = tiny(processes, optim__epochs=1, run__log_every=1)
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

    first = begin(killed, config)
    (replica,) = until_step(killed, 9, first)
    first.kill()
    first.wait()
    psutil.wait_procs([replica], timeout=10)
    assert not replica.is_running()

    first = begin(killed, config)
    (replica,) = until_step(killed, 21, first)
    replica.kill()
    _, told = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    assert re.search(r"process 1 of the trial was killed by SIGKILL: run again", told), told

    assert 21 <= killed.state().step < killed.state().steps
    assert train(config, killed).status == "done"
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(killed)[name]), name
    assert series(whole) == series(killed)


def test_no_stranger_can_join(tmp_path: Path) -> None:
    """Gradients are exchanged without a password, so that nobody else may reach the sockets."""
    config = tiny(2)
    folder = TrialFolder(tmp_path, config.identity)
    process = begin(folder, config)
    try:
        replicas = until_step(folder, 3, process)
        found = [c for one in (psutil.Process(process.pid), *replicas) for c in one.net_connections()]
        assert found, "gloo talks through sockets"
        assert {connection.laddr.ip for connection in found} <= {"127.0.0.1", "::1"}
        assert any(connection.status == psutil.CONN_LISTEN for connection in found)
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_reaches_all_and_the_first_decides(tmp_path: Path) -> None:
    """The terminal interrupts every process at once; each by itself would stop at another step, or hang."""
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
    process = subprocess.Popen(
        [sys.executable, "-m", "lmim.train", *words, *(word for pair in sets for word in ("--set", pair))],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/trials/*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (path,) = (tmp_path / "out" / "trials").iterdir()
    folder = TrialFolder(path.parent, path.name)
    replicas = until_step(folder, 5, process)
    assert len(replicas) == 1
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert folder.state().status == "interrupted"
    assert "Traceback" not in told
    assert not replicas[0].is_running()


def test_a_diverged_run_ends_in_every_process(tmp_path: Path) -> None:
    """One that stopped alone would leave the others waiting for its part."""
    config = tiny(2, optim__base_lr=1e30, loss="mse")
    assert train(config, TrialFolder(tmp_path, config.identity)).outcome == "diverged"


WORK = """
import sys
from lmim.config import UserError
from lmim.parallel import add_up, with_replicas
import torch

def unreadable(team, rank):
    raise UserError("x.jpg: cannot be read any more: restore the file")

def broken(team, rank):
    with team.join(rank):
        add_up([torch.ones(1)])
        raise ValueError("no such thing")

def gone(team, rank):
    sys.exit(3)

if __name__ == "__main__":
    try:
        with with_replicas(2, False, globals()[sys.argv[1]]):
            add_up([torch.ones(1)])
            add_up([torch.ones(1)])
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("unreadable", "UserError x.jpg: cannot be read any more: restore the file"),
        ("broken", "RuntimeError process 1 of the trial: ValueError: no such thing"),
        ("gone", "RuntimeError process 1 of the trial exited with 3"),
    ],
)
def test_what_ends_a_replica_is_the_trials_error(tmp_path: Path, work: str, expected: str) -> None:
    """Otherwise the table of failures says that a connection was closed, and not why."""
    (tmp_path / "work.py").write_text(WORK)
    words = [sys.executable, str(tmp_path / "work.py"), work]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == expected, done.stderr


def test_a_worker_restarts_a_trial_that_lost_a_process(tmp_path: Path) -> None:
    """One GPU process of eight that is killed must cost its trial minutes, not the whole run."""
    config = tiny(2, optim__epochs=12)
    folder = TrialFolder(tmp_path / "trials", config.identity)
    request = {
        "root": str(folder.root),
        "id": folder.id,
        "config": config.model_dump_json(),
        "halt": str(tmp_path / "halt"),
        "cwd": str(tmp_path),
        "share": Resources(cpus=4, gpus=0).share(config),
    }
    code = (
        "import sys, json; from lmim.worker import run_on_worker, _SERVERS\n"
        "run_on_worker(json.loads(sys.argv[1]))\n"
        "[server.close() for server in _SERVERS.values()]"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, json.dumps(request)], cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while folder.state().step < 6 and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    pid = folder.state().pid
    (replica,) = (one for one in psutil.Process(pid).children() if "spawn_main" in " ".join(one.cmdline()))
    replica.kill()
    assert worker.wait(timeout=120) == 0
    state = folder.state()
    assert (state.status, state.error) == ("done", None)
    assert state.pid != pid
    assert "was killed by SIGKILL" in (folder.path / "output.txt").read_text()


# ---------------------------------------------------------------- the plan


def test_a_trial_takes_what_its_processes_take() -> None:
    """Otherwise eight processes are put onto the cores, or the GPU, of one."""
    here = Resources(cpus=64, gpus=8)
    config = tiny(4, run__device="cuda", run__cpus=12)
    assert here.share(config) == {"CPU": 48.0, "GPU": 4.0}
    with pytest.raises(UserError, match=r"run\.processes: a trial asks for 4 GPUs, and 2 are found"):
        Resources(cpus=64, gpus=2).share(config)
    with pytest.raises(UserError, match=r"run\.cpus: a trial asks for 48 cores"):
        Resources(cpus=16, gpus=8).share(config)


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
    one, eight = (tiny(p, optim__accumulate=8, run__device="cuda", optim__epochs=500) for p in (1, 8))
    assert one.identity == eight.identity
    alone, shared = (cost.estimate([(c, 500)], [], cost.Machine(96, 8), []) for c in (one, eight))
    assert alone is not None
    assert shared is not None
    judged = cost.evaluation_flops(one) / cost.ASSUMED_GPU[0]
    assert shared.wall_seconds - judged == pytest.approx((alone.wall_seconds - judged) / 8)
    assert (alone.slots, shared.slots) == (8, 1)
    assert shared.gpu_hours == pytest.approx(8 * shared.wall_seconds / 3600)
