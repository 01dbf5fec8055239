"""Is the representation collapsing? Five figures of a batch of patch features; and a protocol.

Memory is that of the batch itself: no matrix of all pairs. They come as 0-d tensors, so that the training
loop chooses when to fetch them from the device.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lmim.data.augment import sample_boxes, within
from lmim.evaluate.features import Frozen
from lmim.variants import Fraction

METRICS = {
    "rankme": {"label": "effective rank of all judged", "better": "higher"},
    "image_cosine": {"label": "cosine between judged images", "better": "lower"},
    "patch_cosine": {"label": "cosine between patches of a judged image", "better": "lower"},
    "alignment": {"label": "alignment", "better": "lower"},
    "uniformity": {"label": "uniformity", "better": "lower"},
}
SECONDS = 4


def collapse(frozen: Frozen, *, crop_scale: Fraction = 0.2) -> dict[str, float]:
    """Rank, cosines, alignment and uniformity of the judged images' features; no label is looked at.

    Unlike the trainer's `diagnostics` they are of all judged images, and obey the settings of every protocol.
    Alignment is the mean squared distance between the unit features of two random crops of an image, each
    `crop_scale` of the judged square or more; uniformity the logarithm of the mean of exp(-2 squared
    distance) between unit features of different images (arXiv 2005.10242, with its alpha 2 and t 2): 0 where
    all are one. Both are better lower, and only together.
    """
    model, features = frozen.model, frozen.judged.whole()[0].float()
    generator = torch.Generator().manual_seed(0)
    inner, apart = 0.0, 0.0
    for images, boxes in model.read(frozen.images):
        inner += float(mean_cosine(model.patches(model.normalised(images, boxes))).double().sum())
        crops = [sample_boxes(torch.ones(len(boxes)), crop_scale, generator) for _ in range(2)]
        views = [model.features(model.normalised(images, within(boxes, one))).float() for one in crops]
        one, two = (F.normalize(view, dim=1) for view in views)
        apart += float((one - two).square().sum(dim=1).double().sum())
    return {
        "rankme": float(rankme(features)),
        "image_cosine": float(mean_cosine(features)),
        "patch_cosine": inner / len(features),
        "alignment": apart / len(features),
        "uniformity": uniformity(features),
    }


def uniformity(features: Float[Tensor, "n d"], chunk: int = 512) -> float:
    """The logarithm of the mean, over pairs of different rows, of exp(-2 |x - y|^2) of their unit vectors.

    0 is one vector for all; the least in many dimensions is about -4. Holds chunk x n similarities.

    >>> round(uniformity(torch.eye(4)), 4)
    -4.0
    """
    unit = F.normalize(features.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    for start in range(0, len(unit), chunk):
        similarity = unit[start : start + chunk] @ unit.T
        similarity.diagonal(offset=start).fill_(-torch.inf)
        total += (4 * similarity - 4).exp().sum().double()
    pairs = len(unit) * (len(unit) - 1)
    return math.log(float(total) / pairs) if pairs else math.nan


def diagnostics(patch_features: Float[Tensor, "b n d"]) -> dict[str, Float[Tensor, ""]]:
    """Measures of collapse of b images of n patches; NaN where undefined or the input is not finite.

    - rank: RankMe of the images' mean features, from 1 (one direction for all) to min(b, d).
    - image_cosine: mean cosine between the mean features of different images; 1 is collapse.
    - patch_cosine: mean cosine between different patches of one image, averaged over images.
    - std: mean over channels of the deviation between images of the unit mean features, times sqrt(d): 1 is
      isotropic, 0 collapse (arXiv 2011.10566).
    - spread: the root of 1 less the mean squared cosine between different images, which is one over the
      participation ratio of their directions: 0 where all lie on one line, whichever way it runs.

    >>> {name: round(float(value), 2) for name, value in diagnostics(torch.ones(4, 3, 8)).items()}
    {'rank': 1.0, 'image_cosine': 1.0, 'patch_cosine': 1.0, 'std': 0.0, 'spread': 0.0}
    """
    patches = patch_features.detach().float()
    images = patches.mean(dim=1)
    unit = F.normalize(images, dim=1)
    pairs = len(unit) * (len(unit) - 1)
    squared = ((unit.T @ unit).square().sum() - unit.square().sum(1).square().sum()) / pairs
    return {
        "rank": rankme(images),
        "image_cosine": mean_cosine(images),
        "patch_cosine": mean_cosine(patches).mean(),
        "std": unit.std(dim=0).mean() * unit.shape[1] ** 0.5,
        "spread": (1 - squared).clamp_min(0).sqrt() if pairs else torch.full_like(squared, torch.nan),
    }


def rankme(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Effective rank: exp of the entropy of the normalised singular values (arXiv 2210.02885).

    NaN for features that are not finite, on which the decomposition itself would raise.

    >>> round(float(rankme(torch.eye(5))), 4)
    5.0
    """
    features = features.float()
    # The rank does not depend on the scale, while squares of a diverging encoder's features overflow.
    scaled = features / features.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    finite = scaled.isfinite().all()
    values = torch.linalg.svdvals(torch.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0))
    share = values / values.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(finite, torch.special.entr(share).sum().exp(), torch.nan)


def mean_cosine(features: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    """Mean cosine over the n (n - 1) ordered pairs of different rows; NaN for a single row.

    The sum over all pairs is the squared norm of the sum of unit vectors, so no n x n matrix is needed.

    >>> float(mean_cosine(torch.eye(3)))
    0.0
    """
    unit = F.normalize(features.float(), dim=-1)
    rows = unit.shape[-2]
    if rows < 2:
        return torch.full_like(unit[..., 0, 0], torch.nan)
    pairs = unit.sum(dim=-2).square().sum(dim=-1) - unit.square().sum(dim=(-2, -1))
    return pairs / (rows * (rows - 1))
