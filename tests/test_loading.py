"""A trial back from its folder."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import lmim
from lmim.config import Config
from lmim.data import open_dataset
from lmim.data.augment import normalise
from lmim.data.imagefolder import IMAGENET_MEAN, IMAGENET_STD
from lmim.errors import UserError
from lmim.loading import LoadedTrial
from lmim.objectives import Setup, build
from lmim.train.loop import train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from tests.train.conftest import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """A trial of an epoch, judged."""
    config = Config.read(TINY | {"optim": TINY["optim"] | {"epochs": 1}})
    made = TrialFolder(tmp_path_factory.mktemp("out") / "trials", config.identity)
    train(config, made, read_evaluations(["knn"]))
    return made


def test_a_trial_comes_back_as_it_was_judged(folder: TrialFolder) -> None:
    """Else who works on with an encoder has another one than the table speaks of."""
    trial = lmim.load_trial(str(folder.path))
    assert trial.config == folder.config()
    (judged,) = folder.results()
    assert trial.metrics["eval/knn_top1"] == judged.metrics["eval/knn_top1"]
    assert trial.metrics["system/seconds"] == folder.state().metrics["system/seconds"]
    assert not trial.encoder.training
    saved = torch.load(folder.checkpoint, weights_only=True)["objective"]
    assert all(torch.equal(value, saved[name]) for name, value in trial.encoder.state_dict().items())
    data = open_dataset(trial.config.data)
    images, _ = data.test.read(torch.arange(3), 8)
    ready = normalise(images / 255, torch.tensor(data.mean), torch.tensor(data.std))
    assert trial.encoder.features(ready).shape == (3, 16)


def test_a_trial_says_what_it_ran_on(folder: TrialFolder) -> None:
    """Else a figure that another machine does not give again cannot be traced to its processor or torch."""
    state = folder.state()
    assert (state.python, state.torch) == (platform.python_version(), version("torch"))
    assert (state.device or "cpu") != "cpu", "its model, not its kind"


def test_what_cannot_be_loaded_is_named(folder: TrialFolder, tmp_path: Path) -> None:
    """Else a wrong path or a checkpoint that is half there ends in a traceback of torch's."""
    with pytest.raises(UserError, match=r"config\.json: no such trial"):
        lmim.load_trial(tmp_path / "nowhere")
    other = TrialFolder(tmp_path, folder.id)
    other.create(folder.config())
    with pytest.raises(UserError, match="no checkpoint yet; the trial is new"):
        lmim.load_trial(other.path)
    other.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be read"):
        lmim.load_trial(other.path)
    torch.save({"objective": {"x": torch.zeros(1)}}, other.checkpoint)
    with pytest.raises(UserError, match="does not fit"):
        lmim.load_trial(other.path)


def test_the_front_door_is_light_and_says_what_it_gives() -> None:
    """`import lmim` must not wait for torch, and a user who looks into it must find something."""
    code = (
        "import sys, lmim, lmim.analysis; assert {'load_trial', '__version__'} <= set(dir(lmim))\n"
        "assert callable(lmim.analysis.load) and not {'torch', 'pandas', 'mlflow', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_statistics_of_data_that_are_gone_are_not_guessed(tmp_path: Path) -> None:
    """An exported model would be shown images of other brightness than it was trained on."""

    def statistics(name: str, **more: str) -> object:
        data = {"name": name, "path": str(tmp_path / "none"), "image_size": 32}
        tree = {"objective": "raw_pixels", "data": data, **more}
        config = Config.read(tree)
        return LoadedTrial(config, build(config, Setup(32, 3, 10)), {}).statistics()

    ours = (IMAGENET_MEAN, IMAGENET_STD)
    assert statistics("imagefolder") == statistics("cifar10", imported="theirs.pth") == ours
    with pytest.raises(UserError, match="none"):
        statistics("cifar10")
