"""What each training step is shown, drawn and read on the host while the device works on the step before.

Every random draw is a function of (seed, purpose, step), made for the whole step. So it does not depend on
how many processes share the step, and nothing random needs to be saved to go on from a checkpoint.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lmim.config import Config
from lmim.data import Split
from lmim.data.augment import WHOLE, crop
from lmim.data.reading import ahead
from lmim.data.splits import Clips
from lmim.objectives import Draw, Objective


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator whose stream depends on the trial's seed, what it is for, and the step or epoch."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


@dataclass(frozen=True)
class MicroBatch:
    """The images that one loss is taken over: v views of each, their labels, and all that is random."""

    images: UInt8[Tensor, "b v c h w"]
    labels: Int[Tensor, " b"]
    draw: Draw

    def each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        """The micro-batch with every tensor changed alike: pinned, or on another device."""
        return MicroBatch(change(self.images), change(self.labels), self.draw.each(change))


def batches(
    train: Split,
    config: Config,
    objective: Objective,
    first_step: int,
    steps: int,
    rank: int = 0,
    size: int = 1,
    pin: bool = False,
) -> Iterator[Iterator[MicroBatch]]:
    """The micro-batches of each step from `first_step` to the last of `steps`, read one ahead by a thread.

    An epoch is a permutation drawn from (seed, epoch); what does not fill its last step is left out. The
    objective draws the rest from (seed, step). Process `rank` of `size` gets its own micro-batches of every
    step. `pin` puts the tensors where a GPU can fetch them while the host goes on.
    """
    images_a_step, images_at_once = config.step_images, config.optim.batch_size
    starts = range(0, images_a_step, images_at_once)[rank::size]
    aspect, labels = train.aspect, train.labels

    def read() -> Iterator[MicroBatch]:
        order = torch.arange(0)
        for step in range(first_step, steps):
            epoch, within = divmod(step, len(train) // images_a_step)
            if within == 0 or step == first_step:
                order = torch.randperm(len(train), generator=generator(config.seed, "order", epoch))
            indices = order[within * images_a_step :][:images_a_step]
            draw = objective.draw(aspect[indices], generator(config.seed, "step", step))
            for start in starts:
                own = slice(start, start + images_at_once)
                mine = objective.place(draw.each(itemgetter(own)), indices[own])
                images, boxes = _views(train, indices[own], objective.crop_side, mine)
                drawn = replace(mine, boxes=boxes, own={"index": indices[own], **mine.own})
                found = MicroBatch(images, labels[indices[own]], drawn)
                found = _augmented(found, objective) if objective.augments else found
                yield found.each(Tensor.pin_memory) if pin else found

    micro_batches = ahead(read())
    for _ in range(first_step, steps):
        yield itertools.islice(micro_batches, len(starts))


def _augmented(batch: MicroBatch, objective: Objective) -> MicroBatch:
    """The micro-batch with its views cropped here, and changed as the objective does."""
    views, draw, side = batch.images.shape[:2], batch.draw, objective.crop_side
    images, boxes, mirrored = (part.flatten(0, 1) for part in (batch.images, draw.boxes, draw.mirrored))
    crops = (255 * crop(images, boxes, side, mirrored)).round().byte()
    crops = crops.view(*views, *crops.shape[1:])
    whole = replace(draw, boxes=WHOLE.expand(*views, -1), mirrored=torch.zeros_like(draw.mirrored))
    return replace(batch, images=objective.augment(crops, draw.own), draw=whole)


def _views(
    train: Split, indices: Int[Tensor, " b"], side: int, draw: Draw
) -> tuple[UInt8[Tensor, "b v c h w"], Float[Tensor, "b v 4"]]:
    """The views that were drawn of these images, with their boxes; of clips all at once."""
    if draw.times is not None:
        return cast(Clips, train).read_clips(indices, side, draw.boxes, draw.times)
    views = [train.read(indices, side, boxes) for boxes in draw.boxes.unbind(1)]
    images, boxes = (torch.stack(part, dim=1) for part in zip(*views, strict=True))
    return images, boxes
