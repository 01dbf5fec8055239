"""Transfer: what the encoder's features say of another dataset than the one that it was trained on."""

from dataclasses import replace

from lmim.evaluate.features import Frozen
from lmim.evaluate.knn import knn
from lmim.evaluate.linear import linear
from lmim.variants import PositiveInt

METRICS = {
    "transfer_knn_top1": {"label": "transfer k-NN top-1", "unit": "%", "better": "higher"},
    "transfer_linear_top1": {"label": "transfer linear top-1", "unit": "%", "better": "higher"},
}
FEATURES = False
SECONDS = 2


def transfer(
    frozen: Frozen, *, data: str = "digits", path: str = "", k: PositiveInt = 20
) -> dict[str, float]:
    """Accuracy in % of `knn` and of `linear` between the training and the judged images of other data.

    `data` names them and `path` is where they lie. They are seen at the trial's image size, and normalised by
    the mean and deviation of the data that the encoder was trained on, which are what it knows. `k` is how
    many neighbours vote.
    """
    other = frozen.open()
    train, judged = (frozen.model.labelled(getattr(other, split)) for split in ("train", frozen.split))
    there = replace(frozen, train=train, judged=judged, classes=other.classes)
    figures = knn(there, k=k) | linear(there)
    return {f"transfer_{name}": value for name, value in figures.items()}
