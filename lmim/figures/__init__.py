"""What figures show of one trial: a figure is one file, named as its function, which makes its arrays.

A figure is given a `Subject`, its settings by keyword, and gives arrays that `lmim.analysis.pictures` draws
by the same name. What is made is kept in the trial's folder, and fed to MLflow as any of its results.

    look("results/trials/<id>", "neighbours", nearest=3)["cosine"]  # [4, 3]
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lmim import variants
from lmim.axes.mask import patchify, sample_view
from lmim.config import Config, Data
from lmim.data import Dataset, Split, open_dataset
from lmim.data.augment import crop
from lmim.encoder import View, take
from lmim.errors import UserError, cause
from lmim.evaluate import Model, image_features, patch_features
from lmim.files import write_atomic
from lmim.loading import load_trial
from lmim.objectives import Objective
from lmim.train.loop import open_planned
from lmim.trial.figure import Figure, read_figures
from lmim.trial.folder import TrialFolder

__all__ = ["Arrays", "Lacking", "Subject", "look", "make"]

Arrays = dict[str, NDArray[Any]]
REASON = "reason"
"""The array of what cannot be drawn: why."""


class Lacking(Exception):
    """A trial has not what a figure shows, and never will: it is said in the figure's place."""


@dataclass(frozen=True)
class Seen:
    """Images as an encoder sees them."""

    pixels: Float[Tensor, "b c s s"]
    """0..1, on the host."""
    normalised: Float[Tensor, "b c s s"]
    """On the device."""


@dataclass(frozen=True)
class Masked:
    """What a trial makes of images of which it sees some patches, on whole images without gaps."""

    seen: Seen
    patches: Float[Tensor, "b n p"]
    view: View
    latents: Float[Tensor, "b v e"]
    """Of the visible patches."""
    prediction: Float[Tensor, "b m o"]
    target: Tensor
    """`[b, m, o]`; of tokens their ids, `[b, m]`."""


@dataclass(frozen=True)
class Subject:
    """A trial, as figures see it."""

    folder: TrialFolder
    config: Config
    objective: Objective
    model: Model
    sources: dict[str, str]

    @classmethod
    def of(cls, folder: TrialFolder) -> "Subject":
        """A trial by its folder, on the GPU if there is one.

        Raises:
            UserError: it has no checkpoint, or its data are not here.
        """
        trial = load_trial(folder.path)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls.seeing(folder, trial.config, trial.encoder.to(device), open_planned(trial.config))

    @classmethod
    def seeing(cls, folder: TrialFolder, config: Config, objective: Objective, dataset: Dataset) -> "Subject":
        """An objective that is loaded already."""
        first = next(objective.parameters(), None)
        device = first.device if first is not None else torch.device("cpu")
        images, patches = (
            torch.no_grad()(partial(view, objective)) for view in (image_features, patch_features)
        )
        model = Model(images, patches, dataset, config.data.image_size, device)
        return cls(folder, config, objective.eval(), model, config.sources)

    def having(self, sources: Mapping[str, str]) -> "Subject":
        """The same with the text of files of data that a figure opens."""
        return replace(self, sources=self.sources | dict(sources))

    def open(self, name: str, path: str = "") -> Dataset:
        """The data of this name, at the side that the encoder has seen; empty for the trial's own.

        Raises:
            Lacking: the encoder has seen images of other channels.
        """
        if not name:
            return self.model.dataset
        data = open_dataset(Data(name=name, path=path or None, image_size=self.model.side), self.sources)
        if data.channels != (own := self.model.dataset.channels):
            raise Lacking(f"{name} has {data.channels} channels, it was trained on {own}")
        return data

    def images(self, split: Split, rows: Int[Tensor, " b"]) -> Seen:
        """Some images of a split."""
        pixels, boxes = split.read(rows, self.model.side)
        return Seen(crop(pixels, boxes, self.model.side), self.model.normalised(pixels, boxes))

    @torch.no_grad()
    def masked(self, seen: Seen, objective: Objective | None = None) -> Masked:
        """What it predicts of the patches that its mask ratio hides, always the same ones; by its weights,
        or by those of another objective like it.

        Raises:
            Lacking: its objective hides nothing, or is not made of encoder and decoder.
        """
        part: Any = objective or self.objective
        part = getattr(part, "mae", part)
        decoder = getattr(part, "decoder", None) or next(reversed(getattr(part, "decoders", [])), None)
        if decoder is None or not hasattr(part, "mask"):
            raise Lacking(f"{self.config.objective} has no decoder of masked patches")
        patches = patchify(seen.normalised, part.patch_size)
        count = patches.shape[1]
        drawn = sample_view(len(patches), count, part.mask.visible(count), torch.Generator().manual_seed(0))
        view = View(drawn.visible.to(patches.device), drawn.masked.to(patches.device))
        latents = part.encoder(patches, view.visible)
        prediction = decoder(latents, view)
        hidden = take(patches, view.masked)
        target = part.target.encode(part.encoder, patches, view) if hasattr(part, "target") else hidden
        return Masked(seen, patches, view, latents[:, 1:], prediction, target)


def array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as it is kept; pixels and the like in half precision, which is more than a page shows."""
    found: NDArray[Any] = tensor.detach().cpu().numpy()
    return found.astype(np.float16) if found.dtype == np.float32 and found.ndim > 2 else found


def draw(subject: Subject, figure: Figure) -> Arrays:
    """What a figure shows of a trial; or, as `reason`, why it shows nothing."""
    try:
        found: Arrays = variants.load("figure", figure.name, {})(subject, **figure.settings)
    except Lacking as lacking:
        return {REASON: np.array(str(lacking))}
    return found


def look(folder: str | Path, name: str, **settings: Any) -> Arrays:
    """What a figure shows of a trial, by its folder and the figure's settings; nothing is kept.

    Raises:
        UserError: there is no such figure or setting, or the trial cannot be read.
        Lacking: the trial has not what the figure shows.
    """
    path = Path(folder).resolve()
    try:
        (figure,) = read_figures([{name: settings}])
    except ValueError as error:
        raise UserError(str(error)) from None
    if figure.of_sweep:
        raise UserError(f"{name}: is of a sweep's table, not of a trial")
    found = draw(Subject.of(TrialFolder(path.parent, path.name)), figure)
    if REASON in found:
        raise Lacking(str(found[REASON]))
    return found


def make(folder: TrialFolder, figures: Sequence[Figure]) -> Iterator[str]:
    """Keep what some figures show of a trial in its folder, where today's code has not; a line a failure."""
    version = folder.config().data.version or ""
    missing = [one for one in figures if not one.of_sweep and not one.file(folder.path, version).is_file()]
    subject = None
    for one in missing:
        try:
            subject = subject or Subject.of(folder)
            found = draw(subject.having(one.sources), one)
        except Exception as error:  # noqa: BLE001  no figure is worth a sweep: the others are drawn
            yield f"{one.name}: {cause(error)}"
            continue
        keep(found, one.file(folder.path, version), one.kept(folder.path, version))


def keep(arrays: Arrays, file: Path, older: Path | None) -> None:
    """Write arrays as a whole, in place of those that older code made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(file, buffer.getbuffer())
    if older is not None and older != file:
        older.unlink(missing_ok=True)
