"""What every dataset is: labelled images, or clips of as many frames each, in three splits.

A dataset is one file of this folder, with a function of the file's name that takes the `data` section.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lmim.config import Data
from lmim.data.augment import WHOLE, Size
from lmim.errors import UserError

VOID = 255
"""In a mask: a pixel that is not labelled, and not scored."""

HELD_OUT = "val: a tenth of train, at most 10,000"
"""Part of the version of what is split so; changed by whoever changes `hold_out`."""


@runtime_checkable
class Split(Protocol):
    """Labelled images, read by index."""

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of every image."""

    @property
    def aspect(self) -> Float[Tensor, " n"]:
        """The width over the height of every image."""

    def __len__(self) -> int: ...

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        """What is in a box of each image, good for `side` x `side` pixels, with its surroundings or without.

        Boxes are those of `augment.py`; None is the central square that evaluation sees. Returns images of
        one size, and the box in each. Nothing is random or remembered, so several views of an image are
        several calls, each with its own boxes.
        """


class Clips(Split, Protocol):
    """Labelled clips. As images they are their middle frames, so that whatever judges images judges them."""

    def read_clips(
        self,
        indices: Int[Tensor, " b"],
        side: Size,
        boxes: Float[Tensor, "b v 4"],
        times: Int[Tensor, "b v"],
    ) -> tuple[UInt8[Tensor, "b v c h w"], Float[Tensor, "b v 4"]]:
        """All views of each clip at once, each a box of the frame that `times` says; else as `read`."""


class Masked(Split, Protocol):
    """Images, or clips, of which it is told what each pixel shows."""

    def read_masks(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b *f side side"]:
        """The object of each pixel of what `read` gives of each image, all frames of clips; 0 is the ground.

        Of data whose masks are classes, the class; 255 is not labelled.
        """


class MaskedClips(Clips, Masked, Protocol):
    """Clips of which it is told what each pixel shows."""

    def read_whole_masks(self, index: int) -> UInt8[Tensor, "f h w"]:
        """The masks of all frames of a clip, as large as they lie on disk: what a guess is scored on."""


class Classed(Masked, Protocol):
    """Images of which the class of each pixel is told."""

    def read_classes(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b side side"]:
        """As `read_masks`, of classes: 0 is the ground, 1 the first of the dataset's classes."""


@dataclass(frozen=True)
class Dataset:
    """Three splits and what a model must know of them; pixels are normalised by `mean` and `std` of 0..1.

    What selects (a ladder, a search) looks at `val`; tables and claims report `test`.
    """

    name: str
    version: str
    """Says what the data are, wherever they lie: other data have another."""
    channels: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool
    """Whether a mirrored image is still of its class."""
    train: Split
    val: Split
    test: Split
    skipped: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of the files that cannot be read, and are in no split."""
    frames: int = field(default=1, kw_only=True)
    """Frames of every clip, the splits being `Clips`; 1 of images."""
    masks: bool = field(default=False, kw_only=True)
    """Whether the splits are `Masked`."""


@dataclass(frozen=True)
class Subset:
    """Some images of a split."""

    whole: Split
    indices: Int[Tensor, " n"]

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The class of every image kept."""
        return self.whole.labels[self.indices]

    @property
    def aspect(self) -> Float[Tensor, " n"]:
        """The width over the height of every image kept."""
        return self.whole.aspect[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        """The images at these positions of the subset."""
        return self.whole.read(self.indices[indices], side, boxes)

    def read_clips(
        self,
        indices: Int[Tensor, " b"],
        side: Size,
        boxes: Float[Tensor, "b v 4"],
        times: Int[Tensor, "b v"],
    ) -> tuple[UInt8[Tensor, "b v c h w"], Float[Tensor, "b v 4"]]:
        """The same of clips."""
        return cast(Clips, self.whole).read_clips(self.indices[indices], side, boxes, times)

    def read_masks(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b *f side side"]:
        """The same of masks."""
        return cast(Masked, self.whole).read_masks(self.indices[indices], side)

    def read_whole_masks(self, index: int) -> UInt8[Tensor, "f h w"]:
        """The same of a clip's masks."""
        return cast(MaskedClips, self.whole).read_whole_masks(int(self.indices[index]))

    def read_classes(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b side side"]:
        """The same of each pixel's class."""
        return cast(Classed, self.whole).read_classes(self.indices[indices], side)


@dataclass(frozen=True)
class ArraySplit:
    """Square images that lie in one array, in memory or memory-mapped; boxes are cut on the device."""

    images: NDArray[np.uint8]
    labels: Int[Tensor, " n"]
    side: int
    """Larger images are shrunk to this side; smaller ones are left, for the crop enlarges them."""
    masks: NDArray[np.uint8] | None = None
    """What each pixel shows, `[n, s, s]`; of clips `[n, frames, s, s]`."""
    objects: NDArray[np.uint8] | None = None
    """The class of each object of the masks, `[n, k]`, from 1 on; 0 for the ground."""

    @property
    def aspect(self) -> Float[Tensor, " n"]:
        """All are square."""
        return torch.ones(len(self))

    def __len__(self) -> int:
        return len(self.images)

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        """The whole images; evaluation sees all of them."""
        images = self._shrunk(self.images[indices.numpy()])
        return images, WHOLE.repeat(len(indices), 1) if boxes is None else boxes

    def read_masks(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b *f side side"]:
        """The masks at these positions; of each pixel what lies nearest."""
        assert self.masks is not None
        masks = torch.from_numpy(self.masks[indices.numpy()])
        if masks.shape[-1] == side:
            return masks
        flat = F.interpolate(masks.view(1, -1, *masks.shape[-2:]).float(), (side, side), mode="nearest-exact")
        return flat.byte().view(*masks.shape[:-2], side, side)

    def read_classes(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b side side"]:
        """The class of each pixel: that of its object."""
        if self.objects is None:
            raise UserError("data: nothing says of which class each pixel is: give data such as glyph_scenes")
        masks = self.read_masks(indices, side)
        objects = torch.from_numpy(self.objects[indices.numpy()])
        return objects.gather(1, masks.flatten(1).long()).view_as(masks)

    def _shrunk(self, pixels: NDArray[np.uint8]) -> UInt8[Tensor, "b c h w"]:
        images = torch.from_numpy(pixels)
        if self.side < images.shape[-1]:
            small = F.interpolate(images.float(), (self.side, self.side), mode="bicubic", antialias=True)
            images = small.round().clamp(0, 255).byte()
        return images


@dataclass(frozen=True)
class ArrayClips(ArraySplit):
    """Clips that lie in one array, `[n, frames, c, s, s]`."""

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        """The whole middle frames."""
        images = self._shrunk(self.images[indices.numpy(), self.images.shape[1] // 2])
        return images, WHOLE.repeat(len(indices), 1) if boxes is None else boxes

    def read_clips(
        self,
        indices: Int[Tensor, " b"],
        side: Size,
        boxes: Float[Tensor, "b v 4"],
        times: Int[Tensor, "b v"],
    ) -> tuple[UInt8[Tensor, "b v c h w"], Float[Tensor, "b v 4"]]:
        """The whole frames at these times."""
        pixels = self.images[indices[:, None].numpy(), times.numpy()]
        frames = self._shrunk(pixels.reshape(-1, *pixels.shape[2:]))
        return frames.view(*times.shape, *frames.shape[1:]), boxes

    def read_whole_masks(self, index: int) -> UInt8[Tensor, "f h w"]:
        """The masks of a clip, unscaled."""
        assert self.masks is not None
        return torch.from_numpy(self.masks[index].copy())


def some(length: int, count: int) -> Int[Tensor, " n"]:
    """So many of them, or all, in order; always the same ones."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(0))[:count].sort().values


def spread(length: int, count: int) -> Int[Tensor, " n"]:
    """At most so many of them, evenly spread.

    >>> spread(10, 3).tolist(), spread(2, 3).tolist()
    ([0, 3, 6], [0, 1])
    """
    count = min(count, length)
    return torch.arange(count) * length // max(count, 1)


def hold_out(train: Split, version: str) -> tuple[Subset, Subset, str]:
    """Train without val, val, and the version with this rule in it, for data that come without a val.

    Val is a tenth, at most 10,000 images and at least one of two, the same ones for every trial.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    count = min(max(1, len(train) // 10), 10_000, len(train) - 1)
    mixed = hashlib.sha256(f"{version}/{HELD_OUT}".encode()).hexdigest()[:12]
    return Subset(train, order[count:].sort().values), Subset(train, order[:count].sort().values), mixed


def from_arrays(
    data: Data, version: str, arrays: Mapping[str, NDArray[Any]], *, classes: int, flips: bool
) -> Dataset:
    """A dataset of `<split>_images` `[n, c, s, s]` and `<split>_labels` `[n]`; if none, val is held out.

    Images `[n, frames, c, s, s]` are clips. Where there are masks they are `<split>_masks`.
    The class of each of their objects, of images, is in `<split>_objects` `[n, k]`.
    """

    def split(name: str) -> ArraySplit:
        labels = torch.tensor(arrays[f"{name}_labels"], dtype=torch.int64)
        images, masks = arrays[f"{name}_images"].view(np.uint8), arrays.get(f"{name}_masks")
        if images.ndim == 5:
            return ArrayClips(images, labels, data.image_size, masks)
        return ArraySplit(images, labels, data.image_size, masks, arrays.get(f"{name}_objects"))

    train: Split = (whole := split("train"))
    kept = torch.arange(len(whole))
    if "val_images" in arrays:
        val: Split = split("val")
    else:
        train, val, version = hold_out(whole, version)
        kept = train.indices
    # a thousand images fix the mean to a grey level; all of them would be read from disk by every trial
    sample = whole.images[kept[:: max(1, len(kept) // 1000)].numpy()] / 255
    frames = sample.shape[1] if sample.ndim == 5 else 1
    sample = sample.reshape(-1, *sample.shape[-3:])
    mean, std = (tuple(part.tolist()) for part in (sample.mean((0, 2, 3)), sample.std((0, 2, 3))))
    stats = sample.shape[1], classes, mean, std, flips
    splits, masks = (train, val, split("test")), "test_masks" in arrays
    return Dataset(data.name, version, *stats, *splits, frames=frames, masks=masks)


def root_of(data: Data) -> Path:
    """The folder `data.path`.

    Raises:
        UserError: none is given, or it is not there.
    """
    if data.path is None:
        raise UserError(f"data.path: {data.name} lies on disk: give the folder that holds it")
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path: {root} is not a folder: give the folder that holds {data.name}")
    return root
