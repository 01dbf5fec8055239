"""The figures' functions, on arrays of which the right picture is known."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lmim.analysis import pictures

TRUTH = np.repeat(np.repeat(np.array([[0, 1], [2, 2]]), 4, 0), 4, 1)
"""An image of 8 x 8 pixels: ground, and two objects."""


def panels(count: int) -> list[Axes]:
    """Axes without a screen."""
    return [*Figure().subplots(1, count, squeeze=False)[0]]


def drawn(axes: Axes) -> NDArray[Any]:
    """The numbers behind the first image of an axis."""
    found = axes.images[0].get_array()
    assert found is not None
    return found


def lightness(colour: Any) -> float:
    """What is left of a colour in grey."""
    return float(np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722]))


def test_levels_are_told_apart_in_grey() -> None:
    """Printed in black and white, two segments would be one."""
    for count in (2, 3, 5, 8):
        steps = np.diff([lightness(colour) for colour in pictures.levels(count)])
        assert len(pictures.levels(count)) == count
        assert (steps > 0.6 / count).all()


def test_planted_clusters_have_their_segments_colours() -> None:
    """Clusters come in no order: a reader would compare a map in random colours with the truth."""
    found = np.array([2, 0, 1])[TRUTH]
    found[0, 0] = 0  # a pixel that went astray
    image = np.zeros((1, 1, 8, 8), np.float16)
    axes = panels(3)
    pictures.segmentation(axes, {"image": image, "truth": TRUTH[None], "found": found[None]})
    assert (drawn(axes[1]) == TRUTH).all()
    assert (drawn(axes[2]) != TRUTH).sum() == 1
    assert axes[1].images[0].norm.vmax == axes[2].images[0].norm.vmax, "one number has one colour in both"


def test_more_clusters_than_segments_and_pixels_without_a_label() -> None:
    """An image with void pixels, or a map with a cluster too many, would end the report."""
    truth = TRUTH.copy()
    truth[0] = pictures.VOID
    found = np.arange(64).reshape(8, 8) // 8
    axes = panels(3)
    pictures.segmentation(axes, {"image": np.zeros((1, 3, 8, 8)), "truth": truth[None], "found": found[None]})
    assert np.ma.getmaskarray(drawn(axes[1]))[0].all()
    assert len(np.unique(drawn(axes[2]))) == 8
    assert drawn(axes[0]).shape == (8, 8, 3)


def test_tsne_gives_each_cluster_its_own_points() -> None:
    """Points coloured in another order than the map's would show clusters that are not there."""
    groups = np.array([[0, 0], [1, 2]])
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    axes = panels(3)
    pictures.tsne(axes, {"image": np.zeros((1, 1, 4, 4)), "clusters": groups[None], "points": points[None]})
    offsets = [np.asarray(one.get_offsets()).tolist() for one in axes[2].collections]
    assert offsets == [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 9.0]], [[9.0, 9.0]]]
    assert (drawn(axes[1]) == groups).all()


def test_attention_lies_on_the_visible_patches_alone() -> None:
    """A masked patch that seems attended to would say that the decoder sees what it is to predict."""
    data = {
        "image": np.zeros((1, 1, 6, 6)),
        "visible": np.array([[0, 8]]),
        "queries": np.array([[4]]),
        "weights": np.array([[[0.5, 0.3, 0.2]]]),
        "side": np.array(3),
    }
    axes = panels(3)
    pictures.attention(axes, data)
    cells = drawn(axes[2])
    assert (cells[0, 0], cells[2, 2]) == (0.3, 0.2)
    assert np.ma.getmaskarray(cells).sum() == 7
    assert axes[2].get_title() == "class 0.50, most 0.30"
    (query,) = [part for part in axes[2].patches if isinstance(part, Rectangle)]
    assert query.get_xy() == (0.5, 0.5)
    assert len(axes[1].patches) == 7, "what is masked is hatched"


def test_a_reconstruction_hides_what_was_masked() -> None:
    """Else the masked image would show what was to be predicted."""
    image = np.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    masked = np.array([[[True, False], [False, False]]])
    axes = panels(3)
    pictures.reconstruction(axes, {"image": image, "predicted": image[:, :, ::-1], "masked": masked})
    (hidden,) = [part for part in axes[0].patches if isinstance(part, Rectangle)]
    assert (hidden.get_xy(), hidden.get_width()) == ((-0.5, -0.5), 4)
    assert np.allclose(drawn(axes[2]), image[0, 0])
    assert np.allclose(drawn(axes[1]), image[0, 0, ::-1])


def test_a_strip_has_the_truth_above_what_was_carried() -> None:
    """Rows that change places would praise what is true and blame the encoder."""
    truth = np.stack([np.where(TRUTH == 1, 1, 0), np.where(TRUTH == 2, 1, 0)])
    found = np.stack([truth[0], np.zeros((8, 8), int)])
    data = {
        "frames": np.zeros((1, 2, 1, 8, 8)),
        "truth": truth[None],
        "found": found[None],
        "times": np.array([[0, 7]]),
    }
    axes = panels(4)
    pictures.propagation(axes, data)
    assert [axis.get_title() for axis in axes] == ["frame 0, given", "frame 7", "", ""]
    assert [len(axis.images) - 1 for axis in axes] == [1, 1, 1, 0], "an overlay for each object that is there"
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["true", "carried"]


def test_neighbours_say_whether_they_are_of_the_class() -> None:
    """A cosine alone tells nobody that the neighbour is wrong."""
    data = {
        "query": np.zeros((1, 1, 4, 4)),
        "nearest": np.zeros((1, 2, 1, 4, 4)),
        "cosine": np.array([[0.9, 0.5]]),
        "alike": np.array([[True, False]]),
    }
    axes = panels(3)
    pictures.neighbours(axes, data)
    assert [axis.get_title() for axis in axes] == ["query", "0.900 ✓", "0.500 ✗"]


def test_similarity_draws_what_there_is() -> None:
    """Targets that are ids have no cosine: the others are shown."""
    data = {
        "steps": np.array([0, 10, 20]),
        "patches": np.array([0.9, 0.5, 0.4]),
        "parts": np.array(["prediction", "target", "visible"]),
        "before": np.array([0.9, math.nan, 0.8]),
        "after": np.array([0.2, math.nan, 0.3]),
    }
    (axes,) = panels(1)
    pictures.similarity(axes, data)
    lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert lines == {
        "patches of the encoder": [0.9, 0.5, 0.4],
        "prediction, at both ends": [0.9, 0.2],
        "visible, at both ends": [0.8, 0.3],
    }
    (axes,) = panels(1)
    pictures.similarity(axes, data | {"visible_steps": np.array([5, 10]), "visible": np.array([0.7, 0.3])})
    (curve,) = (line for line in axes.lines if line.get_label() == "visible")
    assert np.asarray(curve.get_xydata()).tolist() == [[5, 0.7], [10, 0.3]], "the course, not the ends"


@pytest.mark.parametrize("value", [0.0, 10.0])
def test_a_heat_map_can_be_read_where_it_is_dark_and_where_it_is_light(value: float) -> None:
    """Figures in a cell's own colour are not seen."""
    data = {"x": np.array([0.5, 0.9]), "y": np.array([0.0]), "values": np.array([[value, math.nan]])}
    (axes,) = panels(1)
    shown = pictures.heatmap(axes, data | {"low": np.array(0.0), "high": np.array(10.0)}, decimals=1)
    (text,) = axes.texts
    assert text.get_text() == f"{value:.1f}"
    cell = shown.to_rgba(np.array([value]))[0, :3]
    assert abs(lightness(text.get_color()) - lightness(cell)) > 0.4
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "0.9"]
