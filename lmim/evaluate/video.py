"""Video-object segmentation by label propagation: do the patches of one thing stay alike as it moves?

As DAVIS is scored: the mask of a clip's first frame is given, and carried to the others by the likeness of
frozen patch features (`propagation.py`); J and F are the official ones (`davis.py`), and scored on masks as
large as they lie on disk. Clips are seen whole, normalised as the encoder's data were; as DINO sees them,
frames are 480 pixels high, and features are taken after the encoder's final norm, if it has one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lmim.data import Dataset
from lmim.data.augment import WHOLE, crop
from lmim.data.splits import MaskedClips
from lmim.errors import UserError, brief
from lmim.evaluate import davis
from lmim.evaluate.features import Frozen, Model
from lmim.evaluate.propagation import (
    DINO,
    VIDEOWALK,
    first_labels,
    frame_size,
    hard_labels,
    propagate,
)
from lmim.variants import Count, PositiveInt

METRICS = {
    "video_jf": {"label": "video J&F", "unit": "%", "better": "higher"},
    "video_j": {"label": "video J", "unit": "%", "better": "higher"},
    "video_f": {"label": "video F", "unit": "%", "better": "higher"},
}
NEEDS = ("masks", "clips")
VIEW = {"norm": True}
FEATURES = False
SECONDS = 4
Whose = Literal["dino", "videowalk"]
RECIPES = {"dino": DINO, "videowalk": VIDEOWALK}
FEW = 8
"""Clips of a sample."""
PIXELS = 2**23
"""Of the frames that are encoded at once: 20 of DAVIS' by DINO's settings."""


def video(
    frozen: Frozen,
    *,
    data: str = "glyph_videos",
    path: str = "",
    recipe: Literal["dino", "videowalk"] = "dino",
    clips: PositiveInt = 200,
    side: Count = 480,
) -> dict[str, float]:
    """J, F and their mean in % on the judged clips: means over frames, then over the objects of all clips.

    `data` are clips with masks, which lie in the folder `path` if they lie on disk. `recipe` is whose way of
    carrying labels: `dino`, or `videowalk`, which CropMAE and its like report; figures of one say nothing
    beside the other's. `clips` is how many are judged at most, evenly spread over the split. `side` is how
    many pixels a frame's shorter side has at most, the longer one following by the recipe (0: frames are
    squeezed to the encoder's square, as one must be that sees images of one size alone).
    """
    regions, boundaries = [], []
    count = min(clips, FEW) if frozen.few else clips
    for one in predicted(frozen.model, frozen.open(), frozen.split, recipe, count, side):
        objects = davis.objects_of(one.truth[0])
        if objects:
            j, f = davis.scores(one.truth, one.found, objects)
            regions += [davis.summary(frames)["mean"] for frames in j]
            boundaries += [davis.summary(frames)["mean"] for frames in f]
    if not regions:
        raise ValueError("video needs an object in the first frame of some clip, there is none in any")
    region, boundary = (100 * sum(values) / len(values) for values in (regions, boundaries))
    return {"video_jf": (region + boundary) / 2, "video_j": region, "video_f": boundary}


@dataclass(frozen=True)
class Followed:
    """One clip, its true masks, and those that were carried through it."""

    images: UInt8[Tensor, "f c y x"]
    boxes: Float[Tensor, "f 4"]
    size: tuple[int, int]
    truth: UInt8[Tensor, "f h w"]
    """As large as it lies on disk."""
    found: UInt8[Tensor, "f h w"]
    """The first is given."""

    def frames(self, times: Int[Tensor, " k"]) -> Float[Tensor, "k c s t"]:
        """Some frames as large as they are seen, in 0..1."""
        return crop(self.images[times], self.boxes[times], self.size)


def predicted(
    model: Model, data: Dataset, split: str, recipe: Whose = "dino", clips: int = 200, side: int = 480
) -> Iterator[Followed]:
    """The clips of a split, at most so many, each with the masks that are propagated: for figures, too."""
    how, source = RECIPES[recipe], cast(MaskedClips, getattr(data, split))
    square = model.side, model.side
    blank = torch.zeros(1, model.dataset.channels, *square, device=model.device)
    patch = model.side // math.isqrt(model.patches(blank).shape[1])
    for number in torch.linspace(0, len(source) - 1, min(clips, len(source))).long():
        truth = source.read_whole_masks(int(number))
        times = torch.arange(len(truth))[None]
        boxes = WHOLE.reshape(1, 1, 4).expand(1, len(truth), 4)
        large = truth.shape[1], truth.shape[2]
        size = frame_size(large, side, patch, how) if side else square
        [frames], [seen] = source.read_clips(number[None], size if side else model.side, boxes, times)
        truth = truth.to(model.device)
        first = first_labels(truth[0], davis.objects_of(truth[0]), size, patch, how)
        soft = propagate(_patches(model, frames, seen, size, patch), first, how)
        found = torch.stack([truth[0], *(hard_labels(one, patch, large, how) for one in soft)])
        yield Followed(frames, seen, size, truth, found)


def _patches(
    model: Model,
    frames: UInt8[Tensor, "f c h w"],
    boxes: Float[Tensor, "f 4"],
    size: tuple[int, int],
    patch: int,
) -> Iterator[Float[Tensor, "n d"]]:
    """The features of each frame's patches, of a few frames at once."""
    at_once = max(1, PIXELS // math.prod(size))
    for part in zip(torch.split(frames, at_once), torch.split(boxes, at_once), strict=True):
        try:
            features = model.patches(model.normalised(*part, size))
        except (AssertionError, UserError, ValueError) as error:
            raise ValueError(
                f"the encoder sees no frames of {size[0]} x {size[1]} px ({brief(error)}); "
                "side: 0 squeezes them to its square"
            ) from error
        if features.shape[1] * patch**2 != math.prod(size):
            raise ValueError(
                f"video needs a grid of square patches, found {features.shape[1]} of {size[0]} x {size[1]} px"
            )
        yield from features
