"""Latent masked image modelling: predict the latents of the patches that are hidden.

Towards Latent Masked Image Modeling for Self-Supervised Visual Representation Learning
(arXiv 2407.15837, ECCV 2024). The loss is a pure function of the modules, the patches, the view and
the schedules' values; the trainer owns loop, device and precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmim import config
from lmim.axes.collapse import width_of
from lmim.axes.mask import as_drawn, draw_mask, similarity, similarity_constraint
from lmim.encoder import Encoder, View, in_float32, initialise, sincos_positions
from lmim.objectives import Draw, Objective, Setup, encoded
from lmim.schedules import cosine_decay


@dataclass(frozen=True)
class Output:
    """One forward pass. `loss` is what is minimised: `term` plus similarity constraint and regulariser."""

    latents: Float[Tensor, "b t d"]
    target: Float[Tensor, "b m o"] | Int[Tensor, "b m"]
    prediction: Float[Tensor, "b m o"]
    term: Float[Tensor, ""]
    loss: Float[Tensor, ""]
    regulariser: Float[Tensor, ""] | None = None
    """What the target adds to the loss, if anything."""


class LatentMIM(Objective):
    """Online encoder, target and decoder, as the config's four axes choose them."""

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        projector: config.Projector,
        collapse: config.Collapse,
        loss: config.Loss,
        mask: config.LatentMask,
        decoder: config.Decoder,
    ) -> None:
        super().__init__()
        self.setup, self.mask, self.patch_size = setup, mask, encoder.patch_size
        self.grid = setup.side // encoder.patch_size
        self.crop_side = self.grid * (encoder.patch_size + mask.gap)
        positions = partial(sincos_positions, self.grid)
        self.encoder = Encoder(encoder, projector, positions, encoder.patch_size**2 * setup.channels)
        target = setup.variant("collapse", collapse)
        out_width = width_of(target, self.encoder)
        self.decoder = setup.variant("decoder", decoder)(encoder.width, positions, out_width)
        initialise(self)
        # Built after initialise: the momentum encoder starts as a copy of the online one.
        self.target = target(self.encoder)
        self.compare = setup.variant("loss", loss)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """One view of each image, the offsets of its patches' windows, and which patches are visible."""
        draw = self.setup.views(1, aspect, stream)
        return replace(draw, own=draw_mask(len(aspect), self.grid**2, self.mask, stream))

    def scheduled(self, progress: float) -> dict[str, float]:
        """The aim of the similarity constraint, and what the target schedules."""
        mask = self.mask
        aim = cosine_decay(progress, mask.similarity_start, mask.similarity_end)
        return {"similarity_aim": aim, **self.target.scheduled(progress)}

    def forward(
        self,
        views: Float[Tensor, "b 1 c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, the `term` of it that compares prediction and target, and its `regulariser` if any.

        And how alike an image's predictions are, its targets, and its visible latents: a collapse of one of
        them may hide behind the others.
        """
        patches, view = as_drawn(views[:, 0], self.patch_size, self.mask, own)
        output = self.output(patches, view, scheduled["similarity_aim"])
        added = {} if output.regulariser is None else {"regulariser": output.regulariser}
        parts = {"prediction": output.prediction, "target": output.target, "visible": output.latents[:, 1:]}
        with torch.no_grad(), in_float32(views):
            added |= {
                f"{name}_similarity": similarity(part)
                for name, part in parts.items()
                if part.is_floating_point()  # ids of tokens are no vectors
            }
        return {"loss": output.loss, "term": output.term, **added}

    def output(self, patches: Float[Tensor, "b n p"], view: View, similarity_aim: float | Tensor) -> Output:
        """Patch pixels (see `patchify`), the view, and m, the aim of the similarity constraint."""
        latents = self.encoder(patches, view.visible)
        prediction = self.decoder(latents, view)
        target = self.target.encode(self.encoder, patches, view)
        # In bfloat16 the means over patches and channels that the losses subtract would cancel badly.
        with in_float32(patches):
            prediction, latents = prediction.float(), latents.float()
            target = target.float() if target.is_floating_point() else target  # ids of tokens stay whole
            term = self.compare(prediction, target)
            loss = term
            if self.mask.similarity:
                constraint = similarity_constraint(prediction, latents[:, 1:], similarity_aim)
                loss = term + self.mask.similarity * constraint
            regulariser = self.target.regularise(latents[:, 1:], target)
            if regulariser is not None:
                loss = loss + regulariser
        return Output(latents, target, prediction, term, loss, regulariser)

    def after_step(self, scheduled: Mapping[str, float]) -> None:
        """The momentum update that precedes the next step's target pass."""
        self.target.after_step(self.encoder, scheduled)

    def backbone(self) -> Encoder:
        """What is exported, and fine-tuned."""
        return self.encoder

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens of the encoder, the class token's first."""
        return encoded(self.encoder, images, self.patch_size, layer, norm)
