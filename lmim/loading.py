"""A finished trial, back from its folder: `lmim.load_trial`."""

from dataclasses import dataclass
from pathlib import Path

from lmim.config import Config
from lmim.data import open_dataset
from lmim.data.imagefolder import IMAGENET_MEAN, IMAGENET_STD
from lmim.errors import UserError, brief
from lmim.objectives import Objective, Setup, build
from lmim.plan import facts
from lmim.train import checkpoint
from lmim.trial.folder import TrialFolder
from lmim.trial.store import Store

FOLDERS = ("davisfolder", "imagefolder", "maskfolder", "videofolder")
"""Data that are normalised as ImageNet is, whatever they are."""


@dataclass(frozen=True)
class LoadedTrial:
    """What a trial was, what it learned, and what was measured of it."""

    config: Config
    encoder: Objective
    """In evaluation mode, on the CPU; `features(images)` of normalised images is what protocols judge."""
    metrics: dict[str, float]
    """The newest of training, and those of every evaluation, by their full names."""

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation that the encoder's images are normalised by.

        Of data that are not here they are ImageNet's, which folders of images and others' weights have.

        Raises:
            UserError: the data are not here, and are neither.
        """
        try:
            data = open_dataset(self.config.data, self.config.sources)
        except UserError:
            if not self.config.imported and self.config.data.name not in FOLDERS:
                raise
            return IMAGENET_MEAN, IMAGENET_STD
        return data.mean, data.std


def trial_at(place: str) -> TrialFolder:
    """The trial in a folder, or in an object store at `<uri>/trials/<id>`."""
    if "://" in place:
        uri, _, trial = place.rstrip("/").rpartition("/trials/")
        return TrialFolder(Store.open(uri).out / "trials", trial)
    path = Path(place).resolve()
    return TrialFolder(path.parent, path.name)


def load_trial(folder: str | Path) -> LoadedTrial:
    """Read a trial from `<out>/trials/<id>`, in a folder or an object store; no code is unpickled.

    Raises:
        UserError: there is no such trial, or nothing in it that can be read.
    """
    trial = trial_at(str(folder))
    if trial.store and not trial.locked():
        trial.store.pull(trial.id)
        trial.fetch()
    config, state = trial.config(), trial.state()
    try:
        saved = checkpoint.load(trial.checkpoint)
    except FileNotFoundError:
        raise UserError(f"{trial.checkpoint}: no checkpoint yet; the trial is {state.status}") from None
    except checkpoint.UNREADABLE as error:
        raise UserError(f"{trial.checkpoint}: cannot be read ({brief(error)})") from None
    data = facts.data_of(config)  # of data that are not here, as if they were ImageNet
    shape = config.data.image_size, data.channels, data.classes
    views = config.data.crop_scale, config.data.flip
    encoder = build(config, Setup(*shape, *views, config.sources, data.frames))
    try:
        encoder.load_state_dict(saved["objective"])
    except RuntimeError as error:
        reason = data.error or "the weights are of another model"
        raise UserError(f"{trial.checkpoint}: does not fit ({reason}): {brief(error)}") from None
    return LoadedTrial(config, encoder.eval(), trial.metrics())
