"""What the prediction is compared with the target by: pure functions of (prediction, target).

Latent MIM (arXiv 2407.15837), section on direct reconstruction and patch discrimination. All take
`prediction` and `target` of shape [images, masked patches, channels] and give the mean as a scalar
(`cross_entropy` a target of ids, [images, masked patches]); what else one takes, by keyword, are the
settings of the config's section `loss` that it reads.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lmim.variants import Positive


def mse(prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"]) -> Float[Tensor, ""]:
    """Mean squared error of the raw latents."""
    return F.mse_loss(prediction, target)


def norm_mse(prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"]) -> Float[Tensor, ""]:
    """Mean squared error against the target standardised over its channels (MAE's normalised pixels)."""
    mean = target.mean(dim=-1, keepdim=True)
    variance = target.var(dim=-1, keepdim=True)
    return F.mse_loss(prediction, (target - mean) / (variance + 1e-6).sqrt())


def cosine(prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"]) -> Float[Tensor, ""]:
    """One minus the cosine of prediction and target: 0 when they point the same way, 2 when opposite."""
    return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()


def smooth_l1(prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"]) -> Float[Tensor, ""]:
    """Huber loss: quadratic below an error of one, linear above."""
    return F.smooth_l1_loss(prediction, target)


def patch_discrimination(
    prediction: Float[Tensor, "b m d"], target: Float[Tensor, "b m d"], *, tau: Positive = 0.2
) -> Float[Tensor, ""]:
    """InfoNCE within an image: which of its masked patches is this the latent of?

    The positive is the same patch, the negatives are the image's other masked patches and never come
    from another image, so the loss does not depend on the batch. Predictions are standardised per
    channel over the patches of their image; `tau` is the temperature, and 2 tau rescales the loss.
    With one masked patch there is nothing to tell apart, and the standard deviation is undefined.

    >>> import torch
    >>> latents = torch.eye(4)[None]
    >>> bool(patch_discrimination(latents, latents) < patch_discrimination(latents, latents.flip(1)))
    True
    """
    images, patches, _ = prediction.shape
    mean = prediction.mean(dim=1, keepdim=True)
    deviation = prediction.std(dim=1, keepdim=True)
    p = F.normalize((prediction - mean) / (deviation + 1e-4), dim=-1)
    t = F.normalize(target, dim=-1)
    logits = p @ t.transpose(1, 2) / tau
    positives = torch.arange(patches, device=p.device).expand(images, patches)
    return F.cross_entropy(logits.flatten(0, 1), positives.flatten()) * (2 * tau)


def cross_entropy(prediction: Float[Tensor, "b m c"], target: Int[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Which of c codes each patch is (BEiT, arXiv 2106.08254): softmax cross-entropy of the logits, in nats.

    >>> cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[0, 3]])).exp().item()
    4.0
    """
    return F.cross_entropy(prediction.flatten(0, 1), target.flatten())


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": mse,
    "norm_mse": norm_mse,
    "cosine": cosine,
    "smooth_l1": smooth_l1,
    "patch_discrimination": patch_discrimination,
    "cross_entropy": cross_entropy,
}
