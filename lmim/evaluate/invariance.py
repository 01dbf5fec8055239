"""Invariance: how little an image's feature changes as the image is cropped, shifted or mirrored.

A cosine alone says little: where all features point one way, so do those of a changed image. So a change is
measured against what lies between different images. That is our choice; that nearness of views says nothing
without a spread of images is arXiv 2005.10242.

    invariance = (c - o) / (1 - o)

with c the mean cosine between an image's feature and that of the changed image, and o the mean cosine between
different images. 1: the feature does not change; 0: the changed image is as far as any other, which is also
said of an encoder to which all images are the same.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lmim.data.augment import WHOLE, sample_boxes, within
from lmim.evaluate.collapse import mean_cosine
from lmim.evaluate.features import Frozen
from lmim.variants import Fraction

METRICS = {
    "invariance_crop": {"label": "invariance to crops", "better": "higher"},
    "invariance_shift": {"label": "invariance to shifts", "better": "higher"},
    "invariance_flip": {"label": "invariance to mirroring"},
    "cosine_crop": {"label": "cosine to the cropped image"},
    "cosine_shift": {"label": "cosine to the shifted image"},
    "cosine_flip": {"label": "cosine to the mirrored image"},
    "cosine_others": {"label": "cosine to other images"},
}
SECONDS = 4

SAME = 1e-6
"""Where other images are as near as this, the encoder tells none apart."""


def invariance(frozen: Frozen, *, crop_scale: Fraction = 0.2, shift: Fraction = 0.125) -> dict[str, float]:
    """How far the features of the judged images stay as they are; see the head of this file.

    Crops are drawn as training views are, of `crop_scale` of the judged square or more; `shift` is the
    largest shift, either way, as a part of the square's side, in whole pixels. What comes in at the
    image's edge repeats it. Mirroring need change nothing where a mirrored image is of another class.
    """
    model = frozen.model
    generator = torch.Generator().manual_seed(0)
    near = dict.fromkeys(("crop", "shift", "flip"), 0.0)
    judged = zip(model.read(frozen.images), frozen.judged.batches(), strict=True)
    for (images, boxes), (features, _) in judged:
        crops = sample_boxes(torch.ones(len(boxes)), crop_scale, generator)
        shifts = shifted(len(boxes), shift, model.side, generator)
        views = {
            "crop": model.normalised(images, within(boxes, crops)),
            "shift": model.normalised(images, within(boxes, shifts)),
            "flip": model.normalised(images, boxes).flip(3),
        }
        for name, view in views.items():
            found = model.features(view).float()
            near[name] += float(F.cosine_similarity(found, features).double().sum())
    near = {name: total / len(frozen.judged) for name, total in near.items()}
    others = float(mean_cosine(frozen.judged.features.double()))
    margins = {
        name: (one - others) / (1 - others) if 1 - others > SAME else 0.0 for name, one in near.items()
    }
    return {
        **{f"invariance_{name}": margin for name, margin in margins.items()},
        **{f"cosine_{name}": one for name, one in near.items()},
        "cosine_others": others,
    }


def shifted(count: int, shift: float, side: int, generator: torch.Generator) -> Float[Tensor, "b 4"]:
    """Boxes moved at random, by at most this part and by whole pixels of the side that is seen."""
    moved, most = WHOLE.repeat(count, 1), int(shift * side)
    moved[:, :2] = torch.randint(-most, most + 1, (count, 2), generator=generator) / side
    return moved
