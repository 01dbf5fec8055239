"""Masked pixels of clips and of their frames, and contrast within and across the two.

CrossVideoMAE (arXiv 2502.07811), as far as it could be read: a video branch and an image branch on frames of
the same clips, reconstruction by both, correspondence within and across the modalities at the level of the
video and of the frame. What was not found is our choice: that all terms weigh the same, the temperature, the
number of frames, the heads; that the image branch is trained from scratch beside the other and not
pre-trained; one encoder for each branch, of one size, and no weight that they share. Raw and augmented clip
are two crops.

The video branch is VideoMAE's (arXiv 2203.12602): tubes through a few frames, one spatial mask for all times,
a target standardised over each tube and channel. The image branch is MAE's (arXiv 2111.06377). Codes of a
tube's place are those of a patch plus those of its time, fixed where mae_st (arXiv 2205.09113) learns them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmim import config
from lmim.axes.loss import norm_mse
from lmim.axes.mask import draw_mask, patchify
from lmim.encoder import Encoder, Positions, View, in_float32, initialise, projector, sincos_positions, take
from lmim.objectives import Draw, Objective, Setup, encoded
from lmim.variants import Fraction, NonNegative, Positive, PositiveInt

PARTS = (("video", 0), ("image", 0), ("video", 1), ("image", 1))
"""Of which branch the views of a step are, in their order; 1 are those that are contrasted alone."""


class VideoMIM(Objective):
    """Two masked autoencoders, one of clips and one of frames, held together by contrast.

    `branches` says which of the two there are. A step sees `frames` consecutive frames of each clip. A tube
    goes through `tube` of them. Of a clip's tubes the part `video_ratio` is hidden, of an image's patches
    mask.ratio. Both reconstructions weigh one. `within_video` weighs the contrast of two crops of a clip.
    `within_image` weighs that of two crops of a frame. `across_video` weighs that of a clip and a frame of
    it. `across_frame` weighs that of the frame and of the clip at its time. All are NT-Xent at the one
    `temperature`, and clip and frame are never of one crop. What only a term of weight 0 needs is neither
    read nor computed.

    Evaluation sees the image encoder; where there is none, the video encoder of the image as a still tube at
    the first time, so that all arms are judged on the same frames, by as many patch features.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        encoder: config.Encoder,
        projector: config.Projector,
        mask: config.Mask,
        decoder: config.Decoder,
        branches: Literal["both", "video", "image"] = "both",
        frames: PositiveInt = 8,
        tube: PositiveInt = 2,
        video_ratio: Fraction = 0.9,
        within_video: NonNegative = 1.0,
        within_image: NonNegative = 1.0,
        across_video: NonNegative = 1.0,
        across_frame: NonNegative = 1.0,
        temperature: Positive = 0.1,
    ) -> None:
        super().__init__()
        self.setup, self.patch_size, self.gap = setup, encoder.patch_size, mask.gap
        self.frames, self.tube, self.temperature = frames, tube, temperature
        self.grid = setup.side // encoder.patch_size
        self.crop_side = self.grid * (encoder.patch_size + mask.gap)
        self.masks = {"video": mask.model_copy(update={"ratio": video_ratio}), "image": mask}
        values = encoder.patch_size**2 * setup.channels
        make = partial(Branch, setup, encoder, projector, decoder)
        # both are made, whichever is kept, so that arms with either begin with the same weights
        both = {
            "image": make(partial(sincos_positions, self.grid, end=self.grid - 1), values),
            "video": make(partial(tube_positions, frames // tube, self.grid), tube * values),
        }
        kept = {kind: branch for kind, branch in both.items() if branches in ("both", kind)}
        self.branches = nn.ModuleDict(kept)
        weights = {
            "within_video": within_video if "video" in kept else 0.0,
            "within_image": within_image if "image" in kept else 0.0,
            "across_video": across_video if branches == "both" else 0.0,
            "across_frame": across_frame if branches == "both" else 0.0,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.seen = [
            (kind, number)
            for kind, number in PARTS
            if kind in kept and (number == 0 or f"within_{kind}" in self.weights)
        ]

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """Two crops, a stretch of each clip and a frame of it, and the patches that each part of a view sees.

        All of it is drawn whatever is used, so that arms of one seed share what both make.
        """
        count, crops = len(aspect), self.setup.views(2, aspect, stream)
        start = torch.randint(max(self.setup.frames - self.frames, 0) + 1, (count, 1), generator=stream)
        frame = torch.randint(self.frames, (count, 1), generator=stream)
        times = {"video": start + torch.arange(self.frames), "image": start + frame}
        own, chosen, shown = {"tube": frame[:, 0] // self.tube}, [], []
        for kind, number in PARTS:
            drawn = draw_mask(count, self.grid**2, self.masks[kind], stream)
            if (kind, number) in self.seen:
                own |= {f"{kind}_{number}_{name}": part for name, part in drawn.items()}
                # of a clip and a frame that are held together each is of another crop
                chosen += [number if kind == "video" else 1 - number] * times[kind].shape[1]
                shown.append(times[kind])
        return Draw(crops.boxes[:, chosen], crops.mirrored[:, chosen], own, torch.cat(shown, dim=1))

    def forward(
        self,
        views: Float[Tensor, "b v c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss`, and its terms before they are weighed."""
        sizes = [self.frames if kind == "video" else 1 for kind, _ in self.seen]
        latents: dict[tuple[str, int], Tensor] = {}
        terms: dict[str, Tensor] = {}
        for (kind, number), part in zip(self.seen, torch.split(views, sizes, dim=1), strict=True):
            offsets, visible, masked = (
                own[f"{kind}_{number}_{name}"] for name in ("offsets", "visible", "masked")
            )
            patches, view = self.patches(part, offsets, View(visible, masked))
            branch = self.branch(kind)
            found = branch.encoder(patches, view.visible)
            latents[kind, number] = found[:, 1:]
            if number == 0:
                terms[f"{kind}_pixels"] = self.reconstruction(
                    kind, branch.decoder(found, view), take(patches, view.masked)
                )
        return self.weighed(terms | self.contrasts(latents, own["tube"]))

    def patches(
        self, frames: Float[Tensor, "b f c s s"], offsets: Int[Tensor, "b n 2"], view: View
    ) -> tuple[Float[Tensor, "b m p"], View]:
        """The tubes of a clip, time after time, and where they lie; of one frame its patches.

        A tube's pixels are flattened in the order frame, row, column, channel.
        """
        count, length = frames.shape[:2]
        if length == 1:
            return patchify(frames[:, 0], self.patch_size, offsets, self.gap), view
        each = offsets.repeat_interleave(length, dim=0)
        patches = patchify(frames.flatten(0, 1), self.patch_size, each, self.gap)
        times, places = length // self.tube, self.grid**2
        tubes = patches.view(count, times, self.tube, places, -1).transpose(2, 3)
        return tubes.reshape(count, times * places, -1), over_time(view, times, places)

    def reconstruction(
        self, kind: str, prediction: Float[Tensor, "b m p"], target: Float[Tensor, "b m p"]
    ) -> Float[Tensor, ""]:
        """Mean squared error of hidden pixels, standardised as the branch's source does."""
        with in_float32(target):
            if kind == "image":
                return norm_mse(prediction.float(), target.float())
            return F.mse_loss(prediction.float(), standardised(target.float(), self.setup.channels))

    def contrasts(
        self, latents: Mapping[tuple[str, int], Float[Tensor, "b k d"]], tube: Int[Tensor, " b"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Those terms that have a weight, of means over visible patches; `tube` is the frame's time."""

        def whole(kind: str, number: int) -> Float[Tensor, "b d"]:
            return self.branch(kind).head(latents[kind, number].mean(dim=1))  # type: ignore[no-any-return]

        def then() -> Float[Tensor, "b d"]:
            clip = latents["video", 0]
            by_time = clip.view(len(clip), self.frames // self.tube, -1, clip.shape[-1]).mean(dim=2)
            return self.branch("video").head(take(by_time, tube[:, None])[:, 0])  # type: ignore[no-any-return]

        pairs = {
            "within_video": lambda: (whole("video", 0), whole("video", 1)),
            "within_image": lambda: (whole("image", 0), whole("image", 1)),
            "across_video": lambda: (whole("video", 0), whole("image", 0)),
            "across_frame": lambda: (then(), whole("image", 0)),
        }
        return {name: nt_xent(*pairs[name](), self.temperature) for name in self.weights}

    def weighed(self, terms: dict[str, Float[Tensor, ""]]) -> dict[str, Float[Tensor, ""]]:
        """`loss` before its terms."""
        return {"loss": torch.stack([self.weights.get(k, 1.0) * v for k, v in terms.items()]).sum(), **terms}

    def branch(self, kind: str) -> "Branch":
        """That of `video` or of `image`."""
        found = self.branches[kind]
        assert isinstance(found, Branch)
        return found

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens, class token first: of the image encoder, or the video encoder's first tubes."""
        if "image" in self.branches:
            return encoded(self.branch("image").encoder, images, self.patch_size, layer, norm)
        patches = patchify(images, self.patch_size)
        if patches.shape[1] != self.grid**2:
            raise ValueError("the video encoder sees frames of the size that it was trained on alone")
        first = torch.arange(self.grid**2, device=images.device).expand(len(images), -1)
        encoder = self.branch("video").encoder
        found = encoder.tokens(patches.repeat(1, 1, self.tube), first, layer=layer)
        return encoder.norm(found) if norm else found


class Branch(nn.Module):
    """A masked autoencoder of patches of `values` numbers, and the head for contrast of its latents."""

    def __init__(
        self,
        setup: Setup,
        encoder: config.Encoder,
        projection: config.Projector,
        decoder: config.Decoder,
        positions: Positions,
        values: int,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(encoder, config.Projector(depth=0), positions, values)
        self.decoder = setup.variant("decoder", decoder)(encoder.width, positions, values)
        self.head = projector(encoder.width, projection.width, projection.depth)
        initialise(self, mask_std=0.02)


def tube_positions(times: int, grid: int, width: int) -> Float[Tensor, "n d"]:
    """Codes of tubes, time after time: the patch's plus [sin, cos] of the time over width / 2 frequencies."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) * 2 / width)
    angles = torch.arange(times, dtype=torch.float64)[:, None] * frequencies
    time = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    return (time[:, None] + sincos_positions(grid, width, end=grid - 1)).flatten(0, 1)


def over_time(view: View, times: int, places: int) -> View:
    """The same places at every time, time after time.

    >>> over_time(View(torch.tensor([[2]]), torch.tensor([[0, 1]])), times=2, places=3).masked.tolist()
    [[0, 1, 3, 4]]
    """

    def spread(indices: Int[Tensor, "b k"]) -> Int[Tensor, "b m"]:
        starts = places * torch.arange(times, device=indices.device)
        return (starts[:, None] + indices[:, None]).flatten(1)

    return View(spread(view.visible), spread(view.masked))


def standardised(tubes: Float[Tensor, "b m p"], channels: int) -> Float[Tensor, "b m p"]:
    """VideoMAE's target: each channel of a tube less its mean, over its deviation plus 1e-6."""
    pixels = tubes.view(*tubes.shape[:2], -1, channels)
    deviation = pixels.std(dim=2, keepdim=True) + 1e-6
    return ((pixels - pixels.mean(dim=2, keepdim=True)) / deviation).flatten(2)


def nt_xent(one: Float[Tensor, "b d"], other: Float[Tensor, "b d"], temperature: float) -> Float[Tensor, ""]:
    """SimCLR's loss (arXiv 2002.05709): each of the 2 b has to tell its counterpart from all the others.

    >>> pair = torch.eye(2)
    >>> round(nt_xent(pair, pair, 1.0).item(), 4)  # log(1 + 2 / e)
    0.5514
    """
    with in_float32(one):
        both = F.normalize(torch.cat([one, other]).float(), dim=1)
        itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
        logits = (both @ both.T / temperature).masked_fill(itself, float("-inf"))
        return F.cross_entropy(logits, torch.arange(len(both), device=both.device).roll(len(one)))
