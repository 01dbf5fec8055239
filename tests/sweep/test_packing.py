"""How many trials share a GPU: by figures as a GPU gives them, and on Ray with GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmim.config import Config, merge
from lmim.plan.ablation import load
from lmim.sweep import packing
from lmim.sweep.packing import Measured, fit
from lmim.sweep.resources import Resources
from lmim.trial.folder import TrialFolder
from tests.sweep.running import REPOSITORY, TINY, write

GIB = 1024.0


def measured(gib: float, *rates: float, total: float = 80.0) -> list[Measured]:
    """1, 2, 4, ... trials with these rates, each of so many GiB."""
    return [Measured(2**power, rate, gib * GIB, total * GIB) for power, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("given", "most", "trials", "says"),
    [
        (measured(9.1, 2100, 3600, 4900), 16, 4, "4 share a GPU: 9.1 GiB each of 80; images/s: 2,100 by 1"),
        (measured(2, 2100, 3600, 4900, 4950), 16, 4, "4,950 by 8"),  # longer for each, and no more
        (measured(30, 2100, 3600, 4900), 16, 2, "2 share a GPU"),  # 4 have no room
        (measured(9.1, 2100, 3600, 4900), 2, 2, "3,600 by 2"),
        (measured(9.1, 2100, 2150), 16, 1, "each has a GPU to itself: 9.1 GiB"),
        (measured(39.9, 2100, 3600), 16, 1, "each has a GPU to itself: 39.9 GiB"),  # within the margin
        (measured(79, 2100), 16, 1, "each has a GPU to itself: one takes 79.0 GiB each of 80"),
        ([], 16, 1, "each has a GPU to itself"),  # not even one had room
    ],
)
def test_the_fewest_trials_that_use_the_gpu(given: list[Measured], most: int, trials: int, says: str) -> None:
    """Otherwise GPUs idle, or trials run out of memory, or each takes twice as long for nothing."""
    found = fit(given, most)
    assert found.trials == trials
    assert says in found.reason


def test_the_heaviest_arm_is_measured() -> None:
    """Otherwise as many share a GPU as the lightest arm allows, and the others run out of memory."""
    light = Config.read({"run": {"gpus": "auto"}})
    heavy = Config.read({"run": {"gpus": "auto"}, "encoder": {"depth": 12}})
    several = Config.read(
        {"run": {"gpus": "auto", "processes": 2}, "encoder": {"depth": 24}, "optim": {"accumulate": 2}}
    )
    untrained = Config.read({"run": {"gpus": "auto"}, "encoder": {"depth": 24}, "optim": {"epochs": 0}})
    fixed = Config.read({"encoder": {"depth": 24}})
    assert packing.heaviest([light, heavy, several, untrained, fixed]) == heavy
    assert packing.heaviest([several, untrained, fixed]) is None
    larger = Config.read(merge(light.model_dump(), {"optim.batch_size": 1024}))
    assert packing.heaviest([light, heavy, larger]) == larger


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """Otherwise each start of a sweep costs a minute, or another GPU's figures are believed."""
    config, other = Config.read({}), Config.read({"encoder": {"depth": 2}})
    found = measured(9, 2100, 3600)
    packing.remember(tmp_path, config, "H100", 2, found)
    packing.remember(tmp_path, other, "H100", 2, found[:1])
    assert packing.remembered(tmp_path, config, "H100", 2) == found
    assert packing.remembered(tmp_path, config, "H100", 1) == found
    assert packing.remembered(tmp_path, config, "H100", 4) is None, "4 were never tried"
    assert packing.remembered(tmp_path, config, "A100", 2) is None
    assert packing.remembered(tmp_path, Config.read({"optim": {"batch_size": 8}}), "H100", 1) is None
    (tmp_path / "packing.json").write_text("{")
    assert packing.remembered(tmp_path, config, "H100", 1) is None


def test_a_trial_that_ran_out_of_memory_has_nothing_beside_it() -> None:
    """Otherwise it runs out again, for the same neighbours."""
    quarter = Config.read({"run": {"gpus": 0.25, "cpus": 2}})
    assert Resources(cpus=8, gpus=2).share(quarter, alone=True) == {"CPU": 2.0, "GPU": 1.0}
    assert Resources(cpus=8.5, gpus=0).share(quarter, alone=True) == {"CPU": 8.0, "GPU": 0.0}
    nodes = Resources(cpus=4, gpus=0), Resources(cpus=16, gpus=0)
    assert Resources(20, 0, nodes).share(quarter, alone=True) == {"CPU": 16.0, "GPU": 0.0}


FAKED = """
import sys
from pathlib import Path
from lmim.plan.ablation import load
from lmim.sweep import executors
from lmim.sweep.executors import Job, Stop, on_ray
from lmim.sweep.resources import Resources
from lmim.trial.folder import TrialFolder

if __name__ == "__main__":
    out, sets = Path(sys.argv[1]), sys.argv[2:]
    executors.local_resources = lambda: Resources(cpus=8, gpus=2)
    jobs = [Job(trial) for trial in load(out / "tiny.yaml", sets=sets).trials]
    jobs += [Job(jobs.pop().trial, memory="alone")]
    for job in jobs:
        TrialFolder(out / "trials", job.trial.id).create(job.trial.config)
    with on_ray(out / "trials", Stop(out / "stop"), None, None, False) as execute:
        execute(jobs)
"""
SEEN = """
import os
from pathlib import Path
from torch.nn.functional import mse_loss


def loss(prediction, target):
    with (Path(os.environ["SEEN"]) / str(os.getpid())).open("a") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
    return mse_loss(prediction, target)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_share_gpus_that_ray_believes_in(tmp_path: Path) -> None:
    """Otherwise auto is measured in vain, a GPU holds more trials than fit, or one that ran out shares again.

    Ray hands out two GPUs that are not there; torch sees none, so that all that runs runs on the CPU.
    """
    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "seen").mkdir()
    write(tmp_path, arms='["seen.py:loss"]', seeds="[0, 1, 2, 3, 4]")
    sets = [*TINY, "optim.epochs=1", "run.gpus=auto"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", FAKED, str(tmp_path), *sets],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=plain | {"PYTHONPATH": str(REPOSITORY), "SEEN": str(tmp_path / "seen")},
        cwd=tmp_path,
    )
    trials = [
        TrialFolder(tmp_path / "trials", trial.id) for trial in load(tmp_path / "tiny.yaml", sets=sets).trials
    ]
    assert [folder.state().status for folder in trials] == ["done"] * 5
    (entry,) = json.loads((tmp_path / "packing.json").read_text()).values()
    choice = fit([Measured(**one) for one in entry["measured"]], entry["most"])
    assert entry["most"] == 2, "four trials that share, two GPUs"
    assert f"run.gpus: {choice.reason}\n" in done.stdout
    shares = [folder.config().run.gpus for folder in trials]
    assert shares == [1 / choice.trials] * 4 + [1.0]
    seen = [{*file.read_text().split()} for file in (tmp_path / "seen").iterdir()]
    seen.remove(set())  # who counts the FLOPs sees none
    assert all(one <= {"0", "1"} and len(one) == 1 for one in seen), "each process has one GPU in sight"
