"""Planning: a sweep file becomes exactly the trials it declares, or one line that says what is wrong."""

import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmim.errors import UserError
from lmim.plan.ablation import Sweep, load, parse_claim, selects
from lmim.plan.located_yaml import MAX_BYTES

ABLATIONS = Path(__file__).parents[2] / "ablations"

DEMO = "data: {image_size: 20}\nencoder: {patch_size: 4, width: 64, heads: 4}\nmask: {ratio: 0.75}\n"
BASE = "loss: {kind: patch_discrimination}\nmask:\n  similarity: 0.1\noptim: {epochs: 2}\n"
HEAD = "name: test\nbase: base.yaml\n"


class Folder:
    """A folder of sweep files of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scales").mkdir()
        self.write("scales/demo.yaml", DEMO)
        self.write("base.yaml", BASE)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path

    def load(self, text: str, **arguments: Any) -> Sweep:
        return load(self.write("sweep.yaml", HEAD + text), **arguments)

    def error(self, text: str, **arguments: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.load(text, **arguments)
        message = str(caught.value)
        assert message.isprintable()  # so: one line
        return message.replace(f"{self.root}{os.sep}", "")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def arms(sweep: Sweep) -> list[str]:
    return [arm.name for arm in sweep.arms]


# --- what a file means


@pytest.mark.parametrize("name", ["collapse", "loss", "mask", "decoder", "paper"])
@pytest.mark.parametrize("scale", ["demo", "gpu", "paper"])
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
    assert (config.grid, config.projector.depth, config.projector.width) == (4, 3, 128)


def test_the_paper_scale_is_the_published_recipe() -> None:
    """Else `--scale paper` would claim a reproduction that it is not."""
    config = load(ABLATIONS / "loss.yaml", "paper").trials[-1].config
    assert config.optim.batch_size * config.optim.accumulate == 4096
    assert (config.encoder.width, config.encoder.depth, config.encoder.heads) == (768, 12, 12)
    assert (config.grid, config.num_visible, config.mask.gap, config.mask.similarity) == (14, 20, 4, 0.1)
    assert (config.decoder.width, config.decoder.depth, config.decoder.heads) == (512, 3, 16)


def test_layers_are_merged_in_order(folder: Folder) -> None:
    """Else a scale or --set would be overruled by the base that it is meant to change."""
    folder.write("base.yaml", "optim: {epochs: 2, batch_size: 2, accumulate: 2}\nloss.tau: 0.3\n")
    folder.write("scales/demo.yaml", DEMO + "optim: {batch_size: 3, accumulate: 3}\n")
    sweep = folder.load("axes: {loss: [mse], loss.tau: [0.4]}\n", sets=["optim.accumulate=4"])
    optim = sweep.trials[0].config.optim
    assert (optim.epochs, optim.batch_size, optim.accumulate) == (2, 3, 4)
    assert sweep.trials[0].config.loss.tau == 0.4
    assert sweep.trials[0].config.loss.kind == "mse"


def test_grid_is_the_product_less_what_is_excluded(folder: Folder) -> None:
    """Else cells would be missing from the table, or run although the file rules them out."""
    sweep = folder.load(
        "axes: {mask.gap: [0, 1, 2], mask.similarity: [0.0, 0.1]}\n"
        "exclude: [{mask.gap: [1, 2], mask.similarity: 0}]\nseeds: [4, 7]\n"
    )
    expected = ["gap=0 similarity=0", "gap=0 similarity=0.1", "gap=1 similarity=0.1", "gap=2 similarity=0.1"]
    assert arms(sweep) == expected
    assert [(t.arm, t.seed) for t in sweep.trials] == [(arm, seed) for seed in (4, 7) for arm in expected]
    assert sweep.trials[0].axes == {"mask.gap": 0, "mask.similarity": 0.0}
    assert sweep.trials[-1].config.mask.gap == 2
    assert sweep.trials[-1].config.seed == 7


def test_one_factor_is_the_base_and_each_change_alone(folder: Folder) -> None:
    """Else an arm would differ from the base in more than it says."""
    sweep = folder.load("design: one_factor\naxes: {loss: [mse, patch_discrimination], mask.gap: [1, 2]}\n")
    assert arms(sweep) == ["base", "loss=mse", "gap=1", "gap=2"]  # patch_discrimination is the base itself
    assert sweep.trials[2].axes == {"loss": "patch_discrimination", "mask.gap": 1}


def test_leave_one_out_is_the_full_method_less_each_part(folder: Folder) -> None:
    """Else the table could not say what a component is worth."""
    text = "design: leave_one_out\naxes: {mask.similarity: 0, decoder.cues: false}\n"
    text += "claims: [full > without cues]\n"
    sweep = folder.load(text)
    assert arms(sweep) == ["full", "without similarity", "without cues"]
    assert [t.config.mask.similarity for t in sweep.trials] == [0.1, 0.0, 0.1]
    assert [t.config.decoder.cues for t in sweep.trials] == [True, True, False]
    message = folder.error("design: leave_one_out\naxes:\n  mask.similarity: 0.1\n")
    assert message.startswith("sweep.yaml:5: mask.similarity: expected the value without it")


LADDER = """\
design: ladder
seeds: [0, 1]
stages:
  - axes: {loss: [mse, cosine, patch_discrimination]}
  - axes: {mask.gap: [0, 1]}
    select: {mask.gap: 1}
  - axes: {decoder.cues: [true, false]}
"""


def test_ladder_waits_for_each_winner(folder: Folder) -> None:
    """Else later stages would be trained on a choice that lost."""
    sweep = folder.load(LADDER)
    settled = [t for t in sweep.trials if not t.provisional]
    assert {t.arm for t in settled} == {"loss=mse", "loss=cosine", "loss=patch_discrimination"}
    assert {t.config.loss.kind for t in sweep.trials if t.provisional} == {"patch_discrimination"}

    scores = {"mse": 1.0, "cosine": 3.0, "patch_discrimination": 2.0}
    results: dict[str, float | None] = {t.id: scores[t.config.loss.kind] + t.seed for t in settled[:-1]}
    assert sweep.replan(results) == sweep  # one trial of the stage is still missing

    results[settled[-1].id] = 0.0
    after = sweep.replan(results)
    assert not any(t.provisional for t in after.trials)  # stage 2's winner is fixed by the file
    assert {t.config.loss.kind for t in after.trials if "cues" in t.arm} == {"cosine"}
    assert {t.config.mask.gap for t in after.trials if "cues" in t.arm} == {1}
    assert [t.id for t in after.trials][:6] == [t.id for t in sweep.trials][:6]


def test_ladder_passes_over_an_arm_that_diverged(folder: Folder) -> None:
    """Else an arm that fails on one seed of two could win on the other, or the ladder stop at it."""
    sweep = folder.load(LADDER)
    first = [t for t in sweep.trials if not t.provisional]
    results = {
        t.id: None if t.arm == "loss=mse" and t.seed else 9.0 if t.arm == "loss=mse" else 1.0 for t in first
    }
    after = sweep.replan(results)
    assert {t.config.loss.kind for t in after.trials if "cues" in t.arm} == {"cosine"}
    nothing = sweep.replan(dict.fromkeys(results))
    assert any(t.provisional for t in nothing.trials)


def test_baselines_stand_beside_the_arms(folder: Folder) -> None:
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


def test_a_cell_that_occurs_twice_runs_once(folder: Folder) -> None:
    """Else the same config would be trained twice and counted as two arms."""
    sweep = folder.load("axes: {mask.similarity: [0, 0.0, 0.1, 1e-1]}\nseeds: [0, 1, 0]\n")
    assert arms(sweep) == ["0", "0.1"]
    assert len(sweep.trials) == 4


def test_the_base_cell_of_two_sweeps_is_one_trial(folder: Folder) -> None:
    """Else every ablation would train the method's own recipe again."""
    first = folder.load("axes: {loss: [mse, patch_discrimination]}\n")
    second = folder.load("axes: {mask.gap: [0, 1]}\n")
    assert len({t.id for t in first.trials} & {t.id for t in second.trials}) == 1


def test_seeds_and_only_choose_trials_but_leave_the_table_whole(folder: Folder) -> None:
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


def test_a_ladder_climbs_on_the_seeds_that_it_is_given(folder: Folder) -> None:
    """Else --seeds would leave it waiting for the file's other seeds, and --only for every other arm."""
    sweep = folder.load(LADDER, seeds=[0], only=["cues=false"])
    assert {t.seed for t in sweep.planned} == {0}
    after = sweep.replan({t.id: float(t.config.loss.kind == "cosine") for t in sweep.planned})
    assert [(t.config.loss.kind, t.seed, t.provisional) for t in after.trials] == [("cosine", 0, False)]


def test_a_plan_travels_to_a_worker(folder: Folder) -> None:
    """Else Ray could not send a trial to another process."""
    sweep = folder.load("axes: {loss: [mse, cosine]}\n")
    assert pickle.loads(pickle.dumps(sweep.trials)) == sweep.trials


def test_claims_are_read() -> None:
    """Else a claim would be tested on another arm, in another direction or on another metric."""
    claim = parse_claim("gap=1 cues=true > gap=0 cues=true on linear_top1")
    assert (claim.left, claim.op, claim.right) == ("gap=1 cues=true", ">", "gap=0 cues=true")
    assert claim.metric == "linear_top1"
    collapsed = parse_claim("ema not collapsed")
    assert (collapsed.left, collapsed.op, collapsed.right) == ("ema", "not collapsed", None)
    assert parse_claim("joint collapsed").op == "collapsed"


def test_a_side_selects_by_value_not_by_spelling() -> None:
    """Else `similarity=0` would miss the arm whose value is 0.0, and true the one that is 1."""
    assert selects("similarity=0", "x", {"mask.similarity": 0.0})
    assert selects("mask.similarity=0.10", "x", {"mask.similarity": 0.1})
    assert not selects("gap=true", "x", {"mask.gap": 1})
    assert not selects("", "x", {})


# --- what is wrong with a file

AXES = "axes: {loss: [mse, cosine]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: [", "sweep.yaml:3: does not parse as YAML: expected the node content"),
        (AXES + AXES, "sweep.yaml:4: duplicate key axes, first on line 3"),
        (AXES + "seed: [0]\n", "sweep.yaml:4: unknown key seed; expected one of"),
        (AXES + "claim: []\n", "did you mean claims?"),
        (AXES + "seeds: [0, x]\n", "sweep.yaml:4: seeds.1: expected an integer, found x"),
        (AXES + "seeds: 3\n", "sweep.yaml:4: seeds: expected a list, found 3"),
        (AXES + "seeds: []\n", "sweep.yaml:4: seeds: "),
        (AXES + "seeds: [-1]\n", "sweep.yaml:4: seeds.0: expected greater than or equal to 0, found -1"),
        (
            AXES + "design: gird\n",
            "sweep.yaml:4: design: expected one of grid, one_factor, leave_one_out, ladder",
        ),
        (AXES + "design: gird\n", "found gird; did you mean grid?"),
        (AXES + "metric: knn_top\n", "sweep.yaml:4: metric: expected one of"),
        (AXES + "metric: knn_top\n", "found knn_top; did you mean knn_top1?"),
        (AXES + "baselines:\n  - raw_pixel\n", "sweep.yaml:5: baselines: expected one of"),
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
        ("{}", "does not parse as YAML"),
        (
            "axes: {loss: [mse]}\nexclude: [{loss: mse}]\n",
            "sweep.yaml:4: expected at least one trial, found an empty",
        ),
        (AXES + "exclude:\n  - {los: mse}\n", "sweep.yaml:5: unknown key los; did you mean loss?"),
        (
            AXES + "exclude:\n  - {loss: msee}\n",
            "sweep.yaml:5: loss: expected one of mse, cosine, found msee; did",
        ),
        (
            "axes:\n  mask.ratio:\n    - 0.75\n    - 0.99\n",
            "sweep.yaml:6: mask.ratio: impossible combination: mask.ratio 0.99 of 25 patches leaves 0",
        ),
        (
            "axes:\n  encoder.heads: [3]\n",
            "sweep.yaml:4: encoder.heads: impossible combination: encoder.width 64 is not",
        ),
        (
            AXES + "claims:\n  - mse > cosin\n",
            "sweep.yaml:5: claims.0: expected an arm (mse, cosine), found cosin; did",
        ),
        (
            "axes: {mask.gap: [0, 1], decoder.cues: [true, false]}\nclaims: [gapp=1 > gap=0]\n",
            "sweep.yaml:4: claims.0: expected an arm (gap=0, cues=true, cues=false, gap=1), found gapp=1; "
            "did you mean gap=1?",
        ),
        (
            "axes: {encoder.depth: [1, 2], projector.depth: [0, 3]}\nclaims: [depth=3 > depth=0]\n",
            "sweep.yaml:4: claims.0: depth is encoder.depth or projector.depth: write it in full",
        ),
        (
            "design: ladder\nstages: [{axes: {loss: [mse]}}]\nmetric: train/loss\n",
            "sweep.yaml:5: metric: a stage keeps the highest, and of train/loss less is better",
        ),
        (AXES + "claims: [mse beats cosine]\n", "sweep.yaml:4: claims.0: expected A > B"),
        (AXES + "claims: [mse > cosine on knn]\n", "sweep.yaml:4: claims.0: expected one of nn_top1"),
        (AXES + "claims: [mse > mse]\n", "sweep.yaml:4: claims.0: expected two sides without a common arm"),
        (AXES + "base: bas.yaml\n", "sweep.yaml:4: duplicate key base"),
        (AXES + "design: ladder\n", "sweep.yaml:3: axes: expected no axes with design ladder, found axes"),
        ("design: ladder\n", "sweep.yaml:3: stages: expected with design ladder, found none"),
        ("design: ladder\nstages: []\n", "sweep.yaml:4: stages: expected at least one stage"),
        ("design: ladder\nstages:\n  - axis: {}\n", "sweep.yaml:5: "),
        (
            "design: ladder\nstages:\n  - axes: {loss: [mse]}\n    select: {loss: msee}\n",
            "sweep.yaml:6: loss: expected one of mse, found msee; did you mean mse?",
        ),
        ("design: ladder\nstages:\n  - axes: {loss: [mse]}\n    select: bst\n", "did you mean best?"),
        ("axes: &a {loss: [mse]}\n", "sweep.yaml:3: anchors and aliases are not supported"),
        ("axes: !!python/object/apply:os.system [ls]\n", "sweep.yaml:3: tags are not supported"),
        ("axes: {loss.tau: [1e999]}\n", "sweep.yaml:3: expected a finite number, found 1e999"),
        ("axes: {mask.gap: [99999999999999999999]}\n", "sweep.yaml:3: expected a number of at most 64 bits"),
        ("axes: {? [a] : b}\n", "sweep.yaml:3: expected a word as the key"),
        (AXES + "---\na: 1\n", "expected one YAML document, found a second"),
    ],
)
def test_each_mistake_is_named_with_its_place(folder: Folder, text: str, message: str) -> None:
    """Else the user would search a file of a hundred lines for a letter."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "base.yaml",
            "optim:\n  epoch: 3\n",
            "base.yaml:2: unknown key optim.epoch; did you mean optim.epochs?",
        ),
        (
            "base.yaml",
            "optim:\n  batch_size: big\n",
            "base.yaml:2: optim.batch_size: expected an integer, found big",
        ),
        ("base.yaml", "loss: msee\n", "base.yaml:1: loss: expected one of mse"),
        ("base.yaml", "encoder: 3\n", "base.yaml:1: encoder: expected keys under encoder"),
        ("base.yaml", "seed: 3\n", "base.yaml:1: seed: expected in the sweep's seeds"),
        ("base.yaml", "loss: mse\nloss.kind: mse\n", "base.yaml:2: duplicate key loss, first at"),
        ("base.yaml", "- a\n", "base.yaml:1: expected a mapping of config keys, found a list"),
        ("base.yaml", "a: [\n", "base.yaml:2: does not parse as YAML"),
        (
            "scales/demo.yaml",
            DEMO + "optim: {precision: float}\n",
            "demo.yaml:4: optim.precision: expected one of",
        ),
        (
            "scales/demo.yaml",
            "encoder:\n  patch_size: 3\n",
            "demo.yaml:2: encoder.patch_size: impossible combination",
        ),
    ],
)
def test_a_mistake_in_the_base_or_the_scale_names_that_file(
    folder: Folder, file: str, text: str, message: str
) -> None:
    """Else the sweep file would be blamed for a line that it does not have."""
    folder.write(file, text)
    assert message in folder.error(AXES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": ["mask.gap"]}, "--set mask.gap: expected key=value"),
        ({"sets": ["mask.gaps=1"]}, "--set mask.gaps=1: unknown key mask.gaps; did you mean mask.gap?"),
        ({"sets": ["mask.gap=x"]}, "--set mask.gap=x: mask.gap: expected an integer, found x"),
        ({"sets": ["loss=cosine"]}, "--set loss=cosine: loss: is an axis of this sweep"),
        ({"sets": ["loss.kind=cosine"]}, "--set loss.kind=cosine: loss: is an axis of this sweep"),
        ({"sets": ["seed=1"]}, "--set seed=1: seed: expected --seeds"),
        (
            {"sets": ["encoder.heads=5"]},
            "--set encoder.heads=5: encoder.heads: impossible combination: encoder.width",
        ),
        (
            {"sets": ["data.image_size=4"]},
            "--set data.image_size=4: data.image_size: impossible combination: mask.ratio 0.75 of 1",
        ),
        ({"only": ["mze"]}, "--only mze: expected an arm of"),
        ({"only": ["mze"]}, "found none of that name; did you mean mse?"),
        ({"scale": "dem"}, "--scale dem: expected one of demo, gpu, paper; did you mean demo?"),
        ({"scale": "../demo"}, "--scale ../demo: expected one of"),
        ({"seeds": []}, "--seeds: expected whole numbers from 0"),
        ({"seeds": [-1]}, "--seeds: expected whole numbers from 0, found -1"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_argument(
    folder: Folder, arguments: dict[str, Any], message: str
) -> None:
    """Else a wrong argument would look like a wrong file."""
    assert message in folder.error(AXES, **arguments)


def test_files_that_cannot_be_read(folder: Folder) -> None:
    """Else a traceback would be the answer to a mistyped path."""

    def error(path: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            load(path)
        assert str(caught.value).isprintable()
        return str(caught.value)

    folder.write("loss.yaml", HEAD + AXES)
    assert f"did you mean {folder.root / 'loss.yaml'}?" in error(folder.root / "los.yaml")
    assert "found a folder" in error(folder.root)
    assert "no such file" in error(folder.root / "nowhere" / "loss.yaml")
    assert error("a\0b")
    assert error("a" * 5000)
    assert "expected at most" in error(folder.write("big.yaml", "#" * (MAX_BYTES + 1)))
    latin = folder.root / "latin.yaml"
    latin.write_bytes(b"name: \xe9\n")
    assert "expected UTF-8 text, found byte 0xe9" in error(latin)
    missing = folder.write("x.yaml", "name: x\nbase: bse.yaml\n" + AXES)
    assert "x.yaml:2: base: expected a file, found no bse.yaml; did you mean base.yaml?" in error(missing)


def test_nesting_and_size_are_bounded(folder: Folder) -> None:
    """Else a few kilobytes could take the machine's memory or its stack."""
    assert "deep" in folder.error("axes: " + "[" * 5000)
    assert "deep" in folder.error("axes: " + "{a: " * 5000)
    assert "expected at most 50,000 values" in folder.error("axes: {loss: [" + "1," * 60_000 + "]}")


def test_ten_thousand_trials_plan_in_seconds_and_one_more_needs_yes(folder: Folder) -> None:
    """Else a slip in an axis would start a month of work, or a large plan would seem to hang."""
    values = ", ".join(str(number) for number in range(1, 101))
    grid = f"axes: {{optim.epochs: [{values}], optim.batch_size: [{values}]}}\n"
    start = time.monotonic()
    assert len(folder.load(grid).trials) == 10_000
    assert time.monotonic() - start < 10
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


# --- garbage


def only_user_errors(path: Path) -> None:
    message = ""
    try:
        load(path)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 2000


fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
yaml_pieces = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ", ", "&x ", "*x", "!!int ", "'", '"', "|", ">",
     "#", "? ", "%YAML 1.1\n", "---\n", "...\n", "\\", "\\uD800", "\\UFFFFFFFF", "\t", "\r", "\x00", "\x85",
     "\u2028", "\ufeff", "<<", "=", "1e9", ".inf", ".nan", "0x", "~", "@", "`", "name: x\n", "axes: "]
)  # fmt: skip


@fuzz
@given(text=st.one_of(st.text(max_size=80), st.lists(yaml_pieces, max_size=25).map("".join)))
@example(text='"\\UFFFFFFFF"')
@example(text='"\\uD800": 1')
@example(text="%YAML 1.x\n---\na: 1")
@example(text="%TAG ! !\n---\n!x y")
@example(text="a: |99\n b")
def test_text_garbage_gives_one_line(folder: Folder, text: str) -> None:
    """Else a damaged file would end in a traceback."""
    path = folder.root / "garbage.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    only_user_errors(path)


@fuzz
@given(raw=st.binary(max_size=60))
def test_bytes_garbage_gives_one_line(folder: Folder, raw: bytes) -> None:
    """Else a binary file given by mistake would end in a traceback."""
    path = folder.root / "garbage.yaml"
    path.write_bytes(raw)
    only_user_errors(path)


words = st.sampled_from(
    ["loss", "loss.kind", "mask.gap", "mask.ratio", "mse", "mask", "encoder.width", "data.path", "seed",
     "objective", "decoder.cues", "best", "grid", "ladder", "kind", "", " ", "\n", "a > b", "base.yaml"]
)  # fmt: skip
leaves = st.one_of(
    words, st.none(), st.booleans(), st.integers(), st.floats(), st.integers(-2, 70), st.text(max_size=6)
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)
sweeps = st.fixed_dictionaries(
    {"name": st.just("x")},
    optional={
        "axes": st.dictionaries(words, st.lists(leaves, max_size=3) | leaves, max_size=3) | trees,
        "design": st.sampled_from(["grid", "one_factor", "leave_one_out", "ladder"]) | trees,
        "base": st.just("base.yaml") | trees,
        "stages": st.lists(
            st.fixed_dictionaries(
                {"axes": st.dictionaries(words, st.lists(leaves, max_size=3), max_size=2)},
                optional={"select": st.just("best") | trees},
            ),
            max_size=3,
        )
        | trees,
        "exclude": st.lists(st.dictionaries(words, leaves, max_size=2), max_size=2) | trees,
        "seeds": st.lists(st.integers(0, 3), max_size=3) | trees,
        "metric": st.sampled_from(["knn_top1", "collapse/rank"]) | trees,
        "claims": st.lists(st.sampled_from(["mse > cosine", "gap=1 > gap=0", "base collapsed"]), max_size=2)
        | trees,
        "baselines": st.lists(st.just("raw_pixels"), max_size=2) | trees,
        "question": st.text(max_size=10) | trees,
    },
)


@fuzz
@given(tree=sweeps)
def test_structured_garbage_gives_one_line(folder: Folder, tree: dict[str, Any]) -> None:
    """Else a file of the right form with a wrong value somewhere would end in a traceback."""
    only_user_errors(folder.write("garbage.yaml", json.dumps(tree)))


@fuzz
@given(tree=trees, scale=trees)
def test_garbage_in_base_and_scale_gives_one_line(folder: Folder, tree: Any, scale: Any) -> None:
    """Else the files that a sweep stands on would be trusted more than the sweep."""
    folder.write("base.yaml", json.dumps(tree))
    folder.write("scales/demo.yaml", json.dumps(scale))
    only_user_errors(folder.write("sweep.yaml", HEAD + AXES))


@fuzz
@given(sets=st.lists(st.text(max_size=20) | st.builds("{}={}".format, words, leaves), max_size=3),
       only=st.lists(st.text(max_size=10), max_size=2), scale=st.text(max_size=8))  # fmt: skip
def test_garbage_on_the_command_line_gives_one_line(
    folder: Folder, sets: list[str], only: list[str], scale: str
) -> None:
    """Else a shell's quoting gone wrong would end in a traceback."""
    message = ""
    try:
        folder.load(AXES, sets=sets, only=only or None, scale=scale or None)
    except UserError as error:
        message = str(error)
    assert message.isprintable()


@fuzz
@given(gaps=st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True),
       cues=st.lists(st.booleans(), min_size=1, max_size=2, unique=True),
       seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))  # fmt: skip
def test_a_grid_is_exactly_the_product(
    folder: Folder, gaps: list[int], cues: list[bool], seeds: list[int]
) -> None:
    """Else a plan could lose or invent a cell for some shape of grid."""
    text = json.dumps({"mask.gap": gaps, "decoder.cues": cues})
    sweep = folder.load(f"axes: {text}\nseeds: {seeds}\n")
    cells = [(t.config.mask.gap, t.config.decoder.cues, t.seed) for t in sweep.trials]
    assert sorted(cells) == sorted(itertools.product(gaps, cues, seeds))
    assert [arm.name for arm in sweep.arms] == list(dict.fromkeys(t.arm for t in sweep.trials))
