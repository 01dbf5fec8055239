"""Figures of a sweep's table: what is drawn is what the trials say."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from lmim.analysis import album, pictures
from lmim.analysis.results import assemble
from lmim.trial.figure import Figure
from tests.analysis.builders import PLAN, RUNS

ERRORS = {"eval/error_snow": 50.0, "eval/error_fog": 20.0}
FEWER = {f"{key}.images100": 3 * value for key, value in ERRORS.items()}
"""Of a second entry in the sweep's file."""


def described(*keys: str) -> dict[str, dict[str, str]]:
    """What the report knows of these errors."""
    said = {key: key.removeprefix("eval/error_").replace(".images100", ", images=100") for key in keys}
    return {key: {"label": f"error under {said[key]}", "unit": "%", "better": "lower"} for key in keys}


def test_errors_stand_over_those_of_the_arm_of_equal_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an arm looks robust because its seeds were easy, or is held against the wrong one."""
    drawn = []
    heatmap = pictures.heatmap

    def keeping(axes: Axes, data: pictures.Arrays) -> AxesImage:
        drawn.append(data)
        return heatmap(axes, data)

    monkeypatch.setattr(pictures, "heatmap", keeping)

    def times(arm: str, seed: int) -> float:
        """mse errs more from seed to seed, cosine half as often at each."""
        return (1 + seed) * {"mse": 1.0, "cosine": 0.5}.get(arm, 2.0)

    runs = [
        replace(
            run,
            metrics=dict(run.metrics)
            | {key: value * times(run.arm, run.seed) for key, value in (ERRORS | FEWER).items()},
        )
        for run in RUNS
        if run.arm != "raw_pixels" and (run.arm, run.seed) != ("patch_discrimination", 2)
    ]
    found = assemble(PLAN | {"metrics": PLAN["metrics"] | described(*ERRORS)}, runs)
    (page,) = album._corruptions(Figure("corruptions", {"to": "mse"}), found).pages
    (data,) = drawn
    assert [*data["x"]] == ["snow", "fog", "mean"]
    assert [*data["y"]] == ["random_encoder", "patch_discrimination", "cosine", "mse"]
    np.testing.assert_allclose(data["values"], np.outer([2, 2, 0.5, 1], [1, 1, 1]))
    assert page.axes
    told = album._corruptions(Figure("corruptions", {"to": ""}), found)
    assert "over the error of mse" in told.caption, "the sweep's first arm"
    assert told.notes == ("raw_pixels: no errors at a seed of mse yet",)

    both = assemble(PLAN | {"metrics": PLAN["metrics"] | described(*ERRORS, *FEWER)}, runs)
    pages = album._corruptions(Figure("corruptions", {"to": "mse"}), both).pages
    assert [page.axes[0].get_title() for page in pages] == ["", "images=100"]
    for data in drawn[-2:]:
        assert [*data["x"]] == ["snow", "fog", "mean"], "no mean over both entries"

    nothing = album._corruptions(Figure("corruptions", {"to": "mse"}), assemble(PLAN, RUNS))
    assert not nothing.pages
    assert len(nothing.notes) == 1
