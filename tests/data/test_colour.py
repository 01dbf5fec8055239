"""Colours changed on the host: what is changed, by what, and how often."""

import pytest
import torch
from torch import Tensor

from lmim.data.colour import change_colours, draw_colours


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3) -> Tensor:
    return torch.randint(256, (64, channels, 16, 16), dtype=torch.uint8, generator=stream())


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_drawn_decides_whoever_draws_the_rest(channels: int) -> None:
    """A run that was killed, or another number of processes, would see other views."""
    drawn = draw_colours(64, stream())
    whole = change_colours(images(channels), drawn)
    assert whole.shape == images(channels).shape
    assert whole.dtype == torch.uint8
    torch.rand(7)  # the global generator is the forward pass' own
    part = change_colours(images(channels)[32:], {name: rows[32:] for name, rows in drawn.items()})
    assert torch.equal(part, whole[32:])
    changed = (whole != images(channels)).flatten(1).any(dim=1)
    assert 40 < changed.sum() < 64  # a tenth is neither jittered nor blurred


def changed_by(**values: float) -> Tensor:
    names = ["jittered", "brightness", "contrast", "saturation", "hue", "greyed", "blurred", "sigma"]
    unchanged = {"jittered": 1.0, "greyed": 1.0, "blurred": 1.0}
    row = torch.tensor([(unchanged | values).get(name, 0.5) for name in names])
    drawn = {"colours": row.expand(64, -1), "colour_order": torch.arange(4).expand(64, -1)}
    return change_colours(images(), drawn)


def difference(one: Tensor, other: Tensor) -> float:
    return (one.double() - other).abs().mean().item()


def test_each_change_is_the_one_that_it_is_drawn_for() -> None:
    """A strength on another change's place would be another augmentation than the one that is published."""
    assert torch.equal(changed_by(), images())
    rounded = changed_by(jittered=0.0)  # half way is no change; the hue is turned in 8 bits
    assert difference(rounded, images()) < 3
    assert difference(changed_by(jittered=0.0, brightness=0.0), 0.6 * images()) < 3
    assert 10 < difference(changed_by(jittered=0.0, hue=1.0), images()) < 60
    grey, flat = changed_by(greyed=0.0), changed_by(jittered=0.0, contrast=0.0)
    assert torch.equal(grey, grey[:, :1].expand(-1, 3, -1, -1))
    assert flat.double().std() < 0.7 * images().double().std()
    smooth = [changed_by(blurred=0.0, sigma=sigma).double().std() for sigma in (0.0, 1.0)]
    assert images().double().std() >= smooth[0] > smooth[1]
