"""An autoencoder of single patches through finite scalar quantisation (arXiv 2309.15505).

It is how `lmim.tokenizer` makes the tokens of `collapse: fsq`; see `lmim/quantise.py`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lmim import config
from lmim.axes.mask import patchify
from lmim.encoder import in_float32
from lmim.objectives import Draw, Objective, Setup
from lmim.quantise import PatchAutoencoder
from lmim.variants import PositiveInt


class Fsq(Objective):
    """Reconstruct each patch from a code of few levels.

    The code's parts have so many `levels` each, such as 8x6x5, which makes 240 codes. The hidden layers have
    `width` channels.
    """

    def __init__(
        self, setup: Setup, *, encoder: config.Encoder, levels: str = "8x6x5", width: PositiveInt = 256
    ) -> None:
        super().__init__()
        self.setup, self.patch_size = setup, encoder.patch_size
        self.crop_side = setup.side
        values = encoder.patch_size**2 * setup.channels
        self.autoencoder = PatchAutoencoder(values, config.levels_of(levels), width)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """One view of each image."""
        return self.setup.views(1, aspect, stream)

    def forward(
        self,
        views: Float[Tensor, "b 1 c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`: the mean squared error of the normalised pixels."""
        patches = patchify(views[:, 0], self.patch_size)
        decoded = self.autoencoder.decode(self.autoencoder.encode(patches))
        with in_float32(patches):
            return {"loss": F.mse_loss(decoded.float(), patches.float())}

    def patch_features(self, images: Float[Tensor, "b c h w"], layer: int = 0) -> Float[Tensor, "b n d"]:
        """The encoder's last hidden layer, which the code is a few numbers of; it has no others."""
        features: Tensor = self.autoencoder.trunk(patchify(images, self.patch_size))
        return features
