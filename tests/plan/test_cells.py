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
        (
            "axes:\n  loss:\n    - {kind: patch_discrimination, taus: 1.0}\n",
            "sweep.yaml:5: unknown key loss.taus; did you mean loss.tau?",
        ),
        (
            "axes:\n  loss:\n    - mse\n    - {kind: mse, tau: 1.0}\n",
            "sweep.yaml:6: loss.tau: mse does not read",
        ),
        ("axes: {loss: [{}]}\n", "sweep.yaml:3: loss: expected keys of loss, found an empty mapping"),
        ("axes: {encoder: [{width: 8}, 3]}\n", "sweep.yaml:3: encoder: expected keys under encoder"),
        ("axes: {run: [{threads: 1}]}\n", "sweep.yaml:3: run.threads: expected a key that affects results"),
        (
            "axes: {loss: [{tau: 1.0, loss.tau: 2.0}]}\n",
            "sweep.yaml:3: unknown key loss.loss.tau; did you mean",
        ),
        (
            "axes: {decoder: [{kind: self_attention, decoder: 1}]}\n",
            "sweep.yaml:3: unknown key decoder.decoder",
        ),
        (
            "axes:\n  loss: [{tau: 1.0}]\n  loss.tau: [2.0]\n",
            "sweep.yaml:5: loss.tau: expected a key of one axis, found it in loss and loss.tau",
        ),
        ("axes: {}\n", "sweep.yaml:3: axes: expected at least one axis, found an empty grid"),
        ("axes: {loss: []}\n", "sweep.yaml:3: loss: expected at least one value, found an empty grid"),
    ],
)
def test_each_mistake_in_an_axis_is_named_with_its_place(folder: "Folder", text: str, message: str) -> None:
    """Else the user would search a file of a hundred lines for a letter."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")


PD = "patch_discrimination"
PAIRED = f"loss: [{{kind: {PD}, tau: 0.05}}, {{kind: {PD}, tau: 5.0}}, mse]"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (f"axes: {{{PAIRED}}}\n", ""),
        (f"design: ladder\nstages: [axes: {{{PAIRED}}}]\n", ""),
        (f"design: one_factor\naxes: {{mask.gap: [1], {PAIRED}}}\n", "loss="),
    ],
)
def test_a_mapping_sets_its_keys_together(folder: "Folder", text: str, word: str) -> None:
    """Else the base's tau wins, one of two arms vanishes, and the table shows the other under its label."""
    low, high, mse = (f"{word}{name}" for name in (f"{PD} tau=0.05", f"{PD} tau=5", "mse"))
    sweep = folder.load(f"{text}claims: [{low} > {mse}, tau=5 > tau=0.05]\n")
    expected = {low: (PD, 0.05), high: (PD, 5.0), mse: ("mse", None)}
    assert [arm.name for arm in sweep.arms][-3:] == [*expected]
    for trial in sweep.trials[-3:]:
        flat = trial.config.flat()
        assert (flat["loss"], flat.get("loss.tau")) == expected[trial.arm]
        assert {k: v for k, v in flat.items() if k in trial.axes} == trial.axes, "what the table shows"
        assert {"loss", "loss.tau"} & flat.keys() <= trial.axes.keys()
    assert [trial.arm for trial in folder.load(text, only=[high]).trials] == [high]
    assert "expected an arm (" in (message := folder.error(f"{text}claims: [{PD} > {mse}]\n"))
    assert word or f"{PD} tau=0.05, {PD} tau=5, mse), found {PD}" in message


def test_a_mapping_is_one_value_of_a_grid(folder: "Folder") -> None:
    """Else it is crossed with the other axes as several, and neither exclude nor select can name it."""
    axes = "{encoder: [{width: 32, depth: 2}, {width: 128, depth: 6}], mask.gap: [0, 1]}"
    sweep = folder.load(f"axes: {axes}\nexclude: [{{encoder: {{depth: 6, width: 128}}, mask.gap: 1}}]\n")
    names = ["width=32 depth=2 gap=0", "width=32 depth=2 gap=1", "width=128 depth=6 gap=0"]
    assert [arm.name for arm in sweep.arms] == names
    ladder = f"design: ladder\nstages:\n  - axes: {axes}\n    select: {{encoder: %s, mask.gap: 1}}\n"
    last = "  - axes: {loss: [mse]}\n"
    won = folder.load(ladder % "{width: 32, depth: 2}" + last).trials[-1].config
    assert (won.section("encoder").width, won.section("encoder").depth) == (32, 2)
    message = folder.error(ladder % "{width: 32, depth: 3}" + last)
    assert "encoder: expected one of width=32 depth=2, width=128 depth=6, found a mapping" in message
    less = folder.load("design: leave_one_out\naxes: {loss: {kind: patch_discrimination, tau: 9.0}}\n")
    assert [t.config.flat()["loss.tau"] for t in less.trials] == [0.2, 9.0]


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ("loss.tau: [0.5, 1]", ["tau=0.5", "tau=1"]),
        ("decoder.cues: [true, false]", ["cues=true", "cues=false"]),
        ("loss: [mse, cosine]", ["mse", "cosine"]),
        ("encoder: [{depth: 1}]", ["depth=1"]),
    ],
)
def test_a_single_axis_names_its_words_alone(folder: "Folder", axes: str, names: list[str]) -> None:
    """Else a row of the table is called 0.5, and nobody knows of what."""
    sweep = folder.load(f"axes: {{{axes}}}\nclaims: ['{names[0]} collapsed']\n")
    assert [arm.name for arm in sweep.arms] == names
