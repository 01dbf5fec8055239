"""CIFAR-100 from torchvision's own files under `data.path`; nothing is downloaded."""

from lmim.config import Data
from lmim.data.cifar10 import cifar
from lmim.data.splits import Dataset


def cifar100(data: Data) -> Dataset:
    """A hundred classes of 32 x 32 pixels; val is held out of the 50,000 of train."""
    return cifar(data, classes=100)
