"""Visual cues, and what a decoder may look at."""

from functools import partial

import pytest
import torch

from lmim.axes.decoder import DECODERS, visual_cues
from lmim.axes.mask import sample_view
from lmim.encoder import initialise, sincos_positions, take


def build(kind: str, cues: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    decoder = DECODERS[kind](24, partial(sincos_positions, 4), 24, width=16, depth=2, heads=4, cues=cues)
    initialise(decoder)
    return decoder


def test_cues_are_the_softmax_average_of_visible_latents_by_position() -> None:
    """METHOD's formula, written out for one query."""
    latents = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    positions = sincos_positions(4, 16)
    queries, keys = positions[None, [3, 7]], positions[None, [0, 1, 2, 9, 12]]
    weights = ((queries[0, 1] @ keys[0].T) * 16**-0.5).softmax(0)
    torch.testing.assert_close(visual_cues(latents, queries, keys)[0, 1], weights @ latents[0])


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("cues", [True, False])
def test_a_prediction_depends_on_its_own_position(kind: str, cues: bool) -> None:
    """Without positions every masked patch would get the same prediction."""
    decoder = build(kind, cues)
    view = sample_view(2, 16, 6, torch.Generator().manual_seed(0))
    prediction = decoder(torch.randn(2, 7, 24), view)
    assert prediction.shape == (2, 10, 24)
    assert prediction.std(dim=1).min() > 1e-4


@pytest.mark.parametrize("kind", DECODERS)
def test_cues_change_the_prediction(kind: str) -> None:
    """A `cues` axis that does nothing would be reported as 'no difference'."""
    view = sample_view(1, 16, 6, torch.Generator().manual_seed(0))
    latents = torch.randn(1, 7, 24)
    assert not torch.allclose(build(kind, True)(latents, view), build(kind, False)(latents, view))


@pytest.mark.parametrize("kind", DECODERS)
def test_the_order_of_visible_patches_does_not_matter(kind: str) -> None:
    """Patches are a set; an order-dependent decoder would read the sampling's permutation."""
    decoder = build(kind)
    view = sample_view(1, 16, 6, torch.Generator().manual_seed(0))
    latents = torch.randn(1, 7, 24)
    order = torch.tensor([[3, 1, 5, 0, 2, 4]])
    shuffled = torch.cat([latents[:, :1], take(latents[:, 1:], order)], dim=1)
    other = type(view)(view.visible.gather(1, order), view.masked)
    torch.testing.assert_close(decoder(latents, view), decoder(shuffled, other), rtol=1e-4, atol=1e-5)
