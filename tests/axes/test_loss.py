"""The losses by their mathematics."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmim.axes.loss import LOSSES, cosine, norm_mse, patch_discrimination
from lmim.config import Config
from lmim.objectives import Setup


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, 16, generator=generator), torch.randn(3, 7, 16, generator=generator)


def test_patch_discrimination_is_infonce_over_the_patches_of_one_image(
    latents: tuple[Tensor, Tensor],
) -> None:
    """Written out patch by patch, as the paper's formula."""
    prediction, target = latents
    total = 0.0
    for p, t in zip(prediction, target, strict=True):
        p = (p - p.mean(0)) / (p.std(0) + 1e-4)
        for j in range(len(p)):
            logits = torch.stack([F.cosine_similarity(p[j], t[k], dim=0) for k in range(len(t))]) / 0.2
            total += (logits.logsumexp(0) - logits[j]).item() * 2 * 0.2
    assert patch_discrimination(prediction, target).item() == pytest.approx(total / 21, rel=1e-5)


def test_patch_discrimination_ignores_scale(latents: tuple[Tensor, Tensor]) -> None:
    """It must not be won by shrinking the latents, which is how mse collapses."""
    prediction, target = latents
    expected = patch_discrimination(prediction, target)
    torch.testing.assert_close(patch_discrimination(prediction * 50 + 3, target), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(patch_discrimination(prediction, target * 0.01), expected)


def test_patch_discrimination_needs_no_other_image(latents: tuple[Tensor, Tensor]) -> None:
    """Negatives from other images would make the result depend on the batch size."""
    prediction, target = latents
    alone = [patch_discrimination(prediction[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(patch_discrimination(prediction, target), torch.stack(alone).mean())


def test_a_constant_target_wins_every_direct_loss_but_not_patch_discrimination() -> None:
    """The paper's second claim in one line: the trivial solution costs 2 tau log(patches) here, 0 there."""
    constant = torch.ones(2, 9, 8)
    chance = 2 * 0.2 * math.log(9)
    assert patch_discrimination(constant, constant).item() == pytest.approx(chance, rel=1e-4)
    for name in ("mse", "cosine", "smooth_l1"):
        assert LOSSES[name](constant, constant).item() == pytest.approx(0, abs=1e-6)


def test_norm_mse_standardises_the_target_with_the_unbiased_variance(latents: tuple[Tensor, Tensor]) -> None:
    """MAE's own detail; a biased variance is off by n / (n - 1)."""
    prediction, target = latents
    variance = ((target - target.mean(-1, keepdim=True)) ** 2).sum(-1, keepdim=True) / 15
    expected = (
        (prediction - (target - target.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()).square().mean()
    )
    torch.testing.assert_close(norm_mse(prediction, target), expected)


def test_cosine_runs_from_zero_to_two(latents: tuple[Tensor, Tensor]) -> None:
    """The range that its docstring promises."""
    prediction, _ = latents
    assert cosine(prediction, 3 * prediction).item() == pytest.approx(0, abs=1e-5)
    assert cosine(prediction, -prediction).item() == pytest.approx(2, abs=1e-5)


def test_tau_reaches_patch_discrimination(latents: tuple[Tensor, Tensor]) -> None:
    """A temperature axis that changes nothing would look like a finding."""
    prediction, target = latents
    config = Config.read({"loss": {"kind": "patch_discrimination", "tau": 0.5}})
    loss = Setup(side=20, channels=1, classes=1).variant("loss", config.section("loss"))
    torch.testing.assert_close(loss(prediction, target), patch_discrimination(prediction, target, tau=0.5))
    assert not torch.allclose(loss(prediction, target), patch_discrimination(prediction, target))
