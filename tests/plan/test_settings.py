"""Settings: the config keys of a sweep, the user's own code among them."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.plan.conftest import Folder

MINE = '''"""Mine."""
import torch

def huber2(prediction, target, *, delta: float = 1.0):
    return 2 * torch.nn.functional.huber_loss(prediction, target, delta=delta)

def swapped(target):
    return target.mean()
'''
HUBER = "my_losses.py:huber2"
AXES = f"axes: {{loss: [mse, {HUBER}], loss.delta: [0.5, 1.0]}}\n"


@pytest.fixture
def mine(folder: "Folder") -> "Folder":
    """A folder with the user's own losses in it."""
    folder.write("my_losses.py", MINE)
    return folder


def test_a_loss_of_ones_own_is_an_arm_with_its_own_setting(mine: "Folder") -> None:
    """Else whoever never edits lmim could not ablate a loss of ten lines against the others."""
    sweep = mine.load(AXES + "seeds: [0, 1]\nclaims: [delta=0.5 > loss=mse]\n")
    named = ["loss=mse", f"loss={HUBER} delta=0.5", f"loss={HUBER} delta=1"]
    assert [arm.name for arm in sweep.arms] == named
    assert [arm.axes for arm in sweep.arms] == [
        {"loss": "mse"},
        {"loss": HUBER, "loss.delta": 0.5},
        {"loss": HUBER, "loss.delta": 1.0},
    ]
    assert len(sweep.trials) == 6
    assert [t.config.sources for t in sweep.trials[:2]] == [{}, {"my_losses.py": MINE}]
    assert [t.arm for t in mine.load(AXES, only=[f"loss={HUBER}"]).trials] == named[1:]


def test_the_users_code_is_in_the_identity_of_the_arms_that_run_it(mine: "Folder") -> None:
    """Else a loss that was mended would keep its old results, or a comment in it cost a training."""
    text = f"axes: {{loss: [mse, {HUBER}]}}\nbaselines: [raw_pixels]\n"

    def ids() -> list[str]:
        return [trial.id for trial in mine.load(text).trials]

    before = ids()
    mine.write("my_losses.py", MINE.replace("    return 2", "    # twice\n    return 2"))
    assert ids() == before
    mine.write("my_losses.py", MINE.replace("return 2", "return 3"))
    assert [one == old for one, old in zip(ids(), before, strict=True)] == [True, False, True]


def test_what_a_baseline_does_not_run_is_not_in_its_identity(mine: "Folder") -> None:
    """Else a change of the user's loss would have raw pixels judged again."""
    text = "axes: {mask.gap: [0, 1]}\nbaselines: [raw_pixels]\n"
    plain = mine.load(text).trials
    own = mine.load(text, sets=[f"loss={HUBER}"]).trials
    assert [a.id == b.id for a, b in zip(plain, own, strict=True)] == [False, False, True]
    assert own[-1].config.sources == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "axes:\n  loss: [mse, my_losses.py:huber3]\n",
            "sweep.yaml:4: loss: expected a function or class huber3 in my_losses.py, found huber2, swapped",
        ),
        (
            "axes:\n  loss:\n    - my_losses.py:swapped\n",
            "sweep.yaml:5: loss: expected swapped(prediction, target, *, settings), found my_losses.py:7: "
            "swapped(target)",
        ),
        ("axes:\n  loss:\n    - mse\n    - yours.py:f\n", "sweep.yaml:6: loss: expected the file yours.py"),
        ("axes:\n  loss: [broken.py:f]\n", "sweep.yaml:4: loss: broken.py:1: "),
        ("axes:\n  loss: [no_such:f]\n", "sweep.yaml:4: loss: expected a file that ends in .py, or an"),
        (
            "axes:\n  collapse: [my_losses.py:huber2]\n",
            "sweep.yaml:4: collapse: expected a class with encode",
        ),
        (AXES.replace("0.5", "half"), "sweep.yaml:3: loss.delta: expected a number, found half"),
        ("axes: {loss: [mse, cosine], loss.delta: [0.5]}\n", "sweep.yaml:3: unknown key loss.delta"),
        (
            f"axes: {{loss: [{HUBER}], loss.detla: [1.0]}}\n",
            "sweep.yaml:3: unknown key loss.detla; did you mean loss.delta?",
        ),
        (
            "design: list\narms:\n  a: {loss: mse}\n  b:\n    loss: my_losses.py:huber3\n",
            "sweep.yaml:7: loss: expected a function or class huber3",
        ),
        (
            "axes: {loss: [mse]}\nevaluate:\n  - nn\n  - yours.py:gap: {k: 3}\n",
            "sweep.yaml:6: evaluate: expected the file yours.py",
        ),
    ],
)
def test_what_is_wrong_with_ones_own_code_is_named_with_its_line(
    mine: "Folder", text: str, message: str
) -> None:
    """Else the arm would fail on a worker, after the others have trained."""
    mine.write("broken.py", "def f(:\n")
    found = mine.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")


def test_code_named_in_a_base_is_found_beside_it_and_blamed_there(mine: "Folder") -> None:
    """Else a base that several sweeps share could not name a loss."""
    mine.write("base.yaml", f"optim: {{epochs: 2}}\nloss:\n  kind: {HUBER}\n  delta: 0.25\n")
    assert mine.load("axes: {mask.gap: [0]}\n").trials[0].config.section("loss").delta == 0.25
    mine.write("base.yaml", "optim: {epochs: 2}\nloss: my_losses.py:huber3\n")
    assert mine.error("axes: {mask.gap: [0]}\n").startswith("base.yaml:2: loss: expected a function or class")


def test_a_loss_of_ones_own_by_argument(mine: "Folder") -> None:
    """Else --set, with which people try things, would know less than the file."""
    text = "axes: {mask.gap: [0, 1]}\n"
    config = mine.load(text, sets=[f"loss={HUBER}", "loss.delta=0.25"]).trials[0].config
    assert (config.section("loss").kind, config.section("loss").delta) == (HUBER, 0.25)
    assert mine.error(text, sets=["loss=my_losses.py:huber3"]).startswith(
        "--set loss=my_losses.py:huber3: loss: expected a function or class huber3"
    )
    assert mine.error(text, sets=[f"loss={HUBER}", "loss.delta=x"]) == (
        "--set loss.delta=x: loss.delta: expected a number, found x"
    )


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            "axes: {loss: [mse, cosine]}\n",
            {"sets": ["loss.tau=0.3"]},
            "--set loss.tau=0.3: loss.tau: no arm of this sweep reads it",
        ),
        (
            "axes:\n  loss: [mse, cosine]\n  loss.tau: [0.1, 0.2]\n",
            {},
            "sweep.yaml:5: loss.tau: no arm of this sweep reads it",
        ),
        (
            "axes: {loss: [patch_discrimination], data.train_images: [100]}\n",
            {"sets": ["objective=raw_pixels"]},
            "sweep.yaml:3: loss: no arm of this sweep reads it",
        ),
    ],
)
def test_a_key_that_no_arm_reads_is_refused(
    folder: "Folder", text: str, arguments: dict[str, Any], message: str
) -> None:
    """Else a sweep over a temperature that nothing has would report equal arms as a finding."""
    assert folder.error(text, **arguments) == message


def test_what_one_arm_does_not_read_is_no_arm_of_its_own(folder: "Folder") -> None:
    """Else mse would train once for every temperature, and each be called another arm."""
    sweep = folder.load("axes: {loss: [mse, patch_discrimination], loss.tau: [0.1, 0.2]}\n")
    assert [(arm.name, arm.axes) for arm in sweep.arms] == [
        ("loss=mse", {"loss": "mse"}),
        ("loss=patch_discrimination tau=0.1", {"loss": "patch_discrimination", "loss.tau": 0.1}),
        ("loss=patch_discrimination tau=0.2", {"loss": "patch_discrimination", "loss.tau": 0.2}),
    ]
    assert len(sweep.trials) == 3
    (baseline,) = folder.load(
        "axes: {loss: [mse]}\nbaselines: [raw_pixels]\n", sets=["mask.gap=1"], only=["raw_pixels"]
    ).trials
    assert "mask.gap" not in baseline.config.flat()


@pytest.mark.parametrize(("classes", "has"), [(1, "one class"), (0, "no labels")])
def test_data_without_two_classes_are_refused(folder: "Folder", classes: int, has: str) -> None:
    """Training on them says nothing, and a diverged or perfect trial would be its only sign."""
    folder.write(
        "mine.py",
        "from dataclasses import replace\n"
        "from lmim.data.digits import digits\n"
        f"def alone(data):\n    return replace(digits(data), classes={classes})\n",
    )
    text = "axes: {objective: [latent_mim, supervised]}\nmetric: nn_top1\n"
    told = folder.error(text, sets=["data.name=mine.py:alone"])
    assert told == (
        "--set data.name=mine.py:alone: data.name: impossible combination: data.name mine.py:alone has "
        f"{has}, supervised needs two or more"
    )


def test_words_that_timm_does_not_know_are_refused(folder: "Folder") -> None:
    """timm passes over some of them, and the arm would be augmented otherwise than it is named."""
    text = "axes: {objective: [supervised]}\nmetric: nn_top1\n"
    told = folder.error(text, sets=["supervised.randaugment=rand-x9"])
    assert told.startswith("--set supervised.randaugment=rand-x9: supervised.randaugment: impossible")
    assert "expected timm's words such as rand-m9-mstd0.5-inc1, found rand-x9" in told


def test_more_blocks_than_layers_are_refused_with_their_line(folder: "Folder") -> None:
    """Some block would have nothing to learn with, which each of its trials would say by itself."""
    text = "axes: {block_mim.blocks: [1, 2]}\nconfig:\n  objective: block_mim\n  encoder.depth: 1\n"
    told = folder.error(text + "metric: nn_top1\n")
    assert told.startswith("sweep.yaml:3: block_mim.blocks: impossible combination: ")
    assert "2 is more than encoder.depth 1" in told
