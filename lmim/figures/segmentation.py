"""Unsupervised segmentation maps, beside the image and what is true of it (arXiv 2407.15837)."""

from typing import Literal

import torch

from lmim.data.splits import spread
from lmim.evaluate.segmentation import maps, masked
from lmim.figures import Arrays, Subject, array
from lmim.variants import PositiveInt

NEEDS = ("masks",)


def segmentation(
    trial: Subject,
    *,
    images: PositiveInt = 2,
    linkage: Literal["ward", "average"] = "ward",
    data: str = "glyph_scenes",
    path: str = "",
) -> Arrays:
    """Images, their true segments, and the clusters of their patches, as many as there are segments.

    `images` are shown, spread evenly over the test split. `linkage` says which two clusters become one, as
    the protocol has it. `data` names those with masks. They lie in the folder `path`, if they lie on disk.

    Returns:
        `image` [n, c, s, s] in 0..1, `truth` and `found` [n, s, s].
    """
    split = masked(trial.open(data, path), "test")
    found = [*maps(trial.model, split, spread(len(split), images), linkage)]
    return {
        name: array(torch.stack([getattr(one, name) for one in found]))
        for name in ("image", "truth", "found")
    }
