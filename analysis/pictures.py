"""The papers' figures, one function each, on Matplotlib axes that are given: for a report, a notebook, a
paper.

What they show of a trial, `lmim.figures` makes: arrays by name, without a tensor, so that they are drawn
where there is no torch. Colours are of cividis, whose order is that of their lightness: good in grey too, and
for whoever tells no red from green.

    figure, axes = plt.subplots(1, 3)
    pictures.segmentation(axes, look("results/trials/<id>", "segmentation"))
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Arrays = Mapping[str, NDArray[Any]]
"""What a figure shows of a trial."""

MAP = "cividis"
VOID = 255
"""In a mask: a pixel that is not labelled."""
MARKERS = "osD^vP*X"
INK, GREY = "#111111", "#6b6b6b"
TEXT: Any = {"fontsize": 7.5}
ENDS = {"prediction": ("o", "#00224e"), "target": ("s", "#a59c74"), "visible": ("^", "#fee838")}
"""Marker and colour of what is measured before and after training."""


def segmentation(axes: Sequence[Axes], data: Arrays, number: int = 0) -> None:
    """On three axes: an image, its true segments, and the clusters of its patches in the colours of those
    segments with which they have most pixels in common."""
    image, truth, found = (data[name][number] for name in ("image", "truth", "found"))
    _show(axes[0], image, "image")
    segments = [int(value) for value in np.unique(truth) if value != VOID]
    true = np.full(truth.shape, -1)
    for place, segment in enumerate(segments):
        true[truth == segment] = place
    matched = _matched(true, found)
    count = max(len(segments), int(matched.max()) + 1)
    _labels(axes[1], true, count, "true segments")
    _labels(axes[2], matched, count, "clusters of patches")


def tsne(axes: Sequence[Axes], data: Arrays, number: int = 0) -> None:
    """On three axes: an image, the clusters of its patches, and the patches' features in two dimensions."""
    groups, points = data["clusters"][number], data["points"][number]
    count = int(groups.max()) + 1
    _show(axes[0], data["image"][number], "image")
    _labels(axes[1], groups, count, "clusters")
    _bare(axes[2], "t-SNE of patches")
    for group, colour in enumerate(levels(count)):
        x, y = points[groups.ravel() == group].T
        look: Any = {"marker": MARKERS[group % len(MARKERS)], "s": 20, "edgecolors": INK, "linewidths": 0.4}
        axes[2].scatter(x, y, color=[colour], **look)
    centre, reach = (points.max(0) + points.min(0)) / 2, 0.58 * float(np.ptp(points, axis=0).max())
    axes[2].set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach))
    axes[2].set_aspect("equal")


def similarity(axes: Axes, data: Arrays) -> None:
    """On one axis, over the steps: the mean cosine of an image's patches, and what the constraint aims at;
    that of predictions, targets and visible latents, at both ends alone where the journal has no more."""
    steps = data["steps"]
    axes.plot(steps, data["patches"], color=INK, linewidth=1.6, label="patches of the encoder")
    if "aim" in data:
        aim: Any = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.2}
        axes.plot(data["aim_steps"], data["aim"], label="aim of the constraint", **aim)
    ends = [0, int(steps.max())]
    for name, before, after in zip(data["parts"], data["before"], data["after"], strict=True):
        marker, colour = ENDS[str(name)]
        look: Any = {"marker": marker, "markersize": 6, "markerfacecolor": colour, "markeredgecolor": INK}
        if name in data:
            x, y = data[f"{name}_steps"], data[name]
            look |= {"color": GREY, "linewidth": 1.0, "markevery": max(1, len(x) // 6), "zorder": 4}
            axes.plot(x, y, label=str(name), **look)
        elif math.isfinite(before) and math.isfinite(after):
            look |= {"color": GREY, "linestyle": ":", "linewidth": 0.9, "clip_on": False, "zorder": 4}
            axes.plot(ends, [before, after], label=f"{name}, at both ends", **look)
    axes.set(xlabel="step", ylabel="mean cosine", ylim=(min(0.0, axes.get_ylim()[0]), 1.0))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def attention(axes: Sequence[Axes], data: Arrays, number: int = 0) -> None:
    """On two axes and one for each query: an image, what is visible of it, and how much each visible patch
    weighs for the query, which is crossed. What the class latent weighs, which lies nowhere, is written, and
    the most that a patch weighs; colours are of one scale over all images."""
    image, visible = data["image"][number], data["visible"][number]
    queries, weights, grid = data["queries"][number], data["weights"][number], int(data["side"])
    masked = np.ones(grid * grid, bool)
    masked[visible] = False
    _show(axes[0], image, "image")
    _show(axes[1], image, "visible")
    _hide(axes[1], masked.reshape(grid, grid), image.shape[-1])
    top = float(data["weights"][..., 1:].max())
    for axis, query, weight in zip(axes[2:], queries, weights, strict=False):
        cells = np.full(grid * grid, np.nan)
        cells[visible] = weight[1:]
        _bare(axis, f"class {weight[0]:.2f}, most {weight[1:].max():.2f}")
        axis.imshow(cells.reshape(grid, grid), cmap=MAP, vmin=0, vmax=top, interpolation="nearest")
        row, column = divmod(int(query), grid)
        box: Any = {"fill": False, "edgecolor": INK, "linewidth": 1.4, "zorder": 4}
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **box))
        axis.plot([column], [row], marker="x", color=INK, markersize=5, markeredgewidth=1.4)
        axis.set(xlim=(-0.5, grid - 0.5), ylim=(grid - 0.5, -0.5))


def reconstruction(axes: Sequence[Axes], data: Arrays, number: int = 0) -> None:
    """On three axes: an image of which patches are hidden, what is predicted of them, the original."""
    image, predicted, masked = (data[name][number] for name in ("image", "predicted", "masked"))
    _show(axes[0], image, "masked")
    _hide(axes[0], masked, image.shape[-1])
    _show(axes[1], predicted, "prediction")
    _show(axes[2], image, "original")


def propagation(axes: Sequence[Axes], data: Arrays, number: int = 0) -> None:
    """On two rows of an axis for each frame: the true masks, and those carried on from the first frame's."""
    frames, times = data["frames"][number], data["times"][number]
    count = int(max(data["truth"][number][0].max(), 1)) + 1
    for row, (name, said) in enumerate((("truth", "true"), ("found", "carried"))):
        for place, (frame, mask) in enumerate(zip(frames, data[name][number], strict=True)):
            axis = axes[row * len(frames) + place]
            given = ", given" if place == 0 else ""
            _show(axis, frame, f"frame {times[place]}{given}" if row == 0 else "")
            _over(axis, mask, count)
            if place == 0:
                axis.set_ylabel(said, **TEXT)


def neighbours(axes: Sequence[Axes], data: Arrays, number: int = 0) -> None:
    """On one axis for the query and one for each neighbour: the nearest images with their cosines, and
    whether they are of the query's class."""
    _show(axes[0], data["query"][number], "query")
    for edge in axes[0].spines.values():
        edge.set(visible=True, linewidth=1.6, color=INK)
    found = zip(
        axes[1:], data["nearest"][number], data["cosine"][number], data["alike"][number], strict=False
    )
    for axis, image, cosine, alike in found:
        _show(axis, image, f"{cosine:.3f} {'✓' if alike else '✗'}")


def heatmap(axes: Axes, data: Arrays, decimals: int = 2) -> AxesImage:
    """On one axis: `values` [y, x] over `x` and `y`, numbers or words, written in their cells; one without a
    value is left blank. `half` [y, x], if given, is what may be off either way, `low` and `high` the ends
    of the colours."""
    values = data["values"]
    low, high = (float(data[end]) if end in data else None for end in ("low", "high"))
    shown = axes.imshow(values, cmap=MAP, origin="lower", aspect="auto", vmin=low, vmax=high)
    axes.grid(visible=False)
    for ticks, along in ((axes.set_xticks, data["x"]), (axes.set_yticks, data["y"])):
        ticks(range(len(along)), [one if isinstance(one, str) else f"{one:g}" for one in along])
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            light = float(np.asarray(shown.norm(value))) > 0.55
            text = f"{value:.{decimals}f}"
            half = float(data["half"][row, column]) if "half" in data else math.nan
            text += f"\n± {half:.{decimals}f}" if math.isfinite(half) else ""
            look: Any = {"ha": "center", "va": "center", "color": INK if light else "white", "fontsize": 8}
            axes.text(column, row, text, **look)
    return shown


# ------------------------------------------------------------------------------ what they have in common


def levels(count: int) -> NDArray[np.float64]:
    """So many colours from dark to light, each told from the next in grey."""
    return np.asarray(colormaps[MAP](np.linspace(0.0, 1.0, max(count, 2))))[:count]


def _bare(axes: Axes, title: str) -> None:
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set(visible=True, linewidth=0.5, color="#9a9a9a")
    axes.set_title(title, pad=2.5, **TEXT)


def _show(axes: Axes, image: NDArray[Any], title: str) -> None:
    """An image `[c, s, s]` of 0..1."""
    _bare(axes, title)
    pixels = np.clip(image.astype(np.float32), 0, 1)
    pixels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, -1)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _labels(axes: Axes, labels: NDArray[Any], count: int, title: str) -> None:
    """A map of numbers from 0; those below are left white."""
    _bare(axes, title)
    shown = np.ma.masked_less(labels, 0)
    axes.imshow(
        shown, cmap=ListedColormap(levels(count)), vmin=-0.5, vmax=count - 0.5, interpolation="nearest"
    )


def _hide(axes: Axes, masked: NDArray[np.bool_], side: int) -> None:
    """Hatch the patches of an image of so many pixels a side that are masked."""
    cell = side / len(masked)
    look: Any = {"facecolor": "white", "edgecolor": "#a8a8a8", "hatch": "/////", "linewidth": 0}
    for row, column in zip(*np.nonzero(masked), strict=True):
        axes.add_patch(Rectangle((column * cell - 0.5, row * cell - 0.5), cell, cell, **look))


def _over(axes: Axes, mask: NDArray[Any], count: int) -> None:
    """Lay the objects of a mask over an image: each in its colour, in an outline of its own."""
    colours = levels(count)
    for number in range(1, count):
        inside = mask == number
        if inside.any():
            layer = np.zeros((*mask.shape, 4))
            layer[inside] = [*colours[number][:3], 0.6]
            axes.imshow(layer, interpolation="nearest")
            # finer than pixels, so that the outline runs along the pixels' edges
            fine = np.pad(inside.repeat(4, 0).repeat(4, 1), 1).astype(float)
            at = (np.arange(fine.shape[0]) - 0.5) / 4 - 0.5
            style = ["-", "--", ":"][(number - 1) % 3]
            for colour, width, line in ((INK, 2.2, "-"), ("white", 1.1, style)):
                axes.contour(at, at, fine, [0.5], colors=[colour], linewidths=width, linestyles=line)


def _matched(truth: NDArray[Any], found: NDArray[Any]) -> NDArray[np.int64]:
    """Clusters by the numbers of the segments with which they have most in common; the rest follow."""
    clusters = [int(value) for value in np.unique(found)]
    segments = max(int(truth.max()) + 1, 1)
    common = np.array([[np.sum((found == c) & (truth == s)) for s in range(segments)] for c in clusters])
    places, chosen = linear_sum_assignment(common, maximize=True)
    pairs = dict(zip(places.tolist(), chosen.tolist(), strict=True))
    free = iter(range(segments, segments + len(clusters)))
    called = {cluster: pairs[n] if n in pairs else next(free) for n, cluster in enumerate(clusters)}
    return np.array([called[int(cluster)] for cluster in found.ravel()]).reshape(found.shape)


# ------------------------------------------------------------------------------ how they stand on a page


@dataclass(frozen=True)
class Picture:
    """A figure of a trial that has one or more examples, each on rows and columns of axes."""

    draw: Callable[[Sequence[Axes], Arrays, int], None]
    counted: str
    """The array that has an entry for each example."""
    columns: Callable[[Arrays], int]
    caption: str
    rows: int = 1


PICTURES: dict[str, Picture] = {
    "segmentation": Picture(
        segmentation,
        "image",
        lambda data: 3,
        "Unsupervised segmentation: an image, its true segments, and its patches clustered by their "
        "features, as many clusters as there are segments; a cluster has the colour of the segment that it "
        "shares most pixels with",
    ),
    "tsne": Picture(
        tsne,
        "image",
        lambda data: 3,
        "t-SNE of the patch features of one image, by itself, and where its clusters lie",
    ),
    "attention": Picture(
        attention,
        "image",
        lambda data: 2 + data["queries"].shape[1],
        "Attention of the decoder's queries over the visible patches in its last block, the mean over "
        "heads; the query's own place is crossed, masked patches are hatched or white, dark weighs least; "
        "what is missing to 1 lies on the class latent, as written",
    ),
    "reconstruction": Picture(
        reconstruction,
        "image",
        lambda data: 3,
        "Reconstruction of pixels: what is seen, what is predicted of the hatched patches beside it, the "
        "original; of normalised pixels with the original's mean and deviation in each patch",
    ),
    "propagation": Picture(
        propagation,
        "frames",
        lambda data: data["frames"].shape[1],
        "Propagation of the first frame's masks by the likeness of patch features, below what is true",
        rows=2,
    ),
    "neighbours": Picture(
        neighbours,
        "query",
        lambda data: 1 + data["nearest"].shape[1],
        "Nearest neighbours of test images among test images, with their cosine; ✓ is of the query's class",
    ),
}
"""By the names that a sweep file gives; `similarity` and those of a sweep's table have pages of their own."""
