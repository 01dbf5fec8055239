"""Fine-tuning: the encoder goes on learning under a linear classifier, by the trainer that made it.

MAE's end-to-end protocol (arXiv 2111.06377, appendix A.1, and its code's recipe of a ViT-B): AdamW with a
learning rate that falls from block to block, drop path, mixup, CutMix, RandAugment, random erasing, label
smoothing, a classifier on the mean of the patches. Unlike there the position codes stay fixed, and
mixing is drawn for each image, in micro-batches of 128 at most.

It is a trial of `supervised` in a folder of its own, `evaluations/finetune-<id>/` of the trial's, that begins
with the trial's encoder in its checkpoint: so it stops, goes on, and runs on several processes as any trial
does, and `lmim.load_trial` reads it.
"""

import math
import shutil
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn

from lmim.config import Config
from lmim.encoder import Encoder, sincos_positions
from lmim.errors import UserError
from lmim.evaluate.features import Frozen, Stopped, Trained
from lmim.objectives.supervised import Supervised
from lmim.train import checkpoint
from lmim.train.loop import Run, choose_device, open_planned, train
from lmim.trial.evaluation import read_evaluations, steps_of
from lmim.trial.folder import TrialFolder
from lmim.variants import Fraction, Positive, PositiveInt

METRICS = {"finetune_top1": {"label": "fine-tuned top-1", "unit": "%", "better": "higher"}}
NEEDS = ("backbone",)

HEAD = 2e-5
"""Deviation of the classifier's first weights, which so begins by telling nothing."""
SAMPLE_STEP = 64
"""Images of a step of the sample, at most."""
AUGMENTED = {
    "drop_path": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "randaugment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "smoothing": 0.1,
}


def finetune(
    frozen: Frozen,
    *,
    epochs: PositiveInt = 100,
    base_lr: Positive = 5e-4,
    batch_size: PositiveInt = 1024,
    layer_decay: Fraction = 0.65,
    recipe: Literal["mae", "plain"] = "mae",
) -> dict[str, float]:
    """Accuracy in % on the judged images, after training on all training images and their labels.

    `epochs` are passes over the training images, the first twentieth of them warm-up. `base_lr` is the
    learning rate of 256 images of a step, and `batch_size` is how many a step has. `layer_decay` is the
    learning rate of a block over that of the block after it. `recipe` plain leaves out what mae does
    against overfitting, for small models and data: mixing, RandAugment, erasing, smoothing, drop path.

    Raises:
        UserError: what is judged is no trial, or has no such encoder.
    """
    trained = frozen.trained
    if trained is None:
        raise UserError("finetune: needs a trial, whose recipe and folder it goes on in; judge one")
    optim = {"epochs": epochs, "base_lr": base_lr, "layer_decay": layer_decay}
    config = tuned(trained, optim | steps_of(batch_size, trained.config.optim.accumulate), recipe)
    if frozen.few:
        return {"finetune_top1": _sample(config, frozen, trained)}
    folder = TrialFolder(trained.folder.parent, trained.folder.name)
    if checkpoint.load_or_set_aside(folder.checkpoint) is None:
        _begin(config, trained, folder)
    [top1] = (
        replace(one, split=cast(Literal["test", "val"], frozen.split)) for one in read_evaluations(["top1"])
    )
    state = train(config, folder, [top1], stop=trained.stop)
    if state.outcome == "diverged":
        return {"finetune_top1": math.nan}
    result = next((one for one in folder.results() if one.evaluation == top1), None)
    if result is None:
        raise Stopped
    if result.error:
        raise UserError(result.error)
    return {"finetune_top1": result.metrics[top1.metrics["top1"].name]}


def tuned(trained: Trained, optim: dict[str, Any], recipe: str) -> Config:
    """The config of fine-tuning a trial: its data, its encoder, its seed and how it runs."""
    config, encoder = trained.config, _encoder(trained.objective)
    rates = {"warmup_epochs": optim["epochs"] / 20, "min_lr_ratio": 5e-4, "beta2": 0.999}
    augmented = recipe == "mae"
    table = encoder.positions
    as_latent_mim = torch.equal(table, sincos_positions(config.grid, table.shape[1]).to(table.device))
    sections = {name: config.section(name).model_dump() for name in ("data", "encoder", "watch", "run")}
    crops = {"crop_scale": 0.08} if augmented else {}
    return Config.read(
        {
            "objective": "supervised",
            "seed": config.seed,
            "sources": config.sources,
            **sections,
            "data": sections["data"] | crops,
            "optim": optim | rates | {"precision": config.optim.precision},
            "supervised": {
                "positions": "latent_mim" if as_latent_mim else "mae",
                **(AUGMENTED if augmented else {}),
            },
        }
    )


def _encoder(objective: nn.Module) -> Encoder:
    found: Encoder = objective.backbone()  # type: ignore[operator]
    return found


def _started(run: Run, trained: Trained) -> Run:
    """The run with the trial's encoder, whose final norm stays behind, as the classifier has its own."""
    weights = _encoder(trained.objective).state_dict()
    ours = _encoder(run.objective)
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    head = cast(Supervised, run.objective).head.weight
    with torch.no_grad():
        head.copy_(nn.init.trunc_normal_(torch.empty(head.shape), std=HEAD))
    return run


def _begin(config: Config, trained: Trained, folder: TrialFolder) -> None:
    """A folder in which training goes on from the trial's encoder."""
    shutil.rmtree(folder.path, ignore_errors=True)  # of one whose checkpoint was lost
    folder.create(config)
    run = Run(config, open_planned(config), choose_device(config))
    _started(run, trained).save(folder.checkpoint)


def _sample(config: Config, frozen: Frozen, trained: Trained) -> float:
    """The figure after one epoch on the sample's images."""
    model = frozen.model
    step = {
        "epochs": 1,
        "batch_size": min(SAMPLE_STEP, len(frozen.train)),
        "accumulate": 1,
        "warmup_epochs": 0.0,
    }
    few = config.model_copy(update={"optim": config.optim.model_copy(update=step)})
    run = _started(Run(few, model.dataset, torch.device(model.device)), trained)
    for micro_batches in run.feed(run.steps):
        run.step(micro_batches)
    classify = cast(Supervised, run.objective.eval()).logits
    logits = torch.cat([*model.encoded(frozen.images, classify)])
    return 100 * float((logits.argmax(dim=1) == frozen.images.labels).float().mean())
