"""The fifteen corruptions of ImageNet-C (arXiv 1903.12261) at five strengths, for images of any size.

Constants are those of the published scripts (hendrycks/robustness, ImageNet-C/create_c): CIFAR-C's up to 32
pixels, Tiny-ImageNet-C's below 224, ImageNet-C's from there on. Images may be grey. All is as those scripts
have it, rounding down to whole levels included, but for the draws and for `frost`: its six photographs are
not shipped, a drawn texture stands in their place, so that its figures compare arms and not publications.
"""

from collections.abc import Callable
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

Images = NDArray[np.float64]
"""`[b, h, w, c]` in 0..1, square."""
Number = int | float

CONSTANTS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": (
        (0.04, 0.06, 0.08, 0.09, 0.1),
        (0.04, 0.08, 0.12, 0.15, 0.18),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot_noise": ((500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3)),
    "impulse_noise": (
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.01, 0.02, 0.05, 0.08, 0.14),
        (0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "defocus_blur": (
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": (
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": (
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": (
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": (
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": (
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": ((80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7)),
}
"""Of small, middle and large images, each for strengths 1 to 5. Lengths of `elastic_transform` are parts of
the side (the scripts count 244 pixels for ImageNet's 224)."""

STRENGTHS = (1, 2, 3, 4, 5)


def corrupt(
    images: UInt8[Tensor, "b c s s"], name: str, strength: int, seed: int = 0
) -> UInt8[Tensor, "b c s s"]:
    """Square images corrupted, on the host; the same again for the same seed.

    >>> corrupt(torch.full((1, 1, 8, 8), 100, dtype=torch.uint8), "brightness", 3)[0, 0, 0, :2].tolist()
    [138, 138]
    """
    side = images.shape[-1]
    size = 0 if side <= 32 else 1 if side < 224 else 2
    rng = np.random.default_rng([seed, strength, list(CONSTANTS).index(name)])
    pixels = images.permute(0, 2, 3, 1).numpy() / 255
    found = _CORRUPTIONS[name](pixels, CONSTANTS[name][size][strength - 1], rng)
    # a breath more, or a level that rounding put just below itself would be the one below
    levels = (found.clip(0, 1) * 255 + 1e-6).astype(np.uint8)
    return torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous()


# ------------------------------------------------------------------------------------------- noise


def _gaussian_noise(x: Images, c: Number, rng: Generator) -> Images:
    return x + rng.normal(0, c, x.shape)


def _shot_noise(x: Images, c: Number, rng: Generator) -> Images:
    return rng.poisson(x * c) / c


def _impulse_noise(x: Images, c: Number, rng: Generator) -> Images:
    drawn = rng.random(x.shape)
    return np.where(drawn < c / 2, 0.0, np.where(drawn < c, 1.0, x))


# -------------------------------------------------------------------------------------------- blur


def _defocus_blur(x: Images, c: tuple[Number, Number], rng: Generator) -> Images:
    radius, alias = c
    reach = max(8, int(radius))
    across = np.arange(-reach, reach + 1)
    disk = ((across[:, None] ** 2 + across**2) <= radius**2).astype(np.float64)
    near = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    bell = np.exp(-(near**2) / (2 * alias**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk / disk.sum(), bell / bell.sum(), axis, mode="mirror")
    empty = int((disk.max(axis=0) > 0).argmax())
    disk = disk[empty : len(disk) - empty, empty : len(disk) - empty]
    return ndimage.correlate(x, disk[None, :, :, None], mode="mirror")


def _glass_blur(x: Images, c: tuple[Number, int, int], rng: Generator) -> Images:
    sigma, reach, times = c
    blurred = np.floor(_gaussian(x, sigma) * 255) / 255
    every, side = np.arange(len(x)), x.shape[1]
    for _, h, w in product(range(times), range(side - reach, reach, -1), range(side - reach, reach, -1)):
        down, right = rng.integers(-reach, reach, (2, len(x)))
        # the scripts mean to swap the two, but copy one: the views that they swap are of one array
        blurred[:, h, w] = blurred[every, h + down, w + right]
    return _gaussian(blurred, sigma)


def _motion_blur(x: Images, c: tuple[int, Number], rng: Generator) -> Images:
    return _moving(x, *c, rng.uniform(-45, 45, len(x)))


def _zoom_blur(x: Images, c: tuple[Number, Number], rng: Generator) -> Images:
    factors = np.arange(1, *c)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


# ----------------------------------------------------------------------------------------- weather


def _snow(x: Images, c: tuple[Number, ...], rng: Generator) -> Images:
    loc, scale, zoom, least, radius, sigma, kept = c
    flakes = _zoomed(rng.normal(loc, scale, (*x.shape[:3], 1)), zoom)
    flakes = np.floor(np.where(flakes < least, 0, flakes).clip(0, 1) * 255) / 255
    flakes = _moving(flakes, int(radius), sigma, rng.uniform(-135, -45, len(x)))
    white = np.maximum(x, 1.5 * _grey(x) + 0.5)
    return kept * x + (1 - kept) * white + flakes + np.rot90(flakes, 2, (1, 2))


def _frost(x: Images, c: tuple[Number, Number], rng: Generator) -> Images:
    """Bright ridges of a plasma, as ice grows in needles; see the head of this file."""
    ice = 1 - np.abs(2 * _plasma(len(x), x.shape[1], 1.7, rng) - 1)
    return c[0] * x + c[1] * ice[..., None]


def _fog(x: Images, c: tuple[Number, Number], rng: Generator) -> Images:
    brightest: Images = x.max(axis=(1, 2, 3), keepdims=True)
    fog = c[0] * _plasma(len(x), x.shape[1], c[1], rng)[..., None]
    return (x + fog) * brightest / (brightest + c[0])


def _brightness(x: Images, c: Number, rng: Generator) -> Images:
    """The value of hue, saturation and value, raised."""
    value: Images = x.max(axis=3, keepdims=True)
    raised = (value + c).clip(0, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


# ----------------------------------------------------------------------------------------- digital


def _contrast(x: Images, c: Number, rng: Generator) -> Images:
    mean: Images = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * c + mean


def _elastic_transform(x: Images, c: tuple[Number, Number, Number], rng: Generator) -> Images:
    """A random affine map of three points, then displacements that a Gaussian has smoothed."""
    side = x.shape[1]
    alpha, sigma, moved = (part * side * (244 / 224 if side >= 224 else 1) for part in c)
    middle, third = side // 2, side // 3
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])  # (x, y)
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)
    found = np.empty_like(x)
    for image, out in zip(x, found, strict=True):
        targets = corners + rng.uniform(-moved, moved, corners.shape)
        # back from each pixel to where it comes from
        back = np.linalg.solve(np.c_[targets, np.ones(3)], corners)
        source = np.concatenate([place, np.ones((side, side, 1))], axis=2) @ back
        shift = rng.uniform(-1, 1, (2, side, side))
        down, right = (
            alpha * ndimage.gaussian_filter(part, sigma, mode="reflect", truncate=3) for part in shift
        )
        for channel in range(x.shape[3]):
            mapped = ndimage.map_coordinates(
                image[..., channel], source.transpose(2, 0, 1)[::-1], order=1, mode="mirror"
            )
            to = place[..., 1] + down, place[..., 0] + right
            out[..., channel] = ndimage.map_coordinates(mapped, to, order=1, mode="reflect")
    return found


def _pixelate(x: Images, c: Number, rng: Generator) -> Images:
    side = x.shape[1]

    def change(image: Image.Image) -> Image.Image:
        small = image.resize((int(side * c), int(side * c)), Image.Resampling.BOX)
        return small.resize((side, side), Image.Resampling.BOX)

    return _by_pillow(x, change)


def _jpeg_compression(x: Images, c: int, rng: Generator) -> Images:
    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=c)
        return Image.open(file)

    return _by_pillow(x, change)


# ------------------------------------------------------------------------------------------- parts


def _by_pillow(x: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    levels = np.rint(x * 255).astype(np.uint8)
    pictures = (Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in levels)
    return np.stack([np.asarray(change(picture)) for picture in pictures]).reshape(x.shape) / 255


def _gaussian(x: Images, sigma: Number) -> Images:
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def _grey(x: Images) -> Images:
    weights = np.array([0.299, 0.587, 0.114]) if x.shape[3] == 3 else np.full(x.shape[3], 1 / x.shape[3])
    grey: Images = x @ weights
    return grey[..., None]


def _zoomed(x: Images, factor: Number) -> Images:
    """The middle of the images, enlarged to their size."""
    side = x.shape[1]
    kept = int(np.ceil(side / factor))
    top = (side - kept) // 2
    middle = x[:, top : top + kept, top : top + kept]
    large: Images = ndimage.zoom(middle, (1, factor, factor, 1), order=1)
    trim = (large.shape[1] - side) // 2
    return large[:, trim : trim + side, trim : trim + side]


def _moving(x: Images, radius: int, sigma: Number, angles: NDArray[np.float64]) -> Images:
    """ImageMagick's motion blur: one half of a Gaussian, along a line of whole pixels from each pixel on."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    every, pixels = np.arange(len(x))[:, None, None], np.arange(x.shape[1])
    found = np.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        right, down = (np.ceil(step * f(np.radians(angles)) - 0.5).astype(int) for f in (np.cos, np.sin))
        rows, columns = ((pixels + by[:, None]).clip(0, len(pixels) - 1) for by in (down, right))
        found += weight * x[every, rows[:, :, None], columns[:, None, :]]
    return found


def _plasma(count: int, side: int, decay: Number, rng: Generator) -> NDArray[np.float64]:
    """Height maps in 0..1 by the diamond-square algorithm, as the scripts have it, cut to the side."""
    size = 1 << (side - 1).bit_length()
    heights = np.zeros((count, size, size))
    step, amount = size, 100.0

    def put(rows: int, columns: int, total: NDArray[np.float64]) -> None:
        noise = amount * rng.uniform(-amount, amount, total.shape)
        heights[:, rows::step, columns::step] = total / 4 + noise

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, 1)
        put(half, half, pairs + np.roll(pairs, -1, 2))
        corners, centres = heights[:, ::step, ::step], heights[:, half::step, half::step]
        put(0, half, centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 2))
        put(half, 0, centres + np.roll(centres, 1, 2) + corners + np.roll(corners, -1, 1))
        step, amount = half, amount / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    found: NDArray[np.float64] = (heights / heights.max(axis=(1, 2), keepdims=True))[:, :side, :side]
    return found


_CORRUPTIONS: dict[str, Callable[[Images, Any, Generator], Images]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
