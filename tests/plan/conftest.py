"""A folder of sweep files, with a base and a scale, that any of them stands on."""

import os
from pathlib import Path
from typing import Any

import pytest

from lmim.errors import UserError
from lmim.plan.ablation import Sweep, load

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
