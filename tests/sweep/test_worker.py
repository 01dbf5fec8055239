"""A slot on a worker: what becomes of a trial that fails, dies, or looks for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

from lmim.config import Config
from lmim.sweep import worker
from lmim.trial.folder import State, TrialFolder

REPOSITORY = Path(__file__).parents[2]


def fork_a_trial(tmp_path: Path, train: str) -> State:
    """Run one trial in the server of a worker, with a trainer of the test's own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = sys.modules['lmim.train.loop'] = types.ModuleType('lmim.train.loop')\n"
        f"exec({train!r}, module.__dict__)\n"
    )
    config = Config()
    code = (
        "import sys, json; from lmim.sweep.worker import run_on_worker, _SERVERS\n"
        "run_on_worker(json.loads(sys.argv[1]))\n"
        "[server.close() for server in _SERVERS.values()]"
    )
    request = {
        "root": str(tmp_path / "trials"),
        "id": config.identity,
        "config": config.model_dump_json(),
        "halt": str(tmp_path / "halt"),
        "cwd": str(tmp_path),
        "share": {"CPU": 1.0, "GPU": 0.0},
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    subprocess.run([sys.executable, "-c", code, json.dumps(request)], env=environment, check=True, timeout=60)
    return TrialFolder(tmp_path / "trials", config.identity).state()


def test_an_exception_in_a_trial_is_its_result(tmp_path: Path) -> None:
    """Otherwise one broken arm takes the sweep down, or fails without a word."""
    state = fork_a_trial(tmp_path, "def train(*a, **k): raise ValueError('no such thing\\nat all')")
    assert (state.status, state.error) == ("failed", "ValueError: no such thing")
    (traceback,) = (tmp_path / "trials").glob("*/error.txt")
    assert "in train" in traceback.read_text()


def test_a_trial_that_is_killed_again_and_again_fails_with_the_cause(tmp_path: Path) -> None:
    """Otherwise a trial that does not fit into memory is restarted for ever."""
    count = tmp_path / "count"
    state = fork_a_trial(
        tmp_path,
        f"import os\ndef train(*a, **k):\n open({str(count)!r}, 'a').write('x')\n os.kill(os.getpid(), 9)",
    )
    assert state.status == "failed"
    assert state.error is not None
    assert "SIGKILL" in state.error
    assert len(count.read_text()) == worker.RESTARTS + 1


def test_a_trial_runs_where_the_command_was_typed(tmp_path: Path) -> None:
    """Otherwise a relative data.path is looked for in a folder of Ray's."""
    state = fork_a_trial(tmp_path, "import os\ndef train(*a, **k): raise ValueError(os.getcwd())")
    assert state.error == f"ValueError: {tmp_path}"


def test_a_trial_on_a_cpu_sees_no_gpu(tmp_path: Path) -> None:
    """Otherwise every CPU trial of a sweep crowds onto the first GPU."""
    state = fork_a_trial(
        tmp_path,
        "import os\ndef train(*a, **k): raise ValueError(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))",
    )
    assert state.error == "ValueError: ''"


def test_a_trial_names_the_code_that_its_server_loaded(tmp_path: Path) -> None:
    """Otherwise an edit during a sweep is taken for the code that trained, and the table is wrong."""
    state = fork_a_trial(
        tmp_path,
        "def train(*a, **k):\n"
        " from lmim.trial.code import code_version\n"
        " raise ValueError(f'{code_version.cache_info().currsize} known before it was asked')",
    )
    assert state.error == "ValueError: 1 known before it was asked"
