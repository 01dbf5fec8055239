"""Views, gaps and the similarity constraint by their mathematics."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lmim.axes.mask import (
    patchify,
    sample_offsets,
    sample_view,
    similarity,
    similarity_constraint,
)


@given(batch=st.integers(1, 5), patches=st.integers(2, 40), data=st.data())
def test_visible_and_masked_part_the_image(batch: int, patches: int, data: st.DataObject) -> None:
    """A patch in both would be copied instead of predicted; one in neither is never learned from."""
    visible = data.draw(st.integers(1, patches - 1))
    view = sample_view(batch, patches, visible, torch.Generator().manual_seed(1))
    assert view.visible.shape == (batch, visible)
    both = torch.cat([view.visible, view.masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(patches).expand(batch, -1))


def test_every_image_has_its_own_view() -> None:
    """One permutation for a whole batch would cut the method's randomness by the batch size."""
    view = sample_view(64, 25, 6, torch.Generator().manual_seed(0))
    assert len({tuple(row.tolist()) for row in view.visible.sort(dim=1).values}) > 32


@given(patch=st.integers(1, 4), gap=st.integers(0, 3), grid=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_window_never_leaves_its_cell(patch: int, gap: int, grid: int, seed: int) -> None:
    """Pixels of a neighbouring cell in a patch would undo the gap."""
    cell, side = patch + gap, grid * (patch + gap)
    rows = torch.arange(side) // cell
    owner = (rows[:, None] * grid + rows[None, :]).float().expand(2, 1, side, side)
    offsets = sample_offsets(2, grid**2, gap, torch.Generator().manual_seed(seed))
    patches = patchify(owner, patch, offsets, gap)
    assert torch.equal(patches, torch.arange(grid**2.0)[:, None].expand(2, -1, patch**2))


def test_offsets_fill_the_gap_and_only_the_gap() -> None:
    """Uniform in [0, gap) both ways, drawn for each image and cell."""
    offsets = sample_offsets(50, 36, 3, torch.Generator().manual_seed(0))
    assert set(offsets.flatten().tolist()) == {0, 1, 2}
    assert not torch.equal(offsets[0], offsets[1])
    assert not torch.equal(offsets[..., 0], offsets[..., 1])
    assert not sample_offsets(2, 4, 0, torch.Generator()).any()


def test_a_window_holds_the_pixels_at_its_offset() -> None:
    """Rows and columns must not be swapped, nor the order row, column, channel."""
    image = torch.arange(2 * 6 * 6.0).reshape(1, 2, 6, 6)
    offsets = torch.tensor([[[0, 1], [1, 0], [0, 0], [1, 1]]])
    patches = patchify(image, 2, offsets, 1)
    assert torch.equal(patches[0, 1], image[0, :, 1:3, 3:5].permute(1, 2, 0).flatten())
    assert torch.equal(patches[0, 3], image[0, :, 4:6, 4:6].permute(1, 2, 0).flatten())


def test_an_image_that_is_no_whole_number_of_cells_is_refused() -> None:
    """Cutting off the rest in silence would change the data."""
    with pytest.raises(ValueError, match=r"not divisible by patch \+ gap = 5"):
        patchify(torch.zeros(1, 1, 20, 21), 4, torch.zeros(1, 16, 2, dtype=torch.long), 1)


def test_similarity_is_the_mean_over_all_ordered_pairs() -> None:
    """The shortcut without the n x n matrix must be the same number."""
    latents = torch.randn(3, 11, 8, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(latents, dim=-1)
    torch.testing.assert_close(similarity(latents), (unit @ unit.transpose(1, 2)).mean())


def test_the_constraint_is_zero_at_its_aim() -> None:
    """Identical latents have similarity one, so an aim of one costs nothing and zero costs two."""
    same = torch.ones(2, 5, 4)
    assert similarity_constraint(same, same, 1.0).item() == pytest.approx(0, abs=1e-10)
    assert similarity_constraint(same, same, 0.0).item() == pytest.approx(2)
