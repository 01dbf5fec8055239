"""Where the gradient goes, what the targets follow, and what holds latents apart."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lmim import objectives
from lmim.axes.collapse import TARGETS, KMeans, Tokens, levels, sigreg, vicreg
from lmim.axes.mask import sample_view
from lmim.config import TOKENS, Config, merge
from lmim.encoder import Encoder, View, take
from lmim.objectives import Setup
from lmim.objectives.latent_mim import LatentMIM
from lmim.plan.tokenizers import FITTED

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
def test_a_gradient_reaches_the_target_only_of_joint_encoders(kind: str) -> None:
    """This is the whole difference between the arms of the first ablation."""
    objective, patches, view = build(kind)
    target = objective.target.encode(objective.encoder, patches, view)
    assert target.shape == (3, 10, 4 if kind == "pixels" else 16)
    assert target.requires_grad == (kind in ("joint", "vicreg", "sigreg"))


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind not in TOKENS])
def test_only_ema_follows_the_online_encoder(kind: str) -> None:
    """Some are the online weights themselves; frozen_random and pixels never move."""
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


def golden_files() -> list[Path]:
    """Those that ship, and those of LMIM_GOLDEN, a folder where others of the same kind may be kept."""
    folders = [
        Path(__file__).parents[1] / "fixtures",
        *map(Path, filter(None, [os.environ.get("LMIM_GOLDEN")])),
    ]
    found = [path for folder in folders for path in sorted(folder.glob("regularisers*.safetensors"))]
    return [path for path in found if path.stem.partition("_")[0] == "regularisers"]


def assert_close(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    assert (ours - theirs.view(ours.shape)).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("path", golden_files(), ids=lambda path: path.stem)
def test_regularisers_and_their_gradients_are_the_authors(path: Path) -> None:
    """Another normalisation, of the covariance or the integral, would be another strength in every arm."""
    golden = load_file(path)
    x, y = (golden[name].requires_grad_() for name in ("input.x", "input.y"))
    found = vicreg(x, y)
    assert_close(found, golden["vicreg.loss"])
    for ours, name in zip(torch.autograd.grad(found, [x, y]), ("x", "y"), strict=True):
        assert_close(ours, golden[f"vicreg.grad_{name}"])
    found = sigreg(x, golden["sigreg.directions"])
    assert_close(found, golden["sigreg.loss"])
    assert_close(torch.autograd.grad(found, x)[0], golden["sigreg.grad_x"])


@pytest.mark.parametrize("samples", [16, 4096])
def test_sigreg_of_normal_samples_is_that_of_the_theory(samples: int) -> None:
    """A statistic that grew with the batch would weigh less against it the more it is needed."""
    directions = torch.nn.functional.normalize(torch.randn(8, 64), dim=0)
    groups = torch.randn(2**16 // samples, samples, 8, generator=torch.Generator().manual_seed(0))
    several = [sigreg(group, directions) for group in groups]
    assert torch.stack(several).mean().item() == pytest.approx(1.05, rel=0.1)
    torch.testing.assert_close(sigreg(groups, directions), torch.stack(several).mean())


@pytest.mark.parametrize("kind", ["vicreg", "sigreg"])
def test_latents_of_place_or_image_alone_are_a_collapse(kind: str) -> None:
    """Both can be predicted without looking, and all patches in one heap would pass for well spread."""
    target = build(kind)[0].target
    stream = torch.Generator().manual_seed(0)
    view = sample_view(64, 16, 4, stream)
    content, place, image = (
        torch.randn(*shape, 8, generator=stream) for shape in [(64, 16), (1, 16), (64, 1)]
    )

    def judged(latents: Tensor) -> float:
        torch.manual_seed(0)
        latents = latents.expand(64, 16, 8)
        found = target.regularise(take(latents, view.visible), take(latents, view.masked))
        assert found is not None
        return float(found)

    healthy = judged(content + image)
    assert judged(place) > 1.5 * healthy
    assert judged(image) > 1.5 * healthy
    assert judged(torch.zeros(1, 1, 8)) > max(judged(place), judged(image))


def test_levels_are_an_images_mean_and_the_rest() -> None:
    """A mean of the visible patches alone would differ between images by which these are."""
    view = sample_view(5, 16, 4, torch.Generator().manual_seed(0))
    latents = torch.randn(5, 16, 3)
    means, rest = levels(take(latents, view.visible), take(latents, view.masked))
    torch.testing.assert_close(means, latents.mean(dim=1))
    torch.testing.assert_close(rest[:, :4], take(latents, view.visible) - means[:, None])
    assert means.var(dim=0).min() > 0


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind not in TOKENS])
def test_only_regularisers_add_to_the_loss(kind: str) -> None:
    """An arm without one must keep its figures; with one the journal must show what it weighs."""
    objective, patches, view = build(kind, **{"mask.similarity": 0.0})
    torch.manual_seed(0)
    output = objective.output(patches, view, 0.5)
    if kind not in ("vicreg", "sigreg"):
        assert output.regulariser is None
        assert output.loss is output.term
        return
    assert output.regulariser is not None
    torch.testing.assert_close(output.loss, output.term + output.regulariser)
    torch.manual_seed(0)
    assert torch.equal(objective.output(patches, view, 0.5).loss, output.loss)
    torch.manual_seed(1)
    other = objective.output(patches, view, 0.5).loss
    assert torch.equal(other, output.loss) == (kind == "vicreg")  # sigreg looks along other directions


def test_the_targets_of_tokens_are_named_twice_alike() -> None:
    """A plan would let one through to a loss that cannot compare with it."""
    assert {name for name, kind in TARGETS.items() if issubclass(kind, Tokens)} == {*TOKENS}


@pytest.mark.parametrize("kind", FITTED)
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
