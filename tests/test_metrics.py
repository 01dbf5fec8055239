"""What every metric is called stands once, for the table, the claims and the ladder."""

import pytest

from lmim.metrics import COLLAPSED, OWN, RANK_RATIO, full_name, known, look_up
from lmim.trial.evaluation import read_evaluations


def test_every_metric_of_a_sweep_is_known_with_its_direction() -> None:
    """A ladder would keep the worst arm, or a table head a column with the name of a variable."""
    metrics = known(read_evaluations(["nn", {"knn": {"k": 5}}, "linear"]))
    assert metrics.keys() - OWN.keys() == {"eval/nn_top1", "eval/knn_top1.k5", "eval/linear_top1"}
    assert all(metrics[name].name == name for name in metrics)
    less = {name for name, metric in metrics.items() if metric.better == "lower"}
    assert {"collapse/image_cosine", "collapse/patch_cosine", "train/loss"} == less - {
        "system/seconds",
        "system/core_seconds",
        "system/gpu_seconds",
    }
    assert metrics["train/lr"].better is None
    assert RANK_RATIO in OWN
    assert 0 < COLLAPSED < 1


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("eval/nn_top1", "1-NN top-1 (%)"),
        ("eval/knn_top1", "k-NN top-1 (%)"),
        ("eval/linear_top1", "linear top-1 (%)"),
        ("eval/rank_ratio", "rank ratio"),
        ("collapse/rank", "effective rank"),
        ("collapse/image_cosine", "cosine between images"),
        ("train/loss", "training loss"),
        ("system/seconds", "time (s)"),
        ("train/term", "term"),
    ],
)
def test_headings_are_for_people(name: str, heading: str) -> None:
    """A reader of the table does not know what `eval/nn_top1` is, nor in what it is measured."""
    assert look_up(name, known(read_evaluations())).heading == heading


def test_a_bare_word_is_the_test_splits() -> None:
    """A claim `on knn_top1` that fell on the validation split would report what chose the winner."""
    assert full_name("knn_top1.k5") == "eval/knn_top1.k5"
    assert full_name("val/knn_top1") == "val/knn_top1"
