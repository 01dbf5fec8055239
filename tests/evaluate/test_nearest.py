"""1-NN and k-NN against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from lmim.evaluate.nearest import TEMPERATURE, Neighbours, knn_top1, nn_top1


def clusters(rows: int, width: int = 8, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes, so that accuracies lie well between chance and 100."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(rows, width, generator=generator), labels


def test_nn_is_leave_one_out_by_cosine() -> None:
    """An image counted as its own neighbour, or Euclidean distance, would inflate the paper's NN figure."""
    features, labels = clusters(200)
    features = features * torch.rand(200, 1, generator=torch.Generator().manual_seed(1)).add(0.01)
    model = KNeighborsClassifier(2, metric="cosine").fit(features, labels)
    other = model.kneighbors(features, return_distance=False)[:, 1]
    expected = 100 * float((labels[other] == labels).float().mean())
    assert 30 < expected < 95
    assert nn_top1(features, labels) == pytest.approx(expected)


@pytest.mark.parametrize("chunk", [1, 7, 199, 200, 1000])
def test_nn_does_not_depend_on_the_chunk(chunk: int) -> None:
    """A figure that changes with the machine's memory setting would not be comparable."""
    features, labels = clusters(200)
    assert nn_top1(features, labels, chunk=chunk) == nn_top1(features, labels, chunk=200)


def test_nn_needs_a_second_image() -> None:
    """A single image would otherwise be scored against itself, in silence."""
    with pytest.raises(ValueError, match="two images"):
        nn_top1(torch.ones(1, 3), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("k", [1, 20, 500])
def test_knn_agrees_with_scikit_learn(k: int) -> None:
    """Wrong weights or neighbours would shift every k-NN figure in every table."""
    train, train_labels = clusters(400)
    test, test_labels = clusters(300, seed=1)

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
    assert knn_top1(train, train_labels, test, test_labels, k) == pytest.approx(expected)


@pytest.mark.parametrize("chunk", [1, 13, 64])
@pytest.mark.parametrize("batch", [3, 50, 399])
def test_knn_does_not_depend_on_how_the_training_set_is_cut(chunk: int, batch: int) -> None:
    """A neighbour lost or counted twice where two batches meet would bias the figure unseen."""
    train, train_labels = clusters(400)
    test, _ = clusters(60, seed=1)
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
        Neighbours(torch.ones(2, 3), 1).predict()
