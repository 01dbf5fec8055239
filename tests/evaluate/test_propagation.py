"""Labels carried through a video, against DINO's own code and by hand."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lmim.evaluate import propagation
from lmim.evaluate.propagation import DINO, VIDEOWALK, Recipe, hard_labels, propagate, within

SHIPPED = Path(__file__).parents[1] / "fixtures"
FOLDERS = [SHIPPED, *map(Path, filter(None, [os.environ.get("LMIM_GOLDEN")]))]
"""LMIM_GOLDEN is a folder where others of the same kind may be kept."""
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("propagation_*.safetensors"))]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_maps_and_labels_are_dinos(file: Path) -> None:
    """Another rule for what is near, or for ties, would shift every figure by some points."""
    with safe_open(file, "pt") as golden:
        config = json.loads(golden.metadata()["config"])
        features, first = golden.get_tensor("input.features"), golden.get_tensor("input.first")
        soft, labels = golden.get_tensor("out.soft"), golden.get_tensor("out.labels")
    names = ("last_frames", "radius", "top_k", "temperature")
    recipe = replace(DINO, **{name: config[name] for name in names})
    found = list(propagate(features, first, recipe))
    torch.testing.assert_close(torch.stack(found), soft, atol=1e-5, rtol=1e-5)
    size = (config["height"] * config["patch"], config["width"] * config["patch"])
    hard = torch.stack([hard_labels(one, config["patch"], size, recipe) for one in found])
    assert torch.equal(hard.int(), labels)


@pytest.mark.parametrize("recipe", [DINO, VIDEOWALK], ids=["dino", "videowalk"])
def test_memory_is_bounded_and_changes_no_label(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """480 x 832 has 6,240 patches of 8 px: all pairs with eight frames would be 1.2 GB."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 30, 8, generator=generator)
    first = torch.eye(3)[torch.randint(3, (30,), generator=generator)].T.reshape(3, 5, 6)
    whole = torch.stack([*propagate(features, first, recipe)])
    monkeypatch.setattr(propagation, "SIMILARITIES", 100)
    torch.testing.assert_close(torch.stack([*propagate(features, first, recipe)]), whole)


def test_near_is_a_square_for_dino_and_a_disk_for_videowalk() -> None:
    """The two are never to be mixed in one table."""
    chosen = torch.tensor([12])  # the middle of 5 x 5
    square = within(chosen, (5, 5), replace(DINO, radius=1)).view(5, 5)
    disk = within(chosen, (5, 5), replace(VIDEOWALK, radius=2)).view(5, 5)
    assert square.int().tolist()[1] == [0, 1, 1, 1, 0]
    assert int(square.sum()) == 9
    assert int(disk.sum()) == 9, "a distance below the radius, not up to it"
