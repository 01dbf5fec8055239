"""A slot on a worker: what becomes of a trial that fails, dies, or looks for a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from lmim.config import Config
from lmim.plan.ablation import load
from lmim.sweep import worker
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import standing
from tests.sweep.running import REPOSITORY, TINY, write
from tests.trial.builders import record


def fork_a_trial(tmp_path: Path, train: str) -> TrialFolder:
    """Run one trial in the server of a worker, with a trainer of the test's own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = sys.modules['lmim.train.loop'] = types.ModuleType('lmim.train.loop')\n"
        "sys.modules['lmim.replay'] = types.ModuleType('lmim.replay')\n"  # it imports the trainer
        f"exec({train!r}, module.__dict__)\n"
    )
    config = Config.read({"data": {"version": "v1"}})
    folder = TrialFolder(tmp_path / "trials", config.identity)
    folder.create(config)
    code = (
        "import sys, json; from lmim.sweep.worker import run_on_worker, _SERVERS\n"
        "run_on_worker(json.loads(sys.argv[1]))\n"
        "[server.close() for server in _SERVERS.values()]"
    )
    request = {
        "root": str(folder.root),
        "id": folder.id,
        "evaluations": [asdict(one) for one in read_evaluations(["nn", {"knn": {"k": 3}}])],
        "replay": [],
        "ending": None,
        "allowance": None,
        "halt": str(tmp_path / "halt"),
        "cwd": str(tmp_path),
        "share": {"CPU": 1.0, "GPU": 0.0},
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    subprocess.run([sys.executable, "-c", code, json.dumps(request)], env=environment, check=True, timeout=60)
    return folder


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


def test_a_trial_that_is_killed_again_and_again_fails_with_the_cause(tmp_path: Path) -> None:
    """Otherwise a trial that does not fit into memory is restarted for ever."""
    count = tmp_path / "count"
    state = fork_a_trial(
        tmp_path,
        f"import os\ndef train(*a, **k):\n open({str(count)!r}, 'a').write('x')\n os.kill(os.getpid(), 9)",
    ).state()
    assert state.status == "failed"
    assert state.error is not None
    assert "SIGKILL" in state.error
    assert len(count.read_text()) == worker.RESTARTS + 1


def test_a_trial_that_is_killed_while_judged_has_failed_to_be_judged(tmp_path: Path) -> None:
    """Otherwise a protocol that does not fit into memory is tried for ever, or costs the training."""
    folder = fork_a_trial(
        tmp_path,
        "import os\ndef train(config, folder, evaluations, stop):\n"
        " assert [(e.name, e.changed) for e in evaluations] == [('nn', {}), ('knn', {'k': 3})]\n"
        " folder.update(status='done')\n os.kill(os.getpid(), 9)",
    )
    evaluations = read_evaluations(["nn", {"knn": {"k": 3}}])
    stands = standing(folder, evaluations, "v1")
    assert stands.status == "failed"
    assert stands.error is not None
    assert stands.error.startswith("nn: the trial's process died 4 times, last by SIGKILL (out of memory?)")
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
