"""The weighted vote of the k nearest training images (arXiv 1805.01978)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.features import Frozen
from lmim.variants import PositiveInt

METRICS = {"knn_top1": {"label": "k-NN top-1", "unit": "%", "better": "higher"}}

TEMPERATURE = 0.07
"""A neighbour of cosine s votes with exp(s / TEMPERATURE)."""


def knn(frozen: Frozen, *, k: PositiveInt = 20) -> dict[str, float]:
    """Accuracy in % on the judged images; neighbours are by cosine, and nothing is trained.

    `k` is how many neighbours vote.
    """
    features, labels = frozen.judged.whole()
    neighbours = Neighbours(features, k)
    for batch in frozen.train.batches():
        neighbours.update(*batch)
    return {"knn_top1": neighbours.top1(labels)}


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
