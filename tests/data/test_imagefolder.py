"""Folders of images: what is read of them, what is refused, and what their version stands for."""

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize, resized_crop

from lmim.config import Data
from lmim.data import imagefolder, open_dataset, reading
from lmim.data.splits import Subset
from lmim.errors import UserError


def write_images(root: Path, per_class: int = 12, size: tuple[int, int] = (40, 20)) -> None:
    """Two classes, one dark and one light, with the left half of every image red."""
    for split in ("train", "val"):
        for level, name in ((40, "dark"), (200, "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = np.full((size[1], size[0], 3), level, np.uint8)
                pixels[:, : size[0] // 2] = (level, 0, 0)
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")


def test_imagefolder_reads_labels_pixels_and_aspect(tmp_path: Path) -> None:
    """ImageNet's layout is what the paper scale runs on."""
    write_images(tmp_path)
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path), image_size=28))
    assert (data.channels, data.classes, data.flips) == (3, 2, True)
    assert isinstance(data.train, Subset)
    assert data.train.whole.labels.tolist() == [0] * 12 + [1] * 12
    assert data.train.whole.aspect.tolist() == [2] * 24
    images, boxes = data.test.read(torch.tensor([1, 13]), 28)  # the png files, free of loss
    assert images.shape == (2, 3, 28, 28)
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert images[:, :, 16, 4].tolist() == [[40, 0, 0], [200, 0, 0]]
    assert images[:, :, 16, 24].tolist() == [[40] * 3, [200] * 3]


def version_of(root: Path) -> str:
    return open_dataset(Data(name="imagefolder", path=str(root))).version


def test_a_folder_of_ones_own_has_three_splits(tmp_path: Path) -> None:
    """ImageNet's val/ is what papers report; what selects must not look at it."""
    write_images(tmp_path, per_class=30)
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path)))
    assert (len(data.train), len(data.val), len(data.test)) == (54, 6, 60)
    assert isinstance(data.train, Subset)
    assert isinstance(data.val, Subset)
    assert sorted([*data.train.indices.tolist(), *data.val.indices.tolist()]) == list(range(60))
    assert data.val.read(torch.arange(6), 20)[0].shape == (6, 3, 20, 20)
    cut = open_dataset(Data(name="imagefolder", path=str(tmp_path), train_images=10))
    assert (len(cut.train), len(cut.val), len(cut.test)) == (10, 6, 60)


def write_flat(root: Path, counts: dict[str, int]) -> None:
    """A folder for each class, of images that all differ."""
    for level, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (80 * level, 3 * i, 0)).save(root / name / f"{i}.png")


def files(split: Any) -> set[str]:
    """The names of a split's images, which stand in a folder's or in a part of one."""
    if isinstance(split, Subset):
        assert isinstance(split.whole, imagefolder.FolderSplit)
        return {split.whole.names[i] for i in split.indices.tolist()}
    assert isinstance(split, imagefolder.FolderSplit)
    return set(split.names)


def test_a_folder_without_splits_has_a_test_held_out(tmp_path: Path) -> None:
    """The layout that most people have would fail, or be tested on what it was trained on."""
    write_flat(tmp_path / "a", {"cat": 20, "dog": 10, "one": 1, "two": 2})
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path / "a"), image_size=8))
    parts = [files(split) for split in (data.train, data.val, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 33, "no image is in two splits"
    assert {
        name: sum(file.startswith(name) for file in parts[2]) for name in ("cat", "dog", "one", "two")
    } == {**{"cat": 4, "dog": 2, "one": 0, "two": 1}}
    assert data.test.labels.tolist() == [0] * 4 + [1] * 2 + [3]
    assert (data.classes, len(data.val)) == (4, 2)
    shutil.move(tmp_path / "a", tmp_path / "b")
    again = open_dataset(Data(name="imagefolder", path=str(tmp_path / "b"), image_size=8))
    assert files(again.test) == parts[2]
    assert again.version == data.version
    with pytest.raises(UserError, match=r"b/one: no class folders in it"):
        open_dataset(Data(name="imagefolder", path=str(tmp_path / "b" / "one")))


def test_the_version_is_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    """A dataset moved to a faster disk, or a colleague's copy, would be taken for another."""
    write_images(tmp_path / "a")
    version = version_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for i, file in enumerate(sorted((tmp_path / "b").rglob("*.*"))):
        os.utime(file, (i, i))
    assert version_of(tmp_path / "b") == version
    (tmp_path / "a").rename(tmp_path / "c")
    assert version_of(tmp_path / "c") == version


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    """Uncompressed images are all of one size: other data would pass for these, and share their table."""
    for root, level in (("a", 10), ("b", 11)):
        for split in ("train", "val"):
            (tmp_path / root / split / "only").mkdir(parents=True)
            for i in range(4):
                changed = level if (split, i) == ("val", 3) else 10
                Image.new("RGB", (8, 8), (changed, 0, 0)).save(tmp_path / root / split / "only" / f"{i}.bmp")
    listed = [[(f.name, f.stat().st_size) for f in sorted((tmp_path / r).rglob("*.bmp"))] for r in "ab"]
    assert listed[0] == listed[1]
    assert version_of(tmp_path / "a") != version_of(tmp_path / "b")


@pytest.mark.parametrize("change", ["byte", "corrupt", "name", "class", "empty class"])
def test_the_version_follows_every_change_in_place(tmp_path: Path, change: str) -> None:
    """A label or a pixel mended in the middle of a study would be averaged with what it was before."""
    write_images(tmp_path / "a")
    file = tmp_path / "a" / "train" / "dark" / "1.png"
    bad = tmp_path / "a" / "val" / "dark" / "0.jpg"
    bad.write_bytes(bytes(100))
    with pytest.warns(UserWarning, match="1 of 48"):
        before = version_of(tmp_path / "a")
    if change == "byte":
        Image.new("RGB", (40, 20), (1, 2, 3)).save(file)
    elif change == "corrupt":
        bad.write_bytes(bytes(99) + b"x")
    elif change == "name":
        file.rename(file.with_name("renamed.png"))
    elif change == "class":
        file.rename(tmp_path / "a" / "train" / "light" / "renamed.png")
    else:
        (tmp_path / "a" / "train" / "a class before the others").mkdir()
    with pytest.warns(UserWarning, match="1 of 48"):
        assert version_of(tmp_path / "a") != before


def pictures(root: Path, suffix: str, finest: int) -> list[Image.Image]:
    """A tall and a wide image with detail from 2^finest pixels on; each split holds both, in this order."""
    rng = np.random.default_rng(0)
    made = []
    for split in ("train", "val"):
        folder = root / split / "only"
        folder.mkdir(parents=True)
        for width, height in ((300, 400), (400, 300)):
            layers = [rng.integers(0, 256, (height >> k, width >> k, 3), np.uint8) for k in range(finest, 6)]
            whole = [np.asarray(Image.fromarray(layer).resize((width, height))) for layer in layers]
            image = Image.fromarray(np.mean(whole, 0).astype(np.uint8))
            path = folder / f"{width}.{suffix}"
            image.save(path, quality=95)
            made.append(Image.open(path).convert("RGB"))
    return made[2:]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("parts", [(0.1, 0.2, 0.4, 0.5), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5)])
def test_imagefolder_cuts_crops_from_the_full_resolution(
    tmp_path: Path, parts: tuple[float, ...], suffix: str
) -> None:
    """The published recipe crops, then shrinks; crops of a shrunk image are blurred: another recipe."""
    originals = pictures(tmp_path, suffix, finest=0)
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path), image_size=112))
    images, boxes = data.test.read(torch.arange(2), 112, torch.tensor([parts, parts]))
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2
    for found, original in zip(images, originals, strict=True):
        left, top, width, height = (
            round(part * side) for part, side in zip(parts, original.size * 2, strict=True)
        )
        expected = resized_crop(
            original, top, left, height, width, [112, 112], InterpolationMode.BICUBIC, antialias=True
        )
        off = np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, int))
        assert off[2:-2, 2:-2].max() <= 1  # at its edge the box sees what lies beyond


def test_imagefolder_is_evaluated_as_usual(tmp_path: Path) -> None:
    """Shorter edge to 256, centre 224: another crop would move every accuracy."""
    originals = pictures(tmp_path, "png", finest=3)
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path), image_size=224))
    images, _ = data.test.read(torch.arange(2), 224)
    for found, original in zip(images, originals, strict=True):
        off = []
        for edge in (256, 248, 264):  # to half a pixel of the first: the usual way rounds the crop's place
            expected = center_crop(resize(original, [edge], InterpolationMode.BICUBIC), [224, 224])
            off.append(np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, int)).mean())
        assert off[0] < 0.5 * min(off[1:])


def test_imagefolder_decodes_a_huge_photo_no_larger_than_it_must(tmp_path: Path) -> None:
    """A folder of camera photos would be decoded at a tenth of the speed; what is seen must stay the same."""
    y, x = np.mgrid[0:2400, 0:3200]
    waves = (127 + 60 * np.sin(x / 90) + 60 * np.cos(y / 70)).astype(np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        Image.fromarray(waves).convert("RGB").save(tmp_path / split / "only" / "x.jpg", quality=95)
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path), image_size=64))
    seen: list[tuple[int, int]] = []
    resample = Image.Image.resize

    def spy(image: Image.Image, *arguments: Any) -> Image.Image:
        seen.append(image.size)
        return resample(image, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", spy)
        whole, _ = data.test.read(torch.tensor([0]), 64, torch.tensor([[0.0, 0, 1, 1]]))
        data.test.read(torch.tensor([0]), 64, torch.tensor([[0.5, 0.5, 0.04, 0.04]]))
    assert seen == [(400, 300), (3200, 2400)]
    exact = np.asarray(resample(Image.fromarray(waves), (64, 64), Image.Resampling.BICUBIC), int)
    assert np.abs(whole[0, 0].numpy() - exact).mean() < 2


def test_imagefolder_takes_modes_and_sizes_as_they_come(tmp_path: Path) -> None:
    """ImageNet has grey and CMYK images, and other sets palettes and transparency."""
    write_images(tmp_path)
    kinds = [("L", "png"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("LA", "png")]
    for i, (mode, suffix) in enumerate(kinds):
        Image.new("RGB", (7 + 90 * i, 300 - 40 * i), "white").convert(mode).save(
            tmp_path / "train" / "light" / f"z{i}.{suffix.upper()}"
        )
    train, *_ = imagefolder.open_folders(tmp_path)
    assert len(train) == 24 + len(kinds)
    images, _ = train.read(torch.arange(24, 24 + len(kinds)), 28)
    assert images.shape == (len(kinds), 3, 28, 28)
    assert images.min() > 250
    aspect = torch.tensor([(7 + 90 * i) / (300 - 40 * i) for i in range(len(kinds))])
    torch.testing.assert_close(train.aspect[24:], aspect)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def test_imagefolder_names_and_skips_corrupt_files(tmp_path: Path) -> None:
    """One bad file of a million must neither end a run after a day nor go unmentioned."""
    write_images(tmp_path)
    truncate(tmp_path / "train" / "dark" / "2.jpg")
    (tmp_path / "train" / "light" / "3.png").write_bytes(b"")
    (tmp_path / "val" / "light" / "4.jpg").write_text("not an image")
    (tmp_path / "val" / "light" / "notes.txt").write_text("no image by its name, so no matter")
    for _ in range(2):  # looked at, then remembered: the warning comes every time
        with pytest.warns(
            UserWarning, match=r"3 of 48 .* train/dark/2.jpg, train/light/3.png, val/light/4.jpg"
        ):
            data = open_dataset(Data(name="imagefolder", path=str(tmp_path), image_size=28))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 2, 23)
    assert data.skipped == ("train/dark/2.jpg", "train/light/3.png", "val/light/4.jpg")
    assert isinstance(data.train, Subset)
    assert data.train.whole.labels.tolist() == [0] * 11 + [1] * 11
    images, _ = data.train.whole.read(torch.arange(22), 28)
    assert (images[:11, 2, 16, 24] < 100).all()
    assert (images[11:, 2, 16, 24] > 100).all()


def test_imagefolder_refuses_a_rotten_set(tmp_path: Path) -> None:
    """A half-copied dataset would otherwise train on what happened to arrive."""
    write_images(tmp_path)
    for i in range(0, 10, 2):
        truncate(tmp_path / "train" / "dark" / f"{i}.jpg")
    with pytest.raises(UserError, match=r"5 of 48 .* more than 1%: .*train/dark/0.jpg"):
        open_dataset(Data(name="imagefolder", path=str(tmp_path)))


def test_imagefolder_looks_again_when_a_file_changes(tmp_path: Path) -> None:
    """What was cached about a file must not outlive it; the version must follow the data, not the copy."""
    write_images(tmp_path / "a")
    first = open_dataset(Data(name="imagefolder", path=str(tmp_path / "a")))
    write_images(tmp_path / "b")
    assert open_dataset(Data(name="imagefolder", path=str(tmp_path / "b"))).version == first.version
    truncate(tmp_path / "a" / "train" / "dark" / "2.jpg")
    with pytest.warns(UserWarning, match="1 of 48"):
        second = open_dataset(Data(name="imagefolder", path=str(tmp_path / "a")))
    assert second.version != first.version
    spoilt = tmp_path / "a" / "val" / "light" / "4.jpg"
    spoilt.write_bytes(bytes(spoilt.stat().st_size))  # the size alone would not tell
    with pytest.warns(UserWarning, match="2 of 48"):
        open_dataset(Data(name="imagefolder", path=str(tmp_path / "a")))


def test_a_trial_asks_the_folders_and_not_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of every trial would ask after 1.3 million files, for minutes, before its first step."""
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "a")
    data = Data(name="imagefolder", path=str(tmp_path / "a"))
    planned = open_dataset(data)
    file = tmp_path / "a" / "train" / "dark" / "2.jpg"
    trial = data.model_copy(update={"version": planned.version})

    def looked(*_: object) -> None:
        raise RuntimeError("looked at every file")

    monkeypatch.setattr(imagefolder, "_look_at_all", looked)
    os.utime(file, (1, 1))  # as if its content were another
    found = open_dataset(trial)
    assert found.version == planned.version
    for split in (found.train, planned.train):
        assert isinstance(split, Subset)
        assert isinstance(split.whole, imagefolder.FolderSplit)
        assert list(split.whole.names)[:2] == ["train/dark/0.jpg", "train/dark/1.png"]
    for changed in (data, trial):
        with pytest.raises(RuntimeError, match="looked"):
            open_dataset(changed)
        file.unlink(missing_ok=True)  # which a trial sees, too


def test_a_trial_decodes_with_the_cores_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight trials on a machine would each start a thread for every core of it."""
    write_images(tmp_path)
    train, *_ = imagefolder.open_folders(tmp_path)
    monkeypatch.setattr(reading, "_threads", None)
    assert reading.num_threads() >= 1
    cut, threads = imagefolder.FolderSplit._cut, set[int]()

    def noted(
        self: imagefolder.FolderSplit, index: int, side: int, box: Sequence[float]
    ) -> NDArray[np.uint8]:
        threads.add(threading.get_ident())
        return cut(self, index, side, box)

    monkeypatch.setattr(imagefolder.FolderSplit, "_cut", noted)
    reading.set_num_threads(1)
    train.read(torch.arange(16), 20)
    assert len(threads) == 1


def test_imagefolder_names_a_file_that_rots_under_way(tmp_path: Path) -> None:
    """A disk that fails during training must be named, not shown as a Pillow traceback."""
    write_images(tmp_path)
    train, *_ = imagefolder.open_folders(tmp_path)
    truncate(tmp_path / "train" / "dark" / "0.jpg")
    with pytest.raises(UserError, match=r"train/dark/0\.jpg"):
        train.read(torch.arange(4), 20)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "give the folder"),
        ("nowhere", "nowhere"),
        ("empty", "train"),
        ("no_classes", "no class folders"),
        ("no_images", "no readable image"),
        ("stranger", "zebra"),
    ],
)
def test_imagefolder_says_what_is_missing(tmp_path: Path, broken: str | None, message: str) -> None:
    """A mistyped path is the commonest mistake; it must end in one line."""
    (tmp_path / "empty").mkdir()
    for split in ("train", "val"):
        (tmp_path / "no_classes" / split).mkdir(parents=True)
        (tmp_path / "no_images" / split / "cat").mkdir(parents=True)
    write_images(tmp_path / "stranger", per_class=1)
    (tmp_path / "stranger" / "val" / "zebra").mkdir()
    path = broken and str(tmp_path / broken)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(Data(name="imagefolder", path=path))
    assert "\n" not in str(caught.value)


def test_no_file_can_crash_the_reader(tmp_path: Path) -> None:
    """Pillow raises many kinds of error; one that is not foreseen would end the first look at a big set."""
    write_images(tmp_path, per_class=2)
    rng = np.random.default_rng(0)
    target = tmp_path / "x.png"
    for source in sorted((tmp_path / "train" / "dark").iterdir()):
        good = np.frombuffer(source.read_bytes(), np.uint8)
        for _ in range(400):
            bad = good.copy()
            where = rng.integers(0, len(bad), rng.integers(1, 6))
            bad[where] = rng.integers(0, 256, len(where))
            target.write_bytes(bad[: rng.integers(1, len(bad) + 1)].tobytes())
            assert imagefolder._look(target)[0] >= 0
