"""What is costly to make: the user is told how long it takes."""

import re
import time

import pytest

from lmim.data.cache import noted


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
