"""MAE with tasks about the image: told from others by another view of it, and where its patches lie.

Two systems that are both called CMAE, and what lies between them, by settings:

- Improvements to Self-Supervised Representation Learning for MIM (arXiv 2205.10546), the defaults: MAE with a
  smaller decoder; contrast and token positions as tasks of the encoder. Only its abstract can be read, so the
  losses, their weights and what is contrasted are our choice, and so is that both views are cropped by
  ContrastiveCrop, where that is on, after features before the final norm.
- Contrastive Masked Autoencoders are Stronger Vision Learners (arXiv 2207.13532), by its authors' code
  (ZhichengHuang/CMAE): the arm `cmae_huang` of ablations/contrastive_mim.yaml.

Negatives are the other images of the micro-batch, and not of the whole batch as there: here a micro-batch has
a loss of its own. The statistics of the heads' batch normalisation are the micro-batch's too; none are kept,
as heads are dropped after training. So nothing depends on how many processes share a step.
"""

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lmim import config
from lmim.axes.decoder import SelfAttentionDecoder
from lmim.axes.mask import patchify, sample_offsets, sample_view
from lmim.data.colour import change_colours, draw_colours
from lmim.data.contrastive_crop import centred, object_boxes
from lmim.encoder import Encoder, View, in_float32, initialise, sincos_positions, take
from lmim.objectives import Draw, Objective, Setup
from lmim.objectives.pixel_mim import PixelMIM
from lmim.variants import BelowOne, Count, Fraction, NonNegative, Positive, PositiveInt

EMBEDDING = 256
"""Channels in which images are contrasted."""
SHARED = ("width", "heads", "mlp_ratio")
"""What the second decoder has of the first."""


def info_nce(
    queries: Float[Tensor, "b e"], keys: Float[Tensor, "b e"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE of images: which of the keys is of the same image? Times twice the temperature.

    >>> round(info_nce(torch.ones(8, 4), torch.ones(8, 4), 0.5).item(), 4)  # log 8: nothing to tell
    2.0794
    """
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(keys), device=keys.device)) * (2 * temperature)


def head(width: int, hidden: int) -> nn.Sequential:
    """Linear, batch normalisation, ReLU, Linear without a bias, to the channels of the contrast."""
    norm = nn.BatchNorm1d(hidden, track_running_stats=False)
    return nn.Sequential(nn.Linear(width, hidden), norm, nn.ReLU(), nn.Linear(hidden, EMBEDDING, bias=False))


def shifted(
    boxes: Float[Tensor, "b 4"], pixels: Int[Tensor, "b 2"], side: int, most: int
) -> Float[Tensor, "b 2 4"]:
    """Two windows of `side` pixels in each box, which has `most` more: at its corner, and moved from there.

    They are moved by so many `pixels` across and down.
    """
    corner, size = boxes[:, :2], boxes[:, 2:] / (side + most)
    one, other = (torch.cat([corner + size * by, size * side], dim=1) for by in (0, pixels))
    return torch.stack([one, other], dim=1)


def patches_of(view: View, grid: int, cell: int) -> View:
    """The patches of a view of cells, `cell` x `cell` patches each."""
    patches = torch.arange(grid**2).view(grid // cell, cell, grid // cell, cell)
    inside = patches.transpose(1, 2).reshape(-1, cell**2)
    return View(inside[view.visible].flatten(1), inside[view.masked].flatten(1))


class Objects(nn.Module):
    """Where the training images' objects are, on the host and in the checkpoint; none until looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = torch.zeros(0, 4)

    def get_extra_state(self) -> Tensor:
        """No buffer, as their number is known to the data alone."""
        return self.boxes

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint's."""
        self.boxes = state.cpu()


class ContrastiveMIM(Objective):
    """MAE, with images told apart by another view of them, and patches put in their place.

    `contrast` weighs the contrast with the other view, which is whole (0: without). `temperature` divides the
    cosines of the contrast. `position` weighs the task to tell where patches lie whose position codes are
    withheld from the encoder (0: without). `withheld` is the part of the visible patches of which they are.
    `shift` is the part of its side by which the other view is moved at most, as a window of the same crop (0:
    it is a crop of its own). With `colour` the colours of the other view are changed. `momentum` is that of a
    copy of encoder and projector, which sees the other view without gradient; a second head predicts its
    embedding (0: the online weights see it, with gradient). `feature_depth` is that of a second decoder,
    whose outputs stand for the image in the contrast (0: the encoder's do). `cell` is the side in patches of
    what is masked as one. `crop_alpha` is the a of ContrastiveCrop's Beta(a, a), by which crops lie about the
    image's object (0: anywhere). `crop_threshold` says from which part of the largest feature on a patch is
    the object's. `crop_every` is the number of epochs after which objects are looked for, first and again;
    until then crops lie anywhere.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        loss: config.Loss,
        mask: config.Mask,
        decoder: config.Decoder,
        contrast: NonNegative = 1.0,
        temperature: Positive = 0.07,
        position: NonNegative = 0.1,
        withheld: Fraction = 0.5,
        shift: BelowOne = 0.0,
        colour: bool = False,
        momentum: BelowOne = 0.0,
        feature_depth: Count = 0,
        cell: PositiveInt = 1,
        crop_alpha: NonNegative = 0.0,
        crop_threshold: Fraction = 0.1,
        crop_every: PositiveInt = 20,
    ) -> None:
        super().__init__()
        # MAE's weights are drawn first, and are pixel_mim's of the same seed
        self.mae = PixelMIM(setup, encoder=encoder, loss=loss, mask=mask, decoder=decoder)
        self.grid, self.crop_side, width = self.mae.grid, self.mae.crop_side, encoder.width
        self.patch_size = encoder.patch_size
        self.setup, self.mask, self.cell, self.momentum = setup, mask, cell, momentum
        self.contrast, self.temperature, self.position = contrast, temperature, position
        self.augments = bool(colour and contrast)
        self.shift = max(1, round(shift * self.crop_side)) if shift and contrast else 0
        self.crop_alpha, self.crop_threshold = crop_alpha, crop_threshold
        self.seeks_every = crop_every if crop_alpha else 0
        self.objects = Objects() if crop_alpha else None
        visible = mask.visible((self.grid // cell) ** 2) * cell**2
        self.placed = visible - round(withheld * visible) if position else None
        self.parts = nn.ModuleDict()
        if contrast:
            self.parts["project"] = head(width, 2 * width)
            self.parts["predict"] = head(EMBEDDING, 2 * width) if momentum else nn.Identity()
        if contrast and feature_depth:
            places = partial(sincos_positions, self.grid, end=self.grid - 1)
            shape = {name: of for name, of in decoder.settings().items() if name in SHARED}
            self.parts["decode"] = SelfAttentionDecoder(
                width, places, width, **shape | {"cues": False, "depth": feature_depth}
            )
        if position:
            self.parts["locate"] = nn.Linear(width, self.grid**2)
        initialise(self.parts, mask_std=0.02)
        # made after initialise: the copy starts as the online encoder and projector
        followed = [self.mae.encoder, self.parts["project"]] if contrast and momentum else []
        self.copies = copy.deepcopy(nn.ModuleList(followed)).requires_grad_(False)

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """What pixel_mim draws; then the other view, and its colours."""
        images, cells = len(aspect), (self.grid // self.cell) ** 2
        draw = self.setup.views(1, aspect, stream)
        offsets = sample_offsets(images, self.grid**2, self.mask.gap, stream)
        view = sample_view(images, cells, self.mask.visible(cells), stream)
        view = patches_of(view, self.grid, self.cell)
        own = {"offsets": offsets, "visible": view.visible, "masked": view.masked}
        boxes, mirrored = draw.boxes, draw.mirrored
        if self.shift:
            by = torch.randint(self.shift, (images, 2), generator=stream)
            boxes = shifted(boxes[:, 0], by, self.crop_side, self.shift)
            mirrored = mirrored.expand(-1, 2)
        elif self.contrast:
            other = self.setup.views(1, aspect, stream)
            boxes, mirrored = (
                torch.cat(parts, dim=1) for parts in ((boxes, other.boxes), (mirrored, other.mirrored))
            )
        own |= draw_colours(images, stream) if self.augments else {}
        if self.objects is not None:
            crops = 1 if self.shift else boxes.shape[1]
            own["places"] = torch.rand(images, crops, 2, generator=stream)
        return Draw(boxes, mirrored, own)

    def seek(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 4"]:
        """The boxes of what the images' patch features mark."""
        return object_boxes(self.patch_features(images), self.crop_threshold)

    def sought(self, found: Float[Tensor, "n 4"]) -> None:
        assert self.objects is not None
        self.objects.boxes = found

    def place(self, draw: Draw, index: Int[Tensor, " b"]) -> Draw:
        """The crops about the images' objects, once these are known; both windows of a crop move as one."""
        if self.objects is None or not len(self.objects.boxes):
            return draw
        places, boxes = draw.own["places"], draw.boxes
        grown = 1 + self.shift / self.crop_side  # a window's crop is larger than it
        crops = boxes[:, : places.shape[1]] * torch.tensor([1.0, 1.0, grown, grown])
        # their sizes stay
        by = centred(crops, self.objects.boxes[index], places, self.crop_alpha) - crops
        return replace(draw, boxes=boxes + by)

    def augment(
        self, views: UInt8[Tensor, "b v c s s"], own: Mapping[str, Tensor]
    ) -> UInt8[Tensor, "b v c s s"]:
        """The other view in other colours."""
        return torch.stack([views[:, 0], change_colours(views[:, 1], own)], dim=1)

    def forward(
        self,
        views: Float[Tensor, "b v c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, and what it is the weighted sum of."""
        encoder, view = self.mae.encoder, View(own["visible"], own["masked"])
        patches, *others = (
            patchify(one, self.mae.patch_size, own["offsets"], self.mask.gap) for one in views.unbind(1)
        )
        tokens = encoder.tokens(patches, view.visible, self.placed)
        latents = encoder.projector(encoder.norm(tokens))
        prediction = self.mae.decoder(latents, view)
        with in_float32(views):
            loss = self.mae.compare(prediction.float(), take(patches, view.masked).float())
        found = {"reconstruction": loss}
        if self.contrast:
            query, key = self.query(tokens, latents, view), self.key(others[0])
            found["contrast"] = info_nce(query, key, self.temperature)
            loss = loss + self.contrast * found["contrast"]
        if self.position:
            found["position"] = self.misplaced(latents, view)
            loss = loss + self.position * found["position"]
        return {"loss": loss, **found}

    def query(
        self, tokens: Float[Tensor, "b t d"], latents: Float[Tensor, "b t d"], view: View
    ) -> Float[Tensor, "b e"]:
        """The embedding of the masked view: of its tokens, or of what the second decoder makes of them."""
        seen = tokens[:, 1:]
        if "decode" in self.parts:
            decode = self.parts["decode"]
            assert isinstance(decode, SelfAttentionDecoder)
            seen = decode.everywhere(latents, view)
        with in_float32(seen):
            found: Tensor = self.parts["predict"](self.parts["project"](seen.float().mean(dim=1)))
        return found

    def key(self, patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b e"]:
        """The embedding of the other view, whole, by the copy if there is one, without the final norm."""
        encoder, project = self.copies or (self.mae.encoder, self.parts["project"])
        assert isinstance(encoder, Encoder)
        with torch.no_grad() if self.momentum else contextlib.nullcontext():
            seen = encoder.patch_features(patches)
            with in_float32(seen):
                found: Tensor = project(seen.float().mean(dim=1))
        return found

    def misplaced(self, latents: Float[Tensor, "b t d"], view: View) -> Float[Tensor, ""]:
        """Cross-entropy over all places of the patches whose codes were withheld."""
        places = view.visible[:, self.placed :]
        with in_float32(latents):
            logits = self.parts["locate"](latents[:, -places.shape[1] :].float())
            return F.cross_entropy(logits.flatten(0, 1), places.flatten())

    @torch.no_grad()
    def after_step(self, scheduled: Mapping[str, float]) -> None:
        """copy <- momentum * copy + (1 - momentum) * online, of encoder and projector."""
        if self.copies:
            online: list[Tensor] = [*self.mae.encoder.parameters(), *self.parts["project"].parameters()]
            torch._foreach_lerp_(list(self.copies.parameters()), online, 1 - self.momentum)

    def backbone(self) -> Encoder:
        """What is exported, and fine-tuned."""
        return self.mae.encoder

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens of the encoder, the class token's first."""
        return self.mae.tokens(images, layer, norm)
