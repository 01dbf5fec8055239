"""Clips and frames: what each branch sees and predicts, what is held together, and what is not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lmim import objectives, survey
from lmim.config import Config, merge
from lmim.data import Dataset, open_dataset
from lmim.encoder import View
from lmim.errors import UserError
from lmim.objectives import Setup
from lmim.objectives.video_mim import VideoMIM, nt_xent, standardised, tube_positions
from lmim.plan.ablation import load
from lmim.train.batches import batches
from lmim.train.loop import Run, train
from lmim.trial.folder import TrialFolder
from tests.data.clips import MOVING

TINY: dict[str, Any] = {
    "objective": "video_mim",
    "data": {"name": "clips.py:moving", "image_size": 8, "train_images": 60},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "projector": {"depth": 2, "width": 16},
    "decoder": {"kind": "self_attention", "cues": False, "width": 16, "depth": 1, "heads": 2},
    "video_mim": {"frames": 4, "video_ratio": 0.8},
    "optim": {"epochs": 1, "batch_size": 10, "base_lr": 1e-2},
    "watch": {"images": 32},
    "run": {"device": "cpu"},
}
ALONE = {"across_video": 0.0, "across_frame": 0.0}
CONTRASTS = ("within_video", "within_image", "across_video", "across_frame")


def tiny(own: dict[str, Any] | None = None, **changes: Any) -> Config:
    tree = merge(TINY, {key.replace("__", "."): v for key, v in changes.items()} | {"video_mim": own or {}})
    return Config.read(tree | {"sources": {"clips.py": MOVING}})


def dataset(config: Config) -> Dataset:
    return open_dataset(config.data, config.sources)


def first_step(config: Config) -> tuple[Run, dict[str, Tensor]]:
    """A run, and its figures of the first micro-batch, its gradients in place."""
    run = Run(config, dataset(config), torch.device("cpu"))
    [batch, *_] = next(batches(run.dataset.train, config, run.objective, 0, 1))
    figures = run.losses(batch, {})
    figures["loss"].backward()  # type: ignore[no-untyped-call]
    return run, figures


def objective(own: dict[str, Any] | None = None, frames: int = 8) -> VideoMIM:
    torch.manual_seed(0)
    found = objectives.build(tiny(own), Setup(8, 1, 3, frames=frames))
    assert isinstance(found, VideoMIM)
    return found


def moved(model: VideoMIM) -> set[str]:
    """The parts, branch and module, that have a gradient which is not zero."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())]
    return {".".join(name.split(".")[1:3]) for name in names}


PARTS = ("encoder", "decoder", "head")


@pytest.mark.parametrize(
    ("own", "expected", "views"),
    [
        ({}, {f"{kind}.{part}" for kind in ("video", "image") for part in PARTS}, 4 + 1 + 4 + 1),
        ({"branches": "image"}, {f"image.{part}" for part in PARTS}, 2),
        ({"branches": "image", "within_image": 0.0}, {"image.encoder", "image.decoder"}, 1),
        ({"branches": "video"}, {f"video.{part}" for part in PARTS}, 8),
        ({"branches": "video", "within_video": 0.0}, {"video.encoder", "video.decoder"}, 4),
        (dict.fromkeys(CONTRASTS, 0.0), {f"{k}.{p}" for k in ("video", "image") for p in PARTS[:2]}, 5),
        (
            {"within_video": 0.0, "within_image": 0.0},
            {f"{kind}.{part}" for kind in ("video", "image") for part in PARTS},
            5,
        ),
        (
            {**ALONE, "within_image": 0.0},
            {"image.encoder", "image.decoder", *(f"video.{part}" for part in PARTS)},
            9,
        ),
    ],
)
def test_what_a_term_does_not_need_is_neither_seen_nor_moved(
    own: dict[str, Any], expected: set[str], views: int
) -> None:
    """An arm without a term would train by it, or pay for it."""
    run, figures = first_step(tiny(own))
    assert isinstance(run.objective, VideoMIM)
    assert moved(run.objective) == expected
    weights = {"video_pixels": 1.0, "image_pixels": 1.0, **dict.fromkeys(CONTRASTS, 1.0)}
    terms = {name: value for name, value in figures.items() if name != "loss"}
    total = sum(weights[name] * value.item() for name, value in terms.items())
    assert figures["loss"].item() == pytest.approx(total, rel=1e-6)
    assert not {name for name, weight in own.items() if weight == 0} & terms.keys()
    draw = run.objective.draw(torch.ones(3), torch.Generator().manual_seed(0))
    assert draw.boxes.shape == (3, views, 4)
    assert draw.times is not None
    assert draw.times.shape == (3, views)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_apart_the_branches_are_the_arms_with_one_alone(kind: str) -> None:
    """Without contrast across them the arm with both would be no control of the arms with one."""
    config = tiny({**ALONE})
    (both, figures), (alone, its) = first_step(config), first_step(tiny({**ALONE, "branches": kind}))
    for name in (f"{kind}_pixels", f"within_{kind}"):
        assert torch.equal(figures[name], its[name])
    gradients = dict(both.objective.named_parameters())
    for name, parameter in alone.objective.named_parameters():
        assert torch.equal(parameter, gradients[name]), name
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


class Watched:
    """A split of clips that remembers which frames were asked for."""

    def __init__(self, whole: Any) -> None:
        self.whole, self.labels, self.aspect = whole, whole.labels, whole.aspect
        self.times: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, *arguments: Any) -> Any:
        raise AssertionError("an objective of clips reads clips")

    def read_clips(
        self, indices: Int[Tensor, " b"], side: int, boxes: Float[Tensor, "b v 4"], times: Int[Tensor, "b v"]
    ) -> tuple[UInt8[Tensor, "b v c h w"], Float[Tensor, "b v 4"]]:
        self.times.append(times)
        found: tuple[Tensor, Tensor] = self.whole.read_clips(indices, side, boxes, times)
        return found


@pytest.mark.parametrize("own", [{"branches": "image"}, {"branches": "image", "within_image": 0.0}])
def test_an_image_arm_reads_its_own_frames_alone(own: dict[str, Any]) -> None:
    """It would have seen more of the clips than it says, or wait for frames that it does not use."""
    config = tiny(own)
    run = Run(config, dataset(config), torch.device("cpu"))
    watched = Watched(run.dataset.train)
    steps = [list(step) for step in batches(watched, config, run.objective, 0, run.steps)]
    times = torch.cat(watched.times)
    assert times.shape[1] == (2 if "within_image" not in own else 1)
    assert (times == times[:, :1]).all(), "one frame of a clip, in two crops"
    assert {*times[:, 0].tolist()} == {*range(8)}, "any frame of it"
    levels = torch.cat([batch.images.amax((2, 3, 4)) for step in steps for batch in step])
    assert torch.equal(levels - 200, times.byte())


def test_a_frame_is_of_the_stretch_that_the_clip_shows() -> None:
    """Contrast at the level of a frame would hold it to another time's tokens."""
    model = objective()
    draw = model.draw(torch.ones(200), torch.Generator().manual_seed(0))
    assert draw.times is not None
    clip, frame, again, crop = torch.split(draw.times, [4, 1, 4, 1], dim=1)
    assert torch.equal(clip, clip[:, :1] + torch.arange(4))
    assert {*clip[:, 0].tolist()} == {*range(5)}
    assert torch.equal(clip, again)
    assert torch.equal(frame, crop)
    place = (clip == frame).int().argmax(dim=1)
    assert (clip == frame).any(dim=1).all()
    assert torch.equal(draw.own["tube"], place // 2)
    clip_box, frame_box, again_box, crop_box = (
        part[:, 0] for part in torch.split(draw.boxes, [4, 1, 4, 1], 1)
    )
    assert all((part == part[:, :1]).all() for part in torch.split(draw.boxes, [4, 1, 4, 1], 1))
    assert torch.equal(clip_box, crop_box)
    assert torch.equal(frame_box, again_box)
    assert (clip_box != frame_box).any(dim=1).all()


def test_arms_of_one_seed_share_what_they_draw() -> None:
    """They would differ by luck besides what they are to differ by."""
    full = objective().draw(torch.ones(5), torch.Generator().manual_seed(0))
    for own in ({"branches": "image"}, {"branches": "video"}, {"within_video": 0.0, "within_image": 0.0}):
        draw = objective(own).draw(torch.ones(5), torch.Generator().manual_seed(0))
        assert draw.own.keys() < full.own.keys()
        for name, part in draw.own.items():
            assert torch.equal(part, full.own[name]), name


def test_a_tube_is_hidden_at_all_times_or_at_none() -> None:
    """A patch seen at another time could be copied, which is what tubes are to prevent."""
    model = objective()
    draw = model.draw(torch.ones(6), torch.Generator().manual_seed(0))
    visible, masked = (draw.own[f"video_0_{name}"] for name in ("visible", "masked"))
    assert visible.shape == (6, 3)  # a fifth of 16 places
    clips = torch.randn(6, 4, 1, 8, 8)
    patches, view = model.patches(clips, draw.own["video_0_offsets"], View(visible, masked))
    assert patches.shape == (6, 2 * 16, 2 * 4)
    assert torch.equal(view.visible.view(6, 2, 3) % 16, visible[:, None].expand(-1, 2, -1))
    assert torch.equal(view.visible.view(6, 2, 3) // 16, torch.arange(2)[None, :, None].expand(6, 2, 3))
    together = torch.cat([view.visible, view.masked], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(32).expand(6, -1))
    # the tube of time 1 and of row 2, column 3: pixels in the order frame, row, column
    assert torch.equal(patches[:, 16 + 2 * 4 + 3], clips[:, 2:4, 0, 4:6, 6:8].flatten(1))


def test_the_latents_do_not_depend_on_what_is_hidden() -> None:
    """A branch that saw the pixels it is to predict would learn to copy them."""
    config = tiny({**ALONE})
    run = Run(config, dataset(config), torch.device("cpu"))
    model = run.objective
    assert isinstance(model, VideoMIM)
    [batch, *_] = next(batches(run.dataset.train, config, model, 0, 1))
    views = run.views(batch).requires_grad_()
    figures = model(views, batch.labels, batch.draw.own, {})
    (figures["within_video"] + figures["within_image"]).backward()
    assert views.grad is not None
    touched = views.grad.abs().sum((0, 2))
    assert touched.any()
    for name, start, count in (("video_0", 0, 4), ("image_0", 4, 1), ("video_1", 5, 4), ("image_1", 9, 1)):
        seen = views.grad[:, start : start + count].abs().amax((1, 2))  # a frame's pixels
        patches = seen.view(-1, 4, 2, 4, 2).amax((2, 4)).flatten(1)
        visible = torch.zeros_like(patches).scatter(1, batch.draw.own[f"{name}_visible"], 1.0)
        assert not patches[visible == 0].any(), name
        assert patches[visible == 1].all(), name


def test_each_channel_of_a_tube_is_standardised() -> None:
    """VideoMAE's target; over all channels at once a colour's mean would have to be predicted."""
    tubes = torch.randn(3, 5, 2 * 4 * 4 * 3) * 7 + 2
    found = standardised(tubes, channels=3).view(3, 5, 32, 3)
    torch.testing.assert_close(found.mean(dim=2), torch.zeros(3, 5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=2), torch.ones(3, 5, 3))
    by_hand = tubes[0, 0].view(32, 3)[:, 1]
    expected = (by_hand - by_hand.mean()) / (by_hand.var(unbiased=True).sqrt() + 1e-6)
    torch.testing.assert_close(found[0, 0, :, 1], expected)
    assert not standardised(torch.full((1, 1, 12), 3.0), channels=3).any(), "a flat tube is all zero"
    zero = standardised(torch.randn(64, 9, 32), channels=1).square().mean()
    assert zero.item() == pytest.approx(31 / 32, rel=1e-4)  # what predicting nothing costs


def test_nt_xent_has_its_known_values() -> None:
    """Another temperature, or itself among the others, and every weight would mean something else."""
    pair = torch.eye(4)
    for temperature in (1.0, 0.1):
        expected = math.log(1 + 6 * math.exp(-1 / temperature))
        assert nt_xent(pair, pair, temperature).item() == pytest.approx(expected, rel=1e-3)
    same = torch.ones(5, 3)
    assert nt_xent(same, 7 * same, 0.3).item() == pytest.approx(math.log(9), rel=1e-5)  # nothing tells them
    one, other = torch.randn(2, 6, 8).unbind(0)
    expected_loss, both = 0.0, torch.nn.functional.normalize(torch.cat([one, other]), dim=1).tolist()
    for i, row in enumerate(both):
        logits = [sum(a * b for a, b in zip(row, column, strict=True)) / 0.5 for column in both]
        others = [math.exp(logit) for j, logit in enumerate(logits) if j != i]
        expected_loss += math.log(sum(others)) - logits[(i + 6) % 12]
    assert nt_xent(one, other, 0.5).item() == pytest.approx(expected_loss / 12, rel=1e-5)
    torch.testing.assert_close(nt_xent(other, one, 0.5), nt_xent(one, other, 0.5))
    assert nt_xent(one, one, 0.1) < nt_xent(one, other, 0.1)


def test_a_time_has_a_code_of_its_own() -> None:
    """Tokens of two times at one place would be one token twice."""
    codes = tube_positions(4, 3, 16)
    assert codes.shape == (36, 16)
    assert (torch.cdist(codes, codes) + 9 * torch.eye(36)).min() > 0.05
    by_time = codes.view(4, 9, 16)
    offsets = by_time - by_time[:1]
    assert torch.allclose(offsets, offsets[:, :1].expand_as(offsets), atol=1e-6)


@pytest.mark.parametrize("branches", ["both", "image", "video"])
def test_all_arms_are_judged_on_one_frame_by_as_many_features(branches: str) -> None:
    """Arms with features of other images, or of another size, could not stand in one table."""
    model = objective({"branches": branches}).eval()
    images = torch.randn(3, 1, 8, 8)
    features = model.patch_features(images)
    assert features.shape == (3, 16, 16)
    kind = "video" if branches == "video" else "image"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"{kind}.encoder" not in name:
                parameter.zero_()
    assert torch.equal(model.patch_features(images), features)
    if branches == "video":  # a still clip's first tubes
        still = images[:, None].expand(-1, 4, -1, -1, -1)
        whole = torch.arange(16).expand(3, -1)
        patches, _ = model.patches(still, torch.zeros(3, 16, 2, dtype=torch.int64), View(whole, whole))
        expected = model.branch("video").encoder.tokens(patches, whole)[:, 1:]
        torch.testing.assert_close(features, expected)


def test_frame_level_contrast_is_of_the_frames_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another time, or of all, it would be the video level's term a second time."""
    model = objective()
    latents = {("video", 0): torch.randn(3, 2 * 5, 16), ("image", 0): torch.randn(3, 4, 16)}
    model.weights = {"across_frame": 1.0}
    seen: list[Tensor] = []

    def compare(one: Tensor, other: Tensor, temperature: float) -> Tensor:
        seen.extend([one, other])
        return one.sum()

    monkeypatch.setattr("lmim.objectives.video_mim.nt_xent", compare)
    tube = torch.tensor([1, 0, 1])
    model.contrasts(latents, tube)
    clip = latents["video", 0].view(3, 2, 5, 16)
    expected = torch.stack([clip[i, t].mean(dim=0) for i, t in enumerate(tube.tolist())])
    torch.testing.assert_close(seen[0], model.branch("video").head(expected))
    torch.testing.assert_close(seen[1], model.branch("image").head(latents["image", 0].mean(dim=1)))


def test_it_learns(tmp_path: Path) -> None:
    """A sign or a detached target, and every arm would be its initialisation."""
    config = tiny(optim__epochs=30, data__train_images=240, optim__batch_size=40)
    folder = TrialFolder(tmp_path, config.identity)
    assert train(config, folder).status == "done"
    rows = [row.metrics for row in folder.rows()[0] if "train/loss" in row.metrics]
    for name in ("video_pixels", "image_pixels", *CONTRASTS):
        assert rows[-1][f"train/{name}"] < rows[0][f"train/{name}"], name


def test_a_gap_between_patches_leaves_a_tube_its_place() -> None:
    """A patch whose window wandered over time would be no tube."""
    config = tiny({**ALONE}, mask__gap=1)
    run, figures = first_step(config)
    assert run.objective.crop_side == 12
    assert figures["loss"].isfinite()


def test_images_are_refused_by_the_trainer(tmp_path: Path) -> None:
    """A trial started by hand would fail in the middle of a step, by a name that means nothing."""
    config = tiny(data__name="digits", data__train_images=None)
    with pytest.raises(UserError, match=r"^data.name: digits is of images: objective video_mim needs clips"):
        train(config, TrialFolder(tmp_path, config.identity))
    short = tiny({"frames": 12})
    with pytest.raises(UserError, match=r"clips of 8 frames: .* video_mim.frames 12 or more"):
        train(short, TrialFolder(tmp_path, short.identity))


SWEEP = """
name: clips
base: base.yaml
config:
  objective: video_mim
  data.name: clips.py:moving
  data.image_size: 8
  encoder: {patch_size: 2, width: 16, depth: 1, heads: 2}
axes:
  video_mim.branches: [both, image, video]
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "video_mim.frames: [5]",
            "video_mim.frames: impossible combination: video_mim.frames 5",
        ),
        (
            "video_mim.tube: [3]",
            "video_mim.tube: impossible combination: video_mim.frames 8 is",
        ),
        (
            "video_mim.frames: [10]",
            "video_mim.frames: impossible combination: data.name clips.py",
        ),
        ("video_mim.video_ratio: [0.99]", "video_mim.video_ratio: impossible combination: "),
        ("data.train_images: [20]\n", ""),
    ],
)
def test_what_cannot_be_is_said_at_planning(tmp_path: Path, line: str, message: str) -> None:
    """Every trial would say it for itself, after the start."""
    (tmp_path / "clips.py").write_text(MOVING)
    file = tmp_path / "sweep.yaml"
    file.write_text(f"{SWEEP.lstrip()}  {line}\n")
    if not message:
        assert [trial.arm for trial in load(file).trials] == [
            f"branches={kind} train_images=20" for kind in ("both", "image", "video")
        ]
        return
    with pytest.raises(UserError) as caught:
        load(file)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(f"sweep.yaml:10: {message}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("branches", ["both", "image", "video"])
def test_flops_are_counted_on_the_meta_device(branches: str) -> None:
    """`--dry-run` could not say what an arm costs."""
    found = survey.flops(tiny({"branches": branches}), channels=1, classes=3)
    assert found["step"] > found["encode"] > 0
    assert found["width"] == 16
    assert survey.flops(tiny(), 1, 3)["step"] >= found["step"]
