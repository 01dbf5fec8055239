"""The baseline that learns nothing: an image's feature is its pixels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lmim.axes.mask import patchify
from lmim.config import Encoder
from lmim.objectives import Objective, Setup


class RawPixels(Objective):
    """No weights and no loss: a trial of it is only evaluated."""

    def __init__(self, setup: Setup, *, encoder: Encoder) -> None:
        super().__init__()
        self.patch_size = encoder.patch_size

    def patch_features(self, images: Float[Tensor, "b c h w"], layer: int = 0) -> Float[Tensor, "b n p"]:
        """The pixels of each patch, whatever the layer."""
        return patchify(images, self.patch_size)

    def features(self, images: Float[Tensor, "b c s s"], layer: int = 0) -> Float[Tensor, "b d"]:
        """All pixels, one after the other; of large images those of a 32 x 32 thumbnail.

        A probe's memory grows with the square of the channels, and 224 x 224 x 3 of them do not fit.
        """
        side = min(images.shape[-1], 32)
        return F.adaptive_avg_pool2d(images, side).flatten(1)
