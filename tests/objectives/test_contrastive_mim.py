"""Contrast and places beside MAE: what each adds, where its gradient goes, and what the views are."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lmim import objectives
from lmim.config import Config, merge
from lmim.data.augment import crop
from lmim.data.contrastive_crop import object_boxes
from lmim.encoder import View
from lmim.objectives import Objective, Setup
from lmim.objectives.contrastive_mim import ContrastiveMIM, info_nce, patches_of, shifted
from lmim.train.batches import generator

TINY: dict[str, Any] = {
    "objective": "contrastive_mim",
    "data": {"name": "digits", "image_size": 8},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"kind": "self_attention", "width": 16, "depth": 1, "heads": 2},
    "loss": {"kind": "norm_mse"},
}
HUANG = {"position": 0.0, "shift": 0.25, "colour": True, "momentum": 0.75, "feature_depth": 1, "cell": 2}


def build(**own: Any) -> ContrastiveMIM:
    found = built(merge(TINY, {"contrastive_mim": own}))
    assert isinstance(found, ContrastiveMIM)
    return found


def built(tree: dict[str, Any]) -> Objective:
    torch.manual_seed(0)
    return objectives.build(Config.read(tree), Setup(side=8, channels=1, classes=10, mirrors=True))


def step(objective: Objective, images: int = 6) -> dict[str, Tensor]:
    draw = objective.draw(torch.ones(images), generator(0, "step"))
    shape = images, draw.boxes.shape[1], 1, 8, 8
    views = torch.randn(shape[0], 2, *shape[2:], generator=torch.Generator().manual_seed(0))
    found: dict[str, Tensor] = objective(views[:, : shape[1]], torch.zeros(images).long(), draw.own, {})
    return found


def test_without_its_tasks_it_is_pixel_mim() -> None:
    """What the tasks add could not be told from what another model or another mask adds."""
    ours = build(contrast=0.0, position=0.0)
    plain = built({key: "pixel_mim" if key == "objective" else value for key, value in TINY.items()})
    assert sum(one.numel() for one in ours.parameters()) == sum(one.numel() for one in plain.parameters())
    drawn = [one.draw(torch.ones(6), generator(0, "step")) for one in (ours, plain)]
    assert torch.equal(drawn[0].boxes, drawn[1].boxes)
    assert all(torch.equal(drawn[0].own[name], rows) for name, rows in drawn[1].own.items())
    assert torch.equal(step(ours)["loss"], step(plain)["loss"])
    with_tasks = build().draw(torch.ones(6), generator(0, "step"))
    assert torch.equal(with_tasks.boxes[:, :1], drawn[1].boxes)
    assert torch.equal(with_tasks.own["visible"], drawn[1].own["visible"])


@pytest.mark.parametrize("own", [{}, {"contrast": 0.5, "position": 0.25}, HUANG, {"contrast": 0.0}], ids=str)
def test_the_loss_is_the_weighted_sum_of_its_parts(own: dict[str, Any]) -> None:
    """The journal would show other figures than those that are minimised."""
    found = step(build(**own))
    weights = {"contrast": own.get("contrast", 1.0), "position": own.get("position", 0.1)}
    weights = {name: weight for name, weight in weights.items() if weight}
    assert found.keys() == {"loss", "reconstruction", *weights}
    parts = [weight * found[name] for name, weight in weights.items()]
    torch.testing.assert_close(found["loss"], found["reconstruction"] + sum(parts))


def test_info_nce_has_its_known_values() -> None:
    """A loss of another scale would be another weight in every arm."""
    same = torch.ones(8, 4)
    assert info_nce(same, same, 0.07).item() == pytest.approx(0.14 * math.log(8))
    apart = torch.eye(8)
    assert info_nce(apart, apart, 0.5).item() == pytest.approx(math.log1p(7 * math.exp(-2)))
    assert info_nce(apart, apart.flip(0), 0.07).item() == pytest.approx(2.0, abs=1e-3)  # 0.14 / 0.07
    torch.testing.assert_close(info_nce(3 * apart, apart / 5, 0.5), info_nce(apart, apart, 0.5))


def test_no_gradient_reaches_the_copy_and_it_follows() -> None:
    """With a gradient it would be another arm; a copy that stood still would be a random target."""
    objective = build(**HUANG)
    encoder, project = objective.copies
    online = [*objective.mae.encoder.parameters(), *objective.parts["project"].parameters()]
    copies = [*objective.copies.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(copies, online, strict=True))
    step(objective)["contrast"].backward()  # type: ignore[no-untyped-call]
    assert all(one.grad is None and not one.requires_grad for one in copies)
    for part in (objective.mae.encoder, objective.parts):
        assert all(one.grad is not None for one in part.parameters())
    with torch.no_grad():
        for one in online:
            one.add_(1)
    before = [one.clone() for one in copies]
    objective.after_step({})
    for now, then, one in zip([*encoder.parameters(), *project.parameters()], before, online, strict=True):
        torch.testing.assert_close(now, 0.75 * then + 0.25 * one)


def test_without_a_copy_both_views_have_a_gradient() -> None:
    """An online branch that was cut off would be a momentum branch of momentum 0."""
    objective = build(position=0.0)
    patches = torch.randn(6, 16, 4, requires_grad=True)
    objective.key(patches).square().sum().backward()  # type: ignore[no-untyped-call]
    assert patches.grad is not None
    assert objective.mae.encoder.embed.weight.grad is not None
    objective = build(**HUANG)
    assert not objective.key(patches).requires_grad


def test_places_told_right_are_no_loss() -> None:
    """Classes in another order than the patches' would never be learned."""
    objective = build(contrast=0.0, position=1.0)
    view = View(torch.arange(4).expand(3, -1), torch.arange(4, 16).expand(3, -1))
    assert objective.placed == 2
    latents = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 3]), 16).float().expand(3, -1, -1)
    locate = objective.parts["locate"]
    with torch.no_grad():
        locate.get_parameter("weight").copy_(100 * torch.eye(16))
        assert objective.misplaced(latents, view) < 1e-6
        assert objective.misplaced(latents.flip(2), view) > 50
        locate.get_parameter("weight").zero_()
        assert objective.misplaced(latents, view).item() == pytest.approx(math.log(16))


def test_withheld_codes_are_not_seen() -> None:
    """A task whose answer is in the input teaches nothing."""
    encoder = build().mae.encoder
    patches = torch.randn(3, 16, 4)
    visible = torch.tensor([[0, 1, 2, 3]]).expand(3, -1)
    seen = encoder.tokens(patches, visible, 2)
    assert torch.equal(encoder.tokens(patches, visible, 4), encoder.tokens(patches, visible))
    encoder.positions[2:4] += 1
    torch.testing.assert_close(encoder.tokens(patches, visible, 2), seen)
    encoder.positions[1] += 1
    assert not torch.allclose(encoder.tokens(patches, visible, 2), seen)


def test_the_shifted_window_is_where_it_says() -> None:
    """A window of another size or place would not be a pixel shift but another crop."""
    images = torch.randint(256, (5, 1, 32, 32), dtype=torch.uint8)
    boxes = torch.tensor([0.1, 0.2, 0.6, 0.7]).expand(5, -1)
    by = torch.tensor([[0, 0], [1, 0], [0, 1], [2, 1], [3, 3]])
    whole = crop(images, boxes, 12)
    online, other = (crop(images, one, 8) for one in shifted(boxes, by, 8, 4).unbind(1))
    torch.testing.assert_close(online, whole[:, :, :8, :8], atol=1e-4, rtol=0)
    for image, (across, down) in enumerate(by.tolist()):
        there = whole[image, :, down : down + 8, across : across + 8]
        torch.testing.assert_close(other[image], there, atol=1e-4, rtol=0)


def test_the_other_view_is_a_window_or_a_crop() -> None:
    """The arm without the shift would have it all the same, or a mirrored twin of the view."""
    draw = build(**HUANG).draw(torch.ones(64), generator(0, "step"))
    one, other = draw.boxes.unbind(1)
    moved = (other - one) / one[:, 2:].repeat(1, 2)
    assert torch.equal(one[:, 2:], other[:, 2:])
    torch.testing.assert_close(moved[:, :2] * 8, (moved[:, :2] * 8).round(), atol=1e-4, rtol=0)
    assert set((moved[:, :2] * 8).round().flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(draw.mirrored[:, 0], draw.mirrored[:, 1])
    draw = build().draw(torch.ones(64), generator(0, "step"))
    assert (draw.boxes[:, 0] != draw.boxes[:, 1]).any(dim=1).all()
    assert not torch.equal(draw.mirrored[:, 0], draw.mirrored[:, 1])


def test_only_the_other_views_colours_change() -> None:
    """The pixels to be reconstructed would be others than those that are seen."""
    objective = build(**HUANG)
    draw = objective.draw(torch.ones(64), generator(0, "step"))
    views = torch.randint(256, (64, 2, 1, 8, 8), dtype=torch.uint8)
    changed = objective.augment(views, draw.own)
    assert torch.equal(changed[:, 0], views[:, 0])
    assert not torch.equal(changed[:, 1], views[:, 1])
    assert not build().augments
    assert "colours" not in build().draw(torch.ones(2), generator(0, "step")).own


def test_a_cell_is_masked_as_one() -> None:
    """Single patches are easier to fill in from their neighbours."""
    view = patches_of(View(torch.tensor([[1], [2]]), torch.tensor([[0, 2, 3], [0, 1, 3]])), 4, 2)
    assert view.visible.tolist() == [[2, 3, 6, 7], [8, 9, 12, 13]]
    both = torch.cat([view.visible, view.masked], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(16).expand(2, -1))


def test_negatives_are_the_other_images_of_the_micro_batch() -> None:
    """The order of the images would change what is learned, or statistics of an earlier batch."""
    objective = build(**HUANG)
    draw = objective.draw(torch.ones(6), generator(0, "step"))
    views, order = torch.randn(6, 2, 1, 8, 8), torch.tensor([3, 1, 5, 0, 2, 4])
    labels = torch.zeros(6).long()
    first = objective(views, labels, draw.own, {})["contrast"]
    objective(10 * views, labels, draw.own, {})
    other = objective(views[order], labels, draw.each(lambda rows: rows[order]).own, {})["contrast"]
    torch.testing.assert_close(first, other)
    assert not [name for name, _ in objective.named_buffers() if "running" in name]


@pytest.mark.parametrize("own", [{}, {"contrast": 0.0}, HUANG])
def test_crops_lie_about_the_object_once_it_is_known(own: dict[str, Any]) -> None:
    """ContrastiveCrop would be RandomResizedCrop by another name, or part a shifted window from its own."""
    plain, ours = build(**own), build(**own, crop_alpha=0.5, crop_every=1)
    assert (plain.seeks_every, ours.seeks_every) == (0, 1)
    index = torch.tensor([4, 0, 2])
    drawn, warm = (one.draw(torch.ones(3), generator(0, "step")) for one in (plain, ours))
    assert torch.equal(ours.place(warm, index).boxes, drawn.boxes), "anywhere until objects are known"
    assert all(torch.equal(warm.own[name], rows) for name, rows in drawn.own.items())
    corner = torch.tensor([0.9, 0.0, 0.1, 0.1])
    ours.sought(corner.expand(5, 4))
    placed = ours.place(warm, index).boxes
    assert torch.equal(placed[..., 2:], drawn.boxes[..., 2:])
    parents = placed
    if own == HUANG:
        assert torch.allclose(placed[:, 1] - placed[:, 0], drawn.boxes[:, 1] - drawn.boxes[:, 0], atol=1e-6)
        parents = placed[:, :1] * torch.tensor([1.0, 1.0, 1.25, 1.25])
    edge = parents[..., 0] + parents[..., 2]
    assert torch.allclose(edge, torch.ones_like(edge)), "as far to the right as they fit"
    assert torch.allclose(parents[..., 1], torch.zeros(())), "and at the top"


def test_objects_are_sought_in_what_the_encoder_marks() -> None:
    """Boxes would be of another image's, or lost with the checkpoint."""
    ours = build(crop_alpha=0.5)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ours.seek(images)
        assert torch.equal(found[2:3], object_boxes(ours.patch_features(images[2:3]), 0.1))
    ours.sought(found)
    again = build(crop_alpha=0.5)
    again.load_state_dict(ours.state_dict())
    drawn = ours.draw(torch.ones(5), generator(0, "step"))
    assert torch.equal(*(one.place(drawn, torch.arange(5)).boxes for one in (ours, again)))
