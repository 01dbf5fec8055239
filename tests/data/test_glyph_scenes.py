"""Scenes of glyphs: what is drawn, and that masks and classes are of what is seen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmim.config import Data
from lmim.data import glyph_scenes
from lmim.data.glyph_scenes import Recipe, draw
from lmim.data.glyphs import CHARACTERS, SPLITS
from lmim.data.splits import ArraySplit, Subset
from lmim.errors import UserError

SMALL = Recipe(train_scenes=72, test_scenes=36)
BARE = dataclasses.replace(SMALL, clutter=0)


def test_the_masks_are_of_what_is_seen() -> None:
    """Segmentation would be judged by shapes that are not in the picture."""
    scenes = draw(dataclasses.replace(BARE, size=40), "train")
    for image, mask in zip(scenes["images"][:, 0].astype(float), scenes["masks"], strict=True):
        levels = [np.median(image[mask == one]) for one in range(mask.max() + 1)]
        error = np.abs(image - np.array(levels)[mask])
        assert (error < 2).mean() > 0.65, "but for edges, where a pixel is of several objects"
        assert min(abs(level - levels[0]) for level in levels[1:]) > 255 * 0.15


def test_scenes_have_several_glyphs_that_hide_each_other_and_clutter() -> None:
    """Without occlusion and clutter a threshold would find every object."""
    scenes = draw(SMALL, "train")
    counts = [len(np.unique(mask)) - 1 for mask in scenes["masks"]]
    assert sorted({*counts}) == [2, 3, 4]
    assert [(row > 0).sum() for row in scenes["objects"]] == counts, "each glyph is seen"
    seen = [np.mean([(mask == one).sum() for mask in scenes["masks"]]) for one in (1, 2)]
    alone = draw(dataclasses.replace(BARE, objects=(1, 1)), "train")["masks"]
    assert seen[0] == pytest.approx((alone == 1).sum() / len(alone), rel=0.1), "the first is in front"
    assert seen[1] < 0.97 * seen[0], "and hides parts of the others"
    bare, full = (
        draw(recipe, "train") for recipe in (dataclasses.replace(SMALL, clutter_contrast=0.0), SMALL)
    )
    assert np.array_equal(bare["masks"], full["masks"]), "clutter is of the ground"
    ground = full["masks"] == 0
    assert (np.abs(full["images"][:, 0].astype(int) - bare["images"][:, 0])[ground] > 5).mean() > 0.05


def test_labels_and_classes_are_those_of_the_characters() -> None:
    """The probe would learn classes that the pixels do not have."""
    still = dataclasses.replace(
        BARE, size=40, train_fonts=("DejaVuSans-Bold",), objects=(1, 1), rotation=0.0, shift=0.0, spread=0.0
    )
    scenes = draw(dataclasses.replace(still, scale=(0.9, 0.9)), "train")
    assert np.array_equal(scenes["objects"][:, 1], scenes["labels"] + 1)
    assert sorted(scenes["labels"].tolist()) == sorted([*range(36)] * 2)
    looks = {(label, mask.tobytes()) for label, mask in zip(scenes["labels"], scenes["masks"], strict=True)}
    assert len(looks) == len({look for _, look in looks}) == len(CHARACTERS)


def test_a_split_gives_masks_and_classes_of_its_images() -> None:
    """A protocol would compare an image with another one's truth."""
    data = glyph_scenes.glyph_scenes(Data(image_size=20), SMALL)
    assert (data.frames, data.channels, data.classes, data.flips) == (1, 1, 36, False)
    assert [len(split) for split in (data.train, data.val, data.test)] == [72, 36, 36]
    drawn, rows = draw(SMALL, "test"), torch.tensor([7, 0, 7])
    assert isinstance(data.test, ArraySplit)
    for split, at in ((data.test, rows), (Subset(data.test, rows), torch.arange(3))):
        masks, classes = split.read_masks(at, 20), split.read_classes(at, 20)
        assert np.array_equal(split.read(at, 20)[0], drawn["images"][rows.numpy()])
        assert np.array_equal(masks, drawn["masks"][rows.numpy()])
        for row, mask, found in zip(rows.tolist(), masks, classes, strict=True):
            assert np.array_equal(found, drawn["objects"][row][mask.numpy()])
            assert found[mask == 1].unique().tolist() == [int(data.test.labels[row]) + 1]


def test_masks_of_larger_images_are_shrunk_with_them() -> None:
    """A mask of another size than the image would fail deep in a protocol."""
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[0, :4, 4:] = 3
    images = torch.tensor(masks[:, None] * 50).numpy()
    split = ArraySplit(images, torch.tensor([0]), 4, masks)
    assert split.read_masks(torch.tensor([0]), 4).tolist() == [[[0, 0, 3, 3]] * 2 + [[0] * 4] * 2]
    assert split.read(torch.tensor([0]), 4)[0].shape[-2:] == (4, 4)


def test_masks_without_classes_say_so() -> None:
    """A user who gives the probe masks of objects alone would get a traceback that names neither."""
    masks = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(UserError, match="of which class each pixel"):
        ArraySplit(masks[:, None], torch.tensor([0]), 4, masks).read_classes(torch.tensor([0]), 4)


def test_the_version_follows_every_field() -> None:
    """Two recipes under one version would be averaged in one table, and share one cache folder."""
    other: dict[str, Any] = {
        "size": 21, "train_scenes": 73, "test_scenes": 37, "train_fonts": ("cmb10",),
        "test_fonts": ("STIXGeneral",), "objects": (1, 4), "em": 0.8, "scale": (0.5, 0.9), "spread": 0.2,
        "shift": 0.1, "rotation": 1.0, "ground": (0.4, 0.6), "contrast": (0.3, 0.4), "clutter": 1,
        "clutter_contrast": 0.1, "seed": 1, "drawing": 2,
    }  # fmt: skip
    assert set(other) == {field.name for field in dataclasses.fields(Recipe)}
    changed = [dataclasses.replace(SMALL, **{key: value}) for key, value in other.items()]
    assert len({one.version() for one in [SMALL, *changed]}) == len(other) + 1
    plain = draw(SMALL, "val")["images"]
    for key, recipe in zip(other, changed, strict=True):
        if key not in ("train_scenes", "test_fonts", "drawing"):  # which val does not hang on
            images = draw(recipe, "val")["images"]
            assert images.shape != plain.shape or (images != plain).any(), key


def test_splits_share_no_scene_and_the_test_no_typeface(cache: Path) -> None:
    """Scenes or typefaces seen in training would make the test a search for the same drawing."""
    drawn = {split: draw(SMALL, split)["images"] for split in SPLITS}
    looks = [{scene.tobytes() for scene in scenes} for scenes in drawn.values()]
    assert all(not a & b for i, a in enumerate(looks) for b in looks[:i])
    assert not set(Recipe().train_fonts) & set(Recipe().test_fonts)
    other = dataclasses.replace(SMALL, test_fonts=("cmb10",))
    assert np.array_equal(draw(other, "val")["images"], drawn["val"])
    assert not np.array_equal(draw(other, "test")["images"], drawn["test"])


def test_scenes_are_read_from_the_cache(cache: Path) -> None:
    """Every trial, and every protocol, would draw them anew."""
    data = glyph_scenes.glyph_scenes(Data(image_size=20), SMALL)
    assert data.version == SMALL.version()
    assert [path.name for path in cache.glob("[!.]*")] == [f"glyph_scenes-{SMALL.version()}"]
    for split in (data.train, data.val, data.test):
        assert isinstance(split, ArraySplit)
        assert isinstance(split.images.base, np.memmap)
