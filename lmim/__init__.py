"""Declarative ablations for latent masked image modelling."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lmim.loading import LoadedTrial

# DistributedDataParallel looks for unused parameters (see `Run.shared`), and warns where it finds none, which
# says nothing to users and cannot be told otherwise. PyTorch reads this when it is imported, by any module.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

__version__ = "0.1.0"
__all__ = ["__version__", "load_trial"]


def load_trial(folder: "str | Path") -> "LoadedTrial":
    """A trial's config, its encoder with the weights, and its metrics, from `results/trials/<id>`.

    `trial.encoder.features(images)` of normalised images is what the protocols judge.
    """
    from lmim.loading import load_trial  # and with it torch

    return load_trial(folder)
