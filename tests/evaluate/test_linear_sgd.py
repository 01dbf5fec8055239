"""MAE's probe: its optimiser's steps, its choice of a learning rate, known figures."""

import pytest
import torch
from timm.optim.lars import Lars
from torch.nn import functional as F

from lmim.evaluate.linear import linear_top1
from lmim.evaluate.linear_sgd import METRICS, RATES, Probes, linear_sgd, paced
from tests.evaluate.builders import clusters, frozen


def test_each_rate_takes_the_steps_of_lars_alone() -> None:
    """A norm taken over all rates together, or a scaled bias, would be another optimiser than MAE's."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 5, generator=generator)
    rates = torch.tensor([0.5, 20.0])
    probes = Probes(start, rates)
    alone = []
    for rate in rates.tolist():
        weight, bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(5))
        adapted = {"params": [weight], "always_adapt": True}
        optimiser = Lars([adapted, {"params": [bias]}], lr=rate, momentum=0.9, trust_coeff=0.001)
        alone.append((weight, bias, optimiser))
    for step in range(5):
        x, y = clusters(32, seed=step)
        probes.step(x, y, pace=1.0)
        for weight, bias, optimiser in alone:
            optimiser.zero_grad()
            F.cross_entropy(x @ weight + bias, y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()  # type: ignore[no-untyped-call]
    for number, (weight, bias, _) in enumerate(alone):
        torch.testing.assert_close(probes.weight[:, number], weight.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(probes.bias[number], bias.detach(), rtol=1e-5, atol=1e-6)


def test_pace() -> None:
    """Without warm-up large rates would diverge at once."""
    assert [paced(part / 18) for part in (0, 1, 2)] == pytest.approx([0, 0.5, 1])
    assert paced(1.0) == pytest.approx(0)
    assert paced(0.2) > paced(0.5) > paced(0.9)


def test_a_feature_that_is_the_label() -> None:
    """A shifted label would pass unseen where accuracies are low anyway."""
    labels = torch.arange(400) % 5
    told = torch.eye(5)[labels], labels
    found = linear_sgd(frozen(told, told, 5), epochs=20, batch_size=64)
    assert found.keys() == METRICS.keys()
    assert found["linear_sgd_top1"] == 100


def test_as_good_as_the_closed_form_and_the_same_again() -> None:
    """Learning rates that suit no features, or a stream of draws that others share, would make it noise."""
    train, judged = clusters(2000), clusters(500, seed=1)
    found = linear_sgd(frozen(train, judged, 5), epochs=30, batch_size=128)
    torch.rand(7)
    assert found == linear_sgd(frozen(train, judged, 5), epochs=30, batch_size=128)
    assert abs(found["linear_sgd_top1"] - linear_top1([train], [judged], 5)) < 3


def test_neither_scale_nor_offset_of_the_features_counts() -> None:
    """An arm whose features are small would need another learning rate."""
    (x, y), (tx, ty) = clusters(2000), clusters(500, seed=1)
    plain = linear_sgd(frozen((x, y), (tx, ty), 5), epochs=20, batch_size=128)
    moved = linear_sgd(frozen((100 * x + 7, y), (100 * tx + 7, ty), 5), epochs=20, batch_size=128)
    assert moved["linear_sgd_top1"] == pytest.approx(plain["linear_sgd_top1"], abs=1)


def test_the_judged_images_do_not_pick_the_learning_rate() -> None:
    """A figure that is the best of eight on the test set is too good."""
    train, (x, y) = clusters(500), clusters(300, seed=1)
    right, wrong = (
        linear_sgd(frozen(train, (x, labels), 5), epochs=40, batch_size=64) for labels in (y, (y + 1) % 5)
    )
    assert right["linear_sgd_lr"] == wrong["linear_sgd_lr"]
    assert right["linear_sgd_lr"] in RATES
    assert right["linear_sgd_top1"] > 50 > wrong["linear_sgd_top1"]


def test_features_without_labels_stay_at_chance() -> None:
    """A probe that sees the judged images' labels would be above it."""
    generator = torch.Generator().manual_seed(0)
    train, judged = (
        (torch.randn(500, 16, generator=generator), torch.randint(5, (500,), generator=generator))
        for _ in range(2)
    )
    assert 13 < linear_sgd(frozen(train, judged, 5), epochs=5)["linear_sgd_top1"] < 27


def test_sample_and_too_few() -> None:
    """Without figures on the sample no later version of the code could be compared."""
    assert linear_sgd(frozen(clusters(3000), clusters(500), 5).sample(), epochs=1).keys() == METRICS.keys()
    with pytest.raises(ValueError, match="three training images or more, found 2"):
        linear_sgd(frozen(clusters(2), clusters(5), 5))
