"""A vision transformer over any subset of an image's patches, and the projector on top of it.

Latent MIM (arXiv 2407.15837), method section: pre-norm ViT, fixed sin-cos position codes, a class token.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmim import config


class LayerNorm(nn.LayerNorm):
    """The transformers' norm; the projector's keeps torch's own eps of 1e-5."""

    def __init__(self, width: int, **where: Any) -> None:
        super().__init__(width, eps=1e-6, **where)


Positions = Callable[[int], Float[Tensor, "n d"]]
"""Gives the codes of all places that a patch can have, for tokens of so many channels."""


def sincos_positions(grid: int, width: int, end: int | None = None) -> Float[Tensor, "n d"]:
    """Fixed 2-D position codes in row-major order.

    The coordinates run linspace(0, end, grid). Latent MIM's end at `grid`, as in the authors' code, so that
    neighbours are grid / (grid - 1) apart and not 1; MAE's at grid - 1. The first half of the channels
    encodes the column, the second the row; each half is [sin, cos] over width / 4 frequencies
    10000^-(4 i / width).
    """
    axis = torch.linspace(0, grid if end is None else end, grid, dtype=torch.float64)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    angles = [c.reshape(-1, 1) * frequencies for c in (column, row)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


@dataclass(frozen=True)
class View:
    """Row-major indices of the patches that the online encoder sees, and of those it must predict."""

    visible: Int[Tensor, "b v"]
    masked: Int[Tensor, "b m"]
    index: Int[Tensor, " b"] | None = None
    """Which of the training images they are of, for targets that were computed elsewhere."""


def take(tokens: Float[Tensor, "b n d"], indices: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """The tokens of each image that its indices name, in their order."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def in_float32(like: Tensor) -> torch.autocast:
    """No autocast where this tensor lies: losses and heads are small, and sensitive."""
    return torch.autocast("cuda" if like.is_cuda else "cpu", enabled=False)


def projector(width: int, hidden: int, depth: int) -> nn.Sequential:
    """`depth` layers Linear(no bias) -> LayerNorm -> GELU, the last one without the GELU."""
    widths = [width, *[hidden] * (depth - 1), width] if depth else []
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(depth):
        layers[f"linear{i}"] = nn.Linear(widths[i], widths[i + 1], bias=False)
        layers[f"norm{i}"] = nn.LayerNorm(widths[i + 1])
        if i < depth - 1:
            layers[f"act{i}"] = nn.GELU()
    return nn.Sequential(layers)


class Encoder(nn.Module):
    """Patches of `values` numbers in, projected latents out.

    The latents are what the decoder reads and the loss targets. In training a block is skipped for a part of
    the images that rises from 0 at the first to `drop_path` at the last (arXiv 1603.09382).
    """

    positions: Tensor

    def __init__(
        self,
        encoder: config.Encoder,
        projection: config.Projector,
        positions: Positions,
        values: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        width = encoder.width
        self.embed = nn.Linear(values, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", positions(width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                width, encoder.heads, encoder.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm, drop_path=rate
            )
            for rate in torch.linspace(0, drop_path, encoder.depth, device="cpu").tolist()
        )
        self.norm = LayerNorm(width)
        self.projector = projector(width, projection.width, projection.depth)

    def embedded(
        self,
        patches: Float[Tensor, "b n p"],
        indices: Int[Tensor, "b k"] | None = None,
        placed: int | None = None,
        rows: int | None = None,
    ) -> Float[Tensor, "b t d"]:
        """What the first block reads of the patches named by `indices` (all when None), class token first.

        Patches after the first `placed` of them are not told where they lie. `rows` is how many of them there
        are in images that may be of another size than in training, all of whose patches are seen.
        """
        table = self.positions if rows is None else self.spread(rows, patches.shape[1] // rows)
        positions = table.expand(len(patches), -1, -1)
        if indices is not None:
            patches, positions = take(patches, indices), take(positions, indices)
        if placed is not None:
            positions = F.pad(positions[:, :placed], (0, 0, 0, positions.shape[1] - placed))
        x: Tensor = self.embed(patches) + positions
        return torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)

    def spread(self, rows: int, columns: int) -> Float[Tensor, "n d"]:
        """The codes of so many rows of patches: where they are not those of training, spread out evenly."""
        grid = math.isqrt(len(self.positions))
        if (rows, columns) == (grid, grid):
            return self.positions
        found: Tensor = resample_abs_pos_embed(self.positions[None], [rows, columns], num_prefix_tokens=0)
        return found[0]

    def tokens(
        self,
        patches: Float[Tensor, "b n p"],
        indices: Int[Tensor, "b k"] | None = None,
        placed: int | None = None,
        layer: int = 0,
        rows: int | None = None,
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens, the last one's for 0; the other arguments are those of `embedded`."""
        x = self.embedded(patches, indices, placed, rows)
        for block in self.blocks[: layer or None]:
            x = block(x)
        return x

    def forward(
        self, patches: Float[Tensor, "b n p"], indices: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Projected latents, the class token's first."""
        latents: Tensor = self.projector(self.norm(self.tokens(patches, indices)))
        return latents

    def evaluated(
        self, patches: Float[Tensor, "b n p"], layer: int = 0, norm: bool = False, rows: int | None = None
    ) -> Float[Tensor, "b t d"]:
        """What evaluation sees: a block's tokens, class token first, before the final norm or after it."""
        tokens = self.tokens(patches, layer=layer, rows=rows)
        normed: Tensor = self.norm(tokens) if norm else tokens
        return normed

    def patch_features(self, patches: Float[Tensor, "b n p"], layer: int = 0) -> Float[Tensor, "b n d"]:
        """The same of the patches alone, without norm and projector."""
        return self.evaluated(patches, layer)[:, 1:]


def recompute(module: nn.Module) -> None:
    """Keep no activations inside the blocks of a module's transformers: backward runs each block once more.

    Activation checkpointing (arXiv 1604.06174). What a block draws at random it draws again, so that every
    digit stays. Blocks are what a part lists as its `blocks`, of the user's own parts too.
    """
    for part in module.modules():
        blocks = getattr(part, "blocks", None)
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def initialise(module: nn.Module, mask_std: float = 0.0) -> None:
    """Xavier-uniform linear weights, zero biases, class tokens of std 0.02, mask tokens of std `mask_std`.

    Mask tokens are zero in Latent MIM, and of std 0.02 in MAE.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        for key, parameter in part.named_parameters(name, recurse=False):
            if key.endswith("cls_token"):
                nn.init.normal_(parameter, std=0.02)
            elif key.endswith("mask_token"):
                nn.init.normal_(parameter, std=mask_std) if mask_std else nn.init.zeros_(parameter)
