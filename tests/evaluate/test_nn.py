"""1-NN against scikit-learn."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lmim.evaluate.nn import nn, nn_top1
from tests.evaluate.builders import clusters, frozen


def test_nn_is_leave_one_out_by_cosine() -> None:
    """An image counted as its own neighbour, or Euclidean distance, would inflate the paper's NN figure."""
    features, labels = clusters(200, noise=1.5)
    features = features * torch.rand(200, 1, generator=torch.Generator().manual_seed(1)).add(0.01)
    model = KNeighborsClassifier(2, metric="cosine").fit(features, labels)
    other = model.kneighbors(features, return_distance=False)[:, 1]
    expected = 100 * float((labels[other] == labels).float().mean())
    assert 30 < expected < 95
    found = frozen(clusters(50, seed=2, noise=1.5), (features, labels), 5)
    assert nn(found) == pytest.approx({"nn_top1": expected})


@pytest.mark.parametrize("chunk", [1, 7, 199, 200, 1000])
def test_nn_does_not_depend_on_the_chunk(chunk: int) -> None:
    """A figure that changes with the machine's memory setting would not be comparable."""
    features, labels = clusters(200, noise=1.5)
    assert nn_top1(features, labels, chunk=chunk) == nn_top1(features, labels, chunk=200)


def test_nn_needs_a_second_image() -> None:
    """A single image would otherwise be scored against itself, in silence."""
    with pytest.raises(ValueError, match="two images"):
        nn_top1(torch.ones(1, 3), torch.zeros(1, dtype=torch.long))
