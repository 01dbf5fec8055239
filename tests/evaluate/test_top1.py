"""The objective's own classifier: who has one is judged by it, the others are not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmim import variants
from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.evaluate import judge
from lmim.loading import load_trial
from lmim.objectives.supervised import Supervised
from lmim.replay import replay
from lmim.train.loop import train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import standing

TINY: dict[str, Any] = {
    "objective": "supervised",
    "data": {"name": "digits", "image_size": 8, "train_images": 256},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "optim": {"epochs": 12, "batch_size": 16, "base_lr": 0.05, "warmup_epochs": 0.5},
    "watch": {"images": 64},
    "run": {"device": "cpu"},
}
BOTH = read_evaluations(["top1", "nn"])


def tiny(**changes: Any) -> Config:
    return Config.read(merge(TINY, {key.replace("__", "."): value for key, value in changes.items()}))


def test_a_classifier_is_judged_by_its_own_logits(tmp_path: Path) -> None:
    """The accuracy of a probe would stand under the classifier's name."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    train(config, folder, BOTH)
    trial, test = load_trial(folder.path), open_dataset(config.data).test
    images, _ = test.read(torch.arange(len(test)), 8)
    data = open_dataset(config.data)
    assert isinstance(trial.encoder, Supervised)
    logits = trial.encoder.logits((images / 255 - data.mean[0]) / data.std[0])
    accuracy = 100 * (logits.argmax(dim=1) == test.labels).float().mean().item()
    assert trial.metrics["eval/top1"] == pytest.approx(accuracy, abs=0.4)  # the crop is bicubic
    assert trial.metrics["eval/top1"] > 20
    assert replay(folder).difference == ""


def test_what_has_no_classifier_is_not_judged_by_one(tmp_path: Path) -> None:
    """A sweep with a baseline without one would never be done, or train for it again and again."""
    config = tiny(objective="raw_pixels", optim__epochs=0)
    folder = TrialFolder(tmp_path, config.identity)
    train(config, folder, BOTH)
    assert [result.protocol for result in folder.results()] == ["nn"]
    assert not folder.missing(BOTH, None)
    stands = standing(folder, BOTH)
    assert (stands.status, stands.error) == ("done", None)
    assert "eval/top1" not in stands.metrics


def test_logits_are_made_where_they_are_needed() -> None:
    """Every other sweep would run its encoder twice over the judged images."""
    asked = 0

    def logits(images: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(images)
        return images.flatten(1)[:, :10]

    dataset = open_dataset(tiny().data)
    list(judge(lambda x: x.flatten(1), dataset, 8, read_evaluations(["nn"]), "cpu", logits))
    assert asked == 0
    (_, alone), (_, beside), (_, own) = (
        found
        for names in (["nn"], ["nn", "top1"])
        for found in judge(lambda x: x.flatten(1), dataset, 8, read_evaluations(names), "cpu", logits)
    )
    assert asked == len(dataset.test)
    assert alone.metrics == beside.metrics
    assert own.metrics.keys() == {"eval/top1"}


OWN = """
from lmim.objectives.supervised import Supervised
class Mine(Supervised):
    def __init__(self, setup, *, encoder):
        super().__init__(setup, encoder=encoder)
"""


def test_a_subclass_has_what_its_base_has() -> None:
    """The user's own classifier would have a dash for its accuracy."""
    [top1, _] = BOTH
    config = Config.read({"objective": "mine.py:Mine", "sources": {"mine.py": OWN}})
    assert top1.applies(config)
    assert not top1.applies(Config.read({}))
    assert "logits" in variants.describe("objective", "supervised", {}).methods
