"""The ladder: each stage on the winner of the last."""

from typing import TYPE_CHECKING

import pytest

from lmim.plan.ablation import Trial

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


AXES = "axes: {loss: [mse, cosine]}\n"


LADDER = """\
design: ladder
seeds: [0, 1]
stages:
  - axes: {loss: [mse, cosine, patch_discrimination]}
  - axes: {mask.gap: [0, 1]}
    select: {mask.gap: 1}
  - axes: {decoder.cues: [true, false]}
"""


def kind(trial: Trial) -> str:
    return str(trial.config.section("loss").kind)


def test_ladder_waits_for_each_winner(folder: "Folder") -> None:
    """Else later stages would be trained on a choice that lost."""
    sweep = folder.load(LADDER)
    settled = [t for t in sweep.trials if not t.provisional]
    assert {t.arm for t in settled} == {"loss=mse", "loss=cosine", "loss=patch_discrimination"}
    assert {kind(t) for t in sweep.trials if t.provisional} == {"patch_discrimination"}

    scores = {"mse": 1.0, "cosine": 3.0, "patch_discrimination": 2.0}
    results: dict[str, float | None] = {t.id: scores[kind(t)] + t.seed for t in settled[:-1]}
    assert sweep.replan(results) == sweep  # one trial of the stage is still missing

    results[settled[-1].id] = 0.0
    after = sweep.replan(results)
    assert not any(t.provisional for t in after.trials)  # stage 2's winner is fixed by the file
    assert {kind(t) for t in after.trials if "cues" in t.arm} == {"cosine"}
    assert {t.config.section("mask").gap for t in after.trials if "cues" in t.arm} == {1}
    assert [t.id for t in after.trials][:6] == [t.id for t in sweep.trials][:6]


def test_a_ladder_says_who_won_and_by_how_much(folder: "Folder") -> None:
    """Else one must find out from the table why later arms are what they are, and are called so."""
    sweep = folder.load(LADDER)
    assert sweep.choices == (
        "stage 1 (loss): not decided yet",
        "stage 2 (mask.gap): gap=1 is fixed by the file",
        "stage 3 (decoder.cues): not decided yet",
    )
    scores = {"mse": 1.0, "cosine": 3.0, "patch_discrimination": 2.5}
    after = sweep.replan({t.id: scores[kind(t)] + t.seed for t in sweep.trials if not t.provisional})
    assert after.choices == (
        "stage 1 (loss): loss=cosine won with 3.50, 0.50 more than loss=patch_discrimination "
        "(validation k-NN top-1 (%), mean over 2 seeds)",
        "stage 2 (mask.gap): gap=1 is fixed by the file",
        "stage 3 (decoder.cues): not decided yet",
    )
    assert after.notes == (
        "gap=0: the same config as loss=cosine, so one arm",
        "cues=true: the same config as gap=1, so one arm",
    )
    assert {t.arm for t in after.trials} >= {"loss=cosine", "gap=1", "cues=false"}


@pytest.mark.parametrize("losses", ["[mse, cosine]", "[cosine, mse, patch_discrimination]"])
def test_as_many_trials_run_as_were_announced(folder: "Folder", losses: str) -> None:
    """Else a plan of 8 trials runs 6, as the base's own arm is not among those that may win."""
    sweep = folder.load(
        f"design: ladder\nseeds: [0, 1]\nstages:\n  - axes: {{loss: {losses}}}\n"
        "  - axes: {mask.gap: [0, 1]}\n  - axes: {decoder.cues: [true, false]}\n"
    )
    announced = len(sweep.trials)
    for score in (1.0, -1.0):  # the last of each stage wins, or the first
        climbed = sweep
        for _ in range(3):
            settled = [trial.id for trial in climbed.trials if not trial.provisional]
            climbed = climbed.replan({trial: score * number for number, trial in enumerate(settled)})
            assert len(climbed.trials) == announced
        assert not any(t.provisional for t in climbed.trials)


def test_ladder_passes_over_an_arm_that_diverged(folder: "Folder") -> None:
    """Else an arm that fails on one seed of two could win on the other, or the ladder stop at it."""
    sweep = folder.load(LADDER)
    first = [t for t in sweep.trials if not t.provisional]
    results = {
        t.id: None if t.arm == "loss=mse" and t.seed else 9.0 if t.arm == "loss=mse" else 1.0 for t in first
    }
    after = sweep.replan(results)
    assert {kind(t) for t in after.trials if "cues" in t.arm} == {"cosine"}
    nothing = sweep.replan(dict.fromkeys(results))
    assert any(t.provisional for t in nothing.trials)


def test_a_ladder_climbs_on_the_seeds_that_it_is_given(folder: "Folder") -> None:
    """Else --seeds would leave it waiting for the file's other seeds, and --only for every other arm."""
    sweep = folder.load(LADDER, seeds=[0], only=["cues=false"])
    assert {t.seed for t in sweep.planned} == {0}
    after = sweep.replan({t.id: float(kind(t) == "cosine") for t in sweep.planned})
    assert [(kind(t), t.seed, t.provisional) for t in after.trials] == [("cosine", 0, False)]


def test_a_ladder_selects_where_results_choose(folder: "Folder") -> None:
    """Else what picks a winner could not be told from what only reports."""
    sweep = folder.load(LADDER)
    assert sweep.selects
    assert (sweep.metric, sweep.selection) == ("knn_top1", "val/knn_top1")
    assert [(e.name, e.split) for e in sweep.evaluations] == [
        *((name, "test") for name in ("nn", "knn", "linear")),
        ("knn", "val"),
    ]
    fixed = "design: ladder\nstages: [{axes: {loss: [mse, cosine]}, select: {loss: mse}}]\n"
    assert not folder.load(fixed + "metric: train/loss\n").selects


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "design: ladder\nstages: [{axes: {loss: [mse]}}]\nmetric: train/loss\n",
            "sweep.yaml:5: metric: a stage keeps the highest, and of train/loss less is better",
        ),
        (AXES + "design: ladder\n", "sweep.yaml:3: axes: expected no axes with design ladder, found axes"),
        ("design: ladder\n", "sweep.yaml:3: stages: expected with design ladder, found none"),
        ("design: ladder\nstages: []\n", "sweep.yaml:4: stages: expected at least one stage"),
        ("design: ladder\nstages:\n  - axis: {}\n", "sweep.yaml:5: "),
        (
            "design: ladder\nstages:\n  - axes: {loss: [mse]}\n    select: {loss: msee}\n",
            "sweep.yaml:6: loss: expected one of mse, found msee; did you mean mse?",
        ),
        ("design: ladder\nstages:\n  - axes: {loss: [mse]}\n    select: bst\n", "did you mean best?"),
    ],
)
def test_a_mistake_in_the_stages_is_named_with_its_line(folder: "Folder", text: str, message: str) -> None:
    """Else the user would search the stages for a letter."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")
