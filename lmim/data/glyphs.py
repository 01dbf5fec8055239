"""Capital letters and digits drawn from the fonts that matplotlib ships: real shapes, no download.

The typefaces of the test images are never seen in training; those of val are.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lmim.config import Data
from lmim.data.cache import cached_arrays, noted
from lmim.data.splits import Dataset, from_arrays
from lmim.errors import UserError

Name = Literal["train", "test", "val"]
SPLITS: tuple[Name, ...] = get_args(Name)
"""In the order of their random streams."""

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

DEJAVU = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
)
COMPUTER_MODERN = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")

SUPERSAMPLE = 4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides the pixels, so that its hash names them.

    Lengths are parts of the canvas' side: a 64 px glyph is the 20 px one seen more sharply.
    """

    size: int = 20
    """Side of the canvas in pixels."""
    train_images: int = 20_000
    test_images: int = 4_000
    """As many are drawn for val."""
    train_fonts: tuple[str, ...] = DEJAVU + COMPUTER_MODERN
    test_fonts: tuple[str, ...] = STIX
    polarity: Literal["light", "random"] = "light"
    """`light`: always brighter than its ground; `random`: darker as often as brighter."""
    contrast: tuple[float, float] = (0.3, 1.0)
    """Range of the difference between glyph and ground; 1 is black to white."""
    em: tuple[float, float] = (0.7, 0.85)
    """Range of the font's size; capitals are about 0.7 of it high."""
    rotation: float = 15.0
    """Largest turn in degrees, either way."""
    shift: float = 0.22
    """Largest shift, either way; 4.4 px of 20."""
    clutter: int = 0
    """Random strokes behind each glyph."""
    noise: float = 0.0
    """Standard deviation of the pixel noise; 1 is black to white."""
    seed: int = 0
    drawing: int = 1
    """Raised by whoever changes how `draw` draws."""

    def version(self) -> str:
        """Twelve hex digits over every field and over the bytes of every font file."""
        return digest(dataclasses.asdict(self), self.train_fonts + self.test_fonts)


RECIPE = Recipe()


def digest(fields: dict[str, Any], fonts: Sequence[str]) -> str:
    """Twelve hex digits over a recipe's fields and the bytes of its font files."""
    parts = fields | {f"font {name}": _font_hash(_font_file(name)) for name in fonts}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def glyphs(data: Data, recipe: Recipe = RECIPE) -> Dataset:
    """Drawn capitals and digits, on a canvas of the side that evaluation uses; val is drawn in addition."""
    recipe = dataclasses.replace(recipe, size=data.image_size)
    version = recipe.version()

    def drawn(*splits: Name) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for split in splits:
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = draw(recipe, split)
        return arrays

    # val in a folder of its own, so that train and test, once drawn, serve for ever
    arrays = cached_arrays(f"glyphs-{version}", lambda: drawn("train", "test"))
    arrays |= cached_arrays(f"glyphs-{version}-val", lambda: drawn("val"))
    return from_arrays(data, version, arrays, classes=len(CHARACTERS), flips=False)


def draw(recipe: Recipe, split: Name) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images `[n, 1, size, size]` and labels `[n]`, the same for the same recipe.

    >>> images, labels = draw(Recipe(test_images=72), "test")
    >>> images.shape, int((labels == 0).sum())
    ((72, 1, 20, 20), 2)
    """
    fonts = recipe.test_fonts if split == "test" else recipe.train_fonts
    count = recipe.train_images if split == "train" else recipe.test_images
    rng = np.random.default_rng([recipe.seed, SPLITS.index(split)])
    # as many of each character, and of each font, as the count allows
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CHARACTERS))
    faces = rng.permutation(count) % len(fonts)
    images = np.empty((count, 1, recipe.size, recipe.size), np.uint8)
    for i in noted(f"drawing glyphs at {recipe.size} px ({split})", range(count), count):
        mask = _mask(recipe, fonts[faces[i]], CHARACTERS[labels[i]], rng)
        contrast = rng.uniform(*recipe.contrast)
        ground = rng.uniform(0, 1 - contrast)
        level = ground + contrast * mask
        if recipe.noise:
            level += rng.normal(0, recipe.noise, mask.shape)
        if recipe.polarity == "random" and rng.random() < 0.5:
            level = 1 - level
        images[i, 0] = np.rint(255 * level.clip(0, 1))
    return images, labels


def _mask(recipe: Recipe, font: str, character: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """One glyph as coverage 0..1: drawn large, turned, moved and shrunk in one pass, then averaged."""
    side = recipe.size * SUPERSAMPLE
    angle = math.radians(rng.uniform(-recipe.rotation, recipe.rotation))
    shift = rng.uniform(-recipe.shift, recipe.shift, 2) * side
    zoom = rng.uniform(*recipe.em) / recipe.em[1]
    # PIL wants the way back, from the drawn pixel to the master's
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = -(side / 2 + shift)
    back = (cos, sin, cos * x + sin * y + side / 2, -sin, cos, -sin * x + cos * y + side / 2)
    glyph = cover(font, character, recipe.size, recipe.em[1], back)
    if not recipe.clutter:
        return glyph
    ground = Image.new("L", (side, side))
    pen = ImageDraw.Draw(ground)
    for _ in range(recipe.clutter):
        ends = rng.uniform(0, side, 4).tolist()
        pen.line(ends, fill=int(rng.integers(64, 192)), width=max(1, round(0.06 * side)))
    return np.maximum(glyph, _shrink(ground, recipe.size))


def cover(font: str, character: str, size: int, em: float, back: tuple[float, ...]) -> NDArray[np.float64]:
    """Coverage 0..1 of a glyph drawn SUPERSAMPLE times as large; `back` leads from there to its master."""
    side = size * SUPERSAMPLE
    large = _master(font, character, side, em).transform(
        (side, side), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR
    )
    return _shrink(large, size)


def _shrink(large: Image.Image, size: int) -> NDArray[np.float64]:
    return np.asarray(large.resize((size, size), Image.Resampling.BOX), np.float64) / 255


@cache
def _master(font: str, character: str, side: int, em: float) -> Image.Image:
    face = ImageFont.truetype(_font_file(font), round(em * side), layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character)
    image = Image.new("L", (side, side))
    corner = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=face)
    return image


def _font_file(name: str) -> Path:
    # looked up, not imported: matplotlib takes half a second
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise UserError("data.name: glyphs are drawn from matplotlib's fonts: pip install matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise UserError(f"{path}: this font is missing from matplotlib: reinstall matplotlib")
    return path


@cache
def _font_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
