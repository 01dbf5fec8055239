"""Finite scalar quantisation: every code can occur, counts once, and lets the gradient through."""

import itertools
import math

import pytest
import torch

from lmim.config import levels_of
from lmim.quantise import FSQ, PatchAutoencoder

LEVELS = ["8x6x5", "2", "2x2x2", "3x2", "7x5x5"]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached(levels: str) -> None:
    """A level that no number is rounded to is a logit that no patch can have."""
    fsq = FSQ(levels_of(levels))
    line = torch.linspace(-6, 6, 61)
    z = torch.tensor([*itertools.product(line.tolist(), repeat=len(fsq.levels))][:: 1 + len(fsq.levels) // 3])
    codes = fsq(z)
    assert codes.min() >= -1
    assert codes.max() <= 1
    found = fsq.ids(codes)
    assert found.bincount().nonzero().numel() == math.prod(levels_of(levels))
    assert found.min() == 0
    assert found.max() == math.prod(levels_of(levels)) - 1


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_their_numbers_are_one_to_one(levels: str) -> None:
    """Two codes with one id would be told apart by nothing, and decoded as one."""
    fsq = FSQ(levels_of(levels))
    ids = torch.arange(math.prod(levels_of(levels))).view(-1, 1)
    codes = fsq.codes(ids)
    assert codes.shape == (len(ids), 1, len(fsq.levels))
    assert torch.equal(fsq.ids(codes), ids)
    assert len({tuple(row) for row in codes.flatten(0, 1).tolist()}) == len(ids)


def test_the_numbers_are_the_papers() -> None:
    """Levels 3 and 4, by hand: round(tanh(z)) and round(1.4985 tanh(z + 0.3465) - 0.5), basis 1 and 3."""
    fsq = FSQ([3, 4])
    z = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.3, 0.9]])
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, -1.0], [0.0, 0.5]])
    torch.testing.assert_close(fsq(z), expected)
    assert fsq.ids(fsq(z)).tolist() == [1 + 2 * 3, 2 + 3 * 3, 0, 1 + 3 * 3]


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    """Rounding has none, and the encoder would never learn."""
    fsq = FSQ([8, 5])
    z = torch.randn(50, 2, requires_grad=True)
    (through,) = torch.autograd.grad(fsq(z).sum(), z)
    (smooth,) = torch.autograd.grad((fsq.bound(z) / (fsq.levels // 2)).sum(), z)
    assert through.abs().min() > 0
    torch.testing.assert_close(through, smooth)
    autoencoder = PatchAutoencoder(9, (8, 5), 16)
    # far apart: where every patch has the code 0, the decoder's first weights get no gradient
    patches = 30 * torch.randn(64, 9)
    loss = (autoencoder.decode(autoencoder.encode(patches)) - patches).square().mean()
    gradients = torch.autograd.grad(loss, [*autoencoder.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
