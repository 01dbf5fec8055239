"""Nearest neighbours on frozen features: what the features' geometry alone says, with nothing trained."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
"""A neighbour of cosine s votes with exp(s / TEMPERATURE) (arXiv 1805.01978)."""


def nn_top1(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], chunk: int = 512) -> float:
    """Accuracy in % of the nearest other image by cosine, leave-one-out within one set (arXiv 2407.15837).

    Holds at most chunk x n similarities.

    >>> nn_top1(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
    100.0
    """
    if len(features) < 2:
        raise ValueError(f"leave-one-out needs two images or more, got {len(features)}")
    unit = F.normalize(features.float(), dim=1)
    correct = torch.zeros((), dtype=torch.long, device=features.device)
    for start in range(0, len(unit), chunk):
        similarity = unit[start : start + chunk] @ unit.T
        similarity.diagonal(offset=start).fill_(-torch.inf)
        correct += (labels[similarity.argmax(dim=1)] == labels[start : start + chunk]).sum()
    return 100 * int(correct) / len(unit)


class Neighbours:
    """The k nearest of a stream of labelled features to each of a fixed set of queries, by cosine.

    Only the queries and their k best so far are kept, so the stream may be longer than any memory: a step
    holds chunk x (k + batch) similarities.
    """

    def __init__(self, queries: Float[Tensor, "n d"], k: int, chunk: int = 4096) -> None:
        self.queries = F.normalize(queries.float(), dim=1)
        self.k = k
        self.chunk = chunk
        self.similarity: Float[Tensor, "n kept"] = self.queries.new_empty(len(queries), 0)
        self.labels: Int[Tensor, "n kept"] = self.similarity.long()

    def update(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> None:
        """Take one batch of the stream into account."""
        keys = F.normalize(features.float(), dim=1)
        kept = min(self.k, self.similarity.shape[1] + len(keys))
        similarity = self.similarity.new_empty(len(self.queries), kept)
        neighbours = self.labels.new_empty(len(self.queries), kept)
        for start in range(0, len(self.queries), self.chunk):
            rows = slice(start, start + self.chunk)
            seen = torch.cat([self.similarity[rows], self.queries[rows] @ keys.T], dim=1)
            owners = torch.cat([self.labels[rows], labels.expand(len(seen), -1)], dim=1)
            similarity[rows], best = seen.topk(kept, dim=1)
            neighbours[rows] = owners.gather(1, best)
        self.similarity, self.labels = similarity, neighbours

    def predict(self) -> Int[Tensor, " n"]:
        """The class with the most votes for each query; the lowest class where votes tie."""
        if self.labels.shape[1] == 0:
            raise ValueError("no neighbours: update was never given an image")
        classes = int(self.labels.max()) + 1
        predicted = []
        parts = (torch.split(part, self.chunk) for part in (self.similarity, self.labels))
        for similarity, labels in zip(*parts, strict=True):
            votes = similarity.new_zeros(len(labels), classes)
            votes.scatter_add_(1, labels, (similarity / TEMPERATURE).exp())
            predicted.append(votes.argmax(dim=1))
        return torch.cat(predicted)

    def top1(self, labels: Int[Tensor, " n"]) -> float:
        """Accuracy in % of `predict` against the queries' own labels."""
        return 100 * int((self.predict() == labels).sum()) / len(labels)


def knn_top1(
    train_features: Float[Tensor, "m d"],
    train_labels: Int[Tensor, " m"],
    test_features: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n"],
    k: int = 20,
    chunk: int = 4096,
) -> float:
    """Accuracy in % of the weighted vote of the k nearest training images, all features in memory."""
    neighbours = Neighbours(test_features, k, chunk)
    parts = (torch.split(part, chunk) for part in (train_features, train_labels))
    for features, labels in zip(*parts, strict=True):
        neighbours.update(features, labels)
    return neighbours.top1(test_labels)
