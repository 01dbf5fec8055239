"""Video-object segmentation by label propagation: do the patches of one thing stay alike as it moves?

As DAVIS is scored: the mask of a clip's first frame is given, and carried to the others by the likeness of
frozen patch features (`propagation.py`); J and F are the official ones (`davis.py`). Clips are seen at the
side that the encoder was trained on, normalised as its data were; DAVIS' own resolution is no part of this.
"""

import math
from collections.abc import Iterator
from typing import Literal, cast

import torch
from jaxtyping import UInt8
from torch import Tensor

from lmim.data.augment import WHOLE
from lmim.data.splits import Clips, Masked
from lmim.evaluate import davis
from lmim.evaluate.features import Frozen
from lmim.evaluate.propagation import DINO, VIDEOWALK, first_labels, hard_labels, propagate
from lmim.variants import PositiveInt

METRICS = {
    "video_jf": {"label": "video J&F", "unit": "%", "better": "higher"},
    "video_j": {"label": "video J", "unit": "%", "better": "higher"},
    "video_f": {"label": "video F", "unit": "%", "better": "higher"},
}
NEEDS = ("masks", "clips")
SECONDS = 4
RECIPES = {"dino": DINO, "videowalk": VIDEOWALK}
FEW = 8
"""Clips of a sample."""


def video(
    frozen: Frozen,
    *,
    data: str = "glyph_videos",
    path: str = "",
    recipe: Literal["dino", "videowalk"] = "dino",
    clips: PositiveInt = 200,
) -> dict[str, float]:
    """J, F and their mean in % on the judged clips: means over frames, then over the objects of all clips.

    `data` are clips with masks, which lie in the folder `path` if they lie on disk. `recipe` is whose way of
    carrying labels: `dino`, or `videowalk`, which CropMAE and its like report; figures of one say nothing
    beside the other's. `clips` is how many are judged at most, evenly spread over the split.
    """
    regions, boundaries = [], []
    for truth, guess in predicted(frozen, recipe, min(clips, FEW) if frozen.few else clips):
        objects = davis.objects_of(truth[0])
        if objects:
            j, f = davis.scores(truth, guess, objects)
            regions += [davis.summary(frames)["mean"] for frames in j]
            boundaries += [davis.summary(frames)["mean"] for frames in f]
    if not regions:
        raise ValueError("video needs an object in the first frame of some clip, there is none in any")
    region, boundary = (100 * sum(values) / len(values) for values in (regions, boundaries))
    return {"video_jf": (region + boundary) / 2, "video_j": region, "video_f": boundary}


def predicted(
    frozen: Frozen, recipe: Literal["dino", "videowalk"] = "dino", clips: int = 200
) -> Iterator[tuple[UInt8[Tensor, "f s s"], UInt8[Tensor, "f s s"]]]:
    """The true masks of each clip and the propagated ones, of which the first is given."""
    opened, model, how = frozen.open(), frozen.model, RECIPES[recipe]
    split = getattr(opened, frozen.split)
    times = torch.arange(opened.frames)[None]
    boxes = WHOLE.reshape(1, 1, 4).expand(1, opened.frames, 4)
    for number in torch.linspace(0, len(split) - 1, min(clips, len(split))).long():
        frames, seen = cast(Clips, split).read_clips(number[None], model.side, boxes, times)
        features = model.patches(model.normalised(frames[0], seen[0]))
        truth = cast(Masked, split).read_masks(number[None], model.side)[0].to(features.device)
        rows = math.isqrt(features.shape[1])
        if rows**2 != features.shape[1] or model.side % rows:
            raise ValueError(f"video needs a square grid of patches, found {features.shape[1]} of them")
        patch, size = model.side // rows, (model.side, model.side)
        first = first_labels(truth[0], davis.objects_of(truth[0]), size, patch, how)
        soft = propagate(features, first, how)
        yield truth, torch.stack([truth[0], *(hard_labels(one, patch, size, how) for one in soft)])
