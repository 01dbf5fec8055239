"""Protocols that judge a frozen encoder, and diagnostics of collapse."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmim.data import Dataset, Split
from lmim.data.augment import crop, normalise
from lmim.data.batches import ahead
from lmim.evaluate.linear import Ridge
from lmim.evaluate.nearest import Neighbours, nn_top1

Encode = Callable[[Float[Tensor, "b c s s"]], Float[Tensor, "b d"]]


def evaluate(
    encode: Encode,
    dataset: Dataset,
    side: int,
    neighbours: int = 20,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """1-NN, k-NN and linear accuracy, in %, of the features that `encode` gives of normalised images.

    The images are not augmented: the central square at side x side pixels. One pass over each split; the test
    features are kept, the training features only pass through, so memory does not grow with the training set.
    An encoder whose features are not finite has no accuracy: all three are NaN.
    """
    with torch.no_grad():
        test = list(_features(encode, dataset, dataset.test, side, batch, device))
        features, labels = (torch.cat(part) for part in zip(*test, strict=True))
        finite = features.isfinite().all()
        nearest = Neighbours(features, neighbours)
        ridge = Ridge(dataset.classes)
        for train_features, train_labels in _features(encode, dataset, dataset.train, side, batch, device):
            finite &= train_features.isfinite().all()
            nearest.update(train_features, train_labels)
            ridge.update(train_features, train_labels)
        if not finite:
            return dict.fromkeys(("eval/nn_top1", "eval/knn_top1", "eval/linear_top1"), float("nan"))
        return {
            "eval/nn_top1": nn_top1(features, labels),
            "eval/knn_top1": nearest.top1(labels),
            "eval/linear_top1": ridge.top1(features, labels),
        }


def _features(
    encode: Encode, dataset: Dataset, split: Split, side: int, batch: int, device: torch.device | str
) -> Iterator[tuple[Float[Tensor, "b d"], Int[Tensor, " b"]]]:
    mean, std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
    parts = torch.split(torch.arange(len(split)), batch)
    for indices, read in zip(parts, ahead(split.read(indices, side) for indices in parts), strict=True):
        images, boxes = (part.to(device, non_blocking=True) for part in read)
        yield encode(normalise(crop(images, boxes, side), mean, std)), split.labels[indices].to(device)
