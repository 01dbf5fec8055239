"""Clips with the masks of their objects, as DAVIS 2017 (arXiv 1704.00675) lies on disk: to judge encoders on.

    JPEGImages/480p/<clip>/00000.jpg
    Annotations/480p/<clip>/00000.png
    ImageSets/2017/train.txt, val.txt

A mask is as large as its frame, with one number a pixel: 0 is the ground, the objects follow from 1 on, and
255 is not labelled. Every frame has one. Clips are of any length and size, and of no class.
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
from torch.nn import functional as F

from lmim.config import Data
from lmim.data.augment import Size
from lmim.data.cache import cached_arrays, digest, noted
from lmim.data.imagefolder import IMAGENET_MEAN, IMAGENET_STD, UNREADABLE, listed
from lmim.data.reading import num_threads
from lmim.data.splits import Dataset, hold_out, root_of
from lmim.data.videofolder import ClipFolder, cut_clip
from lmim.errors import UserError

FRAMES, MASKS, LISTS = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017"
SPLITS = ("train", "val")


def davisfolder(data: Data) -> Dataset:
    """DAVIS' val tests, and val is held out of its train. To train on, all are as short as the shortest clip.

    Raises:
        UserError: a list, clip, frame or mask is missing, cannot be read, or is not as the other.
    """
    root = root_of(data)
    clips = {split: _clips(root, split) for split in SPLITS}
    names = [name for split in SPLITS for name in clips[split]]
    listing = [(name, listed(str(root / FRAMES / name)), listed(str(root / MASKS / name))) for name in names]
    # path, sizes and times tell whether to look again; they are no part of the version
    key = f"davisfolder-{digest([str(root.resolve()), clips, listing])}"
    found = cached_arrays(key, lambda: _look_at_all(root, clips))
    length = int(found["length"].min())
    parts, start = [], 0
    for split in SPLITS:
        rows = slice(start, start := start + len(clips[split]))
        labels = torch.zeros(len(clips[split]), dtype=torch.long)
        paths = [f"{FRAMES}/{name}" for name in clips[split]]
        parts.append(DavisClips(root, paths, labels, torch.tensor(found["aspect"][rows]), length))
    train, val, version = hold_out(parts[0], str(found["version"]))
    stats = 3, 1, IMAGENET_MEAN, IMAGENET_STD, True
    return Dataset(data.name, version, *stats, train, val, parts[1], frames=length, masks=True)


@dataclass(frozen=True)
class DavisClips(ClipFolder):
    """Clips and masks, decoded when they are asked for. Times are the numbers of frames."""

    def read_masks(self, indices: Int[Tensor, " b"], side: int) -> UInt8[Tensor, "b f side side"]:
        """The masks of whole frames, of each pixel what lies nearest; of clips of one length."""
        whole = [self.read_whole_masks(index)[None].float() for index in indices.tolist()]
        return torch.cat([F.interpolate(one, (side, side), mode="nearest-exact").byte() for one in whole])

    def read_whole_masks(self, index: int) -> UInt8[Tensor, "f h w"]:
        """The masks of a clip as they lie on disk."""
        folder = self.root / MASKS / Path(self.names[index]).name
        try:
            return torch.from_numpy(np.stack([_mask(folder / name) for name, *_ in listed(str(folder))]))
        except UNREADABLE as error:
            raise UserError(f"{folder}: cannot be read any more ({error}): restore it") from error

    def _cut_clip(
        self, index: int, side: Size, boxes: Sequence[Sequence[float]], times: Sequence[int]
    ) -> NDArray[np.uint8]:
        return cut_clip(self.root / self.names[index], side, boxes, times)


def _clips(root: Path, split: str) -> list[str]:
    """The clips of a split, by its list."""
    file = root / LISTS / f"{split}.txt"
    if not file.is_file():
        raise UserError(
            f"data.path: {file} is no file: give a folder like DAVIS', with {FRAMES}, {MASKS} and {LISTS}"
        )
    names = file.read_text().split()
    least = 2 if split == "train" else 1
    if len(names) < least:
        raise UserError(f"{file}: {len(names)} clips: expected {least} at least")
    for folder in (root / kind / name for name in names for kind in (FRAMES, MASKS)):
        if not folder.is_dir():
            raise UserError(f"{folder}: missing: add it, or take the clip out of {file}")
    return names


def _look_at_all(root: Path, clips: dict[str, list[str]]) -> dict[str, NDArray[Any]]:
    """The aspect and the length of every clip, train first, and the version."""
    names = [name for split in SPLITS for name in clips[split]]
    with ThreadPoolExecutor(num_threads()) as pool:
        looks = pool.map(lambda name: _look(root, name), names)
        found = list(noted(f"reading every frame and mask of {root} once", looks, len(names)))
    contents = {name: one[2] for name, one in zip(names, found, strict=True)}
    return {
        "aspect": np.array([one[0] for one in found], np.float32),
        "length": np.array([one[1] for one in found]),
        "version": np.array(digest([clips, contents])),
    }


def _look(root: Path, name: str) -> tuple[float, int, str]:
    """The width over the height of a clip, how many frames it has, and a digest of all of its bytes."""
    folder, content = root / FRAMES / name, hashlib.sha256()
    frames = [folder / file for file, *_ in listed(str(folder))]
    masks = [root / MASKS / name / f"{frame.stem}.png" for frame in frames]
    if len(frames) < 3:
        raise UserError(
            f"{folder}: {len(frames)} frames: expected 3 at least, as the first and last are not scored"
        )
    if len(frames) != len(listed(str(root / MASKS / name))):
        raise UserError(
            f"{root / MASKS / name}: expected a mask for each of {len(frames)} frames, and no other"
        )
    at, size = folder, (0, 0)
    try:
        for frame, mask in zip(frames, masks, strict=True):
            for at in (frame, mask):
                content.update(hashlib.sha256(at.read_bytes()).digest())
            with Image.open(at := frame) as image:
                image.load()
                size = size if any(size) else image.size
                sizes = {size, image.size, _mask(at := mask).shape[::-1]}
            if len(sizes) > 1:
                raise UserError(f"{mask}: of another size than its frame or its clip: give all the same")
    except UNREADABLE as error:
        raise UserError(
            f"{at}: cannot be read ({error}): restore it, or take the clip out of its list"
        ) from error
    return size[0] / size[1], len(frames), content.hexdigest()


def _mask(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise UserError(f"{path}: {image.mode} pixels: expected one number of 0..255 for each")
        return np.asarray(image)
