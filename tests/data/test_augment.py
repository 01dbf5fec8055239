"""Crops: the geometry that every trial of every dataset is trained and judged on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmim.data.augment import RATIO, centre, crop, normalise, random_resized_crop, sample_boxes

aspects = st.lists(st.floats(0.05, 20), min_size=1, max_size=8).map(torch.tensor)
unhurried = settings(deadline=None)  # the machine may be busy
seeds = st.integers(0, 2**32 - 1)


def noise(batch: int, canvas: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(canvas)
    return torch.randint(0, 256, (batch, channels, canvas, canvas), dtype=torch.uint8, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@unhurried
@given(aspect=aspects, min_scale=st.floats(0.001, 1), seed=seeds)
def test_boxes_never_leave_the_image(aspect: Tensor, min_scale: float, seed: int) -> None:
    """A box over the edge would train on smeared border pixels."""
    left, top, width, height = sample_boxes(aspect, min_scale, seeded(seed)).unbind(1)
    assert (torch.stack([left, top]) >= 0).all()
    assert (torch.stack([width, height]) > 0).all()
    assert (torch.stack([left + width, top + height]) <= 1 + 1e-6).all()


@unhurried
@given(aspect=aspects, min_scale=st.floats(0.001, 1), seed=seeds)
def test_boxes_have_a_permitted_ratio_in_the_original(aspect: Tensor, min_scale: float, seed: int) -> None:
    """Boxes sampled on the squeezed canvas would stretch every image that is not square."""
    _, _, width, height = sample_boxes(aspect, min_scale, seeded(seed)).unbind(1)
    ratio = aspect * width / height
    assert (ratio >= RATIO[0] - 1e-4).all()
    assert (ratio <= RATIO[1] + 1e-4).all()


@settings(max_examples=20, deadline=None)
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


@unhurried
@given(canvas=st.integers(2, 40), channels=st.sampled_from([1, 3]))
def test_identity_crop_returns_the_image(canvas: int, channels: int) -> None:
    """A crop of the whole that shifts or blurs would spoil evaluation and every trial with it."""
    images = noise(2, canvas, channels)
    for out in (
        centre(images, torch.ones(2), canvas),
        crop(images, torch.tensor([[0.0, 0, 1, 1]] * 2), canvas),
    ):
        torch.testing.assert_close(out, images / 255, rtol=0, atol=1e-5)


@unhurried
@given(x=st.integers(0, 11), y=st.integers(0, 11), width=st.integers(1, 12), height=st.integers(1, 12))
def test_a_box_on_whole_pixels_is_that_part_of_the_image(x: int, y: int, width: int, height: int) -> None:
    """Left and top, or width and height, taken for each other would pass on every square test."""
    side = min(width, height, 12 - x, 12 - y)
    images = noise(1, 12)
    out = crop(images, torch.tensor([[x, y, side, side]]) / 12, side)
    torch.testing.assert_close(out, images[:, :, y : y + side, x : x + side] / 255, rtol=0, atol=1e-5)


@unhurried
@given(aspect=aspects, side=st.integers(2, 30), flip=st.booleans(), seed=seeds)
def test_same_seed_same_crops(aspect: Tensor, side: int, flip: bool, seed: int) -> None:
    """A trial that is run again, or goes on after a kill, must see the same images."""
    images = noise(len(aspect), 16)
    first, second = (random_resized_crop(images, aspect, side, 0.2, flip, seeded(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (len(aspect), 1, side, side)
    assert 0 <= first.min() <= first.max() <= 1


def test_another_seed_gives_other_crops() -> None:
    """A generator that is ignored would show every epoch the same crops."""
    images = noise(4, 16)
    a, b = (random_resized_crop(images, torch.ones(4), 16, 0.2, False, seeded(seed)) for seed in (0, 1))
    assert not torch.allclose(a, b)


@unhurried
@given(seed=seeds)
def test_flip_off_keeps_the_orientation(seed: int) -> None:
    """A mirrored letter is no letter: glyphs and digits must never be flipped."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(16, 1, 32, 32)
    out = random_resized_crop(ramp, torch.ones(16), 8, 0.2, False, seeded(seed))
    assert (out[..., -1] > out[..., 0]).all()


@unhurried
@given(seed=seeds)
def test_flip_mirrors_some_and_changes_nothing_else(seed: int) -> None:
    """An arm with flips differs from one without in the flips alone."""
    images = noise(64, 16)
    plain, flipped = (
        random_resized_crop(images, torch.ones(64), 8, 0.2, flip, seeded(seed)) for flip in (False, True)
    )
    same = torch.isclose(plain, flipped, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(plain.flip(-1), flipped, atol=1e-5).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 8 < mirrored.sum() < 56


@pytest.mark.parametrize(("aspect", "wide"), [(2.0, True), (0.5, False), (1.0, True)])
def test_centre_undoes_the_squeeze(aspect: float, wide: bool) -> None:
    """On disk, evaluation sees the central 224 of 256 of the shorter edge, in its true proportions."""
    canvas, side = 256, 224
    ramp = torch.arange(256, dtype=torch.uint8).expand(1, 1, canvas, canvas)
    out = centre(ramp if wide else ramp.mT, torch.tensor([aspect]), side)
    out = out if wide else out.mT
    long = max(aspect, 1 / aspect)
    span = (out[0, 0, 0, -1] - out[0, 0, 0, 0]) * 255 * side / (side - 1)
    assert span.item() == pytest.approx(224 / long, abs=0.5)
    assert out.mean().item() == pytest.approx(127.5 / 255, abs=1e-3)


def test_a_small_canvas_is_used_whole() -> None:
    """Digits of 8 px enlarged to 20 must not lose their edges."""
    ramp = torch.arange(0, 256, 32, dtype=torch.uint8).expand(1, 1, 8, 8)
    out = centre(ramp, torch.ones(1), 24)
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
    images = noise(8, 32, 3)
    out = [
        random_resized_crop(images.to(d), torch.ones(8), 16, 0.2, True, seeded(3)) for d in ("cpu", device)
    ]
    torch.testing.assert_close(out[1].cpu(), out[0], rtol=0, atol=1e-4)
