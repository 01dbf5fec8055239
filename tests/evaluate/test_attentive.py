"""The attentive probe: its attention is multi-head attention, and it finds the patch that tells."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lmim.config import Data
from lmim.data.splits import from_arrays
from lmim.evaluate import attentive
from lmim.evaluate.attentive import Probe
from lmim.evaluate.features import Frozen, freeze
from tests.evaluate.builders import flat, model


def hidden(train: int = 1500, test: int = 300) -> Frozen:
    """One of four patches, anywhere, has a bright corner and shows the class; the others mislead."""
    shapes = np.random.default_rng(7).integers(0, 160, (4, 4, 4))
    arrays: dict[str, NDArray[Any]] = {}
    for seed, (split, count) in enumerate({"train": train, "val": 10, "test": test}.items()):
        rng = np.random.default_rng(seed)
        shown, place = rng.integers(4, size=(count, 4)), rng.integers(4, size=count)
        patches = shapes[shown]
        patches[np.arange(count), place, 0, 0] = 255
        images = patches.reshape(count, 2, 2, 4, 4).swapaxes(2, 3).reshape(count, 1, 8, 8)
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = shown[np.arange(count), place]
    data = from_arrays(Data(name="digits", image_size=8), "1", arrays, classes=4, flips=False)
    return freeze(model(flat, data), ["test"])["test"]


def test_finds_the_patch_that_tells() -> None:
    """A probe that averages patches would be called attentive, and stay near chance here."""
    found = attentive.attentive(hidden(), epochs=60, lr=1e-2)
    assert found["attentive_top1"] > 90


def test_is_multi_head_attention() -> None:
    """Weights folded in the wrong order would be attention of another kind."""
    probe = Probe(6, 3, 2, torch.Generator().manual_seed(0))
    patches = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1))
    probe.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    x = F.layer_norm(patches, (6,))
    keys = (x @ probe.key.flatten(0, 1).T).view(5, 7, 2, 3).transpose(1, 2)
    values = (x @ probe.value.flatten(0, 1).T).view(5, 7, 2, 3).transpose(1, 2)
    query = probe.query[None, :, None].expand(5, -1, -1, -1)
    pooled = F.scaled_dot_product_attention(query, keys, values).flatten(1)
    torch.testing.assert_close(probe(patches), pooled @ probe.weight + probe.bias)
    assert Probe(25, 3, 4, torch.Generator())(torch.randn(2, 9, 25)).shape == (2, 3)  # heads need not divide


def test_features_kept_or_made_anew_give_one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the data would decide the figure."""
    frozen = hidden(600, 100)
    kept = attentive.attentive(frozen, epochs=3)
    torch.rand(7)
    assert kept == attentive.attentive(frozen, epochs=3)
    monkeypatch.setattr(attentive, "KEPT", 0)
    assert kept == attentive.attentive(frozen, epochs=3)


def test_sample_of_a_few_images() -> None:
    """The sample's images and labels must be those of one another."""
    sample = hidden(1500, 400).sample()
    assert len(sample.model.dataset.train) < 1500
    found = attentive.attentive(sample, epochs=60, lr=1e-2)
    assert found["attentive_top1"] > 80
