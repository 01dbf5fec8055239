"""A trial out: timm and the hub read the folder, features are the same, the card's figures the trial's."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.optim._optim_factory import create_optimizer_v2

from lmim.config import Config
from lmim.data import open_dataset
from lmim.data.augment import crop, normalise
from lmim.errors import UserError
from lmim.interop.__main__ import main
from lmim.loading import load_trial
from lmim.tracking import runs_of
from lmim.train.loop import train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from tests.sweep.running import arguments, run, write
from tests.train.conftest import TINY


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[TrialFolder]:
    """Two seeds of an arm, judged."""
    root = tmp_path_factory.mktemp("results") / "trials"
    made = []
    for seed in (0, 1):
        config = Config.read(TINY | {"seed": seed})
        made.append(TrialFolder(root, config.identity))
        train(config, made[-1], read_evaluations(["nn", "knn"]))
    return made


def images(config: Config, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Test images as the encoder is given them, and their classes."""
    data, side = open_dataset(config.data), config.data.image_size
    rows = torch.arange(count)
    pixels, boxes = data.test.read(rows, side)
    return normalise(
        crop(pixels, boxes, side), torch.tensor(data.mean), torch.tensor(data.std)
    ), data.test.labels[rows]


def test_timm_reads_it_strictly_and_gives_the_same_features(
    folders: list[TrialFolder], tmp_path: Path
) -> None:
    """Whoever goes on from it would go on from something else than what the table shows."""
    assert main(["export", str(folders[0].path), "--to", "timm", "--out", str(tmp_path / "model")]) == 0
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    trial = load_trial(folders[0].path)
    data = open_dataset(trial.config.data)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ([*data.mean], [*data.std])
    assert tuple(model.pretrained_cfg["input_size"]) == (1, 8, 8)
    some, _ = images(trial.config)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(some), trial.encoder.tokens(some, norm=True), rtol=1e-5, atol=1e-5
        )


def test_timms_own_code_fine_tunes_it(folders: list[TrialFolder], tmp_path: Path) -> None:
    """An export that nothing can be done with is none."""
    assert main(["export", str(folders[0].path), "--to", "timm", "--out", str(tmp_path / "model")]) == 0
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, num_classes=10)
    some, labels = images(folders[0].config(), 128)
    optimiser = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.75)
    losses = []
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(some), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_card_has_the_trials_figures_and_its_arms(folders: list[TrialFolder], tmp_path: Path) -> None:
    """A model would travel without what was measured of it, or with another's figures."""
    assert main(["export", str(folders[0].path), "--to", "hf", "--out", str(tmp_path / "model")]) == 0
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "timm"
    own, other = (load_trial(folder.path).metrics["eval/knn_top1"] for folder in folders)
    [row] = re.findall(r"\| eval/knn_top1 \| (\S+) \| (\S+) ± \S+ \| 2 \|", card.text)
    assert row == (f"{own:.4g}", f"{(own + other) / 2:.4g}")
    state = folders[0].state()
    for told in (
        folders[0].id,
        state.commit,
        state.code,
        "digits",
        "seed 0",
        "no run found",
        "loss.tau: 0.2",
    ):
        assert str(told) in card.text
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model.num_classes == 0


def test_the_card_names_mlflows_run(tmp_path: Path) -> None:
    """Whoever gets the model could not find the run that it is of."""
    file = write(tmp_path, arms="[mse]", seeds="[0]")
    run(arguments(file, "--serial"))
    out = tmp_path / "out"
    [folder] = (out / "trials").iterdir()
    assert main(["export", str(folder), "--to", "hf", "--out", str(tmp_path / "model")]) == 0
    [said] = runs_of(TrialFolder(folder.parent, folder.name))
    assert re.fullmatch(r"run [0-9a-f]{32} of experiment \d+", said)
    assert said in ModelCard.load(tmp_path / "model" / "README.md").text


def test_bad_input_is_one_line(
    folders: list[TrialFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export would fail in timm's words, or lay itself over what is there."""
    pixels = Config.read({key: TINY[key] for key in ("data", "run")} | {"objective": "raw_pixels"})
    bare = TrialFolder(tmp_path / "trials", pixels.identity)
    train(pixels, bare)
    for path, said in ((bare.path, "RawPixels: has no encoder"), (tmp_path / "none", "no such trial")):
        assert main(["export", str(path), "--to", "timm", "--out", str(tmp_path / "model")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "model").exists()
    assert main(["export", str(folders[0].path), "--to", "timm", "--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such trial"):
        load_trial(tmp_path / "none")
