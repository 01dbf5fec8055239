"""CIFAR-10 from torchvision's own files under `data.path`; nothing is downloaded."""

import numpy as np

from lmim.config import Data
from lmim.data.splits import Dataset, from_arrays, root_of
from lmim.errors import UserError


def cifar10(data: Data) -> Dataset:
    """Ten classes of 32 x 32 pixels; val is held out of the 50,000 of train."""
    return cifar(data, classes=10)


def cifar(data: Data, classes: int) -> Dataset:
    """CIFAR-10 or CIFAR-100; the version stands for the archive's checksum.

    Raises:
        UserError: files are missing or damaged.
    """
    root = root_of(data)
    from torchvision import datasets

    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    arrays = {}
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
    return from_arrays(data, kind.tgz_md5[:12], arrays, classes=classes, flips=True)
