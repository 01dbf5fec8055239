"""What is trained, one file each; the file's name is the config's `objective`.

The keyword-only parameters of an objective are the sections of the config that it reads and, with a default,
the keys of a section of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from lmim import variants
from lmim.axes.collapse import Tokens
from lmim.axes.mask import patchify
from lmim.config import Collapse, Config, Decoder, Loss
from lmim.data import Dataset
from lmim.data.augment import sample_boxes
from lmim.encoder import Encoder


@dataclass(frozen=True)
class Draw:
    """All that is random about some images of a step: v views of each (or frames of a clip), and the rest."""

    boxes: Float[Tensor, "b v 4"]
    mirrored: Bool[Tensor, "b v"]
    own: dict[str, Tensor]
    """What else the objective draws, a row for each image."""
    times: Int[Tensor, "b v"] | None = None
    """Of which frame of its clip each view is; None where images are trained on."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Draw":
        """The draw with every tensor changed alike."""
        own = {name: change(tensor) for name, tensor in self.own.items()}
        times = None if self.times is None else change(self.times)
        return Draw(change(self.boxes), change(self.mirrored), own, times)


@dataclass(frozen=True)
class Setup:
    """What an objective is made for, besides its sections."""

    side: int
    """Pixels of an evaluated image's side."""
    channels: int
    classes: int
    crop_scale: float = 0.2
    mirrors: bool = False
    """Whether views are mirrored at random."""
    sources: Mapping[str, str] = field(default_factory=dict)
    frames: int = 1
    """Frames of each clip of the data; 1 of images."""

    def variant(self, section: str, chosen: Collapse | Loss | Decoder) -> Callable[..., Any]:
        """The function or class that a section names, its settings bound."""
        found = variants.load(section, chosen.kind, self.sources)
        return partial(found, **chosen.settings())

    def views(self, count: int, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """Random resized crops, `count` of each image; the boxes are the same with and without mirroring."""
        drawn = [
            (sample_boxes(aspect, self.crop_scale, stream), torch.rand(len(aspect), generator=stream) < 0.5)
            for _ in range(count)
        ]
        boxes, mirrored = (torch.stack(part, dim=1) for part in zip(*drawn, strict=True))
        return Draw(boxes, mirrored & self.mirrors, {})


class Objective(nn.Module):
    """What the trainer calls, and all that it knows of what is trained.

    An objective of clips has a setting `frames`, how many of each it sees, and its draw has `times`.
    The trainer crops the views that `draw` asks for, minimises `forward`'s loss, tells `after_step` what is
    scheduled, and judges `features`. What `forward` and `scheduled` name is in the journal as `train/<name>`.
    An objective with nothing to train leaves out `draw` and `forward`.
    """

    crop_side: int
    """Pixels of the training views' side."""
    augments = False
    """Whether `augment` is to be called."""
    seeks_every = 0
    """After how many epochs, again and again, `seek` is to be called; 0 is never."""

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        """The randomness of a step, on the host, for images of these aspects; see `Setup.views`."""
        raise NotImplementedError

    def seek(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b k"]:
        """What the objective keeps of training images, seen whole and squeezed to a square, one by one.

        The processes of a trial share the images; `sought` then gives it what all of them found.
        """
        raise NotImplementedError

    def sought(self, found: Float[Tensor, "n k"]) -> None:
        """Take over what `seek` gave, on the host, a row for each training image."""

    def place(self, draw: Draw, index: Int[Tensor, " b"]) -> Draw:
        """A draw after what was sought; `index` says which training images it is for."""
        return draw

    def augment(
        self, views: UInt8[Tensor, "b v c s s"], own: Mapping[str, Tensor]
    ) -> UInt8[Tensor, "b v c s s"]:
        """Cropped views changed on the host, by the thread that reads ahead.

        What is random about it is in `own`.
        """
        return views

    def forward(
        self,
        views: Float[Tensor, "b v c s s"],
        labels: Int[Tensor, " b"],
        own: Mapping[str, Tensor],
        scheduled: Mapping[str, Tensor],
    ) -> dict[str, Float[Tensor, ""]]:
        """Named figures of a micro-batch: `loss`, which is minimised, and whatever else tells something.

        Views are normalised; `own` is the draw's, and the `index` of each image among those that are trained
        on; `scheduled` holds the values of this step.
        """
        raise NotImplementedError

    def prepare(self, config: Config, dataset: Dataset, resumed: bool) -> None:
        """Before the first step that a process makes: take over what was fitted for these data.

        `resumed`: the weights are those of a checkpoint.
        """
        for part in self.modules():
            if isinstance(part, Tokens):
                part.prepare(config, dataset, resumed)

    def scheduled(self, progress: float) -> dict[str, float]:
        """What changes over training, by name; progress runs from 0 to 1."""
        return {}

    def after_step(self, scheduled: Mapping[str, float]) -> None:
        """Follow the optimiser's step, `scheduled` being the values after it."""

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """Of whole images: a class token and one of each patch, after this block; see `patch_features`.

        Images may be of another size than in training, and oblong.
        `norm`: after the encoder's final norm. An objective without a class token leaves it out.
        """
        raise NotImplementedError

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        """Which parameters are of which layer, for timm's optimisers; what is not the encoder's is last."""
        return {
            "stem": r"(?:.*\.)?encoder\.(?:embed|cls_token)",
            "blocks": [(r"(?:.*\.)?encoder\.blocks\.(\d+)", None)],
        }

    def patch_features(self, images: Float[Tensor, "b c h w"], layer: int = 0) -> Float[Tensor, "b n d"]:
        """Frozen features of whole images, one for each patch, after this block.

        0 is after the last, -1 after the one before it.
        """
        return self.tokens(images, layer)[:, 1:]

    def features(self, images: Float[Tensor, "b c s s"], layer: int = 0) -> Float[Tensor, "b d"]:
        """The evaluation feature: the mean of the patches' unless the objective has a better one."""
        patches = self.patch_features(images, layer) if layer else self.patch_features(images)
        return patches.mean(dim=1)


def encoded(
    encoder: Encoder, images: Float[Tensor, "b c h w"], patch_size: int, layer: int = 0, norm: bool = False
) -> Float[Tensor, "b t d"]:
    """What evaluation sees of whole images, of whatever size: a block's tokens, class token first."""
    rows = images.shape[2] // patch_size
    return encoder.evaluated(patchify(images, patch_size), layer, norm, rows)


def build(config: Config, setup: Setup) -> Objective:
    """The objective that the config names, with the sections that it reads and its own settings."""
    found = variants.load("objective", config.objective, setup.sources)
    described = variants.describe("objective", config.objective, setup.sources)
    own = config.section(config.objective.rpartition(":")[2]).settings() if described.settings else {}
    objective: Objective = found(setup, **{name: config.section(name) for name in described.reads}, **own)
    return objective
