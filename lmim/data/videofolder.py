"""Clips in a folder for each class: train/<class>/<clip> and val/<class>/<clip>, or <class>/<clip> alone.

A clip is a folder of frames, in the order of their names, or a video file, which PyAV reads. Long videos are
best cut into clips before: of each clip so many `frames` are used, evenly spread from its first to its last.
What else holds of folders of images holds here.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lmim.config import Data
from lmim.data.augment import WHOLE, Size, central_boxes, rows_columns
from lmim.data.imagefolder import (
    EVALUATED,
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNREADABLE,
    FolderSplit,
    Kind,
    listed,
    open_folders,
)
from lmim.data.reading import num_threads
from lmim.data.splits import Dataset, hold_out, root_of
from lmim.errors import UserError
from lmim.variants import PositiveInt

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv"})


def videofolder(data: Data, *, frames: PositiveInt = 16) -> Dataset:
    """Clips of any size and length: val/ tests, and val is held out of train/.

    Raises:
        UserError: a folder is missing, too many of its clips cannot be read, or PyAV is missing.
    """
    kind = Kind("clip", _clips, _look)
    found = open_folders(root_of(data), data.version is not None, kind)
    whole, test = (ClipFolder(**vars(split), frames=frames) for split in found[:2])
    classes, version, skipped = found[2:]
    train, val, version = hold_out(whole, version)
    stats = 3, len(classes), IMAGENET_MEAN, IMAGENET_STD, True
    return Dataset(data.name, version, *stats, train, val, test, skipped=skipped, frames=frames)


@dataclass(frozen=True)
class ClipFolder(FolderSplit):
    """Clips decoded when they are asked for, each once for all of its views."""

    frames: int

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        """The boxes of the middle frames alone."""
        boxes = central_boxes(self.aspect[indices], EVALUATED) if boxes is None else boxes
        times = torch.full((len(indices), 1), self.frames // 2)
        images, whole = self.read_clips(indices, side, boxes[:, None], times)
        return images[:, 0], whole[:, 0]

    def read_clips(
        self,
        indices: Int[Tensor, " b"],
        side: Size,
        boxes: Float[Tensor, "b v 4"],
        times: Int[Tensor, "b v"],
    ) -> tuple[UInt8[Tensor, "b v c h w"], Float[Tensor, "b v 4"]]:
        """The boxes alone, at side x side pixels; a thread decodes a clip."""
        with ThreadPoolExecutor(num_threads()) as pool:
            asked = indices.tolist(), [side] * len(indices), boxes.tolist(), times.tolist()
            cut = list(pool.map(self._cut_clip, *asked))
        images = torch.from_numpy(np.stack(cut)).permute(0, 1, 4, 2, 3).contiguous()
        return images, WHOLE.repeat(*times.shape, 1)

    def _cut_clip(
        self, index: int, side: Size, boxes: Sequence[Sequence[float]], times: Sequence[int]
    ) -> NDArray[np.uint8]:
        path = self.root / self.names[index]
        try:
            last = _length(path) - 1
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read any more ({error}): restore it") from error
        places = [round(time * last / max(self.frames - 1, 1)) for time in times]
        return cut_clip(path, side, boxes, places)


def cut_clip(
    path: Path, side: Size, boxes: Sequence[Sequence[float]], places: Sequence[int]
) -> NDArray[np.uint8]:
    """A box of each of these frames of a clip, `[v, rows, columns, 3]`.

    Raises:
        UserError: it cannot be read any more.
    """
    try:
        images = dict(_frames(path, sorted({*places})))
        return np.stack([_cut(images[place], side, box) for place, box in zip(places, boxes, strict=True)])
    except (*UNREADABLE, LookupError) as error:
        raise UserError(f"{path}: cannot be read any more ({error}): restore it") from error


def _cut(image: Image.Image, side: Size, box: Sequence[float]) -> NDArray[np.uint8]:
    left, top, width, height = box
    across, down = image.size
    right, bottom = min(left + width, 1.0) * across, min(top + height, 1.0) * down
    edges = (left * across, top * down, right, bottom)
    return np.asarray(image.resize(rows_columns(side)[::-1], Image.Resampling.BICUBIC, edges))


# ------------------------------------------------------------------------------------- one clip


def _clips(folder: str) -> list[tuple[str, int, int]]:
    """The clips of a folder; of one that is a folder the bytes and times of its frames, added up."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                frames = listed(entry.path)
                found.append((entry.name, sum(f[1] for f in frames), sum(f[2] for f in frames)))
            elif Path(entry.name).suffix.lower() in VIDEOS:
                found.append((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    return sorted(found)


def _look(path: Path) -> tuple[float, str]:
    """The width over the height of the first frame, 0 if any cannot be read, and a digest of the bytes."""
    content, aspect, seen = hashlib.sha256(), 0.0, 0
    try:
        for file in _files(path):
            content.update(hashlib.sha256(file.name.encode()).digest() if path.is_dir() else b"")
            with file.open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
        length = _length(path)
        for _, image in _frames(path, range(length)):
            aspect, seen = aspect or image.width / image.height, seen + 1
        return aspect if seen == length else 0.0, content.hexdigest()
    except UNREADABLE:
        return 0.0, content.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path / name for name, *_ in listed(str(path))] if path.is_dir() else [path]


def _length(path: Path) -> int:
    """How many frames a clip has."""
    if path.is_dir():
        return len(_files(path))
    with _opened(path) as container:
        stream = container.streams.video[0]
        # not every format says; a packet holds a frame, but for the empty one at the end
        return stream.frames or sum(1 for packet in container.demux(stream) if packet.size)


def _frames(path: Path, places: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """The frames at these places of a clip, which are in order."""
    if path.is_dir():
        files = _files(path)
        for place in places:
            with Image.open(files[place]) as image:
                yield place, image.convert("RGB")
        return
    end = places[-1] + 1 if places else 0
    with _opened(path) as container:
        container.streams.video[0].codec_context.thread_count = 1  # the clips are read side by side
        for place, frame in zip(range(end), container.decode(video=0), strict=False):
            if place in places:
                yield place, frame.to_image()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """PyAV's container; whatever is wrong with the file is an OSError."""
    try:
        import av
    except ImportError as error:
        raise UserError("data.name: video files are read with PyAV: pip install 'lmim[video]'") from error
    try:
        with av.open(str(path)) as container:
            if container.streams.video[0].codec_context is None:
                raise OSError("no decoder for it")
            yield container
    except (av.error.FFmpegError, IndexError) as error:
        raise OSError(str(error)) from error
