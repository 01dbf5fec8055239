"""The cost of a sweep before it runs: the estimate against arithmetic; `test_survey.py` has the counter."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmim.config import Config, merge
from lmim.plan import cost, facts
from lmim.plan.located_yaml import scalar
from lmim.sweep.resources import local_resources
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import State
from tests.sweep.running import TINY

REPOSITORY = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"projector.width": 128, "run.device": "cpu", "data.name": "digits"}
ONE_CORE = cost.Machine(cores=1, gpus=0)
RECORD = {
    "training": [
        {
            **{"scale": "demo", "device": "cpu", "precision": "float32", "compile": False},
            **{"images_per_second": {"median": 1000.0}, "flops_per_image": 1e6},
        }
    ],
    "at_once": [
        {
            **{"scale": "demo", "device": "cpu", "processes": 1, "images_per_second": {"median": 1000.0}},
            **{"evaluation_seconds": 1.0, "evaluation_flops_per_second": 2e9},
            **{"precision": "float32", "compile": False, "flops_per_image": 1e6},
        },
        {"scale": "demo", "device": "cpu", "processes": 4, "images_per_second": {"median": 500.0}},
    ],
}


def config(**change: Any) -> Config:
    """A small config, changed."""
    return Config.read(merge(merge({}, SMALL), {k.replace("__", "."): v for k, v in change.items()}))


def hours(found: cost.Estimate | None) -> tuple[float, float]:
    """Core- and GPU-hours of an estimate that there is."""
    assert found is not None
    return found.core_hours, found.gpu_hours


def work(config: Config) -> cost.Work:
    """What it has to do."""
    return cost.works([config])[config.arm]


def test_an_epoch_is_the_steps_over_the_images_that_there_are() -> None:
    """Otherwise an epoch is taken to be longer or shorter than it is."""
    data, (flops,) = facts.data_of(config()), facts.flops_of([config()])
    assert data == facts.Data(data.version, 1213, 134, 450, 1, 10)
    steps = 1213 // 128 * 128 * flops.step
    watched = 512 * flops.encode
    assert work(config()).epoch == pytest.approx(steps + watched)
    assert work(config(watch__every_epochs=4)).epoch == pytest.approx(steps + watched / 4)
    few = work(config(data__train_images=300))
    assert few.epoch == pytest.approx(2 * 128 * flops.step + watched)
    assert few.evaluation == cost.evaluation(flops, 300, 450) < work(config()).evaluation
    assert work(config(data__train_images=10**6)).epoch == work(config()).epoch


def test_passes_that_an_objective_makes_over_the_images_are_counted() -> None:
    """Else a baseline of equal compute would get fewer epochs than ContrastiveCrop's passes are worth."""

    def cropped(alpha: float, every: int) -> Config:
        section = {"crop_alpha": alpha, "crop_every": every}
        tree = {"objective": "contrastive_mim", "contrastive_mim": section, "loss": {"kind": "norm_mse"}}
        return Config.read(merge(tree, {"data.name": "digits", "optim.epochs": 8}))

    def crops(alpha: float, every: int) -> cost.Work:
        return work(cropped(alpha, every))

    plain = crops(0.0, 2)
    (flops,) = facts.flops_of([cropped(0.0, 2)])
    one = 1213 * flops.encode
    # after the second, the fourth and the sixth epoch; after the last nothing is trained by what is found
    assert 8 * crops(0.1, 2).epoch == pytest.approx(8 * plain.epoch + 3 * one)
    assert 8 * crops(0.1, 7).epoch == pytest.approx(8 * plain.epoch + one)
    assert crops(0.1, 8).epoch == plain.epoch


def test_models_beyond_those_that_are_counted_get_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a plan of thousands of models builds each of them before it says what they cost."""
    widths = [config(encoder__width=width) for width in (32, 64, 128)]
    counted = [work(one).step for one in widths]
    monkeypatch.setattr(cost, "MODELS", 2)
    found = cost.works([*widths, config(encoder__width=32, seed=1)])
    assert [found[one.arm].step for one in widths] == [
        counted[0],
        pytest.approx((counted[0] + counted[2]) / 2),
        counted[2],
    ]


def test_what_is_measured_here_counts_first() -> None:
    """Otherwise a record of another machine decides, though this one has run such trials."""
    one = config(optim__epochs=4)
    done = State(status="done", outcome="learned", seconds=100.0, device=platform.machine())
    records = [("mine", RECORD), ("theirs", RECORD)]
    like = cost.estimate(
        [cost.Missing(one, 4), cost.Missing(config(optim__epochs=4, seed=1), 4)],
        [cost.Finished(one, done)],
        ONE_CORE,
        records,
    )
    assert like is not None
    assert like.basis == "by like trials that are done"
    assert like.wall_seconds == pytest.approx(cost.SWEEP_SECONDS + 200)
    bench = cost.estimate([cost.Missing(one, 4)], [], ONE_CORE, records)
    assert bench is not None
    assert bench.basis == "by mine"
    flops = 4 * work(one).epoch / 1e9 + work(one).evaluation / 2e9
    assert bench.wall_seconds == pytest.approx(cost.SWEEP_SECONDS + cost.TRIAL_SECONDS + flops)
    assert cost.estimate([cost.Missing(one, 4)], [], ONE_CORE, []) is None


def test_only_what_is_left_costs() -> None:
    """Otherwise an interrupted trial, or a baseline that is only judged, is priced as a whole training."""
    records = [("mine", RECORD)]

    def priced(epochs: int, left: int) -> float:
        return (
            hours(cost.estimate([cost.Missing(config(optim__epochs=epochs), left)], [], ONE_CORE, records))[0]
            * 3600
        )

    judged = work(config()).evaluation / 2e9 + cost.TRIAL_SECONDS
    assert priced(0, 0) == pytest.approx(judged)
    assert (priced(10, 10) - judged) == pytest.approx(2 * (priced(10, 5) - judged))


def test_further_protocols_are_priced_too() -> None:
    """A sweep of a minute's trials that are judged for three would be promised in a minute."""
    records, one = [("mine", RECORD)], config()
    asked = read_evaluations(["nn", "attentive", {"finetune": {"epochs": 3}}, "top1"])
    plain, judged = (
        hours(cost.estimate([cost.Missing(one, 1, which)], [], ONE_CORE, records))[0] * 3600
        for which in ((), asked)
    )
    data = facts.data_of(one)
    attentive = asked[1].seconds * (data.train + data.test) / cost.SECONDS_OF
    assert attentive > 0
    assert judged - plain == pytest.approx(attentive + 3 * work(one).epoch / 1e9)


def test_trials_fill_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the wall time promised is that of one core, or of a machine without contention."""
    monkeypatch.setattr(cost, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(cost, "SWEEP_SECONDS", 0.0)
    records = [("mine", RECORD)]
    one = config()
    alone = cost.estimate([cost.Missing(one, 1)], [], ONE_CORE, records)
    five = cost.estimate([cost.Missing(one, 1)] * 5, [], cost.Machine(cores=4, gpus=0), records)
    assert alone is not None
    assert five is not None
    assert five.wall_seconds == pytest.approx(2 * 2 * alone.wall_seconds), "two rounds at half the speed"
    assert five.core_hours == pytest.approx(5 * 2 * alone.core_hours)
    serial = cost.estimate([cost.Missing(one, 1)] * 5, [], cost.Machine(cores=4, gpus=0, limit=1), records)
    assert serial is not None
    assert serial.wall_seconds == pytest.approx(5 * alone.wall_seconds)


def test_a_gpu_that_was_never_measured_is_an_assumption() -> None:
    """Otherwise a plan for GPUs has no cost, or one that pretends to be measured."""
    whole, half = (config(run__device="cuda", run__gpus=share, optim__epochs=100) for share in (1.0, 0.5))
    found = cost.estimate([cost.Missing(whole, 100)] * 2, [], ONE_CORE, [("mine", RECORD)])
    assert found is not None
    assert found.basis.startswith("assuming 45 TFLOP/s")
    flops = 100 * work(whole).epoch + work(whole).evaluation
    assert found.core_hours == 0
    assert flops / 4.5e13 < 100 * work(whole).steps * cost.STEP_SECONDS, "no GPU makes a small step shorter"
    judged = work(whole).evaluation / 4.5e13
    each = cost.TRIAL_SECONDS + 100 * work(whole).steps * cost.STEP_SECONDS + judged
    assert found.gpu_hours == pytest.approx(2 * each / 3600)
    large = config(run__device="cuda", encoder__width=1024, encoder__depth=12, data__image_size=64)
    flops = 5000 * work(large).epoch + work(large).evaluation
    assert hours(cost.estimate([cost.Missing(large, 5000)], [], ONE_CORE, []))[1] == pytest.approx(
        flops / 4.5e13 / 3600, rel=0.01
    )
    shared = cost.estimate([cost.Missing(half, 100)] * 2, [], ONE_CORE, [("mine", RECORD)])
    assert shared is not None
    assert 2 * hours(shared)[1] == pytest.approx(hours(found)[1], rel=0.01), (
        "two small ones fit beside each other"
    )


MEASURED = {1: (0.24, 9.16), 30: (3.04, 3.24), 300: (27.87, 28.4)}
"""Epochs to the seconds of two trials of `running.TINY`, one after the other on a machine of two busy cores.

The first trial of a process imports for nine seconds more.
"""


def tiny(epochs: int, seed: int = 0) -> Config:
    """The config of these trials."""
    keys = dict(setting.split("=") for setting in TINY) | {"watch.every_epochs": "1", "run.device": "cpu"}
    values = {key: scalar(text) for key, text in keys.items()}
    return Config.read(merge({}, values | {"optim.epochs": epochs, "seed": seed}))


@pytest.mark.parametrize("known", [None, *MEASURED])
@pytest.mark.parametrize("wanted", MEASURED)
def test_a_tiny_trial_is_priced_as_it_was_measured(known: int | None, wanted: int) -> None:
    """Otherwise a trial of two steps passes for a pace: half an hour is promised for three seconds."""
    seconds = MEASURED[known] if known else ()
    done = [
        cost.Finished(tiny(known or 0, seed), State(status="done", seconds=one))
        for seed, one in enumerate(seconds)
    ]
    found = cost.estimate(
        [cost.Missing(tiny(wanted), wanted)], done, ONE_CORE, cost.read_records(Path("none"))
    )
    assert found is not None
    assert found.basis.startswith("by like trials that are done" if known else "by cpu-4-cores.json")
    # nine seconds of imports may fall on a trial or not
    assert min(MEASURED[wanted]) / 3 < found.core_hours * 3600 < 3 * max(MEASURED[wanted])


def test_a_sweep_costs_its_start_and_its_report() -> None:
    """Otherwise seconds are promised for a sweep of tiny trials that takes more than a minute."""
    kept = {"sweep": {"seconds_before_first_trial": 11.0, "seconds_after_last_trial": 9.0}}
    one, two = (
        cost.estimate([cost.Missing(config(), 1)], [], ONE_CORE, [("mine", RECORD | more)])
        for more in (kept, {"sweep": None})
    )
    assert one is not None
    assert two is not None
    assert one.wall_seconds == pytest.approx(20 + one.core_hours * 3600)
    assert two.wall_seconds == pytest.approx(cost.SWEEP_SECONDS + two.core_hours * 3600)
    nothing = cost.estimate([], [], ONE_CORE, [("mine", RECORD | kept)])
    assert nothing is not None
    assert nothing.wall_seconds == 0


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
        f"assert main({words}) == {0 if scale == 'demo' else 2}\n"  # priced, though it cannot run here
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
