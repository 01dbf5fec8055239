"""Which parameters decay, and how fast each layer learns."""

from typing import Any

from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from lmim.objectives import Objective


def parameter_groups(model: Objective, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """No weight decay on one-dimensional parameters nor on those named bias, norm or embed.

    Below 1, `layer_decay` makes groups by timm's rule, each with an `lr_scale`: 1 for what stands on the
    encoder, and `layer_decay` times as much from block to block, down to the patches' embedding.
    """
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    plain = {name for name, one in trained.items() if one.ndim <= 1 or any(w in name for w in UNDECAYED)}
    if layer_decay < 1:
        found: list[dict[str, Any]] = param_groups_layer_decay(
            model, weight_decay, plain, layer_decay=layer_decay
        )
        return found
    decayed: list[nn.Parameter] = [one for name, one in trained.items() if name not in plain]
    free = [trained[name] for name in trained if name in plain]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


UNDECAYED = ("bias", "norm", "embed")
