"""ImageNet-C as it is stored: <corruption>/<strength>/<class>/<image>, for `robustness` to judge by.

The images are what ImageNet's validation images became: there is nothing to train on, and all splits are one.
"""

import hashlib
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from lmim.config import Data
from lmim.data.corruptions import CONSTANTS, STRENGTHS
from lmim.data.imagefolder import IMAGENET_MEAN, IMAGENET_STD, FolderSplit, listed
from lmim.data.splits import Dataset, Split, root_of
from lmim.errors import UserError


def imagenet_c(data: Data) -> Dataset:
    """All fifteen corruptions at five strengths; the version is over the names and sizes of all files.

    Raises:
        UserError: a folder is missing or empty, or has other classes than the first.
    """
    root = root_of(data)
    classes: list[str] = []
    names: list[str] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    for folder in (root / name / str(strength) for name in CONSTANTS for strength in STRENGTHS):
        if not folder.is_dir():
            raise UserError(f"data.path: {folder} is not a folder: expected <corruption>/<strength>/<class>/")
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not found or found != (classes := classes or found):
            raise UserError(f"data.path: {folder}: expected the classes of {next(iter(CONSTANTS))}/1")
        for label, name in enumerate(found):
            files = listed(str(folder / name))
            names += (within := [f"{folder.parent.name}/{folder.name}/{name}/{file}" for file, _, _ in files])
            labels += [label] * len(files)
            sizes = [size for _, size, _ in files]
            digest.update(repr((within, sizes)).encode())
        if not names or not names[-1].startswith(f"{folder.parent.name}/{folder.name}/"):
            raise UserError(f"data.path: {folder}: no image in any class folder")
    split = FolderSplit(root, names, torch.tensor(labels), torch.ones(len(names)))
    stats = IMAGENET_MEAN, IMAGENET_STD
    version = digest.hexdigest()[:12]
    return Dataset(data.name, version, 3, len(classes), *stats, True, split, split, split)


def stored_at(split: Split, corruption: str, strength: int) -> Int[Tensor, " n"]:
    """Which of the images are of a corruption and a strength."""
    begins = f"{corruption}/{strength}/"
    names = cast(FolderSplit, split).names
    return torch.tensor([number for number, name in enumerate(names) if name.startswith(begins)])
