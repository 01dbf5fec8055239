"""J and F as DAVIS 2017 scores them, against the official code's output."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lmim.evaluate.davis import boundary, near, objects_of, region, scores, summary

SHIPPED = Path(__file__).parents[1] / "fixtures"
FOLDERS = [SHIPPED, *map(Path, filter(None, [os.environ.get("LMIM_GOLDEN")]))]
"""LMIM_GOLDEN is a folder where others of the same kind may be kept."""
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("davis_*.npz"))]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_scores_are_the_official_ones(file: Path) -> None:
    """A figure of our own could not be compared with any published one."""
    with np.load(file) as golden:
        truth, guess = (torch.from_numpy(golden[name]) for name in ("true", "guess"))
        j, f = scores(truth, guess, golden["J"].shape[0])
        np.testing.assert_allclose(j.numpy(), golden["J"], atol=1e-12)
        np.testing.assert_allclose(f.numpy(), golden["F"], atol=1e-12)
        official = json.loads(str(golden["summary"]))
    means = [sum(summary(one)["mean"] for one in part) / len(part) for part in (j, f)]
    assert means == pytest.approx([official["J"], official["F"]], abs=1e-12)
    assert sum(means) / 2 == pytest.approx(official["JF"], abs=1e-12)


def test_empty_masks_are_scored_by_the_rules() -> None:
    """An object that is gone, and not predicted, is right; predicted it is wrong."""
    empty, some = torch.zeros(2, 8, 8, dtype=torch.bool), torch.zeros(2, 8, 8, dtype=torch.bool)
    some[:, 2:5, 2:5] = True
    for measure in (region, boundary):
        assert measure(empty, empty).tolist() == [1, 1]
        assert measure(some, empty).tolist() == measure(empty, some).tolist() == [0, 0]
        assert measure(some, some).tolist() == [1, 1]


def test_a_shifted_square_scores_as_worked_out_by_hand() -> None:
    """Half of a square of 4 x 4 moved by 2: 8 pixels in both masks, 24 in either."""
    true, guess = torch.zeros(12, 12, dtype=torch.bool), torch.zeros(12, 12, dtype=torch.bool)
    true[4:8, 2:6] = guess[4:8, 4:8] = True
    assert float(region(true, guess)) == pytest.approx(8 / 24)


def test_near_is_a_disk() -> None:
    """A square of the same width would count corners that the official disk leaves out."""
    point = torch.zeros(9, 9, dtype=torch.bool)
    point[4, 4] = True
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    assert torch.equal(near(point, 3), (rows - 4) ** 2 + (columns - 4) ** 2 <= 9)


def test_void_is_no_object() -> None:
    """255 marks what nobody labelled, not 255 objects."""
    mask = torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8)
    assert objects_of(mask) == 2
    with pytest.raises(ValueError, match="none between"):
        summary(torch.ones(2))
