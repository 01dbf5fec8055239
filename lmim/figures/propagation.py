"""Strips of a video: the first mask, and where propagation carries it (as DAVIS' maps are shown)."""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.video import VIEW, predicted
from lmim.figures import Arrays, Lacking, Subject, array
from lmim.variants import PositiveInt

NEEDS = ("masks", "clips")
SHOWN = 128
"""Pixels of a shown frame's shorter side, at most."""


def propagation(
    trial: Subject,
    *,
    clips: PositiveInt = 1,
    frames: PositiveInt = 6,
    recipe: Literal["dino", "videowalk"] = "dino",
    data: str = "glyph_videos",
    path: str = "",
) -> Arrays:
    """Frames of a clip, their true masks, and those that `video` carries on from the first one's.

    `clips` are shown, spread evenly over the test split. Of each so many `frames`, the first and the last
    among them. `recipe` is whose way of carrying labels, as the protocol has it. `data` are clips with masks.
    They lie in the folder `path`, if they lie on disk.

    Returns:
        `frames` [n, f, c, s, t] in 0..1, `truth` and `found` [n, f, s, t]; `times` [n, f], from 0.
    """
    opened = trial.open(data, path)
    if opened.frames < 2 or not opened.masks:
        raise Lacking(f"{opened.name} has no clips with masks")
    model = replace(trial.model, patches=partial(trial.model.patches, **VIEW))
    shown: dict[str, list[Tensor]] = {"frames": [], "truth": [], "found": [], "times": []}
    size: tuple[int, int] | None = None
    for one in predicted(model, opened, "test", recipe, clips):
        times = torch.linspace(0, len(one.truth) - 1, min(frames, opened.frames)).round().long()
        seen = one.frames(times)
        size = size or _shown(seen.shape[2:])
        seen = F.interpolate(seen, size, mode="bilinear", antialias=True).clamp(0, 1)
        parts = [one.truth.cpu()[times], one.found.cpu()[times]]
        masks = [F.interpolate(part[None].float(), size, mode="nearest-exact")[0].byte() for part in parts]
        for name, part in zip(shown, (seen, *masks, times), strict=True):
            shown[name].append(part)
    return {name: array(torch.stack(each)) for name, each in shown.items()}


def _shown(size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of all frames that are shown, by those of the first clip."""
    smaller = min(1.0, SHOWN / min(size))
    return round(size[0] * smaller), round(size[1] * smaller)
