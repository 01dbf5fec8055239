"""Crops: the geometry that every trial of every dataset is trained and judged on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmim.data.augment import RATIO, WHOLE, central_boxes, crop, normalise, sample_boxes

aspects = st.lists(st.floats(0.05, 20), min_size=1, max_size=8).map(torch.tensor)
seeds = st.integers(0, 2**32 - 1)


def noise(batch: int, canvas: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(canvas)
    return torch.randint(0, 256, (batch, channels, canvas, canvas), dtype=torch.uint8, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(aspect=aspects, min_scale=st.floats(0.001, 1), seed=seeds)
def test_boxes_never_leave_the_image(aspect: Tensor, min_scale: float, seed: int) -> None:
    """A box over the edge would train on smeared border pixels."""
    left, top, width, height = sample_boxes(aspect, min_scale, seeded(seed)).unbind(1)
    assert (torch.stack([left, top]) >= 0).all()
    assert (torch.stack([width, height]) > 0).all()
    assert (torch.stack([left + width, top + height]) <= 1 + 1e-6).all()


@given(aspect=aspects, min_scale=st.floats(0.001, 1), seed=seeds)
def test_boxes_have_a_permitted_ratio_in_the_original(aspect: Tensor, min_scale: float, seed: int) -> None:
    """Boxes sampled on the squeezed canvas would stretch every image that is not square."""
    _, _, width, height = sample_boxes(aspect, min_scale, seeded(seed)).unbind(1)
    ratio = aspect * width / height
    assert (ratio >= RATIO[0] - 1e-4).all()
    assert (ratio <= RATIO[1] + 1e-4).all()


@settings(max_examples=20)
@given(min_scale=st.floats(0.05, 1), seed=seeds)
def test_areas_and_ratios_are_spread_as_the_recipe_says(min_scale: float, seed: int) -> None:
    """A wrong distribution changes the method's results without an error."""
    _, _, width, height = sample_boxes(torch.ones(4000), min_scale, seeded(seed)).unbind(1)
    area = width * height
    assert area.min() >= min_scale - 1e-6
    # small boxes always fit, so over them the ratio is log-uniform, hence symmetric about 1
    logs = (width / height).log()[area < 0.7]
    if len(logs) > 500:
        spread = math.log(4 / 3)
        assert abs(logs.mean()) < 0.2 * spread
        assert logs.std().item() == pytest.approx(2 * spread / math.sqrt(12), rel=0.15)


def test_an_aspect_that_no_try_fits_gets_the_largest_central_box() -> None:
    """A panorama under a large min_scale must not crash, nor be squeezed into a square."""
    left, top, width, height = sample_boxes(torch.tensor([10.0]), 1.0, seeded(0))[0].tolist()
    assert (top, height) == (0, 1)
    assert width == pytest.approx(4 / 3 / 10)
    assert left == pytest.approx((1 - width) / 2)


@given(canvas=st.integers(2, 40), channels=st.sampled_from([1, 3]))
def test_identity_crop_returns_the_image(canvas: int, channels: int) -> None:
    """A crop of the whole that shifts or blurs would spoil evaluation and every trial with it."""
    images = noise(2, canvas, channels)
    out = crop(images, WHOLE.expand(2, 4), canvas)
    torch.testing.assert_close(out, images / 255, rtol=0, atol=1e-5)


@given(x=st.integers(0, 11), y=st.integers(0, 11), width=st.integers(1, 12), height=st.integers(1, 12))
def test_a_box_on_whole_pixels_is_that_part_of_the_image(x: int, y: int, width: int, height: int) -> None:
    """Left and top, or width and height, taken for each other would pass on every square test."""
    side = min(width, height, 12 - x, 12 - y)
    images = noise(1, 12)
    out = crop(images, torch.tensor([[x, y, side, side]]) / 12, side)
    torch.testing.assert_close(out, images[:, :, y : y + side, x : x + side] / 255, rtol=0, atol=1e-5)


@given(seed=seeds)
def test_mirrored_images_are_mirrored_and_nothing_else(seed: int) -> None:
    """A flip that also moved the crop would make flipping two changes at once."""
    images, boxes = noise(8, 16), sample_boxes(torch.ones(8), 0.2, seeded(seed))
    mirrored = torch.arange(8) % 2 == 0
    plain, flipped = crop(images, boxes, 8), crop(images, boxes, 8, mirrored)
    expected = torch.where(mirrored[:, None, None, None], plain.flip(-1), plain)
    torch.testing.assert_close(flipped, expected, rtol=0, atol=1e-5)


@given(aspect=aspects, keep=st.floats(0.1, 1))
def test_central_boxes_are_squares_of_the_shorter_edge(aspect: Tensor, keep: float) -> None:
    """Evaluation must see every image in its true proportions, as much of it as the protocol says."""
    left, top, width, height = central_boxes(aspect, keep).unbind(1)
    torch.testing.assert_close(aspect * width, height)
    torch.testing.assert_close(torch.maximum(width, height), torch.full_like(width, keep))
    torch.testing.assert_close(2 * left + width, torch.ones_like(left))
    torch.testing.assert_close(2 * top + height, torch.ones_like(top))


def test_a_small_image_is_enlarged_whole() -> None:
    """Digits of 8 px enlarged to 20 must not lose their edges."""
    ramp = torch.arange(0, 256, 32, dtype=torch.uint8).expand(1, 1, 8, 8)
    out = crop(ramp, WHOLE[None], 24)
    assert out.shape == (1, 1, 24, 24)
    assert out[..., 0].max() < 0.02
    assert out[..., -1].min() > 0.86


def test_normalise_is_per_channel() -> None:
    """Channels normalised by another's mean would shift the colours of every pretrained encoder."""
    images = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    out = normalise(images, torch.tensor([0.2, 0.3, 0.4]), torch.tensor([1.0, 0.5, 0.1]))
    torch.testing.assert_close(out[1, :, 0, 0], torch.tensor([0.0, 0.2, 2.0]))


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_crops_are_the_same_on_every_device(device: str) -> None:
    """The device must not change which boxes a trial sees, nor one run differ from the next."""
    images, boxes = noise(8, 32, 3), sample_boxes(torch.ones(8), 0.2, seeded(3))
    out = crop(images.to(device), boxes.to(device), 16)
    torch.testing.assert_close(out.cpu(), crop(images, boxes, 16), rtol=0, atol=1e-4)
