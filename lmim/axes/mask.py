"""Which patches are seen: patches with gaps between them, view sampling, the similarity constraint.

Latent MIM (arXiv 2407.15837), section on the correlation between visible and target patches.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lmim.config import Mask
from lmim.encoder import View


def sample_view(batch: int, patches: int, num_visible: int, generator: torch.Generator) -> View:
    """One random permutation for each image: its first `num_visible` patches are visible, the rest masked.

    The result lies on the generator's device.
    """
    noise = torch.rand(batch, patches, generator=generator, device=generator.device)
    order = noise.argsort(dim=1)
    return View(order[:, :num_visible], order[:, num_visible:])


def draw_mask(batch: int, patches: int, mask: Mask, generator: torch.Generator) -> dict[str, Tensor]:
    """What is random about the patches of some images, as an objective's draw has it."""
    offsets = sample_offsets(batch, patches, mask.gap, generator)
    view = sample_view(batch, patches, mask.visible(patches), generator)
    return {"offsets": offsets, "visible": view.visible, "masked": view.masked}


def patchify(
    images: Float[Tensor, "b c h w"], patch: int, offsets: Int[Tensor, "b n 2"] | None = None, gap: int = 0
) -> Float[Tensor, "b n p"]:
    """Pixels of each patch, flattened in the order row, column, channel.

    The image is cut into square cells of `patch + gap` pixels; in each a patch-sized window starts
    `offsets` (rows, columns) from the cell's corner. A window never reads outside its cell.

    Raises:
        ValueError: the image is not a whole number of cells high and wide, or a gap has no offsets.
    """
    batch, channels, height, width = images.shape
    cell = patch + gap
    if height % cell or width % cell:
        raise ValueError(f"an image of {height} x {width} pixels is not divisible by patch + gap = {cell}")
    rows, columns = height // cell, width // cell
    cells = images.reshape(batch, channels, rows, cell, columns, cell).permute(0, 2, 4, 3, 5, 1)
    cells = cells.reshape(batch, rows * columns, cell, cell, channels)
    if gap:
        if offsets is None:
            raise ValueError("patches with a gap between them need the offsets of their windows")
        steps = torch.arange(patch, device=images.device)
        down = (offsets[..., 0, None] + steps)[..., :, None]
        across = (offsets[..., 1, None] + steps)[..., None, :]
        index = (down * cell + across).flatten(2)[..., None].expand(-1, -1, -1, channels)
        cells = cells.flatten(2, 3).gather(2, index)
    return cells.reshape(batch, rows * columns, patch * patch * channels)


def sample_offsets(batch: int, patches: int, gap: int, generator: torch.Generator) -> Int[Tensor, "b n 2"]:
    """Where each window starts in its cell, uniform in [0, gap) rows and columns; zeros without a gap."""
    return torch.randint(max(gap, 1), (batch, patches, 2), generator=generator, device=generator.device)


def as_drawn(
    images: Float[Tensor, "b c h w"], patch: int, mask: Mask, own: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "b n p"], View]:
    """The patches of images, and which of them are seen, by what `draw_mask` drew of them."""
    patches = patchify(images, patch, own["offsets"], mask.gap)
    return patches, View(own["visible"], own["masked"], own.get("index"))


def similarity(latents: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """Mean cosine over all ordered pairs of an image's latents, self-pairs included.

    It equals the squared norm of the mean unit vector, so no n x n matrix is made.
    """
    return F.normalize(latents, dim=-1).mean(dim=1).square().sum(dim=-1).mean()


def similarity_constraint(
    prediction: Float[Tensor, "b m o"], visible: Float[Tensor, "b v d"], aim: float | Tensor
) -> Float[Tensor, ""]:
    """How far the similarity within predictions, and within visible latents, is from `aim`, squared."""
    return (similarity(prediction) - aim) ** 2 + (similarity(visible) - aim) ** 2
