"""Datasets: what is drawn, what is read from disk, and what is refused."""

import dataclasses
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize, resized_crop

from lmim.config import Data
from lmim.data import datasets, glyphs, imagefolder, open_dataset
from lmim.errors import UserError

SMALL = glyphs.Recipe(train_images=144, test_images=72)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LMIM_CACHE", str(folder))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.DATASETS, "glyphs", partial(datasets.open_glyphs, SMALL))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "classes", "canvas"), [("glyphs", 36, 20), ("digits", 10, 8)])
def test_embedded_sets_are_whole(name: str, classes: int, canvas: int) -> None:
    """Labels out of step with images, or missing classes, would make every score meaningless."""
    data = open_dataset(Data(name=name))
    assert (data.name, data.channels, data.classes, data.flips) == (name, 1, classes, False)
    for split in (data.train, data.test):
        images, boxes = split.read(torch.tensor([3, 0, 3]), 20)
        assert images.dtype == torch.uint8
        assert images.shape == (3, 1, canvas, canvas)
        assert torch.equal(images[0], images[2])
        assert not torch.equal(images[0], images[1])
        assert boxes.tolist() == [[0, 0, 1, 1]] * 3
        assert split.aspect.tolist() == [1] * len(split)
        assert split.labels.dtype == torch.int64
        assert len(split) == len(split.labels)
        assert set(split.labels.tolist()) == set(range(classes))


def test_digits_come_in_scikit_learns_order() -> None:
    """The last quarter is by other writers; a shuffled split would leak them into training."""
    data = open_dataset(Data(name="digits"))
    assert (len(data.train), len(data.test)) == (1347, 450)
    assert data.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    images, _ = data.train.read(torch.arange(len(data.train)), 8)
    assert images.max() == 255
    mean = images.double().mean().item() / 255
    assert data.mean[0] == pytest.approx(mean, abs=0.02)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("side", [12, 20, 64])
def test_glyphs_are_drawn_at_the_size_asked_for(side: int) -> None:
    """The gpu scale wants sharp 64 px glyphs, not enlarged small ones."""
    data = open_dataset(Data(image_size=side))
    images, _ = data.train.read(torch.arange(len(data.train)), side)
    assert images.shape[1:] == (1, side, side)
    # a sharp edge at every size: somewhere neighbours differ by most of the contrast
    assert (images.int().diff(dim=-1).abs().amax(dim=(1, 2, 3)) > 60).float().mean() > 0.95


def test_glyphs_are_the_same_in_every_process_and_read_from_the_cache(cache: Path) -> None:
    """Trials that drew other data, or drew it again each time, could not share a table."""
    program = (
        "from functools import partial; import hashlib, torch\n"
        "from lmim.config import Data; from lmim.data import datasets, glyphs\n"
        "recipe = glyphs.Recipe(train_images=144, test_images=72)\n"
        "d = datasets.open_glyphs(recipe, Data())\n"
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
    assert [path.name for path in cache.iterdir()] == [f"glyphs-{SMALL.version()}"]
    data = datasets.open_glyphs(SMALL, Data())
    assert isinstance(data.train, datasets.ArraySplit)
    assert isinstance(data.train.images.base, np.memmap)


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


@pytest.mark.usefixtures("small")
def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    """A full or read-only home must end in a line that says what to set, not in a traceback."""
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="LMIM_CACHE"):
        open_dataset(Data())


def test_a_draw_that_fails_leaves_no_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a dataset taken for a whole one would be trained on for ever after."""

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", broken)
        with pytest.raises(UserError, match="No space left"):
            datasets.open_glyphs(SMALL, Data())
    assert list(cache.iterdir()) == []
    assert len(datasets.open_glyphs(SMALL, Data()).train) == 144


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
    assert (data.channels, data.classes, data.flips, len(data.train), len(data.test)) == (3, 2, True, 24, 24)
    assert data.train.labels.tolist() == [0] * 12 + [1] * 12
    assert data.train.aspect.tolist() == [2] * 24
    images, boxes = data.test.read(torch.tensor([1, 13]), 28)  # the png files, free of loss
    assert images.shape == (2, 3, 28, 28)
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert images[:, :, 16, 4].tolist() == [[40, 0, 0], [200, 0, 0]]
    assert images[:, :, 16, 24].tolist() == [[40] * 3, [200] * 3]


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
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path), image_size=28))
    assert len(data.train) == 24 + len(kinds)
    images, _ = data.train.read(torch.arange(24, 24 + len(kinds)), 28)
    assert images.shape == (len(kinds), 3, 28, 28)
    assert images.min() > 250
    aspect = torch.tensor([(7 + 90 * i) / (300 - 40 * i) for i in range(len(kinds))])
    torch.testing.assert_close(data.train.aspect[24:], aspect)


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
    assert (len(data.train), len(data.test)) == (22, 23)
    assert data.train.labels.tolist() == [0] * 11 + [1] * 11
    images, _ = data.train.read(torch.arange(22), 28)
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


def test_imagefolder_names_a_file_that_rots_under_way(tmp_path: Path) -> None:
    """A disk that fails during training must be named, not shown as a Pillow traceback."""
    write_images(tmp_path)
    data = open_dataset(Data(name="imagefolder", path=str(tmp_path)))
    truncate(tmp_path / "train" / "dark" / "0.jpg")
    with pytest.raises(UserError, match=r"train/dark/0\.jpg"):
        data.train.read(torch.arange(4), 20)


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
            assert imagefolder._aspect(target) >= 0


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


@pytest.mark.parametrize("side", [32, 16])
def test_cifar_keeps_channels_rows_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """torchvision's arrays are rows, columns, channels; a wrong turn gives scrambled images."""
    import hashlib

    import torchvision

    kind = torchvision.datasets.CIFAR10
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def put(name: str, content: dict[str, Any]) -> list[str]:
        payload = pickle.dumps(content)
        (folder / name).write_bytes(payload)
        return [name, hashlib.md5(payload, usedforsecurity=False).hexdigest()]

    images = np.zeros((4, 3, 32, 32), np.uint8)
    images[:, 0, :16] = 200  # red above
    images[:, 2, :, :16] = 100  # blue on the left
    content = {"data": images.reshape(4, -1), "labels": [3, 1, 4, 1]}
    monkeypatch.setattr(kind, "train_list", [put("data_batch_1", content)])
    monkeypatch.setattr(kind, "test_list", [put("test_batch", content)])
    name, md5 = put("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": "label_names", "md5": md5})

    data = open_dataset(Data(name="cifar10", path=str(tmp_path), image_size=side))
    read, _ = data.train.read(torch.arange(4), side)
    assert (data.channels, data.flips, data.train.labels.tolist()) == (3, True, [3, 1, 4, 1])
    assert read.shape == (4, 3, side, side)
    quarter = side // 4
    assert read[0, :, quarter, quarter].tolist() == [200, 0, 100]
    assert read[0, :, quarter, -quarter].tolist() == [200, 0, 0]
    assert read[0, :, -quarter, quarter].tolist() == [0, 0, 100]
    assert data.mean == pytest.approx([100 / 255, 0, 50 / 255])


def test_planning_imports_neither_torchvision_nor_sklearn() -> None:
    """Each costs a second in every trial's process; torchvision may not be there at all."""
    program = (
        "import sys, lmim.data; "
        "print([m for m in ('torchvision', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
