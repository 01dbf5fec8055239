"""CIFAR-10 and CIFAR-100: files that are checked before they are opened, and what is read of them."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmim.config import Data
from lmim.data import open_dataset
from lmim.errors import UserError


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_never_unpickled_before_its_checksum(name: str, tmp_path: Path) -> None:
    """CIFAR's files are pickles: a forged one runs any code in whoever opens it."""
    import torchvision

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        open_dataset(Data(name=name, path=str(tmp_path), image_size=32))
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    for file in [*(row[0] for row in kind.train_list + kind.test_list), kind.meta["filename"]]:
        (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "went_off")))
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        open_dataset(Data(name=name, path=str(tmp_path), image_size=32))
    assert not (tmp_path / "went_off").exists()
    pickle.loads((folder / kind.meta["filename"]).read_bytes())
    assert (tmp_path / "went_off").exists()  # the bomb was live


@pytest.mark.parametrize(("name", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
@pytest.mark.parametrize("side", [32, 16])
def test_cifar_keeps_channels_rows_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, name: str, key: str
) -> None:
    """torchvision's arrays are rows, columns, channels; a wrong turn gives scrambled images."""
    import torchvision

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def put(file: str, content: dict[str, Any]) -> list[str]:
        payload = pickle.dumps(content)
        (folder / file).write_bytes(payload)
        return [file, hashlib.md5(payload, usedforsecurity=False).hexdigest()]

    images = np.zeros((10, 3, 32, 32), np.uint8)
    images[:, 0, :16] = 200  # red above
    images[:, 2, :, :16] = 100  # blue on the left
    content: dict[str, Any] = {"data": images.reshape(10, -1), key: [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]}
    monkeypatch.setattr(kind, "train_list", [put("data_batch_1", content)])
    monkeypatch.setattr(kind, "test_list", [put("test_batch", content)])
    file, md5 = put("meta", {"names": list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {"filename": file, "key": "names", "md5": md5})

    data = open_dataset(Data(name=name, path=str(tmp_path), image_size=side))
    read, _ = data.train.read(torch.arange(9), side)
    (held,) = data.val.labels.tolist()
    assert data.test.labels.tolist() == content[key]
    assert data.train.labels.tolist() == [label for label in content[key] if label != held]
    assert (data.channels, data.flips, data.classes) == (3, True, int(name.removeprefix("cifar")))
    assert data.version != kind.tgz_md5[:12]  # that of all of train
    assert read.shape == (9, 3, side, side)
    quarter = side // 4
    assert read[0, :, quarter, quarter].tolist() == [200, 0, 100]
    assert read[0, :, quarter, -quarter].tolist() == [200, 0, 0]
    assert read[0, :, -quarter, quarter].tolist() == [0, 0, 100]
    assert data.mean == pytest.approx([100 / 255, 0, 50 / 255])
