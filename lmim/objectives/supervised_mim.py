"""Classification with masked image modelling as a second task on the same encoder.

The second paper's system (arXiv 2312.00950), as far as its abstract tells: the classification task stays, a
shallow transformer decoder on the encoder predicts the image's tokens at the masked patches of a masked
image, and nothing of the decoder remains at inference (`lmim.interop.to_timm`). What the classifier sees, the
masking ratio, the tokenizer, the decoder's size and the weight are not published in what can be read; they
are our choices, and axes. So is the target: tokens, pixels or latents, whatever `axes/collapse.py` has.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from timm.layers.drop import DropPath
from torch import Tensor

from lmim import config
from lmim.axes.collapse import width_of
from lmim.axes.mask import as_drawn, draw_mask
from lmim.encoder import LayerNorm, View, in_float32, initialise
from lmim.encoder import projector as layers
from lmim.objectives import Draw, Setup
from lmim.objectives.supervised import Supervised
from lmim.variants import BelowOne, Fraction, NonNegative


class SupervisedMIM(Supervised):
    """Cross-entropy with the class of each image, and the loss of what a decoder makes of its hidden patches.

    The classifier sees the full image, only the visible patches, or is taught by both, as `classify` says; of
    the visible ones one pass of the encoder serves both tasks. `mim_weight` is the weight of the second task;
    at 0 it is left out, and the trial is one of `supervised` with the same first weights.
    The classifier reads the mean of the last block's patch tokens or its class token, as `pool` says.
    `smoothing` is the part of a label that is spread over all classes. `mixup` is the alpha of the Beta that
    two images are blended by; 0 is off. `cutmix` is the alpha of the Beta that a box of another image is cut
    by; 0 is off, and with mixup on it is tossed which an image gets. `drop_path` is the part of images for
    which the last block is skipped, rising linearly from 0 at the first. `randaugment` is timm's description
    such as rand-m9-mstd0.5-inc1; empty is off. `erasing` is the part of images of which a box becomes noise.
    What images are changed by, the second task sees too.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        projector: config.Projector,
        collapse: config.Collapse,
        loss: config.Loss,
        mask: config.Mask,
        decoder: config.Decoder,
        classify: Literal["full", "masked", "both"] = "full",
        mim_weight: NonNegative = 1.0,
        pool: Literal["mean", "cls"] = "mean",
        smoothing: BelowOne = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        drop_path: BelowOne = 0.0,
        randaugment: str = "",
        erasing: Fraction = 0.0,
    ) -> None:
        super().__init__(
            setup,
            encoder=encoder,
            pool=pool,
            smoothing=smoothing,
            mixup=mixup,
            cutmix=cutmix,
            drop_path=drop_path,
            randaugment=randaugment,
            erasing=erasing,
        )
        self.mask, self.classify, self.mim_weight = mask, classify, mim_weight
        self.crop_side = self.grid * (encoder.patch_size + mask.gap)
        # What the decoder reads is added here, so that arms of a seed begin with the weights of `supervised`.
        self.encoder.norm = LayerNorm(encoder.width)
        self.encoder.projector = layers(encoder.width, projector.width, projector.depth)
        target = setup.variant("collapse", collapse)
        out_width = width_of(target, self.encoder)
        self.decoder = setup.variant("decoder", decoder)(encoder.width, self.positions, out_width)
        initialise(self.encoder.projector)
        initialise(self.decoder, mask_std=0.02)
        self.target = target(self.encoder)
        for part in self.target.modules():  # what is to be predicted has no noise of its own
            if isinstance(part, DropPath):
                part.drop_prob = 0.0
        self.compare = setup.variant("loss", loss)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """As `supervised`, and then the offsets of the patches' windows and which patches are visible."""
        draw = super().draw(aspect, stream)
        return replace(draw, own=draw.own | draw_mask(len(aspect), self.grid**2, self.mask, stream))

    def scheduled(self, progress: float) -> dict[str, float]:
        """What the target schedules."""
        found: dict[str, float] = self.target.scheduled(progress)
        return found

    def forward(
        self,
        views: Float[Tensor, "b 1 c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, and the parts of it: `classification`, and `mim` before it is weighed."""
        patches, view = as_drawn(self.changed(views[:, 0], own), self.patch_size, self.mask, own)
        full = self.encoder.tokens(patches) if self.classify != "masked" else None
        visible = None
        if self.mim_weight or self.classify != "full":
            visible = self.encoder.tokens(patches, view.visible)
        classified = [full, visible if self.classify != "full" else None]
        losses = [self.classification(tokens, labels, own) for tokens in classified if tokens is not None]
        classification = torch.stack(losses).mean()
        if visible is None or not self.mim_weight:
            return {"loss": classification, "classification": classification}
        mim = self.mim(visible, patches, view)
        return {"loss": classification + self.mim_weight * mim, "classification": classification, "mim": mim}

    def mim(
        self, visible: Float[Tensor, "b t d"], patches: Float[Tensor, "b n p"], view: View
    ) -> Float[Tensor, ""]:
        """The loss of the masked patches, from the visible ones' tokens of the last block."""
        latents = self.encoder.projector(self.encoder.norm(visible))
        prediction = self.decoder(latents, view)
        target = self.target.encode(self.encoder, patches, view)
        with in_float32(patches):
            target = target.float() if target.is_floating_point() else target  # ids of tokens stay whole
            loss: Tensor = self.compare(prediction.float(), target)
            regulariser = self.target.regularise(latents[:, 1:].float(), target)
        return loss if regulariser is None else loss + regulariser

    def after_step(self, scheduled: Mapping[str, float]) -> None:
        """The momentum update that precedes the next step's target pass."""
        self.target.after_step(self.encoder, scheduled)
