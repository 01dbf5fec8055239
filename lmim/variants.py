"""The alternatives of an axis: which there are, what settings each takes, and the user's own.

A variant is a function or a class. Its keyword-only parameters are its settings: the loss `def f(prediction,
target, *, tau: Positive = 0.2)` makes `loss.tau` a config key that this loss alone reads, and 0.2 its neutral
value. Parameters of an objective that have no default are the sections of the config that it reads.

All of it is read from the source, so that planning stays free of torch and the code is the only list.
"""

import ast
import builtins
import functools
import hashlib
import importlib
import importlib.util
import linecache
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

PACKAGE = Path(__file__).parent
TYPES: dict[str, Any] = {
    "PositiveInt": PositiveInt,
    "Count": Count,
    "Fraction": Fraction,
    "BelowOne": BelowOne,
    "NonNegative": NonNegative,
    "Positive": Positive,
    "Finite": Finite,
    "Literal": Literal,
    **{name: getattr(builtins, name) for name in ("int", "float", "bool", "str")},
}
"""What the annotation of a setting may be made of."""
PLAIN = {ast.Expression, ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.Constant, ast.BinOp, ast.BitOr}
"""No call and no attribute: reading an annotation runs nothing."""


@dataclass(frozen=True)
class Place:
    """Where the variants of one axis stand, and how each is called."""

    module: str
    """A module with a dict of them, or a package with a file for each."""
    table: str | None
    takes: tuple[str, ...]
    """The positional parameters."""
    methods: tuple[str, ...] = ()
    """Of which a class must have one."""


PLACES = {
    "objective": Place(
        "objectives",
        None,
        ("setup",),
        ("patch_features", "tokens"),
    ),
    "collapse": Place("axes.collapse", "TARGETS", ("online",), ("encode",)),
    "loss": Place("axes.loss", "LOSSES", ("prediction", "target")),
    "decoder": Place("axes.decoder", "DECODERS", ("latent_width", "positions", "out_width"), ("forward",)),
    "data": Place("data", None, ("data",)),
    "evaluate": Place("evaluate", None, ("frozen",)),
    "figure": Place("figures", None, ("trial",)),
}


LITERALS = frozenset({"FEATURES", "NEEDS", "SECONDS", "VIEW"})
"""What a protocol's or a figure's file says of itself, METRICS aside."""


@dataclass(frozen=True)
class Setting:
    """One setting of a variant: its type, as pydantic reads it, and its neutral value."""

    type: Any
    neutral: Any
    meaning: str
    """What the variant's docstring, or its module's, says in the sentence that has its name in backticks."""


@dataclass(frozen=True)
class Variant:
    """What the source says of one variant."""

    meaning: str
    """The first line of its docstring."""
    settings: Mapping[str, Setting]
    reads: Mapping[str, str]
    """Parameters without a default, of an objective: the sections of the config that it is given, each with
    the name of its class, which may have only some of the section's keys."""
    constants: Mapping[str, Any]
    """The module's literals in capitals, such as the METRICS of an evaluation."""
    methods: frozenset[str] = frozenset()
    """Of a class: what it defines itself or has of a base in its file or in the package."""


def own(ref: str) -> bool:
    """Whether a name is that of the user's own code: `file.py:name` or `package.module:name`.

    >>> own("my_losses.py:huber"), own("mse")
    (True, False)
    """
    return ":" in ref


def choices(section: str) -> tuple[str, ...]:
    """The names of the variants that come with the package.

    >>> "patch_discrimination" in choices("loss") and "latent_mim" in choices("objective")
    True
    """
    place = PLACES[section]
    path = PACKAGE.joinpath(*place.module.split("."))
    if place.table is not None:
        return tuple(_table(path.with_suffix(".py"), place.table))
    return tuple(
        file.stem for file in sorted(path.glob("[a-z]*.py")) if _entry(_parsed(file.read_text()), file.stem)
    )


def describe(section: str, ref: str, sources: Mapping[str, str]) -> Variant:
    """What the source of a variant says of it; `sources` holds the text of the user's own files.

    Raises:
        ValueError: there is no such variant, or it cannot be called as the axis calls its variants.
    """
    place = PLACES[section]
    if own(ref):
        file, _, name = ref.partition(":")
        if file not in sources:
            raise ValueError(f"expected the text of {file} in sources")
        return _describe(sources[file], name, place, file)
    names = choices(section)
    if ref not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    path = PACKAGE.joinpath(*place.module.split("."))
    if place.table is not None:
        path = path.with_suffix(".py")
        return _describe(path.read_text(), _table(path, place.table)[ref], place, path.name)
    text = (path / f"{ref}.py").read_text()
    return _describe(text, _entry(_parsed(text), ref), place, f"{ref}.py")


def load(section: str, ref: str, sources: Mapping[str, str]) -> Any:
    """The variant itself: imports the axis' module, or runs the user's file.

    Raises:
        ValueError: an installed module of the user's is not the one that was planned with.
    """
    place = PLACES[section]
    if own(ref):
        file, _, name = ref.partition(":")
        return getattr(_user_module(file, sources[file]), name)
    if place.table is not None:
        return getattr(importlib.import_module(f"lmim.{place.module}"), place.table)[ref]
    module = importlib.import_module(f"lmim.{place.module}.{ref}")
    name = _entry(_parsed(Path(str(module.__file__)).read_text()), ref)
    return getattr(module, name)


def read_source(ref: str, folder: Path) -> tuple[str, str]:
    """The file or module that the user's variant stands in, as it is named, and its text.

    Raises:
        ValueError: it is not there.
    """
    file = ref.partition(":")[0]
    if file.endswith(".py"):
        path = folder / file
        if not path.is_file():
            raise ValueError(f"expected the file {path}, found none")
        return file, path.read_text(encoding="utf-8")
    try:
        spec = importlib.util.find_spec(file)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ValueError(f"expected a file that ends in .py, or an installed module, found no {file}")
    return file, Path(spec.origin).read_text(encoding="utf-8")


def digest(source: str) -> str:
    """Twelve hex digits of what a source does: comments, docstrings and layout are not in it.

    >>> digest("x = 1  # one") == digest("x=1") != digest("x = 2")
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = [part for part in node.body if not _is_text(part)]
            node.body = body or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def place_of(error: BaseException, sources: Mapping[str, str]) -> str:
    """` (my_losses.py:7)` where an error went through the user's own code, else nothing."""
    found, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name in sources:
            found = f" ({name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


# ------------------------------------------------------------------------------ the source, parsed


@functools.cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _entry(tree: ast.Module, stem: str) -> str:
    """The definition that a file is named after: `raw_pixels` or `RawPixels`; empty where it has none."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
            node.name == stem or node.name.lower() == stem.replace("_", "")
        ):
            return node.name
    return ""


def _table(path: Path, table: str) -> dict[str, str]:
    """Name to definition, of the dict at the foot of an axis' file."""
    for node in _parsed(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if not isinstance(target, ast.Name) or target.id != table:
            continue
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict):
            return {
                str(ast.literal_eval(key)): ast.unparse(found)
                for key, found in zip(value.keys, value.values, strict=True)
                if key is not None
            }
    raise LookupError(f"{path} has no dict named {table}")


@functools.cache  # a plan asks for every variant there is; by its text, so that an edited file is read again
def _describe(source: str, name: str, place: Place, file: str) -> Variant:
    try:
        tree = _parsed(source)
    except SyntaxError as error:
        raise ValueError(f"{file}:{error.lineno}: {error.msg}") from None
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found = defined.get(name)
    if found is None:
        raise ValueError(
            f"expected a function or class {name} in {file}, found {', '.join(defined) or 'none'}"
        )
    call = found if isinstance(found, ast.FunctionDef) else _method(found, "__init__", defined)
    methods = frozenset(_methods(found, tree))
    if place.methods and not (methods & {*place.methods} and isinstance(found, ast.ClassDef)):
        needed = " or ".join(place.methods)
        raise ValueError(f"expected a class with {needed}: {file}:{found.lineno}: {name} has none")
    arguments = call.args if call is not None else ast.arguments([], [], None, [], [], None, [])
    given = [one.arg for one in [*arguments.posonlyargs, *arguments.args]]
    given = given[1:] if isinstance(found, ast.ClassDef) and call is not None else given
    if call is not None and len(given) - len(arguments.defaults) != len(place.takes):
        raise ValueError(
            f"expected {name}({', '.join(place.takes)}, *, settings), found {file}:{call.lineno}: "
            f"{name}({', '.join(given)})"
        )
    settings, reads = {}, {}
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is None:
            if place is not PLACES["objective"]:
                raise ValueError(f"{file}:{one.lineno}: {one.arg}: expected a default, its neutral value")
            reads[one.arg] = ast.unparse(one.annotation).rpartition(".")[2] if one.annotation else ""
        else:
            if unbound := sorted(_names(one.annotation) - _bound(tree)):
                hint = f": from lmim.variants import {unbound[0]}" if unbound[0] in TYPES else ""
                raise ValueError(f"{file}:{one.lineno}: {one.arg}: {unbound[0]} is not imported there{hint}")
            settings[one.arg] = _setting(one, default, file, _texts(found, tree, defined))
    meaning = (ast.get_docstring(found) or "").partition("\n")[0]
    constants, computed = _constants(tree)
    if place in (PLACES["evaluate"], PLACES["figure"]) and (wrong := LITERALS & computed.keys()):
        first = min(wrong, key=lambda name: computed[name])
        raise ValueError(
            f"{file}:{computed[first]}: {first}: expected a literal, which is read without running it"
        )
    return Variant(meaning, settings, reads, constants, methods)


def _texts(node: ast.stmt, tree: ast.Module, defined: Mapping[str, ast.stmt]) -> list[str]:
    """The docstrings that tell of a variant: its own, those of its bases in the same file, the module's."""
    bases = [defined[name] for base in getattr(node, "bases", ()) if (name := ast.unparse(base)) in defined]
    above = [text for base in bases for text in _texts(base, tree, defined)]
    return [ast.get_docstring(node) or "", *above, ast.get_docstring(tree) or ""]  # type: ignore[arg-type]


def _names(annotation: ast.expr | None) -> set[str]:
    """The names that Python looks up when it reads an annotation."""
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} if annotation else set()


def _bound(tree: ast.Module) -> set[str]:
    """The names that a module has; all that a setting may be made of where it cannot be told."""
    found = {*dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).partition(".")[0] for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    # annotations that stay text, or a star: nothing to say
    return found | set(TYPES) if found & {"annotations", "*"} else found


def _method(node: ast.ClassDef, name: str, defined: Mapping[str, ast.stmt]) -> ast.FunctionDef | None:
    """A method of a class or of those of its bases that stand in the same file."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == name:
            return part
    for base in node.bases:
        above = defined.get(ast.unparse(base))
        if isinstance(above, ast.ClassDef) and (found := _method(above, name, defined)):
            return found
    return None


def _methods(node: ast.stmt, tree: ast.Module) -> Iterator[str]:
    """The methods of a class, and those of its bases in the same file or in a module of the package."""
    if not isinstance(node, ast.ClassDef):
        return
    yield from (part.name for part in node.body if isinstance(part, ast.FunctionDef))
    for base in map(ast.unparse, node.bases):
        for other in tree.body:
            if isinstance(other, ast.ClassDef) and other.name == base and other is not node:
                yield from _methods(other, tree)
            elif isinstance(other, ast.ImportFrom) and (other.module or "").startswith("lmim."):
                name = next((one.name for one in other.names if base == (one.asname or one.name)), None)
                path = PACKAGE.joinpath(*str(other.module).split(".")[1:]).with_suffix(".py")
                if name and path.is_file():
                    above = _parsed(path.read_text(encoding="utf-8"))
                    for one in above.body:
                        if isinstance(one, ast.ClassDef) and one.name == name:
                            yield from _methods(one, above)


def _setting(one: ast.arg, default: ast.expr, file: str, texts: Sequence[str]) -> Setting:
    sentences = [s for text in texts for s in re.split(r"(?<=[.;])\s+", " ".join(text.split()))]
    meaning = next((sentence for sentence in sentences if f"`{one.arg}`" in sentence), "")
    text = ast.unparse(one.annotation) if one.annotation is not None else ""
    try:
        if not set(map(type, ast.walk(ast.parse(text, mode="eval")))) <= PLAIN:
            raise ValueError
        return Setting(eval(text, {"__builtins__": {}}, TYPES), ast.literal_eval(default), meaning)
    except Exception:  # noqa: BLE001  whatever is wrong with it, that is the message
        raise ValueError(
            f"{file}:{one.lineno}: {one.arg}: expected a setting such as `{one.arg}: float = 1.0`, of "
            f"{', '.join(TYPES)}, found {text or 'no type'} = {ast.unparse(default)}"
        ) from None


def _constants(tree: ast.Module) -> tuple[dict[str, Any], dict[str, int]]:
    """The module's literals in capitals, and the lines of the other names in capitals."""
    found, computed = {}, {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id.isupper() and value is not None:
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                computed[target.id] = node.lineno
    return found, computed


@functools.cache
def _user_module(file: str, source: str) -> ModuleType:
    """The user's own module: run under the name that its tracebacks shall show."""
    if not file.endswith(".py"):
        module = importlib.import_module(file)
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        if digest(text) != digest(source):
            raise ValueError(
                f"{module.__file__}: is not the {file} that was planned with; run the sweep again"
            )
        return module
    name = f"lmim_own_{digest(source)}"
    module = ModuleType(name)
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    sys.modules[name] = module  # dataclasses and pickling look there
    exec(compile(source, file, "exec"), module.__dict__)  # the user's own file, as its sweep names it
    return module
