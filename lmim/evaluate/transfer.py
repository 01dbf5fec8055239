"""Transfer: what the encoder's features say of another dataset than the one that it was trained on."""

import torch

from lmim.data import Split
from lmim.evaluate.features import BATCH, Frozen
from lmim.evaluate.knn import Neighbours
from lmim.evaluate.linear import Ridge
from lmim.variants import PositiveInt

METRICS = {
    "transfer_knn_top1": {"label": "transfer k-NN top-1", "unit": "%", "better": "higher"},
    "transfer_linear_top1": {"label": "transfer linear top-1", "unit": "%", "better": "higher"},
}


def transfer(
    frozen: Frozen, *, data: str = "digits", path: str = "", k: PositiveInt = 20
) -> dict[str, float]:
    """Accuracy in % of `knn` and of `linear` between the training and the judged images of other data.

    `data` names them and `path` is where they lie. They are seen at the trial's image size, and normalised by
    the mean and deviation of the data that the encoder was trained on, which are what it knows. `k` is how
    many neighbours vote.
    """
    other, model = frozen.open(), frozen.model
    judged: Split = getattr(other, frozen.split)
    queries = torch.cat([*model.encoded(judged, model.features)]).to(model.device)
    labels = judged.labels.to(model.device)
    neighbours, ridge = Neighbours(queries, k), Ridge(other.classes)
    known = iter(torch.split(other.train.labels, BATCH))
    for features in model.encoded(other.train, model.features):
        batch = features.to(model.device), next(known).to(model.device)
        neighbours.update(*batch)
        ridge.update(*batch)
    right = (ridge.predict(queries) == labels).double().mean()
    return {"transfer_knn_top1": neighbours.top1(labels), "transfer_linear_top1": 100 * float(right)}
