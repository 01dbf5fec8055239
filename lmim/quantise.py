"""Finite scalar quantisation (arXiv 2309.15505), and an autoencoder that makes tokens of patches by it.

A patch becomes a few numbers; each is squashed into a range and rounded to one of its few levels, so that the
codes are the product of the levels and no codebook is learned, nor can collapse. The gradient passes the
rounding unchanged (straight through).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FSQ(nn.Module):
    """Numbers, one for each of `levels`, to codes and back; section 3.1 and the code of its appendix."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = torch.tensor([1, *levels[:-1]]).cumprod(0)
        self.register_buffer("basis", basis, persistent=False)

    def bound(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Squashed so that rounding gives `levels` whole numbers around zero, one more below where even."""
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = (self.levels % 2 == 0) / 2
        return torch.tanh(z + torch.tan(offset / half)) * half - offset

    def forward(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The code that is nearest to the bounded numbers, its parts in [-1, 1]; the gradient of `bound`."""
        bounded = self.bound(z)
        whole = bounded + (bounded.round() - bounded).detach()
        return whole / (self.levels // 2)

    def ids(self, codes: Float[Tensor, "*b d"]) -> Int[Tensor, "*b"]:
        """Codes as whole numbers: mixed radix, the first part counting ones.

        >>> fsq = FSQ([8, 5])
        >>> fsq.ids(fsq.codes(torch.arange(40))).equal(torch.arange(40))
        True
        """
        half = self.levels // 2
        parts = (codes * half).round().long() + half
        return (parts * self.basis).sum(dim=-1)

    def codes(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """The codes that the numbers stand for."""
        half = self.levels // 2
        return (ids[..., None] // self.basis % self.levels - half) / half


class PatchAutoencoder(nn.Module):
    """A patch of `values` numbers to a code and back, by two perceptrons of two hidden layers.

    The paper's is convolutional and sees the image; that of single patches is our choice, so that a masked
    patch's token is a function of that patch alone.
    """

    def __init__(self, values: int, levels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.fsq = FSQ(levels)
        self.trunk = nn.Sequential(nn.Linear(values, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.to_code = nn.Linear(width, len(levels))
        self.decoder = nn.Sequential(
            *(nn.Linear(len(levels), width), nn.GELU(), nn.Linear(width, width), nn.GELU()),
            nn.Linear(width, values),
        )

    def encode(self, patches: Float[Tensor, "*b p"]) -> Float[Tensor, "*b d"]:
        """The patches' codes."""
        codes: Tensor = self.fsq(self.to_code(self.trunk(patches)))
        return codes

    def decode(self, codes: Float[Tensor, "*b d"]) -> Float[Tensor, "*b p"]:
        """The patches that codes stand for."""
        patches: Tensor = self.decoder(codes)
        return patches
