"""Unsupervised segmentation of one image at a time: its patches, clustered by their features.

Latent MIM (arXiv 2407.15837) shows maps made so and has no figure of them; linkage and number of clusters are
not to be found. Ours: features scaled to unit length, agglomerative clustering, as many clusters as the image
has segments, the ground among them, each patch's cluster for all of its pixels. Nothing is trained.

FG-ARI is that of the multi-object datasets (deepmind/multi_object_datasets): the adjusted Rand index of
the pixels that have a true object. Pixels of one patch are together on both sides, so clusters drawn at
random have more than 0: compare with a random encoder. Matched mIoU matches clusters with segments as STEGO
does, one to one by the most common pixels, but in each image by itself: STEGO has one confusion matrix for
the whole set, as its clusters are classes that all images share. The figures of the two do not compare.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor
from torch.nn import functional as F

from lmim.data import Dataset
from lmim.data.augment import crop
from lmim.data.reading import ahead
from lmim.data.splits import VOID, Masked, spread
from lmim.errors import UserError
from lmim.evaluate.features import BATCH, Frozen, Model
from lmim.variants import PositiveInt

METRICS = {
    "segment_ari": {"label": "ARI", "unit": "%", "better": "higher"},
    "segment_fg_ari": {"label": "FG-ARI", "unit": "%", "better": "higher"},
    "segment_miou": {"label": "matched mIoU", "unit": "%", "better": "higher"},
}

NEEDS = ("masks",)
FEATURES = False
SECONDS = 12
FEW = 64
"""Images of a sample."""

Linkage = Literal["ward", "average"]


def segmentation(
    frozen: Frozen,
    *,
    linkage: Literal["ward", "average"] = "ward",
    images: PositiveInt = 500,
    data: str = "glyph_scenes",
    path: str = "",
) -> dict[str, float]:
    """ARI, FG-ARI and matched mIoU in %, the means over the judged images; see the head of this file.

    `linkage` says which two clusters become one: `ward` those that grow least in variance, `average` those
    that are nearest in mean cosine. At most `images` are looked at, spread evenly. `data` names those with
    masks, and `path` is where they lie.
    """
    split = masked(frozen.open(), frozen.split)
    rows = spread(len(split), min(images, FEW) if frozen.few else images)
    found = [scores(one.truth, one.found) for one in maps(frozen.model, split, rows, linkage)]
    return dict(zip(METRICS, map(_mean, zip(*found, strict=True)), strict=True))


@dataclass(frozen=True)
class Map:
    """One image, what it shows, and what was found in it."""

    image: Float[Tensor, "c s s"]
    """Its pixels, 0..1."""
    truth: UInt8[Tensor, "s s"]
    found: Int[Tensor, "s s"]
    """The cluster of each pixel, in no order."""


def maps(model: Model, split: Masked, rows: Int[Tensor, " n"], linkage: Linkage = "ward") -> Iterator[Map]:
    """The maps of these images of a split, one by one: for figures, too."""
    parts = torch.split(rows, BATCH)
    source = ((split.read(part, model.side), split.read_masks(part, model.side)) for part in parts)
    for (pixels, boxes), masks in ahead(source):
        features = model.patches(model.normalised(pixels, boxes)).float().cpu()
        for image, truth, one in zip(crop(pixels, boxes, model.side), masks, features, strict=True):
            segments = len(truth[truth != VOID].unique())
            yield Map(image, truth, over_pixels(clustered(one, segments, linkage), model.side))


def masked(dataset: Dataset, split: str) -> Masked:
    """A split of images with masks.

    Raises:
        UserError: they are clips, or have no masks.
    """
    if not dataset.masks or dataset.frames > 1:
        found = "clips" if dataset.frames > 1 else "images without masks"
        raise UserError(f"data: {dataset.name} has {found}: give images with masks, such as glyph_scenes")
    return cast(Masked, getattr(dataset, split))


def clustered(features: Float[Tensor, "n d"], count: int, linkage: Linkage = "ward") -> Int[Tensor, " n"]:
    """The cluster of each patch of one image; `average` linkage is of the cosine.

    There are `count` clusters, or as many as there are patches.

    >>> clustered(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.1]]), 2).tolist()
    [0, 1, 0]
    """
    unit = F.normalize(features.double(), dim=1).cpu()
    count = min(count, len(unit))
    if count < 2:
        return torch.zeros(len(unit), dtype=torch.int64)
    if linkage == "ward":
        found = AgglomerativeClustering(count).fit_predict(unit.numpy())
    else:
        distances = (1 - unit @ unit.T).clamp_min(0).numpy()
        found = AgglomerativeClustering(count, metric="precomputed", linkage=linkage).fit_predict(distances)
    return torch.from_numpy(found)


def over_pixels(patches: Int[Tensor, " n"], side: int) -> Int[Tensor, "side side"]:
    """What the patches of a square image, row by row, say of its pixels: the nearest patch's."""
    grid = math.isqrt(len(patches))
    places = (torch.arange(side) * grid) // side
    return patches.view(grid, grid)[places[:, None], places]


def scores(truth: UInt8[Tensor, "h w"], found: Int[Tensor, "h w"]) -> tuple[float, float, float]:
    """ARI, FG-ARI and matched mIoU of one image, 1 at best; pixels that are VOID are not looked at.

    ARI is 1 where both sides are one cluster. NaN is what is not defined: all three where every pixel is
    VOID, FG-ARI where no pixel has an object.
    """
    true, seen = (part[truth != VOID].numpy() for part in (truth, found))
    things = true > 0
    ari, foreground = (
        float(adjusted_rand_score(true[kept], seen[kept])) if kept.any() else math.nan
        for kept in (np.ones_like(things), things)
    )
    return ari, foreground, _matched_miou(true, seen) if len(true) else math.nan


def _matched_miou(true: NDArray[np.uint8], found: NDArray[np.int64]) -> float:
    """Mean IoU of the segments with their clusters; one without a cluster has 0."""
    common = contingency_matrix(true, found)
    rows, columns = linear_sum_assignment(common, maximize=True)
    shared = common[rows, columns]
    union = common.sum(axis=1)[rows] + common.sum(axis=0)[columns] - shared
    return float((shared / union).sum() / len(common))


def _mean(values: Sequence[float]) -> float:
    """In %, of those that are defined; NaN where none is."""
    defined = [value for value in values if not math.isnan(value)]
    return 100 * fmean(defined) if defined else math.nan
