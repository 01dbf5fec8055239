"""What holds for every objective that comes with lmim; a new one is a line in `CONFIGS`."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lmim import objectives, survey, variants
from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.loading import load_trial
from lmim.objectives import Setup
from lmim.train.batches import batches
from lmim.train.loop import Run, train
from lmim.trial.folder import TrialFolder
from tests.data.clips import MOVING
from tests.trial.leavings import series, weights

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 240},
    "encoder": {"patch_size": 2, "width": 16, "depth": 2, "heads": 2},
    "optim": {"epochs": 3, "batch_size": 20, "accumulate": 2, "base_lr": 1e-2, "warmup_epochs": 0.5},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 2, "checkpoint_seconds": 0.0},
}
DECODER: dict[str, Any] = {"kind": "self_attention", "width": 16, "depth": 1, "heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "block_mim": {"objective": "block_mim", "decoder": DECODER, "loss": "mse", "block_mim": {"blocks": 2}},
    "latent_mim": {"objective": "latent_mim", "decoder": DECODER, "projector": {"width": 16}},
    "sigreg": {
        **{"objective": "latent_mim", "decoder": DECODER, "projector": {"width": 16}},
        "collapse": "sigreg",
    },
    "vicreg": {
        **{"objective": "latent_mim", "decoder": DECODER, "projector": {"width": 16}},
        "collapse": "vicreg",
    },
    "pixel_mim": {"objective": "pixel_mim", "decoder": DECODER, "loss": "norm_mse"},
    "fsq": {"objective": "fsq", "fsq": {"levels": "3x2", "width": 16}},
    "video_mim": {
        **{"objective": "video_mim", "decoder": DECODER, "projector": {"width": 16}},
        "data.name": "clips.py:moving",
    },
    "supervised": {"objective": "supervised"},
    "supervised_changed": {
        "objective": "supervised",
        "supervised": {
            "mixup": 0.8,
            "cutmix": 1.0,
            "smoothing": 0.1,
            "drop_path": 0.2,
            "randaugment": "rand-m9-mstd0.5-inc1",
            "erasing": 0.25,
        },
    },
    "supervised_mim": {
        **{"objective": "supervised_mim", "decoder": DECODER, "projector": {"width": 16}},
        "supervised_mim": {"classify": "both", "drop_path": 0.2, "erasing": 0.25},
    },
    "contrastive_mim": {"objective": "contrastive_mim", "decoder": DECODER, "loss": "norm_mse"},
    "contrastive_crop": {
        **{"objective": "contrastive_mim", "decoder": DECODER, "loss": "norm_mse"},
        "contrastive_mim": {"crop_alpha": 0.6, "crop_every": 1},
    },
    "cmae_huang": {
        **{"objective": "contrastive_mim", "decoder": DECODER, "loss": "norm_mse"},
        "contrastive_mim": {
            **{"position": 0.0, "shift": 0.3, "colour": True, "momentum": 0.9, "feature_depth": 1, "cell": 2},
        },
    },
}
SOURCES = {"video_mim": {"clips.py": MOVING}}
LEARNS_NOTHING = ("raw_pixels",)
SEES_LABELS: tuple[str, ...] = ("supervised", "supervised_changed", "supervised_mim")


def tiny(name: str, **changes: Any) -> Config:
    return Config.read(
        merge(merge(TINY, CONFIGS[name]), {k.replace("__", "."): v for k, v in changes.items()})
        | {"sources": SOURCES.get(name, {})}
    )


def test_every_objective_is_here() -> None:
    """One that is not would be held to nothing."""
    named = {config["objective"] for config in CONFIGS.values()}
    assert named | {*LEARNS_NOTHING} == {*variants.choices("objective")}


def _until_killed(config: Config, folder: TrialFolder) -> None:
    def die(step: int, metrics: dict[str, float]) -> None:
        if step >= 8:
            os.kill(os.getpid(), signal.SIGKILL)

    train(config, folder, report=die)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_killed_trial_ends_with_bit_identical_weights(name: str, tmp_path: Path) -> None:
    """A preempted trial would be another one than its arm's others."""
    config = tiny(name)
    whole, killed = (TrialFolder(tmp_path / part, config.identity) for part in ("whole", "killed"))
    assert train(config, whole).status == "done"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmim.train.loop"])
    process = context.Process(target=_until_killed, args=(config, killed))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert killed.state().status == "running"  # nobody could say goodbye
    assert train(config, killed).status == "done"
    first, second = weights(whole), weights(killed)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert series(whole) == series(killed)


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpointing_changes_no_digit(name: str, tmp_path: Path) -> None:
    """A trial that ran out of memory would go on as another trial than its arm's others."""
    plain, less = tiny(name, optim__epochs=1), tiny(name, optim__epochs=1, run__checkpointing=True)
    assert plain.identity == less.identity
    folders = [TrialFolder(tmp_path / part, plain.identity) for part in ("plain", "less")]
    for config, folder in zip((plain, less), folders, strict=True):
        assert train(config, folder).status == "done"
    first, second = map(weights, folders)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert series(folders[0]) == series(folders[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_processes_share_a_step_without_changing_it(name: str, tmp_path: Path) -> None:
    """The number of GPUs would be another axis of every ablation, one that no table shows."""
    epochs = 2 if name == "contrastive_crop" else 1  # of which the first ends in a look at all images
    journals = []
    for processes in (1, 2):
        config = tiny(name, run__processes=processes, optim__epochs=epochs)
        folder = TrialFolder(tmp_path / str(processes), config.identity)
        assert train(config, folder).status == "done"
        journals.append(series(folder))
    one, two = journals
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_can_count_its_flops(name: str) -> None:
    """Without them `--dry-run` could not say what an ablation costs, nor a table stand at equal compute."""
    found = survey.flops(tiny(name), channels=1, classes=10)
    assert found["step"] > 2 * found["encode"] / 4 > 0
    assert found["width"] == 16


@pytest.mark.parametrize("name", CONFIGS)
def test_labels_are_looked_at_by_those_alone_that_say_so(name: str) -> None:
    """A self-supervised arm that peeked would win every ablation."""
    config = tiny(name, optim__accumulate=1)
    run = Run(config, open_dataset(config.data, config.sources), torch.device("cpu"))
    ((batch,),) = (next(batches(run.dataset.train, config, run.objective, 0, 1)),)
    scheduled = {key: torch.tensor(value) for key, value in run.scheduled().items()}
    losses = []
    for label in (0, 9):
        torch.manual_seed(0)
        own = batch.draw.own
        losses.append(
            run.objective(run.views(batch), torch.full((20,), label), own, scheduled)["loss"].item()
        )
    assert (losses[0] != losses[1]) == (name in SEES_LABELS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trial_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    """What was trained could not be used outside of the sweep."""
    config = tiny(name, optim__epochs=1)
    folder = TrialFolder(tmp_path, config.identity)
    train(config, folder)
    encoder, images = load_trial(folder.path).encoder, torch.randn(3, 1, 8, 8)
    assert encoder.features(images).shape == (3, 16)
    fresh = objectives.build(config, Setup(8, 1, 10))
    assert not torch.equal(fresh.eval().features(images), encoder.features(images))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "fsq"])
def test_an_oblong_image_has_a_token_for_each_patch(name: str) -> None:
    """Frames of videos would be squeezed to the square of training."""
    objective = objectives.build(tiny(name), Setup(8, 1, 10, frames=8)).eval()
    with torch.no_grad():
        one, large = objective.tokens(torch.ones(2, 1, 8, 8)), objective.tokens(torch.ones(2, 1, 12, 20))
    assert (one.shape, large.shape) == ((2, 1 + 16, 16), (2, 1 + 60, 16))
