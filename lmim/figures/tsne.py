"""t-SNE of the patch features of one image, coloured by cluster (arXiv 2407.15837)."""

import math

import numpy as np
from sklearn.manifold import TSNE
from torch.nn import functional as F

from lmim.data.splits import spread
from lmim.evaluate.segmentation import clustered
from lmim.figures import Arrays, Lacking, Subject, array
from lmim.variants import Count, PositiveInt


def tsne(
    trial: Subject,
    *,
    images: PositiveInt = 2,
    clusters: PositiveInt = 4,
    perplexity: Count = 0,
    data: str = "",
    path: str = "",
) -> Arrays:
    """Images, the clusters of their patches, and the patches in two dimensions (van der Maaten 2008).

    `images` are shown, each embedded by itself. Their patches are in so many `clusters`, by Ward's linkage of
    features of unit length. `perplexity` is about how many neighbours a patch has (0: a quarter of the
    patches, 30 at most). `data` names other images than the trial's own. They lie in the folder `path`, if
    they lie on disk.

    Returns:
        `image` [n, c, s, s] in 0..1, `clusters` [n, g, g], `points` [n, g * g, 2] in the clusters' order.
    """
    split = trial.open(data, path).test
    seen = trial.images(split, spread(len(split), images))
    features = F.normalize(trial.model.patches(seen.normalised).float().cpu(), dim=2)
    count = features.shape[1]
    grid = math.isqrt(count)
    if grid**2 != count or count < 4:
        raise Lacking(f"it has {count} features an image, and no square of patches")
    near = min(perplexity or max(2, min(30, count // 4)), count - 1)
    groups = np.stack([clustered(one, clusters).numpy().reshape(grid, grid) for one in features])
    points = [
        TSNE(perplexity=near, init="pca", random_state=0).fit_transform(one.double().numpy())
        for one in features
    ]
    return {"image": array(seen.pixels), "clusters": groups, "points": np.stack(points)}
