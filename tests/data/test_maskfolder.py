"""Folders of ADE20K's shape: what is read of them, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lmim.config import Data
from lmim.data import Dataset, open_dataset
from lmim.data.maskfolder import MaskFolder
from lmim.errors import UserError
from lmim.evaluate.segment_linear import segment_linear
from lmim.evaluate.segmentation import segmentation
from lmim.plan.sweep_file import with_data
from lmim.trial.evaluation import read_evaluations
from tests.evaluate.builders import frozen, model, nothing

PROTOCOLS = {"segmentation": segmentation, "segment_linear": segment_linear}


def write(root: Path, count: int = 11) -> Path:
    """Images twice as wide as high: red where the class is 2, blue where it is 5, black without a label."""
    for split in ("training", "validation"):
        for number in range(count):
            numbers = np.zeros((32, 64), np.uint8)
            numbers[:16, 16:] = 2
            numbers[16:, 16 : 48 - number] = 5
            pixels = np.zeros((32, 64, 3), np.uint8)
            pixels[numbers == 2] = (255, 0, 0)
            pixels[numbers == 5] = (0, 0, 255)
            for kind, array, suffix in (("images", pixels, ".bmp"), ("annotations", numbers, ".png")):
                path = root / kind / split / f"{number:02}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


def opened(root: Path) -> Dataset:
    return open_dataset(Data(name="maskfolder", path=str(root), image_size=28))


def test_masks_are_of_the_square_that_is_seen(tmp_path: Path) -> None:
    """A mask of the whole image against features of its middle would score any encoder low."""
    data = opened(write(tmp_path))
    assert (data.channels, data.classes, data.masks) == (3, 5, True)
    assert [len(split) for split in (data.train, data.val, data.test)] == [10, 1, 11]
    assert isinstance(data.test, MaskFolder)
    rows = torch.tensor([3, 0])
    images, _ = data.test.read(rows, 28)
    masks = data.test.read_masks(rows, 28)
    assert torch.equal(masks, data.test.read_classes(rows, 28))
    assert {*masks.flatten().tolist()} == {2, 5, 255}
    for channel, number in ((0, 2), (2, 5)):
        assert torch.equal(images[:, channel] > 127, masks == number)
    assert (masks[0, 14:] == 255).any()
    assert not (masks[1] == 255).any(), "the middle of the first is all labelled"


def test_the_label_is_the_class_of_most_pixels(tmp_path: Path) -> None:
    """As a set of images to train on it would have labels beyond its classes."""
    data = opened(write(tmp_path))
    assert data.test.labels.tolist() == [1] * 11
    assert int(data.train.labels.max()) < data.classes


def test_a_folder_is_judged_as_it_lies_there(tmp_path: Path) -> None:
    """Masks read beside their images, or classes told apart by their ids, would show as a worse encoder."""
    data = opened(write(tmp_path))
    names = ["segmentation", "segment_linear"]
    asked = [{name: {"data": "maskfolder", "path": str(tmp_path)}} for name in names]
    evaluations = with_data(read_evaluations(asked))
    assert {one.version for one in evaluations} == {data.version}

    def colours(images: Tensor) -> Tensor:
        return images.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)).flatten(2).transpose(1, 2)

    seen = replace(model(dataset=data, side=28), patches=colours)
    for one in evaluations:
        opens = open_dataset(Data(name="maskfolder", path=str(tmp_path), image_size=28))
        given = replace(frozen(nothing(2), nothing(2), 1), model=seen, opened=opens)
        found = PROTOCOLS[one.name](given)
        for name in ("segment_fg_ari", "segment_linear_objects"):
            assert found.get(name, 100) > 90, name


def test_the_version_is_over_both_files(tmp_path: Path) -> None:
    """Corrected annotations would be averaged with the old ones."""
    first = opened(write(tmp_path / "a")).version
    assert opened(write(tmp_path / "b")).version == first
    path = tmp_path / "b/annotations/validation/03.png"
    Image.fromarray(np.full((32, 64), 3, np.uint8)).save(path)
    assert opened(tmp_path / "b").version != first


def test_what_is_wrong_with_a_folder_is_said_in_a_line(tmp_path: Path) -> None:
    """A traceback from a decoder's thread names no file."""
    root = write(tmp_path)
    path = root / "annotations/training/04.png"
    good = path.read_bytes()

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            opened(root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.unlink()
    assert refused() == f"{path}: missing: add it, or remove its image"
    path.write_bytes(good[:50])
    assert refused().startswith(f"{path}: cannot be read (")
    Image.new("L", (9, 9), 1).save(path)
    assert refused() == f"{path}: 9 x 9 pixels, its image 64 x 32: give annotations as large as the images"
    Image.new("RGB", (64, 32)).save(path)
    assert refused() == f"{path}: RGB pixels: expected one number of 0..255 for each"
    for one in (root / "annotations").rglob("*.png"):
        Image.new("L", (64, 32), 255).save(one)
    assert "no pixel is labelled" in refused()
    (root / "annotations/validation").rename(root / "elsewhere")
    assert "annotations/validation is not a folder" in refused()
