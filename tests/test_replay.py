"""Code may change: what changes no figure keeps every result, what changes one is caught, whoever did it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from lmim.axes.loss import LOSSES, mse
from lmim.config import Config, merge
from lmim.errors import UserError
from lmim.replay import replay
from lmim.train.loop import train
from lmim.trial.ending import Collapse, Ending
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parent.parent
CONFIG = {
    "data": {"name": "digits", "image_size": 8, "train_images": 512},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 3, "batch_size": 32, "base_lr": 1e-2},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 5},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two seeds of one arm, and another arm."""
    out = tmp_path_factory.mktemp("trained")
    for change in ({"seed": 0}, {"seed": 1}, {"seed": 0, "loss": "mse", "collapse": "joint"}):
        config = Config.read(merge(CONFIG, change))
        # two views, whose files do not lie in the order in which they are judged
        asked = read_evaluations(["nn", "knn", "linear", {"linear": {"layer": 1}}, {"knn": {"layer": 1}}])
        train(config, TrialFolder(out / "trials", config.identity), asked)
    return out


def replayed(out: Path, tmp_path: Path, change: Callable[[Path], None]) -> tuple[int, str]:
    """What `python -m lmim.replay` says when the package is changed so."""
    shutil.copytree(REPOSITORY / "lmim", tmp_path / "lmim")
    change(tmp_path / "lmim")
    done = subprocess.run(
        [sys.executable, "-m", "lmim.replay", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """A change of one file."""

    def change(package: Path) -> None:
        text = (package / file).read_text()
        assert old in text, f"{file} has no {old!r} any more: adapt this test"
        (package / file).write_text(text.replace(old, new))

    return change


L1 = """def l1(prediction: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(prediction, target)


LOSSES: dict"""
REFACTORED = """error = F.mse_loss
    return error(prediction, target)"""


def harmless(package: Path) -> None:
    """A comment, a refactoring, a new loss, a new key, a new objective, another protocol."""
    loss = "axes/loss.py"
    edit("axes/mask.py", "import torch\n", "import torch  # a comment\n")(package)
    edit(loss, "return F.mse_loss(prediction, target)", REFACTORED)(package)
    edit(loss, "LOSSES: dict", L1)(package)
    edit(loss, '    "mse": mse,', '    "mse": mse,\n    "l1": l1,')(package)
    edit(loss, "tau: Positive = 0.2\n", "tau: Positive = 0.2, margin: NonNegative = 0.0\n")(package)
    edit(loss, "logits = p @", "logits = -margin + p @")(package)
    edit(loss, "import Positive", "import NonNegative, Positive")(package)
    shutil.copy(package / "objectives" / "raw_pixels.py", package / "objectives" / "other_pixels.py")
    shutil.copy(package / "evaluate" / "nn.py", package / "evaluate" / "other.py")


def test_what_changes_no_figure_keeps_every_result(trained: Path, tmp_path: Path) -> None:
    """Else each comment, and each loss that a user adds, would cost all that was trained before."""
    code, said = replayed(trained, tmp_path, harmless)
    assert code == 0, said
    assert said.count("the same figures") == 2, "one of each arm"
    folders = [TrialFolder(trained / "trials", path.name) for path in (trained / "trials").iterdir()]
    found = [folder.replayed() for folder in folders]
    assert len(found) == 3
    assert all(one is not None and one.difference == "" for one in found), (
        "it speaks for the arm's other seed"
    )


def test_a_trial_that_was_ended_early_is_replayed_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what a rule has ended would be trained again after each change, or count unseen."""
    change = {"loss": "mse", "collapse": "joint", "mask.similarity": 0.0, "optim.base_lr": 0.05}
    config = Config.read(merge(CONFIG, change | {"optim.epochs": 30}))
    folder = TrialFolder(tmp_path / "trials", config.identity)
    state = train(config, folder, read_evaluations(), ending=Ending(collapse=Collapse(patience=2)))
    assert 0 < state.step < state.steps
    assert state.ended
    assert replay(folder).difference == ""
    monkeypatch.setitem(LOSSES, "mse", lambda prediction, target: 1.001 * mse(prediction, target))
    assert "train/loss is " in replay(folder).difference


def test_running_out_of_memory_is_no_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is full would put every result out of the table."""
    config = Config.read(merge(CONFIG, {"loss": "mse", "collapse": "joint", "optim.epochs": 1}))
    folder = TrialFolder(tmp_path / "trials", config.identity)
    train(config, folder, read_evaluations())

    def full(prediction: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(LOSSES, "mse", full)
    with pytest.raises(UserError, match="out of memory while it was replayed"):
        replay(folder)
    assert folder.replayed() is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit("axes/loss.py", "* (2 * tau)", "* (2 * tau) * 1.001"), "step 5: train/loss is"),
        (
            edit("schedules.py", "math.pi * progress", "math.pi * progress**1.001"),
            "train/lr is|train/similarity_aim is",
        ),
        (
            edit("axes/collapse.py", "momentum_end: Fraction = 1.0", "momentum_end: Fraction = 0.999"),
            "neutral value",
        ),
        (edit("encoder.py", "std=0.02", "std=0.021"), "step 0: collapse/"),
        (
            edit("axes/mask.py", "noise.argsort(dim=1)", "noise.argsort(dim=1, descending=True)"),
            "step 5: train/",
        ),
        (edit("evaluate/knn.py", "TEMPERATURE = 0.07", "TEMPERATURE = 0.7"), "eval/knn_top1 is"),
        (edit("evaluate/nn.py", "similarity.argmax", "similarity.argmin"), "eval/nn_top1 is"),
        (edit("evaluate/knn.py", "k: PositiveInt = 20", "k: PositiveInt = 19"), "knn: its settings"),
        (edit("train/optimiser.py", '"embed"', '"embedded"'), "step [0-9]+: train/|neutral"),
    ],
    ids=[
        *("scaled loss", "schedule", "default", "initialisation", "masking", "protocol", "view"),
        *("protocol's default", "weight decay"),
    ],
)
def test_what_changes_a_figure_is_caught(
    trained: Path, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    """Though nobody raised any version: else a table would mix what two programs made."""
    code, said = replayed(trained, tmp_path, change)
    assert code == 1, said
    assert re.search(f"differs: .*({expected})", said), said
    folders = [TrialFolder(trained / "trials", path.name) for path in (trained / "trials").iterdir()]
    found = [one for folder in folders if (one := folder.replayed()) and (one.difference or one.judged)]
    # a protocol that has changed says nothing of what was trained
    assert all(bool(one.judged) == (expected.startswith(("eval", "knn"))) for one in found)
    assert found
