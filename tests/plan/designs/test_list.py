"""The list: arms as they were written out, one by one."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plan.conftest import Folder

PAIRS = """\
design: list
arms:
  base: {}
  small: {encoder.width: 32, encoder.depth: 2}
  large:
    encoder: {width: 128, depth: 6}
    loss.kind: mse
"""


def test_list_is_the_arms_as_written(folder: "Folder") -> None:
    """Else a width that goes with a depth would be crossed with the others."""
    sweep = folder.load(PAIRS + "seeds: [3, 4]\nclaims: [large > small, encoder.width=128 > width=32]\n")
    assert [(t.arm, t.seed) for t in sweep.trials] == [
        (arm, seed) for seed in (3, 4) for arm in ("base", "small", "large")
    ]
    flat = [trial.config.flat() for trial in sweep.trials[:3]]
    assert [(one["encoder.width"], one["encoder.depth"]) for one in flat] == [(64, 4), (32, 2), (128, 6)]
    assert [one["loss"] for one in flat] == ["patch_discrimination", "patch_discrimination", "mse"]
    assert not sweep.selects


def test_the_axes_of_every_arm_are_the_keys_that_any_arm_sets(folder: "Folder") -> None:
    """Else a table or a claim by terms would have no value for the arm that leaves a key as it is."""
    sweep = folder.load(PAIRS)
    assert [arm.axes for arm in sweep.arms] == [
        {"encoder.width": width, "encoder.depth": depth, "loss": loss}
        for width, depth, loss in (
            (64, 4, "patch_discrimination"),
            (32, 2, "patch_discrimination"),
            (128, 6, "mse"),
        )
    ]
    assert folder.error(PAIRS, sets=["loss=cosine"]) == (
        "--set loss=cosine: loss: is an axis of this sweep; use --only to choose among its arms"
    )
    assert [t.arm for t in folder.load(PAIRS, only=["loss=mse", "base"]).trials] == ["base", "large"]


ARMS = "design: list\narms:\n  a: {loss: mse}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("design: list\n", "sweep.yaml:3: arms: expected with design list, found none"),
        ("design: list\narms: {}\n", "sweep.yaml:4: arms: expected at least one arm"),
        ("design: list\narms: [a]\n", "sweep.yaml:4: arms: expected a mapping, found a list"),
        (ARMS + "  b: mse\n", "sweep.yaml:6: arms.b: expected a mapping, found mse"),
        (ARMS + "axes: {loss: [mse]}\n", "sweep.yaml:6: axes: expected no axes with design list, found axes"),
        ("axes: {loss: [mse]}\narms: {}\n", "sweep.yaml:4: arms: expected no arms with design grid"),
        (ARMS + "  b: {los: mse}\n", "sweep.yaml:6: unknown key los; did you mean loss?"),
        (
            ARMS + "  b:\n    encoder:\n      widht: 3\n",
            "sweep.yaml:8: unknown key encoder.widht; did you mean",
        ),
        (ARMS + "  b:\n    mask.gap: one\n", "sweep.yaml:7: mask.gap: expected an integer, found one"),
        (ARMS + "  b: {mask.gap: [0, 1]}\n", "sweep.yaml:6: mask.gap: expected one value, found a list"),
        (ARMS + "  b: {loss: cosine, loss.kind: mse}\n", "sweep.yaml:6: duplicate key loss"),
        (
            ARMS + "  b: {seed: 1}\n",
            "sweep.yaml:6: seed: expected a key that affects results, found the seed",
        ),
        (
            ARMS + "  b: {run: {threads: 2}}\n",
            "sweep.yaml:6: run.threads: expected a key that affects results",
        ),
        (ARMS + "  b: {encoder.heads: 3}\n", "sweep.yaml:6: encoder.heads: impossible combination"),
        (
            ARMS + "  b: {loss: mse}\n",
            "sweep.yaml:6: arms: expected arms that differ, found one config in a and b",
        ),
        (
            ARMS + "  a=1: {loss: cosine}\n",
            "sweep.yaml:6: arms: expected a printable name without what claims",
        ),
        (ARMS + "  a > b: {loss: cosine}\n", "(=, >, <, on, not), found a > b"),
        (ARMS + "  b on rank: {loss: cosine}\n", "found b on rank"),
        (ARMS + "  '': {loss: cosine}\n", "found an empty one"),
        (ARMS + '  "b\\n": {loss: cosine}\n', "found b\\n"),
        (ARMS + "  raw_pixels: {loss: cosine}\n", "sweep.yaml:6: arms: expected a name of the arm's own"),
        (ARMS + "claims: [a > c]\n", "sweep.yaml:6: claims.0: expected an arm (a), found c"),
    ],
)
def test_a_mistake_in_an_arm_is_named_with_its_line(folder: "Folder", text: str, message: str) -> None:
    """Else an arm would quietly be another one than its name says."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")
