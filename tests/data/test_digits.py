"""Handwritten digits that come with scikit-learn."""

import pytest
import torch

from lmim.config import Data
from lmim.data import open_dataset
from lmim.data.splits import Subset


def test_digits_come_in_scikit_learns_order() -> None:
    """The last quarter is by other writers; a shuffled split would leak them into training."""
    data = open_dataset(Data(name="digits"))
    assert (len(data.train), len(data.val), len(data.test)) == (1213, 134, 450)
    assert isinstance(data.train, Subset)
    assert data.train.whole.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    images, _ = data.train.read(torch.arange(len(data.train)), 8)
    assert images.max() == 255
    mean = images.double().mean().item() / 255
    assert data.mean[0] == pytest.approx(mean, abs=0.02)


def test_the_version_of_digits_stands_for_what_is_trained_on() -> None:
    """Results of all 1,347 images, from before a val was held out, are of another training set."""
    version = open_dataset(Data(name="digits")).version
    assert version == open_dataset(Data(name="digits", image_size=8, train_images=9)).version
    assert version != "0b7e9c3202d7"
