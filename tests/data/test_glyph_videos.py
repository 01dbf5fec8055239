"""Clips of glyphs: what is drawn, that it moves, and that the masks are of what is seen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmim.config import Data
from lmim.data import glyph_videos
from lmim.data.glyph_videos import Recipe, draw
from lmim.data.glyphs import CHARACTERS, SPLITS
from lmim.data.splits import ArrayClips
from lmim.errors import UserError

SMALL = Recipe(train_clips=72, test_clips=36, frames=6)
FULL = dataclasses.replace(SMALL, contrast=(1.0, 1.0), contrast_behind=(0.5, 0.5))


def test_a_clip_is_read_by_times_and_as_an_image_by_its_middle() -> None:
    """Evaluation and the image objectives would judge other frames than those that they say."""
    data = glyph_videos.glyph_videos(Data(image_size=20), SMALL)
    assert (data.frames, data.channels, data.classes, data.flips) == (6, 1, 36, False)
    assert [len(split) for split in (data.train, data.val, data.test)] == [72, 36, 36]
    assert isinstance(data.train, ArrayClips)
    clips = draw(SMALL, "train")["images"]
    indices, times = torch.tensor([4, 4, 9]), torch.tensor([[0, 5, 5], [1, 2, 3], [5, 0, 3]])
    boxes = torch.rand(3, 3, 4)
    images, found = data.train.read_clips(indices, 20, boxes, times)
    assert torch.equal(found, boxes)
    for row, index in enumerate(indices.tolist()):
        assert np.array_equal(images[row], clips[index, times[row].numpy()])
    assert np.array_equal(data.train.read(indices, 20)[0], clips[indices.numpy(), 3])


def test_the_masks_are_of_what_is_seen() -> None:
    """A propagation protocol would be judged by shapes that are not in the picture."""
    clips = draw(FULL, "train")
    shades = np.array([0, 255, 127.5, 127.5])
    expected = shades[clips["masks"]]
    error = np.abs(clips["images"][:, :, 0] - expected)
    # but for edges, where a pixel is of several objects, each has the shade of its mask
    assert error.max() < 255 * 0.76
    assert (error < 1).mean() > 0.6
    for one in (0, 1, 2, 3):
        assert (error[clips["masks"] == one] < 20).mean() > 0.3
    present = np.stack([(clips["masks"] == one).any((2, 3)) for one in (1, 2, 3)])
    assert present[0].all()
    assert present[1:].mean() > 0.9


def test_objects_pass_behind_each_other() -> None:
    """Without occlusion there would be nothing that a frame alone does not show."""
    masks = draw(SMALL, "train")["masks"]
    seen = np.stack([(masks == one).sum((2, 3)) for one in (1, 2, 3)]).astype(float)
    part = seen.min(axis=2) / seen.max(axis=2)
    assert np.median(part[0]) > 0.5, "the first is in front of all others"
    assert np.median(part[1]) < 0.5, "the others pass behind it"
    assert np.median(part[2]) <= np.median(part[1]) + 0.1


@pytest.mark.parametrize("what", ["shift", "rotation", "deformation"])
def test_glyphs_move_turn_and_deform(what: str) -> None:
    """A clip of one picture would make a video objective an image objective at eight times the cost."""
    kinds = ["shift", "shift_behind", "rotation", "rotation_behind", "deformation"]
    still: dict[str, Any] = dict.fromkeys(kinds, 0.0)
    frozen = draw(dataclasses.replace(SMALL, **still), "val")["images"]
    assert not np.diff(frozen.astype(int), axis=1).any()
    moving = draw(dataclasses.replace(SMALL, **(still | {what: getattr(SMALL, what)})), "val")["images"]
    changed = (np.abs(np.diff(moving.astype(int), axis=1)) > 10).mean((1, 2, 3, 4))
    assert (changed > 0.005).mean() > 0.7


def test_the_label_is_the_first_glyphs_character() -> None:
    """The class would be that of something behind it, or of nothing."""
    still = dataclasses.replace(FULL, train_fonts=("cmr10",), shift=0.0, rotation=0.0, deformation=0.0)
    clips = draw(dataclasses.replace(still, scale=(0.9, 0.9), objects=1), "train")
    assert sorted(clips["labels"].tolist()) == sorted([*range(36)] * 2)
    looks = {
        (label, (mask == 1).tobytes())
        for label, mask in zip(clips["labels"].tolist(), clips["masks"][:, 0], strict=True)
    }
    assert len(looks) == len({look for _, look in looks}) == len(CHARACTERS)


def test_the_version_follows_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recipes under one version would be averaged in one table, and share one cache folder."""
    other: dict[str, Any] = {
        "size": 21, "frames": 7, "train_clips": 73, "test_clips": 37, "train_fonts": ("cmr10",),
        "test_fonts": ("STIXGeneral",), "objects": 2, "em": 0.8, "scale": (0.7, 0.9), "shift": 0.1,
        "scale_behind": (0.4, 0.5), "contrast": (0.5, 1.0), "contrast_behind": (0.5, 0.6),
        "shift_behind": 0.4, "rotation": 1.0, "rotation_behind": 50.0, "deformation": 0.1, "seed": 1,
        "drawing": 2,
    }  # fmt: skip
    assert set(other) == {field.name for field in dataclasses.fields(Recipe)}
    changed = [dataclasses.replace(SMALL, **{key: value}) for key, value in other.items()]
    assert len({one.version() for one in [SMALL, *changed]}) == len(other) + 1
    plain = draw(SMALL, "val")["images"]
    for key, recipe in zip(other, changed, strict=True):
        if key not in ("train_clips", "test_fonts", "drawing"):  # which val does not hang on
            images = draw(recipe, "val")["images"]
            assert images.shape != plain.shape or (images != plain).any(), key


def test_splits_share_no_clip_and_the_test_no_typeface(cache: Path) -> None:
    """Clips or typefaces seen in training would make the test a search for the same drawing."""
    drawn = {split: draw(SMALL, split)["images"] for split in SPLITS}
    looks = [{clip.tobytes() for clip in clips} for clips in drawn.values()]
    assert all(not a & b for i, a in enumerate(looks) for b in looks[:i])
    assert not set(Recipe().train_fonts) & set(Recipe().test_fonts)
    other = dataclasses.replace(SMALL, test_fonts=("cmr10",))
    assert np.array_equal(draw(other, "val")["images"], drawn["val"])
    assert not np.array_equal(draw(other, "test")["images"], drawn["test"])


def test_clips_and_masks_are_read_from_the_cache(cache: Path) -> None:
    """Every trial would draw for half a minute; a protocol for masks would find none."""
    data = glyph_videos.glyph_videos(Data(image_size=20), SMALL)
    assert data.version == SMALL.version()
    assert [path.name for path in cache.glob("[!.]*")] == [f"glyph_videos-{SMALL.version()}"]
    for split in (data.train, data.val, data.test):
        assert isinstance(split, ArrayClips)
        assert isinstance(split.images.base, np.memmap)
        assert split.masks is not None
        assert split.masks.shape == (len(split), 6, 20, 20)


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    """A full or read-only home must end in a line that says what to set, not in a traceback."""
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="LMIM_CACHE"):
        glyph_videos.glyph_videos(Data(), SMALL)
