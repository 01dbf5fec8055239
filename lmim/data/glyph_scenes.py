"""Scenes of several capitals and digits before clutter, that hide parts of each other, with exact masks.

Drawn as the glyphs are, of the same characters. Only bold typefaces, whose strokes are about as wide as a
patch of the demo: a mask finer than any patch would say nothing of an encoder. Those of the test scenes are
never seen in training, those of val are.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

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
    train_scenes: int = 2_000
    test_scenes: int = 500
    """As many are drawn for val."""
    train_fonts: tuple[str, ...] = (
        *("DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
        *("DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "cmb10"),
    )
    test_fonts: tuple[str, ...] = ("STIXGeneralBol", "STIXGeneralBolIta")
    objects: tuple[int, int] = (2, 4)
    """Range of the number of glyphs, front to back, each in a quarter of its own; the first one's character
    is the scene's class."""
    em: float = 0.85
    """Size of the font that a glyph of scale 1 is drawn in; capitals are about 0.7 of it high."""
    scale: tuple[float, float] = (0.9, 1.2)
    """Range of a glyph's size, of `em`."""
    spread: float = 0.22
    """Distance of a quarter's middle from the canvas', along each side."""
    shift: float = 0.08
    """Largest distance of a glyph from the middle of its quarter, either way."""
    rotation: float = 20.0
    """Largest turn in degrees, either way."""
    ground: tuple[float, float] = (0.35, 0.65)
    """Range of the ground's level, from black to white."""
    contrast: tuple[float, float] = (0.25, 0.6)
    """Range of the difference between a glyph and the ground, either way; it ends at black and at white."""
    clutter: int = 4
    """Random strokes behind the glyphs, which are of the ground."""
    clutter_contrast: float = 0.15
    """Largest difference between a stroke and the ground, either way."""
    seed: int = 0
    drawing: int = 1
    """Raised by whoever changes how `draw` draws."""

    def version(self) -> str:
        """Twelve hex digits over every field and over the bytes of every font file."""
        return glyphs.digest(dataclasses.asdict(self), self.train_fonts + self.test_fonts)


RECIPE = Recipe()


def glyph_scenes(data: Data, recipe: Recipe = RECIPE) -> Dataset:
    """Drawn scenes, on a canvas of the side that evaluation uses, with the object that each pixel is of."""
    recipe = dataclasses.replace(recipe, size=data.image_size)
    version = recipe.version()

    def drawn() -> dict[str, NDArray[Any]]:
        return {f"{split}_{what}": array for split in SPLITS for what, array in draw(recipe, split).items()}

    arrays = cached_arrays(f"glyph_scenes-{version}", drawn)
    return from_arrays(data, version, arrays, classes=len(CHARACTERS), flips=False)


def draw(recipe: Recipe, split: Name) -> dict[str, NDArray[Any]]:
    """`images` `[n, 1, s, s]`, `masks` `[n, s, s]`, `objects` `[n, k + 1]`, `labels` `[n]`, by the recipe.

    A mask holds for each pixel what is seen in most of it: 0 is the ground, 1 the glyph in front of all
    others. `objects` has the class of each, from 1 on, and 0 for the ground and glyphs that are not there.

    >>> scenes = draw(Recipe(test_scenes=36), "test")
    >>> scenes["images"].shape, scenes["masks"].max(), scenes["objects"].shape
    ((36, 1, 20, 20), np.uint8(4), (36, 5))
    """
    fonts = recipe.test_fonts if split == "test" else recipe.train_fonts
    count = recipe.train_scenes if split == "train" else recipe.test_scenes
    rng = np.random.default_rng([recipe.seed, SPLITS.index(split)])
    most = recipe.objects[1]
    # as many of each character, in front and behind, and of each number of glyphs, as the count allows
    characters = np.stack([rng.permutation(np.arange(count) % len(CHARACTERS)) for _ in range(most)], axis=1)
    numbers = recipe.objects[0] + rng.permutation(count) % (most - recipe.objects[0] + 1)
    objects = np.where(np.arange(most) < numbers[:, None], characters + 1, 0)
    images, masks = np.empty((2, count, recipe.size, recipe.size), np.uint8)
    for i in noted(f"drawing scenes of glyphs at {recipe.size} px ({split})", range(count), count):
        ground = rng.uniform(*recipe.ground)
        level = ground + _clutter(recipe, rng)
        seen = np.zeros((numbers[i] + 1, *level.shape))
        seen[0] = 1
        quarters = rng.permutation(4).tolist()
        for place in range(numbers[i], 0, -1):  # the last one is behind all others
            font, character = str(rng.choice(fonts)), CHARACTERS[characters[i, place - 1]]
            cover = _glyph(recipe, font, character, quarters[(place - 1) % 4], rng)
            shade = np.clip(ground + rng.choice((-1, 1)) * rng.uniform(*recipe.contrast), 0, 1)
            level += cover * (shade - level)
            seen *= 1 - cover
            seen[place] = cover
        images[i], masks[i] = np.rint(255 * level), seen.argmax(axis=0)
    return {
        "images": images[:, None],
        "masks": masks,
        "objects": np.pad(objects, ((0, 0), (1, 0))).astype(np.uint8),
        "labels": characters[:, 0],
    }


def _glyph(
    recipe: Recipe, font: str, character: str, quarter: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Coverage of one glyph, turned and scaled, in its quarter of the canvas."""
    middle = recipe.spread * (2 * np.array(divmod(quarter, 2)) - 1)
    centre = middle + rng.uniform(-recipe.shift, recipe.shift, 2)
    angle, size = np.deg2rad(rng.uniform(-recipe.rotation, recipe.rotation)), rng.uniform(*recipe.scale)
    # PIL wants the way back, from the drawn pixel to the master's
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    side = recipe.size * SUPERSAMPLE
    offset = side / 2 - back @ (side * (centre + 0.5))
    way = np.column_stack([back, offset]).ravel().tolist()
    return glyphs.cover(font, character, recipe.size, recipe.em, tuple(way))


def _clutter(recipe: Recipe, rng: np.random.Generator) -> NDArray[np.float64]:
    """What strokes add to the ground's level, or take away."""
    side = recipe.size * SUPERSAMPLE
    added = Image.new("F", (side, side))
    pen = ImageDraw.Draw(added)
    for _ in range(recipe.clutter):
        ends = rng.uniform(0, side, 4).tolist()
        change = rng.uniform(-recipe.clutter_contrast, recipe.clutter_contrast)
        pen.line(ends, fill=change, width=max(1, round(0.05 * side)))
    return np.array(added.resize((recipe.size, recipe.size), Image.Resampling.BOX), np.float64)
