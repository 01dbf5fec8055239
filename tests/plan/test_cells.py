"""Axes: what may be varied, and how."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes:\n  los: [mse]\n", "sweep.yaml:4: unknown key los; did you mean loss?"),
        ("axes:\n  mask.gaps: [1]\n", "sweep.yaml:4: unknown key mask.gaps; did you mean mask.gap?"),
        ("axes:\n  epochs: [1]\n", "sweep.yaml:4: unknown key epochs; did you mean optim.epochs?"),
        ("axes:\n  loss:\n    - mse\n    - msee\n", "sweep.yaml:6: loss: expected one of mse, "),
        ("axes:\n  loss:\n    - mse\n    - msee\n", "found msee; did you mean mse?"),
        ("axes: {loss: mse}\n", "sweep.yaml:3: loss: expected a list of values, found mse"),
        ("axes: {mask.gap: [0, one]}\n", "sweep.yaml:3: mask.gap: expected an integer, found one"),
        ("axes: {mask.gap: [{a: 1}]}\n", "sweep.yaml:3: mask.gap"),
        ("axes: {seed: [0, 1]}\n", "sweep.yaml:3: seed: expected a key that affects results, found the seed"),
        ("axes: {run.threads: [1, 2]}\n", "sweep.yaml:3: run.threads: expected a key that affects results"),
        ("axes: {loss: [mse], loss.kind: [mse]}\n", "sweep.yaml:3: duplicate key loss"),
        ("axes: {encoder: [3]}\n", "sweep.yaml:3: encoder: expected keys under encoder"),
        ("axes: {}\n", "sweep.yaml:3: axes: expected at least one axis, found an empty grid"),
        ("axes: {loss: []}\n", "sweep.yaml:3: loss: expected at least one value, found an empty grid"),
    ],
)
def test_each_mistake_in_an_axis_is_named_with_its_place(folder: "Folder", text: str, message: str) -> None:
    """Else the user would search a file of a hundred lines for a letter."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")
