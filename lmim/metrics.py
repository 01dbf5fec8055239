"""What every metric is called, what it is measured in, and which way is better; each stands once.

Here are the trainer's own. Those of a protocol stand in its file (`METRICS`, see `trial/evaluation.py`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Metric:
    """One metric as MLflow names it, and for people."""

    name: str
    label: str
    unit: str = ""
    better: Better = None
    """None where neither way is."""

    @property
    def heading(self) -> str:
        """The label and the unit.

        >>> Metric("eval/knn_top1", "k-NN top-1", "%", "higher").heading
        'k-NN top-1 (%)'
        """
        return f"{self.label} ({self.unit})" if self.unit else self.label


class Judge(Protocol):
    """What has metrics of its own: an `Evaluation`."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """By the name that the protocol gives them."""


RANK_RATIO = "eval/rank_ratio"
"""The effective rank of the features over that before training."""
SPREAD_RATIO = "collapse/spread_ratio"
"""The spread of the images' directions over that before training."""
NN_GAIN = "collapse/nn_gain"
"""What 1-NN accuracy rose by, as a part of what it was before training or, if less, of what was wrong."""
VAL_NN = "search/nn_top1"
"""1-NN accuracy among some validation images, which a search prunes by."""
SECONDS = "system/seconds"
"""What a trial took; measured at its end."""
COLLAPSED = 0.5
"""A trial has collapsed when each of the three is below."""
SAVED = {
    "system/core_seconds": "system/saved_core_seconds",
    "system/gpu_seconds": "system/saved_gpu_seconds",
}
"""What a trial took, and about what it would have taken more had it not ended early."""

OWN: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(RANK_RATIO, "rank ratio", better="higher"),
        Metric(SPREAD_RATIO, "spread ratio", better="higher"),
        Metric(NN_GAIN, "gain in 1-NN accuracy", better="higher"),
        Metric("collapse/nn_top1", "1-NN top-1 of some images", "%", "higher"),
        Metric(VAL_NN, "1-NN top-1 of some validation images", "%"),
        Metric("collapse/rank", "effective rank", better="higher"),
        Metric("collapse/image_cosine", "cosine between images", better="lower"),
        Metric("collapse/patch_cosine", "cosine between patches", better="lower"),
        Metric("collapse/std", "deviation between images", better="higher"),
        Metric("collapse/spread", "spread of directions", better="higher"),
        Metric("train/loss", "training loss", better="lower"),
        Metric("train/grad_norm", "gradient norm"),
        Metric("train/lr", "learning rate"),
        Metric("train/epoch", "epoch"),
        Metric(SECONDS, "time", "s", "lower"),
        Metric("system/core_seconds", "core time", "s", "lower"),
        Metric("system/gpu_seconds", "GPU time", "s", "lower"),
        Metric("system/saved_core_seconds", "core time saved by ending early", "s"),
        Metric("system/saved_gpu_seconds", "GPU time saved by ending early", "s"),
        Metric("system/images_per_second", "images per second", better="higher"),
    )
}
"""What the trainer measures, whatever it trains and however it is judged."""


def known(evaluations: Iterable[Judge] = ()) -> dict[str, Metric]:
    """Every metric by its name: those of the evaluations, then the trainer's own."""
    judged = {metric.name: metric for one in evaluations for metric in one.metrics.values()}
    return judged | OWN


def look_up(name: str, metrics: Mapping[str, Metric] = OWN) -> Metric:
    """A metric by its name; one that is not known, such as an objective's own figure, is called by it.

    >>> look_up("collapse/rank").label, look_up("train/mask_overlap").label
    ('effective rank', 'mask overlap')
    """
    return metrics.get(name) or Metric(name, name.rpartition("/")[2].replace("_", " "))


def kept(metrics: Mapping[str, float]) -> float:
    """What is left of the representation, by the measure that says most of it; NaN without a finite one.

    None tells a collapse alone, so rank, spread and nearest neighbours are asked, as arXiv 2011.10566 shows
    spread beside accuracy. The features of a classifier fill few directions, as they draw together by class
    (neural collapse, arXiv 2008.08186); those in a narrow cone, about a common offset, may tell images apart
    well. That all must be below, and one half, are our choice (see analysis/LOG.md). An older trial, without
    the others, is told by its rank.

    >>> kept({"eval/rank_ratio": 0.3, "collapse/spread_ratio": 0.9}), kept({"eval/rank_ratio": 0.3})
    (0.9, 0.3)
    """
    found = [metrics[name] for name in (RANK_RATIO, SPREAD_RATIO, NN_GAIN) if name in metrics]
    return max(found, default=math.nan) if all(map(math.isfinite, found)) else math.nan


def full_name(metric: str) -> str:
    """A metric as MLflow has it: a bare word is an evaluation's, on the test split.

    >>> full_name("knn_top1"), full_name("collapse/rank")
    ('eval/knn_top1', 'collapse/rank')
    """
    return metric if "/" in metric else f"eval/{metric}"
