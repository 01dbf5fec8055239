"""What a variant is: read from source, the user's own as well as ours."""

import traceback
from pathlib import Path

import pytest
import torch

from lmim import variants
from lmim.axes.loss import LOSSES

OWN = '''
"""Mine."""
import torch

SCALE = 2.0

def huber2(prediction, target, *, delta: float = 1.0):
    """Half my own."""
    return SCALE * torch.nn.functional.huber_loss(prediction, target, delta=delta)

def broken(prediction, target):
    return prediction + "no"

class Base(torch.nn.Module):
    def __init__(self, online, *, depth: int = 2):
        super().__init__()

class Still(Base):
    def encode(self, online, patches, view):
        return patches

class NoTarget(Base):
    pass
'''


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("collapse", "ema"),
        ("loss", "patch_discrimination"),
        ("decoder", "cross_attention"),
        ("objective", "raw_pixels"),
        ("data", "glyphs"),
        ("evaluate", "knn"),
    ],
)
def test_every_place_knows_its_variants(section: str, name: str) -> None:
    """Else adding a variant where it belongs would not be enough to use it in a sweep."""
    assert name in variants.choices(section)
    assert variants.describe(section, name, {})
    assert variants.load(section, name, {})


def test_settings_are_the_keyword_parameters() -> None:
    """Else a setting of one loss would be a key of all of them."""
    assert variants.describe("loss", "patch_discrimination", {}).settings["tau"].neutral == 0.2
    assert not variants.describe("loss", "mse", {}).settings
    assert set(variants.describe("decoder", "self_attention", {}).settings) == {
        *("cues", "width", "depth", "heads", "mlp_ratio")
    }
    assert "mask" in variants.describe("objective", "latent_mim", {}).reads


def test_the_users_own_variant_is_described_and_runs() -> None:
    """Else whoever never edits lmim could not ablate a loss of ten lines against the others."""
    sources = {"my_losses.py": OWN}
    found = variants.describe("loss", "my_losses.py:huber2", sources)
    assert found.settings["delta"].neutral == 1.0
    loss = variants.load("loss", "my_losses.py:huber2", sources)
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.allclose(loss(x, y), 2 * LOSSES["smooth_l1"](x, y))
    assert variants.describe("collapse", "my_losses.py:Still", sources).settings["depth"].neutral == 2


@pytest.mark.parametrize(
    ("section", "ref", "expected"),
    [
        ("loss", "nope", "expected one of mse"),
        ("loss", "my_losses.py:huber3", "expected a function or class huber3.*found huber2"),
        ("loss", "my_losses.py:Still", r"expected Still\(prediction, target.*my_losses.py:15"),
        ("collapse", "my_losses.py:NoTarget", "expected a class with encode"),
        ("collapse", "my_losses.py:huber2", "expected a class with encode"),
        ("loss", "bad.py:f", r"bad.py:1: "),
        ("loss", "odd.py:f", r"odd.py:1: delta: expected a setting such as"),
        ("loss", "call.py:f", r"call.py:1: delta: expected a setting such as"),
        ("loss", "bare.py:f", r"bare.py:1: delta: expected a default"),
        (
            "loss",
            "name.py:f",
            r"name.py:1: tau: Positive is not imported there: from lmim.variants import Posi",
        ),
    ],
)
def test_what_is_wrong_with_a_variant_is_said_when_it_is_planned(
    section: str, ref: str, expected: str
) -> None:
    """Else the arm would fail on the worker, after the others have trained."""
    sources = {
        "my_losses.py": OWN,
        "bad.py": "def f(:",
        "odd.py": "def f(p, t, *, delta=1.0): ...",
        "call.py": "def f(p, t, *, delta: print(1) = 1.0): ...",
        "bare.py": "def f(p, t, *, delta: float): ...",
        "name.py": "def f(p, t, *, tau: Positive = 1.0): ...",
    }
    with pytest.raises(ValueError, match=expected):
        variants.describe(section, ref, sources)


def test_an_error_in_the_users_code_names_its_file_and_line() -> None:
    """Else a TypeError deep in a trial would not say whose it is."""
    sources = {"my_losses.py": OWN}
    loss = variants.load("loss", "my_losses.py:broken", sources)
    with pytest.raises(TypeError) as caught:
        loss(torch.ones(1), torch.ones(1))
    assert variants.place_of(caught.value, sources) == " (my_losses.py:12)"
    assert 'return prediction + "no"' in "".join(traceback.format_exception(caught.value))


def test_the_source_is_looked_for_beside_the_sweep(tmp_path: Path) -> None:
    """Else the same sweep would find another file, or none, in another working directory."""
    (tmp_path / "mine.py").write_text(OWN)
    assert variants.read_source("mine.py:huber2", tmp_path) == ("mine.py", OWN)
    with pytest.raises(ValueError, match=r"other\.py"):
        variants.read_source("other.py:x", tmp_path)
    with pytest.raises(ValueError, match="no_such_module"):
        variants.read_source("no_such_module:x", tmp_path)
    assert "def main" in variants.read_source("json.tool:main", tmp_path)[1]


@pytest.mark.parametrize(
    "head",
    [
        "from lmim.variants import Positive",
        "from lmim.variants import *",
        "from __future__ import annotations",
        "import lmim.variants\nPositive = lmim.variants.Positive",
    ],
)
def test_a_type_that_is_there_may_be_named(head: str) -> None:
    """Else a file that runs is refused."""
    sources = {"mine.py": f"{head}\ndef f(p, t, *, tau: Positive = 1.0): ..."}
    assert variants.describe("loss", "mine.py:f", sources).settings["tau"].neutral == 1.0
    assert variants.load("loss", "mine.py:f", sources)
