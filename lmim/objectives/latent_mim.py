"""Latent masked image modelling: predict the latents of the patches that are hidden.

Towards Latent Masked Image Modeling for Self-Supervised Visual Representation Learning
(arXiv 2407.15837, ECCV 2024). The loss is a pure function of the modules, the patches, the view and
the schedules' values; the trainer owns loop, device and precision.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmim.axes.collapse import TARGETS
from lmim.axes.decoder import DECODERS
from lmim.axes.loss import build_loss
from lmim.axes.mask import patchify, similarity_constraint
from lmim.config import Config
from lmim.encoder import Encoder, View, initialise


@dataclass(frozen=True)
class Output:
    """One forward pass. `loss` is what is minimised: `term` plus the similarity constraint."""

    latents: Float[Tensor, "b t d"]
    target: Float[Tensor, "b m d"]
    prediction: Float[Tensor, "b m d"]
    term: Float[Tensor, ""]
    loss: Float[Tensor, ""]


class LatentMIM(nn.Module):
    """Online encoder, target and decoder, as the config's four axes choose them."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.projector, config.grid, channels)
        self.decoder = DECODERS[config.decoder.kind](config.decoder, config.encoder.width, config.grid)
        initialise(self)
        # Built after initialise: the momentum encoder starts as a copy of the online one.
        self.target = TARGETS[config.collapse.kind](self.encoder, config.collapse.target_sees)
        self.compare = build_loss(config.loss)

    def forward(self, patches: Float[Tensor, "b n p"], view: View, similarity_aim: float | Tensor) -> Output:
        """Patch pixels (see `patchify`), the view, and m, the aim of the similarity constraint."""
        latents = self.encoder(patches, view.visible)
        prediction = self.decoder(latents, view)
        target = self.target.encode(self.encoder, patches, view)
        # In bfloat16 the means over patches and channels that the losses subtract would cancel badly.
        with torch.autocast(patches.device.type, enabled=False):
            prediction, target, latents = prediction.float(), target.float(), latents.float()
            term = self.compare(prediction, target)
            loss = term
            if self.config.mask.similarity:
                constraint = similarity_constraint(prediction, latents[:, 1:], similarity_aim)
                loss = term + self.config.mask.similarity * constraint
        return Output(latents, target, prediction, term, loss)

    def patch_features(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b n d"]:
        """Frozen features of whole images, one for each patch."""
        return self.encoder.patch_features(patchify(images, self.config.encoder.patch_size))

    def features(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        """The evaluation feature: the mean of the last block's patch tokens."""
        return self.patch_features(images).mean(dim=1)
