"""The trainer knows no objective: a user's own is trained, resumed and judged like any other."""

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmim import objectives, variants
from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.data.augment import crop, normalise
from lmim.objectives import Setup
from lmim.train.batches import batches
from lmim.train.loop import Run, train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder

CONTRAST = '''
"""Two views agree, and labels help at first."""
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from lmim.axes.mask import patchify
from lmim.encoder import Encoder, initialise, sincos_positions
from lmim.objectives import Objective
from lmim.schedules import cosine_decay
from lmim.variants import Positive

class Contrast(Objective):
    def __init__(self, setup, *, encoder, projector, temperature: Positive = 0.2):
        super().__init__()
        self.setup, self.patch_size, self.temperature = setup, encoder.patch_size, temperature
        self.crop_side = setup.side
        positions = partial(sincos_positions, setup.side // encoder.patch_size)
        values = encoder.patch_size**2 * setup.channels
        self.encoder = Encoder(encoder, projector, positions, values)
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(encoder.width, setup.classes)
        initialise(self)
        self.register_buffer("average", torch.zeros_like(self.classify.weight))

    def draw(self, aspect, stream):
        return self.setup.views(2, aspect, stream)

    def scheduled(self, progress):
        return {"supervision": cosine_decay(progress, 1.0, 0.0)}

    def forward(self, views, labels, own, scheduled):
        assert self.training
        images, count = views.shape[:2]
        latents = self.encoder(patchify(views.flatten(0, 1), self.patch_size))[:, 1:]
        latents = self.dropout(latents).mean(dim=1)
        one, other = F.normalize(latents, dim=1).unflatten(0, (images, count)).unbind(1)
        contrast = F.cross_entropy(one @ other.T / self.temperature, torch.arange(images))
        supervised = F.cross_entropy(self.classify(latents), labels.repeat_interleave(count))
        loss = contrast + scheduled["supervision"] * supervised
        return {"loss": loss, "contrast": contrast, "supervised": supervised}

    def after_step(self, scheduled):
        self.average.lerp_(self.classify.weight.detach(), 1 - scheduled["supervision"])

    def patch_features(self, images):
        assert not self.training
        return self.dropout(self.encoder.patch_features(patchify(images, self.patch_size)))
'''

TINY: dict[str, Any] = {
    "objective": "mine.py:Contrast",
    "Contrast": {"temperature": 0.1},
    "data": {"name": "digits", "image_size": 8, "train_images": 256},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 6, "batch_size": 16, "accumulate": 2, "base_lr": 0.1, "warmup_epochs": 0.5},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 3, "checkpoint_seconds": 0.0},
}
KNN = read_evaluations(["knn"])


def mine(**changes: Any) -> Config:
    tree = merge(TINY, {key.replace("__", "."): value for key, value in changes.items()})
    return Config.read(tree | {"sources": {"mine.py": CONTRAST}})


def run_of(config: Config) -> Run:
    return Run(config, open_dataset(config.data), torch.device("cpu"))


KILLED = """
import os, signal, sys
from pathlib import Path
from lmim.train.loop import train
from lmim.trial.folder import TrialFolder
folder = TrialFolder(Path(sys.argv[1]), sys.argv[2])
def report(step, metrics):
    if step >= 20:
        os.kill(os.getpid(), signal.SIGKILL)
train(folder.config(), folder, report=report)
"""


def test_an_objective_of_the_users_own_trains_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Else a new method means a fork of the trainer, or a preempted trial of it is another experiment."""
    config = mine()
    whole, killed = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "killed"))
    state = train(config, whole, KNN)
    assert (state.status, state.outcome, state.steps) == ("done", "learned", 48)
    rows = [row for row in whole.rows()[0] if "train/loss" in row.metrics]
    for row in rows:
        assert {"train/loss", "train/contrast", "train/supervised", "train/grad_norm"} < row.metrics.keys()
        expected = (1 + math.cos(math.pi * row.step / 48)) / 2
        assert row.metrics["train/supervision"] == pytest.approx(expected)
    first, last = rows[0].metrics, rows[-1].metrics
    assert last["train/contrast"] < first["train/contrast"]
    assert last["train/supervised"] < first["train/supervised"]
    [result] = whole.results()
    assert result.metrics["eval/knn_top1"] > 25  # ten classes: chance is 10

    killed.create(config)
    words = [sys.executable, "-c", KILLED, str(killed.root), killed.id]
    assert subprocess.run(words, timeout=120, check=False).returncode == -signal.SIGKILL
    assert 0 < killed.state().step < 48
    train(config, killed, KNN)
    one, other = (torch.load(f.checkpoint, weights_only=True)["objective"] for f in (whole, killed))
    assert one.keys() == other.keys()
    assert one["average"].any()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    figures = [
        [(row.step, {k: v for k, v in row.metrics.items() if "system/" not in k}) for row in folder.rows()[0]]
        for folder in (whole, killed)
    ]
    assert figures[0] == figures[1]
    assert killed.results()[0].metrics == result.metrics


def test_its_own_setting_reaches_it_and_counts(tmp_path: Path) -> None:
    """An axis over a setting that goes nowhere would be reported as 'no difference'."""
    config, plain = mine(), Config.read({k: v for k, v in mine().model_dump().items() if k != "Contrast"})
    assert config.flat()["Contrast.temperature"] == config.used()["Contrast.temperature"] == 0.1
    assert config.identity != plain.identity
    assert [vars(run_of(one).objective)["temperature"] for one in (config, plain)] == [0.1, 0.2]
    folder = TrialFolder(tmp_path, config.identity)
    folder.create(config)
    assert folder.config() == config
    assert (folder.path / "sources" / "mine.py").read_text() == CONTRAST


def test_views_are_cropped_as_they_were_drawn() -> None:
    """Views of two images mixed up would be pulled together, and nothing would say so."""
    run = run_of(mine(data__flip=True))
    [batch, *_] = next(batches(run.dataset.train, run.config, run.objective, 0, 1))
    batch.draw.mirrored[::2] = True  # digits may not be, but what is drawn is followed
    seen: list[torch.Tensor] = []

    def forward(views: Any, labels: Any, own: Any, scheduled: Any) -> dict[str, torch.Tensor]:
        seen.extend([views, labels])
        return {}

    run.forward = forward
    run.losses(batch, {})
    views, labels = seen
    assert views.shape == (16, 2, 1, 8, 8)
    assert torch.equal(labels, batch.labels)
    for view in (0, 1):
        parts = (batch.images, batch.draw.boxes, batch.draw.mirrored)
        images, boxes, mirrored = (part[:, view] for part in parts)
        expected = normalise(crop(images, boxes, 8, mirrored), run.mean, run.std)
        torch.testing.assert_close(views[:, view], expected)


def test_evaluation_has_no_dropout_and_training_has() -> None:
    """Accuracies would be of a spoiled encoder, and others each time; or a method would lose its noise."""
    run = run_of(mine())
    assert run.collapse_metrics() == run.collapse_metrics()
    [batch, *_] = next(batches(run.dataset.train, run.config, run.objective, 0, 1))
    first, second = (run.losses(batch, {"supervision": torch.tensor(1.0)})["loss"] for _ in range(2))
    assert first != second


def test_what_it_draws_while_it_runs_is_a_function_of_the_step() -> None:
    """Dropout that went on from a process' past would make a resumed trial another experiment."""
    figures = []
    for past in (0, 1):
        run = run_of(mine())
        torch.rand(past)
        feed = batches(run.dataset.train, run.config, run.objective, 0, 2)
        for step in feed:
            run.step(step)
        figures.append(run.training_metrics())
    assert figures[0] == figures[1]


def test_no_file_of_the_trainer_names_an_objective() -> None:
    """What knows one by name would do something else for the user's own."""
    for file in sorted(Path(objectives.__file__).parents[1].glob("train/*.py")):
        text = file.read_text()
        for name in variants.choices("objective"):
            assert name not in text, file
            assert name.replace("_", "") not in text.lower(), file


def test_views_are_drawn_apart() -> None:
    """Two views with one box are one view, and their agreement teaches nothing."""
    setup = Setup(side=8, channels=1, classes=10, crop_scale=0.3, mirrors=True)
    aspect = torch.full((200,), 1.5)
    draw = setup.views(3, aspect, torch.Generator().manual_seed(0))
    assert draw.boxes.shape == (200, 3, 4)
    assert draw.mirrored.shape == (200, 3)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (draw.boxes[:, one] != draw.boxes[:, other]).any(dim=1).all()
        assert (draw.mirrored[:, one] != draw.mirrored[:, other]).any()
    again = setup.views(3, aspect, torch.Generator().manual_seed(0))
    assert torch.equal(draw.boxes, again.boxes)
    alone = setup.views(1, aspect, torch.Generator().manual_seed(0))
    assert torch.equal(draw.boxes[:, :1], alone.boxes)


def test_a_variant_comes_with_its_settings() -> None:
    """A loss at its neutral temperature, whatever the sweep file says, would be an ablation of nothing."""
    config = Config.read({"loss": {"tau": 0.5}})
    compare = Setup(8, 1, 10).variant("loss", config.section("loss"))
    prediction, target = torch.randn(2, 2, 4, 8).unbind(0)
    neutral = variants.load("loss", "patch_discrimination", {})
    assert compare(prediction, target) == neutral(prediction, target, tau=0.5)
    assert compare(prediction, target) != neutral(prediction, target)
