"""How a frozen encoder is judged: a protocol is one file, named as its function; and diagnostics of collapse.

A protocol is given `Frozen` features, its settings by keyword, and gives the figures that its METRICS name.
Its file may say what it NEEDS besides, its own VIEW of the encoder, that it reads no FEATURES of the trial's
own images, and of how many SECONDS it is priced: `lmim/trial/evaluation.py`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lmim import variants
from lmim.data import Dataset, open_dataset
from lmim.errors import UserError, cause, out_of_memory
from lmim.evaluate.features import Encode, Frozen, Model, Stopped, Trained, freeze, sampled
from lmim.trial.evaluation import EVERY, Evaluation

__all__ = [
    "Encode",
    "Frozen",
    "Judged",
    "Model",
    "Stopped",
    "Trained",
    "View",
    "image_features",
    "judge",
    "patch_features",
]

View = Callable[..., Tensor]
"""Features of normalised images; the settings of `EVERY` by keyword, where they are not neutral."""


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


def image_features(
    objective: Any, images: Float[Tensor, "b c s s"], *, features: str = "own", **view: Any
) -> Float[Tensor, "b d"]:
    """What an objective's encoder makes of whole images, seen as the settings of every protocol say."""
    if features == "own" and view.pop("norm", False):
        if getattr(objective, "pool", "") == "cls":
            return _layers(objective.tokens, images, norm=True, **view)[:, 0]
        patches = _normed(objective, images, **view)
        if patches is not None:
            return patches.mean(dim=1)
    if features == "own":
        return _layers(objective.features, images, **view)
    if features == "patch_mean":
        return patch_features(objective, images, **view).mean(dim=1)
    tokens = _layers(objective.tokens, images, **view)
    parts = {"cls": tokens[:, 0], "patch_mean": tokens[:, 1:].mean(dim=1)}
    return torch.cat([parts[part] for part in features.split("+")], dim=1)


def patch_features(
    objective: Any,
    images: Float[Tensor, "b c h w"],
    *,
    features: str = "own",
    norm: bool = False,
    **view: Any,
) -> Float[Tensor, "b n d"]:
    """The same for each patch, where `features` changes nothing; what has no norm is seen as it is."""
    found = _normed(objective, images, **view) if norm else None
    return _layers(objective.patch_features, images, **view) if found is None else found


def _normed(objective: Any, images: Float[Tensor, "b c h w"], **view: Any) -> Float[Tensor, "b n d"] | None:
    """Each patch after the final norm; None of what has none, such as pixels."""
    if "norm" in signature(objective.patch_features).parameters:
        return _layers(objective.patch_features, images, norm=True, **view)
    with contextlib.suppress(NotImplementedError):
        if hasattr(objective, "tokens"):
            return _layers(objective.tokens, images, norm=True, **view)[:, 1:]
    return None


def _layers(encode: View, images: Float[Tensor, "b c h w"], *, layer: Any = 0, **norm: Any) -> Tensor:
    """After one block, or the last four's channels together."""
    if layer != "last4":
        return encode(images, **({"layer": layer} if layer else {}), **norm)
    return torch.cat([encode(images, layer=-back, **norm) for back in (3, 2, 1, 0)], dim=-1)


def judge(
    encode: View,
    dataset: Dataset,
    side: int,
    evaluations: Sequence[Evaluation],
    device: torch.device | str = "cpu",
    logits: Encode | None = None,
    patches: View | None = None,
    few: bool = False,
    trained: Trained | None = None,
) -> Iterator[tuple[Evaluation, Judged]]:
    """What each evaluation says of the features that `encode` gives of normalised images, one by one.

    Where a feature is not finite every figure is NaN. `encode` may raise to stop: nothing is left behind.
    What a protocol raises is that evaluation's result, and the others go on. `logits` are those of the
    objective's own classifier, if it has one: they are made where a protocol needs them. `patches` gives
    features for each patch. `few`: the figures are those of the sample alone. `trained` is the trial, its
    folder the trial's.

    Raises:
        MemoryError: there was too little of it for a protocol, which has no result; the others have theirs.
    """
    full = ""
    opened: dict[str, Dataset] = {}
    left = [*evaluations]
    while left:
        view = left[0].view
        same, left = [one for one in left if one.view == view], [one for one in left if one.view != view]
        model = Model(_bare(encode, view), _bare(patches or encode, view), dataset, side, device)
        full = (yield from _judge(model, same, logits, opened, few, trained)) or full
    if full:
        raise MemoryError(full)


def _bare(encode: View, view: dict[str, Any]) -> Encode:
    @torch.no_grad()
    def found(images: Float[Tensor, "b c h w"]) -> Tensor:
        return encode(images, **view)

    return cast(Encode, found)


def _judge(
    model: Model,
    evaluations: Sequence[Evaluation],
    logits: Encode | None,
    opened: dict[str, Dataset],
    few: bool,
    trained: Trained | None,
) -> Generator[tuple[Evaluation, Judged], None, str]:
    """The evaluations of one view, which share its features; says for which there was too little memory."""
    full = ""
    needed = logits if any("logits" in one.needs for one in evaluations) else None
    splits = [one.split for one in evaluations]
    some = replace(model, dataset=sampled(model.dataset, splits))
    if few:
        model = some
    frozen = freeze(model if any(one.reads_features for one in evaluations) else some, splits, needed)
    frozen = {split: replace(one, model=model) for split, one in frozen.items()}
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
            there, own = _opened(one, model.side, opened), _own_folder(one, trained)
            part, whole = (replace(kind[one.split], opened=there, trained=own) for kind in (samples, frozen))
            sample = _figures(one, part)
            found = sample if few else _figures(one, whole), sample
        except Exception as error:  # noqa: BLE001  a protocol may be the user's own: what it raises is recorded
            told = f"{one.protocol}: {cause(error)}{variants.place_of(error, one.sources)}"
            if out_of_memory(error):  # which is no result: another try has more
                full = told
                continue
        yield one, Judged(*found, time.monotonic() - begun, told)
    return full


def _own_folder(evaluation: Evaluation, trained: Trained | None) -> Trained | None:
    """The trial, with a folder that is named as the evaluation's result."""
    if trained is None:
        return None
    file = evaluation.file(trained.folder, trained.config.data.version or "")
    return replace(trained, folder=file.with_suffix(""))


def _opened(evaluation: Evaluation, side: int, opened: dict[str, Dataset]) -> Dataset | None:
    """The data that an evaluation's settings name: opened once."""
    if (data := evaluation.opens) is None:
        return None
    key = data.model_dump_json()
    if key not in opened:
        opened[key] = open_dataset(data.model_copy(update={"image_size": side}), evaluation.sources)
    return opened[key]


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
