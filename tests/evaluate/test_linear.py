"""The ridge probe against scikit-learn's."""

from random import Random

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lmim.evaluate import linear
from lmim.evaluate.linear import Ridge, linear_top1
from tests.evaluate.builders import frozen


def problem(rows: int, seed: int = 0, width: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Correlated channels of very different scales and offsets."""
    fixed = torch.Generator().manual_seed(7)
    mixing = torch.randn(width, width, generator=fixed)
    centres = torch.randn(classes, width, generator=fixed)
    scale = 10 ** torch.linspace(-3, 3, width)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    latent = centres[labels] + 1.5 * torch.randn(rows, width, generator=generator)
    return (latent @ mixing + 3) * scale, labels


def fitted(features: Tensor, labels: Tensor, batch: int, classes: int = 4) -> Ridge:
    ridge = Ridge(classes)
    for x, y in zip(torch.split(features, batch), torch.split(labels, batch), strict=True):
        ridge.update(x, y)
    return ridge


@pytest.mark.parametrize("penalty", [1e-4, 0.1, 10.0])
def test_agrees_with_scikit_learn(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the folded standardisation, the bias or the penalty would bend every linear figure."""
    train, train_labels = problem(500)
    test, test_labels = problem(400, seed=1)
    monkeypatch.setattr(linear, "PENALTIES", (penalty,))
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty * len(train)))
    model.fit(train.double(), train_labels)
    predicted = torch.from_numpy(model.predict(test.double()))
    ridge = fitted(train, train_labels, batch=64)
    assert torch.equal(ridge.predict(test), predicted)
    expected = 100 * float((predicted == test_labels).float().mean())
    assert 30 < expected < 99
    found = frozen((train, train_labels), (test, test_labels), 4)
    assert linear.linear(found) == pytest.approx({"linear_top1": expected})


def test_does_not_depend_on_the_batches() -> None:
    """The probe must give one figure whatever batch fits the device."""
    train, labels = problem(500)
    test, _ = problem(400, seed=1)
    whole, cut = fitted(train, labels, 500), fitted(train, labels, 7)
    assert whole.offset is not None
    assert cut.offset is not None
    torch.testing.assert_close(
        cut.fit()[-1] - cut.offset @ cut.fit()[:-1], whole.fit()[-1] - whole.offset @ whole.fit()[:-1]
    )
    assert torch.equal(cut.predict(test), whole.predict(test))
    assert torch.equal(cut.predict(test), cut.predict(test, chunk=11))


def test_penalty_is_the_one_with_the_least_held_out_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many channels as images an unpenalised probe overfits; the choice must see it."""
    train, labels = problem(60, width=50)
    chosen = fitted(train, labels, 16)
    weights = chosen.fit()
    draw = Random(0)
    held = torch.tensor([draw.random() < linear.HELD_OUT for _ in range(len(labels))])
    assert 3 <= int(held.sum()) <= 12
    one_hot = torch.nn.functional.one_hot(labels[held], 4).double()
    errors, fits = [], []
    for penalty in linear.PENALTIES:
        monkeypatch.setattr(linear, "PENALTIES", (penalty,))
        part = fitted(train[~held], labels[~held], 60)
        part.gram, part.cross = part.gram.sum(0, keepdim=True), part.cross.sum(0, keepdim=True)
        solution = linear._solve(part.gram[0], part.cross[0], (penalty,))[0]
        errors.append(float((part._with_bias(train[held].double()) @ solution - one_hot).square().sum()))
        fits.append(fitted(train, labels, 16).fit())
    best = min(range(len(errors)), key=errors.__getitem__)
    assert best > 0
    torch.testing.assert_close(weights, fits[best])


@pytest.mark.parametrize("period", [2, 10, 36])
def test_held_out_tenth_has_every_class(period: int) -> None:
    """Data that cycle through the classes must not leave one out of the choice or of the fit."""
    labels = torch.arange(36000) % period
    ridge = fitted(torch.randn(36000, 2), labels, 1000, period)
    fit, held = ridge.cross[:, -1]
    torch.testing.assert_close(held, torch.full_like(held, 3600 / period), rtol=0.4, atol=0)
    assert float((fit + held).sum()) == 36000


def test_survives_constant_channels_and_large_means() -> None:
    """A collapsed encoder has constant channels and means that dwarf the rest: still a score, not noise."""
    train, labels = problem(500)
    test, test_labels = problem(400, seed=1)
    plain = linear_top1([(train, labels)], [(test, test_labels)], 4)

    def disguised(x: Tensor) -> Tensor:
        return torch.cat([x.double() + 1e6, torch.full((len(x), 3), 0.1, dtype=torch.float64)], dim=1)

    batches = zip(torch.split(disguised(train), 64), torch.split(labels, 64), strict=True)
    assert linear_top1(batches, [(disguised(test), test_labels)], 4) == pytest.approx(plain, abs=0.5)


def test_collapsed_features_score_the_largest_class() -> None:
    """With nothing to go on the probe falls back on the class frequencies."""
    labels = torch.tensor([0, 1, 1, 1] * 50)
    assert linear_top1([(torch.full((200, 8), 0.3), labels)], [(torch.full((200, 8), 0.3), labels)], 4) == 75


def test_without_training_images() -> None:
    """An empty training split must not come out as a score."""
    with pytest.raises(ValueError, match="never given an image"):
        linear_top1([], [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))], 4)
