"""Batched crops on the device that holds the images.

A box (left, top, width, height) is given as parts of the image's sides; the aspect is the width over the
height that the image has on disk.
"""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

RATIO = (3 / 4, 4 / 3)
TRIES = 10
WHOLE = torch.tensor([0.0, 0.0, 1.0, 1.0])
"""The box of a whole image."""
Size = int | tuple[int, int]
"""Pixels of a square's side, or rows and columns of them."""


def rows_columns(size: Size) -> tuple[int, int]:
    """The size as both.

    >>> rows_columns(3), rows_columns((3, 4))
    ((3, 3), (3, 4))
    """
    return (size, size) if isinstance(size, int) else size


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
    """Random boxes, none beyond the image's edge, as torchvision's RandomResizedCrop draws them.

    A box covers `min_scale`..1 of the image's area, with a ratio of 3/4..4/3 (log-uniform) as it is seen: the
    first of ten tries that fits, else the largest central box of a permitted ratio.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    scale, ratio, left, top = torch.rand(4, len(aspect), TRIES, generator=generator)
    scale = min_scale + (1 - min_scale) * scale
    ratio = (low + (high - low) * ratio).exp() / aspect[:, None]
    width, height = (scale * ratio).sqrt(), (scale / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    boxes = torch.stack([left * (1 - width), top * (1 - height), width, height], dim=-1)
    first = fits.int().argmax(dim=1)
    chosen = boxes[torch.arange(len(aspect)), first]

    fallback = central_boxes(aspect, ratio=aspect.clamp(*RATIO))
    return torch.where(fits.any(dim=1, keepdim=True), chosen, fallback)


def central_boxes(
    aspect: Float[Tensor, " b"], keep: float = 1.0, ratio: float | Tensor = 1.0
) -> Float[Tensor, "b 4"]:
    """The largest central boxes of this ratio as it is seen, their sides cut to the part `keep`.

    >>> central_boxes(torch.tensor([2.0, 0.5])).tolist()
    [[0.25, 0.0, 0.5, 1.0], [0.0, 0.25, 1.0, 0.5]]
    """
    squeezed = ratio / aspect
    size = keep * torch.stack([squeezed.clamp(max=1), (1 / squeezed).clamp(max=1)], dim=1)
    return torch.cat([(1 - size) / 2, size], dim=1)


def within(boxes: Float[Tensor, "b 4"], inner: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Boxes of images that are `inner` boxes of their boxes.

    >>> within(torch.tensor([[0.5, 0.0, 0.5, 1.0]]), torch.tensor([[0.5, 0.25, 0.5, 0.5]])).tolist()
    [[0.75, 0.25, 0.25, 0.5]]
    """
    size = boxes[:, 2:]
    return torch.cat([boxes[:, :2] + inner[:, :2] * size, inner[:, 2:] * size], dim=1)


def crop(
    images: UInt8[Tensor, "b c h w"],
    boxes: Float[Tensor, "b 4"],
    size: Size,
    mirrored: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, "b c s t"]:
    """The boxes of the images, resized (bicubic), in 0..1; those of `mirrored` left to right."""
    left, top, width, height = boxes.unbind(1)
    zero = torch.zeros_like(left)
    across = width if mirrored is None else torch.where(mirrored, -width, width)
    rows = [across, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [*images.shape[:2], *rows_columns(size)], align_corners=False)
    pixels = images.to(grid.dtype) / 255
    return F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
