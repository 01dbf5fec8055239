"""k-NN against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lmim.evaluate.knn import TEMPERATURE, Neighbours, knn
from tests.evaluate.builders import clusters, frozen, nothing


@pytest.mark.parametrize("k", [1, 20, 500])
def test_knn_agrees_with_scikit_learn(k: int) -> None:
    """Wrong weights or neighbours would shift every k-NN figure in every table."""
    train, train_labels = clusters(400, noise=1.5)
    test, test_labels = clusters(300, seed=1, noise=1.5)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / TEMPERATURE)

    model = KNeighborsClassifier(min(k, 400), metric="cosine", weights=weights, algorithm="brute")
    model.fit(train.double(), train_labels)
    predicted = torch.from_numpy(model.predict(test.double()))
    neighbours = Neighbours(test, k)
    neighbours.update(train, train_labels)
    assert torch.equal(neighbours.predict(), predicted)
    expected = 100 * float((predicted == test_labels).float().mean())
    assert 30 < expected < 95
    found = frozen((train, train_labels), (test, test_labels), 5)
    assert knn(found, k=k) == pytest.approx({"knn_top1": expected})


@pytest.mark.parametrize("chunk", [1, 13, 64])
@pytest.mark.parametrize("batch", [3, 50, 399])
def test_knn_does_not_depend_on_how_the_training_set_is_cut(chunk: int, batch: int) -> None:
    """A neighbour lost or counted twice where two batches meet would bias the figure unseen."""
    train, train_labels = clusters(400, noise=1.5)
    test, _ = clusters(60, seed=1, noise=1.5)
    whole = Neighbours(test, 20)
    whole.update(train, train_labels)
    cut = Neighbours(test, 20, chunk)
    for features, labels in zip(torch.split(train, batch), torch.split(train_labels, batch), strict=True):
        cut.update(features, labels)
    torch.testing.assert_close(cut.similarity.sort().values, whole.similarity.sort().values)
    assert torch.equal(cut.predict(), whole.predict())


def test_knn_without_training_images() -> None:
    """An empty training split must not come out as a score."""
    with pytest.raises(ValueError, match="never given an image"):
        knn(frozen(nothing(3), (torch.ones(2, 3), torch.zeros(2, dtype=torch.long)), 1), k=1)
