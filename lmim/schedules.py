"""What changes over training as a function of its progress alone: any row of a journal can be checked."""

import math

from lmim.config import Optim


def cosine_decay(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1.

    >>> cosine_decay(0.0, 0.75, 0.25), cosine_decay(0.5, 0.75, 0.25), cosine_decay(1.0, 0.75, 0.25)
    (0.75, 0.5, 0.25)
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(optim: Optim, epoch: float) -> float:
    """Linear warm-up from the smallest rate, then half a cosine back to it ([A], optimisation).

    >>> optim = Optim(epochs=10, warmup_epochs=2, base_lr=1.0, batch_size=256, min_lr_ratio=0.25)
    >>> [learning_rate(optim, epoch) for epoch in (0, 1, 2, 6, 10)]
    [0.25, 0.625, 1.0, 0.625, 0.25]
    """
    peak = optim.base_lr * optim.batch_size * optim.accumulate / 256
    least = optim.min_lr_ratio * peak
    if epoch < optim.warmup_epochs:
        return least + (peak - least) * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / max(optim.epochs - optim.warmup_epochs, 1e-9)
    return cosine_decay(min(progress, 1.0), peak, least)
