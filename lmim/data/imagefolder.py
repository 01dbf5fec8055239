"""Images in a folder for each class: train/<class>/<image> and val/<class>/<image>, as ImageNet lies on disk.

A folder with neither train/ nor val/ is taken for one of <class>/<image>, and a fifth of each class is held
out for the test: always the same images, whatever else is in the folder's path.
"""

import contextlib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lmim.config import Data
from lmim.data.augment import WHOLE, central_boxes
from lmim.data.cache import cached_arrays, digest, noted
from lmim.data.reading import num_threads
from lmim.data.splits import Dataset, hold_out, root_of
from lmim.errors import UserError
from lmim.files import cache_root, write_atomic

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
CORRUPT_SHARE = 0.01
"""A dataset with more unreadable files than this part, and than CORRUPT_FLOOR, is refused."""
CORRUPT_FLOOR = 3
HELD_OUT = "test: the fifth of each class whose names hash lowest"
"""Part of the version of a folder without splits; changed by whoever changes `_held_out`."""
EVALUATED = 224 / 256
"""The part of the shorter edge that the usual centre crop leaves."""

# what Pillow raises on files that are no image, are cut off, or are absurdly large
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def imagefolder(data: Data) -> Dataset:
    """Images of any size: val/ tests, as it does for ImageNet, and val is held out of train/.

    Raises:
        UserError: a folder is missing, or too many of its images cannot be read.
    """
    whole, test, classes, version, skipped = open_folders(root_of(data), planned=data.version is not None)
    train, val, version = hold_out(whole, version)
    stats = IMAGENET_MEAN, IMAGENET_STD
    return Dataset(data.name, version, 3, len(classes), *stats, True, train, val, test, skipped=skipped)


@dataclass(frozen=True)
class FolderSplit:
    """Images decoded when they are asked for; a box is cut from the full resolution."""

    root: Path
    names: Sequence[str]
    labels: Int[Tensor, " n"]
    aspect: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.names)

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        """The boxes alone, at side x side pixels.

        Threads, as Pillow decodes outside the interpreter's lock. Only this batch is in memory, with one
        full image for each thread. The pool lives for the call alone, so that a forked worker inherits none.
        """
        if boxes is None:
            boxes = central_boxes(self.aspect[indices], EVALUATED)
        with ThreadPoolExecutor(num_threads()) as pool:
            cut = list(pool.map(self._cut, indices.tolist(), [side] * len(indices), boxes.tolist()))
        images = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).contiguous()
        return images, WHOLE.repeat(len(indices), 1)

    def _cut(self, index: int, side: int, box: Sequence[float]) -> NDArray[np.uint8]:
        path = self.root / self.names[index]
        left, top, width, height = box
        try:
            with Image.open(path) as image:
                # a JPEG with more than twice the detail needed is decoded smaller; ImageNet's are not
                image.draft("RGB", (math.ceil(2 * side / width), math.ceil(2 * side / height)))
                pixels = image if image.mode == "RGB" else image.convert("RGB")
                across, down = pixels.size
                right, bottom = min(left + width, 1.0) * across, min(top + height, 1.0) * down
                edges = (left * across, top * down, right, bottom)
                return np.asarray(pixels.resize((side, side), Image.Resampling.BICUBIC, edges))
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read any more ({error}): restore the file") from error


@dataclass(frozen=True)
class Kind:
    """What is in a class folder."""

    word: str
    """What one of it is called."""
    listed: Callable[[str], list[tuple[str, int, int]]]
    """Of each in a folder its name, its bytes, and when it was changed."""
    look: Callable[[Path], tuple[float, str]]
    """The width over the height of one, 0 if it cannot be read, and a digest of its bytes."""


def open_folders(
    root: Path, planned: bool = False, kind: Kind | None = None
) -> tuple[FolderSplit, FolderSplit, list[str], str, tuple[str, ...]]:
    """Training and test images, the classes' names, a version, and the names of what cannot be read.

    Of another `kind` than images the splits name what is there, and somebody else reads it.

    The version is over every file's class, name and content. Every file is read once, when the folder is
    first seen; what was found is cached until a file changes. A trial whose data were `planned` asks only the
    folders whether files came or went: to ask ImageNet's 1.3 million files takes each process minutes.
    """
    whole = not any((root / split).is_dir() for split in ("train", "val"))
    splits = ("",) if whole else ("train", "val")
    folders = {split: _folders(root / split) for split in splits}
    classes = sorted(entry.name for entry in folders[splits[0]])
    label = {name: i for i, name in enumerate(classes)}
    strangers = [entry.name for entry in folders[splits[-1]] if entry.name not in label]
    if strangers:
        raise UserError(
            f"{root / 'val'}: class {strangers[0]} has no folder in {root / 'train'}: add or remove it"
        )
    kind = kind or IMAGES
    found = _seen(root, folders, classes, planned, kind)
    text = found["names"].tobytes().decode("utf-8", "surrogateescape")
    names = text.split("\0") if text else []
    aspects, version = found["aspect"], str(found["version"])
    readable = {name: aspect for name, aspect in zip(names, aspects.tolist(), strict=True) if aspect}
    skipped = tuple(name for name in names if name not in readable)
    _judge(root, names, skipped, kind.word)
    held = _held_out(readable) if whole else {name for name in readable if name.startswith("val/")}
    parts = []
    for split, chosen in (("train", readable.keys() - held), ("val", held)):
        if not chosen:
            raise UserError(
                f"data.path: {root / ('' if whole else split)}: no readable {kind.word} in any class folder"
            )
        kept = [name for name in readable if name in chosen]
        labels = torch.tensor([label[name.split("/")[-2]] for name in kept])
        parts.append(FolderSplit(root, kept, labels, torch.tensor([readable[name] for name in kept])))
    return parts[0], parts[1], classes, digest([version, HELD_OUT]) if whole else version, skipped


def _seen(
    root: Path,
    splits: Mapping[str, Sequence[os.DirEntry[str]]],
    classes: Sequence[str],
    planned: bool,
    kind: Kind,
) -> dict[str, NDArray[Any]]:
    """What was seen of every image: their names, zero bytes between, and what `_look_at_all` says."""
    folders = [(split, entry) for split, entries in splits.items() for entry in entries]
    # path, sizes and times tell whether to look again; they are no part of the version
    times = [(split, entry.name, entry.stat().st_mtime_ns) for split, entry in folders]
    index = cache_root() / f"folders-{digest([kind.word, str(root.resolve()), *times])}"
    if planned and index.is_file() and (known := cache_root() / index.read_text()).is_dir():
        return cached_arrays(known.name, dict)
    listing = [(split, entry.name, *one) for split, entry in folders for one in kind.listed(entry.path)]
    names = [f"{split}/{name}/{file}".lstrip("/") for split, name, file, _, _ in listing]
    cached = f"{kind.word}s-{digest(['names', str(root.resolve()), classes, *listing])}"
    found = cached_arrays(cached, lambda: _look_at_all(root, classes, names, kind))
    with contextlib.suppress(OSError):  # without it the next trial asks every file
        write_atomic(index, cached)
    return found


def _held_out(names: Iterable[str]) -> set[str]:
    """A fifth of each class' images, at least one of two."""
    classes: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        classes.setdefault(name.split("/")[0], []).append(name)
    counts = {name: min(max(1, len(files) // 5), len(files) - 1) for name, files in classes.items()}
    return {file for name, files in classes.items() for file in files[: counts[name]]}


def _judge(root: Path, names: Sequence[str], corrupt: Sequence[str], word: str) -> None:
    if not corrupt:
        return
    found = f"{root}: {len(corrupt)} of {len(names)} {word}s cannot be read"
    shown = ", ".join(corrupt[:20]) + (f" and {len(corrupt) - 20} more" if len(corrupt) > 20 else "")
    if len(corrupt) > max(CORRUPT_FLOOR, CORRUPT_SHARE * len(names)):
        raise UserError(f"{found}, more than {CORRUPT_SHARE:.0%}: restore them or remove them: {shown}")
    warnings.warn(f"{found} and are skipped: {shown}", stacklevel=4)


def _look_at_all(
    root: Path, classes: Sequence[str], names: Sequence[str], kind: Kind
) -> dict[str, NDArray[Any]]:
    """The width over the height of every image, 0 where it cannot be read, and the folder's version."""
    with ThreadPoolExecutor(num_threads()) as pool:
        # a part at a time: a queue of a million futures would weigh more than the images
        parts = (names[start : start + 4096] for start in range(0, len(names), 4096))
        looks = chain.from_iterable(pool.map(lambda name: kind.look(root / name), part) for part in parts)
        found = list(noted(f"reading every {kind.word} of {root} once", looks, len(names)))
    # what one Pillow cannot read another may: two machines with other images left have two versions
    rows = [(name, content, aspect > 0) for name, (aspect, content) in zip(names, found, strict=True)]
    aspects = np.array([aspect for aspect, _ in found], np.float32)
    listed = np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)
    return {"names": listed, "aspect": aspects, "version": np.array(digest([classes, *rows]))}


def _look(path: Path) -> tuple[float, str]:
    """The width over the height, 0 if the image cannot be read, and a digest of the file's bytes."""
    content = ""
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with Image.open(file) as image:
                aspect = image.width / image.height
                image.draft("L", (1, 1))
                image.load()
    except UNREADABLE:
        return 0.0, content
    return aspect, content


def listed(folder: str) -> list[tuple[str, int, int]]:
    """The images of a folder in the order of their names: name, bytes and time of change."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES and e.is_file()]
    return sorted(
        (e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in found if not e.name.startswith(".")
    )


IMAGES = Kind("image", listed, _look)


def _folders(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            found = sorted(
                (e for e in entries if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name
            )
    except OSError as error:
        raise UserError(
            f"data.path: {root}: {error.strerror}: give a folder with train/ and val/ in it, or a folder for "
            "each class"
        ) from error
    if not found:
        raise UserError(
            f"data.path: {root}: no class folders in it: give one folder of images for each class, alone or "
            "in train/ and val/"
        )
    return found
