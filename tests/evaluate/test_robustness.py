"""Robustness: errors of known encoders, drawn and stored corruptions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmim.config import Data
from lmim.data import open_dataset
from lmim.data.corruptions import CONSTANTS
from lmim.errors import UserError
from lmim.evaluate.features import Frozen, freeze
from lmim.evaluate.linear import linear
from lmim.evaluate.robustness import METRICS, robustness
from lmim.trial.evaluation import read_evaluations
from tests.data.test_imagenet_c import store
from tests.evaluate.builders import frozen, model


def digits() -> Frozen:
    return freeze(model(), ["test"])["test"]


def test_clean_images_err_as_the_linear_probe_does() -> None:
    """Corruptions would be measured against another classifier, or on other images."""
    found = robustness(digits(), images=10_000)
    assert found.keys() == METRICS.keys()
    assert found["clean_error"] == pytest.approx(100 - linear(digits())["linear_top1"], abs=0.5)
    mean = sum(found[f"error_{name}"] for name in CONSTANTS) / 15
    assert found["corruption_error"] == pytest.approx(mean)
    assert found["clean_error"] < found["error_shot_noise"] < found["error_snow"]


def test_the_same_again_and_on_a_sample() -> None:
    """Figures that change from run to run could not be compared with another version of the code's."""
    assert robustness(digits(), images=40) == robustness(digits(), images=40)
    assert robustness(digits().sample()).keys() == METRICS.keys()


def test_a_feature_that_no_corruption_reaches() -> None:
    """An encoder that is blind errs as often on clean images: what is added is the corruption's alone."""
    blind = freeze(model(lambda x: 0 * x.flatten(1)), ["test"])["test"]
    found = robustness(blind, images=100)
    assert {round(value, 6) for value in found.values()} == {round(found["clean_error"], 6)}


def red(x: Tensor) -> Tensor:
    """How red an image is, by which the stored ones say their class."""
    return x[:, 0].mean((1, 2))[:, None]


def test_stored_images_are_judged_where_they_are_asked_for(tmp_path: Path) -> None:
    """Somebody's ImageNet-C would be passed over for images that we corrupt ourselves."""
    root = store(tmp_path)
    cats, dogs, aside = (root / "fog" / "3" / name for name in ("cat", "dog", "aside"))
    for old, new in ((cats, aside), (dogs, cats), (aside, dogs)):  # what fog of strength 3 does here
        old.rename(new)
    data = open_dataset(Data(name="imagenet_c", image_size=8, path=str(root)))
    labels = torch.arange(20) % 2
    known = (labels[:, None] - torch.tensor(data.mean[0])) / data.std[0], labels
    given = replace(frozen(known, known, 2), model=model(red, data), opened=data)
    found = robustness(given, data="imagenet_c", path=str(root), images=50)
    assert found["error_fog"] == 20
    assert found["corruption_error"] == pytest.approx(20 / 15)
    assert robustness(given.sample(), data="imagenet_c")["error_fog"] == 20
    with pytest.raises(UserError, match="has 2 classes, expected the trial's 3"):
        robustness(replace(given, classes=3), data="imagenet_c", images=50)


def test_where_stored_images_lie_is_in_no_name() -> None:
    """Two machines would have two results."""
    [one] = read_evaluations([{"robustness": {"data": "imagenet_c", "path": "/here"}}])
    assert "eval/corruption_error.data-imagenet_c" in {metric.name for metric in one.metrics.values()}
