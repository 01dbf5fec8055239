"""The three protocols over a whole dataset, in one pass of each split."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lmim.data import Dataset
from lmim.data.augment import WHOLE
from lmim.evaluate import evaluate
from lmim.evaluate.linear import linear_top1
from lmim.evaluate.nearest import knn_top1, nn_top1

MEAN, STD = (0.4,), (0.2,)


@dataclass
class Images:
    """A split in memory that remembers what was read."""

    images: UInt8[Tensor, "n 1 s s"]
    labels: Int[Tensor, " n"]
    seen: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def aspect(self) -> Float[Tensor, " n"]:
        return torch.ones(len(self))

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b 1 s s"], Float[Tensor, "b 4"]]:
        assert boxes is None, "evaluation leaves the crop to the dataset"
        self.seen += indices.tolist()
        return self.images[indices], WHOLE.expand(len(indices), 4)


def images(count: int, seed: int) -> Images:
    templates = torch.randint(256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noisy = templates[labels] + 110 * torch.randn(count, 1, 4, 4, generator=generator)
    return Images(noisy.clamp(0, 255).byte(), labels)


def dataset(train: Images, test: Images) -> Dataset:
    return Dataset("test", "1", 1, 3, MEAN, STD, False, train, test)


def flat(x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
    return x.flatten(1)


@pytest.mark.parametrize("batch", [7, 1000])
def test_every_protocol_sees_every_normalised_image_once(batch: int) -> None:
    """A split mixed up, an image skipped or pixels left as they are would bias all arms without a sign."""
    train, test = images(200, 0), images(90, 1)
    scores = evaluate(flat, dataset(train, test), side=4, neighbours=5, batch=batch)
    assert train.seen == list(range(200))
    assert test.seen == list(range(90))
    x, z = (flat((part.images.float() / 255 - MEAN[0]) / STD[0]) for part in (train, test))
    assert scores == pytest.approx(
        {
            "eval/nn_top1": nn_top1(z, test.labels),
            "eval/knn_top1": knn_top1(x, train.labels, z, test.labels, k=5),
            "eval/linear_top1": linear_top1([(x, train.labels)], [(z, test.labels)], 3),
        },
        abs=1.2,  # an image whose neighbours tie may fall either way
    )
    assert all(45 < score < 100 for score in scores.values())


@pytest.mark.parametrize("spoil", [lambda x: x / 0, lambda x: x * math.nan, lambda x: x * math.inf])
def test_an_encoder_that_diverged_has_no_accuracy(spoil: Callable[[Tensor], Tensor]) -> None:
    """Scored like any other, NaN features would stand in the table as an accuracy near chance."""
    scores = evaluate(lambda x: spoil(flat(x)), dataset(images(40, 0), images(20, 1)), side=4)
    assert len(scores) == 3
    assert all(math.isnan(score) for score in scores.values())


def test_no_graph_is_kept() -> None:
    """Features that drag their graph along would fill the memory within a few batches."""
    weight = torch.nn.Parameter(torch.ones(16))
    features = []

    def encode(x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        features.append(flat(x) * weight)
        return features[-1]

    evaluate(encode, dataset(images(40, 0), images(20, 1)), side=4)
    assert not any(part.requires_grad for part in features)


def test_memory_does_not_grow_with_the_training_set() -> None:
    """ImageNet's training features alone would take gigabytes; 250 MB of features pass through here."""
    program = """
import resource, torch
from lmim.evaluate.linear import Ridge
from lmim.evaluate.nearest import Neighbours
torch.set_num_threads(1)
ridge, nearest = Ridge(10), Neighbours(torch.randn(50, 64), 20)
peaks = []
for step in range(500):
    batch = torch.randn(2000, 64), torch.randint(10, (2000,))
    ridge.update(*batch)
    nearest.update(*batch)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
ridge.predict(torch.randn(50, 64)), nearest.predict()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peaks[20]) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40
