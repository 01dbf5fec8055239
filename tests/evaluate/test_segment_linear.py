"""The linear probe on patches: features that know the class, and figures worked out by hand."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmim.axes.mask import patchify
from lmim.config import Data
from lmim.data import Dataset
from lmim.data.splits import from_arrays
from lmim.errors import UserError
from lmim.evaluate import judge
from lmim.evaluate.features import Frozen
from lmim.evaluate.linear import Ridge
from lmim.evaluate.segment_linear import confused, mean_iou, segment_linear, shares
from lmim.evaluate.segmentation import maps, masked, segmentation
from lmim.trial.evaluation import read_evaluations
from tests.evaluate.builders import flat, frozen, model, nothing

SHADES = np.array([0, 80, 160, 240])


def scenes(data: Data, *, count: int = 60) -> Dataset:
    """Images of four patches, each of one class, which its shade tells; one in four is ground."""
    arrays: dict[str, Any] = {}
    for seed, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng(seed)
        masks = rng.permuted(np.tile(np.arange(4, dtype=np.uint8), (count, 1)), axis=1).reshape(-1, 2, 2)
        masks = masks.repeat(4, axis=1).repeat(4, axis=2)
        arrays |= {
            f"{split}_images": SHADES[masks][:, None].astype(np.uint8),
            f"{split}_masks": masks,
            f"{split}_objects": np.tile(np.array([0, 1, 2, 3], np.uint8), (count, 1)),
            f"{split}_labels": np.zeros(count, np.int64),
        }
    return from_arrays(data, "scenes", arrays, classes=3, flips=False)


SCENES = scenes(Data(name="scenes", image_size=8))


def shade(images: Tensor) -> Tensor:
    """A patch's feature: its shade, one-hot."""
    level = patchify(images, 4).mean(dim=2)
    mean, std = SCENES.mean[0], SCENES.std[0]
    known = (torch.from_numpy(SHADES) / 255 - mean) / std
    return F.one_hot((level[..., None] - known).abs().argmin(dim=2), 4).float()


def noise(images: Tensor) -> Tensor:
    """A feature that says nothing."""
    return torch.randn(len(images), 4, 8, generator=torch.Generator().manual_seed(0))


def given(patches: Any = shade, dataset: Dataset = SCENES) -> Frozen:
    encoder = dataclasses.replace(model(dataset=dataset), patches=patches)
    return dataclasses.replace(frozen(nothing(1), nothing(1), 3), model=encoder, opened=dataset)


def test_features_that_are_the_class_have_every_patch() -> None:
    """An encoder that knows the classes would not be seen to, or its patches would be turned."""
    found = segment_linear(given())
    # bilinear scores cross over between two patches, where the next one's class begins
    assert found["segment_linear_miou"] > 80
    assert found["segment_linear_objects"] > 90
    assert found == segment_linear(given())
    chance = segment_linear(given(noise))
    assert chance["segment_linear_miou"] < 25
    assert chance["segment_linear_objects"] == pytest.approx(100 / 3, abs=10)


def test_the_same_features_are_segmented_without_labels() -> None:
    """Truth and map of another image, or of another split, would be compared."""
    assert segmentation(given()) == dict.fromkeys(("segment_ari", "segment_fg_ari", "segment_miou"), 100)
    assert segmentation(given(), linkage="average", images=7)["segment_ari"] == 100
    [one, two] = maps(given().model, masked(SCENES, "test"), torch.tensor([5, 10]))
    assert torch.equal(one.image, torch.from_numpy(SHADES / 255).float()[one.truth.long()][None])
    assert not torch.equal(one.truth, two.truth)
    assert one.found.shape == one.truth.shape


def test_a_few_images_serve_the_sample() -> None:
    """Comparing two versions of the code would cost what judging does."""
    assert segmentation(dataclasses.replace(given(), few=True))["segment_ari"] == 100
    assert segment_linear(dataclasses.replace(given(), few=True))["segment_linear_miou"] > 80


def test_both_are_judged_beside_the_trials_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between planning and figures the data would be lost, or a patch's pixels."""
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path))
    evaluations = read_evaluations([{"segmentation": {"images": 20}}, "segment_linear"])
    judged = judge(flat, SCENES, 8, evaluations, patches=partial(patchify, patch=2))
    found = [one for _, one in judged]
    assert [one.error for one in found] == ["", ""]
    assert found[0].metrics.keys() == {f"eval/segment_{name}.images20" for name in ("ari", "fg_ari", "miou")}
    assert found[0].metrics["eval/segment_ari.images20"] > 0


def test_data_without_masks_are_refused() -> None:
    """A sweep over plain images would end in a traceback after the training."""
    plain = dataclasses.replace(SCENES, masks=False)
    clips = dataclasses.replace(SCENES, frames=3)
    for protocol in (segmentation, segment_linear):
        with pytest.raises(UserError, match="data: scenes has images without masks: give images with masks"):
            protocol(given(dataset=plain))
        with pytest.raises(UserError, match="data: scenes has clips"):
            protocol(given(dataset=clips))


def test_a_patchs_shares_are_of_its_labelled_pixels() -> None:
    """Columns for rows, or pixels that nobody labelled, would teach other classes than there are."""
    truth = torch.zeros(2, 4, 4, dtype=torch.uint8)
    truth[0, :2, 2:] = torch.tensor([[1, 2], [255, 2]])
    truth[1, 2:, :2] = 255
    found = shares(truth, 4, 3)
    assert found[0].tolist() == [
        [1, 0, 0],
        [0, pytest.approx(1 / 3), pytest.approx(2 / 3)],
        [1, 0, 0],
        [1, 0, 0],
    ]
    assert found[1].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_values_by_hand() -> None:
    """A figure that is another one than its name says would be compared with the literature's."""
    truth = torch.tensor([[[0, 0], [1, 255]]], dtype=torch.uint8)
    confusion = confused(truth, torch.tensor([[[0, 1], [1, 3]]]), 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # 1 of 2 and 1 of 2; the classes that are nowhere do not count
    assert mean_iou(confusion) == 50
    wrong = confused(truth, torch.tensor([[[0, 2], [1, 3]]]), 4)
    # a class that was predicted and is not there counts, with 0
    assert mean_iou(wrong) == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)


def test_shares_of_one_class_fit_as_its_label() -> None:
    """The probe's fit would not be that of `linear`."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5, generator=generator), torch.randint(3, (200,), generator=generator)
    one, two = Ridge(3), Ridge(3)
    one.update(x, y)
    two.update(x, F.one_hot(y, 3).float())
    assert torch.equal(one.fit(), two.fit())
    assert torch.equal(one.scores(x).argmax(dim=1), one.predict(x))
