"""What figures show of a trial: of encoders that know the answer, and of trials of a second."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmim.axes.decoder import CrossAttention
from lmim.axes.mask import patchify
from lmim.config import Config, merge
from lmim.data import Dataset
from lmim.data.splits import ArraySplit, spread
from lmim.encoder import View, take
from lmim.errors import UserError
from lmim.evaluate.features import Encode, Model
from lmim.figures import Lacking, Subject, look, make
from lmim.figures.__main__ import main
from lmim.figures.attention import attended, attention
from lmim.figures.neighbours import neighbours
from lmim.figures.propagation import propagation
from lmim.figures.reconstruction import reconstruction
from lmim.figures.segmentation import segmentation
from lmim.figures.similarity import similarity
from lmim.figures.tsne import tsne
from lmim.train.loop import Run, train
from lmim.trial.figure import Figure, read_figures
from lmim.trial.folder import TrialFolder
from tests.evaluate.builders import flat
from tests.evaluate.test_video import shows, squares
from tests.train.conftest import TINY

PIXELS = {
    "objective": "pixel_mim",
    "loss.kind": "norm_mse",
    "decoder.kind": "self_attention",
    "mask.ratio": 0.75,
}


def trained(root: Path, **changes: Any) -> Subject:
    """A trial of an epoch."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    tree = merge(TINY, {"optim.epochs": 1, "mask.ratio": 0.75} | given)
    if tree.get("objective") == "pixel_mim":
        del tree["projector"]
    config = Config.read(tree)
    folder = TrialFolder(root / "trials", config.identity)
    folder.create(config)
    train(config, folder, [])
    return Subject.of(folder)


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Latent MIM with its own decoder."""
    return trained(tmp_path_factory.mktemp("latent"))


@pytest.fixture(scope="module")
def pixel(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """MAE on normalised pixels."""
    return trained(tmp_path_factory.mktemp("pixel"), **PIXELS)


def planted(subject: Subject, dataset: Dataset, side: int, encode: Encode = flat) -> Subject:
    """The trial with an encoder that knows of each patch which level it has."""
    return replace(subject, model=Model(encode, lambda images, **view: shows(images), dataset, side))


def scenes(count: int = 4) -> Dataset:
    """Images of two squares on a ground, all of whole patches of four pixels."""
    whole = squares(count)
    split = whole.test
    assert isinstance(split, ArraySplit)
    assert split.masks is not None
    still = ArraySplit(split.images[:, 0], torch.arange(count), 24, split.masks[:, 0])
    return replace(whole, train=still, val=still, test=still, frames=1)


def test_planted_clusters_are_the_map(latent: Subject) -> None:
    """A map of other patches than the image's would still look like a map."""
    found = segmentation(planted(latent, scenes(), 24), images=3, data="")
    assert found["image"].shape == (3, 1, 24, 24)
    for truth, guess in zip(found["truth"], found["found"], strict=True):
        pairs = {*zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True)}
        assert len(pairs) == 3, "each segment is one cluster"


def test_tsne_keeps_planted_clusters_together(latent: Subject) -> None:
    """Points in another order than the map's patches would be coloured at random."""
    (found,) = [tsne(planted(latent, scenes(), 24), images=1, clusters=3)]
    groups, points = found["clusters"][0], found["points"][0]
    assert groups.shape == (6, 6)
    assert sorted(np.bincount(groups.ravel()).tolist()) == [1, 1, 34]
    middle = points[groups.ravel() == np.bincount(groups.ravel()).argmax()].mean(0)
    assert np.isfinite(points).all()
    assert middle.shape == (2,)
    again = tsne(planted(latent, scenes(), 24), images=1, clusters=3)
    assert (again["points"] == found["points"]).all(), "the same figure for the same trial"


def test_a_query_is_not_its_own_neighbour(latent: Subject) -> None:
    """The nearest image of each would be itself, with a cosine of one."""
    data = scenes(6)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 24, 24), np.uint8)
    pixels[4] = pixels[0]
    split = ArraySplit(pixels, torch.tensor([0, 1, 2, 3, 0, 1]), 24)
    found = neighbours(planted(latent, replace(data, test=split), 24), queries=2, nearest=3)
    assert found["cosine"].shape == (2, 3)
    assert found["cosine"][0, 0] == pytest.approx(1, abs=1e-5)
    assert found["cosine"][0, 1] < 0.99
    assert found["alike"][0].tolist() == [True, False, False]
    assert np.allclose(found["nearest"][0, 0], found["query"][0])
    assert (np.diff(found["cosine"], axis=1) <= 0).all()


def test_masks_are_carried_along(latent: Subject) -> None:
    """Frames and masks of different times would blame the encoder."""
    subject, views = planted(latent, squares(), 24), []

    def patches(images: Tensor, **view: Any) -> Tensor:
        views.append(view)
        return shows(images)

    subject = replace(subject, model=replace(subject.model, patches=patches))
    found = propagation(subject, clips=2, frames=3, data="")
    assert views
    assert all(view == {"norm": True} for view in views), "as `video` sees them"
    assert found["times"].tolist() == [[0, 2, 4], [0, 2, 4]]
    assert found["frames"].shape == (2, 3, 1, 24, 24)
    assert (found["truth"] == found["found"]).all(), "this encoder knows what it sees"
    level = found["frames"][:, :, 0].astype(np.float32)
    assert np.abs(level - found["truth"] * 0.5).max() < 0.01, "a mask is that of its frame"


def test_attention_sums_to_one_over_what_is_visible(latent: Subject) -> None:
    """Weights of other keys than are shown would be a picture of something else."""
    found = attention(latent, images=3, queries=2)
    assert found["weights"].shape == (3, 2, 1 + found["visible"].shape[1])
    assert np.allclose(found["weights"].sum(-1), 1, atol=1e-5)
    for visible, queries in zip(found["visible"], found["queries"], strict=True):
        assert not {*visible.tolist()} & {*queries.tolist()}
        assert sorted(queries) == queries.tolist(), "in the image's order"


def test_attention_is_what_the_layer_does() -> None:
    """A second formula that drifts from the decoder's own would show what never was."""
    torch.manual_seed(0)
    layer = CrossAttention(8, heads=1)
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    values = layer.kv_proj(context).chunk(2, dim=-1)[1]
    assert torch.allclose(
        layer.proj(attended(layer, queries, context) @ values), layer(queries, context), atol=1e-6
    )


class Oracle(nn.Module):
    """A decoder that knows the hidden patches, normalised each by itself."""

    def __init__(self, patches: Tensor) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, latents: Tensor, view: View) -> Tensor:
        hidden = take(self.patches, view.masked)
        return (hidden - hidden.mean(2, keepdim=True)) / (hidden.var(2, keepdim=True) + 1e-6).sqrt()


def test_known_patches_are_put_back(pixel: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction in another place, or not scaled back, would look like a bad one."""
    split = pixel.model.dataset.test
    seen = pixel.images(split, spread(len(split), 3))
    oracle = Oracle(patchify(seen.normalised, 2))
    monkeypatch.setattr(pixel.objective, "decoder", oracle)
    found = reconstruction(pixel, images=3)
    assert found["masked"].sum(axis=(1, 2)).tolist() == [12, 12, 12], "three quarters of sixteen"
    assert np.abs(found["predicted"].astype(np.float32) - found["image"].astype(np.float32)).max() < 0.01


def test_similarity_begins_with_the_first_weights(latent: Subject) -> None:
    """Measured with other weights than the seed's, the beginning would be another trial's."""
    found = similarity(latent, images=16)
    untrained = Run(latent.config, latent.model.dataset, torch.device("cpu")).objective
    fresh = Subject.seeing(latent.folder, latent.config, untrained, latent.model.dataset)
    begun = similarity(fresh, images=16)
    assert found["before"].tolist() == begun["before"].tolist() == begun["after"].tolist()
    assert found["after"].tolist() != found["before"].tolist()
    assert found["steps"][0] == 0
    assert found["patches"][0] == pytest.approx(_alike(fresh), abs=0.02), "the journal's, of other images"
    assert found["aim"][-1] == pytest.approx(0.25, abs=0.01)
    rows = [row for row in latent.folder.rows()[0] if "train/target_similarity" in row.metrics]
    assert found["target_steps"].tolist() == [row.step for row in rows] != []
    assert found["target"].tolist() == [row.metrics["train/target_similarity"] for row in rows]
    assert found["visible"].tolist() != found["prediction"].tolist()


def _alike(subject: Subject) -> float:
    split = subject.model.dataset.test
    patches = subject.model.patches(subject.images(split, spread(len(split), 64)).normalised)
    return float(nn.functional.normalize(patches, dim=2).mean(1).square().sum(1).mean())


@pytest.mark.parametrize(
    ("figure", "of", "reason"),
    [
        (attention, "pixel", "its decoder has no cross-attention"),
        (reconstruction, "latent", "its targets are no pixels"),
    ],
)
def test_what_a_trial_has_not_is_said(
    figure: Callable[[Subject], Any], of: str, reason: str, request: pytest.FixtureRequest
) -> None:
    """A sweep over decoders would end in a traceback for half of its arms."""
    with pytest.raises(Lacking, match=reason):
        figure(request.getfixturevalue(of))


def test_images_of_other_channels_are_said(latent: Subject) -> None:
    """As scenes of glyphs are grey, and most encoders have seen colours."""
    coloured = replace(latent.model.dataset, channels=3)
    with pytest.raises(Lacking, match="glyph_scenes has 1 channels, it was trained on 3"):
        replace(latent, model=replace(latent.model, dataset=coloured)).open("glyph_scenes")


def test_what_is_made_is_kept_and_not_made_again(latent: Subject) -> None:
    """A sweep that is run again would take its time for nothing; one failure would take all figures."""
    folder, version = latent.folder, latent.config.data.version or ""
    figures = read_figures(["reconstruction", {"neighbours": {"nearest": 2}}, "heatmap"])
    lost = Figure("tsne", {"data": "imagefolder", "path": "/nowhere"})
    (told,) = make(folder, [lost, *figures])
    assert told.startswith("tsne: data.path: /nowhere is not a folder")
    files = [one.file(folder.path, version) for one in figures[:2]]
    assert [one.kept(folder.path, version) for one in figures[:2]] == files
    stamps = [file.stat().st_mtime_ns for file in files]
    old = files[0].with_name(files[0].name.replace(files[0].stem.rpartition("-")[2], "0ld"))
    files[0].rename(old)
    assert figures[0].kept(folder.path, version) == old, "what older code made is shown until it is made anew"
    assert [*make(folder, figures)] == []
    assert not old.exists()
    assert files[1].stat().st_mtime_ns == stamps[1]
    with np.load(files[0], allow_pickle=False) as arrays:
        assert str(arrays["reason"]) == "its targets are no pixels"


def test_a_notebook_gets_the_arrays(latent: Subject) -> None:
    """And one line of what is wrong, or a figure would be drawn of nothing."""
    assert look(latent.folder.path, "neighbours", nearest=2)["cosine"].shape == (3, 2)
    with pytest.raises(UserError, match=r"unknown setting nearst.*did you mean nearest\?"):
        look(latent.folder.path, "neighbours", nearst=2)
    with pytest.raises(UserError, match="heatmap: is of a sweep's table"):
        look(latent.folder.path, "heatmap")
    with pytest.raises(Lacking):
        look(latent.folder.path, "reconstruction")


def test_the_command_draws_trials_below_each_other(
    latent: Subject, pixel: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A figure that one trial cannot have is drawn of the other, and the command does not fail."""
    trials = [str(one.folder.path) for one in (latent, pixel)]
    out = ["--out", str(tmp_path / "drawn")]
    assert main([*trials, "--figures", "attention, {neighbours: {queries: 1}}", *out]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "drawn" / f"{n}.png") for n in ("attention", "neighbours")]
    assert (
        f"attention: nothing of {pixel.folder.id}, pixel_mim: its decoder has no cross-attention"
        in printed.err
    )
    assert (tmp_path / "drawn" / "attention.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--figures", "tsn"], "--figures: expected one of attention,"),
        (["--figures", "tsn"], "did you mean tsne?"),
        (["--figures", "heatmap"], "--figures: heatmap is of a sweep's table: write it in the sweep's file"),
        (["--figures", "{segmentation: {data: digits}}"], "segmentation.data: expected data with masks"),
        (["--figures", "tsne", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(
    latent: Subject, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback says nothing to whoever mistyped a name."""
    assert main([str(latent.folder.path), *words]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert [line for line in printed if line.startswith("error: ")] == printed[-1:]
    assert message in printed[-1]
