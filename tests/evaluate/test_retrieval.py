"""Retrieval within a set: known values."""

import pytest
import torch

from lmim.evaluate.nn import nn_top1
from lmim.evaluate.retrieval import retrieved


def test_values_by_hand() -> None:
    """A figure that is another one than its name says would be compared with the literature's."""
    angles = torch.tensor([0.0, 0.1, 0.3, 0.6, 2.0])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 1, 0, 0, 2])
    # who is alike, the nearest first: of 0 no yes yes, of 2 no yes yes, of 3 yes no yes
    recall, precision = retrieved(features, labels, (1, 2))
    assert recall == {1: pytest.approx(100 / 3), 2: 100.0}
    averages = [(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2]
    assert precision == pytest.approx(100 * sum(averages) / 3)


def test_parts_give_what_the_whole_gives() -> None:
    """Memory would decide the figure."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(50, 8, generator=generator), torch.randint(4, (50,), generator=generator)
    whole, parts = (retrieved(features, labels, (1, 5, 10), chunk) for chunk in (512, 7))
    assert parts[0] == whole[0]
    assert parts[1] == pytest.approx(whole[1])
    assert whole[0][1] == pytest.approx(nn_top1(features, labels))
    assert whole[0][1] <= whole[0][5] <= whole[0][10]


def test_nobody_to_find_is_an_error() -> None:
    """A recall of nothing is no number."""
    with pytest.raises(ValueError, match="two images of a class"):
        retrieved(torch.eye(3), torch.arange(3), (1,))
