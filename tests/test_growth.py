"""The house grows, and what was trained stays: a repository with finished trials, changed in turn.

Each change is made to a copy of the package, or beside the sweep file; then the plan must list only what is
truly new, and the table must have every arm.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parent.parent
SETS = [
    *("data.name=imagefolder", "data.image_size=8", "encoder.patch_size=2", "encoder.width=16"),
    *("encoder.depth=1", "encoder.heads=2", "projector.width=16", "decoder.width=16", "decoder.heads=2"),
    *("optim.epochs=1", "optim.batch_size=8", "run.log_every=2", "run.device=cpu", "watch.images=8"),
]
OWN = """
def huber2(prediction, target, *, delta: float = 1.0):
    return 2 * (prediction - target).abs().clamp(max=delta).mean()
"""


L1 = """def l1(prediction: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(prediction, target)


"""


class House:
    """A copy of the package, a sweep file, its data and its results."""

    def __init__(self, root: Path) -> None:
        self.root, self.file, self.data = root, root / "grow.yaml", root / "data"
        for name in ("lmim", "analysis", "ablations"):
            shutil.copytree(REPOSITORY / name, root / name)
        for split, count in (("train", 24), ("val", 12)):
            for index in range(count):
                path = self.data / split / f"class{index % 2}" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 9), (index * 9, 255 * (index % 2), 99)).save(path)
        self.sweep("axes: {loss: [mse, cosine]}")

    def sweep(self, axes: str, more: str = "") -> None:
        """Write the sweep file."""
        self.file.write_text(f"name: grow\nquestion: does it last?\n{axes}\nseeds: [0]\n{more}\n")

    def edit(self, file: str, old: str, new: str) -> None:
        """Change a file of the package."""
        path = self.root / "lmim" / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r} any more: adapt this test"
        path.write_text(text.replace(old, new))

    def command(self, *words: str) -> str:
        """What `python -m lmim.sweep` prints."""
        sets = [word for one in [*SETS, f"data.path={self.data}"] for word in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-m", "lmim.sweep", str(self.file), "--serial", *sets, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root), "LMIM_CACHE": str(self.root / "cache")},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def new(self) -> list[str]:
        """The arms that are planned and not done, and how they stand."""
        rows: list[dict[str, Any]] = json.loads(self.command("--dry-run", "--json"))
        return [f"{row['arm']} {row['status']}" for row in rows if row["status"] != "done"]

    def table(self) -> str:
        """Run what is missing; the table, in which every arm counts."""
        said = self.command()
        assert "excluded" not in said, said
        (file,) = self.root.glob("results/grow/*/table.md")
        return file.read_text()


def test_what_was_trained_outlives_every_growth(tmp_path: Path) -> None:
    """Else each growth of lmim, or of a user's own code, invalidates what was measured."""
    house = House(tmp_path)
    assert house.new() == ["mse new", "cosine new"]
    table = house.table()
    assert "| mse | 1 |" in table
    assert house.new() == []

    # a new config key, neutral at its default
    house.edit("axes/loss.py", "tau: Positive = 0.2\n", "tau: Positive = 0.2, margin: Positive = 1.0\n")
    clip = "    clip_grad: NonNegative = 0.0\n"
    house.edit("config.py", clip, clip + "    power: Positive = 1.0\n")
    assert house.new() == []
    # a comment
    house.edit("encoder.py", "import torch\n", "import torch  # the library\n")
    assert house.new() == []
    # a new loss where losses stand
    house.edit("axes/loss.py", "LOSSES: dict", f"{L1}LOSSES: dict")
    house.edit("axes/loss.py", '    "mse": mse,', '    "mse": mse,\n    "l1": l1,')
    house.sweep("axes: {loss: [mse, cosine, l1]}")
    assert house.new() == ["l1 new"]
    table = house.table()
    assert all(f"| {arm} | 1 |" in table for arm in ("mse", "cosine", "l1"))
    # a loss in a user's file
    (tmp_path / "my_losses.py").write_text(OWN)
    house.sweep("axes: {loss: [mse, cosine, l1, 'my_losses.py:huber2']}")
    assert house.new() == ["my_losses.py:huber2 new"]
    assert "| my_losses.py:huber2 | 1 |" in house.table()
    # its comments are not part of it
    (tmp_path / "my_losses.py").write_text("# mine\n" + OWN)
    assert house.new() == []
    # a new evaluation, of the package and of the user
    shutil.copy(house.root / "lmim" / "evaluate" / "nn.py", tmp_path / "mine.py")
    text = (
        (tmp_path / "mine.py").read_text().replace("def nn(", "def near(").replace('"nn_top1"', '"near_top1"')
    )
    (tmp_path / "mine.py").write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.glob("results/trials/*/journal.jsonl")}
    house.sweep(
        "axes: {loss: [mse, cosine, l1, 'my_losses.py:huber2']}",
        "evaluate: [nn, knn, linear, {knn: {k: 3}}, 'mine.py:near']",
    )
    assert [one.rpartition(" ")[2] for one in house.new()] == ["trained"] * 4
    table = house.table()
    assert "k-NN top-1, k=3 (%)" in table
    assert {path: path.read_bytes() for path in before} == before, "nothing was trained"
    # moved data
    house.data = house.data.rename(tmp_path / "elsewhere")
    assert house.new() == []
    # other data under the same settings
    Image.new("RGB", (9, 9), (1, 2, 3)).save(house.data / "train" / "class0" / "0.png")
    assert len(house.new()) == 4
