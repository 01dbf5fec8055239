"""What a trial left in its folder, to compare it with another's."""

import torch
from torch import Tensor

from lmim.trial.folder import TrialFolder


def weights(folder: TrialFolder) -> dict[str, Tensor]:
    """Everything of the objective that its checkpoint holds."""
    saved: dict[str, Tensor] = torch.load(folder.checkpoint, weights_only=True)["objective"]
    return saved


def series(folder: TrialFolder) -> list[dict[str, float]]:
    """What the journal holds but for the times."""
    return [
        {"step": row.step} | {k: v for k, v in row.metrics.items() if not k.startswith("system/")}
        for row in folder.rows()[0]
    ]
