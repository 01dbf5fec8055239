"""Image retrieval by nearest neighbours: do the images that lie near one show the same class?

What the second paper (arXiv 2312.00950) reports as k-NN retrieval, +1.32 points, without a readable word on
how it is measured; leave-one-out, cosine and these figures are our choice.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.features import Frozen

METRICS = {
    "recall_at_1": {"label": "recall@1", "unit": "%", "better": "higher"},
    "recall_at_5": {"label": "recall@5", "unit": "%", "better": "higher"},
    "recall_at_10": {"label": "recall@10", "unit": "%", "better": "higher"},
    "retrieval_map": {"label": "retrieval mAP", "unit": "%", "better": "higher"},
}


def retrieval(frozen: Frozen) -> dict[str, float]:
    """Recall and mean average precision in %, leave-one-out within the judged images; nothing is trained."""
    recall, precision = retrieved(*frozen.judged.whole(), at=(1, 5, 10))
    return {**{f"recall_at_{k}": value for k, value in recall.items()}, "retrieval_map": precision}


def retrieved(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], at: tuple[int, ...], chunk: int = 512
) -> tuple[dict[int, float], float]:
    """Recall at each k of `at`, and mean average precision, in %.

    Each image asks the others, nearest first by cosine. Recall at k: the part of images of which one of the k
    nearest is of their class. Average precision: the mean, over the images of its class, of the part that is
    of its class down to that one. An image that is alone in its class asks nothing. Holds chunk x n
    similarities.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> retrieved(x, torch.tensor([0, 0, 1, 1]), (1,))
    ({1: 100.0}, 100.0)

    Raises:
        ValueError: no class has two images.
    """
    unit = F.normalize(features.float(), dim=1)
    nearest, precision = torch.zeros(len(at), dtype=torch.float64), 0.0
    asked = 0
    for start in range(0, len(unit), chunk):
        similarity = unit[start : start + chunk] @ unit.T
        similarity.diagonal(offset=start).fill_(-torch.inf)
        order = similarity.argsort(dim=1, descending=True, stable=True)[
            :, :-1
        ]  # the last is the image itself
        alike = labels[order] == labels[start : start + chunk, None]
        alike = alike[alike.any(dim=1)]
        ranks = torch.arange(1, alike.shape[1] + 1, device=alike.device)
        precisions = alike.cumsum(dim=1) / ranks * alike
        precision += float((precisions.sum(dim=1) / alike.sum(dim=1)).double().sum())
        nearest += torch.stack([alike[:, :k].any(dim=1).sum() for k in at]).double().cpu()
        asked += len(alike)
    if not asked:
        raise ValueError("retrieval needs two images of a class, there is no such class among those judged")
    return dict(zip(at, (100 * nearest / asked).tolist(), strict=True)), 100 * precision / asked
