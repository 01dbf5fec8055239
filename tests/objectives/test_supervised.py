"""Supervised classification: labels, and what timm changes of images."""

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.layers.drop import DropPath
from torch import Tensor

from lmim import objectives
from lmim.config import Config
from lmim.objectives import Setup
from lmim.objectives.supervised import Supervised, draw_erased, draw_mix
from lmim.train.batches import generator

TINY: dict[str, Any] = {
    "objective": "supervised",
    "data": {"name": "digits", "image_size": 16},
    "encoder": {"patch_size": 4, "width": 16, "depth": 3, "heads": 2},
}
LABELS = torch.arange(6)


def build(channels: int = 1, **own: Any) -> Supervised:
    torch.manual_seed(0)
    objective = objectives.build(Config.read(TINY | {"supervised": own}), Setup(16, channels, 10))
    assert isinstance(objective, Supervised)
    return objective


def drawn(objective: Supervised, images: int = 6, seed: int = 0) -> dict[str, Tensor]:
    return objective.draw(torch.ones(images), generator(seed, "step")).own


def views(images: int = 6, channels: int = 1) -> Tensor:
    return torch.randn(images, 1, channels, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_loss_is_that_of_the_classifier_that_is_judged(pool: str) -> None:
    """Training would teach one classifier, and the table would show the accuracy of another."""
    objective = build(pool=pool)
    found = objective(views(), LABELS, drawn(objective), {})
    assert found.keys() == {"loss"}
    expected = F.cross_entropy(objective.logits(views()[:, 0]), LABELS)
    torch.testing.assert_close(found["loss"], expected)
    pooled = objective.features(views()[:, 0])
    torch.testing.assert_close(objective.head(objective.norm(pooled)), objective.logits(views()[:, 0]))
    patches = objective.patch_features(views()[:, 0]).mean(dim=1)
    assert torch.allclose(pooled, patches, atol=1e-6) == (pool == "mean")


def test_every_parameter_learns() -> None:
    """A norm that nothing reads would be counted among the parameters of every table."""
    objective = build()
    objective(views(), LABELS, {}, {})["loss"].backward()
    still = [name for name, part in objective.named_parameters() if part.grad is None or not part.grad.any()]
    assert not still


def test_nothing_is_changed_unless_it_is_asked_for() -> None:
    """The demo's arms would have an augmentation that no table shows."""
    objective = build()
    assert not drawn(objective)
    assert not objective.augments
    assert not [part for part in objective.modules() if isinstance(part, DropPath)]
    crops = objective.draw(torch.ones(6), generator(0, "step"))
    more = build(mixup=0.8, erasing=0.5, randaugment="rand-m9").draw(torch.ones(6), generator(0, "step"))
    assert torch.equal(crops.boxes, more.boxes), "arms of a seed see the same crops"


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_images_have_timms_labels(mixup: float, cutmix: float) -> None:
    """Labels of other weights than the pixels' would teach what is not to be seen."""
    objective = build(mixup=mixup, cutmix=cutmix, smoothing=0.1)
    own = drawn(objective)
    mixed = objective.changed(views()[:, 0], own)
    expected = mixup_target(LABELS, 10, own["kept"][:, None], smoothing=0.1)  # type: ignore[no-untyped-call]
    loss = objective(views(), LABELS, own, {})["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(objective.logits(mixed), expected))


def test_mixed_images_are_of_two_as_far_as_their_labels() -> None:
    """Half of an image under a label of nine tenths is noise that nobody asked for."""
    one = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    objective = build(mixup=0.8, cutmix=1.0)
    own = drawn(objective, 64)
    kept = (objective.changed(one, own) - one.flip(0)).mean(dim=(1, 2, 3)) / (one - one.flip(0))[:, 0, 0, 0]
    torch.testing.assert_close(kept, own["kept"])
    cut = own["blend"] == 1
    assert 16 < cut.sum() < 48
    areas = (own["pasted"][:, 1] - own["pasted"][:, 0]) * (own["pasted"][:, 3] - own["pasted"][:, 2])
    assert not areas[~cut].any()
    torch.testing.assert_close(own["kept"][cut], 1 - areas[cut] / 256)


def test_what_is_mixed_is_beta() -> None:
    """Another distribution would be another regulariser under the published name."""
    rng = np.random.default_rng(0)
    found = draw_mix(4000, 224, 0.3, 0.0, rng)["kept"]
    assert found.mean().item() == pytest.approx(0.5, abs=0.03)
    assert found.var().item() == pytest.approx(0.25 / 1.6, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_erasures_are_timms_boxes() -> None:
    """A box that leaves the image, or takes all of it, is another augmentation."""
    boxes = draw_erased(4000, 20, 0.25, np.random.default_rng(0))
    top, bottom, left, right = boxes.unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 20
    area = (bottom - top) * (right - left) / 400
    assert (area > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert area[area > 0].min() > 0.01
    assert area.max() < 0.4
    objective = build(erasing=1.0)
    own, ones = drawn(objective), torch.ones(6, 1, 16, 16)
    changed = (objective.changed(ones, own) != 1).sum(dim=(1, 2, 3))
    boxes = own["erased"]
    assert torch.equal(changed, (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]))


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_is_a_function_of_the_image_and_its_seed(channels: int) -> None:
    """A trial that goes on after a kill, or with another micro-batch a process, would see other images."""
    objective = build(channels, randaugment="rand-m9-mstd0.5-inc1")
    images = torch.randint(256, (6, 1, channels, 16, 16), dtype=torch.uint8)
    own = drawn(objective)
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    whole = objective.augment(images, own)
    assert (random.random(), np.random.rand()) == expected, "others' draws are left alone"
    assert (whole.shape, whole.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(whole, images)
    last = objective.augment(images[4:], {"seed": own["seed"][4:]})
    assert torch.equal(last, whole[4:])


def test_rand_augment_goes_as_far_as_it_may() -> None:
    """One image in some hundreds, whose pixels were to keep no bit, would end a training of days."""
    objective = build(randaugment="rand-m10-inc1")
    images = torch.randint(256, (200, 1, 1, 16, 16), dtype=torch.uint8)
    whole = objective.augment(images, {"seed": torch.arange(200)})
    assert whole.shape == images.shape


def test_paths_are_dropped_more_with_depth() -> None:
    """timm's rule; a rate for every block alike would drop a half of a deep model's."""
    objective = build(drop_path=0.3)
    rates = [part.drop_prob for part in objective.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.15, 0.15, 0.3, 0.3])
    images = views()[:, 0]
    assert not torch.equal(objective.logits(images), objective.logits(images))
    objective.eval()
    assert torch.equal(objective.logits(images), objective.logits(images))
