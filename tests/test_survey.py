"""The survey: what it says of data and models is what the trainer meets."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmim import survey
from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.errors import UserError
from lmim.sweep.crowd import Steps
from tests.objectives.test_objectives import CONTRAST, mine

SMALL: dict[str, Any] = {"projector.width": 128, "run.device": "cpu", "data.name": "digits"}


def config(**change: Any) -> Config:
    """A small config, changed."""
    return Config.read(merge(merge({}, SMALL), {k.replace("__", "."): v for k, v in change.items()}))


def test_the_sizes_are_the_datasets_own() -> None:
    """Otherwise an epoch is priced as longer or shorter than it is, or the identity is of other data."""
    digits = open_dataset(config().data)
    assert survey.data(config()) == {
        "version": digits.version,
        **{"train": 1213, "val": 134, "test": 450, "channels": 1, "classes": 10, "frames": 1, "masks": False},
        **{"skipped": 0, "skipped_names": []},
    }
    assert [len(split) for split in (digits.train, digits.val, digits.test)] == [1213, 134, 450]
    assert survey.data(config(data__train_images=300))["train"] == 300


@pytest.mark.parametrize(
    "change",
    [
        {"data__image_size": 20, "encoder__patch_size": 5, "decoder__depth": 1},  # the demo scale's
        {"decoder": "self_attention", "decoder__width": 96, "projector__depth": 0},
        {"collapse": "joint", "collapse__target_sees": "all", "encoder__width": 128},
        {"collapse": "frozen_random", "loss": "mse", "mask__similarity": 0.0, "mask__ratio": 0.5},
    ],
)
def test_what_is_counted_is_what_a_step_computes(change: dict[str, Any]) -> None:
    """Otherwise an arm's cost is scaled by FLOPs that it does not need."""
    small = config(**change, optim__batch_size=8)
    steps = Steps(small, open_dataset(small.data))
    side = small.data.image_size
    # fused attention computes the forward pass again in backward: about a percent more of a step
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        steps.seconds()
    with FlopCounterMode(display=False) as encoding, torch.no_grad():
        features = steps.run.objective.features(torch.zeros(8, 1, side, side))
    found = survey.flops(steps.run.config, 1, 10)
    assert found.pop("kept") > 0, "see tests/sweep/test_crowd.py"
    assert found == {
        "step": counter.get_total_flops() / 8,
        "encode": encoding.get_total_flops() / 8,
        "width": features.shape[1],
        "seeks_every": 0,
    }


def test_what_learns_nothing_has_no_steps() -> None:
    """Otherwise a baseline is priced as a training."""
    random = survey.flops(config(optim__epochs=0), 1, 10)
    assert random["step"] == 0
    assert random["encode"] == survey.flops(config(), 1, 10)["encode"] > 0
    pixels = survey.flops(Config.read({"objective": "raw_pixels", "data": {"name": "digits"}}), 1, 10)
    assert pixels == {"step": 0, "kept": 0, "encode": 0, "width": 400, "seeks_every": 0}


def test_a_question_that_fails_leaves_the_others_answered() -> None:
    """Otherwise one folder that is not mounted would end the plan of every other trial."""
    folder = {"data": {"name": "imagefolder", "path": "/nowhere"}, "objective": "raw_pixels"}
    digits = {"data": {"name": "digits"}, "objective": "raw_pixels"}
    asked: list[dict[str, Any]] = [{"about": "data", "config": tree} for tree in (folder, digits)]
    asked.append({"about": "flops", "config": digits, "channels": 1, "classes": 10})
    done = subprocess.run(
        [sys.executable, "-m", "lmim.survey"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    missing, found, flops = json.loads(done.stdout)
    assert missing["user"]
    assert missing["error"].startswith("data.path: /nowhere is not a folder")
    assert (found["train"], flops["width"]) == (1213, 400)


def test_an_objective_of_ones_own_is_counted_as_it_is_trained() -> None:
    """Otherwise what trains well cannot be planned; or a forward without a loss is a KeyError."""
    found = survey.flops(mine(), 1, 10)
    assert found["step"] > 2 * found["encode"] > 0
    lossless = {"mine.py": CONTRAST.replace('return {"loss": loss, ', "return {")}
    with pytest.raises(UserError, match="forward: expected figures with a loss among them, found contrast"):
        survey.flops(mine().model_copy(update={"sources": lossless}), 1, 10)
