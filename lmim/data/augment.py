"""Batched crops on the device that holds the images.

Images come squeezed to a square canvas, with the aspect (width over height) they had before. A box is
given as parts of the canvas' sides, so cutting it and undoing the squeeze are one resampling.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

RATIO = (3 / 4, 4 / 3)
TRIES = 10


def random_resized_crop(
    images: UInt8[Tensor, "b c s s"],
    aspect: Float[Tensor, " b"],
    side: int,
    min_scale: float,
    flip: bool,
    generator: torch.Generator,
) -> Float[Tensor, "b c side side"]:
    """Random boxes of each image, resized to `side`, in 0..1.

    A box covers `min_scale`..1 of the original image's area, with a ratio of 3/4..4/3 (log-uniform) as it
    was seen there. `generator` lives on the CPU, so the boxes are the same on every device, and with and
    without `flip`.
    """
    boxes = sample_boxes(aspect, min_scale, generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return crop(images, boxes, side, mirrored if flip else None)


def centre(
    images: UInt8[Tensor, "b c s s"], aspect: Float[Tensor, " b"], side: int
) -> Float[Tensor, "b c side side"]:
    """The evaluation crop, in 0..1: the central square of the original.

    One rule for every dataset: the square spans `side / canvas` of the shorter edge, at most all of it. A
    canvas no larger than `side` (glyphs, digits, CIFAR) is used whole; imagefolder's gives the usual 224 of
    256.
    """
    keep = min(1.0, side / images.shape[-1])
    aspect = aspect.cpu()
    size = torch.stack([(keep / aspect).clamp(max=keep), (keep * aspect).clamp(max=keep)], dim=1)
    return crop(images, torch.cat([(1 - size) / 2, size], dim=1), side)


def normalise(
    images: Float[Tensor, "b c h w"], mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
) -> Float[Tensor, "b c h w"]:
    """Images of 0..1 with the dataset's mean taken away, over its standard deviation.

    >>> normalise(torch.full((1, 1, 1, 2), 0.75), torch.tensor([0.5]), torch.tensor([0.25])).tolist()
    [[[[1.0, 1.0]]]]
    """
    return (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def sample_boxes(
    aspect: Float[Tensor, " b"], min_scale: float, generator: torch.Generator
) -> Float[Tensor, "b 4"]:
    """Boxes (left, top, width, height) as parts of the canvas, none beyond its edge.

    As torchvision's RandomResizedCrop: the first of ten tries that fits, else the largest central box of a
    permitted ratio.
    """
    aspect = aspect.cpu().float()
    low, high = (math.log(ratio) for ratio in RATIO)
    scale, ratio, left, top = torch.rand(4, len(aspect), TRIES, generator=generator)
    scale = min_scale + (1 - min_scale) * scale
    ratio = (low + (high - low) * ratio).exp() / aspect[:, None]
    width, height = (scale * ratio).sqrt(), (scale / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    boxes = torch.stack([left * (1 - width), top * (1 - height), width, height], dim=-1)
    first = fits.int().argmax(dim=1)
    chosen = boxes[torch.arange(len(aspect)), first]

    ratio = aspect.clamp(*RATIO) / aspect
    size = torch.stack([ratio.clamp(max=1), (1 / ratio).clamp(max=1)], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), chosen, torch.cat([(1 - size) / 2, size], dim=1))


def crop(
    images: UInt8[Tensor, "b c s s"],
    boxes: Float[Tensor, "b 4"],
    side: int,
    mirrored: Tensor | None = None,
) -> Float[Tensor, "b c side side"]:
    """The boxes of the images, bicubic, in 0..1; those of `mirrored` left to right."""
    left, top, width, height = boxes.unbind(dim=1)
    zero = torch.zeros_like(left)
    across = width if mirrored is None else torch.where(mirrored, -width, width)
    rows = [across, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3).to(images.device, non_blocking=True)
    grid = F.affine_grid(theta, [*images.shape[:2], side, side], align_corners=False)
    pixels = images.to(grid.dtype) / 255
    return F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
