"""Designs, one file each: what they make of the keys that they take.

A design is a file here with a function of its own name, and nothing outside the file knows it. The file holds

    class Keys(SweepFile): ...                      # the keys that it takes beside every sweep's own
    def NAME(file: Keys, sheet: Sheet) -> Design    # read and checked; cells are made when they are asked for

A file is imported only when a sweep names it, so it may import what reads sweeps; torch it may not.
"""

import ast
import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """The designs: the files of this folder that define a function named as the file.

    >>> "ladder" in names()
    True
    """
    found = []
    for path in (path for folder in __path__ for path in Path(folder).glob("*.py")):
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        found += [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name == path.stem]
    return sorted(found)


def find(name: str) -> ModuleType:
    """The module of a design."""
    return importlib.import_module(f"lmim.plan.designs.{name}")
