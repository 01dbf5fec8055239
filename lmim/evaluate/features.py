"""The features of a frozen encoder, as protocols see them: made once, shared by all protocols of a trial."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lmim.config import Config
from lmim.data import Dataset, Split
from lmim.data.augment import Size, crop, normalise
from lmim.data.reading import ahead
from lmim.data.splits import Subset

Encode = Callable[[Float[Tensor, "b c s s"]], Float[Tensor, "b d"]]
EncodePatches = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b n d"]]

BATCH = 256
SAMPLE = {"train": 1000, "judged": 250}
"""Images of a sample, at most."""


@dataclass(frozen=True)
class Labelled:
    """The features of a split and their classes, in the split's order; they come to the device when asked."""

    features: Float[Tensor, "n d"]
    """On the host, in a file that is mapped into memory, which gives it back when it is short."""
    labels: Int[Tensor, " n"]
    device: torch.device | str = "cpu"
    logits: Float[Tensor, "n k"] | None = None
    """The objective's own, where a protocol needs them; on the host like the features."""

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self) -> Iterator[tuple[Float[Tensor, "b d"], Int[Tensor, " b"]]]:
        """All of it in batches of `BATCH`, on the device."""
        for start in range(0, len(self), BATCH):
            yield self.rows(slice(start, start + BATCH))

    def whole(self) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """All of it at once, on the device."""
        return self.rows(slice(None))

    def finite(self) -> bool:
        """Whether every feature is a number; one that diverged has no accuracy."""
        whole = [self.features] if self.logits is None else [self.features, self.logits]
        return all(bool(part.isfinite().all()) for one in whole for part in torch.split(one, BATCH))

    def sample(self, count: int) -> "Labelled":
        """At most so many rows, those of the images that `sampled` keeps."""
        rows = chosen(len(self), count)
        logits = None if self.logits is None else self.logits[rows]
        return replace(self, features=self.features[rows], labels=self.labels[rows], logits=logits)

    def rows(self, rows: slice | Int[Tensor, " b"]) -> tuple[Float[Tensor, "b d"], Int[Tensor, " b"]]:
        """Some of it, on the device."""
        # a copy, or a protocol that writes to its batch would spoil it for the next
        return self.features[rows].to(self.device, copy=True), self.labels[rows].to(self.device, copy=True)


@dataclass(frozen=True)
class Model:
    """The frozen encoder itself, for protocols that look at other images than the data's, or at patches."""

    features: Encode
    """The features of normalised images, as `Labelled` holds them; like `patches` without a gradient."""
    patches: EncodePatches
    """One for each patch of normalised images, row by row."""
    dataset: Dataset
    """What the encoder was trained on."""
    side: int
    """Pixels of an evaluated image's side."""
    device: torch.device | str = "cpu"

    def normalised(
        self, images: UInt8[Tensor, "b c h w"], boxes: Float[Tensor, "b 4"], size: Size | None = None
    ) -> Float[Tensor, "b d s t"]:
        """Images as a split's `read` gives them, as the encoder expects them, on the device.

        They are as large as it was trained on, unless a size is given. Grey ones are grey in its colours.
        """
        mean, std = (torch.tensor(part, device=self.device) for part in (self.dataset.mean, self.dataset.std))
        images, boxes = (part.to(self.device, non_blocking=True) for part in (images, boxes))
        pixels = crop(images, boxes, size or self.side)
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, len(mean), -1, -1)
        return normalise(pixels, mean, std)

    def read(self, split: Split) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b 4"]]]:
        """A split's images and the boxes that are judged, not augmented, `BATCH` at once, on the host."""
        every = torch.split(torch.arange(len(split)), BATCH)
        return ahead(split.read(indices, self.side) for indices in every)

    def encoded(self, split: Split, encode: Callable[..., Tensor]) -> Iterator[Float[Tensor, " b *d"]]:
        """What `encode` gives of the images that `read` reads, on the host."""
        for images, boxes in self.read(split):
            with torch.no_grad():
                features = encode(self.normalised(images, boxes))
            yield features.detach().float().cpu()

    def labelled(self, split: Split) -> Labelled:
        """The features of a split."""
        return Labelled(stored(self.encoded(split, self.features)), split.labels, self.device)


class Stopped(BaseException):
    """Leaves an evaluation, which is begun again later, or goes on.

    No `Exception`, as it says nothing of the protocol that is left.
    """


@dataclass(frozen=True)
class Trained:
    """The trial that is judged, for a protocol that trains on from its weights."""

    objective: nn.Module
    config: Config
    folder: Path
    """The protocol's own, for what it goes on from."""
    stop: Callable[[], bool]
    """Whether to save, and raise `Stopped`."""


@dataclass(frozen=True)
class Frozen:
    """What a protocol is given: the training images to learn from, and those to be judged on."""

    train: Labelled
    judged: Labelled
    """The test split, or the validation split."""
    classes: int
    model: Model
    split: str = "test"
    """Which split is judged."""
    few: bool = False
    """Whether this is the sample, by which two versions of the code are compared: a few images are enough."""
    opened: Dataset | None = None
    """The data that the protocol's settings name, if they do."""
    trained: Trained | None = None
    """None where what is judged is no trial."""

    @property
    def images(self) -> Split:
        """The images whose features are `judged`."""
        split: Split = getattr(self.model.dataset, self.split)
        return split

    def open(self) -> Dataset:
        """The data that the protocol's settings name, of a sample a few of the images."""
        assert self.opened is not None
        return sampled(self.opened, (self.split,)) if self.few else self.opened

    def finite(self) -> bool:
        """Whether every feature is a number."""
        return self.judged.finite() and self.train.finite()

    def sample(self) -> "Frozen":
        """The same with a few of the images, always the same ones."""
        parts: dict[str, Any] = {name: getattr(self, name).sample(count) for name, count in SAMPLE.items()}
        model = replace(self.model, dataset=sampled(self.model.dataset, (self.split,)))
        return replace(self, **parts, model=model, few=True)


def freeze(model: Model, splits: Iterable[str], logits: Encode | None = None) -> dict[str, Frozen]:
    """What a protocol is given for each split to be judged: a pass over it, and one over the training images.

    The judged images' `logits` come of the same pass. Images are normalised and not augmented: the central
    square at side x side pixels. What the encoder raises passes through, and nothing is left behind.
    """
    dataset, encode, device = model.dataset, model.features, model.device

    def classified(split: Split, logits: Encode) -> Labelled:
        widths: list[int] = []

        def both(images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
            found = encode(images), logits(images)
            widths[:] = [part.shape[1] for part in found]
            return torch.cat(found, dim=1)

        found = stored(model.encoded(split, both))
        features, own = torch.split(found, widths, dim=1)
        return Labelled(features, split.labels, device, own)

    def judge(split: Split) -> Labelled:
        return model.labelled(split) if logits is None else classified(split, logits)

    judged = {name: judge(getattr(dataset, name)) for name in dict.fromkeys(splits)}
    train = model.labelled(dataset.train)
    return {name: Frozen(train, one, dataset.classes, model, name) for name, one in judged.items()}


def sampled(dataset: Dataset, splits: Iterable[str] = ("test",)) -> Dataset:
    """The dataset with the images of the samples alone: judged in seconds, it says what the samples say."""
    counts = {"train": SAMPLE["train"]} | dict.fromkeys(splits, SAMPLE["judged"])
    parts = {name: getattr(dataset, name) for name in counts}
    kept: dict[str, Any] = {name: Subset(one, chosen(len(one), counts[name])) for name, one in parts.items()}
    return replace(dataset, **kept)


def chosen(length: int, count: int) -> Int[Tensor, " n"]:
    """Which of so many images are in a sample of about `count`: some batches of the whole pass, in order.

    Batches, so that each image is encoded among the same others, and its features are the same to the last
    digit; drawn at random, for labels may be sorted.

    >>> chosen(3, 5).tolist(), len(chosen(2000, 250))
    ([0, 1, 2], 256)
    """
    batches = torch.split(torch.arange(length), BATCH)
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
    return torch.cat([batches[int(i)] for i in order[: math.ceil(count / BATCH)].sort().values])


def stored(parts: Iterable[Float[Tensor, " b *d"]]) -> Float[Tensor, " n *d"]:
    """The rows in a file without a name, which is gone with the tensor, however the process ends.

    It lies where TMPDIR says. The mapping is private: what is written to the tensor never reaches the file.
    """
    with tempfile.TemporaryFile() as file:
        shape: tuple[int, ...] = (0,)
        for part in parts:
            shape = part.shape[1:]
            file.write(part.contiguous().numpy().data)
        file.flush()
        return torch.from_numpy(np.memmap(file, np.float32, "c").reshape(-1, *shape))
