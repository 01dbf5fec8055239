"""ContrastiveCrop: crops that lie about the object, and two of them that differ (arXiv 2202.03278).

Where the object is says the model itself: the box about what its last features mark, looked for now and then.
By its authors' code (xyupeng/ContrastiveCrop): a crop's size and ratio are RandomResizedCrop's, and its
centre is drawn inside the box from Beta(a, a), which for a below 1 is dense at the box's edges.
"""

import math

import torch
from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor


def object_boxes(features: Float[Tensor, "b n d"], threshold: float) -> Float[Tensor, "b 4"]:
    """The smallest box about the patches of a square image that stand out, as parts of its sides.

    Those whose features' sum over channels, brought to 0..1 in each image, is above the threshold. Where all
    are alike it is the whole image.

    >>> features = torch.tensor([[[0.0], [9.0], [0.0], [5.0]]])  # 2 x 2 patches, the right ones stand out
    >>> object_boxes(features, 0.1).tolist()
    [[0.5, 0.0, 0.5, 1.0]]
    """
    heat = features.float().sum(dim=2)
    grid = math.isqrt(heat.shape[1])
    low, high = (bound(dim=1, keepdim=True).values for bound in (heat.min, heat.max))
    seen = ((heat - low > threshold * (high - low)) | (high <= low)).view(-1, grid, grid)
    bounds = []
    for lines in (seen.any(dim=1), seen.any(dim=2)):  # columns, then rows
        first = lines.int().argmax(dim=1)
        bounds.append((first, grid - lines.flip(1).int().argmax(dim=1) - first))
    (left, width), (top, height) = bounds
    return torch.stack([left, top, width, height], dim=1) / grid


def centred(
    boxes: Float[Tensor, "b v 4"],
    objects: Float[Tensor, "b 4"],
    places: Float[Tensor, "b v 2"],
    alpha: float,
) -> Float[Tensor, "b v 4"]:
    """The boxes moved so that their centres lie in the objects' boxes, and they in the image.

    `places` are uniform in 0..1; of them Beta(alpha, alpha) makes how far a centre is from the object's left
    and top to its right and bottom.
    """
    size, start = boxes[..., 2:], objects[:, None, :2]
    least, most = (
        torch.minimum((centre - size / 2).clamp_min(0), 1 - size)
        for centre in (start, start + objects[:, None, 2:])
    )
    part = torch.from_numpy(betaincinv(alpha, alpha, places.double().numpy())).float()
    return torch.cat([least + part * (most - least), size], dim=2)
