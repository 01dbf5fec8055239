"""How a frozen encoder is judged: a protocol is one file, named as its function; and diagnostics of collapse.

A protocol is given `Frozen` features, its settings by keyword, and gives the figures that its METRICS name.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lmim import variants
from lmim.data import Dataset
from lmim.errors import UserError, cause, out_of_memory
from lmim.evaluate.features import Encode, Frozen, freeze, sampled
from lmim.trial.evaluation import EVERY, Evaluation

__all__ = ["Encode", "Frozen", "Judged", "judge", "sampled"]


@dataclass(frozen=True)
class Judged:
    """What one evaluation found, by the metrics' full names."""

    metrics: dict[str, float]
    sample: dict[str, float]
    """The same on a few images, that another version of the code be compared with: see `sampled`."""
    seconds: float
    """The protocol's own time; the features are shared."""
    error: str = ""
    """Why there are no figures: the protocol failed."""


def judge(
    encode: Callable[..., Float[Tensor, "b d"]],
    dataset: Dataset,
    side: int,
    evaluations: Sequence[Evaluation],
    device: torch.device | str = "cpu",
    logits: Encode | None = None,
) -> Iterator[tuple[Evaluation, Judged]]:
    """What each evaluation says of the features that `encode` gives of normalised images, one by one.

    Where a feature is not finite every figure is NaN. `encode` may raise to stop: nothing is left behind.
    `encode(images, layer=k)` gives those after block k.
    What a protocol raises is that evaluation's result, and the others go on. `logits` are those of the
    objective's own classifier, if it has one: they are made where a protocol needs them.

    Raises:
        MemoryError: there was too little of it for a protocol, which has no result; the others have theirs.
    """
    full = ""
    for layer in dict.fromkeys(one.layer for one in evaluations):
        found = encode if not layer else partial(encode, layer=layer)
        same = [one for one in evaluations if one.layer == layer]
        full = (yield from _judge(found, dataset, side, same, device, logits)) or full
    if full:
        raise MemoryError(full)


def _judge(
    encode: Encode,
    dataset: Dataset,
    side: int,
    evaluations: Sequence[Evaluation],
    device: torch.device | str,
    logits: Encode | None,
) -> Generator[tuple[Evaluation, Judged], None, str]:
    """The evaluations of one layer, which share its features; says for which there was too little memory."""
    full = ""
    needed = logits if any("logits" in one.needs for one in evaluations) else None
    frozen = freeze(encode, dataset, [one.split for one in evaluations], side, device, needed)
    finite = {split: one.finite() for split, one in frozen.items()}
    samples = {split: one.sample() for split, one in frozen.items()}
    for one in evaluations:
        if not finite[one.split]:
            nothing = {metric.name: math.nan for metric in one.metrics.values()}
            yield one, Judged(nothing, nothing, 0.0)
            continue
        begun = time.monotonic()
        told = ""
        found: tuple[dict[str, float], dict[str, float]] = {}, {}
        try:
            found = _figures(one, frozen[one.split]), _figures(one, samples[one.split])
        except Exception as error:  # noqa: BLE001  a protocol may be the user's own: what it raises is recorded
            told = f"{one.protocol}: {cause(error)}{variants.place_of(error, one.sources)}"
            if out_of_memory(error):  # which is no result: another try has more
                full = told
                continue
        yield one, Judged(*found, time.monotonic() - begun, told)
    return full


def _figures(evaluation: Evaluation, frozen: Frozen) -> dict[str, float]:
    protocol = variants.load("evaluate", evaluation.protocol, evaluation.sources)
    settings = {key: value for key, value in evaluation.settings.items() if key not in EVERY}
    found, metrics = protocol(frozen, **settings), evaluation.metrics
    if found.keys() != metrics.keys():
        raise UserError(
            f"{evaluation.protocol}: expected the figures of its METRICS, {', '.join(metrics)}; "
            f"found {', '.join(found) or 'none'}"
        )
    return {metric.name: float(found[name]) for name, metric in metrics.items()}
