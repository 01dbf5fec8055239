"""Others' weights as a trial like any other: judged, replayed, fine-tuned, exported."""

import contextlib
import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.errors import UserError
from lmim.interop.official import LAYOUTS, layout_of, read_weights, without_decoder
from lmim.plan import facts
from lmim.plan.located_yaml import read_yaml
from lmim.plan.sweep_file import PROJECT_ABLATIONS, find_scale
from lmim.train import checkpoint
from lmim.train.loop import content
from lmim.trial.code import code_digest, code_version, libraries
from lmim.trial.folder import TrialFolder


def import_weights(
    file: Path,
    layout: str | None,
    model: Mapping[str, Any],
    out: Path,
    scale: str = "paper",
    data_path: str | None = None,
) -> TrialFolder:
    """Make a finished trial of a checkpoint of Latent MIM's or MAE's authors, under `out`/trials.

    `layout` is one of `LAYOUTS`, or None where the weights' names tell it.

    Its data, which may lie at `data_path`, are a scale's, and normalise what it sees: a folder of images by
    ImageNet's mean and deviation, with which the authors trained. The model is of the authors' arguments, or
    where there are none the scale's own of Latent MIM, and MAE's default. What the weights are is part of its
    identity: other weights are another trial.

    Raises:
        UserError: as `load_official`; or the scale is not there.
    """
    weights = read_weights(file)
    layout = layout or layout_of(weights, file)
    tree = _scale(scale)
    given = model or (_recipe(tree) if layout == "latent_mim" else {})
    objective, ours = LAYOUTS[layout](weights, given)
    if layout == "mae" and without_decoder(weights):
        told = (
            "the encoder alone: the trial is judged, fine-tuned and exported as any, and predicts no pixels"
        )
        print(f"{file}: {told}", file=sys.stderr)
    there = {"path": data_path} if data_path else {}
    data = tree["data"] | {"image_size": ours.data.image_size} | there
    imported: dict[str, Any] = ours.model_dump() | {
        "data": data,
        "optim": {"epochs": 0},
        "imported": digest(weights),
    }
    config = Config.read(imported)
    with contextlib.suppress(UserError):  # where the data are not, it is judged on others
        config = Config.read(merge(imported, {"data.version": open_dataset(config.data).version}))
    if (seen := facts.data_of(config).channels) != objective.setup.channels:
        wanted = f"expected data of {objective.setup.channels} channels, as the weights have seen"
        raise UserError(f"--scale {scale}: {wanted}, found {config.data.name} of {seen}")
    folder = TrialFolder(out / "trials", config.identity)
    folder.create(config)
    with folder.lock():
        checkpoint.save(folder.checkpoint, content(config, objective))
        now = time.time()
        lived = {"started": now, "finished": now, "code": code_digest(), "commit": code_version()}
        folder.update(status="done", **lived, **libraries())
    return folder


def _scale(name: str) -> dict[str, Any]:
    """What a scale's file says."""
    found: dict[str, Any] = read_yaml(find_scale(name)).plain()
    return found


def _recipe(scale: Mapping[str, Any]) -> Config:
    """The published recipe at a scale, which runs anywhere."""
    base = read_yaml(PROJECT_ABLATIONS / "base.yaml").plain()
    return Config.read(merge(base, scale) | {"run": {}})


def digest(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of the SHA-256 of named weights, whatever file they lie in."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
