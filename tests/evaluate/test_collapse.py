"""The diagnostics, and the protocol, by their mathematics."""

import math

import pytest
import torch
from torch.nn import functional as F

from lmim.evaluate.collapse import METRICS, collapse, diagnostics, mean_cosine, rankme, uniformity
from lmim.evaluate.features import freeze
from lmim.metrics import COLLAPSED, RANK_RATIO, SPREAD_RATIO, kept
from lmim.trial.evaluation import read_evaluations
from tests.evaluate.builders import DIGITS, flat, model, quarters


def test_rank_of_isotropic_and_of_constant_features() -> None:
    """The ends of the scale by which a trial is called collapsed."""
    orthogonal = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).Q
    assert float(rankme(orthogonal)) == pytest.approx(16, rel=1e-4)
    assert float(rankme(torch.ones(64, 16))) == pytest.approx(1, abs=1e-3)
    assert float(rankme(torch.zeros(64, 16))) == 1


def test_rank_is_the_entropy_of_the_singular_values() -> None:
    """Squared singular values, a common slip, would give 2.41 and move every verdict on collapse."""
    assert float(rankme(torch.diag(torch.tensor([2.0, 1.0, 1.0])))) == pytest.approx(2**1.5, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rank_does_not_depend_on_scale(scale: float) -> None:
    """A target that shrinks or blows up without losing directions has not collapsed."""
    features = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert float(rankme(features * scale)) == pytest.approx(float(rankme(features)), rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_features_are_nan_not_an_exception(bad: float) -> None:
    """A diverged trial is a result: its last diagnostics must not take the trainer down."""
    features = torch.randn(8, 4, 16)
    features[3, 2, 1] = bad
    assert torch.isnan(diagnostics(features)["rank"])


def test_mean_cosine_is_the_mean_over_pairs() -> None:
    """Self-pairs left in would make a small batch look collapsed."""
    features = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    unit = F.normalize(features, dim=-1)
    pairs = unit @ unit.mT
    expected = pairs[:, ~torch.eye(10, dtype=torch.bool)].mean(dim=1)
    torch.testing.assert_close(mean_cosine(features), expected)
    assert torch.isnan(mean_cosine(torch.ones(1, 6)))


def test_diagnostics_tell_images_from_patches() -> None:
    """Confusing the two axes would blame the images for what happens between patches."""
    generator = torch.Generator().manual_seed(0)
    between = torch.randn(256, 1, 32, generator=generator).expand(-1, 9, -1)
    same_patches = diagnostics(between)
    assert float(same_patches["patch_cosine"]) == pytest.approx(1, abs=1e-5)
    assert abs(float(same_patches["image_cosine"])) < 0.05
    assert float(same_patches["std"]) == pytest.approx(1, abs=0.05)
    assert float(same_patches["rank"]) > 28
    same_images = diagnostics(torch.randn(1, 9, 32, generator=generator).expand(256, -1, -1))
    assert abs(float(same_images["patch_cosine"])) < 0.2
    assert float(same_images["image_cosine"]) == pytest.approx(1, abs=1e-5)
    assert float(same_images["std"]) == pytest.approx(0, abs=1e-5)
    assert float(same_images["rank"]) == pytest.approx(1, abs=1e-3)
    assert {value.shape for value in same_images.values()} == {torch.Size()}


def left_of(features: torch.Tensor) -> float:
    """What is left of isotropic features that have become these, one vector an image."""
    first = torch.randn(512, 1, 64, generator=torch.Generator().manual_seed(0))
    before, now = (diagnostics(each) for each in (first, features.unsqueeze(1)))
    return kept(
        {
            RANK_RATIO: float(now["rank"] / before["rank"]),
            SPREAD_RATIO: float(now["spread"] / before["spread"]),
        }
    )


def test_known_collapses_are_told_from_what_is_none() -> None:
    """A classifier's features, drawn together by class, are of low rank, and no trial of it has collapsed."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(512, 64, generator=generator)
    classes = torch.randint(10, (512,), generator=generator)
    one, signs = F.normalize(torch.randn(64, generator=generator), dim=0), torch.sign(noise[:, :1])
    assert left_of(one + 0.001 * noise) < 0.1, "complete: one vector for all"
    assert left_of(signs * one + 0.01 * noise) < COLLAPSED, "dimensional: a line"
    neural = F.one_hot(classes, 64) + 0.01 * noise
    assert float(rankme(neural)) < 64 * COLLAPSED, "by its rank alone it would count as one"
    assert left_of(neural) > 0.9, "neural collapse: ten corners of a simplex"
    assert left_of(noise[:, :20] @ torch.randn(20, 64, generator=generator)) > 0.9, "20 directions of 64"
    assert left_of(noise) == pytest.approx(1, abs=0.05)


def test_uniformity_by_hand() -> None:
    """Pairs of an image with itself, or distances that are not squared, would be another figure."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])  # squared distances of the directions: 2, 4, 2
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity(x) == pytest.approx(expected, rel=1e-6)
    assert uniformity(x, chunk=2) == pytest.approx(expected, rel=1e-6)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)
    assert math.isnan(uniformity(torch.ones(1, 3)))


def test_protocol_is_that_of_all_judged_images() -> None:
    """Figures of another batch, or of the training images, would be called by the same names."""
    frozen = freeze(model(), ["test"])["test"]
    found = collapse(frozen)
    assert found.keys() == METRICS.keys()
    assert found == collapse(frozen)
    features = frozen.judged.features
    images = model().normalised(*DIGITS.test.read(torch.arange(len(DIGITS.test)), 8))
    by_patch = mean_cosine(quarters(images)).mean()
    assert found["rankme"] == pytest.approx(float(rankme(features)))
    assert found["image_cosine"] == pytest.approx(float(mean_cosine(features)))
    assert found["patch_cosine"] == pytest.approx(float(by_patch), rel=1e-5)
    assert found["uniformity"] == pytest.approx(uniformity(features))
    assert collapse(frozen.sample()).keys() == METRICS.keys()


def test_alignment_is_the_distance_of_two_crops() -> None:
    """Crops that were the same would align anything."""
    frozen = freeze(model(), ["test"])["test"]
    whole, wide, narrow = (collapse(frozen, crop_scale=scale)["alignment"] for scale in (1.0, 0.7, 0.2))
    assert 0 <= whole < wide < narrow < 2
    constant = collapse(freeze(model(lambda x: 1 + 0 * flat(x)), ["test"])["test"])
    assert constant["alignment"] == pytest.approx(0, abs=1e-6)
    assert constant["uniformity"] == pytest.approx(0, abs=1e-4)
    assert constant["rankme"] == pytest.approx(1, abs=1e-3)


def test_its_metrics_are_not_those_of_the_trainer() -> None:
    """One name for two figures is refused when planned."""
    [one] = read_evaluations(["collapse"])
    assert {metric.name for metric in one.metrics.values()} == {f"eval/{name}" for name in METRICS}
