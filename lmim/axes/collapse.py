"""What stops the target from collapsing: where the latents to be predicted come from.

Latent MIM (arXiv 2407.15837), section on joint optimisation of online and target encoder;
`frozen_random` is the target of Latent MIM Lite (arXiv 2511.13655), `pixels` that of MAE (arXiv 2111.06377).
Tokens (`Tokens` below) are BEiT's (arXiv 2106.08254); by which tokenizer is our choice.

A target has `encode(online, patches, view)`, which gives what is to be predicted of the masked patches,
[images, masked, channels], and may have `width`, how many channels that are. What of it follows the
optimiser's step is in `scheduled` and `after_step`; what it adds to the loss is in `regularise`. Its settings
are the keys of the config's section `collapse` that it reads; `target_sees` ([A]: mask_target) says which
patches the target encoder is shown.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from lmim.config import Config, levels_of
from lmim.data import Dataset
from lmim.encoder import Encoder, View, in_float32, take
from lmim.errors import UserError, cause
from lmim.plan import tokenizers
from lmim.quantise import PatchAutoencoder
from lmim.schedules import cosine_decay
from lmim.variants import BelowOne, Fraction, NonNegative, PositiveInt


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

    def regularise(
        self, visible: Float[Tensor, "b v d"], target: Float[Tensor, "b m e"] | Int[Tensor, "b m"]
    ) -> Float[Tensor, ""] | None:
        """What the latents of visible and masked patches add to the loss; None where nothing is added."""
        return None


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


# ------------------------------------------------------------------- a regulariser in asymmetry's stead


def hinged_deviation(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """VICReg's variance term: how far each channel's standard deviation is below one, in the mean."""
    return F.relu(1 - (x.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """VICReg's covariance term: the squared covariances of any two channels, summed, over the channels."""
    x = x - x.mean(dim=0)
    found = x.T @ x / (len(x) - 1)
    return (found.square().sum() - found.diagonal().square().sum()) / x.shape[1]


def variance_covariance(
    x: Float[Tensor, "n d"], y: Float[Tensor, "k d"], deviation: float, covariances: float
) -> Float[Tensor, ""]:
    """VICReg without its invariance: variance terms averaged over x and y, covariance terms summed.

    The average is that of the authors' code; the paper's formula sums.
    """
    return deviation * (hinged_deviation(x) + hinged_deviation(y)) / 2 + covariances * (
        covariance(x) + covariance(y)
    )


def vicreg(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """VICReg of two views (arXiv 2105.04906) with the published 25, 25 and 1.

    >>> round(vicreg(torch.ones(8, 4), torch.ones(8, 4)).item(), 4)  # collapsed
    24.75
    """
    return 25 * F.mse_loss(x, y) + variance_covariance(x, y, 25.0, 1.0)


def sigreg(x: Float[Tensor, "*g n d"], directions: Float[Tensor, "d s"]) -> Float[Tensor, ""]:
    """SIGReg (LeJEPA, arXiv 2511.08544): how far n samples are from N(0, I), in the mean over directions.

    In each direction n times the integral over t in [-3, 3] of |ecf(t) - e^(-t^2/2)|^2 e^(-t^2/2), ecf being
    the samples' empirical characteristic function; by the trapezoid rule, with 17 knots on [0, 3] as the
    integrand is even. The directions are unit vectors. Groups of samples are judged each by itself.
    About 1.05 for samples of N(0, I), however many; 0.402 n where all are zero.

    >>> round(sigreg(torch.zeros(100, 2), torch.eye(2)).item(), 1)
    40.2
    """
    t = torch.linspace(0, 3, 17, device=x.device)
    step, normal = 3 / 16, (-t.square() / 2).exp()
    weights = 2 * step * normal
    weights = torch.cat([weights[:1] / 2, weights[1:-1], weights[-1:] / 2])
    angles = (x @ directions)[..., None] * t
    error = (angles.cos().mean(dim=-3) - normal).square() + angles.sin().mean(dim=-3).square()
    return (error @ weights).mean() * x.shape[-2]


def levels(
    visible: Float[Tensor, "b v d"], target: Float[Tensor, "b m d"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
    """An image's latents as their mean, and what each patch differs from it by.

    Latents that tell a patch's place alone have one mean for all images, as visible and masked patches
    together are all places; latents that tell the image alone leave no difference. Either is predicted
    without looking, and all patches in one heap would pass for well spread.
    """
    latents = torch.cat([visible, target], dim=1)
    means = latents.mean(dim=1)
    return means, latents - means[:, None]


class VICReg(Joint):
    """The online weights, gradient through both sides, with VICReg's variance and covariance terms.

    VICReg (arXiv 2105.04906). It has two views of each image; here they are the two levels of an image's
    latents, which is our choice: means between images and differences within them. The invariance is what the
    loss axis compares, with a weight of one; published are 25, 25 and 1.
    `variance` weighs how far deviations are below one, relative to the loss. `covariance` weighs the squared
    covariances likewise.
    """

    def __init__(
        self,
        online: Encoder,
        *,
        variance: NonNegative = 1.0,
        covariance: NonNegative = 0.04,
        target_sees: Literal["masked", "all"] = "masked",
    ) -> None:
        super().__init__(online, target_sees=target_sees)
        self.weights = variance, covariance

    def regularise(
        self, visible: Float[Tensor, "b v d"], target: Float[Tensor, "b m d"]
    ) -> Float[Tensor, ""]:
        """Samples are the images' means, and all patches."""
        between, within = levels(visible, target)
        return variance_covariance(between, within.flatten(0, 1), *self.weights)


class SIGReg(Joint):
    """The online weights, gradient through both sides, held to a normal distribution by SIGReg.

    LeJEPA (arXiv 2511.08544), whose groups of samples are views; here they are the two levels of an image's
    latents, which is our choice. LeJEPA weighs it by lambda and the comparison by 1 - lambda; here the
    comparison, that of the loss axis, keeps a weight of one.
    `strength` is lambda. `slices` is the number of directions, drawn anew for each micro-batch.
    """

    def __init__(
        self,
        online: Encoder,
        *,
        strength: BelowOne = 0.02,
        slices: PositiveInt = 256,
        target_sees: Literal["masked", "all"] = "masked",
    ) -> None:
        super().__init__(online, target_sees=target_sees)
        self.strength, self.slices = strength, slices

    def regularise(
        self, visible: Float[Tensor, "b v d"], target: Float[Tensor, "b m d"]
    ) -> Float[Tensor, ""]:
        """Samples are images, independent as the statistic wants them: their means, and one patch of each.

        The trainer seeds the global generator for each micro-batch, whichever process has it.
        """
        between, within = levels(visible, target)
        directions = F.normalize(torch.randn(between.shape[1], self.slices, device=between.device), dim=0)
        found = (sigreg(between, directions) + sigreg(within.transpose(0, 1), directions)) / 2
        return self.strength / (1 - self.strength) * found


# ------------------------------------------------------------------------------- tokens, fitted before


class Tokens(Target):
    """A patch's code: `encode` gives ids, [images, masked], of which the decoder predicts the logits.

    What tells the codes was fitted before (`lmim.tokenizer`), and is kept in the trial's checkpoint.
    """

    codes: int

    @staticmethod
    def width(online: Encoder, *, codes: int = 128, **settings: Any) -> int:
        """A logit a code."""
        return codes

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
        with in_float32(patches):
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


class Ids(Tokens):
    """Ids computed elsewhere, of the training images in their order, read from a folder.

    The folder `path` holds train.npy, whole numbers [images, patches] in row-major order, and tokens.json
    with patch_size and codes. There are `codes` codes. What the ids are, `version`, is filled in at planning.
    The images are those of `open_dataset(config.data).train`, seen whole: data.crop_scale 1, data.flip false.
    """

    table: Tensor

    def __init__(
        self, online: Encoder, *, path: str = "", codes: PositiveInt = 128, version: str = ""
    ) -> None:
        super().__init__()
        self.path, self.codes, self.version = path, codes, version
        # as the images: read where they lie, and in no checkpoint
        self.register_buffer("table", torch.zeros(0, 0, dtype=torch.int32), persistent=False)

    def prepare(self, config: Config, dataset: Dataset, resumed: bool) -> None:
        """Read the ids, if they are those that were planned with.

        Raises:
            UserError: they are others, or not there.
        """
        table, version, _ = read_ids(self.path)
        if self.version not in ("", version):
            raise UserError(
                f"collapse.path: the ids in {self.path} were {self.version} when the trial was planned and "
                f"are {version} now: run the sweep again"
            )
        if table.shape != (expected := (len(dataset.train), config.grid**2)):
            raise UserError(
                f"collapse.path: {self.path} has ids {table.shape}, the training images {expected}"
            )
        self.table = torch.from_numpy(table).to(self.table.device)

    def encode(self, online: Encoder, patches: Float[Tensor, "b n p"], view: View) -> Int[Tensor, "b m"]:
        if view.index is None:
            raise UserError("collapse: ids needs an objective that says which images its views are of")
        return self.table[view.index].gather(1, view.masked).long()


def read_ids(path: str) -> tuple[NDArray[np.int32], str, dict[str, int]]:
    """The ids in a folder, a digest of what they are, and what is said of them: patch_size and codes.

    Raises:
        UserError: the folder is not as `Ids` describes it.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UserError(f"collapse.path: expected a folder with ids of tokens, found {path or 'nothing'}")
    for file in (root / "train.npy", root / "tokens.json"):
        if not file.is_file():
            raise UserError(f"collapse.path: expected the file {file}, found none")
    try:
        about = {key: int(json.loads(file.read_text())[key]) for key in ("patch_size", "codes")}
        found = np.load(root / "train.npy")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"collapse.path: {root} cannot be read: {cause(error)}") from None
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iu":
        raise UserError(
            f"collapse.path: {root / 'train.npy'}: expected whole numbers [images, patches], found "
            f"{found.dtype} {[*found.shape]}"
        )
    if found.min() < 0 or found.max() >= about["codes"]:
        raise UserError(
            f"collapse.path: {root / 'train.npy'}: expected ids from 0 to {about['codes'] - 1}, the codes of "
            f"tokens.json, found {found.min()} to {found.max()}"
        )
    table = np.ascontiguousarray(found, dtype=np.int32)
    said = json.dumps([about, table.shape]).encode()
    return table, hashlib.sha256(said + hashlib.sha256(table.data).digest()).hexdigest()[:12], about


TARGETS: dict[str, type[Target]] = {
    "joint": Joint,
    "stop_gradient": StopGradient,
    "ema": Momentum,
    "frozen_random": FrozenRandom,
    "pixels": Pixels,
    "vicreg": VICReg,
    "sigreg": SIGReg,
    "kmeans": KMeans,
    "fsq": Fsq,
    "ids": Ids,
}
