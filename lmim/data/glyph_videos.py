"""Clips of capitals and digits that move, turn, deform and pass behind each other, with the mask of each.

Drawn as the glyphs are, of the same characters and typefaces: those of the test clips are never seen in
training, those of val are.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmim.config import Data
from lmim.data import glyphs
from lmim.data.cache import cached_arrays, noted
from lmim.data.glyphs import CHARACTERS, SPLITS, SUPERSAMPLE, Name
from lmim.data.splits import Dataset, from_arrays


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides the pixels, so that its hash names them; lengths are parts of the canvas' side."""

    size: int = 20
    """Side of the canvas in pixels."""
    frames: int = 8
    train_clips: int = 4_000
    test_clips: int = 2_000
    """As many are drawn for val."""
    train_fonts: tuple[str, ...] = glyphs.DEJAVU + glyphs.COMPUTER_MODERN
    test_fonts: tuple[str, ...] = glyphs.STIX
    objects: int = 3
    """Glyphs of a clip, front to back; the first one's character is the clip's class."""
    em: float = 0.85
    """Size of the font that the largest glyph is drawn in; capitals are about 0.7 of it high."""
    scale: tuple[float, float] = (0.8, 0.95)
    """Range of the first glyph's size, of `em`."""
    scale_behind: tuple[float, float] = (0.45, 0.65)
    """The same of the others."""
    contrast: tuple[float, float] = (0.4, 1.0)
    """Range of the difference between the first glyph and the ground; 1 is black to white."""
    contrast_behind: tuple[float, float] = (0.3, 0.7)
    """The same of the others, of the first one's."""
    shift: float = 0.15
    """Largest distance of the first glyph from the middle, either way."""
    shift_behind: float = 0.45
    """The same of the others, each of which crosses to about the opposite place."""
    rotation: float = 15.0
    """Largest turn of the first glyph in degrees, either way."""
    rotation_behind: float = 60.0
    """The same of the others."""
    deformation: float = 0.15
    """Largest stretch and shear, which swing once in a clip."""
    seed: int = 0
    drawing: int = 1
    """Raised by whoever changes how `draw` draws."""

    def version(self) -> str:
        """Twelve hex digits over every field and over the bytes of every font file."""
        return glyphs.digest(dataclasses.asdict(self), self.train_fonts + self.test_fonts)


RECIPE = Recipe()


def glyph_videos(data: Data, recipe: Recipe = RECIPE) -> Dataset:
    """Drawn clips, on a canvas of the side that evaluation uses; their masks lie beside them in the cache."""
    recipe = dataclasses.replace(recipe, size=data.image_size)
    version = recipe.version()

    def drawn() -> dict[str, NDArray[Any]]:
        return {f"{split}_{what}": array for split in SPLITS for what, array in draw(recipe, split).items()}

    arrays = cached_arrays(f"glyph_videos-{version}", drawn)
    return from_arrays(data, version, arrays, classes=len(CHARACTERS), flips=False)


def draw(recipe: Recipe, split: Name) -> dict[str, NDArray[Any]]:
    """`images` `[n, frames, 1, s, s]`, `masks` `[n, frames, s, s]` and `labels` `[n]`, by the recipe alone.

    A mask holds for each pixel the object that is seen in most of it: 1 is the first, in front of all others,
    0 the ground.

    >>> clips = draw(Recipe(test_clips=36), "test")
    >>> clips["images"].shape, clips["masks"].max(), int((clips["labels"] == 0).sum())
    ((36, 8, 1, 20, 20), np.uint8(3), 1)
    """
    fonts = recipe.test_fonts if split == "test" else recipe.train_fonts
    count = recipe.train_clips if split == "train" else recipe.test_clips
    rng = np.random.default_rng([recipe.seed, SPLITS.index(split)])
    # as many of each character, and of each font, as the count allows
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CHARACTERS))
    faces = rng.permutation(count) % len(fonts)
    shape = count, recipe.frames, recipe.size, recipe.size
    images, masks = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    for i in noted(f"drawing clips of glyphs at {recipe.size} px ({split})", range(count), count):
        first = fonts[faces[i]], CHARACTERS[labels[i]]
        behind = zip(
            rng.choice(fonts, recipe.objects - 1), rng.choice([*CHARACTERS], recipe.objects - 1), strict=True
        )
        covers = [_glyph(recipe, *glyph, glyph is not first, rng) for glyph in (first, *behind)]
        seen = _visible(np.stack(covers))
        contrast = rng.uniform(*recipe.contrast)
        ground = rng.uniform(0, 1 - contrast)
        shares = rng.uniform(*recipe.contrast_behind, recipe.objects - 1)
        levels = ground + contrast * np.array([0, 1, *shares])
        images[i] = np.rint(255 * np.tensordot(levels, seen, axes=1))
        masks[i] = seen.argmax(axis=0)
    return {"images": images[:, :, None], "masks": masks, "labels": labels}


def _visible(covers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each pixel the part where the ground is seen, then each object; `covers` come front to back."""
    free = np.cumprod(1 - covers, axis=0)
    before = np.concatenate([np.ones_like(covers[:1]), free[:-1]])
    return np.concatenate([free[-1:], before * covers])


def _glyph(
    recipe: Recipe, font: str, character: str, behind: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Coverage of one glyph in every frame: straight on and evenly turning, stretch and shear swinging."""
    scale, shift, rotation = recipe.scale, recipe.shift, recipe.rotation
    if behind:
        scale, shift, rotation = recipe.scale_behind, recipe.shift_behind, recipe.rotation_behind
    time = np.linspace(0, 1, recipe.frames)[:, None]
    size = rng.uniform(*scale)
    start, end = rng.uniform(-shift, shift, (2, 2))
    if behind:
        end = -start + end / 3
    centre = start + (end - start) * time
    first, last = np.deg2rad(rng.uniform(-rotation, rotation, 2))
    angle = first + (last - first) * time[:, 0]
    phases = rng.uniform(0, 1, 2)
    stretch, shear = recipe.deformation * np.sin(2 * np.pi * (time + phases)).T
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    deformed = np.array([[np.exp(stretch), shear], [np.zeros_like(shear), np.exp(-stretch)]])
    # PIL wants the way back, from the drawn pixel to the master's
    back = np.linalg.inv(size * np.einsum("ijt,jkt->tik", turned, deformed))
    side = recipe.size * SUPERSAMPLE
    offset = side / 2 - np.einsum("tij,tj->ti", back, side * (centre + 0.5))
    ways = np.concatenate([back, offset[..., None]], axis=-1).reshape(recipe.frames, 6)
    return np.stack(
        [glyphs.cover(font, character, recipe.size, recipe.em, tuple(way)) for way in ways.tolist()]
    )
