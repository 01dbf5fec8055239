"""Invariance: encoders that do not change with an image, with all of it, or that tell none apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmim.config import Data
from lmim.data import Dataset
from lmim.data.splits import from_arrays
from lmim.evaluate.features import freeze
from lmim.evaluate.invariance import METRICS, invariance
from tests.evaluate.builders import DIGITS, flat, model


def of(encode: object, dataset: Dataset = DIGITS, **settings: float) -> dict[str, float]:
    return invariance(freeze(model(encode, dataset), ["test"])["test"], **settings)  # type: ignore[arg-type]


def moments(x: Tensor) -> Tensor:
    """The same however an image is mirrored."""
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x[:, :, :4].mean((1, 2, 3))], dim=1)


def test_what_does_not_change_is_one() -> None:
    """A change that is made to the wrong image, or a margin of the wrong sign, would pass as a figure."""
    found = of(flat, crop_scale=1.0, shift=0.0)
    assert found.keys() == METRICS.keys()
    assert found["invariance_shift"] == pytest.approx(1, abs=1e-5)
    assert of(moments)["invariance_flip"] == pytest.approx(1, abs=1e-5)
    assert found["invariance_flip"] < 0.8  # pixels are not


def test_a_collapsed_encoder_is_not_invariant() -> None:
    """By the cosine alone it would be the best of all."""
    found = of(lambda x: 1 + 0 * flat(x))
    assert found["cosine_crop"] == pytest.approx(1)
    assert [found[f"invariance_{name}"] for name in ("crop", "shift", "flip")] == [0, 0, 0]
    offset = of(lambda x: 100 + flat(x))  # in a narrow cone
    assert offset["cosine_shift"] > 0.999
    assert offset["invariance_shift"] < 0.9


def test_values_by_hand() -> None:
    """Ground of one level, its first column another: moved by one pixel, mirrored."""
    images = np.zeros((2, 1, 4, 4), np.uint8)
    images[0, 0, :, 0], images[1, 0, :, 3] = 255, 255
    splits: dict[str, NDArray[Any]] = {f"{split}_images": images for split in ("train", "val", "test")}
    splits |= {f"{split}_labels": np.arange(2) for split in ("train", "val", "test")}
    data = from_arrays(Data(name="digits", image_size=4), "1", splits, classes=2, flips=False)
    data = replace(data, mean=(0.0,), std=(1.0,))
    found = invariance(freeze(model(flat, data, 4), ["test"])["test"], shift=0.0)
    # the mirrored image is the other one, and the two have no pixel in common
    assert found["cosine_flip"] == pytest.approx(0, abs=1e-6)
    assert found["cosine_others"] == pytest.approx(0, abs=1e-6)
    assert found["invariance_flip"] == pytest.approx(0, abs=1e-6)
    assert found["invariance_shift"] == pytest.approx(1, abs=1e-5)


def test_larger_changes_change_more_and_come_again() -> None:
    """Else the settings would not be those that they are called."""
    little, much = of(flat, shift=0.13, crop_scale=0.8), of(flat, shift=0.4, crop_scale=0.2)
    assert little == of(flat, shift=0.13, crop_scale=0.8)
    assert little["invariance_shift"] > much["invariance_shift"]
    assert little["invariance_crop"] > much["invariance_crop"]


def test_sample_of_a_few_images() -> None:
    """The sample's images must be those whose features it holds."""
    found = invariance(freeze(model(), ["test"])["test"].sample(), shift=0.0)
    assert found["invariance_shift"] == pytest.approx(1, abs=1e-5)
