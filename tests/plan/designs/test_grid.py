"""The grid: exactly the product, less what is excluded."""

import itertools
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


AXES = "axes: {loss: [mse, cosine]}\n"


def test_grid_is_the_product_less_what_is_excluded(folder: "Folder") -> None:
    """Else cells would be missing from the table, or run although the file rules them out."""
    sweep = folder.load(
        "axes: {mask.gap: [0, 1, 2], mask.similarity: [0.0, 0.1]}\n"
        "exclude: [{mask.gap: [1, 2], mask.similarity: 0}]\nseeds: [4, 7]\n"
    )
    expected = ["gap=0 similarity=0", "gap=0 similarity=0.1", "gap=1 similarity=0.1", "gap=2 similarity=0.1"]
    assert [arm.name for arm in sweep.arms] == expected
    assert [(t.arm, t.seed) for t in sweep.trials] == [(arm, seed) for seed in (4, 7) for arm in expected]
    assert sweep.trials[0].axes == {"mask.gap": 0, "mask.similarity": 0.0}
    assert sweep.trials[-1].config.section("mask").gap == 2
    assert sweep.trials[-1].config.seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "axes: {loss: [mse]}\nexclude: [{loss: mse}]\n",
            "sweep.yaml:4: expected at least one trial, found an empty",
        ),
        (AXES + "exclude:\n  - {los: mse}\n", "sweep.yaml:5: unknown key los; did you mean loss?"),
        (
            AXES + "exclude:\n  - {loss: msee}\n",
            "sweep.yaml:5: loss: expected one of mse, cosine, found msee; did",
        ),
    ],
)
def test_a_mistake_in_exclude_is_named_with_its_line(folder: "Folder", text: str, message: str) -> None:
    """Else a cell that the file rules out would run for a letter."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")


@settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(gaps=st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True),
       cues=st.lists(st.booleans(), min_size=1, max_size=2, unique=True),
       seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))  # fmt: skip
def test_a_grid_is_exactly_the_product(
    folder: "Folder", gaps: list[int], cues: list[bool], seeds: list[int]
) -> None:
    """Else a plan could lose or invent a cell for some shape of grid."""
    text = json.dumps({"mask.gap": gaps, "decoder.cues": cues})
    sweep = folder.load(f"axes: {text}\nseeds: {seeds}\n")
    cells = [(t.config.section("mask").gap, t.config.section("decoder").cues, t.seed) for t in sweep.trials]
    assert sorted(cells) == sorted(itertools.product(gaps, cues, seeds))
    assert [arm.name for arm in sweep.arms] == list(dict.fromkeys(t.arm for t in sweep.trials))
