"""The layers: which file may import what, read from the source, so that no import in a function escapes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("lmim.bench", "lmim.chaos", "lmim.scaling"),
    ("lmim.sweep", "lmim.figures.__main__"),
    ("lmim.analysis",),
    (
        "lmim.figures",
        "lmim.interop",
        "lmim.loading",
        "lmim.migrate",
        "lmim.replay",
        "lmim.survey",
        "lmim.tokenizer",
        "lmim.tracking",
        "lmim.evaluate.__main__",
        "lmim.evaluate.finetune",
        "lmim.train.__main__",
    ),
    ("lmim.pages",),
    ("lmim.train",),
    ("lmim.evaluate",),
    ("lmim.objectives",),
    ("lmim.axes", "lmim.data"),
    ("lmim.encoder", "lmim.quantise"),
    ("lmim.plan",),
    ("lmim.command", "lmim.trial"),
    ("lmim.files", "lmim.metrics", "lmim.schedules"),
    ("lmim.config",),
    ("lmim.variants",),
    ("lmim.errors",),
    ("lmim",),
)
"""From the command down; a module imports only from its own line or one below."""


def imported(source: str, module: str, package: bool = False) -> Iterator[str]:
    """Absolute dotted names that the source of `module` imports, at any depth of nesting.

    `from a import b` may name a module or its content, so it counts as `a.b`. The package's own front door is
    above and below all the others: every import passes it, and only who calls `load_trial` gets what it does.
    """
    for node in ast.parse(source).body if module == "lmim" else ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + package]
                base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            # f"a.b.{name}" is whatever a.b holds: a.b alone is known here
            name = name.values[0] if isinstance(name, ast.JoinedStr) else name
            if not isinstance(name, ast.Constant):
                assert module == "lmim.variants", f"{module}: an import that this test cannot read"
                continue  # of a module of the user's own
            yield str(name.value).removesuffix(".")


def modules() -> dict[str, frozenset[str]]:
    """Every module of the package with what it imports; `lmim/analysis` is a link to the folder beside it."""
    found = {}
    folders = [ROOT / "lmim", *(path for path in ROOT.glob("lmim/**/") if not path.is_symlink())]
    for path in sorted(
        {file for folder in [*folders, ROOT / "lmim/analysis"] for file in folder.glob("*.py")}
    ):
        package = path.name == "__init__.py"
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = frozenset(imported(path.read_text(encoding="utf-8"), name, package))
    return found


MODULES = modules()


def within(name: str, package: str) -> bool:
    """Whether `name` is the package, or anything in it."""
    return name == package or name.startswith(f"{package}.")


def importers(package: str) -> set[str]:
    """The modules that import anything of the package."""
    return {module for module, names in MODULES.items() if any(within(name, package) for name in names)}


def reached(module: str) -> set[str]:
    """All that is imported once `module` is, directly, through others, or by a package's own __init__."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        for prefix in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if prefix not in seen:
                seen.add(prefix)
                waiting += MODULES.get(prefix, ())
    return seen


def layer(module: str) -> int:
    """The line of LAYERS that the module stands in, by its longest matching name."""
    names = {name: line for line, group in enumerate(LAYERS) for name in group}
    parts = module.split(".")
    # content of the bare package, such as lmim.__version__, is the package's own
    return next(
        names[name] for length in range(len(parts), 0, -1) if (name := ".".join(parts[:length])) in names
    )


def test_the_walk_finds_every_kind_of_import() -> None:
    """A walk that misses a form of import would let every rule below pass unseen."""
    source = """
import a.b as c
def late():
    from d import e, f
    from . import g
    from ..h import i
    importlib.import_module("j.k")
    importlib.import_module(f"l.m.{n}")
"""
    expected = {"a.b", "d.e", "d.f", "lmim.axes.g", "lmim.h.i", "j.k", "l.m"}
    assert set(imported(source, "lmim.axes.x")) == expected
    assert set(imported("from .x import y", "lmim.axes", package=True)) == {"lmim.axes.x.y"}
    assert {"lmim.config", "lmim.axes.loss", "lmim.evaluate"} <= set(MODULES)


def test_two_files_import_ray() -> None:
    """A trial must run on a GPU machine where Ray is not installed."""
    assert importers("ray") == {"lmim.sweep.executors", "lmim.sweep.nodes"}


def test_one_file_of_the_package_imports_mlflow() -> None:
    """A trial must run where MLflow is not installed."""
    assert {module for module in importers("mlflow") if not within(module, "lmim.analysis")} == {
        "lmim.tracking"
    }


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "lmim.analysis")])
def test_analysis_reads_results_without_a_trainer(module: str) -> None:
    """A report must rebuild on a laptop that has MLflow's results but neither torch nor Ray."""
    forbidden = ("torch", "ray", "lmim.train", "lmim.objectives", "lmim.axes")
    assert not [name for name in reached(module) if any(within(name, other) for other in forbidden)]


def test_only_the_command_calls_the_report() -> None:
    """Training must not depend on what draws its results."""
    others = {module for module in importers("lmim.analysis") if not within(module, "lmim.analysis")}
    assert others <= {"lmim.sweep.command", "lmim.sweep.sequential", "lmim.figures.__main__"}


def test_something_in_analysis_reads_mlflow() -> None:
    """A report that reads the trials' folders would differ from what MLflow shows."""
    assert any(within(module, "lmim.analysis") for module in importers("mlflow"))
    assert not any(within(module, "lmim.analysis") for module in importers("lmim.trial.folder"))


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "lmim.axes")])
def test_axes_never_import_each_other(module: str) -> None:
    """Variants of one axis that need another axis' file could not be combined freely."""
    others = [name for name in MODULES[module] if within(name, "lmim.axes") and not within(name, module)]
    assert not others


@pytest.mark.parametrize("module", ["lmim.train", "lmim.objectives", "lmim.evaluate", "lmim.data"])
def test_the_trainer_knows_neither_ray_nor_mlflow(module: str) -> None:
    """Neither directly nor through what it imports: the trainer cannot tell who listens."""
    assert module in MODULES
    forbidden = ("ray", "mlflow", "lmim.sweep", "lmim.tracking")
    assert not [name for name in reached(module) if any(within(name, other) for other in forbidden)]


PLANNING = ("lmim.config", "lmim.trial.folder", *(name for name in MODULES if within(name, "lmim.plan")))


@pytest.mark.parametrize("module", PLANNING)
def test_planning_needs_no_torch(module: str) -> None:
    """`--dry-run` must answer in a blink, on a machine without torch."""
    assert module in MODULES
    forbidden = ("torch", "ray", "mlflow", "timm", "numpy", "lmim.axes")
    assert not [name for name in reached(module) if any(within(name, other) for other in forbidden)]


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "lmim")])
def test_imports_run_one_way(module: str) -> None:
    """An import upwards is how a layer's private knowledge leaks and cycles begin."""
    upwards = [name for name in MODULES[module] if within(name, "lmim") and layer(name) < layer(module)]
    assert not upwards


def test_no_cycles() -> None:
    """Modules that import each other work or fail by the order in which a user imports them."""

    def uses(module: str) -> set[str]:
        # the longest known prefix: `lmim.config.Config` uses lmim.config
        used = set()
        for name in MODULES[module]:
            parts = name.split(".")
            prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            used |= {next((prefix for prefix in prefixes if prefix in MODULES), module)}
        return used - {module}

    waiting = {module: uses(module) for module in MODULES}
    while leaves := {module for module, used in waiting.items() if not used & waiting.keys()}:
        waiting = {module: used for module, used in waiting.items() if module not in leaves}
    assert not waiting
