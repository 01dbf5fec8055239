"""Images with the class of each pixel in folders, as ADE20K's scene parsing lies on disk.

    images/{training,validation}/<name>.jpg
    annotations/{training,validation}/<name>.png

An annotation is as large as its image, with one number a pixel: 0 where nothing is labelled, as in ADE20K's
150 classes, and the class from 1 on; 255 is not labelled either. There is no ground: all that is labelled is
an object. An image's own label is the class of most of its labelled pixels.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lmim.config import Data
from lmim.data.augment import central_boxes
from lmim.data.cache import cached_arrays, digest, noted
from lmim.data.imagefolder import (
    EVALUATED,
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNREADABLE,
    FolderSplit,
    listed,
)
from lmim.data.reading import num_threads
from lmim.data.splits import VOID, Dataset, hold_out, root_of
from lmim.errors import UserError

SPLITS = ("training", "validation")


def maskfolder(data: Data) -> Dataset:
    """Images of any size: validation/ tests, as it does for ADE20K, and val is held out of training/.

    Raises:
        UserError: a folder, image or annotation is missing, cannot be read, or is not as the other.
    """
    root = root_of(data)
    listing = {split: _listed(root, split) for split in SPLITS}
    # path, sizes and times tell whether to look again; they are no part of the version
    found = cached_arrays(
        f"maskfolder-{digest([str(root.resolve()), listing])}", lambda: _look_at_all(root, listing)
    )
    parts, start = [], 0
    for split, files in listing.items():
        rows = slice(start, start := start + len(files))
        labels, aspect = (torch.tensor(found[what][rows]) for what in ("label", "aspect"))
        parts.append(MaskFolder(root, [f"images/{split}/{file[0]}" for file in files], labels, aspect))
    train, val, version = hold_out(parts[0], str(found["version"]))
    stats = 3, int(found["classes"]), IMAGENET_MEAN, IMAGENET_STD, True
    return Dataset(data.name, version, *stats, train, val, parts[1], masks=True)


@dataclass(frozen=True)
class MaskFolder(FolderSplit):
    """Images and annotations, decoded when they are asked for."""

    def read_masks(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b side side"]:
        """The class of each pixel of the central square that evaluation sees, the nearest one's, or VOID."""
        boxes = central_boxes(self.aspect[indices], EVALUATED)
        with ThreadPoolExecutor(num_threads()) as pool:
            cut = list(pool.map(self._cut_mask, indices.tolist(), [side] * len(indices), boxes.tolist()))
        return torch.from_numpy(np.stack(cut))

    def read_classes(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b side side"]:
        """The same: masks are of classes."""
        return self.read_masks(indices, side)

    def _cut_mask(self, index: int, side: int, box: Sequence[float]) -> NDArray[np.uint8]:
        path = _annotation(self.root, self.names[index])
        left, top, width, height = box
        try:
            with Image.open(path) as image:
                across, down = image.size
                edges = (left * across, top * down, (left + width) * across, (top + height) * down)
                classes = np.asarray(image.resize((side, side), Image.Resampling.NEAREST, edges))
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read any more ({error}): restore the file") from error
        return np.where(classes == 0, VOID, classes).astype(np.uint8)


def _annotation(root: Path, name: str) -> Path:
    return root / "annotations" / Path(name).relative_to("images").with_suffix(".png")


def _listed(root: Path, split: str) -> list[tuple[Any, ...]]:
    """Of each image its name, and bytes and time of change of itself and of its annotation."""
    folders = root / "images" / split, root / "annotations" / split
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"data.path: {folder} is not a folder: give one with images/ and annotations/, each with "
                "training/ and validation/"
            )
    images, annotations = (listed(str(folder)) for folder in folders)
    known = {name: about for name, *about in annotations}
    for name, *_ in images:
        if Path(name).with_suffix(".png").name not in known:
            raise UserError(
                f"{_annotation(root, f'images/{split}/{name}')}: missing: add it, or remove its image"
            )
    if not images or (split == "training" and len(images) < 2):
        wanted = "two images at least" if split == "training" else "an image at least"
        raise UserError(f"data.path: {folders[0]}: {len(images)} images: expected {wanted}")
    return [(name, *about, *known[Path(name).with_suffix(".png").name]) for name, *about in images]


def _look_at_all(root: Path, listing: dict[str, list[tuple[Any, ...]]]) -> dict[str, NDArray[Any]]:
    """The aspect and the label of every image, training first, the number of classes, and the version."""
    names = [f"images/{split}/{file[0]}" for split, files in listing.items() for file in files]
    with ThreadPoolExecutor(num_threads()) as pool:
        looks = pool.map(lambda name: _look(root, name), names)
        found = list(noted(f"reading every image and annotation of {root} once", looks, len(names)))
    counts = np.stack([one[1] for one in found])
    counts[:, [0, VOID]] = 0
    if not counts.any():
        raise UserError(
            f"data.path: {root / 'annotations'}: no pixel is labelled: expected classes from 1 on"
        )
    return {
        "aspect": np.array([one[0] for one in found], np.float32),
        "label": counts.argmax(axis=1).clip(1) - 1,
        "classes": np.array(counts.sum(axis=0).nonzero()[0].max()),
        "version": np.array(digest([(name, one[2]) for name, one in zip(names, found, strict=True)])),
    }


def _look(root: Path, name: str) -> tuple[float, NDArray[np.int64], str]:
    """The width over the height, how many pixels have each number, and a digest of both files' bytes."""
    path, mask = root / name, _annotation(root, name)
    at = path
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as image:
            size = image.size
            image.draft("L", (1, 1))
            image.load()
        at = mask
        content += hashlib.sha256(mask.read_bytes()).hexdigest()
        with Image.open(mask) as annotation:
            if annotation.mode not in ("L", "P"):
                raise UserError(f"{mask}: {annotation.mode} pixels: expected one number of 0..255 for each")
            if annotation.size != size:
                raise UserError(
                    f"{mask}: {annotation.width} x {annotation.height} pixels, its image {size[0]} x "
                    f"{size[1]}: give annotations as large as the images"
                )
            numbers = np.bincount(np.asarray(annotation).ravel(), minlength=256)
    except UNREADABLE as error:
        raise UserError(f"{at}: cannot be read ({error}): restore or remove image and annotation") from error
    return size[0] / size[1], numbers, content
