"""Where the gradient goes, and what the targets follow."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lmim import objectives
from lmim.axes.collapse import TARGETS, KMeans, Tokens
from lmim.axes.mask import sample_view
from lmim.config import TOKENS, Config, merge
from lmim.encoder import Encoder, View, take
from lmim.objectives import Setup
from lmim.objectives.latent_mim import LatentMIM

SMALL: dict[str, Any] = {
    "data": {"image_size": 8},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
}


def build(kind: str, **changes: Any) -> tuple[LatentMIM, Tensor, View]:
    torch.manual_seed(0)
    config = Config.read(merge(merge(SMALL, {"collapse": kind}), changes))
    view = sample_view(3, 16, 6, torch.Generator().manual_seed(0))
    objective = objectives.build(config, Setup(side=8, channels=1, classes=1))
    assert isinstance(objective, LatentMIM)
    return objective, torch.randn(3, 16, 4), view


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind not in TOKENS])
def test_a_gradient_reaches_the_target_only_for_joint(kind: str) -> None:
    """This is the whole difference between the arms of the first ablation."""
    objective, patches, view = build(kind)
    target = objective.target.encode(objective.encoder, patches, view)
    assert target.shape == (3, 10, 4 if kind == "pixels" else 16)
    assert target.requires_grad == (kind == "joint")


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind not in TOKENS])
def test_only_ema_follows_the_online_encoder(kind: str) -> None:
    """joint and stop_gradient are the online weights; frozen_random and pixels never move."""
    objective, patches, view = build(kind)
    before = objective.target.encode(objective.encoder, patches, view).detach().clone()
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = objective.target.encode(objective.encoder, patches, view)
    still = kind in ("frozen_random", "pixels")
    assert torch.allclose(before, moved, atol=1e-6) == (kind == "ema" or still)
    objective.target.after_step(objective.encoder, {"momentum": 0.0})  # momentum 0: become the online encoder
    followed = objective.target.encode(objective.encoder, patches, view)
    assert torch.allclose(before, followed, atol=1e-6) == still


def test_momentum_mixes_weights() -> None:
    """m * target + (1 - m) * online, for every parameter."""
    objective, _, _ = build("ema")
    target = objective.target.encoder
    assert isinstance(target, Encoder)
    old = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.mul_(2).add_(1)
    objective.target.after_step(objective.encoder, {"momentum": 0.75})
    for new, before, online in zip(target.parameters(), old, objective.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * before + 0.25 * online)


def test_the_target_sees_masked_patches_alone_unless_told() -> None:
    """With `masked` the visible pixels must not leak into the target; with `all` they do."""
    for sees, leaks in (("masked", False), ("all", True)):
        objective, patches, view = build("ema", **{"collapse.target_sees": sees})
        before = objective.target.encode(objective.encoder, patches, view)
        changed = patches.clone()
        changed.scatter_(1, view.visible[..., None].expand(-1, -1, 4), 9.0)
        after = objective.target.encode(objective.encoder, changed, view)
        assert torch.allclose(before, after) != leaks


def test_the_online_encoder_sees_visible_patches_alone() -> None:
    """Masked pixels in the context would make the task trivial."""
    objective, patches, view = build("ema")
    changed = patches.clone()
    changed.scatter_(1, view.masked[..., None].expand(-1, -1, 4), 9.0)
    one, other = (objective.output(pixels, view, 0.5) for pixels in (patches, changed))
    assert torch.equal(one.prediction, other.prediction)


def test_frozen_random_is_linear_in_the_patch() -> None:
    """Latent MIM Lite: no target encoder, so no context and no positions."""
    objective, patches, view = build("frozen_random")
    one = objective.target.encode(objective.encoder, patches, view)
    two = objective.target.encode(objective.encoder, 2 * patches, view)
    torch.testing.assert_close(two, 2 * one)
    assert one.shape[:2] == take(patches, view.masked).shape[:2]


def test_the_targets_of_tokens_are_named_twice_alike() -> None:
    """A plan would let one through to a loss that cannot compare with it."""
    assert {name for name, kind in TARGETS.items() if issubclass(kind, Tokens)} == {*TOKENS}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_is_a_function_of_its_patch_alone(kind: str) -> None:
    """A decoder could read the answer off the visible patches, or learn from a target that moves."""
    objective, patches, view = build(kind, **{"loss": "cross_entropy", "mask.similarity": 0.0})
    target = objective.target
    assert isinstance(target, Tokens)
    with torch.no_grad():
        for tensor in target.state_dict().values():
            tensor.normal_()
    ids = target.encode(objective.encoder, patches, view)
    assert ids.shape == (3, 10)
    assert not ids.is_floating_point()
    assert 2 < len(set(ids.flatten().tolist())) <= target.codes
    assert torch.equal(ids, target.ids(take(patches, view.masked)))
    output = objective.output(patches, view, 0.5)
    assert torch.equal(ids, output.target)
    assert output.prediction.shape == (3, 10, target.codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ids, target.encode(objective.encoder, patches, view))


def test_kmeans_gives_the_nearest_centroid() -> None:
    """Else the ids would tell something other than what the reconstruction error is of."""
    objective, patches, view = build("kmeans", **{"loss": "cross_entropy", "mask.similarity": 0.0})
    target = objective.target
    assert isinstance(target, KMeans)
    target.centroids.normal_()
    masked = take(patches, view.masked)
    nearest = torch.cdist(masked, target.centroids.expand(3, -1, -1)).argmin(dim=2)
    assert torch.equal(target.encode(objective.encoder, patches, view), nearest)
    assert torch.equal(target.decode(nearest), target.centroids[nearest])
