"""Every dataset behind one surface: a train and a test split of labelled images.

A dataset is one function of the `data` section and its name in DATASETS, at the foot.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lmim.config import Data
from lmim.data import glyphs
from lmim.data.augment import WHOLE
from lmim.data.cache import cached_arrays
from lmim.data.imagefolder import open_folders
from lmim.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        one size, and the box in each.
        """


@dataclass(frozen=True)
class Dataset:
    """Two splits and what a model must know of them; pixels are normalised by `mean` and `std` of 0..1."""

    name: str
    version: str
    channels: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool
    """Whether a mirrored image is still of its class."""
    train: Split
    test: Split


def open_dataset(data: Data) -> Dataset:
    """The dataset that the config names; an embedded one is made at its first use.

    >>> open_dataset(Data(name="digits", image_size=8)).train.labels[:3].tolist()
    [0, 1, 2]
    """
    dataset = DATASETS[data.name](data)
    if data.train_images is None or data.train_images >= len(dataset.train):
        return dataset
    chosen = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    return replace(dataset, train=Subset(dataset.train, chosen[: data.train_images].sort().values))


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


@dataclass(frozen=True)
class ArraySplit:
    """Square images that lie in one array, in memory or memory-mapped; boxes are cut on the device."""

    images: NDArray[np.uint8]
    labels: Int[Tensor, " n"]
    side: int
    """Larger images are shrunk to this side; smaller ones are left, for the crop enlarges them."""

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
        images = torch.from_numpy(self.images[indices.numpy()])
        if self.side < images.shape[-1]:
            small = F.interpolate(images.float(), (self.side, self.side), mode="bicubic", antialias=True)
            images = small.round().clamp(0, 255).byte()
        return images, WHOLE.repeat(len(indices), 1) if boxes is None else boxes


def open_glyphs(recipe: glyphs.Recipe, data: Data) -> Dataset:
    """Drawn capitals and digits, on a canvas of the side that evaluation uses."""
    recipe = replace(recipe, size=data.image_size)
    version = recipe.version()

    def make() -> dict[str, NDArray[np.uint8] | NDArray[np.int64]]:
        arrays: dict[str, NDArray[np.uint8] | NDArray[np.int64]] = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = glyphs.draw(recipe, split)
        return arrays

    arrays = cached_arrays(f"glyphs-{version}", make)
    return _from_arrays(data, version, flips=False, classes=len(glyphs.CHARACTERS), arrays=arrays)


def open_digits(data: Data) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; the first 75 % train."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("data.name: digits come with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    # sixteen levels of grey and white
    images = np.rint(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    train = len(images) * 3 // 4
    arrays = {
        "train_images": images[:train],
        "train_labels": labels[:train],
        "test_images": images[train:],
        "test_labels": labels[train:],
    }
    version = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12]
    return _from_arrays(data, version, flips=False, classes=10, arrays=arrays)


def open_cifar(classes: int, data: Data) -> Dataset:
    """CIFAR-10 or CIFAR-100 from torchvision's own files under `data.path`; nothing is downloaded."""
    root = _root(data)
    from torchvision import datasets

    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    arrays: dict[str, NDArray[np.uint8] | NDArray[np.int64]] = {}
    for split in ("train", "test"):
        try:
            # torchvision compares every file's checksum with its own list before it unpickles any
            part = kind(root, train=split == "train", download=False)
        except RuntimeError as error:
            raise UserError(
                f"data.path: {root / kind.base_folder}: {data.name} is missing or damaged there: "
                f"unpack {kind.filename} in {root}"
            ) from error
        arrays[f"{split}_images"] = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        arrays[f"{split}_labels"] = np.asarray(part.targets, np.int64)
    return _from_arrays(data, kind.tgz_md5[:12], flips=True, classes=classes, arrays=arrays)


def open_imagefolder(data: Data) -> Dataset:
    """ImageNet's layout: class folders under train/ and val/; images of any size."""
    train, val, classes, version = open_folders(_root(data))
    return Dataset(data.name, version, 3, len(classes), IMAGENET_MEAN, IMAGENET_STD, True, train, val)


def _root(data: Data) -> Path:
    if data.path is None:
        raise UserError(f"data.path: {data.name} lies on disk: give the folder that holds it")
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path: {root} is not a folder: give the folder that holds {data.name}")
    return root


def _from_arrays(
    data: Data,
    version: str,
    *,
    flips: bool,
    classes: int,
    arrays: dict[str, NDArray[np.uint8] | NDArray[np.int64]],
) -> Dataset:
    train, test = (
        ArraySplit(
            arrays[f"{split}_images"].view(np.uint8),
            torch.tensor(arrays[f"{split}_labels"], dtype=torch.int64),
            data.image_size,
        )
        for split in ("train", "test")
    )
    # a thousand images fix the mean to a grey level; all of them would be read from disk by every trial
    sample = train.images[:: max(1, len(train) // 1000)] / 255
    mean, std = sample.mean((0, 2, 3)).tolist(), sample.std((0, 2, 3)).tolist()
    channels = train.images.shape[1]
    return Dataset(data.name, version, channels, classes, tuple(mean), tuple(std), flips, train, test)


DATASETS: dict[str, Callable[[Data], Dataset]] = {
    "glyphs": partial(open_glyphs, glyphs.Recipe()),
    "digits": open_digits,
    "imagefolder": open_imagefolder,
    "cifar10": partial(open_cifar, 10),
    "cifar100": partial(open_cifar, 100),
}
