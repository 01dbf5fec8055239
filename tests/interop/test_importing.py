"""The authors' checkpoints as trials: made once, judged, replayed, and never taken for what lmim trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lmim.config import Config
from lmim.errors import UserError
from lmim.evaluate.__main__ import main as evaluate
from lmim.interop import load_official
from lmim.interop.__main__ import main
from lmim.interop.importing import _recipe, _scale, digest
from lmim.interop.official import read_weights
from lmim.loading import load_trial
from lmim.objectives import Setup, build
from lmim.replay import replay
from lmim.train.loop import train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from tests.data.test_imagefolder import write_images
from tests.test_interop import FIXTURES, read_golden

GOLDEN = read_golden(FIXTURES / "public_infonce.safetensors")
MAE = read_golden(FIXTURES / "mae_pixels.safetensors")


def imported(root: Path, layout: str, state: dict[str, Tensor], model: dict[str, Any]) -> TrialFolder:
    """The trial that the command makes, of images that lie there."""
    images = root / "images"
    if not images.exists():
        write_images(images)
    torch.save({"state_dict" if layout == "latent_mim" else "model": state}, root / f"{layout}.pth")
    where = ["--layout", layout, "--model", json.dumps(model), "--data-path", str(images)]
    before = {*(root / "out" / "trials").glob("*")}
    assert main(["import", str(root / f"{layout}.pth"), *where, "--out", str(root / "out")]) == 0
    [made] = {*(root / "out" / "trials").glob("*")} - before
    return TrialFolder(made.parent, made.name)


def test_it_is_a_trial_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reproduces a paper would have its encoder in none of their tables."""
    folder = imported(tmp_path, "latent_mim", GOLDEN.under("state."), GOLDEN.config)
    config = folder.config()
    assert folder.state().status == "done"
    assert (config.objective, config.data.name, config.optim.epochs) == ("latent_mim", "imagefolder", 0)
    theirs, _ = load_official(GOLDEN.under("state."), GOLDEN.config)
    images = GOLDEN.tensors["input.full_images"]
    torch.testing.assert_close(load_trial(folder.path).encoder.features(images), theirs.features(images))
    asked = read_evaluations(["nn"])
    train(config, folder, asked)
    [result] = folder.results()
    assert result.error == ""
    assert replay(folder).difference == ""
    capsys.readouterr()
    assert evaluate([str(folder.path), "--protocols", "nn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == result.metrics


def test_without_arguments_the_model_is_the_scales(tmp_path: Path) -> None:
    """`import official.pth --scale paper` would want all of the recipe typed again."""
    ours = build(_recipe(_scale("demo")), Setup(20, 1, 36)).eval()
    renamed = {"target.encoder.": "target_encoder.", ".embed.": ".embed.proj.", ".projector.": ".head."}
    state = {}
    for name, weight in ours.state_dict().items():
        theirs = name
        for part, their in renamed.items():
            theirs = theirs if name.startswith("decoder.") else theirs.replace(part, their)
        state[theirs] = weight
    torch.save(state, tmp_path / "official.pth")
    where = ["--layout", "latent_mim", "--scale", "demo", "--out", str(tmp_path / "out")]
    assert main(["import", str(tmp_path / "official.pth"), *where]) == 0
    [made] = (tmp_path / "out" / "trials").iterdir()
    images = torch.randn(3, 1, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(load_trial(made).encoder.features(images), ours.features(images))


def test_other_weights_are_another_trial(tmp_path: Path) -> None:
    """Figures of one checkpoint would stand under another's name, or under that of what was trained here."""
    state = GOLDEN.under("state.")
    first = imported(tmp_path, "latent_mim", state, GOLDEN.config)
    changed = {name: weight.clone() for name, weight in state.items()}
    changed["encoder.embed.proj.bias"][0] += 1e-3
    second = imported(tmp_path, "latent_mim", changed, GOLDEN.config)
    assert first.id != second.id
    plain = Config.read(first.config().model_dump() | {"imported": ""})
    assert plain.identity not in (first.id, second.id)
    save_file({name: weight.contiguous() for name, weight in state.items()}, tmp_path / "same.safetensors")
    assert digest(read_weights(tmp_path / "same.safetensors")) == first.config().imported


def test_a_lost_checkpoint_is_not_judged_as_fresh_weights(tmp_path: Path) -> None:
    """A random encoder would stand in the table as the authors'."""
    folder = imported(tmp_path, "mae", MAE.under("state."), MAE.config)
    assert folder.config().objective == "pixel_mim"
    folder.checkpoint.unlink()
    with pytest.raises(UserError, match="is gone, so that nn cannot be judged"):
        train(folder.config(), folder, read_evaluations(["nn"]))
    assert "checkpoint is gone" in replay(folder).difference


def test_without_its_data_it_is_judged_on_others_as_its_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose weights they are is known, and by what they normalised: they need not have ImageNet here."""
    torch.save(MAE.under("state."), tmp_path / "mae.pth")
    model = ["--model", json.dumps(MAE.config)]
    assert main(["import", str(tmp_path / "mae.pth"), *model, "--out", str(tmp_path / "out")]) == 0
    [made] = (tmp_path / "out" / "trials").iterdir()
    write_images(tmp_path / "images")
    capsys.readouterr()
    said = []
    for given in ([str(made)], [str(tmp_path / "mae.pth"), *model]):
        where = ["--data", "imagefolder", "--data-path", str(tmp_path / "images")]
        assert evaluate([*given, *where, "--protocols", "nn", "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out)["metrics"])
    assert said[0] == said[1]


def test_of_an_encoder_alone_it_says_what_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most of MAE's released files have no decoder, which judging does not need."""
    decoder = ("decoder_", "mask_token")
    state = {name: one for name, one in MAE.under("state.").items() if not name.startswith(decoder)}
    folder = imported(tmp_path, "mae", state, MAE.config)
    assert f"{tmp_path / 'mae.pth'}: the encoder alone" in capsys.readouterr().err
    assert evaluate([str(folder.path), "--protocols", "nn"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "papr"], "--scale papr: expected one of demo, gpu, paper; did you mean paper?"),
        (
            ["--scale", "demo"],
            "--scale demo: expected data of 3 channels, as the weights have seen, found glyphs of 1",
        ),
        (["--layout", "mae", "--model", "{}"], "the checkpoint has no patch_embed.proj.weight"),
        (["--model", "[1]"], "--model: expected a mapping"),
        (["--model", "{embed: 3}"], "official config: unknown keys embed; known:"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback tells nobody what to change."""
    torch.save(GOLDEN.under("state."), tmp_path / "a.pth")
    given = ["--layout", "latent_mim", "--model", json.dumps(GOLDEN.config), "--out", str(tmp_path / "out")]
    assert main(["import", str(tmp_path / "a.pth"), *given, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {said}")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
