"""Latent masked image modelling as the trainer calls it; its numbers are checked in `test_interop.py`."""

import math
from typing import Any

import pytest
import torch

from lmim import objectives
from lmim.axes.collapse import TARGETS
from lmim.axes.loss import LOSSES
from lmim.axes.mask import patchify, similarity_constraint
from lmim.config import TOKENS, Config, merge
from lmim.data import open_dataset
from lmim.encoder import View
from lmim.objectives import Draw, Setup
from lmim.objectives.latent_mim import LatentMIM
from lmim.train.batches import batches, generator
from lmim.train.loop import Run

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 256},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "mask": {"gap": 2, "ratio": 0.625},
    "optim": {"epochs": 1, "batch_size": 32},
    "run": {"device": "cpu"},
}


def tiny(**changes: Any) -> Config:
    return Config.read(merge(TINY, {key.replace("__", "."): v for key, v in changes.items()}))


def build(mirrors: bool = False, **changes: Any) -> LatentMIM:
    torch.manual_seed(0)
    setup = Setup(side=8, channels=1, classes=10, mirrors=mirrors)
    objective = objectives.build(tiny(**changes), setup)
    assert isinstance(objective, LatentMIM)
    return objective


def drawn(images: int = 64, seed: int = 0, **how: Any) -> Draw:
    return build(**how).draw(torch.full((images,), 1.5), generator(seed, "step"))


def test_a_step_draws_one_view_and_which_patches_are_seen() -> None:
    """A patch that is visible and masked, or neither, would leak or be lost."""
    draw = drawn()
    assert build().crop_side == 4 * (2 + 2)
    assert draw.boxes.shape == (64, 1, 4)
    assert draw.own["visible"].shape == (64, 6)
    both = torch.cat([draw.own["visible"], draw.own["masked"]], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(16).expand(64, -1))
    assert set(draw.own["offsets"].flatten().tolist()) == {0, 1}


def test_a_flip_changes_nothing_else() -> None:
    """An arm with flips differs from one without in the flips alone."""
    plain, flipped = drawn(mirrors=False), drawn(mirrors=True)
    assert not plain.mirrored.any()
    assert 8 < flipped.mirrored.sum() < 56
    assert torch.equal(plain.boxes, flipped.boxes)
    assert plain.own.keys() == flipped.own.keys() == {"offsets", "visible", "masked"}
    for name, tensor in plain.own.items():
        assert torch.equal(tensor, flipped.own[name]), name


@pytest.mark.parametrize("similarity", [0.0, 0.5])
def test_the_loss_is_the_term_and_the_constraint(similarity: float) -> None:
    """The journal's `term` would be another figure than the one that the loss axis compares."""
    objective = build(mask__similarity=similarity)
    views = torch.randn(3, 1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    own, aim = drawn(3).own, torch.tensor(0.7)
    found = objective(views, torch.zeros(3, dtype=torch.int64), own, {"similarity_aim": aim})
    assert found.keys() == {
        *("loss", "term", "prediction_similarity", "target_similarity", "visible_similarity")
    }
    patches = patchify(views[:, 0], 2, own["offsets"], 2)
    output = objective.output(patches, View(own["visible"], own["masked"]), 0.7)
    constraint = similarity_constraint(output.prediction, output.latents[:, 1:], 0.7)
    torch.testing.assert_close(found["term"], objective.compare(output.prediction, output.target))
    torch.testing.assert_close(found["loss"], found["term"] + similarity * constraint)
    parts = {"prediction": output.prediction, "target": output.target, "visible": output.latents[:, 1:]}
    for name, part in parts.items():
        unit = part / part.norm(dim=2, keepdim=True)
        torch.testing.assert_close(found[f"{name}_similarity"], (unit @ unit.transpose(1, 2)).mean())
        assert not found[f"{name}_similarity"].requires_grad, "told, not trained"


def test_labels_are_not_looked_at() -> None:
    """A self-supervised arm that peeked would win every ablation."""
    objective, own = build(), drawn(3).own
    views = torch.randn(3, 1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    scheduled = {"similarity_aim": torch.tensor(0.7)}
    losses = [objective(views, torch.full((3,), label), own, scheduled)["loss"] for label in (0, 9)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("target", [kind for kind in TARGETS if kind not in TOKENS])
def test_what_is_scheduled_is_named(target: str) -> None:
    """The journal must show the aim and the momentum that a run followed, or a replay cannot check them."""
    objective = build(collapse=target, mask__similarity_start=0.8, mask__similarity_end=0.2)
    values = [objective.scheduled(progress) for progress in (0.0, 0.5, 1.0)]
    assert [value["similarity_aim"] for value in values] == pytest.approx([0.8, 0.5, 0.2])
    momentum = [value.get("momentum") for value in values]
    assert momentum == (pytest.approx([0.99, 0.995, 1.0]) if target == "ema" else [None] * 3)


def test_the_target_starts_as_a_copy_and_follows_each_step() -> None:
    """A target of other random weights would be `frozen_random` under the name of `ema`."""
    objective = build()
    target = objective.target.get_submodule("encoder")
    online = dict(objective.encoder.named_parameters())
    assert all(torch.equal(value, online[name]) for name, value in target.named_parameters())
    with torch.no_grad():
        objective.encoder.embed.weight += 1
    before = target.get_parameter("embed.weight").clone()
    objective.after_step({"momentum": 0.75, "similarity_aim": 0.5})
    torch.testing.assert_close(target.get_parameter("embed.weight"), before + 0.25)


def test_evaluation_sees_whole_images_without_gaps() -> None:
    """An arm with a gap would be judged on other pixels than one without."""
    objective = build()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = objective.patch_features(images)
    assert torch.equal(found, objective.encoder.patch_features(patchify(images, 2)))
    assert torch.equal(objective.features(images), found.mean(dim=1))
    assert found.shape == (3, 16, 16)


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - {"cross_entropy"}))
def test_losses_are_compared_in_float32(loss: str) -> None:
    """In bfloat16 some losses would be rounded and others not, and the ablation would compare that."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        config = tiny(loss=loss, optim__precision=precision)
        run = Run(config, open_dataset(config.data), torch.device("cpu"))
        ((batch,), *_) = batches(run.dataset.train, config, run.objective, 0, run.steps)
        found = run.losses(batch, {"similarity_aim": torch.tensor(0.5)})
        assert found["loss"].dtype == found["term"].dtype == torch.float32
        weight = dict(run.objective.named_parameters())["encoder.embed.weight"]
        gradients.append(torch.autograd.grad(found["loss"], weight)[0])
    full, half = gradients
    assert 0 < (full - half).norm() < 0.1 * full.norm()
    assert math.isfinite(full.norm())
