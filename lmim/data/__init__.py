"""Datasets and batched augmentation."""

from collections.abc import Mapping
from dataclasses import replace

from lmim import variants
from lmim.config import Data
from lmim.data.splits import Dataset, Split, Subset, some

__all__ = ["Dataset", "Split", "open_dataset"]


def open_dataset(data: Data, sources: Mapping[str, str] | None = None) -> Dataset:
    """The dataset that the config names; what is drawn or listed once is so at its first use.

    `sources` holds the text of the user's own code, if the dataset is from there.

    >>> open_dataset(Data(name="digits", image_size=8)).test.labels[:3].tolist()
    [3, 7, 3]
    """
    settings = {key: value for key, value in data.settings().items() if key not in Data.model_fields}
    dataset: Dataset = variants.load("data", data.name, sources or {})(data, **settings)
    if data.train_images is None or data.train_images >= len(dataset.train):
        return dataset
    return replace(dataset, train=Subset(dataset.train, some(len(dataset.train), data.train_images)))
