"""Stored ImageNet-C: every folder, its labels, and what is missing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmim.config import Data
from lmim.data import open_dataset
from lmim.data.corruptions import CONSTANTS, STRENGTHS
from lmim.data.imagenet_c import stored_at
from lmim.errors import UserError


def store(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 2) -> Path:
    """Images of one colour each: red says the class, green the corruption and its strength."""
    for place, name in enumerate(CONSTANTS):
        for strength in STRENGTHS:
            for label, one in enumerate(classes):
                folder = root / name / str(strength) / one
                folder.mkdir(parents=True)
                for number in range(count):
                    colour = np.array([255 * label, 8 * place + strength, 0], np.uint8)
                    Image.fromarray(np.tile(colour, (8, 8, 1))).save(folder / f"{number}.png")
    return root


def test_each_image_is_found_by_corruption_and_strength(tmp_path: Path) -> None:
    """An error under fog would be that of snow."""
    data = open_dataset(Data(name="imagenet_c", image_size=8, path=str(store(tmp_path))))
    assert (data.channels, data.classes, len(data.test)) == (3, 2, 15 * 5 * 4)
    for place, name in enumerate(CONSTANTS):
        rows = stored_at(data.test, name, 4)
        images, _ = data.test.read(rows, 8)
        labels = data.test.labels[rows]
        assert labels.tolist() == [0, 0, 1, 1]
        assert images[:, 0, 0, 0].tolist() == (255 * labels).tolist()
        assert images[:, 1, 0, 0].tolist() == [8 * place + 4] * 4


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A mean over fourteen corruptions would be compared with one over fifteen."""
    root = store(tmp_path)
    version = open_dataset(Data(name="imagenet_c", image_size=8, path=str(root))).version
    for file in (root / "fog" / "3" / "cat").iterdir():
        file.unlink()
    assert open_dataset(Data(name="imagenet_c", image_size=8, path=str(root))).version != version
    (root / "fog" / "3" / "cat").rmdir()
    with pytest.raises(UserError, match=r"fog/3: expected the classes of gaussian_noise/1"):
        open_dataset(Data(name="imagenet_c", image_size=8, path=str(root)))
    (root / "fog" / "3").rename(root / "fog" / "6")
    with pytest.raises(UserError, match=r"fog/3 is not a folder"):
        open_dataset(Data(name="imagenet_c", image_size=8, path=str(root)))
