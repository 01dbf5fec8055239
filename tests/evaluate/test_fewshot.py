"""Few-shot classification: known draws, known figures, scikit-learn's optimum."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate import fewshot
from lmim.evaluate.features import Frozen
from lmim.evaluate.fewshot import METRICS, PENALTY, drawn, interval, logistic, prepared
from tests.evaluate.builders import clusters, frozen


def planted(rows: int = 600) -> Frozen:
    return frozen(clusters(rows), clusters(200, seed=1), 5)


@pytest.mark.parametrize("rows", [20, 40, 300])
def test_finds_the_optimum_of_scikit_learn(rows: int) -> None:
    """A solver that stops early, or another penalty, would give figures that no other code finds again."""
    features, labels = clusters(rows)
    x = prepared(features)
    model = LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-8, max_iter=10_000)
    expected = torch.from_numpy(model.fit(x.double(), labels).coef_.T)
    present = torch.from_numpy(model.classes_)
    found = logistic(x, labels, 5)

    def loss(weights: Tensor) -> float:
        own = torch.full((len(weights), 5), -1e6, dtype=torch.float64)
        own[:, present] = weights
        error = F.cross_entropy(x.double() @ own, labels, reduction="sum")
        return float(error + PENALTY / 2 * weights.square().sum())

    assert loss(found[:, present]) == pytest.approx(loss(expected), rel=1e-3)
    test = prepared(clusters(200, seed=1)[0]).double()
    agree = present[(test @ expected).argmax(1)] == (test @ found).argmax(1)
    assert float(agree.double().mean()) > 0.98


def test_batches_do_not_change_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory would decide the figure."""
    features, labels = clusters(300)
    whole = logistic(features, labels, 5)
    monkeypatch.setattr(fewshot, "CHUNK", 7)
    torch.testing.assert_close(logistic(features, labels, 5), whole, rtol=1e-3, atol=1e-3)


def test_as_many_of_each_class_as_asked_for() -> None:
    """Unequal classes would make the figure one of another protocol."""
    labels = torch.arange(1000) % 4
    labels[:970] = 0  # of the others there are 7 or 8
    for amount, most in ((1, 1), (2, 2), (5, 5), (10, 10)):
        counts = labels[drawn(labels, amount, 0)].bincount(minlength=4)
        assert counts.tolist() == [min(most, int(n)) for n in labels.bincount()]
    assert labels[drawn(labels, 0.1, 0)].bincount().tolist() == [98, 1, 1, 1]
    assert labels[drawn(labels, 0.01, 0)].bincount().tolist() == [10, 1, 1, 1]


def test_draws_differ_and_come_again_and_grow() -> None:
    """Equal draws would show an interval of nothing; new ones at each run, figures that nobody gets again."""
    labels = clusters(600)[1]
    two, five = drawn(labels, 2, 0), drawn(labels, 5, 0)
    assert torch.equal(two, drawn(labels, 2, 0))
    assert not torch.equal(two, drawn(labels, 2, 1))
    assert set(two.tolist()) < set(five.tolist())
    assert len({*five.tolist()}) == len(five)


def test_a_feature_that_is_the_label_needs_one_image() -> None:
    """A shifted label would pass unseen where accuracies are low anyway."""
    labels = torch.arange(200) % 5
    told = torch.eye(5)[labels], labels
    found = fewshot.fewshot(frozen(told, told, 5), draws=2)
    assert found == {name: (0.0 if name.endswith("interval") else 100.0) for name in METRICS}


def test_features_without_labels_stay_at_chance() -> None:
    """A probe that sees the judged images' labels would be above it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 5
    train, judged = ((torch.randn(500, 16, generator=generator), labels) for _ in range(2))
    found = fewshot.fewshot(frozen(train, judged, 5))
    assert all(13 < found[f"fewshot_{name}"] < 27 for name in ("1", "2", "5", "10", "1pc", "10pc"))


def test_more_images_teach_more_and_the_figures_come_again() -> None:
    """The figures' names would not be those of their amounts."""
    first = fewshot.fewshot(planted(), draws=3)
    assert first.keys() == METRICS.keys()
    assert first == fewshot.fewshot(planted(), draws=3)
    assert first["fewshot_1"] < first["fewshot_5"] < first["fewshot_10pc"]
    assert first["fewshot_1pc"] == first["fewshot_1"]  # of each class about 120
    assert all(first[f"fewshot_{name}_interval"] > 0 for name in ("1", "2", "5", "10", "10pc"))


def test_half_width_by_hand() -> None:
    """An interval of another level or other degrees of freedom would be read as 95 %."""
    mean, half = interval([70.0, 72.0, 77.0])
    assert mean == 73
    assert half == pytest.approx(4.302653 * math.sqrt(13) / math.sqrt(3), rel=1e-5)
    assert math.isnan(interval([70.0])[1])


def test_sample_of_a_few_images() -> None:
    """Without figures on the sample no later version of the code could be compared."""
    assert fewshot.fewshot(planted(3000).sample(), draws=2).keys() == METRICS.keys()
