"""What stops the target from collapsing: where the latents to be predicted come from.

Latent MIM (arXiv 2407.15837), section on joint optimisation of online and target encoder;
`frozen_random` is the target of Latent MIM Lite (arXiv 2511.13655).

A target's two functions are its whole surface: `encode(online, patches, view)` gives the latents of the
masked patches, [images, masked, channels], and `after_step(online, momentum)` follows the optimiser's step.
"""

import copy
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmim.encoder import Encoder, View, take


def masked_latents(
    encoder: Encoder, patches: Float[Tensor, "b n p"], view: View, sees: Literal["masked", "all"]
) -> Float[Tensor, "b m d"]:
    """Latents of the masked patches, by an encoder that sees only these or the whole image."""
    if sees == "masked":
        latents: Tensor = encoder(patches, view.masked)[:, 1:]
        return latents
    return take(encoder(patches)[:, 1:], view.masked)


class Joint(nn.Module):
    """The online weights, with the gradient through both sides: the arm that collapses."""

    def __init__(self, online: Encoder, sees: Literal["masked", "all"]) -> None:
        super().__init__()
        self.sees = sees

    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return masked_latents(online, patches, view, self.sees)

    def after_step(self, online: Encoder, momentum: float) -> None:
        """Nothing to follow: the weights are the online encoder's own."""


class StopGradient(Joint):
    """The online weights, detached."""

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return masked_latents(online, patches, view, self.sees)


class Momentum(nn.Module):
    """An exponential moving average of the online encoder and its projector."""

    def __init__(self, online: Encoder, sees: Literal["masked", "all"]) -> None:
        super().__init__()
        self.sees = sees
        self.encoder = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return masked_latents(self.encoder, patches, view, self.sees)

    @torch.no_grad()
    def after_step(self, online: Encoder, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * online, in one fused call."""
        torch._foreach_lerp_(list(self.encoder.parameters()), list(online.parameters()), 1 - momentum)


class FrozenRandom(nn.Module):
    """A random linear projection of the raw patch, never trained: no target encoder at all."""

    projection: Tensor

    def __init__(self, online: Encoder, sees: Literal["masked", "all"]) -> None:
        super().__init__()
        weight = torch.empty_like(online.embed.weight)
        nn.init.xavier_uniform_(weight)
        self.register_buffer("projection", weight)

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return take(patches, view.masked) @ self.projection.T

    def after_step(self, online: Encoder, momentum: float) -> None:
        """Frozen."""


Target = Joint | Momentum | FrozenRandom

TARGETS: dict[str, type[Target]] = {
    "joint": Joint,
    "stop_gradient": StopGradient,
    "ema": Momentum,
    "frozen_random": FrozenRandom,
}
