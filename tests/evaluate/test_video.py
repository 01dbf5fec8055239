"""Video-object segmentation: what moves is followed where features tell it apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmim.axes.mask import patchify
from lmim.data import Dataset
from lmim.data.splits import ArrayClips
from lmim.evaluate import judge
from lmim.evaluate.features import Frozen
from lmim.evaluate.video import predicted, video
from lmim.plan.sweep_file import with_data
from lmim.trial.evaluation import EntryError, read_evaluations
from tests.evaluate.builders import frozen, model, nothing


def shows(images: Tensor) -> Tensor:
    """What a patch shows: ground, or which of two squares, as a one-hot."""
    level = patchify(images, 4).mean(dim=2)
    return torch.stack([(level - one).abs() < 0.1 for one in (0.0, 0.5, 1.0)], dim=2).float()


def squares(clips: int = 3) -> Dataset:
    """Two squares of one patch that move by a patch a frame, one of them after the other's place is free."""
    masks = np.zeros((clips, 5, 24, 24), np.uint8)
    for time in range(5):
        masks[:, time, 4:8, 4 * time : 4 * time + 4] = 1
        masks[:, time, 16:20, 20 - 4 * time : 24 - 4 * time] = 2
    images = np.array([0, 128, 255], np.uint8)[masks][:, :, None]
    split = ArrayClips(images, torch.zeros(clips, dtype=torch.long), 24, masks)
    return Dataset("squares", "1", 1, 1, (0.0,), (1.0,), False, split, split, split, frames=5, masks=True)


def given(patches: object = shows) -> Frozen:
    """Clips of squares, judged by an encoder that knows what it sees."""
    seen = replace(model(dataset=squares(), side=24), patches=patches)  # type: ignore[arg-type]
    return replace(frozen(nothing(2), nothing(2), 1), model=seen, opened=squares())


@pytest.mark.parametrize("recipe", ["dino", "videowalk"])
def test_a_square_that_moves_is_followed(recipe: str) -> None:
    """Masks read at the wrong time, or rows taken for columns, would show as a worse encoder."""
    figures = video(given(), recipe=recipe)  # type: ignore[arg-type]
    if recipe == "dino":  # smooth labels of single patches are no longer one patch large
        assert figures == {"video_jf": 100, "video_j": 100, "video_f": 100}
    assert figures["video_j"] > 30


def test_an_encoder_that_sees_nothing_follows_nothing() -> None:
    """A protocol that scored the given frame would praise every encoder."""
    blind = video(given(lambda images: torch.ones(len(images), 36, 2)))
    assert blind["video_jf"] < 20


def test_features_are_those_after_the_final_norm() -> None:
    """Figures before it would stand under DINO's name."""
    views: list[dict[str, Any]] = []

    def patches(images: Tensor, **view: Any) -> Tensor:
        views.append(view)
        return shows(images)

    def whole(images: Tensor, **view: Any) -> Tensor:
        return images.flatten(1)

    evaluations = read_evaluations([{"video": {"clips": 1}}, {"video": {"clips": 1, "norm": False}}])
    assert {found.error for _, found in judge(whole, squares(), 24, evaluations, patches=patches)} == {""}
    assert {*map(str, views)} == {"{'norm': True}", "{}"}


def test_grey_clips_are_seen_by_an_encoder_of_colours() -> None:
    """Any RGB encoder would be refused the clips that come with the package."""
    colours = replace(squares(), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)

    def patches(images: Tensor) -> Tensor:
        assert images.shape[1] == 3
        return shows(images[:, :1])

    seen = replace(model(dataset=colours, side=24), patches=patches)
    assert video(replace(given(), model=seen)) == {"video_jf": 100, "video_j": 100, "video_f": 100}


def test_an_encoder_of_one_size_is_told_of_the_square() -> None:
    """Its trial would end in timm's words, and nobody know that it can be judged."""

    def patches(images: Tensor) -> Tensor:
        assert images.shape[2] == 24, "Input height doesn't match model"
        return shows(images)

    asked = given(patches)
    with pytest.raises(ValueError, match=r"no frames of 12 x 12 px .*Input height.*side: 0 squeezes"):
        video(asked, side=12)
    assert video(asked, side=0)["video_j"] == 100


def test_the_first_mask_is_given_and_the_last_is_not_scored() -> None:
    """As the official rules have it."""
    one = next(predicted(given().model, squares(), "test"))
    truth, guess = one.truth, one.found
    assert torch.equal(truth[0], guess[0])
    assert truth.shape == guess.shape == (5, 24, 24)


def test_data_without_masks_or_frames_are_refused_before_anything_runs() -> None:
    """Hours of training would end in a traceback."""
    with pytest.raises(EntryError, match=r"video.data: expected data with masks .*, found digits"):
        with_data(read_evaluations([{"video": {"data": "digits"}}]))
    (found,) = with_data(read_evaluations(["video"]))
    assert found.version
    assert [metric.name for metric in found.metrics.values()] == [
        "eval/video_jf",
        "eval/video_j",
        "eval/video_f",
    ]
