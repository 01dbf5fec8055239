"""Masked image modelling block by block: no gradient crosses from one block of layers into the one before.

BIM (arXiv 2311.17218), as far as its abstract tells: the layers are cut into blocks, each with a task and a
back-propagation of its own, so that peak memory is that of one block. The number of blocks, the local
decoders, the masks and all figures are not found: that a block has a decoder and a norm of its own, and all
blocks the same mask, is our choice. With one block it is `pixel_mim`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmim import config
from lmim.axes.mask import as_drawn, draw_mask
from lmim.encoder import Encoder, LayerNorm, in_float32, initialise, sincos_positions, take
from lmim.objectives import Draw, Objective, Setup, encoded
from lmim.variants import PositiveInt


class _Computed(torch.autograd.Function):
    """A loss whose gradients are computed already: backward hands them out, times what comes from above."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(above[0] * gradient for gradient in ctx.saved_tensors)


class BlockMIM(Objective):
    """The encoder's layers in `blocks` as even as can be, each learning from its own reconstruction."""

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        loss: config.Loss,
        mask: config.Mask,
        decoder: config.Decoder,
        blocks: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.setup, self.mask, self.patch_size, self.count = setup, mask, encoder.patch_size, blocks
        self.grid = setup.side // encoder.patch_size
        self.crop_side = self.grid * (encoder.patch_size + mask.gap)
        positions = partial(sincos_positions, self.grid, end=self.grid - 1)
        values = encoder.patch_size**2 * setup.channels
        self.encoder = Encoder(encoder, config.Projector(depth=0), positions, values)
        make = setup.variant("decoder", decoder)
        self.decoders = nn.ModuleList(make(encoder.width, positions, values) for _ in range(blocks))
        # the last block has the encoder's own
        self.norms = nn.ModuleList(LayerNorm(encoder.width) for _ in range(blocks - 1))
        initialise(self, mask_std=0.02)
        self.compare = setup.variant("loss", loss)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """One view of each image, the offsets of its patches' windows, and which patches are visible."""
        draw = self.setup.views(1, aspect, stream)
        return replace(draw, own=draw_mask(len(aspect), self.grid**2, self.mask, stream))

    def block(self, number: int) -> nn.ModuleList:
        """The modules that learn from the loss of a block, counted from 0: its layers, its norm, its decoder.

        The embedding is the first block's.
        """
        depth = len(self.encoder.blocks)
        layers = self.encoder.blocks[depth * number // self.count : depth * (number + 1) // self.count]
        norm = [*self.norms, self.encoder.norm][number]
        return nn.ModuleList([nn.Sequential(*layers), norm, self.decoders[number]])

    def forward(
        self,
        views: Float[Tensor, "b 1 c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, the sum over the blocks, and that of each block, `block1` the first.

        A block's gradients are computed before the next one runs, and its activations are gone by then.
        """
        patches, view = as_drawn(views[:, 0], self.patch_size, self.mask, own)
        target = take(patches, view.masked).float()
        x = self.encoder.embedded(patches, view.visible)
        losses: list[Tensor] = []
        for number in range(self.count):
            layers, norm, decoder = parts = self.block(number)
            x = layers(x)
            prediction = decoder(norm(x), view)
            with in_float32(views):
                loss = self.compare(prediction.float(), target)
            ours = [*parts.parameters()]
            if number == 0:
                ours += [*self.encoder.embed.parameters(), self.encoder.cls_token]
            gradients = torch.autograd.grad(loss, ours, allow_unused=True, materialize_grads=True)
            losses.append(_Computed.apply(loss.detach(), gradients, *ours))
            x = x.detach()
            del prediction, loss
        each = {f"block{number}": loss for number, loss in enumerate(losses, 1)}
        return {"loss": torch.stack(losses).sum(), **each}

    def backbone(self) -> Encoder:
        """What is exported, and fine-tuned."""
        return self.encoder

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens of the encoder, the class token's first."""
        return encoded(self.encoder, images, self.patch_size, layer, norm)
