"""A linear probe on frozen features, solved in closed form.

This is ridge regression onto one-hot labels, not MAE's protocol (90 epochs of SGD on augmented crops behind
a batch norm, at a learning rate picked by hand). An ablation needs a probe that is the same for every arm:
this one has a single optimum, no seed, no learning rate that suits one arm better than another, and costs one
pass over the training images. Its figures compare arms with each other, not with published linear probes.
"""

from collections.abc import Iterable
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.features import Frozen

METRICS = {"linear_top1": {"label": "linear top-1", "unit": "%", "better": "higher"}}

PENALTIES = tuple(10.0**exponent for exponent in range(-6, 3))
"""Candidates for the ridge, as a part of the variance of a standardised channel."""

HELD_OUT = 0.1


def linear(frozen: Frozen) -> dict[str, float]:
    """Accuracy in % on the judged images of a ridge classifier fitted to the training images."""
    return {"linear_top1": linear_top1(frozen.train.batches(), [frozen.judged.whole()], frozen.classes)}


class Ridge:
    """A ridge classifier fitted to a stream of labelled features in O(d^2 + d c) memory, however long it is.

    All that ridge needs, standardisation and choice of the penalty included, are the sums x x^T and x y^T,
    where x ends in a constant 1 for the bias. They are kept in float64, apart for a held-out tenth of the
    rows: the squared error on rows is a function of their sums too, so the penalty is chosen without a second
    pass, and the final fit uses all rows.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.draw = Random(0)
        self.offset: Float[Tensor, " d"] | None = None
        self.gram: Float[Tensor, "2 d1 d1"]
        self.cross: Float[Tensor, "2 d1 c"]
        self.weights: Float[Tensor, "d1 c"] | None = None

    def update(
        self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"] | Float[Tensor, "b c"]
    ) -> None:
        """Take one batch of the stream into account; `labels` may give the share of each class."""
        x = features.double()
        if self.offset is None:
            # Sums about a point amid the data: about 0 they would cancel where a mean dwarfs its deviation.
            self.offset = x.mean(dim=0)
            width = x.shape[1] + 1
            self.gram = x.new_zeros(2, width, width)
            self.cross = x.new_zeros(2, width, self.classes)
        x = self._with_bias(x)
        y = (labels if labels.is_floating_point() else F.one_hot(labels, self.classes)).double()
        # A fixed draw row by row: no order or period of the labels leaves a class out, nor do batches matter.
        held = torch.tensor([self.draw.random() < HELD_OUT for _ in range(len(labels))])
        for part, chosen in enumerate((~held, held)):
            rows = x[chosen]
            self.gram[part] += rows.T @ rows
            self.cross[part] += rows.T @ y[chosen]
        self.weights = None

    def fit(self) -> Float[Tensor, "d1 c"]:
        """Weights, the bias in the last row, for features less `offset`."""
        if self.weights is not None:
            return self.weights
        (fit, held), (fit_y, held_y) = self.gram, self.cross
        candidates = _solve(fit, fit_y, PENALTIES)
        errors = [((held @ w - 2 * held_y) * w).sum() for w in candidates]  # held-out |xw - y|^2 - |y|^2
        best = int(torch.stack(errors).argmin())
        self.weights = _solve(fit + held, fit_y + held_y, (PENALTIES[best],))[0]
        return self.weights

    def predict(self, features: Float[Tensor, "n d"], chunk: int = 4096) -> Int[Tensor, " n"]:
        """The class of the highest score for each row."""
        return torch.cat([self.scores(part).argmax(dim=1) for part in torch.split(features, chunk)])

    def scores(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """About how likely each class is, for each row."""
        return self._with_bias(features.double()) @ self.fit()

    def _with_bias(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d1"]:
        if self.offset is None:
            raise ValueError("nothing to fit: update was never given an image")
        return F.pad(x - self.offset, (0, 1), value=1.0)


def _solve(
    gram: Float[Tensor, "d1 d1"], cross: Float[Tensor, "d1 c"], penalties: Iterable[float]
) -> list[Float[Tensor, "d1 c"]]:
    """Ridge on standardised channels with a free bias, from sums; weights for the channels as they are."""
    count, classes = gram[-1, -1].clamp_min(1), cross[-1]
    mean = gram[-1, :-1] / count
    covariance = gram[:-1, :-1] / count - mean.outer(mean)
    std = covariance.diagonal().clamp_min(0).sqrt()
    # A constant channel is left as it is; divided by its deviation, rounding would become a feature.
    std = torch.where(std > 1e-12, std, torch.ones_like(std))
    values, vectors = torch.linalg.eigh(covariance / std.outer(std))
    target = vectors.T @ ((cross[:-1] - mean.outer(classes)) / count / std[:, None])
    solutions = []
    for penalty in penalties:
        weights = vectors @ (target / (values.clamp_min(0) + penalty)[:, None]) / std[:, None]
        solutions.append(torch.cat([weights, (classes / count - mean @ weights)[None]]))
    return solutions


def linear_top1(
    train: Iterable[tuple[Float[Tensor, "_ d"], Int[Tensor, " _"]]],
    test: Iterable[tuple[Float[Tensor, "_ d"], Int[Tensor, " _"]]],
    classes: int,
) -> float:
    """Accuracy in % on the batches of `test` of a `Ridge` fitted to the batches of `train`.

    >>> x, y = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> linear_top1([(x, y)], [(x, y)], classes=2)
    100.0
    """
    ridge = Ridge(classes)
    for features, labels in train:
        ridge.update(features, labels)
    correct = total = 0
    for features, labels in test:
        correct += int((ridge.predict(features) == labels).sum())
        total += len(labels)
    return 100 * correct / total
