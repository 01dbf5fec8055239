"""Learning rate and weight decay, as the published recipe has them."""

from typing import Any

from torch import nn

from lmim.axes.mask import cosine_decay
from lmim.config import Optim


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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay on one-dimensional parameters nor on those named bias, norm or embed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or any(word in name for word in ("bias", "norm", "embed"))
            (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
