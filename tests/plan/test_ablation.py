"""Planning: a sweep file becomes exactly the trials it declares."""

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmim.plan.ablation import load
from lmim.plan.record import Record

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


ABLATIONS = Path(__file__).parents[2] / "ablations"


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        (name, scale)
        for name in sorted({path.stem for path in ABLATIONS.glob("*.yaml")} - {"base"})
        for scale in ("demo", "gpu", "paper")
        if name != "video_mim" or scale == "demo"  # at the others it draws minutes of clips
    ],
)
def test_the_ablations_of_this_project_plan(name: str, scale: str) -> None:
    """Else the README's own command would end with an error."""
    sweep = load(ABLATIONS / f"{name}.yaml", scale)
    assert sweep.name == name
    assert sweep.scale == scale
    assert not {0, 1, 2} & set(sweep.seeds), "these shaped the demo's data"
    assert sweep.question
    assert sweep.claims
    assert len(sweep.trials) == len(sweep.seeds) * len(sweep.arms)
    assert all(trial.id == trial.config.identity for trial in sweep.trials)
    assert len({trial.id for trial in sweep.trials}) == len(sweep.trials)


def test_the_demo_scale_is_the_recipe_that_was_measured() -> None:
    """Else the figures in the README would belong to another model."""
    config = load(ABLATIONS / "loss.yaml").trials[0].config
    rate = config.optim.base_lr * config.optim.batch_size * config.optim.accumulate / 256
    assert rate == pytest.approx(2e-3)
    projector = config.section("projector")
    assert (config.grid, projector.depth, projector.width) == (4, 3, 128)


def test_the_paper_scale_is_the_published_recipe() -> None:
    """Else `--scale paper` would claim a reproduction that it is not."""
    sweep = load(ABLATIONS / "loss.yaml", "paper", only=["patch_discrimination"])
    config = sweep.trials[0].config
    assert config.optim.batch_size * config.optim.accumulate == 4096
    encoder, mask, decoder = (config.section(name) for name in ("encoder", "mask", "decoder"))
    assert (encoder.width, encoder.depth, encoder.heads) == (768, 12, 12)
    assert (config.grid, mask.visible(14**2), mask.gap, mask.similarity) == (14, 20, 4, 0.1)
    assert (decoder.width, decoder.depth, decoder.heads) == (512, 3, 16)


def test_baselines_stand_beside_the_arms(folder: "Folder") -> None:
    """Else the table would have no floor, or a term such as loss=mse would take the baseline in."""
    sweep = folder.load(
        "axes: {loss: [mse, cosine]}\nbaselines: [random_encoder, raw_pixels]\nclaims: [mse > raw_pixels]\n"
    )
    assert [(t.arm, t.baseline, t.config.optim.epochs) for t in sweep.trials] == [
        ("mse", False, 2),
        ("cosine", False, 2),
        ("random_encoder", True, 0),
        ("raw_pixels", True, 0),
    ]
    assert sweep.trials[-1].config.objective == "raw_pixels"
    assert sweep.trials[-1].axes == {}


def test_mae_stands_beside_the_arms_at_equal_epochs_and_at_equal_compute(folder: "Folder") -> None:
    """A method that costs more a step would be compared with a baseline that was trained for less."""
    sweep = folder.load(
        "axes: {loss: [mse, cosine]}\nbaselines: [pixel_mim, pixel_mim_equal_compute]\n",
        sets=["optim.epochs=40"],
    )
    base, _, same, equal = (trial.config for trial in sweep.trials)
    assert (same.objective, same.section("loss").kind, same.section("decoder").cues) == (
        "pixel_mim",
        "norm_mse",
        False,
    )
    assert same.optim.epochs == base.optim.epochs == 40
    flops = Record.of(sweep).flops
    assert flops["pixel_mim"] < 0.9 * flops["mse"]
    assert flops["pixel_mim_equal_compute"] == pytest.approx(flops["mse"], rel=0.5 / 40 + 0.01)
    assert equal == same.model_copy(
        update={"optim": same.optim.model_copy(update={"epochs": equal.optim.epochs})}
    )


def test_a_classifier_stands_beside_the_arms_that_have_a_second_task(folder: "Folder") -> None:
    """What the second task adds could be had by longer training for as much compute."""
    sweep = folder.load(
        "config: {objective: supervised_mim, projector: {depth: 0}}\n"
        "axes: {supervised_mim.classify: [full, masked]}\n"
        "baselines: [supervised, supervised_equal_compute]\n",
        sets=["optim.epochs=40"],
    )
    full, masked, same, equal = (trial.config.optim.epochs for trial in sweep.trials)
    assert full == masked == same == 40 < equal
    flops = Record.of(sweep).flops
    assert flops["masked"] < flops["supervised"] < flops["full"]
    assert flops["supervised_equal_compute"] == pytest.approx(flops["full"], rel=0.5 / 40 + 0.01)


def test_a_cell_that_occurs_twice_runs_once(folder: "Folder") -> None:
    """Else the same config would be trained twice and counted as two arms."""
    sweep = folder.load("axes: {mask.similarity: [0, 0.0, 0.1, 1e-1]}\nseeds: [0, 1, 0]\n")
    assert [arm.name for arm in sweep.arms] == ["similarity=0", "similarity=0.1"]
    assert len(sweep.trials) == 4
    assert sweep.notes == (
        "similarity=0 again: the same config as similarity=0, so one arm",
        "similarity=0.1 again: the same config as similarity=0.1, so one arm",
    )


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "axes: {loss: [mse, patch_discrimination], loss.tau: [1, 2, 3]}\n",
            "loss=mse tau=2, loss=mse tau=3: the same config as loss=mse, so one arm",
        ),
        (
            "design: one_factor\naxes: {loss: [mse, patch_discrimination]}\n",
            "patch_discrimination: the same config as base, so one arm",
        ),
        (
            "axes: {optim.epochs: [0, 1]}\nbaselines: [random_encoder]\n",
            "random_encoder: the same config as epochs=0, so one arm",
        ),
        (
            "design: ladder\nstages:\n"
            "  - {axes: {loss: [patch_discrimination]}, select: {loss: patch_discrimination}}\n"
            "  - axes: {mask.gap: [0, 1]}\n",
            "gap=0: the same config as loss=patch_discrimination, so one arm",
        ),
    ],
)
def test_an_arm_that_is_another_is_said(folder: "Folder", text: str, note: str) -> None:
    """Else a row that the file asks for is missing from the table, and nobody says why."""
    assert folder.load(text).notes == (note,)


def test_the_base_cell_of_two_sweeps_is_one_trial(folder: "Folder") -> None:
    """Else every ablation would train the method's own recipe again."""
    first = folder.load("axes: {loss: [mse, patch_discrimination]}\n")
    second = folder.load("axes: {mask.gap: [0, 1]}\n")
    assert len({t.id for t in first.trials} & {t.id for t in second.trials}) == 1


def test_seeds_and_only_choose_trials_but_leave_the_table_whole(folder: "Folder") -> None:
    """Else --only or --seeds would make what is done vanish from the report."""
    text = "axes: {mask.gap: [0, 1], decoder.cues: [true, false]}\nseeds: [0, 1]\n"
    sweep = folder.load(text, seeds=[5, 1], only=["cues=false"])
    assert [(t.arm, t.seed) for t in sweep.trials] == [
        (f"gap={gap} cues=false", seed) for seed in (1, 5) for gap in (0, 1)
    ]
    assert sweep.seeds == (0, 1, 5)
    assert len(sweep.arms) == 4
    assert {(t.arm, t.seed) for t in sweep.planned} == {(a.name, s) for a in sweep.arms for s in (0, 1, 5)}
    assert all(trial in sweep.planned for trial in sweep.trials)


def test_a_plan_travels_to_a_worker(folder: "Folder") -> None:
    """Else Ray could not send a trial to another process."""
    sweep = folder.load("axes: {loss: [mse, cosine]}\n")
    assert pickle.loads(pickle.dumps(sweep.trials)) == sweep.trials


def test_ten_thousand_trials_plan_in_seconds_and_one_more_needs_yes(folder: "Folder") -> None:
    """Else a slip in an axis would start a month of work, or a large plan would seem to hang."""
    values = ", ".join(str(number) for number in range(1, 101))
    grid = f"axes: {{optim.epochs: [{values}], optim.batch_size: [{values}]}}\n"
    few = grid.replace(f"size: [{values}]", "size: [1, 2, 3, 4, 5]")
    spent = []
    for text, count in ((few, 500), (few, 500), (grid, 10_000)):  # the first time is that of a cold start
        start = time.process_time()
        assert len(folder.load(text).trials) == count
        spent.append(time.process_time() - start)
    assert spent[2] < 3 * 20 * spent[1], "20 times the trials in no more than about 20 times the time"
    message = folder.error(grid, seeds=[0, 1])
    assert "expected at most 10,000 trials, found 20,000; say --yes" in message
    row = f"axes: {{optim.epochs: [{values}]}}\n"
    many = list(range(101))
    assert "10,100" in folder.error(row, seeds=many)
    assert len(folder.load(row, seeds=many, yes=True).trials) == 10_100


def test_planning_loads_neither_torch_nor_ray() -> None:
    """Else --dry-run and every error message would take seconds to appear."""
    code = (
        "import json, sys; from lmim.plan.ablation import load; load('ablations/paper.yaml');"
        "print(json.dumps([m for m in ('torch', 'ray', 'mlflow', 'numpy', 'pandas') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ABLATIONS.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == []


def test_a_protocol_that_judges_no_arm_is_refused(folder: "Folder") -> None:
    """A column of dashes would be found after the training."""
    text = "axes: {loss: [mse, cosine]}\nevaluate:\n  - nn\n  - top1\nmetric: nn_top1\n"
    assert folder.error(text) == "sweep.yaml:6: evaluate: top1: no arm of this sweep has logits"


def test_a_batch_that_no_micro_batches_fill_is_refused(folder: "Folder") -> None:
    """It would be found after the training."""
    text = "axes: {loss: [mse]}\nmetric: knn_top1\nevaluate:\n  - knn\n  - finetune: {batch_size: 201}\n"
    told = folder.error(text)
    assert told.startswith("sweep.yaml:7: evaluate: finetune.batch_size: expected a multiple of 2, ")
    assert told.endswith("found 201")
    assert folder.load(text.replace("201", "200"))
    assert "expected a multiple of 3" in folder.error(text.replace("201", "200"), sets=["optim.accumulate=3"])


def test_a_layer_that_an_encoder_has_not_is_refused(folder: "Folder") -> None:
    """The features of another layer would be judged under its name."""
    text = "axes: {encoder.depth: [2, 4]}\nevaluate:\n  - knn\n  - knn: {layer: 3}\n"
    assert folder.error(text) == (
        "sweep.yaml:6: evaluate: knn.layer: expected at most the encoder.depth of depth=2, 2, found 3"
    )
    (metric,) = folder.load(text.replace("[2, 4]", "[3, 4]")).evaluations[1].metrics.values()
    assert (metric.name, metric.label) == ("eval/knn_top1.layer3", "k-NN top-1, layer=3")
