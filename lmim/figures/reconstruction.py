"""What is predicted where the target is pixels: masked image, prediction, original, as MAE shows them
(arXiv 2111.06377)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lmim.data.splits import spread
from lmim.encoder import take
from lmim.figures import Arrays, Lacking, Subject, array
from lmim.variants import PositiveInt


def reconstruction(trial: Subject, *, images: PositiveInt = 4, data: str = "", path: str = "") -> Arrays:
    """Images, which of their patches are masked, and what is predicted there beside what was seen.

    `images` are shown. A prediction of normalised pixels (`norm_mse`) says nothing of a patch's mean and
    deviation: it is given those of the original, as MAE's authors do. `data` names other images than the
    trial's own. They lie in the folder `path`, if they lie on disk.

    Returns:
        `image` and `predicted` [n, c, s, s] in 0..1, the second with the original where a patch was seen;
        `masked` [n, g, g].
    """
    split = trial.open(data, path).test
    seen = trial.images(split, spread(len(split), images))
    made = trial.masked(seen)
    original = take(made.patches, made.view.masked)
    if made.target.shape != original.shape or not torch.equal(made.target.float(), original.float()):
        raise Lacking("its targets are no pixels")
    prediction = made.prediction.float()
    if trial.config.section("loss").kind == "norm_mse":
        deviation = (original.var(dim=2, keepdim=True) + 1e-6).sqrt()
        prediction = prediction * deviation + original.mean(dim=2, keepdim=True)
    dataset, count = trial.model.dataset, made.patches.shape[1]
    index = made.view.masked[..., None].expand_as(prediction)
    whole = unpatchified(made.patches.float().scatter(1, index, prediction), dataset.channels)
    mean, std = (
        torch.tensor(part, device=whole.device)[:, None, None] for part in (dataset.mean, dataset.std)
    )
    grid = math.isqrt(count)
    masked = torch.zeros(len(whole), count, dtype=torch.bool)
    masked.scatter_(1, made.view.masked.cpu(), True)
    return {
        "image": array(seen.pixels),
        "predicted": array((whole * std + mean).clamp(0, 1)),
        "masked": array(masked.view(-1, grid, grid)),
    }


def unpatchified(patches: Float[Tensor, "b n p"], channels: int) -> Float[Tensor, "b c s s"]:
    """The square images that `patchify` has cut, without gaps."""
    grid = math.isqrt(patches.shape[1])
    side = math.isqrt(patches.shape[2] // channels)
    cells = patches.view(len(patches), grid, grid, side, side, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), channels, grid * side, grid * side)
