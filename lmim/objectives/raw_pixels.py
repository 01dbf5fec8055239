"""The baseline that learns nothing: an image's feature is its pixels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmim.axes.mask import patchify
from lmim.config import Config


class RawPixels(nn.Module):
    """No weights and no loss: a trial of it is only evaluated."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config = config

    def patch_features(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b n p"]:
        """The pixels of each patch."""
        return patchify(images, self.config.encoder.patch_size)

    def features(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        """All pixels, one after the other; of large images those of a 32 x 32 thumbnail.

        A probe's memory grows with the square of the channels, and 224 x 224 x 3 of them do not fit.
        """
        side = min(images.shape[-1], 32)
        return F.adaptive_avg_pool2d(images, side).flatten(1)
