"""Masked autoencoders: predict the pixels of the patches that are hidden.

Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377). Without a gap it computes what the
authors' implementation does (`lmim.interop.load_mae`): the loss `norm_mse` is theirs on normalised pixels,
`mse` theirs without; the decoder `self_attention` without cues. As a sweep's baseline it has the scale's
decoder, as the arms have, and not the 8 x 512 x 16 of the paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmim import config
from lmim.axes.mask import as_drawn, draw_mask
from lmim.encoder import Encoder, View, in_float32, initialise, sincos_positions, take
from lmim.objectives import Draw, Objective, Setup, encoded


@dataclass(frozen=True)
class Output:
    """One forward pass."""

    latents: Float[Tensor, "b t d"]
    prediction: Float[Tensor, "b m p"]
    loss: Float[Tensor, ""]


class PixelMIM(Objective):
    """An encoder of the visible patches, and a decoder that predicts the pixels of the others."""

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        loss: config.Loss,
        mask: config.Mask,
        decoder: config.Decoder,
    ) -> None:
        super().__init__()
        self.setup, self.mask, self.patch_size = setup, mask, encoder.patch_size
        self.grid = setup.side // encoder.patch_size
        self.crop_side = self.grid * (encoder.patch_size + mask.gap)
        positions = partial(sincos_positions, self.grid, end=self.grid - 1)
        values = encoder.patch_size**2 * setup.channels
        self.encoder = Encoder(encoder, config.Projector(depth=0), positions, values)
        self.decoder = setup.variant("decoder", decoder)(encoder.width, positions, values)
        initialise(self, mask_std=0.02)
        self.compare = setup.variant("loss", loss)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """One view of each image, the offsets of its patches' windows, and which patches are visible."""
        draw = self.setup.views(1, aspect, stream)
        return replace(draw, own=draw_mask(len(aspect), self.grid**2, self.mask, stream))

    def forward(
        self,
        views: Float[Tensor, "b 1 c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, on the masked patches alone."""
        patches, view = as_drawn(views[:, 0], self.patch_size, self.mask, own)
        return {"loss": self.output(patches, view).loss}

    def output(self, patches: Float[Tensor, "b n p"], view: View) -> Output:
        """Patch pixels (see `patchify`) and the view."""
        latents = self.encoder(patches, view.visible)
        prediction = self.decoder(latents, view)
        with in_float32(patches):
            loss = self.compare(prediction.float(), take(patches, view.masked).float())
        return Output(latents, prediction, loss)

    def backbone(self) -> Encoder:
        """What is exported, and fine-tuned."""
        return self.encoder

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens of the encoder, the class token's first."""
        return encoded(self.encoder, images, self.patch_size, layer, norm)
