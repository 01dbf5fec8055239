"""What protocols are given: features that a test made itself, or images whose feature is their pixels."""

import torch
from torch import Tensor

from lmim.axes.mask import patchify
from lmim.config import Data
from lmim.data import Dataset, open_dataset
from lmim.evaluate.features import Encode, Frozen, Labelled, Model

DIGITS = open_dataset(Data(name="digits", image_size=8))


def flat(x: Tensor) -> Tensor:
    """An encoder that gives the pixels."""
    return x.flatten(1)


def quarters(x: Tensor) -> Tensor:
    """The pixels of four patches."""
    return patchify(x, x.shape[-1] // 2)


def model(encode: Encode = flat, dataset: Dataset = DIGITS, side: int = 8) -> Model:
    """An encoder of images of some data."""
    return Model(encode, quarters, dataset, side)


def frozen(train: tuple[Tensor, Tensor], judged: tuple[Tensor, Tensor], classes: int) -> Frozen:
    """Of features and their labels."""
    return Frozen(Labelled(*train), Labelled(*judged), classes, model())


def nothing(width: int) -> tuple[Tensor, Tensor]:
    """A split without an image."""
    return torch.ones(0, width), torch.zeros(0, dtype=torch.long)


def clusters(
    rows: int, width: int = 8, classes: int = 5, seed: int = 0, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Features of overlapping classes, so that accuracies lie well between chance and 100."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return centres[labels] + noise * torch.randn(rows, width, generator=generator), labels
