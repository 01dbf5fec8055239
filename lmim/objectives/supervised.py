"""Supervised classification: a vision transformer is told the class of each image.

The model is timm's VisionTransformer with MAE's fixed position codes (`lmim.interop.to_timm`): a norm and a
linear layer on the pooled tokens of the last block. So are its augmentations and regularisers, all off unless
they are set: mixup (arXiv 1710.09412), CutMix (1905.04899), RandAugment (1909.13719), random erasing
(1708.04896), label smoothing (1512.00567) and drop path (1603.09382).
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor, nn

from lmim import config
from lmim.axes.mask import patchify
from lmim.encoder import Encoder, LayerNorm, initialise, sincos_positions
from lmim.objectives import Draw, Objective, Setup, encoded
from lmim.variants import BelowOne, Fraction, NonNegative

TRIES = 10
"""Boxes that are drawn for an erasure; where none fits, nothing is erased."""


class Supervised(Objective):
    """Cross-entropy with the class of each image.

    The classifier reads the mean of the last block's patch tokens or its class token, as `pool` says.
    `smoothing` is the part of a label that is spread over all classes. `mixup` is the alpha of the Beta that
    two images are blended by; 0 is off. `cutmix` is the alpha of the Beta that a box of another image is cut
    by; 0 is off, and with mixup on it is tossed which an image gets. `drop_path` is the part of images for
    which the last block is skipped, rising linearly from 0 at the first. `randaugment` is timm's description
    such as rand-m9-mstd0.5-inc1; empty is off. `erasing` is the part of images of which a box becomes noise.
    `positions` says whose codes tell where a patch lies: mae's are a unit apart, latent_mim's a little more.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        pool: Literal["mean", "cls"] = "mean",
        smoothing: BelowOne = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        drop_path: BelowOne = 0.0,
        randaugment: str = "",
        erasing: Fraction = 0.0,
        positions: Literal["mae", "latent_mim"] = "mae",
    ) -> None:
        super().__init__()
        self.setup, self.shape, self.patch_size = setup, encoder, encoder.patch_size
        self.pool, self.smoothing = pool, smoothing
        self.mixup, self.cutmix, self.erasing = mixup, cutmix, erasing
        self.grid = setup.side // encoder.patch_size
        self.crop_side = setup.side
        self.augments = bool(randaugment)
        self.randaugment = rand_augment(randaugment, setup.side) if randaugment else None
        last = self.grid - 1 if positions == "mae" else self.grid
        self.positions = partial(sincos_positions, self.grid, end=last)
        values = encoder.patch_size**2 * setup.channels
        self.encoder = Encoder(encoder, config.Projector(depth=0), self.positions, values, drop_path)
        del self.encoder.norm  # the classifier has its own, on what is pooled
        self.norm = LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, setup.classes)
        initialise(self)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """One view of each image, and how it is changed."""
        draw, images = self.setup.views(1, aspect, stream), len(aspect)
        own: dict[str, Tensor] = {}
        seeds = torch.randint(2**32, (images,), generator=stream)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=stream)))
        if self.augments:
            own["seed"] = seeds
        if self.erasing:
            own["erased"] = draw_erased(images, self.crop_side, self.erasing, rng)
        if self.mixup or self.cutmix:
            own |= draw_mix(images, self.crop_side, self.mixup, self.cutmix, rng)
        return replace(draw, own=own)

    def augment(
        self, views: UInt8[Tensor, "b v c s s"], own: Mapping[str, Tensor]
    ) -> UInt8[Tensor, "b v c s s"]:
        """RandAugment of each view, by the seed of its image."""
        assert self.randaugment is not None
        with global_generators() as seed:
            changed = []
            for image, number in zip(views, own["seed"].tolist(), strict=True):
                seed(number)
                changed.append(torch.stack([augmented(view, self.randaugment) for view in image]))
        return torch.stack(changed)

    def changed(self, views: Float[Tensor, "b c s s"], own: Mapping[str, Tensor]) -> Float[Tensor, "b c s s"]:
        """Views erased and mixed as they were drawn."""
        side = views.shape[-1]
        if "erased" in own:
            views = torch.where(inside(own["erased"], side), torch.randn_like(views), views)
        if "kept" in own:
            partners = views.flip(0)
            blended = torch.lerp(partners, views, own["blend"].view(-1, 1, 1, 1))
            views = torch.where(inside(own["pasted"], side), partners, blended)
        return views

    def forward(
        self,
        views: Float[Tensor, "b 1 c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, the cross-entropy."""
        patches = patchify(self.changed(views[:, 0], own), self.patch_size)
        return {"loss": self.classification(self.encoder.tokens(patches), labels, own)}

    def classification(
        self, tokens: Float[Tensor, "b t d"], labels: Int[Tensor, " b"], own: Mapping[str, Tensor]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the last block's tokens, the class token's first; of mixed images with both
        labels, in which it is linear.
        """
        logits = self.classifier(tokens).float()
        if "kept" not in own:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        theirs, ours = (
            F.cross_entropy(logits, label, label_smoothing=self.smoothing, reduction="none")
            for label in (labels.flip(0), labels)
        )
        return torch.lerp(theirs, ours, own["kept"]).mean()

    def classifier(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b k"]:
        """Logits of the last block's tokens, the class token's first."""
        logits: Tensor = self.head(self.norm(self.pooled(tokens)))
        return logits

    def pooled(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        """What the classifier reads."""
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(dim=1)

    def logits(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b k"]:
        """Of whole images."""
        return self.classifier(self.encoder.tokens(patchify(images, self.patch_size)))

    def backbone(self) -> Encoder:
        """What is exported, and fine-tuned."""
        return self.encoder

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens of the encoder, the class token's first; the final norm is the classifier's."""
        tokens = encoded(self.encoder, images, self.patch_size, layer)
        normed: Tensor = self.norm(tokens) if norm else tokens
        return normed

    def features(self, images: Float[Tensor, "b c s s"], layer: int = 0) -> Float[Tensor, "b d"]:
        """What the classifier reads, before its norm."""
        return self.pooled(self.tokens(images, layer))


# ------------------------------------------------------------------------------ mixing and erasing


def draw_mix(
    images: int, side: int, mixup: float, cutmix: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """How each image is mixed with the one as far from the other end of its micro-batch, as timm's
    `Mixup(mode="elem")` draws it.

    `kept` is the weight of its own label, `blend` of its own pixels, and `pasted` the box (top, bottom, left,
    right) that is the other's: empty with mixup.
    """
    cuts = rng.random(images) < 0.5 if mixup and cutmix else np.full(images, not mixup)
    drawn = np.where(cuts, *(rng.beta(alpha or 1.0, alpha or 1.0, images) for alpha in (cutmix, mixup)))
    half = (side * np.sqrt(1 - drawn) * cuts).astype(int)[:, None] // 2
    centre = rng.integers(side, size=(images, 2))
    low, high = (centre - half).clip(0, side), (centre + half).clip(0, side)
    pasted = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    kept = np.where(cuts, 1 - (high - low).prod(axis=1) / side**2, drawn)
    return {
        "kept": torch.from_numpy(kept).float(),
        "blend": torch.from_numpy(np.where(cuts, 1.0, drawn)).float(),
        "pasted": torch.from_numpy(pasted),
    }


def draw_erased(images: int, side: int, part: float, rng: np.random.Generator) -> Int[Tensor, "b 4"]:
    """A box (top, bottom, left, right) for `part` of the images, as timm's `RandomErasing` draws it: 2 % to a
    third of the image, its ratio 0.3 to 1 / 0.3; empty for the others.
    """
    area = rng.uniform(0.02, 1 / 3, (images, TRIES)) * side**2
    ratio = np.exp(rng.uniform(np.log(0.3), -np.log(0.3), (images, TRIES)))
    sides = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=2).round().astype(int)
    fits = np.all(sides < side, axis=2)
    chosen = sides[np.arange(images), np.argmax(fits, axis=1)]
    chosen = chosen * (np.any(fits, axis=1) & (rng.random(images) < part))[:, None]
    low = rng.integers(side - chosen + 1)
    high = low + chosen
    return torch.from_numpy(np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1))


def inside(boxes: Int[Tensor, "b 4"], side: int) -> Bool[Tensor, "b 1 s s"]:
    """Which pixels lie in the box (top, bottom, left, right) of their image.

    >>> inside(torch.tensor([[0, 1, 1, 3]]), 3).int().tolist()
    [[[[0, 1, 1], [0, 0, 0], [0, 0, 0]]]]
    """
    steps = torch.arange(side, device=boxes.device)
    top, bottom, left, right = boxes[..., None].unbind(1)
    rows, columns = (steps >= top) & (steps < bottom), (steps >= left) & (steps < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


# ------------------------------------------------------------------------------ RandAugment


def rand_augment(description: str, side: int) -> RandAugment:
    """timm's transform, moving an image as far as timm's training does; grey fills what is left bare."""
    how = {"translate_const": int(0.45 * side), "img_mean": (128, 128, 128)}
    found: RandAugment = rand_augment_transform(description, how)
    for operation in found.ops:
        if operation.name == "PosterizeIncreasing":
            operation.level_fn = _bits
    return found


def _bits(level: int | float, how: Mapping[str, Any]) -> tuple[int]:
    """What posterising leaves of a pixel: 4 bits down to 1, for Pillow refuses the 0 of timm's last level."""
    return (max(1, 4 - int(level / 10 * 4)),)


def augmented(view: UInt8[Tensor, "c s s"], transform: RandAugment) -> UInt8[Tensor, "c s s"]:
    """A view through a transform of PIL's images; a grey one goes as a coloured one, and comes back grey."""
    image = Image.fromarray(view.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    changed = torch.from_numpy(np.array(transform(image))).permute(2, 0, 1)
    return changed[: len(view)]


@contextmanager
def global_generators() -> Iterator[Callable[[int], None]]:
    """The generators of `random` and numpy, which timm's transforms draw from, to be seeded; what they would
    have drawn afterwards they still draw.
    """
    states = random.getstate(), np.random.get_state()
    try:
        yield _seed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
