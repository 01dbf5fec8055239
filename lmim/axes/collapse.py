"""What stops the target from collapsing: where the latents to be predicted come from.

Latent MIM (arXiv 2407.15837), section on joint optimisation of online and target encoder;
`frozen_random` is the target of Latent MIM Lite (arXiv 2511.13655), `pixels` that of MAE (arXiv 2111.06377).
Tokens (`Tokens` below) are BEiT's (arXiv 2106.08254); by which tokenizer is our choice.

A target has `encode(online, patches, view)`, which gives what is to be predicted of the masked patches,
[images, masked, channels], and may have `width`, how many channels that are. What of it follows the
optimiser's step is in `scheduled` and `after_step`. Its settings are the keys of the config's section
`collapse` that it reads; `target_sees` ([A]: mask_target) says which patches the target encoder is shown.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from lmim.config import Config, levels_of
from lmim.data import Dataset
from lmim.encoder import Encoder, View, take
from lmim.errors import UserError
from lmim.plan import tokenizers
from lmim.quantise import PatchAutoencoder
from lmim.schedules import cosine_decay
from lmim.variants import Fraction, PositiveInt


def masked_latents(
    encoder: Encoder, patches: Float[Tensor, "b n p"], view: View, sees: Literal["masked", "all"]
) -> Float[Tensor, "b m d"]:
    """Latents of the masked patches, by an encoder that sees only these or the whole image."""
    if sees == "masked":
        latents: Tensor = encoder(patches, view.masked)[:, 1:]
        return latents
    return take(encoder(patches)[:, 1:], view.masked)


class Target(nn.Module):
    """What a target need not say: nothing is scheduled, and nothing follows the optimiser's step."""

    @staticmethod
    def width(online: Encoder, **settings: Any) -> int:
        """Channels of what is to be predicted of a patch: as many as a latent has."""
        return online.embed.out_features

    def scheduled(self, progress: float) -> dict[str, float]:
        """What changes over training, by name; progress runs from 0 to 1."""
        return {}

    def after_step(self, online: Encoder, scheduled: Mapping[str, float]) -> None:
        """Follow the online encoder, `scheduled` being the values after its step."""


def width_of(target: Callable[..., Any], online: Encoder) -> int:
    """Channels that a decoder must predict for a target with its settings bound; one of the user's own that
    does not say has latents.
    """
    kind, settings = getattr(target, "func", target), getattr(target, "keywords", {})
    found: int = getattr(kind, "width", Target.width)(online, **settings)
    return found


class Joint(Target):
    """The online weights, with the gradient through both sides: the arm that collapses."""

    def __init__(self, online: Encoder, *, target_sees: Literal["masked", "all"] = "masked") -> None:
        super().__init__()
        self.sees: Literal["masked", "all"] = target_sees

    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return masked_latents(online, patches, view, self.sees)


class StopGradient(Joint):
    """The online weights, detached."""

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return masked_latents(online, patches, view, self.sees)


class Momentum(Target):
    """An exponential moving average of the online encoder and its projector.

    The first update weighs the old average by `momentum`. The last weighs it by `momentum_end`, and those
    between follow a cosine.
    """

    def __init__(
        self,
        online: Encoder,
        *,
        momentum: Fraction = 0.99,
        momentum_end: Fraction = 1.0,
        target_sees: Literal["masked", "all"] = "masked",
    ) -> None:
        super().__init__()
        self.momentum = momentum, momentum_end
        self.sees: Literal["masked", "all"] = target_sees
        self.encoder = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return masked_latents(self.encoder, patches, view, self.sees)

    def scheduled(self, progress: float) -> dict[str, float]:
        """The momentum of the update that precedes the next step's target pass."""
        return {"momentum": cosine_decay(progress, *self.momentum)}

    @torch.no_grad()
    def after_step(self, online: Encoder, scheduled: Mapping[str, float]) -> None:
        """target <- momentum * target + (1 - momentum) * online, in one fused call."""
        weight = 1 - scheduled["momentum"]
        torch._foreach_lerp_(list(self.encoder.parameters()), list(online.parameters()), weight)


class FrozenRandom(Target):
    """A random linear projection of the raw patch, never trained: no target encoder at all."""

    projection: Tensor

    def __init__(self, online: Encoder) -> None:
        super().__init__()
        weight = torch.empty_like(online.embed.weight)
        nn.init.xavier_uniform_(weight)
        self.register_buffer("projection", weight)

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m d"]:
        return take(patches, view.masked) @ self.projection.T


class Pixels(Target):
    """The patch itself; nothing can collapse. With `norm_mse` it is MAE's normalised pixels."""

    def __init__(self, online: Encoder) -> None:
        super().__init__()

    @staticmethod
    def width(online: Encoder, **settings: Any) -> int:
        """The numbers of a patch."""
        return online.embed.in_features

    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Float[Tensor, "b m p"]:
        return take(patches, view.masked)


class Tokens(Target):
    """A patch's code: `encode` gives ids, [images, masked], of which the decoder predicts the logits.

    What tells the codes was fitted before (`lmim.tokenizer`), and is kept in the trial's checkpoint.
    """

    codes: int

    def prepare(self, config: Config, dataset: Dataset, resumed: bool) -> None:
        """Take over what was fitted, unless a checkpoint has brought it.

        Raises:
            UserError: it was not fitted, or not on this machine.
        """
        if resumed:
            return
        file = tokenizers.folder(config, dataset.version) / tokenizers.WEIGHTS
        if not file.is_file():
            raise UserError(
                f"{file}: the {tokenizers.tell(config)} is not fitted on this machine: "
                "python -m lmim.tokenizer SWEEP_FILE does"
            )
        self.load_state_dict(load_file(file))

    @torch.no_grad()
    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Int[Tensor, "b m"]:
        # rounded to bfloat16, a patch between two codes would change sides
        with torch.autocast("cuda" if patches.is_cuda else "cpu", enabled=False):
            return self.ids(take(patches, view.masked).float())

    def ids(self, patches: Float[Tensor, "*b p"]) -> Int[Tensor, "*b"]:
        """The codes of patches."""
        raise NotImplementedError

    def decode(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b p"]:
        """The patches that codes stand for."""
        raise NotImplementedError


class KMeans(Tokens):
    """The nearest of some centroids, which k-means has fitted to the training images' patches.

    There are `codes` centroids. The pixels are those that the encoder is given.
    """

    centroids: Tensor

    def __init__(self, online: Encoder, *, codes: PositiveInt = 128) -> None:
        super().__init__()
        self.codes = codes
        self.register_buffer("centroids", torch.zeros(codes, online.embed.in_features))

    @staticmethod
    def width(online: Encoder, *, codes: int = 128, **settings: Any) -> int:
        """A logit a code."""
        return codes

    def ids(self, patches: Float[Tensor, "*b p"]) -> Int[Tensor, "*b"]:
        half = self.centroids.square().sum(dim=1) / 2  # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2)
        return (patches @ self.centroids.T - half).argmax(dim=-1)

    def decode(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b p"]:
        return self.centroids[ids]


class Fsq(Tokens):
    """The code of a patch by finite scalar quantisation (arXiv 2309.15505); see `lmim/quantise.py`.

    The code's parts have so many `levels` each, such as 8x6x5, which makes 240 codes.
    """

    def __init__(self, online: Encoder, *, levels: str = "8x6x5") -> None:
        super().__init__()
        self.codes = math.prod(levels_of(levels))
        autoencoder = PatchAutoencoder(online.embed.in_features, levels_of(levels))
        self.autoencoder = autoencoder.requires_grad_(False)

    @staticmethod
    def width(online: Encoder, *, levels: str = "8x6x5", **settings: Any) -> int:
        """A logit a code."""
        return math.prod(levels_of(levels))

    def ids(self, patches: Float[Tensor, "*b p"]) -> Int[Tensor, "*b"]:
        return self.autoencoder.fsq.ids(self.autoencoder.encode(patches))

    def decode(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b p"]:
        return self.autoencoder.decode(self.autoencoder.fsq.codes(ids))


TARGETS: dict[str, type[Target]] = {
    "joint": Joint,
    "stop_gradient": StopGradient,
    "ema": Momentum,
    "frozen_random": FrozenRandom,
    "pixels": Pixels,
    "kmeans": KMeans,
    "fsq": Fsq,
}
