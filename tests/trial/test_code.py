"""The name of the code that made a result changes when, and only when, that code does."""

import os
import subprocess
from pathlib import Path

import pytest

from lmim import __version__
from lmim.trial import code
from lmim.trial.code import code_digest, code_version


def test_code_version_changes_with_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of different code would be averaged in silence."""
    package = tmp_path / "lmim"
    (package / "axes").mkdir(parents=True)
    source = package / "axes" / "loss.py"
    source.write_text("one = 1\n")
    monkeypatch.setattr(code, "__file__", str(package / "trial" / "code.py"))

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments],
            check=True,
            capture_output=True,
            env=environment,
        )

    def version() -> str:
        code_version.cache_clear()
        return code_version()

    assert version() == __version__
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    committed = version()
    assert "+" not in committed
    (package / "sweep.py").write_text("what only brings trials to their results")
    git("add", ".")
    git("commit", "-m", "nothing that a result depends on")
    assert version() == committed
    source.write_text("one = 2\n")
    dirty = version()
    assert dirty == f"{committed}+dirty"
    code_version.cache_clear()


def test_the_digest_changes_with_what_the_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a change would go unseen, or every comment would have all arms replayed."""
    package = tmp_path / "lmim"
    (package / "axes").mkdir(parents=True)
    source = package / "axes" / "loss.py"
    monkeypatch.setattr(code, "__file__", str(package / "trial" / "code.py"))

    def digest(text: str) -> str:
        source.write_text(text)
        code_digest.cache_clear()
        return code_digest()

    one = digest("def f(x):\n    return x\n")
    assert digest('# told\ndef f(x):\n    """Told."""\n\n    return x  # more\n') == one
    assert digest("def f(x):\n    return 2 * x\n") != one
    monkeypatch.setattr(code, "version", lambda name: "another")
    assert digest("def f(x):\n    return x\n") != one
    code_digest.cache_clear()
