"""The cost of a sweep before it runs: the formula against the counter, the estimate against arithmetic."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from lmim.bench import Steps
from lmim.config import Config, Data, choices, merge
from lmim.data import open_dataset
from lmim.data.glyphs import Recipe
from lmim.plan import cost
from lmim.sweep.executors import local_resources
from lmim.trial.folder import State

REPOSITORY = Path(__file__).parents[2]
DEMO: dict[str, Any] = {"projector.width": 128, "run.device": "cpu", "data.crop_scale": 0.5}
ONE_CORE = cost.Machine(cores=1, gpus=0)
RECORD = {
    "training": [
        {
            **{"scale": "demo", "device": "cpu", "precision": "float32", "compile": False},
            **{"images_per_second": {"median": 1000.0}, "formula_flops_per_image": 1e6},
        }
    ],
    "at_once": [
        {
            **{"scale": "demo", "device": "cpu", "processes": 1, "images_per_second": {"median": 1000.0}},
            **{"evaluation_seconds": 1.0, "evaluation_flops_per_second": 2e9},
            **{"precision": "float32", "compile": False, "formula_flops_per_image": 1e6},
        },
        {"scale": "demo", "device": "cpu", "processes": 4, "images_per_second": {"median": 500.0}},
    ],
}


def config(**change: Any) -> Config:
    """The demo scale's config, changed."""
    return Config.model_validate(merge(merge({}, DEMO), {k.replace("__", "."): v for k, v in change.items()}))


def hours(found: cost.Estimate | None) -> tuple[float, float]:
    """Core- and GPU-hours of an estimate that there is."""
    assert found is not None
    return found.core_hours, found.gpu_hours


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"decoder": "self_attention", "decoder__width": 96, "projector__depth": 0},
        {"collapse": "joint", "collapse__target_sees": "all", "encoder__width": 128},
        {"collapse": "frozen_random", "loss": "mse", "mask__similarity": 0.0, "mask__ratio": 0.5},
    ],
)
def test_the_formula_counts_what_a_step_computes(change: dict[str, Any]) -> None:
    """Otherwise an arm's cost is scaled by FLOPs that it does not need."""
    steps = Steps(config(**change, optim__batch_size=8))
    with FlopCounterMode(display=False) as counter:
        steps.seconds()
    counted = counter.get_total_flops() / 8
    assert cost.step_flops(steps.run.config) == pytest.approx(counted, rel=0.1)


def test_a_dataset_of_ones_own_is_planned_without_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset is added in one place: no other table must know it before it can be used."""
    monkeypatch.delitem(cost.SIZES, "digits")
    mine = config(data__name="digits", data__image_size=8, encoder__patch_size=2)
    done = State(status="done", seconds=10.0)
    machine = cost.Machine(cores=4, gpus=0)
    assert cost.estimate([(mine, 1)], [(mine, done)], machine, cost.read_records(Path("none"))) is None


def test_the_sizes_are_the_datasets_own() -> None:
    """Otherwise an epoch is taken to be longer or shorter than it is."""
    assert set(cost.SIZES) <= set(choices("data/datasets", "DATASETS"))
    assert cost.SIZES["glyphs"] == (Recipe().train_images, Recipe().test_images, 1)
    digits = open_dataset(Data(name="digits", image_size=8))
    assert cost.SIZES["digits"] == (len(digits.train), len(digits.test), digits.channels)
    assert cost.size_of(config(data__train_images=300)).train == 300
    assert cost.size_of(config(data__train_images=10**6)).train == 20_000


def test_what_is_measured_here_counts_first() -> None:
    """Otherwise a record of another machine decides, though this one has run such trials."""
    one = config(optim__epochs=4)
    done = State(status="done", outcome="learned", seconds=100.0, device=platform.machine())
    records = [("mine", RECORD), ("theirs", RECORD)]
    like = cost.estimate([(one, 4), (config(optim__epochs=4, seed=1), 4)], [(one, done)], ONE_CORE, records)
    assert like is not None
    assert like.basis == "by like trials that are done"
    assert like.wall_seconds == pytest.approx(200)
    bench = cost.estimate([(one, 4)], [], ONE_CORE, records)
    assert bench is not None
    assert bench.basis == "by mine"
    flops = cost.training_flops(one, 4) / 1e9 + cost.evaluation_flops(one) / 2e9
    assert bench.wall_seconds == pytest.approx(flops)
    assert cost.estimate([(one, 4)], [], ONE_CORE, []) is None


def test_only_what_is_left_costs() -> None:
    """Otherwise an interrupted trial, or a baseline that is only judged, is priced as a whole training."""
    records = [("mine", RECORD)]

    def priced(epochs: int, left: int) -> float:
        return hours(cost.estimate([(config(optim__epochs=epochs), left)], [], ONE_CORE, records))[0] * 3600

    judged = cost.evaluation_flops(config()) / 2e9
    assert priced(0, 0) == pytest.approx(judged)
    assert (priced(10, 10) - judged) == pytest.approx(2 * (priced(10, 5) - judged))


def test_trials_fill_the_slots() -> None:
    """Otherwise the wall time promised is that of one core, or of a machine without contention."""
    records = [("mine", RECORD)]
    one = config()
    alone = cost.estimate([(one, 1)], [], ONE_CORE, records)
    five = cost.estimate([(one, 1)] * 5, [], cost.Machine(cores=4, gpus=0), records)
    assert alone is not None
    assert five is not None
    assert five.wall_seconds == pytest.approx(2 * 2 * alone.wall_seconds), "two rounds at half the speed"
    assert five.core_hours == pytest.approx(5 * 2 * alone.core_hours)
    serial = cost.estimate([(one, 1)] * 5, [], cost.Machine(cores=4, gpus=0, limit=1), records)
    assert serial is not None
    assert serial.wall_seconds == pytest.approx(5 * alone.wall_seconds)


def test_a_gpu_that_was_never_measured_is_an_assumption() -> None:
    """Otherwise a plan for GPUs has no cost, or one that pretends to be measured."""
    whole, half = (config(run__device="cuda", run__gpus=share, optim__epochs=100) for share in (1.0, 0.5))
    found = cost.estimate([(whole, 100)] * 2, [], ONE_CORE, [("mine", RECORD)])
    assert found is not None
    assert found.basis.startswith("assuming 45 TFLOP/s")
    flops = cost.training_flops(whole, 100) + cost.evaluation_flops(whole)
    assert found.core_hours == 0
    assert found.gpu_hours == pytest.approx(2 * flops / 4.5e13 / 3600)
    shared = cost.estimate([(half, 100)] * 2, [], ONE_CORE, [("mine", RECORD)])
    assert shared is not None
    assert hours(shared) == hours(found)
    assert shared.wall_seconds == pytest.approx(found.wall_seconds), "sharing a GPU makes it no faster"


def test_damaged_records_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a torn or foreign file in the results folder ends every dry run in a traceback."""
    monkeypatch.setattr(cost, "SHIPPED", tmp_path / "none")
    for text in ("{", "[]", '{"images_per_second": 3}', json.dumps({"format": -1})):
        (tmp_path / "bench.json").write_text(text)
        assert cost.read_records(tmp_path) == []


@pytest.mark.parametrize(
    ("scale", "unit"), [("demo", "core-hours"), ("gpu", "GPU-hours"), ("paper", "GPU-hours")]
)
def test_every_scale_has_a_price(scale: str, unit: str, tmp_path: Path) -> None:
    """Otherwise one learns what the paper's scale costs by paying it; and planning must not load torch."""
    words = ["ablations/loss.yaml", "--scale", scale, "--dry-run", "--out", str(tmp_path)]
    code = (
        "import sys; from lmim.sweep.command import main\n"
        f"assert main({words}) == 0\n"
        "assert not {'torch', 'numpy', 'ray', 'mlflow'} & set(sys.modules)"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=REPOSITORY,
    ).stdout
    if scale == "demo":  # measured: 8.3 min for 28 trials on the four cores of the record that is shipped
        minutes = 1911 / 60 / round(local_resources().cpus)
        found = re.search(r"(?:(\d+) h )?(\d+) min", printed)
        assert found
        assert 0.5 * minutes < 60 * int(found[1] or 0) + int(found[2]) < 2 * minutes + 2
    (line,) = (line for line in printed.splitlines() if "cost of what is missing" in line)
    assert unit in line
    assert "(by " in line or "(assuming " in line
