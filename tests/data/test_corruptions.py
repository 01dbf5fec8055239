"""ImageNet-C's corruptions: values by hand, more with strength, the same again."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lmim.data import corruptions
from lmim.data.corruptions import CONSTANTS, STRENGTHS, corrupt


def images(side: int, channels: int, count: int = 8) -> Tensor:
    """Smooth and not symmetric, well within the range."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (60 + 120 * fine).byte()


def test_there_are_fifteen_at_five_strengths_for_three_sizes() -> None:
    """A mean over others would be called by the name of ImageNet-C."""
    assert len(CONSTANTS) == 15
    assert CONSTANTS.keys() == corruptions._CORRUPTIONS.keys()
    assert all([len(part) for part in sizes] == [5, 5, 5] for sizes in CONSTANTS.values())


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize(("side", "channels"), [(20, 1), (32, 3), (64, 3)])
def test_changes_every_image_and_comes_again(name: str, side: int, channels: int) -> None:
    """Draws that differ from run to run would move every figure; a corruption left out would flatter."""
    clean = images(side, channels)
    found = [corrupt(clean, name, strength) for strength in STRENGTHS]
    assert all(one.shape == clean.shape and one.dtype == torch.uint8 for one in found)
    torch.rand(7)
    np.random.rand(7)
    assert torch.equal(found[4], corrupt(clean, name, 5))
    changed = [float((one.float() - clean.float()).abs().mean()) for one in found]
    assert all(change > 0 for change in changed)
    if name not in {"elastic_transform", "glass_blur", "frost", "motion_blur"}:  # which change in kind, too
        assert changed[0] < changed[4]


def test_values_by_hand() -> None:
    """A constant of another size, or a formula of another space, would be no ImageNet-C."""
    flat = torch.full((1, 3, 32, 32), 102, dtype=torch.uint8)
    assert {*corrupt(flat, "brightness", 5).flatten().tolist()} == {178}  # 0.4 + 0.3
    assert {*corrupt(flat.repeat(1, 1, 2, 2), "brightness", 5).flatten().tolist()} == {229}  # 0.4 + 0.5
    red = torch.stack([torch.full((32, 32), level, dtype=torch.uint8) for level in (102, 51, 0)])[None]
    assert corrupt(red, "brightness", 5)[0, :, 0, 0].tolist() == [178, 89, 0]  # hue and saturation stay
    halves = flat.clone()
    halves[..., 16:] = 202
    assert {*corrupt(halves, "contrast", 2).flatten().tolist()} == {127, 177}  # halfway to the mean
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"):
        assert (corrupt(flat, name, 5).int() - 102).abs().max() <= 1, name


def test_noise_is_as_strong_as_it_says() -> None:
    """Deviations of 256 levels in place of 0..1, or variances, would be another strength."""
    flat = torch.full((4, 1, 32, 32), 128, dtype=torch.uint8)
    for strength, expected in zip(STRENGTHS, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        found = corrupt(flat, "gaussian_noise", strength).float() / 255
        assert float(found.std()) == pytest.approx(expected, rel=0.06)
    shot = corrupt(flat, "shot_noise", 5).float() / 255
    assert float(shot.std()) == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.06)
    impulse = corrupt(flat, "impulse_noise", 5)
    assert float((impulse == 0).float().mean()) == pytest.approx(0.035, rel=0.25)
    assert float((impulse == 255).float().mean()) == pytest.approx(0.035, rel=0.25)


def test_a_point_is_blurred_to_what_the_kernel_is() -> None:
    """A disk of another radius, or a motion both ways, would be another blur."""
    point = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    point[..., 16, 16] = 255
    disk = corrupt(point, "defocus_blur", 5)[0, 0] > 0  # of 33 pixels: radius 3
    assert disk[16].sum() in (7, 8, 9)
    assert torch.equal(disk, disk.T)
    line = corrupt(point, "motion_blur", 5)[0, 0].float()
    _, columns = torch.nonzero(line, as_tuple=True)
    assert (columns <= 16).all()
    assert line[16, 16] == line.max()
    assert 200 < line.sum() <= 255  # rounding down takes a little
