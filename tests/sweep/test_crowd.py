"""Trials at the same time, timed for real on the CPU, where they share cores in place of a GPU."""

import json
import os
import subprocess
import sys

import psutil
import pytest
from torch.profiler import ProfilerActivity, profile

from lmim import survey
from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.sweep import crowd
from lmim.sweep.packing import Measured
from tests.sweep.running import REPOSITORY
from tests.train.conftest import TINY


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crowd_is_measured_as_it_is_asked_for() -> None:
    """Otherwise `run.gpus: auto` chooses by figures of something else, or the sweep dies of the measuring."""
    config = Config.read({**TINY, "run": {"gpus": "auto"}})  # fewer steps than seconds would take
    done = subprocess.run(
        [sys.executable, "-m", "lmim.sweep.crowd"],
        input=json.dumps({"config": config.model_dump(), "most": 2}),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    one, two = (Measured(**found) for found in json.loads(done.stdout))
    assert (one.trials, two.trials) == (1, 2)
    assert one.images_per_second > 0 < two.images_per_second
    assert one.total_mib == pytest.approx(psutil.virtual_memory().total / 2**20)
    assert 100 < one.mib < one.total_mib


def test_more_trials_than_have_room_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a GPU that holds three trials fails the sweep when four are tried."""
    rates = {1: 100.0, 2: 150.0}

    def crowd_of(config: Config, trials: int, seconds: float) -> list[dict[str, float]]:
        assert config.optim.epochs > 1000, "or the trials would end while they are timed"
        rate = rates.get(trials)
        return [{"images_per_second": rate / trials, "peak_rss_mib": 1.0}] * trials if rate else []

    monkeypatch.setattr(crowd, "crowd", crowd_of)
    found = [*crowd.ladder(Config.read(TINY), most=8)]
    assert [(one.trials, one.images_per_second) for one in found] == [(1, 100.0), (2, 150.0)]
    rates |= {4: 151.0, 8: 900.0}
    assert [one.trials for one in crowd.ladder(Config.read(TINY), most=8)] == [1, 2, 4], "4 do no more than 2"
    assert [one.trials for one in crowd.ladder(Config.read(TINY), most=3)] == [1, 2]


@pytest.mark.parametrize("changes", [{}, {"decoder.kind": "self_attention", "optim.batch_size": 64}])
def test_what_a_step_keeps_is_known_before_it_runs(changes: dict[str, object]) -> None:
    """Otherwise another arm than the heaviest is measured, and the heaviest runs out of memory."""
    deep = {"encoder.depth": 12, "encoder.width": 64, "mask.ratio": 0.5, **changes}
    config = Config.read(merge(TINY, deep))
    steps = crowd.Steps(config, open_dataset(config.data))
    steps.seconds(2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        steps.seconds()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    taken = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        taken += event.nbytes()
        peak = max(peak, taken)
    kept = survey.flops(config, channels=1, classes=10)["kept"] * config.optim.batch_size
    gradients = sum(one.nbytes for one in steps.run.objective.parameters() if one.requires_grad)
    assert kept + gradients == pytest.approx(peak, rel=0.2)
