"""The package as pip installs it: whole, elsewhere, and with no name but its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HOME = ("lmim", "analysis", "ablations", "pyproject.toml", "README.md", "LICENSE")
SWEEP = "name: mine\nbase: base.yaml\naxes: {loss: [mse, cosine]}\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the repository: building leaves folders beside the source."""
    copy = tmp_path_factory.mktemp("source")
    for name in HOME:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, copy / name, symlinks=True)
        else:
            shutil.copy(REPOSITORY / name, copy / name)
    words = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(copy / "out"),
        str(copy),
    ]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (found,) = (copy / "out").glob("*.whl")
    return found


def test_a_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    """Otherwise `analysis` clashes with another package's, or base.yaml is missing where it is installed."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"lmim"}
    shipped = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "ablations").rglob("*.yaml")]
    shipped += [path.relative_to(REPOSITORY) for path in (REPOSITORY / "ablations").glob("*.json")]
    shipped += [
        path.relative_to(REPOSITORY) for path in (REPOSITORY / "analysis").glob("*.*") if path.suffix != ".md"
    ]
    assert {f"lmim/{path}" for path in shipped} <= set(names)


def test_an_installed_package_plans_a_sweep_that_lies_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Otherwise `base: base.yaml` and `--scale demo` work in a clone of the repository alone."""
    site, mine, away = (tmp_path / name for name in ("site", "mine", "away"))
    mine.mkdir()
    away.mkdir()
    (mine / "mine.yaml").write_text(SWEEP)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(wheel)], check=True)
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = "import lmim, lmim.analysis; print(lmim.__file__, lmim.analysis.__file__)"
    for words in (
        ["-c", where],
        ["-m", "lmim.sweep", str(mine / "mine.yaml"), "--scale", "demo", "--dry-run"],
    ):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=away,
            env=plain | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if words[0] == "-c":
            assert done.stdout.split() == [
                str(site / "lmim" / part) for part in ("__init__.py", "analysis/__init__.py")
            ]
    assert "mine at scale demo" in done.stdout
    assert "2 to do; cost of what is missing: " in done.stdout
    assert "(by cpu-4-cores.json" in done.stdout, "the records of the bench are installed too"
