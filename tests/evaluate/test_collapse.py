"""The diagnostics by their mathematics."""

import pytest
import torch
from torch.nn import functional as F

from lmim.evaluate.collapse import diagnostics, mean_cosine, rankme
from lmim.metrics import COLLAPSED, RANK_RATIO, SPREAD_RATIO, kept


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
