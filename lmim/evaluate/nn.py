"""The nearest other image (arXiv 2407.15837): what the features' geometry says, nothing trained."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.features import Frozen

METRICS = {"nn_top1": {"label": "1-NN top-1", "unit": "%", "better": "higher"}}


def nn(frozen: Frozen) -> dict[str, float]:
    """Accuracy in %, leave-one-out within the judged images; the training images are not looked at."""
    return {"nn_top1": nn_top1(*frozen.judged.whole())}


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
