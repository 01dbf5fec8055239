"""Datasets and batched augmentation."""

from lmim.data.datasets import Dataset, Split, open_dataset

__all__ = ["Dataset", "Split", "open_dataset"]
