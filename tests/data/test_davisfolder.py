"""Folders of DAVIS' shape: what is read of them, what is scored, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lmim.axes.mask import patchify
from lmim.config import Data
from lmim.data import Dataset, open_dataset
from lmim.data.splits import MaskedClips
from lmim.errors import UserError
from lmim.evaluate.video import predicted, video
from lmim.plan.sweep_file import with_data
from lmim.trial.evaluation import read_evaluations
from tests.evaluate.builders import frozen, model, nothing

CLIPS = {"train": {"a": 4, "b": 3, "c": 5}, "val": {"d": 6, "e": 4}}
SIDE = 32


def write(root: Path) -> Path:
    """Clips of 64 x 32 pixels in which a red square of 16 moves to the right; the last row is void."""
    for split, clips in CLIPS.items():
        (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/2017/{split}.txt").write_text("".join(f"{name}\n" for name in clips))
        for name, length in clips.items():
            for time in range(length):
                mask = np.zeros((32, 64), np.uint8)
                mask[8:24, 8 * time : 8 * time + 16] = 1
                pixels = np.zeros((32, 64, 3), np.uint8)
                pixels[mask == 1] = (255, 0, 0)
                mask[-1] = 255
                frame, annotation = (
                    root / kind / "480p" / name / f"{time:05}.png" for kind in ("JPEGImages", "Annotations")
                )
                for path in (frame, annotation):
                    path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(frame)
                shown = Image.fromarray(mask, mode="P")
                shown.putpalette([*range(256)] * 3)
                shown.save(annotation)
    return root


def opened(root: Path) -> Dataset:
    return open_dataset(Data(name="davisfolder", path=str(root), image_size=SIDE))


def test_clips_of_any_length_have_all_their_frames_and_masks(tmp_path: Path) -> None:
    """A clip cut to the shortest one's length would be scored on other frames than DAVIS'."""
    data = opened(write(tmp_path))
    assert (data.channels, data.frames, data.masks) == (3, 3, True)
    assert [len(split) for split in (data.train, data.val, data.test)] == [2, 1, 2]
    test = cast(MaskedClips, data.test)
    masks = test.read_whole_masks(0)
    assert masks.shape == (6, 32, 64)
    assert {*masks.flatten().tolist()} == {0, 1, 255}
    times = torch.arange(6)[None]
    frames, _ = test.read_clips(torch.tensor([0]), SIDE, torch.tensor([[[0, 0, 1, 1]] * 6]).float(), times)
    small = test.read_masks(torch.tensor([0]), SIDE)[0]
    assert frames.shape == (1, 6, 3, SIDE, SIDE)
    assert ((frames[0, :, 0] > 127) == (small == 1)).all()
    images, _ = data.test.read(torch.tensor([0, 1]), SIDE)
    assert images.shape == (2, 3, SIDE, SIDE)


def shows(images: Tensor) -> Tensor:
    """Whether a patch is red, as a one-hot."""
    red = patchify(images, 4).mean(dim=2) > images.mean()
    return torch.stack([red, ~red], dim=2).float()


def test_what_is_followed_is_scored_as_large_as_it_lies_on_disk(tmp_path: Path) -> None:
    """J and F of masks at the encoder's side are no figures of DAVIS'."""
    data = opened(write(tmp_path))
    seen = replace(model(dataset=data, side=SIDE), patches=shows)
    assert [one.found.shape for one in predicted(seen, data, "test", side=0)] == [(6, 32, 64), (4, 32, 64)]
    found = video(replace(frozen(nothing(2), nothing(2), 1), model=seen, opened=data), side=0)
    # enlarging the patches' labels rounds the corners: a pixel of the encoder's, two on disk, at each
    right = 100 * (256 - 8) / 256
    assert found == pytest.approx({"video_jf": (right + 100) / 2, "video_j": right, "video_f": 100})


def test_frames_are_seen_as_large_as_asked_and_as_oblong(tmp_path: Path) -> None:
    """DINO's figures are of frames 480 pixels high: squeezed to the encoder's square they are others."""
    data = opened(write(tmp_path))
    seen = replace(model(dataset=data, side=SIDE), patches=shows)
    given = replace(frozen(nothing(2), nothing(2), 1), model=seen, opened=data)
    one = next(predicted(seen, data, "test"))
    assert (one.frames(torch.arange(6)).shape, one.found.shape) == ((6, 3, 32, 64), (6, 32, 64))
    small = next(predicted(seen, data, "test", side=16))
    assert (small.frames(torch.arange(6)).shape, small.found.shape) == ((6, 3, 16, 32), (6, 32, 64))
    assert video(given)["video_j"] > video(given, side=0)["video_j"]
    walked = next(predicted(seen, data, "test", "videowalk"))
    assert walked.frames(torch.arange(6)).shape == (6, 3, 32, 56)  # 880 / 480 of 32, in whole patches
    assert video(given, recipe="videowalk")["video_j"] > 80


def test_a_sweep_judges_by_such_a_folder(tmp_path: Path) -> None:
    """The protocol opens it by its name, and what is in it is part of what was measured."""
    first = opened(write(tmp_path)).version
    (found,) = with_data(read_evaluations([{"video": {"data": "davisfolder", "path": str(tmp_path)}}]))
    assert found.version == first
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "Annotations/480p/d/00002.png")
    assert opened(tmp_path).version != first


def test_what_is_wrong_with_a_folder_is_said_in_a_line(tmp_path: Path) -> None:
    """A traceback from a decoder's thread names no file."""
    root = write(tmp_path)

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            opened(root)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(f"{root}/", "")

    path = root / "Annotations/480p/b/00001.png"
    good = path.read_bytes()
    path.unlink()
    assert refused() == "Annotations/480p/b: expected a mask for each of 3 frames, and no other"
    path.write_bytes(good[:60])
    assert refused().startswith("Annotations/480p/b/00001.png: cannot be read (")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    assert refused() == (
        "Annotations/480p/b/00001.png: of another size than its frame or its clip: give all the same"
    )
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(path)
    assert "RGB pixels: expected one number of 0..255 for each" in refused()
    path.write_bytes(good)
    train = root / "ImageSets/2017/train.txt"
    train.write_text("a b z")
    assert refused() == "JPEGImages/480p/z: missing: add it, or take the clip out of ImageSets/2017/train.txt"
    train.write_text("a")
    assert refused() == "ImageSets/2017/train.txt: 1 clips: expected 2 at least"
    train.unlink()
    told = "data.path: ImageSets/2017/train.txt is no file: give a folder like DAVIS', with JPEGImages"
    assert refused().startswith(told)
