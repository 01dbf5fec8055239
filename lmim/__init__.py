"""Declarative ablations for latent masked image modelling."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lmim.loading import LoadedTrial

__version__ = "0.1.0"
__all__ = ["__version__", "load_trial"]


def load_trial(folder: "str | Path") -> "LoadedTrial":
    """A trial's config, its encoder with the weights, and its metrics, from `results/trials/<id>`.

    `trial.encoder.features(images)` of normalised images is what the protocols judge.
    """
    from lmim.loading import load_trial  # and with it torch

    return load_trial(folder)
