"""What holds for every dataset: its splits, and what is held out of them."""

import subprocess
import sys
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from lmim import variants
from lmim.config import Config, Data
from lmim.data import Dataset, open_dataset
from lmim.data.glyphs import Recipe, glyphs
from lmim.data.splits import ArrayClips, Clips, Subset, from_arrays, hold_out
from tests.data.clips import MOVING


def numbered(count: int, **more: Any) -> Dataset:
    """Every image labelled with its own number."""
    arrays = {
        f"{split}_{what}": array
        for split in ("train", "test")
        for what, array in (("images", np.zeros((count, 1, 2, 2), np.uint8)), ("labels", np.arange(count)))
    }
    return from_arrays(Data(image_size=2), "0", arrays | more, classes=count, flips=False)


@pytest.mark.parametrize(
    ("count", "held"), [(1, 0), (2, 1), (19, 1), (1000, 100), (100_000, 10_000), (200_000, 10_000)]
)
def test_val_is_a_tenth_of_train_and_none_of_it(count: int, held: int) -> None:
    """A winner selected on images that it was trained on would be the one that learned most by heart."""
    data = numbered(count)
    assert len(data.val) == held
    train, val = set(data.train.labels.tolist()), set(data.val.labels.tolist())
    assert not train & val
    assert train | val == set(range(count))
    assert len(data.train) == len(train)
    assert len(data.test) == count


def test_val_is_the_same_for_every_trial_and_from_everywhere() -> None:
    """Two trials judged on other images cannot be compared; the tail alone would be the last classes."""
    torch.manual_seed(3)
    first, second = numbered(1000), numbered(1000)
    assert torch.equal(first.val.labels, second.val.labels)
    assert first.val.labels.tolist() == sorted(first.val.labels.tolist())
    assert all(len([i for i in first.val.labels if lo <= i < lo + 200]) > 5 for lo in range(0, 1000, 200))


def test_a_part_of_a_video_dataset_is_of_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """data.train_images, or a val held out, would leave what no video objective can read."""
    sources = {"clips.py": MOVING}
    section = {"data": {"name": "clips.py:moving", "image_size": 8, "train_images": 20}, "sources": sources}
    config = Config.read(section)
    data = open_dataset(config.data, sources)
    assert (data.frames, len(data.train), len(data.val), len(data.test)) == (8, 20, 30, 80)
    indices, times = torch.tensor([3, 19]), torch.tensor([[7, 0, 4], [1, 1, 2]])
    boxes = torch.rand(2, 3, 4)
    for split in (data.train, data.val, data.test):
        read = cast(Clips, split).read_clips(indices, 8, boxes, times)
        # a frame's brightest pixels are as bright as it is late
        assert torch.equal(read[0].amax((2, 3, 4)) - 200, times.byte())
        assert torch.equal(read[1], boxes)
        middle, whole = split.read(indices, 8)
        assert (middle.amax((1, 2, 3)) == 204).all()
        assert whole.tolist() == [[0, 0, 1, 1]] * 2
        small = cast(Clips, replace(cast(ArrayClips, data.test), side=4)).read_clips(indices, 4, boxes, times)
        assert small[0].shape == (2, 3, 1, 4, 4)


def test_holding_out_is_part_of_the_version() -> None:
    """Trials of the whole train and of nine tenths of it would be averaged in one table."""
    assert numbered(10).version not in ("", "0")
    given = {"val_images": np.ones((3, 1, 2, 2), np.uint8), "val_labels": np.arange(3)}
    own = numbered(10, **given)
    assert (own.version, len(own.train), own.val.labels.tolist()) == ("0", 10, [0, 1, 2])
    whole = own.train
    assert hold_out(whole, "0")[2] == numbered(10).version != hold_out(whole, "1")[2]


def test_train_images_cuts_what_is_left_of_train() -> None:
    """A cut that took from val would train on what selects; another cut for each trial would be noise."""
    data = open_dataset(Data(name="digits", image_size=8))
    cut = open_dataset(Data(name="digits", image_size=8, train_images=200))
    assert (len(cut.train), cut.version) == (200, data.version)
    assert torch.equal(cut.val.labels, data.val.labels)
    assert torch.equal(cut.test.labels, data.test.labels)
    again = open_dataset(Data(name="digits", image_size=8, train_images=200))
    assert isinstance(data.train, Subset)
    assert isinstance(cut.train, Subset)
    assert isinstance(again.train, Subset)
    assert torch.equal(cut.train.indices, again.train.indices)
    chosen = cut.train.indices
    assert torch.equal(cut.train.labels, data.train.labels[chosen])
    images, _ = cut.train.read(torch.arange(200), 8)
    assert torch.equal(images, data.train.read(chosen, 8)[0])
    assert torch.equal(images, data.train.whole.read(data.train.indices[chosen], 8)[0])
    assert len(open_dataset(Data(name="digits", image_size=8, train_images=10**6)).train) == len(data.train)


@pytest.mark.parametrize(("name", "classes", "canvas"), [("glyphs", 36, 20), ("digits", 10, 8)])
def test_embedded_sets_are_whole(name: str, classes: int, canvas: int) -> None:
    """Labels out of step with images, or missing classes, would make every score meaningless."""
    small = Recipe(train_images=144, test_images=72)
    data = glyphs(Data(), recipe=small) if name == "glyphs" else open_dataset(Data(name=name))
    assert (data.name, data.channels, data.classes, data.flips) == (name, 1, classes, False)
    for split in (data.train, data.val, data.test):
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


@pytest.mark.parametrize("name", variants.choices("data"))
def test_a_dataset_is_the_file_of_its_name(name: str) -> None:
    """A name is looked up by its file: a dataset elsewhere could not be chosen."""
    opener = variants.load("data", name, {})
    assert (opener.__module__, opener.__name__) == (f"lmim.data.{name}", name)


def test_planning_imports_neither_torchvision_nor_sklearn() -> None:
    """Each costs a second in every trial's process; torchvision may not be there at all."""
    program = (
        "import sys, lmim.data; "
        "print([m for m in ('torchvision', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
