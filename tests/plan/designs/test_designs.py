"""A design is one file."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmim.plan import designs

if TYPE_CHECKING:
    from tests.plan.conftest import Folder

MINE = """
from lmim.plan.sweep_file import Cell, Design, SweepFile

class Keys(SweepFile):
    names: list[str]

def mine(file, sheet):
    return Design({}, len(file.names), lambda ids, results: [[Cell(name, {}) for name in file.names]])
"""


def test_a_new_design_is_one_new_file(
    folder: "Folder", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever adds a design would have to find the other places that know designs."""
    (tmp_path / "designs").mkdir()
    (tmp_path / "designs" / "mine.py").write_text(MINE)
    (tmp_path / "designs" / "helper.py").write_text("def other(): ...")
    monkeypatch.setattr(designs, "__path__", [*designs.__path__, str(tmp_path / "designs")])
    sweep = folder.load("design: mine\nnames: [only, again]\n")
    assert (sweep.design, [arm.name for arm in sweep.arms]) == ("mine", ["only"])
    assert "names: expected with design mine, found none" in folder.error("design: mine\n")
    assert "found min; did you mean mine?" in folder.error("design: min\n")
    assert "expected no names with design grid" in folder.error("axes: {loss: [mse]}\nnames: [a]\n")
    assert "design: expected one of grid, ladder" in folder.error("design: helper\n")
    message = folder.error("design: mine\nnames: [a]\n", seeds=list(range(10_001)))
    assert message.startswith("sweep.yaml:4: expected at most 10,000 trials, found 10,001")


def test_nothing_outside_its_file_names_a_design() -> None:
    """Else the next design would need the same place changed."""
    package, names = Path(designs.__file__).parents[2], designs.names()
    found = [
        (path.name, node.value)
        for path in package.rglob("*.py")
        if path.parent.name != "designs"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert sorted(found) == [("sweep_file.py", "grid")]  # the default
