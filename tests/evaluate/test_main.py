"""`python -m lmim.evaluate`: any encoder, from any place, by any protocol."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from lmim.config import Config
from lmim.data import open_dataset
from lmim.data.augment import crop, normalise
from lmim.errors import UserError
from lmim.evaluate import image_features, patch_features
from lmim.evaluate.__main__ import IMAGENET, main
from lmim.evaluate.nn import nn_top1
from lmim.interop import TimmEncoder, load_mae, load_official
from lmim.plan.record import Record, RecordedTrial
from lmim.train.loop import train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from tests.data.test_imagefolder import write_images
from tests.sweep import running
from tests.test_interop import FIXTURES, Golden, read_golden
from tests.train.conftest import TINY

LATENT = read_golden(FIXTURES / "public_infonce.safetensors")
MAE = read_golden(FIXTURES / "mae_pixels.safetensors")
COLOURS = """
from dataclasses import replace
from lmim.data.digits import digits

class Three:
    def __init__(self, split): self.split, self.labels = split, split.labels
    def __len__(self): return len(self.split)
    def __getattr__(self, name): return getattr(self.split, name)
    def read(self, indices, side):
        images, boxes = self.split.read(indices, side)
        return images.expand(-1, 3, -1, -1), boxes

def colours(data):
    found = digits(data)
    parts = {name: Three(getattr(found, name)) for name in ("train", "val", "test")}
    return replace(found, channels=3, mean=(0.1,) * 3, std=(2.0,) * 3, **parts)
"""
"""The digits in three channels, with statistics of their own."""
TINY_VIT = ["timm:test_vit", "--data", "digits", "--image-size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """A trial of an epoch, judged."""
    config = Config.read(TINY | {"optim": TINY["optim"] | {"epochs": 1}})
    made = TrialFolder(tmp_path_factory.mktemp("out") / "trials", config.identity)
    train(config, made, read_evaluations(["knn"]))
    return made


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    """What the command prints as JSON."""
    assert main([*arguments, "--json"]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
    return found


def test_a_trial_is_judged_as_its_sweep_judged_it(
    folder: TrialFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another figure for the same encoder would make one of the two a lie."""
    (judged,) = folder.results()
    found = figures(capsys, str(folder.path), "--protocols", "knn, {nn: {features: cls, norm: true}}")
    assert found["eval/knn_top1"] == judged.metrics["eval/knn_top1"]
    assert set(found) == {"eval/knn_top1", "eval/nn_top1.features-cls.norm-true"}


def test_a_trials_own_data_are_all_of_what_it_has_seen(
    folder: TrialFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named, they were others: with all training images, and nothing to fine-tune on."""
    (judged,) = (one for one in folder.results() if one.protocol == "knn")
    asked = "knn, {finetune: {epochs: 1, batch_size: 64, recipe: plain}}"
    found = figures(capsys, str(folder.path), "--data", "digits", "--protocols", asked)
    assert found["eval/knn_top1"] == judged.metrics["eval/knn_top1"]
    assert len(found) == 2


def test_a_sweeps_own_trial_gets_the_sweeps_figures(
    folder: TrialFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row is compared with rows that learned from other images; and one protocol would end the command."""
    (judged,) = (one for one in folder.results() if one.protocol == "knn")
    finetune = {"finetune": {"epochs": 1, "batch_size": 64, "recipe": "plain"}}
    trial = RecordedTrial(id=folder.id, arm="a", seed=0, data_version=folder.config().data.version or "")
    plan = Record(
        **{"name": "own", "scale": "demo", "question": "?", "metric": "knn_top1", "design": "ablate"},
        **{"seeds": (0,), "claims": (), "arms": (), "trials": (trial,)},
        evaluations=read_evaluations(["knn", {"nn": {"layer": 99}}, finetune]),
    )
    out = folder.root.parent
    plan.file(out).parent.mkdir(parents=True)
    plan.file(out).write_text(plan.model_dump_json())
    row = ["--sweep", "own", "--out", str(out)]
    found = figures(capsys, str(folder.path), *row)
    assert found["eval/knn_top1"] == judged.metrics["eval/knn_top1"]
    assert len(found) == 2
    assert main([*TINY_VIT[:1], *TINY_VIT[3:], *row, "--json"]) == 0
    printed = capsys.readouterr()
    assert set(json.loads(printed.out)["metrics"]) == {"eval/knn_top1"}
    assert "finetune: left out: timm:test_vit has no backbone" in printed.err
    assert "nn: left out: layer: expected at most" in printed.err


def test_a_trial_is_fine_tuned_by_the_command(
    folder: TrialFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the table has could not be had of a trial alone; another's encoder has no recipe to go on by."""
    asked = "{finetune: {epochs: 1, batch_size: 64, recipe: plain}}"
    [figure] = figures(capsys, str(folder.path), "--protocols", asked).values()
    assert 0 <= figure <= 100
    evaluations = read_evaluations([{"finetune": {"epochs": 1, "batch_size": 64, "recipe": "plain"}}])
    train(folder.config(), folder, evaluations)
    [judged] = (one for one in folder.results() if one.protocol == "finetune")
    assert [*judged.metrics.values()] == [figure]
    assert main([*TINY_VIT, "--protocols", "finetune"]) == 2
    assert "finetune: timm:test_vit has no backbone" in capsys.readouterr().err


def test_a_model_of_timms_is_judged_by_what_its_own_head_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of another layer, or pixels normalised otherwise, would speak ill of others' encoders."""
    torch.manual_seed(3)
    model = timm.create_model("test_vit", img_size=32, in_chans=1, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    weights = ["--weights", str(tmp_path / "weights.safetensors")]
    found = figures(capsys, *TINY_VIT, *weights, "--protocols", "nn")
    digits = open_dataset(Config.read({"data": {"name": "digits", "image_size": 32}}).data)
    images, boxes = digits.test.read(torch.arange(len(digits.test)), 32)
    pixels = normalise(crop(images, boxes, 32), torch.tensor(digits.mean), torch.tensor(digits.std))
    with torch.no_grad():
        expected = nn_top1(model(pixels), digits.test.labels)
    assert found["eval/nn_top1"] == pytest.approx(expected, abs=0.6)  # an image whose neighbours tie
    assert figures(capsys, *TINY_VIT, "--protocols", "nn") != found, "the weights were not read"


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_weights_of_timms_own_model_are_taken_without_its_classifier(name: str, tmp_path: Path) -> None:
    """Where a classifier is not called head, or a norm lies in it, timm's own weights were refused."""
    file, images = tmp_path / "weights.safetensors", torch.randn(2, 3, 64, 64)
    how: dict[str, Any] = {"img_size": 64} if name == "test_vit" else {}
    torch.manual_seed(3)
    for classes in (1000, 0):
        theirs: Any = timm.create_model(name, num_classes=classes, **how).eval()
        save_file(theirs.state_dict(), file)
        encoder = TimmEncoder.create(name, 64, 3, str(file)).eval()
        with torch.no_grad():
            expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
            torch.testing.assert_close(encoder.features(images), expected)
    save_file(theirs.state_dict() | {"surplus.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=f"not weights of timm:{name} at 64 px: .*surplus.weight"):
        TimmEncoder.create(name, 64, 3, str(file))


def test_a_timm_models_tokens_are_those_of_the_block_asked_for() -> None:
    """A layer off by one would be compared with others' figures of the layer that was meant."""
    encoder = TimmEncoder.create("test_vit", 32, 3).eval()
    images = torch.randn(2, 3, 32, 32)
    depth = len(encoder.model.blocks)
    whole = encoder.model.forward_features(images)
    torch.testing.assert_close(encoder.tokens(images, norm=True), whole)
    torch.testing.assert_close(encoder.tokens(images, depth), encoder.tokens(images))
    torch.testing.assert_close(encoder.tokens(images, 1 - depth), encoder.tokens(images, 1))
    torch.testing.assert_close(encoder.patch_features(images, 1), encoder.tokens(images, 1)[:, 1:])


@pytest.mark.parametrize(("golden", "wrapper"), [(LATENT, "state_dict"), (MAE, "model"), (MAE, "")])
def test_the_authors_checkpoints_are_recognised_and_seen_as_they_were_trained(
    golden: Golden, wrapper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder that sees pixels of another scale would be judged by no fault of its own."""
    state = {name: weight.contiguous() for name, weight in golden.under("state.").items()}
    file = tmp_path / f"weights.{'pth' if wrapper else 'safetensors'}"
    torch.save({wrapper: state}, file) if wrapper else save_file(state, file)
    colours = tmp_path / "colours.py"
    colours.write_text(COLOURS)
    given = [str(file), "--model", json.dumps(golden.config), "--data", f"{colours}:colours"]
    found = figures(capsys, *given, "--protocols", "nn")
    encoder, config = (load_mae if golden is MAE else load_official)(state, golden.config)
    side = config.data.image_size
    data = open_dataset(Config.read({"data": {"name": "digits", "image_size": side}}).data)
    images, boxes = data.test.read(torch.arange(len(data.test)), side)
    pixels = crop(images, boxes, side).expand(-1, 3, -1, -1)
    with torch.no_grad():
        seen = encoder.features(normalise(pixels, *map(torch.tensor, IMAGENET)))
        otherwise = encoder.features(normalise(pixels, *map(torch.tensor, ((0.1,) * 3, (2.0,) * 3))))
    expected = nn_top1(seen, data.test.labels)
    assert found["eval/nn_top1"] == pytest.approx(expected, abs=0.3)
    assert abs(nn_top1(otherwise, data.test.labels) - expected) > 0.6, "the test shows nothing"


def test_other_weights_than_the_authors_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A classifier of timm's has the names of MAE's encoder."""
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "a.safetensors")
    assert main([str(tmp_path / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert (
        f"{tmp_path / 'a.safetensors'}: its names are neither Latent MIM's nor MAE's: give --layout" in said
    )


def refused(
    capsys: pytest.CaptureFixture[str], *arguments: str, protocols: str
) -> tuple[dict[str, float], list[str]]:
    """Figures and errors of a command some of whose protocols cannot judge the encoder."""
    assert main([*arguments, "--protocols", protocols, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    return found["metrics"], found["errors"]


def test_a_layer_that_there_is_not_is_refused(
    folder: TrialFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last block's figure would stand under the name of a layer."""
    asked = "{knn: {layer: 99}}, {nn: {layer: last4}}, {knn: {layer: 1}}"
    torch.save({"model": MAE.under("state.")}, tmp_path / "mae.pth")
    write_images(tmp_path / "images")
    images = ["--data", "imagefolder", "--data-path", str(tmp_path / "images")]
    file = [str(tmp_path / "mae.pth"), "--model", json.dumps(MAE.config), *images]
    convolutional = ["timm:test_resnet", "--data", "digits", "--image-size", "32"]
    for arguments in ([str(folder.path)], file, convolutional):
        metrics, errors = refused(capsys, *arguments, protocols=asked)
        assert set(metrics) == {"eval/knn_top1.layer1"}
        expected = "layer: expected at most 1, the blocks of the encoder, found"
        assert errors == [f"knn: {expected} 99", f"nn: {expected} last4"]
    _, [error] = refused(capsys, *TINY_VIT, protocols="nn, {knn: {layer: 99}}")
    assert error.startswith("knn: layer: expected at most")


def test_a_view_that_an_encoder_has_not_leaves_the_other_figures(
    folder: TrialFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """One protocol's settings would take every figure with them."""
    arguments = ["timm:test_resnet", "--data", "digits", "--image-size", "32"]
    metrics, errors = refused(capsys, *arguments, protocols="nn, {knn: {features: cls}}")
    assert set(metrics) == {"eval/nn_top1"}
    assert errors == ["knn: features, norm: the model has no class token; leave them as they are"]
    other = [str(folder.path), "--data", "glyphs"]
    metrics, [error] = refused(capsys, *other, protocols="nn, finetune")
    assert set(metrics) == {"eval/nn_top1"}
    assert error.startswith("finetune: it goes on training a trial on its own data")


def test_places_of_a_convolutional_model_with_blocks_have_features() -> None:
    """An EfficientNet's blocks are no transformer's, and gave a traceback."""
    encoder = TimmEncoder.create("test_efficientnet", 64, 3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.model.forward_features(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder.patch_features(images), expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["timm:vit_smal_patch16_224"], "timm:vit_smal_patch16_224: timm"),
        (["results/trials/none"], "results/trials/none: expected the folder of a trial, timm:<name>, or"),
        ([*TINY_VIT, "--protocols", "knm"], "--protocols: expected one of"),
        ([*TINY_VIT, "--protocols", "nn, {"], "--protocols:1: does not parse as YAML"),
        ([*TINY_VIT, "--protocols", "top1"], "top1: timm:test_vit has no logits"),
        ([*TINY_VIT, "--weights", "none.pth"], "none.pth"),
        (["timm:test_vit", "--data", "glyfs"], "--data: expected one of cifar10"),
        ([*TINY_VIT, "--image-size", "0"], "--image-size: expected greater than 0, found 0"),
        (["weights.pth", "--layout", "mae", "--model", "12"], "--model: expected a mapping such as"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback tells a user of other people's weights nothing."""
    assert main(arguments) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert said in line


def test_data_that_do_not_fit_a_trial_are_refused(
    folder: TrialFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pixels of another number of channels, or of another side, end in a message of torch's at best."""
    assert main([str(folder.path), "--image-size", "64"]) == 2
    assert "--image-size: expected" in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_of_a_sweeps_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another's encoder would be compared by hand, over other data or protocols than the table's."""
    file = running.write(
        tmp_path, arms="[mse]", seeds="[0]", more="evaluate: [knn, top1]\nbaselines: [supervised]\n"
    )
    words = running.arguments(file, "--serial")
    running.run(words)
    out = str(tmp_path / "out")
    row = [
        "timm:test_vit",
        "--image-size",
        "32",
        "--sweep",
        "tiny",
        "--out",
        out,
        "--name",
        "theirs",
        "--json",
    ]
    assert main(row) == 0
    figure = json.loads(capsys.readouterr().out)["metrics"]["eval/knn_top1"]
    for trial in running.folders(file):
        (judged,) = (one for one in trial.results() if one.protocol == "knn")
        assert main([str(trial.path), *row[3:], "--name", trial.id]) == 0
        found = json.loads(capsys.readouterr().out)["metrics"]
        assert found["eval/knn_top1"] == judged.metrics["eval/knn_top1"]
    running.run(words)  # which plans anew, and has nothing to do

    def table() -> str:
        return (running.reported(file) / "table.csv").read_text()

    [line] = [line for line in table().splitlines() if "theirs" in line]
    assert line.startswith("theirs (not trained here, 32 px)") or line.startswith('"theirs (not trained here')
    assert f"{figure:.3f}"[:5] in line
    assert main([*row[:1], "--image-size", "32", "--sweep", "tinny", "--out", out]) == 2
    assert "--sweep tinny: no such sweep" in capsys.readouterr().err
    assert main([*row, "--data", "glyphs"]) == 2
    assert "--data: a row of a sweep's table is judged on the sweep's data" in capsys.readouterr().err
    [plan] = tmp_path.glob("out/tiny/*/plan.json")
    older = json.loads(plan.read_text())
    older["others"][0]["code"] = "another"
    plan.write_text(json.dumps(older))
    running.run(words)
    assert "theirs" not in table()
    assert "judged with other code" in (running.reported(file) / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("test_vit", (64, 96), (24, 64)),
        ("vit_base_patch16_gap_224", (64, 96), (24, 768)),
        ("test_resnet", (64, 96), (6, 96)),
        ("swin_tiny_patch4_window7_224", (224, 224), (49, 768)),
    ],
)
def test_a_feature_of_each_patch_whatever_the_model(
    name: str, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    """Frames of videos are oblong, and a model whose channels are last has rows where others have them."""
    encoder = TimmEncoder.create(name, size[1], 3).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert encoder.patch_features(images).shape == (2, *shape)
        normed = patch_features(encoder, images, norm=True)
        assert image_features(encoder, images[..., : size[0]], norm=True).shape == (2, shape[1])
    assert normed.shape == (2, *shape)
    if "vit" in name:  # of the others what they give has been normalised
        assert torch.allclose(normed.mean(dim=2), torch.zeros(2, shape[0]), atol=1e-5)
