"""What each training step is shown, drawn and read on the host while the device works on the step before.

Every random draw is a function of (seed, purpose, step), made for the whole step. So it does not depend on
how many processes share the step, and nothing random needs to be saved to go on from a checkpoint.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lmim.axes.mask import sample_offsets, sample_view
from lmim.config import Config
from lmim.data.augment import sample_boxes
from lmim.data.datasets import Dataset
from lmim.encoder import View


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator whose stream depends on the trial's seed, what it is for, and the step or epoch."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


@dataclass(frozen=True)
class Draw:
    """All that is random about some images of a step: their crops and what is visible of them."""

    boxes: Float[Tensor, "b 4"]
    mirrored: Bool[Tensor, " b"]
    offsets: Int[Tensor, "b n 2"]
    visible: Int[Tensor, "b v"]
    masked: Int[Tensor, "b m"]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Draw":
        """The draw with every tensor changed alike."""
        return Draw(*(change(tensor) for tensor in vars(self).values()))

    @property
    def view(self) -> View:
        """Which patches the online encoder sees."""
        return View(self.visible, self.masked)


@dataclass(frozen=True)
class MicroBatch:
    """The images that one loss is taken over."""

    images: UInt8[Tensor, "b c h w"]
    draw: Draw

    def each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        """The micro-batch with every tensor changed alike: pinned, or on another device."""
        return MicroBatch(change(self.images), self.draw.each(change))


def sample(config: Config, aspect: Float[Tensor, " b"], flip: bool, stream: torch.Generator) -> Draw:
    """Draw for images of these aspects; the boxes are the same with and without `flip`."""
    boxes = sample_boxes(aspect, config.data.crop_scale, stream)
    mirrored = torch.rand(len(aspect), generator=stream) < 0.5
    offsets = sample_offsets(len(aspect), config.grid**2, config.mask.gap, stream)
    view = sample_view(len(aspect), config.grid**2, config.num_visible, stream)
    return Draw(boxes, mirrored & flip, offsets, view.visible, view.masked)


def batches(
    dataset: Dataset,
    config: Config,
    first_step: int,
    steps: int,
    rank: int = 0,
    size: int = 1,
    pin: bool = False,
) -> Iterator[Iterator[MicroBatch]]:
    """The micro-batches of each step from `first_step` to the last of `steps`, read one ahead by a thread.

    An epoch is a permutation drawn from (seed, epoch); what does not fill its last step is left out. Process
    `rank` of `size` gets its own micro-batches of every step. `pin` puts the tensors where a GPU can fetch
    them while the host goes on.
    """
    images_a_step, images_at_once = config.step_images, config.optim.batch_size
    starts = range(0, images_a_step, images_at_once)[rank::size]
    side = config.grid * (config.encoder.patch_size + config.mask.gap)
    flip = config.data.flip and dataset.flips
    aspect = dataset.train.aspect

    def read() -> Iterator[MicroBatch]:
        order = torch.arange(0)
        for step in range(first_step, steps):
            epoch, within = divmod(step, len(dataset.train) // images_a_step)
            if within == 0 or step == first_step:
                order = torch.randperm(len(dataset.train), generator=generator(config.seed, "order", epoch))
            indices = order[within * images_a_step :][:images_a_step]
            draw = sample(config, aspect[indices], flip, generator(config.seed, "step", step))
            for start in starts:
                own = slice(start, start + images_at_once)
                mine = draw.each(itemgetter(own))
                images, boxes = dataset.train.read(indices[own], side, mine.boxes)
                found = MicroBatch(images, replace(mine, boxes=boxes))
                yield found.each(Tensor.pin_memory) if pin else found

    micro_batches = ahead(read())
    for _ in range(first_step, steps):
        yield itertools.islice(micro_batches, len(starts))


Item = TypeVar("Item")


def ahead(source: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item
