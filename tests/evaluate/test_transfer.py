"""Transfer to other data: each figure is that of the protocol that it is named for."""

import dataclasses

import pytest
import torch

from lmim.config import Data
from lmim.data import open_dataset
from lmim.evaluate import judge
from lmim.evaluate.features import freeze
from lmim.evaluate.knn import knn
from lmim.evaluate.linear import linear
from lmim.evaluate.transfer import transfer
from lmim.trial.evaluation import read_evaluations
from tests.evaluate.builders import DIGITS, flat, frozen, model


def test_agrees_with_the_protocols_on_data_of_their_own() -> None:
    """A label shifted against its image, or the trial's own images for the others, would pass unseen."""
    own = freeze(model(), ["test"])["test"]
    labels = torch.zeros(3, dtype=torch.long)
    elsewhere = frozen((torch.ones(3, 2), labels), (torch.ones(3, 2), labels), 1)
    found = transfer(dataclasses.replace(elsewhere, opened=DIGITS), k=5)
    assert found["transfer_knn_top1"] == pytest.approx(knn(own, k=5)["knn_top1"])
    assert found["transfer_linear_top1"] == pytest.approx(linear(own)["linear_top1"])
    assert found["transfer_linear_top1"] > 85


def test_judged_beside_the_trials_own_data() -> None:
    """Between planning and figures the data would be lost."""
    glyphs = open_dataset(Data(name="digits", image_size=8, train_images=100))
    [one] = read_evaluations([{"transfer": {"data": "digits", "k": 3}}])
    [(_, judged)] = judge(flat, glyphs, 8, [one])
    assert judged.error == ""
    assert judged.metrics.keys() == {"eval/transfer_knn_top1.k3", "eval/transfer_linear_top1.k3"}
    assert judged.metrics != judged.sample


def test_an_unknown_dataset_is_named() -> None:
    """A typing error would come out after the training."""
    with pytest.raises(ValueError, match=r"transfer\.data: .*found digit; did you mean digits"):
        read_evaluations([{"transfer": {"data": "digit"}}])
