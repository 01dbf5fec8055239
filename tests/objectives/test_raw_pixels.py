"""The baseline that learns nothing."""

from typing import Any

import torch

from lmim import objectives
from lmim.axes.mask import patchify
from lmim.config import Config
from lmim.objectives import Objective, Setup


def build(side: int = 8) -> Objective:
    tree: dict[str, Any] = {"objective": "raw_pixels", "encoder": {"patch_size": 2}}
    return objectives.build(Config.read(tree | {"data": {"image_size": side}}), Setup(side, 3, 10))


def test_features_are_the_pixels() -> None:
    """Every encoder is compared with this floor; anything else would be an encoder."""
    images = torch.randn(4, 3, 8, 8)
    objective = build()
    assert torch.equal(objective.features(images), images.flatten(1))
    assert torch.equal(objective.patch_features(images), patchify(images, 2))


def test_large_images_are_judged_by_a_thumbnail() -> None:
    """The probe's memory grows with the square of the channels: 224 x 224 x 3 would end the trial."""
    images = torch.randn(2, 3, 64, 64)
    features = build(64).features(images)
    assert features.shape == (2, 3 * 32 * 32)
    means = images.view(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    torch.testing.assert_close(features, means.flatten(1))


def test_there_is_nothing_to_train_or_to_read() -> None:
    """An ablation of the loss would train, and show, one raw_pixels for each loss."""
    objective = build()
    assert not list(objective.parameters())
    assert not objective.scheduled(0.5)
    config = Config.read({"objective": "raw_pixels"})
    assert not {"loss", "collapse", "mask", "decoder", "projector"} & set(config.model_dump())
