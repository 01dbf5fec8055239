"""Unsupervised segmentation: clusters that are known, and figures worked out by hand."""

import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.segmentation import clustered, over_pixels, scores


def masks(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


ALIGNED = over_pixels(torch.tensor([0, 0, 1, 1, 0, 2, 2, 1, 0, 2, 2, 0, 3, 3, 0, 0]), 20).byte()
"""A mask of whole patches, four by four."""


@pytest.mark.parametrize("linkage", ["ward", "average"])
def test_features_that_are_the_mask_have_every_point(linkage: str) -> None:
    """An encoder that knows the objects would not be seen to."""
    truth = ALIGNED[::5, ::5].flatten().long()
    found = clustered(3 * F.one_hot(truth).float(), 4, linkage)  # type: ignore[arg-type]
    assert scores(ALIGNED, over_pixels(found, 20)) == (1, 1, 1)


def test_planted_clusters_are_found_whatever_their_length() -> None:
    """Brighter patches have longer features; clusters of length would be clusters of brightness."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (100,), generator=generator)
    features = torch.eye(3)[truth] + 0.05 * torch.randn(100, 3, generator=generator)
    features *= 10 ** torch.randn(100, 1, generator=generator)
    for linkage in ("ward", "average"):
        assert adjusted_rand_score(truth, clustered(features, 3, linkage)) == 1


def test_random_features_have_nothing_but_what_patches_give() -> None:
    """A floor that nobody knows of would pass for an encoder's merit."""
    generator = torch.Generator().manual_seed(0)
    drawn = [clustered(torch.randn(16, 8, generator=generator), 4).view(4, 4) for _ in range(200)]
    coarse = ALIGNED[::5, ::5].contiguous()
    patches = torch.tensor([scores(coarse, one) for one in drawn]).mean(dim=0)
    assert patches[:2].abs().max() < 0.05, "of a point for each patch"
    pixels = torch.tensor([scores(ALIGNED, over_pixels(one.flatten(), 20)) for one in drawn]).mean(dim=0)
    assert patches[0] + 0.1 < pixels[0] < 0.2, "pixels of one patch are together on both sides"


def test_one_cluster_for_all_has_nothing_but_its_share() -> None:
    """A collapsed encoder would have a figure that looks like a result."""
    found = over_pixels(clustered(torch.ones(16, 4), 1), 20)
    ari, foreground, miou = scores(ALIGNED, found)
    assert (ari, foreground) == (0, 0)
    assert miou == pytest.approx(7 / 16 / 4)


def test_values_by_hand() -> None:
    """A figure that is another one than its name says would be compared with the literature's."""
    # 1 pair together in truth, 1 in found, none in both, of 6: (0 - 1/6) / (1 - 1/6)
    ari, foreground, miou = scores(masks([0, 0], [1, 2]), torch.tensor([[0, 1], [0, 2]]))
    assert ari == pytest.approx(-1 / 5)
    assert foreground == 1, "of the two with an object, each is alone on both sides"
    # the ground with 1, the first object with 0, the second with 2: a pixel each in common
    assert miou == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_matching_is_the_best_and_not_the_nearest_at_hand() -> None:
    """Greedy matching gives 0 its favourite and leaves 1 with nothing."""
    truth = masks([0] * 9, [1] * 5 + [2] * 4)
    found = torch.tensor([[0] * 5 + [1] * 4, [0] * 5 + [2] * 4])
    # common pixels: 0 has 5 with 0 and 4 with 1, 1 has 5 with 0, 2 has 4 with 2; the most is 4 + 5 + 4
    assert scores(truth, found)[2] == pytest.approx((4 / 9 + 5 / 10 + 1) / 3)


def test_edges() -> None:
    """An image of ground alone, or of nothing known, would end the protocol or shift its mean."""
    nothing, one = torch.full((2, 2), 255, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64)
    assert all(map(math.isnan, scores(nothing, one)))
    ari, foreground, miou = scores(masks([0, 0], [0, 0]), one)
    assert (ari, miou) == (1, 1)
    assert math.isnan(foreground)
    assert scores(masks([5, 5], [5, 5]), one) == (1, 1, 1)
    assert scores(masks([3, 255], [255, 4]), torch.tensor([[0, 0], [1, 1]])) == (1, 1, 1)
    assert {*clustered(torch.eye(4), 9).tolist()} == {0, 1, 2, 3}, "more segments than patches"
    assert {*clustered(torch.zeros(4, 2), 2, "average").tolist()} == {0, 1}


def test_patches_lie_where_they_were_cut() -> None:
    """Columns for rows would turn every map."""
    found = over_pixels(torch.tensor([0, 1, 2, 3]), 4)
    assert found.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
