"""Labels of a video's first frame, carried through it by how alike the frames' patches are; nothing is
trained.

Two protocols are in use, which differ in nearly every part: DINO's (arXiv 2104.14294, facebookresearch/dino),
and that of Videowalk (arXiv 2006.14613, ajabri/videowalk), which CropMAE and its like report. Figures of one
say nothing beside figures of the other.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

SIMILARITIES = 2**24
"""How many similarities are held at once, whatever the frame's size and the number of frames."""


@dataclass(frozen=True)
class Recipe:
    """How labels are carried; lengths are in patches."""

    last_frames: int
    """How many frames before the one in question are looked at, with what was predicted of them, beside frame
    0."""
    radius: int
    """Only patches so near are looked at; 0 is all."""
    top_k: int
    """How many patches of all those frames together give a patch its label."""
    temperature: float
    """A patch of cosine s counts for exp(s / temperature)."""
    square: bool = True
    """Near is up to `radius` rows and columns away; else at a distance below `radius`."""
    first_everywhere: bool = False
    """Frame 0 is looked at all over."""
    first_repeated: bool = False
    """Frame 0 stands in for frames before it, too, so that as many are looked at from the start."""
    ties: bool = True
    """Patches as alike as the last of the `top_k` count too."""
    smooth: bool = False
    """A patch of frame 0 has the labels of its pixels about its middle (bilinear); else of the nearest
    one."""
    stretched: bool = True
    """Each label's map is stretched to 0..1 before the largest is taken."""
    ratio: float = 0.0
    """The longer side of a frame over the shorter one; 0 is the clip's own, cut to a multiple of `LONGER`."""


DINO = Recipe(last_frames=7, radius=12, top_k=5, temperature=0.1)
VIDEOWALK = Recipe(
    last_frames=20, radius=20, top_k=7, temperature=0.7, square=False, first_everywhere=True,
    first_repeated=True, ties=False, smooth=True, stretched=False, ratio=880 / 480,
)  # fmt: skip


LONGER = 64
"""Pixels of which a frame's longer side is a multiple, by DINO's code."""


def frame_size(size: tuple[int, int], side: int, patch: int, recipe: Recipe) -> tuple[int, int]:
    """Rows and columns at which a frame is seen, whose shorter side is made `side` pixels, or left smaller.

    Both are cut to whole patches of `patch` pixels; the longer one by DINO's rule where it is as long and
    its patches divide it.

    >>> frame_size((480, 854), 480, 16, DINO), frame_size((480, 854), 480, 16, VIDEOWALK)
    ((480, 832), (480, 880))
    >>> frame_size((854, 480), 240, 14, DINO), frame_size((20, 20), 480, 5, DINO)
    ((420, 238), (20, 20))
    """
    shorter = max(1, min(side, *size) // patch) * patch
    own = shorter * (recipe.ratio or max(size) / min(size))
    unit = LONGER if not recipe.ratio and own >= LONGER and LONGER % patch == 0 else patch
    longer = max(1, int(own // unit)) * unit
    return (longer, shorter) if size[0] > size[1] else (shorter, longer)


def propagate(
    features: Iterable[Float[Tensor, "n d"]], first: Float[Tensor, "c h w"], recipe: Recipe
) -> Iterator[Float[Tensor, "c h w"]]:
    """The part that each label has in each patch, of every frame but the first, one after the other.

    `features` are the frames' own, patches row by row; `first` is what is true of frame 0. Frames are asked
    for one by one, and no more are kept than the recipe looks at.
    """
    labels, grid = first.flatten(1).T, (first.shape[1], first.shape[2])
    frames = iter(features)
    frame0 = F.normalize(next(frames).float(), dim=1), labels
    before: deque[tuple[Float[Tensor, "n d"], Float[Tensor, "n c"]]] = deque(maxlen=recipe.last_frames)
    if recipe.first_repeated:
        before.extend([frame0] * recipe.last_frames)
    for frame in frames:
        query = F.normalize(frame.float(), dim=1)
        keys, known = (torch.cat(part) for part in zip(frame0, *before, strict=True))
        soft = _carried(query, keys, known, grid, recipe)
        before.append((query, soft))
        yield soft.T.reshape(first.shape)


def _carried(
    query: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    known: Float[Tensor, "m c"],
    grid: tuple[int, int],
    recipe: Recipe,
) -> Float[Tensor, "n c"]:
    """The labels of one frame's patches, from those of the frames looked at, of which frame 0 is the
    first."""
    n, k = len(query), min(recipe.top_k, len(keys))
    everything = torch.arange(n, device=query.device)
    parts = []
    for chosen in torch.split(everything, max(1, SIMILARITIES // len(keys))):
        similar = (query[chosen] @ keys.T / recipe.temperature).view(len(chosen), -1, n)
        if recipe.radius:
            far = ~within(chosen, grid, recipe)[:, None]
            similar[:, recipe.first_everywhere :].masked_fill_(far, -torch.inf)
        similar = similar.flatten(1)
        best, which = similar.topk(k, dim=1)
        if recipe.ties:
            parts.append(similar.masked_fill(similar < best[:, -1:], -torch.inf).softmax(dim=1) @ known)
        else:
            parts.append(torch.einsum("qk,qkc->qc", best.softmax(dim=1), known[which]))
    return torch.cat(parts)


def within(chosen: Int[Tensor, " q"], grid: tuple[int, int], recipe: Recipe) -> Bool[Tensor, "q n"]:
    """Which patches of a frame of rows x columns lie near each of some.

    >>> within(torch.tensor([0]), (2, 3), Recipe(1, 1, 1, 1.0)).int().tolist()
    [[1, 1, 0, 1, 1, 0]]
    """
    columns = grid[1]
    everything = torch.arange(grid[0] * columns, device=chosen.device)
    down = chosen[:, None] // columns - everything // columns
    right = chosen[:, None] % columns - everything % columns
    if recipe.square:
        return (down.abs() <= recipe.radius) & (right.abs() <= recipe.radius)
    return down**2 + right**2 < recipe.radius**2


def first_labels(
    mask: UInt8[Tensor, "h w"], objects: int, size: tuple[int, int], patch: int, recipe: Recipe
) -> Float[Tensor, "c r s"]:
    """What is true of frame 0 in each patch: a map of the ground, then one of each object.

    `size` is that of the frame as the encoder sees it, in pixels; numbers above `objects` are ground.
    """
    numbers = torch.arange(objects + 1, device=mask.device)[:, None, None]
    onehot = (mask.where(mask <= objects, 0) == numbers).float()[None]
    grid = (size[0] // patch, size[1] // patch)
    if not recipe.smooth:
        return F.interpolate(onehot, grid, mode="nearest-exact")[0]
    seen = F.interpolate(onehot, size, mode="nearest-exact")
    return F.interpolate(seen, grid, mode="bilinear", align_corners=False)[0]


def hard_labels(
    soft: Float[Tensor, "c r s"], patch: int, size: tuple[int, int], recipe: Recipe
) -> UInt8[Tensor, "h w"]:
    """The label of each pixel of a frame that is `size` pixels large on disk.

    Of maps that are stretched, one that is the same all over and not 0 outdoes the others, as it does by
    DINO's code.
    """
    whole = F.interpolate(soft[None], scale_factor=float(patch), mode="bilinear", align_corners=False)[0]
    if recipe.stretched:
        low, high = (end[:, None, None] for end in (whole.flatten(1).amin(1), whole.flatten(1).amax(1)))
        even = torch.where(high > 0, torch.inf, 0.0)
        whole = torch.where((high > 0) & (high > low), (whole - low) / (high - low), even.expand_as(whole))
    labels = whole.argmax(dim=0)[None, None].byte()
    return F.interpolate(labels, size, mode="nearest-exact")[0, 0]
