"""A slot on a worker: what becomes of a trial that fails, dies, or looks for a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from lmim.config import Config
from lmim.plan.ablation import load
from lmim.sweep import worker
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import State, TrialFolder
from lmim.trial.standing import standing
from tests.sweep.running import REPOSITORY, TINY, write
from tests.trial.builders import record
from tests.trial.leavings import weights


def fork_a_trial(tmp_path: Path, train: str, alone: bool = False) -> TrialFolder:
    """Run one trial in the server of a worker, with a trainer of the test's own."""
    config = Config.read({"data": {"version": "v1"}})
    folder = TrialFolder(tmp_path / "trials", config.identity)
    folder.create(config)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = sys.modules['lmim.train.loop'] = types.ModuleType('lmim.train.loop')\n"
        "sys.modules['lmim.replay'] = types.ModuleType('lmim.replay')\n"  # it imports the trainer
        f"exec({train!r}, module.__dict__)\n"
    )
    _on_worker(tmp_path, [_request(tmp_path, folder, alone)])
    return folder


def _request(tmp_path: Path, folder: TrialFolder, alone: bool, **run: object) -> dict[str, Any]:
    """What the executor asks a worker for."""
    return {
        "root": str(folder.root),
        "store": None,
        "id": folder.id,
        "evaluations": [asdict(one) for one in read_evaluations(["nn", {"knn": {"k": 3}}])],
        "replay": [],
        "ending": None,
        "allowance": None,
        "halt": str(tmp_path / "halt"),
        "cwd": str(tmp_path),
        "run": run,
        "share": {"CPU": 1.0, "GPU": 0.0},
        "alone": alone,
        "stall": 0.0,
    }


def _on_worker(tmp_path: Path, requests: Sequence[Mapping[str, Any]]) -> list[State]:
    """One after the other on a worker of their own, which finds modules in `tmp_path`; each one's state."""
    code = (
        "import sys, json; from pathlib import Path\n"
        "from lmim.sweep.worker import run_on_worker, _SERVERS\n"
        "for one in json.loads(sys.argv[1]):\n"
        " run_on_worker(one)\n"
        " print(json.dumps(json.loads(Path(one['root'], one['id'], 'state.json').read_text())), flush=True)\n"
        "[server.close() for server in _SERVERS.values()]"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    words = [sys.executable, "-c", code, json.dumps(requests)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return [State.model_validate_json(line) for line in done.stdout.splitlines()]


def test_an_exception_in_a_trial_is_its_result(tmp_path: Path) -> None:
    """Otherwise one broken arm takes the sweep down, or fails without a word."""
    state = fork_a_trial(tmp_path, "def train(*a, **k): raise ValueError('no such thing\\nat all')").state()
    assert (state.status, state.error) == ("failed", "ValueError: no such thing")
    (traceback,) = (tmp_path / "trials").glob("*/error.txt")
    assert "in train" in traceback.read_text()


def test_a_retry_that_went_well_leaves_no_traceback(tmp_path: Path) -> None:
    """Otherwise who looks into the folder of a finished trial reads why it failed."""
    (trial,) = load(write(tmp_path, arms="[mse]", seeds="[0]"), sets=[*TINY, "optim.epochs=1"]).trials
    folder = TrialFolder(tmp_path / "trials", trial.id)
    folder.create(trial.config)
    (folder.path / "error.txt").write_text("of the first try")
    worker.run_here(trial.config, folder, [], lambda: False)
    assert folder.state().status == "done"
    assert not (folder.path / "error.txt").exists()


@pytest.mark.slow
def test_a_trial_that_is_killed_again_and_again_fails_with_the_cause(tmp_path: Path) -> None:
    """Otherwise a trial that does not fit into memory is restarted for ever, or fails for its neighbours."""
    count = tmp_path / "count"
    kill = f"import os\ndef train(*a, **k):\n open({str(count)!r}, 'a').write('x')\n os.kill(os.getpid(), 9)"
    state = fork_a_trial(tmp_path, kill).state()
    assert (state.status, state.memory) == ("interrupted", "alone")
    assert len(count.read_text()) == worker.RESTARTS + 1
    state = fork_a_trial(tmp_path, kill, alone=True).state()
    assert (state.status, state.memory) == ("interrupted", "checkpointing")
    state = fork_a_trial(tmp_path, kill, alone=True).state()
    assert state.status == "failed"
    assert state.error is not None
    assert "SIGKILL" in state.error


HANGING = """
import os, signal
from pathlib import Path
from torch.nn.functional import mse_loss

steps = 0


def loss(prediction, target):
    global steps
    steps += 1
    if steps == 3 and TIMES > len(HERE.read_text()):
        with HERE.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGSTOP)
    return mse_loss(prediction, target)
"""
"""The loss of a trial whose process stops at its third step, so many times."""


@pytest.mark.parametrize("times", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_a_trial_that_hangs_goes_on_from_its_checkpoint(times: int, tmp_path: Path) -> None:
    """Otherwise a dead mount or a driver's bug holds a slot, and the sweep, for ever."""
    (here := tmp_path / "here").touch()
    text = HANGING.replace("TIMES", str(times)).replace("HERE", f"Path({str(here)!r})")
    (tmp_path / "hanging.py").write_text(text)
    (trial,) = load(
        write(tmp_path, arms='["hanging.py:loss"]', seeds="[0]"), sets=[*TINY, "optim.epochs=8"]
    ).trials
    folder = TrialFolder(tmp_path / "trials", trial.id)
    folder.create(trial.config)
    (state,) = _on_worker(tmp_path, [_request(tmp_path, folder, True) | {"stall": 10.0}])
    if times > worker.RESTARTS:
        assert len(here.read_text()) == worker.RESTARTS + 1
        assert (state.status, state.memory) == ("failed", ""), "it is not for want of memory"
        assert "hung or died 4 times, last for 10 s (run.stall_timeout); see " in (state.error or "")
    else:
        assert len(here.read_text()) == times
        assert (state.status, state.step, state.rewinds) == ("done", 16, times), "it went on"


LIMITED = """
import resource
from pathlib import Path
from torch.nn.functional import mse_loss

there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (there + ROOM * 2**20, -1))


def loss(prediction, target):
    return mse_loss(prediction, target)
"""
"""The loss of a trial whose process may take so many MiB more than it has when the model is built."""
DEEP = {
    **{"encoder.depth": 24, "encoder.width": 32, "mask.ratio": 0.25, "projector.depth": 0},
    **{"optim.batch_size": 600, "data.train_images": 600, "optim.epochs": 1, "run.device": "cpu"},
}
"""Half a gigabyte of activations, almost all of them within blocks."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_out_of_memory_is_given_more_before_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one large arm is lost to its neighbours on a GPU, or comes back as another trial."""
    # busy threads would each reserve a heap of their own of the address space that is limited
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    for name, room in (("enough", 350), ("less", 100)):
        (tmp_path / f"{name}.py").write_text(LIMITED.replace("ROOM", str(room)))
    sets = [*TINY, *(f"{key}={value}" for key, value in DEEP.items())]
    file = write(tmp_path, arms='[mse, "enough.py:loss", "less.py:loss"]', seeds="[0]")
    plain, enough, less = (
        TrialFolder(tmp_path / "trials", trial.id) for trial in load(file, sets=sets).trials
    )
    for folder, trial in zip((plain, enough, less), load(file, sets=sets).trials, strict=True):
        folder.create(trial.config)
    requests = [_request(tmp_path, plain, False)]
    for folder in (enough, less):
        requests += [_request(tmp_path, folder, alone) for alone in (False, True)]
        requests += [_request(tmp_path, folder, True, checkpointing=True)]
    states = [(state.status, state.memory) for state in _on_worker(tmp_path, requests)]
    more = [("interrupted", "alone"), ("interrupted", "checkpointing")]
    ends = ("done", ""), ("done", "checkpointing"), ("failed", "checkpointing")
    assert states == [ends[0], *more, ends[1], *more, ends[2]]
    error = less.state().error or ""
    assert error.startswith("out of memory even alone and with run.checkpointing (RuntimeError: ")
    assert "can't allocate memory" in error
    assert "\n" not in error
    first, second = weights(plain), weights(enough)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_judging_out_of_memory_is_tried_again_alone(tmp_path: Path) -> None:
    """Otherwise a protocol that a neighbour left no memory has failed for good, or takes others with it."""
    (trial,) = load(write(tmp_path, arms="[mse]", seeds="[0]"), sets=[*TINY, "optim.epochs=1"]).trials
    (tmp_path / "hungry.py").write_text(
        "METRICS = {'fed': {'label': 'fed', 'better': 'higher'}}\n"
        "def hungry(frozen):\n    raise MemoryError('no room')\n"
    )
    source = {"hungry.py": (tmp_path / "hungry.py").read_text()}
    evaluations = read_evaluations(["hungry.py:hungry", "nn"], source)
    folder = TrialFolder(tmp_path / "trials", trial.id)
    folder.create(trial.config)
    worker.run_here(trial.config, folder, evaluations, lambda: False, alone=False)
    assert (folder.state().status, folder.state().memory) == ("done", "alone")
    assert [one.protocol for one in folder.results()] == ["nn"]
    worker.run_here(trial.config, folder, evaluations, lambda: False, alone=True)
    errors = {one.protocol: one.error for one in folder.results()}
    assert errors["nn"] == ""
    assert "out of memory even alone (MemoryError: hungry.py:hungry: " in errors["hungry.py:hungry"]


def test_a_trial_that_is_killed_while_judged_has_failed_to_be_judged(tmp_path: Path) -> None:
    """Otherwise a protocol that does not fit into memory is tried for ever, or costs the training."""
    folder = fork_a_trial(
        tmp_path,
        "import os\ndef train(config, folder, evaluations, stop, ending):\n"
        " assert [(e.name, e.changed) for e in evaluations] == [('nn', {}), ('knn', {'k': 3})]\n"
        " folder.update(status='done')\n os.kill(os.getpid(), 9)",
        alone=True,
    )
    evaluations = read_evaluations(["nn", {"knn": {"k": 3}}])
    stands = standing(folder, evaluations, "v1")
    assert stands.status == "failed"
    assert stands.error is not None
    said = "nn: out of memory even alone (the trial's process died 4 times, last by SIGKILL; see "
    assert stands.error.startswith(said)
    assert folder.state().status == "done"
    folder.forget_failures()
    assert standing(folder, evaluations, "v1").status == "trained"


def test_a_failure_is_recorded_where_there_is_no_result(tmp_path: Path) -> None:
    """Otherwise the figure that another process has found meanwhile is lost to this one's failure."""
    nn, knn = read_evaluations(["nn", "knn"])
    config = Config.read({"data": {"version": "v1"}})
    folder = TrialFolder(tmp_path, config.identity)
    folder.create(config)
    folder.update(status="done")
    with folder.lock():
        worker.record_failure(folder, "lost", [nn, knn])
    assert not folder.results(), "who holds it will say"
    record(folder, nn, 12.0)
    worker.record_failure(folder, "lost", [nn, knn])
    found = {one.protocol: (one.metrics, one.error) for one in folder.results()}
    assert found == {"nn": ({"eval/nn_top1": 12.0}, ""), "knn": ({}, "knn: lost")}


def test_a_trial_runs_where_the_command_was_typed(tmp_path: Path) -> None:
    """Otherwise a relative data.path is looked for in a folder of Ray's."""
    state = fork_a_trial(tmp_path, "import os\ndef train(*a, **k): raise ValueError(os.getcwd())").state()
    assert state.error == f"ValueError: {tmp_path}"


def test_a_trial_on_a_cpu_sees_no_gpu(tmp_path: Path) -> None:
    """Otherwise every CPU trial of a sweep crowds onto the first GPU."""
    state = fork_a_trial(
        tmp_path,
        "import os\ndef train(*a, **k): raise ValueError(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))",
    ).state()
    assert state.error == "ValueError: ''"


def test_a_trial_names_the_code_that_its_server_loaded(tmp_path: Path) -> None:
    """Otherwise an edit during a sweep is taken for the code that trained, and the table is wrong."""
    state = fork_a_trial(
        tmp_path,
        "def train(*a, **k):\n"
        " from lmim.trial.code import code_version\n"
        " raise ValueError(f'{code_version.cache_info().currsize} known before it was asked')",
    ).state()
    assert state.error == "ValueError: 1 known before it was asked"


def test_a_trial_finds_its_model_imported(tmp_path: Path) -> None:
    """Otherwise every trial of a sweep imports timm and torchvision for seconds before its first step."""
    state = fork_a_trial(
        tmp_path,
        "def train(*a, **k):\n"
        " import sys\n"
        " raise ValueError('timm.models.vision_transformer' in sys.modules)",
    ).state()
    assert state.error == "ValueError: True"
