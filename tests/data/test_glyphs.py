"""Glyphs: what is drawn, from which typefaces, and how often."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmim.config import Data
from lmim.data import glyphs
from lmim.data.splits import ArraySplit
from lmim.errors import UserError

SMALL = glyphs.Recipe(train_images=144, test_images=72)


@pytest.mark.parametrize("side", [12, 20, 64])
def test_glyphs_are_drawn_at_the_size_asked_for(side: int) -> None:
    """The gpu scale wants sharp 64 px glyphs, not enlarged small ones."""
    data = glyphs.glyphs(Data(image_size=side), SMALL)
    images, _ = data.train.read(torch.arange(len(data.train)), side)
    assert images.shape[1:] == (1, side, side)
    # a sharp edge at every size: somewhere neighbours differ by most of the contrast
    assert (images.int().diff(dim=-1).abs().amax(dim=(1, 2, 3)) > 60).float().mean() > 0.95


def test_glyphs_are_the_same_in_every_process_and_read_from_the_cache(cache: Path) -> None:
    """Trials that drew other data, or drew it again each time, could not share a table."""
    program = (
        "import hashlib, torch\n"
        "from lmim.config import Data; from lmim.data import glyphs\n"
        "recipe = glyphs.Recipe(train_images=144, test_images=72)\n"
        "d = glyphs.glyphs(Data(), recipe)\n"
        "x, _ = d.test.read(torch.arange(72), 20); print(d.version, hashlib.sha256(x.numpy()).hexdigest())"
    )
    # all at once on an empty cache
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    out = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert out[0]
    assert len(set(out)) == 1
    names = sorted(path.name for path in cache.glob("[!.]*"))
    assert names == [f"glyphs-{SMALL.version()}", f"glyphs-{SMALL.version()}-val"]
    data = glyphs.glyphs(Data(), SMALL)
    for split in (data.train, data.val, data.test):
        assert isinstance(split, ArraySplit)
        assert isinstance(split.images.base, np.memmap)


def test_glyphs_version_follows_every_field_and_the_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recipes under one version would be averaged in one table, and share one cache folder."""
    other: dict[str, Any] = {
        "size": 21, "train_images": 145, "test_images": 73, "train_fonts": ("cmr10",),
        "test_fonts": ("STIXGeneral",), "polarity": "random", "contrast": (0.5, 1.0), "em": (0.6, 0.8),
        "rotation": 1.0, "shift": 0.1, "clutter": 1, "noise": 0.1, "seed": 1, "drawing": 2,
    }  # fmt: skip
    assert set(other) == {field.name for field in dataclasses.fields(glyphs.Recipe)}
    versions = {dataclasses.replace(SMALL, **{key: value}).version() for key, value in other.items()}
    assert len(versions | {SMALL.version()}) == len(other) + 1
    before = SMALL.version()
    monkeypatch.setattr(glyphs, "_font_hash", lambda path: f"another {path.name}")
    assert SMALL.version() != before


def test_test_typefaces_are_of_families_never_trained_on() -> None:
    """A shared typeface would turn the test into a search for the same drawing."""
    from PIL import ImageFont

    def families(names: tuple[str, ...]) -> set[str]:
        faces = [ImageFont.truetype(glyphs._font_file(name), 16).getname()[0] for name in names]
        return {str(family).split()[0] for family in faces}  # DejaVu Sans and DejaVu Serif are one

    recipe = glyphs.Recipe()
    assert not families(recipe.train_fonts) & families(recipe.test_fonts)


@pytest.mark.parametrize("font", sorted({*glyphs.Recipe().train_fonts, *glyphs.Recipe().test_fonts}))
def test_every_font_draws_every_character_differently(font: str) -> None:
    """A font without a character draws an empty box or nothing, under that character's label."""
    drawn = {glyphs._master(font, character, 64, 0.8).tobytes() for character in glyphs.CHARACTERS}
    assert len(drawn) == len(glyphs.CHARACTERS)
    assert bytes(64 * 64) not in drawn


def test_a_glyphs_label_is_the_character_drawn() -> None:
    """Without its random parts a character looks always the same, and like no other."""
    plain = dataclasses.replace(
        SMALL, train_fonts=("cmr10",), contrast=(1.0, 1.0), em=(0.8, 0.8), rotation=0.0, shift=0.0
    )
    images, labels = glyphs.draw(plain, "train")
    expected = glyphs._master("cmr10", "Q", 20 * glyphs.SUPERSAMPLE, 0.8).resize(
        (20, 20), Image.Resampling.BOX
    )
    of_q = images[labels == glyphs.CHARACTERS.index("Q"), 0]
    assert np.abs(of_q.astype(int) - np.asarray(expected, int)).max() <= 1
    looks = {(label, image.tobytes()) for label, image in zip(labels.tolist(), images, strict=True)}
    assert len(looks) == len({look for _, look in looks}) == len(glyphs.CHARACTERS)


def test_polarity_and_contrast() -> None:
    """The demo's hardness is set by these; a field that does nothing would be tuned in vain."""

    def levels(**fields: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        images = glyphs.draw(dataclasses.replace(SMALL, **fields), "train")[0][:, 0].astype(float) / 255
        border = np.concatenate([images[:, 0], images[:, -1]], axis=1)
        ground = np.median(border, axis=1)
        return ground, np.abs(images - ground[:, None, None]).max((1, 2))

    ground, contrast = levels(contrast=(0.4, 0.5))
    assert ground.max() <= 0.6 + 0.01
    assert contrast.max() <= 0.51
    ground, _ = levels(contrast=(0.9, 0.9), polarity="random")
    assert 0.25 < (ground > 0.5).mean() < 0.75


@pytest.mark.parametrize(
    "fields", [{"clutter": 3}, {"noise": 0.1}, {"rotation": 0.0}, {"shift": 0.0}, {"seed": 1}]
)
def test_each_field_changes_the_pixels(fields: dict[str, Any]) -> None:
    """As above."""
    plain, _ = glyphs.draw(SMALL, "train")
    varied, _ = glyphs.draw(dataclasses.replace(SMALL, **fields), "train")
    assert (plain != varied).mean() > 0.02


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    """A full or read-only home must end in a line that says what to set, not in a traceback."""
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="LMIM_CACHE"):
        glyphs.glyphs(Data(), SMALL)


def test_a_draw_that_fails_leaves_no_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a dataset taken for a whole one would be trained on for ever after."""

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", broken)
        with pytest.raises(UserError, match="No space left"):
            glyphs.glyphs(Data(), SMALL)
    assert list(cache.glob("[!.]*")) == []
    assert len(glyphs.glyphs(Data(), SMALL).train) == 144


def test_val_is_drawn_in_addition() -> None:
    """Held out of train it would change every result so far; of the test's typefaces it would leak them."""
    assert (glyphs.Recipe().train_images, glyphs.Recipe().test_images) == (20_000, 4_000)
    drawn = {split: glyphs.draw(SMALL, split) for split in glyphs.SPLITS}
    assert [len(images) for images, _ in drawn.values()] == [144, 72, 72]
    looks = [{image.tobytes() for image in images} for images, _ in drawn.values()]
    assert all(not a & b for i, a in enumerate(looks) for b in looks[:i])
    other = dataclasses.replace(SMALL, test_fonts=("cmr10",))
    assert np.array_equal(glyphs.draw(other, "val")[0], drawn["val"][0])
    other = dataclasses.replace(SMALL, train_fonts=("cmr10",))
    assert not np.array_equal(glyphs.draw(other, "val")[0], drawn["val"][0])


def test_the_version_is_that_of_all_results_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field more in the recipe, or another way to write it down, would cut off every old result."""
    monkeypatch.setattr(glyphs, "_font_hash", lambda path: path.name)
    assert glyphs.RECIPE.version() == "447a12a09f02"
    assert glyphs.glyphs(Data(), SMALL).version == SMALL.version()
