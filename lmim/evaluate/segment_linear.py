"""A linear probe on patches: semantic segmentation by one linear layer on frozen features.

As `linear` does for images, by ridge regression in closed form: the same for every arm, without a seed or a
learning rate, in one pass whose memory does not grow with the images. A patch's target is the share of each
class among its labelled pixels: so the fit is that onto the pixels' classes, each pixel having the feature of
its patch. Scores are brought to pixels bilinearly, and the highest counts. mIoU is the mean over classes,
from one confusion matrix of all judged images (arXiv 1411.4038); a class that neither the truth nor a
prediction has is left out, and so are pixels that are not labelled.

Where most pixels are ground, small probes call everything ground, whatever the features know of objects. So
the object accuracy asks, of the pixels that have an object, which object's class is likeliest; it is the
pixel accuracy of data without a ground.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from lmim.data.reading import ahead
from lmim.data.splits import VOID, Classed
from lmim.evaluate.features import BATCH, Frozen, Model
from lmim.evaluate.linear import Ridge
from lmim.evaluate.segmentation import masked

METRICS = {
    "segment_linear_miou": {"label": "linear mIoU", "unit": "%", "better": "higher"},
    "segment_linear_objects": {"label": "linear object accuracy", "unit": "%", "better": "higher"},
}
NEEDS = ("masks",)
FEATURES = False
SECONDS = 2
ENLARGED = 16
"""Images whose scores are brought to pixels at once: 150 classes at 224 px take half a gigabyte."""


def segment_linear(frozen: Frozen, *, data: str = "glyph_scenes", path: str = "") -> dict[str, float]:
    """mIoU and object accuracy in % on the judged images; fitted to the training images of the same data.

    `data` names those with classed masks, and `path` is where they lie.
    """
    other, model = frozen.open(), frozen.model
    train, judged = (cast(Classed, masked(other, split)) for split in ("train", frozen.split))
    classes = other.classes + 1  # the ground
    ridge = Ridge(classes)
    for features, truth in _batches(model, train):
        target = shares(truth, features.shape[1], classes).flatten(0, 1)
        labelled = target.any(dim=1)
        ridge.update(features.flatten(0, 1)[labelled].to(model.device), target[labelled].to(model.device))
    confusion = torch.zeros(2, classes, classes, dtype=torch.int64)
    for features, truth in _batches(model, judged):
        for some, known in zip(torch.split(features, ENLARGED), torch.split(truth, ENLARGED), strict=True):
            scores = scored(ridge, some.to(model.device), model.side)
            confusion[0] += confused(known, scores.argmax(dim=1).cpu(), classes)
            confusion[1] += confused(known, scores[:, 1:].argmax(dim=1).cpu() + 1, classes)
    objects = confusion[1, 1:]
    return {
        "segment_linear_miou": mean_iou(confusion[0]),
        "segment_linear_objects": float(100 * objects.diagonal(offset=1).sum() / objects.sum()),
    }


def shares(truth: UInt8[Tensor, "b h w"], patches: int, classes: int) -> Float[Tensor, "b n c"]:
    """The part of each class in the labelled pixels of each patch; all zero where none is labelled.

    >>> shares(torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8), 1, 2).tolist()
    [[[0.3333333432674408, 0.6666666865348816]]]
    """
    grid = math.isqrt(patches)
    lines = torch.arange(truth.shape[1]) * grid // truth.shape[1]
    places = lines[:, None] * grid + lines + patches * torch.arange(len(truth))[:, None, None]
    labelled = truth != VOID
    index = places[labelled] * classes + truth[labelled].long()
    counts = index.bincount(minlength=len(truth) * patches * classes).view(len(truth), patches, classes)
    return counts / counts.sum(dim=2, keepdim=True).clamp_min(1)


def scored(ridge: Ridge, features: Float[Tensor, "b n d"], side: int) -> Float[Tensor, "b c side side"]:
    """About how likely each class is for each pixel; its argmax is the predicted map."""
    grid = math.isqrt(features.shape[1])
    scores = ridge.scores(features.flatten(0, 1)).float().view(len(features), grid, grid, -1).movedim(3, 1)
    return F.interpolate(scores, (side, side), mode="bilinear", align_corners=False)


def confused(truth: UInt8[Tensor, "b h w"], found: Int[Tensor, "b h w"], classes: int) -> Int[Tensor, "c c"]:
    """How many labelled pixels of each class (row) were taken for each (column)."""
    labelled = truth != VOID
    index = truth[labelled].long() * classes + found[labelled]
    return index.bincount(minlength=classes**2).view(classes, classes)


def mean_iou(confusion: Int[Tensor, "c c"]) -> float:
    """In %, over the classes that are there on either side.

    >>> round(mean_iou(torch.tensor([[1, 1, 0], [0, 2, 0], [0, 0, 0]])), 1)  # of 1/2 and 2/3
    58.3
    """
    shared = confusion.diagonal().double()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - shared
    return float(100 * (shared[union > 0] / union[union > 0]).mean())


def _batches(model: Model, split: Classed) -> Iterator[tuple[Float[Tensor, "b n d"], UInt8[Tensor, "b h w"]]]:
    """The patches' features and the pixels' classes, on the host."""
    parts = torch.split(torch.arange(len(split)), BATCH)
    source = ((split.read(part, model.side), split.read_classes(part, model.side)) for part in parts)
    for (images, boxes), truth in ahead(source):
        yield model.patches(model.normalised(images, boxes)).float().cpu(), truth
