"""ContrastiveCrop: where objects are, and crops about them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmim.data.augment import sample_boxes
from lmim.data.contrastive_crop import centred, object_boxes


def features(*marked: int) -> Tensor:
    """Of 4 x 4 patches with three channels, some of which stand out."""
    found = torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(0)) * 0.01 - 5
    found[:, list(marked)] += torch.tensor([4.0, -1.0, 2.0])
    return found


@pytest.mark.parametrize(
    ("marked", "box"),
    [
        ((5,), [0.25, 0.25, 0.25, 0.25]),
        ((4, 10), [0.0, 0.25, 0.75, 0.5]),
        ((0, 15), [0.0, 0.0, 1.0, 1.0]),
        ((12, 13, 14, 15), [0.0, 0.75, 1.0, 0.25]),
    ],
)
def test_an_object_is_where_features_stand_out(marked: tuple[int, ...], box: list[float]) -> None:
    """Crops would lie about the ground, or about the object mirrored at the diagonal."""
    assert object_boxes(features(*marked), 0.1).tolist() == [box]


def test_an_image_without_an_object_is_one() -> None:
    """A plain image, or features that are no numbers, would give boxes outside of the image."""
    alike, spoilt = torch.ones(1, 16, 3), torch.full((1, 16, 3), torch.nan)
    assert object_boxes(torch.cat([alike, spoilt]), 0.1).tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2


@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.1, 0.6, 1.0, 5.0]), scale=st.floats(0.05, 1.0))
def test_crops_stay_in_the_image_and_about_the_object(seed: int, alpha: float, scale: float) -> None:
    """A crop beyond the edge would repeat it; one beside the object would be one like any other."""
    generator = torch.Generator().manual_seed(seed)
    aspect = torch.rand(8, generator=generator) + 0.5
    boxes, objects = (sample_boxes(aspect, scale, generator)[:, None] for _ in range(2))
    found = centred(boxes, objects[:, 0], torch.rand(8, 1, 2, generator=generator), alpha)
    assert torch.equal(found[..., 2:], boxes[..., 2:]), "size and ratio are RandomResizedCrop's"
    assert bool((found[..., :2] >= 0).all())
    assert bool((found[..., :2] + found[..., 2:] <= 1 + 1e-6).all())
    centre, half = found[..., :2] + found[..., 2:] / 2, found[..., 2:] / 2
    low, high = objects[..., :2], objects[..., :2] + objects[..., 2:]
    # at the image's edge the centre keeps half a crop's distance
    inside = (centre >= torch.minimum(low, 1 - half) - 1e-6) & (centre <= torch.maximum(high, half) + 1e-6)
    assert bool(inside.all())


def test_centres_are_drawn_from_beta() -> None:
    """At one centres would be as dense in the middle as at the edges, whatever alpha says."""
    small = torch.tensor([0.0, 0.0, 0.1, 0.1]).expand(1, 5, 4)
    places = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])[None, :, None].expand(1, 5, 2)
    whole, half = torch.tensor([[0.2, 0.2, 0.6, 0.6]]), torch.tensor([[0.2, 0.2, 0.6, 0.0]])
    uniform = centred(small, whole, places, 1.0)[0, :, 0] + 0.05
    assert uniform.tolist() == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8])
    arcsine = centred(small, whole, places, 0.5)[0, :, 0] + 0.05  # quantiles sin^2(pi u / 2)
    assert arcsine.tolist() == pytest.approx([0.2, 0.2 + 0.6 * 0.146447, 0.5, 0.8 - 0.6 * 0.146447, 0.8])
    assert centred(small, half, places, 0.5)[0, :, 1].tolist() == pytest.approx([0.15] * 5)
