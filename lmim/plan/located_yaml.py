"""YAML of which every node knows its line, and errors of one line that name it.

The reading is stricter than YAML itself: no tags, no anchors, no duplicate keys, bounded in size and depth,
so that a file from a stranger can do nothing but be wrong.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from lmim.errors import fail, nearest, show

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 32


# ------------------------------------------------------------------------------
# YAML 1.2 with line numbers


@dataclass
class Node:
    """A value of a YAML file and the line on which it (or its key) stands."""

    value: "dict[str, Node] | list[Node] | str | int | float | bool | None"
    line: int

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: Iterable[str | int]) -> "Node":
        """The deepest node along a path."""
        node = self
        for step in path:
            inside = node.value
            if isinstance(inside, list):
                inside = {str(number): item for number, item in enumerate(inside)}
            if not isinstance(inside, dict) or str(step) not in inside:
                break
            node = inside[str(step)]
        return node


INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def scalar(text: str) -> str | int | float | bool | None:
    """A plain scalar by YAML 1.2's core schema: `yes`, `on` and dates are words, `1e-3` is a number.

    >>> [scalar(t) for t in ("yes", "true", "1e-3", "0x10", "", "mse")]
    ['yes', True, 0.001, 16, None, 'mse']
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        whole = None if len(text) > 20 else int(text) if text.lstrip("-+").isdigit() else int(text, 0)
        if whole is None or not -(2**63) <= whole < 2**63:
            raise ValueError("a number of at most 64 bits")
        return whole
    if REAL.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError("a finite number")
        return number
    return text


def read_yaml(path: Path) -> Node:
    """Parse one YAML file into nodes; anything but one sane document is a UserError.

    Built from the parser's events, so nothing in the file can construct an object, and depth and size are
    bounded before they can hurt. Anchors, aliases and tags have no use in a sweep and are refused.
    """
    where = str(path)
    try:
        if not path.is_file():
            if path.is_dir():
                fail(where, "expected a YAML file, found a folder")
            siblings = [str(other) for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            fail(where, "expected a YAML file, found no such file" + nearest(path, siblings))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            fail(where, f"expected at most {MAX_BYTES:,} bytes, found a larger file")
        text = raw.decode("utf-8-sig")
    except OSError as error:
        fail(where, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        fail(where, f"expected UTF-8 text, found byte {raw[error.start]:#04x} at offset {error.start}")
    except ValueError as error:  # a null byte in the path
        fail(where, f"cannot be read: {error}")
    return parse_yaml(text, where)


def parse_yaml(text: str, where: str) -> Node:
    """The nodes of a YAML text; `where` is the file that messages name."""
    try:
        return _build(text, where)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        fail(f"{where}{line}", f"does not parse as YAML: {' '.join(str(problem).split())[:200]}")
    except (ValueError, OverflowError, IndexError, RecursionError) as error:
        # ruamel's scanner lets some malformed escapes and directives through as these
        fail(where, f"does not parse as YAML: {' '.join(str(error).split())[:200]}")


def _build(text: str, where: str) -> Node:
    root: Node | None = None
    stack: list[tuple[Node, tuple[str, int] | None]] = []  # open collections, each with the key that waits
    documents = nodes = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        here = f"{where}:{line}"
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                fail(here, "expected one YAML document, found a second")
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            fail(
                here,
                f"anchors and aliases are not supported, found {show(event.anchor)}; write the value out",
            )
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            stack.pop()
            continue
        if not isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            continue
        nodes += 1
        if nodes > MAX_NODES or len(stack) > MAX_DEPTH:
            fail(here, f"expected at most {MAX_NODES:,} values, {MAX_DEPTH} deep, found more")
        if getattr(event, "tag", None) is not None:
            fail(here, f"tags are not supported, found {show(str(event.tag))}; write a plain value")
        parent, key = stack[-1] if stack else (None, None)
        if parent is not None and isinstance(parent.value, dict) and key is None:
            if not isinstance(event, ScalarEvent):
                fail(here, "expected a word as the key, found a mapping or a list")
            name = _characters(event.value, here)
            if name in parent.value:
                fail(here, f"duplicate key {show(name)}, first on line {parent.value[name].line}")
            stack[-1] = (parent, (name, line))
            continue
        node = Node(None, line)
        if isinstance(event, MappingStartEvent):
            node.value = {}
        elif isinstance(event, SequenceStartEvent):
            node.value = []
        else:
            node.value = _characters(event.value, here)
            if event.style in (None, "") and event.implicit[0]:
                try:
                    node.value = scalar(event.value)
                except ValueError as error:
                    fail(here, f"expected {error}, found {show(event.value)}")
        if parent is None:
            root = node
        elif isinstance(parent.value, dict) and key is not None:
            node.line = key[1]
            parent.value[key[0]] = node
            stack[-1] = (parent, None)
        elif isinstance(parent.value, list):
            parent.value.append(node)
        if isinstance(node.value, dict | list):
            stack.append((node, None))
    return root or Node(None, 1)


def _characters(text: str, where: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        fail(where, f"expected text, found a lone surrogate in {show(text)}")
    return text
