"""What a step is shown: complete, reproducible, and the same however many processes share it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from lmim.config import Config, Data, merge
from lmim.data import Dataset, open_dataset
from lmim.data.augment import WHOLE
from lmim.errors import UserError
from lmim.objectives import Draw, Objective, Setup
from lmim.train.batches import MicroBatch, batches, generator
from lmim.train.loop import Run
from tests.data.clips import MOVING

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 250, "flip": True},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "mask": {"gap": 2},
    "optim": {"epochs": 2, "batch_size": 10, "accumulate": 6},
}


def tiny(**changes: Any) -> Config:
    return Config.read(merge(TINY, {key.replace("__", "."): v for key, v in changes.items()}))


def stream(dataset: Dataset, config: Config, first: int = 0, **how: Any) -> list[list[MicroBatch]]:
    """What the trainer of this config would be shown."""
    run = Run(config, dataset, torch.device("cpu"))
    shown = batches(dataset.train, config, run.objective, first, run.steps, **how)
    return [list(step) for step in shown]


def tensors(draw: Draw) -> dict[str, Tensor]:
    return {"boxes": draw.boxes, "mirrored": draw.mirrored, **draw.own}


def assert_same(first: Sequence[MicroBatch], second: Sequence[MicroBatch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        expected, found = tensors(one.draw), tensors(other.draw)
        assert expected.keys() == found.keys()
        assert expected.keys() == {"boxes", "mirrored", "offsets", "visible", "masked", "index"}
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), name


class Numbered:
    """Blank images that carry their own index; their labels do so backwards."""

    def __init__(self, count: int) -> None:
        self.labels, self.aspect = torch.arange(count).flip(0), torch.ones(count)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        images = indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        return images, WHOLE.repeat(len(indices), 1) if boxes is None else boxes


def numbered(count: int) -> Dataset:
    splits = (Numbered(n) for n in (count, 1, 1))
    return Dataset("numbered", "1", 1, count, (0.5,), (0.5,), True, *splits)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_processes_get_the_steps_of_one_between_them(size: int) -> None:
    """An image seen twice, or another crop of it, would make more GPUs another experiment."""
    config = tiny()
    dataset = open_dataset(config.data)
    alone = stream(dataset, config)
    shared = [stream(dataset, config, rank=rank, size=size) for rank in range(size)]
    for step, whole in enumerate(alone):
        parts: list[Any] = [None] * len(whole)
        for rank, own in enumerate(shared):
            parts[rank::size] = own[step]
        assert_same(whole, parts)


def test_a_run_goes_on_where_it_stopped() -> None:
    """Otherwise a resumed trial sees other images than one that was never killed."""
    config = tiny()
    dataset = open_dataset(config.data)
    whole = stream(dataset, config)
    for first in (1, 4, 6):
        for expected, found in zip(whole[first:], stream(dataset, config, first), strict=True):
            assert_same(expected, found)


def test_an_epoch_shows_every_image_once_in_another_order() -> None:
    """Images left out or doubled would bias training; what does not fill a step is another each epoch."""
    steps = stream(numbered(250), tiny(optim__epochs=3))
    assert [len(step) for step in steps] == [6] * 12
    epochs = [
        [int(i) for step in steps[e : e + 4] for b in step for i in b.images[:, 0, 0, 0, 0]]
        for e in (0, 4, 8)
    ]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == 240
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(epochs[0]) != set(epochs[1])


def test_every_step_and_seed_draws_anew() -> None:
    """Crops or masks that repeat every step would be learned by heart."""
    dataset = numbered(250)
    draws = [tensors(step[0].draw) for step in stream(dataset, tiny())]
    draws += [tensors(step[0].draw) for step in stream(dataset, tiny(seed=1))]
    for name in draws[0]:
        values = [draw[name] for draw in draws]
        assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i]), name


class Pair(Objective):
    """Two views of each image, and which image of the step it is."""

    crop_side = 4

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        draw = Setup(side=8, channels=1, classes=1).views(2, aspect, stream)
        return replace(draw, own={"number": torch.arange(len(aspect))})


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_carries_labels_and_several_views(size: int) -> None:
    """With another image's label, view or draw a method would learn noise, and nothing would say so."""
    for rank in range(size):
        for step in batches(numbered(250).train, tiny(), Pair(), 0, 8, rank, size):
            for place, batch in enumerate(step):
                assert batch.images.shape == (10, 2, 1, 4, 4)
                first, second = batch.images[:, :, 0, 0, 0].unbind(1)
                assert torch.equal(first, second)
                assert torch.equal(batch.labels, 249 - first.long())
                start = 10 * (rank + place * size)
                assert batch.draw.own["number"].tolist() == list(range(start, start + 10))
                one, other = batch.draw.boxes.unbind(1)
                assert (one != other).any(dim=1).all()


class Film(Objective):
    """Views of the first and the last frame of a clip, of one box, and one of the third."""

    crop_side = 8

    def draw(self, aspect: Float[Tensor, " b"], stream: torch.Generator) -> Draw:
        draw = Setup(side=8, channels=1, classes=1).views(2, aspect, stream)
        chosen = torch.tensor([0, 0, 1])
        times = torch.tensor([0, 7, 2]).repeat(len(aspect), 1)
        return Draw(draw.boxes[:, chosen], draw.mirrored[:, chosen], {}, times)


@pytest.mark.parametrize("size", [1, 2])
def test_views_of_a_clip_are_of_the_frames_that_were_drawn(size: int) -> None:
    """A frame of another time, or cut by another frame's box, would be what a video objective predicts."""
    sources = {"clips.py": MOVING}
    config = Config.read(merge(TINY, {"data.name": "clips.py:moving"}) | {"sources": sources})
    train = open_dataset(config.data, sources).train
    for rank in range(size):
        for step in batches(train, config, Film(), 0, 4, rank, size):
            for batch in step:
                assert batch.draw.times is not None
                assert batch.images.shape == (10, 3, 1, 8, 8)
                assert torch.equal(batch.images.amax((2, 3, 4)) - 200, batch.draw.times.byte())
                assert torch.equal(batch.draw.boxes[:, 0], batch.draw.boxes[:, 1])
                assert (batch.draw.boxes[:, 0] != batch.draw.boxes[:, 2]).any(dim=1).all()


@pytest.mark.parametrize(("flips", "flip"), [(False, True), (True, False), (True, True)])
def test_only_what_may_be_mirrored_is(flips: bool, flip: bool) -> None:
    """A mirrored letter is no letter: glyphs and digits must never be flipped, whatever the config says."""
    steps = stream(replace(numbered(250), flips=flips), tiny(data__flip=flip))
    assert any(batch.draw.mirrored.any() for step in steps for batch in step) == (flips and flip)


def test_what_was_cut_already_is_not_cut_again() -> None:
    """Images that a dataset cuts itself come with a box of their own; the one drawn would cut twice."""

    class Cut(Numbered):
        def read(self, *arguments: Any) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
            images, boxes = super().read(*arguments)
            return images, WHOLE.repeat(len(boxes), 1)

    dataset = replace(numbered(250), train=Cut(250))
    assert all((batch.draw.boxes == WHOLE).all() for step in stream(dataset, tiny()) for batch in step)


@pytest.mark.parametrize("given", [True, False])
def test_what_a_gpu_is_fed_can_be_pinned(tmp_path: Path, given: bool) -> None:
    """Pinning copies a tensor as it lies; one whose rows share their memory would end every run on a GPU."""
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / split / "only" / "x.png")
    for name in ("digits", "imagefolder"):
        data = open_dataset(Data(name=name, path=str(tmp_path), image_size=8))
        boxes = WHOLE.repeat(2, 1) if given else None
        for tensor in data.train.read(torch.zeros(2, dtype=torch.int64), 8, boxes):
            assert 0 not in tensor.stride()
    for batch in stream(numbered(250), tiny())[0]:
        for tensor in (batch.images, batch.labels, *tensors(batch.draw).values()):
            assert 0 not in tensor.stride()


def test_an_objective_may_change_its_crops_on_the_host() -> None:
    """What timm and Pillow do to an image would be lost, or another micro-batch be changed with its draw."""
    config = tiny(optim__accumulate=1, optim__epochs=1)
    dataset = open_dataset(config.data)
    run = Run(config, dataset, torch.device("cpu"))
    plain = next(batches(dataset.train, config, run.objective, 0, 1))
    (cut,) = (run.views(batch) for batch in plain)

    def invert(views: UInt8[Tensor, "b v c s s"], own: Mapping[str, Tensor]) -> UInt8[Tensor, "b v c s s"]:
        assert len(own["visible"]) == len(views)
        return 255 - views

    run.objective.augments, run.objective.augment = True, invert  # type: ignore[method-assign]
    (changed,) = next(batches(dataset.train, config, run.objective, 0, 1))
    assert changed.images.shape == (10, 1, 1, 16, 16)
    # of 255 grey levels one half is lost to rounding
    mean, std = dataset.mean[0], dataset.std[0]
    torch.testing.assert_close(
        run.views(changed) * std + mean, 1 - (cut * std + mean), rtol=0, atol=0.51 / 255
    )


def test_an_unreadable_image_ends_the_run_by_name() -> None:
    """An error in the thread that reads ahead must reach the trial, not leave it waiting."""

    class Rotten(Numbered):
        def read(self, *arguments: Any) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
            raise UserError("x.jpg: cannot be read any more")

    with pytest.raises(UserError, match=r"x\.jpg"):
        stream(replace(numbered(250), train=Rotten(250)), tiny())


def test_random_streams_do_not_meet() -> None:
    """Two purposes or steps that drew the same numbers would correlate masks with crops."""
    draws = [
        torch.rand(4, generator=generator(*key)).tolist()
        for key in [(0, "step", 0), (0, "step", 1), (1, "step", 0), (0, "order", 0)]
    ]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
