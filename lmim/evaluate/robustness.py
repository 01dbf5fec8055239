"""Robustness to common corruptions: what a classifier that never saw them errs on (arXiv 1903.12261).

The classifier is the closed-form probe of `linear`, fitted to clean training features, so that nothing but
the frozen encoder meets the corruption. ImageNet-C states each error over AlexNet's, which has no meaning off
ImageNet; here errors stand as they are, and a sweep's figure `corruptions` has them over a named arm's.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lmim.data.augment import WHOLE, crop
from lmim.data.corruptions import CONSTANTS, STRENGTHS, corrupt
from lmim.data.imagenet_c import stored_at
from lmim.data.splits import some
from lmim.errors import UserError
from lmim.evaluate.features import BATCH, Frozen, Model
from lmim.evaluate.linear import Ridge
from lmim.variants import PositiveInt

METRICS = {
    "corruption_error": {"label": "mean corruption error", "unit": "%", "better": "lower"},
    "clean_error": {"label": "error without corruption", "unit": "%", "better": "lower"},
    "error_gaussian_noise": {"label": "error under gaussian noise", "unit": "%", "better": "lower"},
    "error_shot_noise": {"label": "error under shot noise", "unit": "%", "better": "lower"},
    "error_impulse_noise": {"label": "error under impulse noise", "unit": "%", "better": "lower"},
    "error_defocus_blur": {"label": "error under defocus blur", "unit": "%", "better": "lower"},
    "error_glass_blur": {"label": "error under glass blur", "unit": "%", "better": "lower"},
    "error_motion_blur": {"label": "error under motion blur", "unit": "%", "better": "lower"},
    "error_zoom_blur": {"label": "error under zoom blur", "unit": "%", "better": "lower"},
    "error_snow": {"label": "error under snow", "unit": "%", "better": "lower"},
    "error_frost": {"label": "error under frost", "unit": "%", "better": "lower"},
    "error_fog": {"label": "error under fog", "unit": "%", "better": "lower"},
    "error_brightness": {"label": "error under brightness", "unit": "%", "better": "lower"},
    "error_contrast": {"label": "error under contrast", "unit": "%", "better": "lower"},
    "error_elastic_transform": {"label": "error under elastic transform", "unit": "%", "better": "lower"},
    "error_pixelate": {"label": "error under pixelate", "unit": "%", "better": "lower"},
    "error_jpeg_compression": {"label": "error under JPEG compression", "unit": "%", "better": "lower"},
}
SECONDS = 14

FEW = 32
"""Judged images of a sample."""


def robustness(
    frozen: Frozen, *, data: Literal["", "imagenet_c"] = "", path: str = "", images: PositiveInt = 500
) -> dict[str, float]:
    """Error in % of each corruption, a mean over five strengths, and the mean over the fifteen corruptions.

    `images` is how many of the judged images are corrupted, drawn once for all: each is seen 75 times. With
    `data` imagenet_c, stored images take their place, as many of each corruption and strength, and `path` is
    where they lie. They are preferred where there are any, for JPEG's losses are part of ImageNet-C.

    Raises:
        UserError: stored images are of other classes than the trial's.
    """
    ridge = Ridge(frozen.classes)
    for batch in frozen.train.batches():
        ridge.update(*batch)
    count = min(FEW, images) if frozen.few else images
    clean = some(len(frozen.images), count)
    errors: dict[str, list[float]] = {name: [] for name in CONSTANTS}
    for name in CONSTANTS:
        for strength in STRENGTHS:
            shown = _stored(frozen, name, strength, count) if data else _drawn(frozen, clean, name, strength)
            errors[name].append(_error(ridge, frozen.model, shown))
    means = {f"error_{name}": sum(each) / len(STRENGTHS) for name, each in errors.items()}
    return {
        "corruption_error": sum(means.values()) / len(means),
        "clean_error": _error(ridge, frozen.model, _squares(frozen, clean)),
        **means,
    }


Shown = Iterator[tuple[UInt8[Tensor, "b c s s"], Int[Tensor, " b"]]]
"""Batches of square images, on the host, and their labels."""


def _error(ridge: Ridge, model: Model, shown: Shown) -> float:
    wrong = total = 0
    for images, labels in shown:
        features = model.features(model.normalised(images, WHOLE.repeat(len(images), 1)))
        wrong += int((ridge.predict(features.float()).cpu() != labels).sum())
        total += len(labels)
    return 100 * wrong / total


def _squares(frozen: Frozen, rows: Int[Tensor, " n"]) -> Shown:
    """The judged images as evaluation sees them, in 256 levels."""
    side, split = frozen.model.side, frozen.images
    for part in torch.split(rows, BATCH):
        pixels = crop(*split.read(part, side), side)
        yield (255 * pixels).round().byte(), split.labels[part]


def _drawn(frozen: Frozen, rows: Int[Tensor, " n"], name: str, strength: int) -> Shown:
    for number, (images, labels) in enumerate(_squares(frozen, rows)):
        yield corrupt(images, name, strength, seed=number), labels


def _stored(frozen: Frozen, name: str, strength: int, count: int) -> Shown:
    """Stored images, which are cropped already."""
    assert frozen.opened is not None
    if frozen.opened.classes != frozen.classes:
        raise UserError(
            f"robustness: {frozen.opened.name} has {frozen.opened.classes} classes, expected the trial's "
            f"{frozen.classes}"
        )
    split = frozen.opened.test
    rows = stored_at(split, name, strength)
    for part in torch.split(rows[some(len(rows), count)], BATCH):
        images, _ = split.read(part, frozen.model.side, WHOLE.repeat(len(part), 1))
        yield images, split.labels[part]
