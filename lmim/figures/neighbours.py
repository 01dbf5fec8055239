"""The nearest neighbours of some images, by the features that protocols judge."""

import torch
from torch.nn import functional as F

from lmim.data.splits import spread
from lmim.evaluate.features import BATCH
from lmim.figures import Arrays, Subject, array
from lmim.variants import PositiveInt


def neighbours(
    trial: Subject,
    *,
    queries: PositiveInt = 3,
    nearest: PositiveInt = 5,
    among: PositiveInt = 1000,
    data: str = "",
    path: str = "",
) -> Arrays:
    """Query images and the images that are nearest by cosine, the nearest first; a query is no neighbour.

    `queries` are shown, spread evenly over those looked at. So many of the `nearest` are shown of each. They
    are looked for `among` so many images, spread evenly over the test split. `data` names other images than
    the trial's own. They lie in the folder `path`, if they lie on disk.

    Returns:
        `query` [q, c, s, s] and `nearest` [q, k, c, s, s] in 0..1, `cosine` [q, k], and `alike` [q, k],
        whether they are of one class.
    """
    split = trial.open(data, path).test
    rows = spread(len(split), among)
    parts = (trial.images(split, part).normalised for part in torch.split(rows, BATCH))
    features = torch.cat([trial.model.features(part).float().cpu() for part in parts])
    chosen = spread(len(rows), queries)
    unit = F.normalize(features, dim=1)
    cosine = unit[chosen] @ unit.T
    cosine[torch.arange(len(chosen)), chosen] = -torch.inf
    best, which = cosine.topk(min(nearest, len(rows) - 1), dim=1)
    shown = trial.images(split, rows[which.flatten()]).pixels
    labels = split.labels[rows]
    return {
        "query": array(trial.images(split, rows[chosen]).pixels),
        "nearest": array(shown.view(*which.shape, *shown.shape[1:])),
        "cosine": array(best),
        "alike": array(labels[which] == labels[chosen][:, None]),
    }
