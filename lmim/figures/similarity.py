"""How alike the latents of one image are: over training, and of predictions, targets and visible patches.

The journal has the mean cosine of the encoder's patches and the constraint's aim, over the steps. That of
predictions, targets and visible latents it has of `latent_mim`, unless the trial is an old one. They are
measured, too, with the weights before training, which the seed gives again, and with those after it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from lmim.axes.mask import similarity as alike
from lmim.data.splits import spread
from lmim.figures import Arrays, Lacking, Seen, Subject
from lmim.objectives import Objective
from lmim.train.loop import Run
from lmim.trial.folder import Row
from lmim.variants import PositiveInt

PARTS = ("prediction", "target", "visible")


def similarity(trial: Subject, *, images: PositiveInt = 64) -> Arrays:
    """Cosine of the patches, predictions, targets and visible latents over the steps; of the last three at
    both ends, too.

    At the ends `images` are averaged over, spread evenly over the test split. All are means over the ordered
    pairs of an image's patches, a patch with itself included, as the constraint has it; masks are always the
    same ones.

    Returns:
        `steps` [k], `patches` [k]; `aim_steps` and `aim` where the objective has one; `parts` [3], the names
        of what `before` [3] and `after` [3] are of, NaN where targets are no vectors or nothing is predicted;
        `prediction_steps` and `prediction`, and so on, where the journal has them.
    """
    split = trial.model.dataset.test
    seen = trial.images(split, spread(len(split), images))
    rows = trial.folder.rows()[0]
    if not trial.config.optim.epochs:
        raise Lacking("it was not trained")
    looks = _course(rows, "collapse/patch_cosine")
    if not looks:
        raise Lacking("its journal has no collapse/patch_cosine")
    count = trial.model.patches(seen.normalised[:1]).shape[1]
    found: Arrays = {"steps": np.array([*looks]), "parts": np.array(PARTS)}
    # the journal's is of different patches alone
    found["patches"] = (np.array([*looks.values()]) * (count - 1) + 1) / count
    aims = _course(rows, "train/similarity_aim")
    if aims and trial.config.flat().get("mask.similarity"):
        found |= {"aim_steps": np.array([*aims]), "aim": np.array([*aims.values()])}
    for name in PARTS:
        if course := _course(rows, f"train/{name}_similarity"):
            found |= {f"{name}_steps": np.array([*course]), name: np.array([*course.values()])}
    untrained = Run(trial.config, trial.model.dataset, torch.device(trial.model.device)).objective.eval()
    for name, objective in (("before", untrained), ("after", trial.objective)):
        found[name] = np.array(_measured(trial, seen, objective))
    return found


def _course(rows: Sequence[Row], metric: str) -> dict[int, float]:
    return {row.step: row.metrics[metric] for row in rows if metric in row.metrics}


def _measured(trial: Subject, seen: Seen, objective: Objective) -> list[float]:
    """In the order of `PARTS`."""
    try:
        made = trial.masked(seen, objective)
    except Lacking:
        return [math.nan] * len(PARTS)
    parts = made.prediction, made.target, made.latents
    return [float(alike(one.float())) if one.ndim == 3 else math.nan for one in parts]
