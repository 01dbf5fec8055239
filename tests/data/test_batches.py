"""What a step is shown: complete, reproducible, and the same however many processes share it."""

from collections.abc import Sequence
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
from lmim.data.batches import Draw, MicroBatch, batches, generator, sample
from lmim.errors import UserError

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 250, "flip": True},
    "encoder": {"patch_size": 2},
    "mask": {"gap": 2},
    "optim": {"epochs": 2, "batch_size": 10, "accumulate": 6},
}


def tiny(**changes: Any) -> Config:
    return Config.model_validate(merge(TINY, {key.replace("__", "."): v for key, v in changes.items()}))


def stream(dataset: Dataset, config: Config, first: int = 0, **how: Any) -> list[list[MicroBatch]]:
    steps = config.optim.epochs * (len(dataset.train) // config.step_images)
    return [list(step) for step in batches(dataset, config, first, steps, **how)]


def assert_same(first: Sequence[MicroBatch], second: Sequence[MicroBatch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        for name, tensor in vars(one.draw).items():
            assert torch.equal(tensor, getattr(other.draw, name)), name


class Numbered:
    """Blank images that carry their own index."""

    def __init__(self, count: int) -> None:
        self.labels, self.aspect = torch.arange(count), torch.ones(count)

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]:
        assert boxes is not None
        return indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), boxes


def numbered(count: int) -> Dataset:
    return Dataset("numbered", "1", 1, count, (0.5,), (0.5,), True, Numbered(count), Numbered(1))


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
    config = tiny(optim__epochs=3)
    steps = stream(numbered(250), config)
    assert [len(step) for step in steps] == [6] * 12
    epochs = [
        [int(i) for step in steps[e : e + 4] for b in step for i in b.images[:, 0, 0, 0]] for e in (0, 4, 8)
    ]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == 240
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(epochs[0]) != set(epochs[1])


def test_every_step_and_seed_draws_anew() -> None:
    """Crops or masks that repeat every step would be learned by heart."""
    config = tiny()
    dataset = numbered(250)
    draws = [step[0].draw for step in stream(dataset, config)]
    draws += [step[0].draw for step in stream(dataset, tiny(seed=1))]
    for name in vars(draws[0]):
        values = [getattr(draw, name) for draw in draws]
        assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i]), name


def drawn(seed: int = 0, flip: bool = True, **changes: Any) -> Draw:
    return sample(tiny(**changes), torch.full((64,), 1.5), flip, generator(seed, "step"))


def test_a_flip_changes_nothing_else() -> None:
    """An arm with flips differs from one without in the flips alone."""
    plain, flipped = drawn(flip=False), drawn(flip=True)
    assert not plain.mirrored.any()
    assert 8 < flipped.mirrored.sum() < 56
    for name in ("boxes", "offsets", "visible", "masked"):
        assert torch.equal(getattr(plain, name), getattr(flipped, name))


@pytest.mark.parametrize(("flips", "flip"), [(False, True), (True, False)])
def test_only_what_may_be_mirrored_is(flips: bool, flip: bool) -> None:
    """A mirrored letter is no letter: glyphs and digits must never be flipped, whatever the config says."""
    dataset = replace(numbered(250), flips=flips)
    steps = stream(dataset, tiny(data__flip=flip))
    assert not any(batch.draw.mirrored.any() for step in steps for batch in step)


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
