"""What only the data and the model themselves can tell a plan, asked in a process of its own.

Planning imports no torch. What it must know (what the data are, how many; the FLOPs of a step) it asks this
module, which opens the dataset and runs the model on tensors without content; `plan/facts.py` remembers the
answers.
"""

import json
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmim import objectives
from lmim.axes.collapse import read_ids
from lmim.config import Config
from lmim.data import open_dataset
from lmim.errors import UserError, cause
from lmim.objectives import Setup

IMAGES = 2
"""Images of the micro-batch whose FLOPs are counted."""


def data(config: Config) -> dict[str, Any]:
    """What a dataset is, and how many images are in each split."""
    found = open_dataset(config.data, config.sources)
    return {
        "version": found.version,
        "train": len(found.train),
        "val": len(found.val),
        "test": len(found.test),
        "channels": found.channels,
        "classes": found.classes,
        "frames": found.frames,
        "masks": found.masks,
        "skipped": len(found.skipped),
        "skipped_names": [*found.skipped[:3]],
    }


def ids(config: Config) -> dict[str, Any]:
    """What the ids of tokens are that the config's target names; see `plan.facts.Ids`."""
    table, version, about = read_ids(config.section("collapse").path)
    return {"version": version, "images": table.shape[0], "patches": table.shape[1], **about}


def flops(config: Config, channels: int, classes: int) -> dict[str, Any]:
    """FLOPs of a training step and of the encoder for each image; a multiplication and an addition are two.
    And `kept`, the bytes that a step keeps for its backward pass, which most of its memory goes to.

    Counted by torch on the meta device: nothing is computed, whatever the size.
    """
    setup = Setup(config.data.image_size, channels, classes, config.data.crop_scale, False, config.sources)
    with torch.device("meta"):
        objective = objectives.build(config, setup)
    side = config.data.image_size
    images = torch.empty(IMAGES, channels, side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        width = objective.eval().features(images).shape[1]
    learns = config.optim.epochs and any(parameter.requires_grad for parameter in objective.parameters())
    step, kept = _step(objective, setup) if learns else (0.0, 0.0)
    return {
        "step": step,
        "kept": kept,
        "encode": encoding.get_total_flops() / IMAGES,
        "seeks_every": objective.seeks_every,
        "width": width,
    }


def _step(objective: objectives.Objective, setup: Setup) -> tuple[float, float]:
    weights = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor  # held, so that no other storage takes its place
        return tensor

    draw = objective.draw(torch.ones(IMAGES), torch.Generator().manual_seed(0))
    views = draw.boxes.shape[1]
    shape = IMAGES, views, setup.channels, objective.crop_side, objective.crop_side
    drawn = {"index": torch.zeros(IMAGES, dtype=torch.int64), **draw.own}
    own = {name: _on_meta(tensor) for name, tensor in drawn.items()}
    scheduled = {name: torch.tensor(value, device="meta") for name, value in objective.scheduled(0.5).items()}
    labels = torch.empty(IMAGES, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            figures = objective.train()(torch.empty(shape, device="meta"), labels, own, scheduled)
        if "loss" not in figures:
            raise UserError(f"forward: expected figures with a loss among them, found {', '.join(figures)}")
        figures["loss"].backward()
    total: int = counter.get_total_flops()
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return total / IMAGES, held / IMAGES


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a question, as JSON has it; an error is one too."""
    try:
        config = Config.read(question["config"])
        if question["about"] == "data":
            return data(config)
        if question["about"] == "ids":
            return ids(config)
        return flops(config, question["channels"], question["classes"])
    except Exception as error:  # noqa: BLE001  the one who asked tells the user
        return {"error": cause(error), "user": isinstance(error, UserError)}


def main() -> int:
    """Answers a list of questions on stdin with a list on stdout, as JSON."""
    warnings.simplefilter("ignore")  # the trials' own output has them, and the plan what matters of them
    json.dump([answer(question) for question in json.load(sys.stdin)], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
