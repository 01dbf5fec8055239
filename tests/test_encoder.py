"""The encoder over any subset of patches, and the projector on top of it."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from lmim import config
from lmim.axes.mask import sample_view
from lmim.encoder import Encoder, initialise, projector, sincos_positions, take


def build(projector_depth: int = 3) -> Encoder:
    torch.manual_seed(0)
    sizes = config.Encoder(patch_size=2, width=16, depth=2, heads=2)
    projection = config.Projector(width=24, depth=projector_depth)
    encoder = Encoder(sizes, projection, partial(sincos_positions, 4), values=2 * 2 * 3)
    initialise(encoder)
    return encoder


def test_positions_are_the_authors_table() -> None:
    """Rows and columns mixed up, or codes one apart, would load the authors' weights and compute nonsense."""
    table = sincos_positions(3, 8)
    assert table.shape == (9, 8)
    row, column = 1, 2
    x, y = (3 / 2 * index for index in (column, row))  # linspace(0, 3, 3): neighbours are 1.5 apart
    slow = 10000**-0.5
    expected = [f(angle * w) for angle in (x, y) for f in (math.sin, math.cos) for w in (1, slow)]
    torch.testing.assert_close(table[3 * row + column], torch.tensor(expected))
    assert len({tuple(code) for code in table.tolist()}) == 9


def test_take_keeps_the_order_of_the_indices() -> None:
    """Targets and predictions would be compared between different patches."""
    tokens = torch.arange(12.0).view(2, 3, 2)
    taken = take(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_tokens_of_a_subset_are_those_of_its_patches_in_any_order() -> None:
    """A latent that depended on its place in the sample would carry the mask, not the image."""
    encoder = build()
    patches = torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(0))
    view = sample_view(3, 16, 6, torch.Generator().manual_seed(1))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    plain, shuffled = encoder(patches, view.visible), encoder(patches, view.visible[:, order])
    assert plain.shape == (3, 7, 16)
    torch.testing.assert_close(shuffled[:, 0], plain[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled[:, 1:], plain[:, 1:][:, order], rtol=1e-4, atol=1e-5)
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(encoder(patches, everything), encoder(patches))


def test_what_is_not_in_the_subset_is_not_seen() -> None:
    """Pixels of masked patches would leak into what must predict them."""
    encoder = build()
    patches = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(0))
    view = sample_view(2, 16, 6, torch.Generator().manual_seed(1))
    changed = patches.scatter(1, view.masked[..., None].expand(-1, -1, 12), 9.0)
    assert torch.equal(encoder(patches, view.visible), encoder(changed, view.visible))
    assert not torch.allclose(encoder(patches, view.masked), encoder(changed, view.masked))


def test_the_place_of_a_patch_counts() -> None:
    """Without positions the encoder would see a bag of patches."""
    encoder = build()
    patches = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(0)).expand(-1, 16, -1)
    first, last = (encoder(patches, torch.tensor([[index]])) for index in (0, 15))
    assert not torch.allclose(first, last)


def test_places_are_spread_over_a_larger_image() -> None:
    """Rows would be taken for columns in frames that are not square, or places be those of a corner."""
    encoder = build()
    patches = torch.randn(2, len(encoder.positions), encoder.embed.in_features)
    assert torch.equal(encoder.evaluated(patches), encoder.evaluated(patches, rows=4)), "of training's size"
    place = torch.arange(4.0)
    encoder.positions = torch.cat([place.repeat_interleave(4)[:, None], place.repeat(4)[:, None]], dim=1)
    oblong = encoder.spread(8, 12).view(8, 12, 2)
    assert torch.allclose(oblong[..., 0], oblong[:, :1, 0], atol=1e-5), "a row's patches lie in one row"
    assert torch.allclose(oblong[..., 1], oblong[:1, :, 1], atol=1e-5)
    for line in (oblong[:, 0, 0], oblong[0, :, 1]):
        assert bool((line.diff() > 0).all())
        assert (line[0].item(), line[-1].item()) == pytest.approx((0, 3), abs=0.3)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_projector_is_as_deep_as_asked(depth: int) -> None:
    """The ablation of its depth would compare something else; 0 is no projector at all."""
    layers = projector(16, 24, depth)
    kinds = [type(layer) for layer in layers]
    assert kinds == ([nn.Linear, nn.LayerNorm, nn.GELU] * depth)[: max(3 * depth - 1, 0)]
    widths = [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)]
    hidden = [16, *[24] * (depth - 1), 16]
    assert widths == [(after, before) for before, after in pairwise(hidden)][:depth]
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Linear))
    patches = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(0))
    encoder = build(depth)
    latents = encoder(patches)
    assert latents.shape == (2, 17, 16)
    if not depth:
        assert torch.equal(latents, encoder.norm(encoder.tokens(patches)))


def test_evaluation_sees_patches_before_norm_and_projector() -> None:
    """Features of another layer give other accuracies than the paper's protocol."""
    encoder = build()
    patches = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.patch_features(patches), encoder.tokens(patches)[:, 1:])
    assert not torch.allclose(encoder.patch_features(patches), encoder(patches)[:, 1:])


def test_initialise_is_the_authors() -> None:
    """Another start is another experiment, most of all for a target that is never trained."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.full((1, 1, 4096), 9.0))
            self.mask_token = nn.Parameter(torch.full((1, 1, 8), 9.0))
            self.other = nn.Parameter(torch.full((8,), 9.0))
            self.linear, self.bare = nn.Linear(64, 192), nn.Linear(64, 64, bias=False)
            self.norm = nn.LayerNorm(8)

    torch.manual_seed(0)
    module = Tokens()
    initialise(module)
    bound = math.sqrt(6 / (64 + 192))
    assert module.linear.weight.abs().max() <= bound
    assert module.linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not module.linear.bias.any()
    assert module.cls_token.std().item() == pytest.approx(0.02, rel=0.05)
    assert not module.mask_token.any()
    assert (module.other == 9).all()
    assert (module.norm.weight == 1).all()
