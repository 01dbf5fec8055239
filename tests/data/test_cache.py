"""What is costly to make: the user is told how long it takes."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmim.data.cache import noted

MAKING = """
import pathlib, sys, time
import numpy as np
from lmim.data.cache import cached_arrays

def make():
    with open(sys.argv[1], "a") as file:
        file.write("made ")
    time.sleep(0.5)
    return {"a": np.arange(3)}

print(cached_arrays("costly", make)["a"].sum())
"""


def test_trials_that_start_together_make_the_arrays_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight trials on a machine would each decode all of ImageNet before their first step."""
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path / "cache"))
    words = [sys.executable, "-c", MAKING, str(tmp_path / "count")]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in started] == ["3\n"] * 3
    assert (tmp_path / "count").read_text() == "made "
    assert [path.name for path in (tmp_path / "cache").glob("[!.]*")] == ["costly"]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_takes_more_than_two_seconds_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """A million images are read for an hour before the first step: silence looks like a hang."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)

    def through(seconds: float) -> str:
        for _ in noted("drawing", range(1000), 1000):
            clock[0] += seconds / 1000
        return capsys.readouterr().err

    assert through(1.9) == ""
    if terminal:
        assert through(10).endswith("s left\x1b[K\r\x1b[K")
    else:
        lines = through(10).splitlines()
        assert re.fullmatch(r"drawing: 20\d of 1,000, 8 s left", lines[0])
        assert len(lines) == 3
