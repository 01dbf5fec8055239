"""Strips of a video: the first mask, and where propagation carries it (as DAVIS' maps are shown)."""

from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.video import predicted
from lmim.figures import Arrays, Lacking, Subject, array
from lmim.variants import PositiveInt

NEEDS = ("masks", "clips")


def propagation(
    trial: Subject,
    *,
    clips: PositiveInt = 1,
    frames: PositiveInt = 6,
    recipe: Literal["dino", "videowalk"] = "dino",
    data: str = "glyph_videos",
    path: str = "",
) -> Arrays:
    """Frames of a clip, their true masks, and those that are carried on from the first one's.

    `clips` are shown, spread evenly over the test split. Of each so many `frames`, the first and the last
    among them. `recipe` is whose way of carrying labels, as the protocol has it. `data` are clips with masks.
    They lie in the folder `path`, if they lie on disk.

    Returns:
        `frames` [n, f, c, s, s] in 0..1, `truth` and `found` [n, f, s, s]; `times` [f], from 0.
    """
    opened = trial.open(data, path)
    if opened.frames < 2 or not opened.masks:
        raise Lacking(f"{opened.name} has no clips with masks")
    times = torch.linspace(0, opened.frames - 1, min(frames, opened.frames)).round().long()
    found = [*predicted(trial.model, opened, "test", recipe, clips)]
    side = trial.model.side
    masks = {
        name: array(torch.stack([_shown(getattr(one, name).cpu()[times], side) for one in found]))
        for name in ("truth", "found")
    }
    seen = torch.stack([one.frames.cpu()[times] for one in found])
    return {"frames": array(seen), **masks, "times": array(times)}


def _shown(masks: UInt8[Tensor, "f h w"], side: int) -> UInt8[Tensor, "f s s"]:
    """Masks as large as the frames are shown."""
    return F.interpolate(masks[None].float(), (side, side), mode="nearest-exact")[0].byte()
