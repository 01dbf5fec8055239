"""All protocols over a whole dataset, in one pass of each split."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lmim import objectives
from lmim.axes.mask import patchify
from lmim.config import Config, merge
from lmim.data import Dataset
from lmim.data.augment import WHOLE
from lmim.encoder import Encoder
from lmim.evaluate import Judged, features, image_features, judge, patch_features
from lmim.evaluate.features import sampled
from lmim.evaluate.knn import Neighbours
from lmim.evaluate.linear import linear_top1
from lmim.evaluate.nn import nn_top1
from lmim.objectives import Setup
from lmim.trial.evaluation import EntryError, read_evaluations

MEAN, STD = (0.4,), (0.2,)


@dataclass
class Images:
    """A split in memory that remembers what was read."""

    images: UInt8[Tensor, "n 1 s s"]
    labels: Int[Tensor, " n"]
    seen: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def aspect(self) -> Float[Tensor, " n"]:
        return torch.ones(len(self))

    def read(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b 4"] | None = None
    ) -> tuple[UInt8[Tensor, "b 1 s s"], Float[Tensor, "b 4"]]:
        assert boxes is None, "evaluation leaves the crop to the dataset"
        self.seen += indices.tolist()
        return self.images[indices], WHOLE.expand(len(indices), 4)


def images(count: int, seed: int) -> Images:
    templates = torch.randint(256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noisy = templates[labels] + 110 * torch.randn(count, 1, 4, 4, generator=generator)
    return Images(noisy.clamp(0, 255).byte(), labels)


def judged_by(*arguments: Any) -> list[Judged]:
    """What each evaluation found."""
    return [found for _, found in judge(*arguments)]


def dataset(train: Images, test: Images) -> Dataset:
    return Dataset("test", "1", 1, 3, MEAN, STD, False, train, test, test)


def flat(x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
    return x.flatten(1)


def knn_top1(train: Images, test: Images, k: int) -> float:
    """All features in memory at once."""
    neighbours = Neighbours(pixels(test), k)
    neighbours.update(pixels(train), train.labels)
    return neighbours.top1(test.labels)


def pixels(part: Images) -> Tensor:
    return flat((part.images.float() / 255 - MEAN[0]) / STD[0])


@pytest.mark.parametrize("batch", [7, 256, 1000])
def test_every_protocol_sees_every_normalised_image_once(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split mixed up, an image skipped or pixels left as they are would bias all arms without a sign."""
    monkeypatch.setattr(features, "BATCH", batch)
    train, test = images(200, 0), images(90, 1)
    evaluations = read_evaluations(["nn", {"knn": {"k": 5}}, "linear", "knn"])
    judged = judged_by(flat, dataset(train, test), 4, evaluations)
    assert train.seen == list(range(200))
    assert test.seen == list(range(90))
    scores = {name: value for one in judged for name, value in one.metrics.items()}
    assert scores == pytest.approx(
        {
            "eval/nn_top1": nn_top1(pixels(test), test.labels),
            "eval/knn_top1.k5": knn_top1(train, test, k=5),
            "eval/linear_top1": linear_top1(
                [(pixels(train), train.labels)], [(pixels(test), test.labels)], 3
            ),
            "eval/knn_top1": knn_top1(train, test, k=20),
        },
        abs=1.2,  # an image whose neighbours tie may fall either way
    )
    assert all(45 < score < 100 for score in scores.values())
    assert all(one.sample == one.metrics and one.seconds > 0 for one in judged)  # all fit in a sample


def test_the_validation_split_is_judged_where_it_is_asked_for() -> None:
    """A ladder that chose its winners by the test split would report figures that are too good."""
    train, test, val = images(200, 0), images(90, 1), images(60, 2)
    data = dataset(train, test)
    object.__setattr__(data, "val", val)
    [one] = read_evaluations(["nn"])
    on_test, on_val = judged_by(flat, data, 4, [one, replace(one, split="val")])
    assert on_test.metrics == {"eval/nn_top1": pytest.approx(nn_top1(pixels(test), test.labels), abs=1.2)}
    assert on_val.metrics == {"val/nn_top1": pytest.approx(nn_top1(pixels(val), val.labels), abs=1.2)}
    assert [len(part.seen) for part in (train, test, val)] == [200, 90, 60]
    test.seen.clear()
    assert judged_by(flat, data, 4, [replace(one, split="val")])[0].metrics == on_val.metrics
    assert not test.seen


def test_a_sample_alone_gives_the_figures_that_are_stored_with_a_result() -> None:
    """Else old results would be thrown out, or kept, by figures of other images."""
    data = dataset(images(1500, 0), images(400, 1))
    whole, alone = (judged_by(flat, part, 4, read_evaluations()) for part in (data, sampled(data)))
    assert [one.sample for one in whole] == [one.metrics for one in alone] == [one.sample for one in alone]
    assert [one.sample for one in whole] != [one.metrics for one in whole]


GAP = """
import torch
METRICS = {"gap": {"label": "distance gap", "better": "higher"}, "images": {"label": "images"}}
def gap(frozen, *, scale: float = 1.0):
    features, labels = frozen.judged.whole()
    same = labels[:, None] == labels
    distance = torch.cdist(features, features)
    seen = sum(len(labels) for features, labels in frozen.train.batches())
    return {"gap": scale * (distance[~same].mean() - distance[same].mean()), "images": seen}
"""


def test_a_protocol_of_the_users_own() -> None:
    """Without it a new way of judging would mean a fork."""
    train, test = images(300, 0), images(90, 1)
    entries = ["mine.py:gap", {"mine.py:gap": {"scale": 2}}]
    plain, double = judged_by(flat, dataset(train, test), 4, read_evaluations(entries, {"mine.py": GAP}))
    z, same = pixels(test), test.labels[:, None] == test.labels
    expected = (z[:, None] - z).norm(dim=2)
    gap = float(expected[~same].mean() - expected[same].mean())
    assert plain.metrics == pytest.approx({"eval/gap": gap, "eval/images": 300}, rel=1e-4)
    assert double.metrics == pytest.approx({"eval/gap.scale2": 2 * gap, "eval/images.scale2": 300}, rel=1e-4)


def test_figures_that_a_protocol_does_not_name_are_refused() -> None:
    """They would be in no table, or in one without label and direction."""
    source = GAP.replace('"images": seen', '"image": seen')
    evaluations = read_evaluations(["mine.py:gap", "nn"], {"mine.py": source})
    wrong, right = judged_by(flat, dataset(images(30, 0), images(9, 1)), 4, evaluations)
    assert wrong.error.endswith(
        "mine.py:gap: expected the figures of its METRICS, gap, images; found gap, image"
    )
    assert (wrong.metrics, right.error) == ({}, "")


def test_a_protocol_that_fails_is_named_with_its_line_and_the_others_go_on() -> None:
    """One mistake in a user's protocol would cost the figures of all the others."""
    source = GAP.replace("seen =", "1 / 0\n    seen =", 1)
    evaluations = read_evaluations(["mine.py:gap", "nn"], {"mine.py": source})
    wrong, right = judged_by(flat, dataset(images(30, 0), images(9, 1)), 4, evaluations)
    assert "mine.py:gap: ZeroDivisionError: division by zero (mine.py:" in wrong.error
    assert right.metrics


@pytest.mark.parametrize("spoil", [lambda x: x / 0, lambda x: x * math.nan, lambda x: x * math.inf])
def test_an_encoder_that_diverged_has_no_accuracy(spoil: Callable[[Tensor], Tensor]) -> None:
    """Scored like any other, NaN features would stand in the table as an accuracy near chance."""
    judged = judged_by(lambda x: spoil(flat(x)), dataset(images(40, 0), images(20, 1)), 4, read_evaluations())
    scores = [score for one in judged for score in (*one.metrics.values(), *one.sample.values())]
    assert len(scores) == 6
    assert all(math.isnan(score) for score in scores)


def test_no_graph_is_kept() -> None:
    """Features that drag their graph along would fill the memory within a few batches."""
    weight = torch.nn.Parameter(torch.ones(16))
    features = []

    def encode(x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        features.append(flat(x) * weight)
        return features[-1]

    judged_by(encode, dataset(images(40, 0), images(20, 1)), 4, read_evaluations())
    assert features
    assert not any(part.requires_grad for part in features)


def test_without_evaluations_nothing_is_encoded() -> None:
    """A sweep that asks for none would pay for a pass over the training images."""
    train = images(40, 0)
    assert judged_by(flat, dataset(train, images(20, 1)), 4, []) == []
    assert not train.seen


def test_the_last_layer_has_two_names() -> None:
    """One encoder would be judged twice, under two names, and be refused under one of them."""
    assert read_evaluations([{"nn": {"layer": -1}}]) == read_evaluations(["nn"])
    with pytest.raises(EntryError, match=r"nn.layer: expected greater than or equal to 0, found -2"):
        read_evaluations([{"nn": {"layer": -2}}])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("part", ["own", "patch_mean", "cls", "patch_mean+cls"])
@pytest.mark.parametrize("layer", [0, 2, "last4"])
def test_features_are_those_that_are_named(part: str, layer: Any, norm: bool) -> None:
    """The class token would be judged as the patches' mean, or blocks as others, under a true name."""
    tree = {
        "data": {"name": "digits", "image_size": 8},
        "encoder": {"patch_size": 2, "width": 16, "heads": 2},
    }
    objective = objectives.build(
        Config.read(merge(tree, {"encoder.depth": 5})), Setup(side=8, channels=1, classes=10)
    ).eval()
    encoder, pictures = objective.encoder, torch.randn(3, 1, 8, 8)
    assert isinstance(encoder, Encoder)

    def tokens(after: int) -> Tensor:
        found = encoder.tokens(patchify(pictures, 2), layer=after)
        normed: Tensor = encoder.norm(found) if norm else found
        return normed

    blocks = [2, 3, 4, 5] if layer == "last4" else [layer or 5]
    every = torch.cat([tokens(block) for block in blocks], dim=-1)
    kinds = {"cls": every[:, 0], "patch_mean": every[:, 1:].mean(dim=1), "own": every[:, 1:].mean(dim=1)}
    [asked] = read_evaluations([{"nn": {"features": part, "layer": layer, "norm": norm}}])
    found = image_features(objective, pictures, **asked.view)
    torch.testing.assert_close(found, torch.cat([kinds[one] for one in part.split("+")], dim=-1))


def test_a_protocol_has_a_view_of_its_own_unless_told_otherwise() -> None:
    """`video` would see an encoder as DINO does not, or leave out the baseline that has no norm."""
    pixels = Config.read({"objective": "raw_pixels"})
    usual, same, other, layer = read_evaluations(
        ["video", "nn", {"video": {"norm": False}}, {"video": {"layer": 2}}]
    )
    assert (usual.view, same.view, other.view) == ({"norm": True}, {}, {})
    assert layer.view == {"norm": True, "layer": 2}
    assert usual.applies(pixels)
    assert usual.identity("0" * 8, "") != other.identity("0" * 8, "")
    assert read_evaluations([{"video": {"norm": True, "side": 480}}]) == (usual,)
    assert next(iter(other.metrics.values())).name == "eval/video_jf.norm-false"


def test_an_objective_without_a_norm_is_seen_as_it_is() -> None:
    """`video`, which asks for it unless told otherwise, would end in a TypeError of the user's own code."""

    class Own:
        def patch_features(self, images: Tensor) -> Tensor:
            return patchify(images, 2)

        def features(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    class Normed(Own):
        def tokens(self, images: Tensor, layer: int = 0, norm: bool = False) -> Tensor:
            return torch.full((len(images), 17, 4), float(norm))

    pictures = torch.randn(3, 1, 8, 8)
    assert torch.equal(patch_features(Own(), pictures, norm=True), patchify(pictures, 2))
    assert torch.equal(patch_features(Normed(), pictures, norm=True), torch.ones(3, 16, 4))
    assert torch.equal(image_features(Normed(), pictures, norm=True), torch.ones(3, 4))
    assert torch.equal(image_features(Own(), pictures, norm=True), pictures.flatten(1))


def test_what_reads_no_features_of_the_trials_images_has_none_made() -> None:
    """`video` alone has a view of its own: a pass over all of ImageNet would come before it, for nothing."""
    seen: list[int] = []

    def counted(x: Float[Tensor, "b c s s"], **view: Any) -> Float[Tensor, "b d"]:
        seen.append(len(x))
        return flat(x)

    source = """
FEATURES = False
METRICS = {"one": {"label": "one"}}
def f(frozen):
    return {"one": len(frozen.images)}
"""
    entries = read_evaluations(["m.py:f"], {"m.py": source})
    [found] = judged_by(counted, dataset(images(5000, 0), images(3000, 1)), 4, entries)
    assert found.metrics == {"eval/one": 3000}, "the data themselves are whole"
    assert sum(seen) < 2000
    [own] = read_evaluations(["video"])
    assert not own.reads_features


def test_a_layer_is_judged_by_its_own_features() -> None:
    """The depth at which an encoder is best would be read off the features of another."""

    def layers(x: Float[Tensor, "b c s s"], layer: int = 0) -> Float[Tensor, "b d"]:
        return flat(x)[:, : layer or None]

    train, test = images(60, 0), images(40, 1)
    evaluations = read_evaluations(["nn", {"nn": {"layer": 1}}])
    whole, one = judged_by(layers, dataset(train, test), 4, evaluations)
    assert whole.metrics == {"eval/nn_top1": nn_top1(pixels(test), test.labels)}
    assert one.metrics == {"eval/nn_top1.layer1": nn_top1(pixels(test)[:, :1], test.labels)}
