"""Sweep files: layers merged in order, and one line that says what is wrong, whatever the file holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmim.errors import UserError
from lmim.plan import designs
from lmim.plan.ablation import load
from lmim.plan.located_yaml import MAX_BYTES
from lmim.trial.ending import Collapse, Ending

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


DEMO = "data: {image_size: 20}\nencoder: {patch_size: 4, width: 64, heads: 4}\nmask: {ratio: 0.75}\n"
HEAD = "name: test\nbase: base.yaml\n"
AXES = "axes: {loss: [mse, cosine]}\n"


def test_layers_are_merged_in_order(folder: "Folder") -> None:
    """Else a scale or --set would be overruled by the base that it is meant to change."""
    folder.write(
        "base.yaml", "optim: {epochs: 2, batch_size: 2, accumulate: 2}\nloss: {kind: mse, tau: 0.3}\n"
    )
    folder.write("scales/demo.yaml", DEMO + "optim: {batch_size: 3, accumulate: 3}\n")
    sweep = folder.load(
        "axes: {loss: [patch_discrimination], loss.tau: [0.4]}\n", sets=["optim.accumulate=4"]
    )
    optim = sweep.trials[0].config.optim
    assert (optim.epochs, optim.batch_size, optim.accumulate) == (2, 3, 4)
    assert sweep.trials[0].config.section("loss").tau == 0.4
    assert sweep.trials[0].config.section("loss").kind == "patch_discrimination"


def test_a_files_own_config_lies_over_the_scale_and_under_the_arms(folder: "Folder") -> None:
    """A question about other data than the scale's would be asked of these, its baselines of those."""
    folder.write("scales/demo.yaml", DEMO + "optim: {batch_size: 3, accumulate: 3}\n")
    own = "config: {optim: {batch_size: 5}, optim.accumulate: 5, data.name: digits, run.log_every: 7}\n"
    text = own + "axes: {loss: [mse], optim.epochs: [4]}\nbaselines: [raw_pixels]\n"
    arm, baseline = (trial.config for trial in folder.load(text, sets=["optim.accumulate=4"]).trials)
    assert (arm.optim.epochs, arm.optim.batch_size, arm.optim.accumulate) == (4, 5, 4)
    assert (arm.data.name, baseline.data.name, arm.run.log_every) == ("digits", "digits", 7)
    assert folder.load("config: {}\n" + AXES).trials == folder.load(AXES).trials
    for wrong, message in {
        "{loss.kidn: mse}": "sweep.yaml:3: unknown key loss.kidn",
        "{seed: 3}": "sweep.yaml:3: seed: expected in the sweep's seeds, found here",
        "{encoder: {heads: 7}}": "sweep.yaml:3: encoder.heads: impossible combination: encoder.width 64",
        "[1]": "sweep.yaml:3: config: expected a mapping",
    }.items():
        assert folder.error(f"config: {wrong}\n" + AXES).startswith(message), wrong


def test_a_rule_that_ends_collapsed_trials_is_read(folder: "Folder") -> None:
    """Trials would be ended by another rule than the file has, or by one that it has switched off."""
    rules = {"true": Collapse(), "{patience: 5, rank: 0.1}": Collapse(rank=0.1, patience=5)}
    for words, rule in rules.items():
        assert folder.load(f"{AXES}end_collapsed: {words}\n").ending == Ending(collapse=rule)
    assert folder.load(AXES + "end_collapsed: false\n").ending is folder.load(AXES).ending is None
    with_rule, without = (folder.load(AXES + more).trials for more in ("end_collapsed: true\n", ""))
    assert with_rule == without, "the rule is in no identity"


def test_figures_change_no_trial(folder: "Folder") -> None:
    """A figure more in the report would train everything anew."""
    figures = "figures: [tsne, {attention: {images: 3}}, {tsne: {clusters: 2}}]\n"
    with_figures, without = (folder.load(AXES + more) for more in (figures, ""))
    assert with_figures.trials == without.trials
    assert [one.name for one in with_figures.figures] == ["tsne", "attention", "tsne"]
    settings = [one.settings for one in with_figures.figures]
    assert (settings[1]["images"], settings[1]["queries"]) == (3, 4)
    assert [one["clusters"] for one in settings[::2]] == [4, 2]
    assert without.figures == ()


def test_a_heat_map_is_of_two_numeric_axes(folder: "Folder") -> None:
    """The axes of a sweep stand in its file already; a typing error in one would draw an empty figure."""
    axes = "axes: {mask.ratio: [0.5, 0.8], loss: [mse, cosine], mask.gap: [0, 1], optim.epochs: [1, 2]}\n"
    entries = "heatmap, {heatmap: {y: mask.ratio, metric: nn_top1}}, {heatmap: {x: optim.epochs}}"
    found = [one.settings for one in folder.load(f"{axes}figures: [{entries}]\n").figures]
    assert [(one["x"], one["y"]) for one in found] == [
        ("mask.ratio", "mask.gap"),
        ("mask.gap", "mask.ratio"),
        ("optim.epochs", "mask.ratio"),
    ]
    assert [one["metric"] for one in found] == ["eval/knn_top1", "eval/nn_top1", "eval/knn_top1"]
    wrong = folder.error(axes + "figures:\n  - {heatmap: {x: mask.rato}}\n")
    assert wrong.startswith(
        "sweep.yaml:5: figures: heatmap.x: expected a numeric axis of this sweep (mask.ratio"
    )
    assert wrong.endswith("found mask.rato; did you mean mask.ratio?")
    assert "heatmap.metric: expected one of" in folder.error(
        axes + "figures: [{heatmap: {metric: knn_top}}]\n"
    )


def test_corruptions_are_held_against_an_arm(folder: "Folder") -> None:
    """A typing error in the arm's name, or errors that nobody measures, would draw an empty figure."""
    judged = AXES + "evaluate: [knn, robustness]\nbaselines: [raw_pixels]\nfigures: "
    (found,) = folder.load(judged + "[{corruptions: {to: raw_pixels}}]\n").figures
    assert found.settings == {"to": "raw_pixels"}
    assert folder.load(judged + "[corruptions]\n").figures[0].settings == {"to": ""}
    wrong = folder.error(judged + "[{corruptions: {to: raw_pixel}}]\n")
    assert wrong.startswith("sweep.yaml:6: figures: corruptions.to: expected an arm, found raw_pixel")
    assert wrong.endswith("did you mean raw_pixels?")
    without = folder.error(AXES + "figures: [corruptions]\n")
    assert without.endswith("figures: corruptions: expected robustness in this sweep's evaluate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            AXES + "figures:\n  - tsne\n  - segmentatoin\n",
            "sweep.yaml:6: figures: expected one of attention,",
        ),
        (AXES + "figures: [segmentatoin]\n", "found segmentatoin; did you mean segmentation?"),
        (
            AXES + "figures: [{tsne: {perplexty: 3}}]\n",
            "sweep.yaml:4: figures: tsne: unknown setting perplexty",
        ),
        (AXES + "figures: [{tsne: {perplexty: 3}}]\n", "did you mean perplexity?"),
        (AXES + "figures: [{tsne: {images: 0}}]\n", "figures: tsne.images: expected greater than 0, found 0"),
        (
            AXES + "figures: [{propagation: {recipe: davis}}]\n",
            "figures: propagation.recipe: expected 'dino'",
        ),
        (AXES + "figures: [{segmentation: {data: digits}}]\n", "segmentation.data: expected data with masks"),
        (AXES + "figures: [{segmentation: {data: digts}}]\n", "did you mean digits?"),
        (
            AXES + "evaluate: [knn, {robustness: {path: /here}}]\n",
            "sweep.yaml:4: evaluate: robustness.path: expected robustness.data beside it, the data's name",
        ),
        (
            AXES + "evaluate: [knn, {robustness: {data: digits}}]\n",
            "sweep.yaml:4: evaluate: robustness.data: expected '' or 'imagenet_c', found digits",
        ),
        (AXES + "figures: [mine.py:map]\n", "figures: expected one of attention,"),
        (AXES + "figures: [tsne, tsne]\n", "sweep.yaml:4: figures: duplicate tsne"),
        (AXES + "figures: [3]\n", "sweep.yaml:4: figures: expected a figure, or one with its settings"),
        (AXES + "figures: [heatmap]\n", "heatmap: expected a sweep with two numeric axes, found none"),
        (AXES + "end_collapsed: {rank: 0.9}\n", "sweep.yaml:4: end_collapsed.rank: expected less than or"),
        (AXES + "end_collapsed: {rnk: 0.1}\n", "did you mean rank?"),
        (AXES + "end_collapsed: soon\n", "sweep.yaml:4: end_collapsed: expected a"),
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
            "sweep.yaml:4: design: expected one of grid, ladder, leave_one_out, list, one_factor",
        ),
        (AXES + "design: gird\n", "found gird; did you mean grid?"),
        (AXES + "metric: knn_top\n", "sweep.yaml:4: metric: expected one of"),
        (AXES + "metric: knn_top\n", "found knn_top; did you mean knn_top1?"),
        (AXES + "baselines:\n  - raw_pixel\n", "sweep.yaml:5: baselines: expected one of"),
        ("{}", "does not parse as YAML"),
        (
            "axes:\n  mask.ratio:\n    - 0.75\n    - 0.99\n",
            "sweep.yaml:6: mask.ratio: impossible combination: mask.ratio 0.99 of 25 patches leaves 0",
        ),
        (
            "axes:\n  encoder.heads: [3]\n",
            "sweep.yaml:4: encoder.heads: impossible combination: encoder.width 64 is not",
        ),
        (AXES + "base: bas.yaml\n", "sweep.yaml:4: duplicate key base"),
        ("axes: &a {loss: [mse]}\n", "sweep.yaml:3: anchors and aliases are not supported"),
        ("axes: !!python/object/apply:os.system [ls]\n", "sweep.yaml:3: tags are not supported"),
        ("axes: {loss.tau: [1e999]}\n", "sweep.yaml:3: expected a finite number, found 1e999"),
        ("axes: {mask.gap: [99999999999999999999]}\n", "sweep.yaml:3: expected a number of at most 64 bits"),
        ("axes: {? [a] : b}\n", "sweep.yaml:3: expected a word as the key"),
        (AXES + "---\na: 1\n", "expected one YAML document, found a second"),
    ],
)
def test_each_mistake_is_named_with_its_place(folder: "Folder", text: str, message: str) -> None:
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
    folder: "Folder", file: str, text: str, message: str
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
    folder: "Folder", arguments: dict[str, Any], message: str
) -> None:
    """Else a wrong argument would look like a wrong file."""
    assert message in folder.error(AXES, **arguments)


def test_files_that_cannot_be_read(folder: "Folder") -> None:
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


def test_nesting_and_size_are_bounded(folder: "Folder") -> None:
    """Else a few kilobytes could take the machine's memory or its stack."""
    assert "deep" in folder.error("axes: " + "[" * 5000)
    assert "deep" in folder.error("axes: " + "{a: " * 5000)
    assert "expected at most 50,000 values" in folder.error("axes: {loss: [" + "1," * 60_000 + "]}")


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
def test_text_garbage_gives_one_line(folder: "Folder", text: str) -> None:
    """Else a damaged file would end in a traceback."""
    path = folder.root / "garbage.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    only_user_errors(path)


@fuzz
@given(raw=st.binary(max_size=60))
def test_bytes_garbage_gives_one_line(folder: "Folder", raw: bytes) -> None:
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
        "design": st.sampled_from(designs.names()) | trees,
        "base": st.just("base.yaml") | trees,
        "stages": st.lists(
            st.fixed_dictionaries(
                {"axes": st.dictionaries(words, st.lists(leaves, max_size=3), max_size=2)},
                optional={"select": st.just("best") | trees},
            ),
            max_size=3,
        )
        | trees,
        "arms": st.dictionaries(words, st.dictionaries(words, leaves, max_size=3), max_size=3) | trees,
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
def test_structured_garbage_gives_one_line(folder: "Folder", tree: dict[str, Any]) -> None:
    """Else a file of the right form with a wrong value somewhere would end in a traceback."""
    only_user_errors(folder.write("garbage.yaml", json.dumps(tree)))


@fuzz
@given(tree=trees, scale=trees)
def test_garbage_in_base_and_scale_gives_one_line(folder: "Folder", tree: Any, scale: Any) -> None:
    """Else the files that a sweep stands on would be trusted more than the sweep."""
    folder.write("base.yaml", json.dumps(tree))
    folder.write("scales/demo.yaml", json.dumps(scale))
    only_user_errors(folder.write("sweep.yaml", HEAD + AXES))


@fuzz
@given(sets=st.lists(st.text(max_size=20) | st.builds("{}={}".format, words, leaves), max_size=3),
       only=st.lists(st.text(max_size=10), max_size=2), scale=st.text(max_size=8))  # fmt: skip
def test_garbage_on_the_command_line_gives_one_line(
    folder: "Folder", sets: list[str], only: list[str], scale: str
) -> None:
    """Else a shell's quoting gone wrong would end in a traceback."""
    message = ""
    try:
        folder.load(AXES, sets=sets, only=only or None, scale=scale or None)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
