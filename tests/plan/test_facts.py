"""Facts: what a plan knows of the data and the models, asked once, and asked again when they change."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lmim.config import Config
from lmim.data import open_dataset
from lmim.errors import UserError
from lmim.plan import cost, facts
from lmim.plan.ablation import Sweep
from tests.data.clips import MOVING

if TYPE_CHECKING:
    from tests.plan.conftest import Folder

AXES = "axes: {loss: [mse, cosine]}\n"
MINE = """
import numpy as np
from lmim.data.splits import from_arrays

def dots(data, *, count: int = 40):
    images = np.zeros((count, 1, 8, 8), np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(count) % 4}
    arrays |= {"test_images": images[:8], "test_labels": np.arange(8) % 4}
    return from_arrays(data, f"dots {count}", arrays, classes=4, flips=False)
"""


def write_images(root: Path, level: int = 40) -> Path:
    """20 images of two classes to train on, 4 to test."""
    for split, count in (("train", 10), ("val", 2)):
        for name in ("dark", "light"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((16, 16, 3), level + number, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def settings(path: Path) -> list[str]:
    return ["data.name=imagefolder", f"data.path={path}"]


def data_at(path: Path) -> facts.Data:
    tree = {"data": {"name": "imagefolder", "path": str(path)}, "objective": "raw_pixels"}
    return facts.data_of(Config.read(tree))


def forget() -> None:
    """As a new process begins."""
    facts._data.cache_clear()
    facts._known.clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the survey is asked from here on."""
    questions: list[Any] = []
    survey = facts._survey

    def ask(new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        questions.extend(new)
        return survey(new)

    monkeypatch.setattr(facts, "_survey", ask)
    return questions


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images."""
    return write_images(tmp_path_factory.mktemp("mine") / "images")


def ids(sweep: Sweep) -> list[str]:
    return [trial.id for trial in sweep.trials]


def test_a_folder_that_moves_is_the_same_data_and_another_is_not(
    folder: "Folder", images: Path, tmp_path: Path
) -> None:
    """Else a disk's new name would train everything again, or other images pass for the old ones."""
    sweep = folder.load(AXES, sets=settings(images))
    found = data_at(images)
    opened = open_dataset(sweep.trials[0].config.data)
    assert found == facts.Data(opened.version, 18, 2, 4, 3, 2)
    assert sweep.trials[0].config.data.version == found.version
    moved = shutil.copytree(images, tmp_path / "moved")
    assert ids(folder.load(AXES, sets=settings(moved))) == ids(sweep)
    other = write_images(tmp_path / "other", level=90)
    assert not set(ids(folder.load(AXES, sets=settings(other)))) & set(ids(sweep))
    assert data_at(other) == facts.Data(data_at(other).version, 18, 2, 4, 3, 2)


def test_an_answer_is_kept_until_a_file_changes(images: Path, tmp_path: Path, asked: list[Any]) -> None:
    """Else every plan would open the data anew, or go on with what they no longer are."""
    real = shutil.copytree(images, tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("train", "val"):  # as ImageNet often lies
        (linked / name).symlink_to(real / name)
    (linked / "nowhere").symlink_to(tmp_path / "none")
    before = data_at(linked)
    assert len(asked) == 1
    forget()
    assert data_at(linked) == before
    assert len(asked) == 1
    shutil.copy(real / "train" / "dark" / "0.png", real / "train" / "dark" / "new.png")
    forget()
    after = data_at(linked)
    assert len(asked) == 2
    assert (before.train, after.train) == (18, 19)
    assert before.version != after.version


def test_a_folder_of_ones_own_is_priced_by_its_own_files(folder: "Folder", images: Path) -> None:
    """Else a user's thousand images would be priced as ImageNet's million."""
    sweep = folder.load(AXES, sets=[*settings(images), "optim.batch_size=4"])
    config = sweep.trials[0].config
    (flops,) = facts.flops_of([config])
    work = cost.works([config])[config.arm]
    assert work.epoch == pytest.approx(16 * flops.step + 512 * flops.encode)
    assert work.evaluation == cost.evaluation(flops, 18, 4)


def test_models_that_are_the_same_are_counted_once(folder: "Folder", asked: list[Any]) -> None:
    """Else a sweep over the learning rate would build its one model a hundred times to be priced."""
    axes = "axes: {encoder.depth: [2, 3], optim.base_lr: [1.0e-4, 1.1e-4], optim.epochs: [2, 3]}\n"
    trials = folder.load(axes, sets=["data.name=digits"], seeds=[0, 1]).trials
    del asked[:]
    found = facts.flops_of([trial.config for trial in trials])
    assert len(asked) == len(set(found)) == 2
    forget()
    assert facts.flops_of([trial.config for trial in trials]) == found
    assert not [question for question in asked[2:] if question["about"] == "flops"]


def test_data_that_are_not_here_are_planned_and_priced(folder: "Folder", asked: list[Any]) -> None:
    """Else nobody could plan for a cluster from a laptop, or a sweep would start without its data."""
    missing = folder.root / "none"
    sweep = folder.load(AXES, sets=[*settings(missing), "run.device=cuda"])
    assert len(sweep.trials) == 2
    config = sweep.trials[0].config
    found = facts.data_of(config)
    assert found.error.startswith(f"data.path: {missing} is not a folder")
    assert (found.version, found.train) == (None, facts.ABSENT.train)
    price = cost.estimate([cost.Missing(config, 2)], [], cost.Machine(cores=1, gpus=0), [])
    assert price is not None
    assert price.gpu_hours > 0
    assert price.basis.endswith("taking data that are not here for ImageNet-1k")
    with pytest.raises(UserError, match=f"^--set data.path={missing}: data.path: {missing} is not a folder"):
        sweep.check_data(sweep.trials)
    # an error is not remembered: the folder may be mounted now
    write_images(missing)
    forget()
    sweep = folder.load(AXES, sets=[*settings(missing), "run.device=cuda"])
    assert (facts.data_of(sweep.trials[0].config).train, facts.data_of(sweep.trials[0].config).error) == (
        18,
        "",
    )
    sweep.check_data(sweep.trials)


def test_a_dataset_of_ones_own_is_asked_what_it_is(folder: "Folder") -> None:
    """Else whoever brings data in a file of their own would have to tell the plan their size as well."""
    folder.write("mine.py", MINE)
    sweep = folder.load("axes: {data.count: [40, 80]}\n", sets=["data.name=mine.py:dots"])
    found = [facts.data_of(trial.config) for trial in sweep.trials]
    assert [(one.train, one.val, one.test, one.classes, one.error) for one in found] == [
        (36, 4, 8, 4, ""),
        (72, 8, 8, 4, ""),
    ]
    folder.write("mine.py", MINE.replace("return from", "raise OSError('gone')\n    return from"))
    broken = folder.load("axes: {data.count: [40]}\n", sets=["data.name=mine.py:dots"])
    assert "gone" in facts.data_of(broken.trials[0].config).error


def test_images_that_no_trial_sees_are_said(
    folder: "Folder", tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else a study of what is left of a folder reads as one of the folder."""
    root = write_images(tmp_path / "spoilt")
    spoilt = [root / "train" / "dark" / f"{number}.png" for number in (1, 4)]
    for file in spoilt:
        file.write_bytes(b"")
    sweep = folder.load(AXES, sets=settings(root))
    line = f"{root}: 2 files cannot be read and left out: train/dark/1.png, train/dark/4.png"
    assert sweep.notes == (line,)
    assert "UserWarning" not in capfd.readouterr().err


def test_a_folder_without_splits_plans(folder: "Folder", images: Path) -> None:
    """Else the layout that most people have fails trial by trial, after the start."""
    found = data_at(images / "train")
    assert (found.train, found.val, found.test, found.classes, found.error) == (15, 1, 4, 2, "")
    sweep = folder.load(AXES, sets=settings(images / "train"))
    sweep.check_data(sweep.trials)
    with pytest.raises(UserError, match=r"data.path: .*dark: no class folders in it"):
        (bad := folder.load(AXES, sets=settings(images / "train" / "dark"))).check_data(bad.trials)


FILM = """
import torch
from torch import nn
from lmim.objectives import Draw, Objective
from lmim.variants import PositiveInt

class Film(Objective):
    def __init__(self, setup, *, encoder, frames: PositiveInt = 4):
        super().__init__()
        self.setup, self.frames, self.crop_side = setup, frames, setup.side
        self.level = nn.Linear(1, 1)

    def draw(self, aspect, stream):
        views = self.setup.views(1, aspect, stream).each(lambda part: part.repeat_interleave(self.frames, 1))
        return Draw(views.boxes, views.mirrored, {}, torch.arange(self.frames).repeat(len(aspect), 1))

    def forward(self, views, labels, own, scheduled):
        assert views.shape[1] == self.frames
        return {"loss": self.level(views.mean((2, 3, 4))[..., None]).square().mean()}

    def patch_features(self, images):
        return images.flatten(1)[:, None]
"""


def test_images_under_an_objective_of_clips_are_refused(folder: "Folder") -> None:
    """Each trial would fail by itself, after the start, in the middle of a step."""
    folder.write("film.py", FILM)
    folder.write("clips.py", MOVING)
    wrong = folder.error("objective: [film.py:Film]\n".join(["axes:\n  ", ""]), sets=["data.name=digits"])
    assert wrong == (
        "--set data.name=digits: data.name: impossible combination: data.name digits is of images: objective "
        "film.py:Film needs clips of Film.frames 4 or more"
    )
    axes = "axes:\n  objective: [film.py:Film]\n  data.name: ['clips.py:moving']\n"
    for line in ("  data.length: [8, 3]\n", "  Film.frames: [4, 9]\n"):
        wrong = folder.error(axes + line)
        assert wrong.startswith(("sweep.yaml:5: data.name: impossible", "sweep.yaml:6: Film.frames: imposs"))
        assert "is of clips of" in wrong
    scale = "axes:\n  objective: [film.py:Film]\n"
    assert folder.error(scale).startswith("sweep.yaml:4: objective: impossible combination: data.name glyphs")
    (trial,) = folder.load(axes).trials
    assert facts.data_of(trial.config).frames == 8
    (flops,) = facts.flops_of([trial.config])
    assert flops.step > 0


def test_an_objective_of_images_is_told_that_it_sees_middle_frames(folder: "Folder") -> None:
    """Whoever trains it on clips would take it for one that saw them."""
    folder.write("clips.py", MOVING)
    sweep = folder.load("axes: {loss: [mse]}\nbaselines: [raw_pixels]\n", sets=["data.name=clips.py:moving"])
    assert sweep.notes == (
        "--set data.name=clips.py:moving: data.name: of clips.py:moving's clips of 8 frames latent_mim sees "
        "the middle ones alone",
    )
    assert folder.load(AXES, sets=["data.name=digits"]).notes == ()
