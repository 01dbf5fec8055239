"""How a segmented video is scored by DAVIS 2017 (arXiv 1704.00675), by the rules of its semi-supervised task.

The facts are those of davis2017-evaluation; the objects of a video are 1 to the largest number of its first
mask, and every other number, void (255) too, is background.
"""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from lmim.data.splits import VOID

TOLERANCE = 0.008
"""How far apart two boundaries may lie, as a part of the image's diagonal; rounded up to pixels."""
RECALLED = 0.5
PIXELS = 2**24
"""How many pixels, of all objects and frames together, are looked at in one go."""

Scores = tuple[Float[Tensor, "o f"], Float[Tensor, "o f"]]


def objects_of(first: UInt8[Tensor, "h w"]) -> int:
    """How many objects a video has, by its first mask."""
    return int(first.where(first != VOID, 0).max())


def scores(truth: UInt8[Tensor, "f h w"], guess: UInt8[Tensor, "f h w"], objects: int) -> Scores:
    """J and F of each object in each frame, from 0 to 1, float64; see `region` and `boundary`.

    >>> truth = torch.zeros(1, 4, 4, dtype=torch.uint8)
    >>> truth[:, :2] = 1
    >>> [float(part) for part in scores(truth, truth, 1)]
    [1.0, 1.0]
    """
    numbers = torch.arange(1, objects + 1, device=truth.device)[:, None, None, None]
    step = max(1, PIXELS // max(1, objects * truth[0].numel()))
    parts = []
    for true, guessed in zip(torch.split(truth, step), torch.split(guess, step), strict=True):
        masks = true == numbers, guessed == numbers
        parts.append((region(*masks), boundary(*masks)))
    j, f = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return j, f


def region(truth: Bool[Tensor, "*n h w"], guess: Bool[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Region similarity J: the pixels in both masks over those in either; 1 where both are empty."""
    both, either = (mask.sum((-2, -1)).double() for mask in (truth & guess, truth | guess))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def boundary(truth: Bool[Tensor, "*n h w"], guess: Bool[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Contour accuracy F: the harmonic mean of the parts of each mask's edge that lie near the other's edge.

    Near is within a disk of `TOLERANCE`. 1 where neither mask has an edge, 0 where one has none.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape[-2:]))
    true, guessed = edges(truth), edges(guess)
    matched = [
        (one & near(other, radius)).sum((-2, -1)).double()
        for one, other in ((guessed, true), (true, guessed))
    ]
    sizes = [one.sum((-2, -1)).double() for one in (guessed, true)]
    precision, recall = (part / size.clamp_min(1) for part, size in zip(matched, sizes, strict=True))
    harmonic = 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((sizes[0] == 0) & (sizes[1] == 0), 1.0, harmonic)


def edges(mask: Bool[Tensor, "*n h w"]) -> Bool[Tensor, "*n h w"]:
    """The pixels that differ from their neighbour to the right, below, or across both; none beyond the image.

    >>> edges(torch.tensor([[True, False, False], [False, False, False]])).int().tolist()
    [[1, 0, 0], [0, 0, 0]]
    """
    wide = torch.cat([mask, mask[..., -1:]], dim=-1)
    wide = torch.cat([wide, wide[..., -1:, :]], dim=-2)
    return (mask ^ wide[..., :-1, 1:]) | (mask ^ wide[..., 1:, :-1]) | (mask ^ wide[..., 1:, 1:])


def near(pixels: Bool[Tensor, "*n h w"], radius: int) -> Bool[Tensor, "*n h w"]:
    """Whether one of the pixels lies within so many pixels' distance of each."""
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (radius,) * 4)
    found = torch.zeros_like(pixels)
    for down in range(2 * radius + 1):
        half = math.isqrt(radius**2 - (down - radius) ** 2)
        for right in range(radius - half, radius + half + 1):
            found |= padded[..., down : down + height, right : right + width]
    return found


def summary(frames: Float[Tensor, " f"]) -> dict[str, float]:
    """What is told of the J, or the F, of one object in the frames of its video, without the first and last.

    `mean`; `recall`, the part of the frames above a half; `decay`, the mean of the first quarter of the
    frames less that of the last, where quarters share the frame they meet at.

    >>> summary(torch.tensor([0.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.0]))
    {'mean': 0.8, 'recall': 0.6, 'decay': 0.5}

    Raises:
        ValueError: nothing is left of them.
    """
    judged = frames.double()[1:-1]
    if not len(judged):
        raise ValueError(f"a video of {len(frames)} frames has none between its first and its last")
    # halves go to the even number, but for the official 1e-10, which sends them up
    ends = [round(1 + (len(judged) - 1) * part / 4 + 1e-10) - 1 for part in range(5)]
    first, last = judged[: ends[1] + 1], judged[ends[3] :]
    values = judged.mean(), (judged > RECALLED).double().mean(), first.mean() - last.mean()
    return dict(zip(("mean", "recall", "decay"), (float(value) for value in values), strict=True))
