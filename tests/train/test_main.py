"""The command that trains one trial in the foreground: what it says, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmim.train.__main__ import main
from lmim.trial.folder import TrialFolder


def sweep_file(folder: Path, more: str = "") -> list[str]:
    """The command's first words for a small trial; everything goes under `folder`."""
    file = folder / "tiny.yaml"
    file.write_text(f"name: tiny\naxes: {{loss: [mse, cosine]}}\n{more}")
    sets = ["data.name=digits", "data.image_size=8", "encoder.patch_size=2", "run.log_every=1"]
    sets += ["projector.width=16", "encoder.depth=1", "run.device=cpu"]
    return [str(file), "--out", str(folder / "out"), *(word for pair in sets for word in ("--set", pair))]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--arm", "msee", "--seed", "0"], "--arm msee: expected an arm of .*mse, cosine.*did you mean mse"),
        (["--arm", "mse", "--seed", "-1"], "--seed -1: expected a whole number"),
        (["--arm", "mse", "--seed", "x"], "--seed"),
        (["--arm", "mse"], "--seed"),
        (["--arm", "mse", "--seed", "0", "--sed", "1"], "--sed"),
        (["--arm", "mse", "--seed", "0", "--out", "{file}"], "expected a folder.*tiny.yaml"),
        (["--arm", "mse", "--seed", "0", "--set", "data.name=imagefolder"], "data.path"),
        (["--arm", "mse", "--seed", "0", "--set", "run.devise=cpu"], "did you mean run.device"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    """A typing error must not end in a traceback."""
    words = sweep_file(tmp_path)
    assert main([*words, *(word.replace("{file}", words[0]) for word in more)]) == 2
    told = capsys.readouterr().err.splitlines()
    (line,) = (line for line in told if not re.search(" seed 0 in |^looking at data", line))
    assert re.search(rf"^error: .*{expected}", line), line


def test_the_command_shows_plain_lines_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    """A log file would stay empty for hours, and Ctrl-C would lose the training or its name."""
    words = [*sweep_file(tmp_path), "--arm", "mse", "--seed", "0", "--set", "optim.epochs=1000"]
    code = (
        "import sys; from lmim.train import __main__ as m; m.LINE_EVERY = 0.2; sys.exit(m.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert re.search(r"step \d+/\d+  loss \d+\.\d+  \d+ images/s  \d:\d\d:\d\d left", lines[2]), lines
    assert "Stopping" in rest
    assert f"python -m lmim.train {' '.join(words)}" in rest, rest


PROTOCOLS = """
import os, signal
METRICS = {"gap": {"label": "gap", "better": "higher"}}
def stopped(frozen):
    if not os.path.exists("again"):
        open("again", "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
    return {"gap": 1.0}
def broken(frozen):
    return {"gap": 1 / 0}
"""


def test_the_command_prints_what_it_found_and_goes_on_where_it_was_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that reads the figures would take a trial that was stopped while it was judged for done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROTOCOLS)
    words = [*sweep_file(tmp_path, 'evaluate: ["mine.py:stopped", knn]\n'), "--arm", "mse", "--seed", "3"]
    words += ["--set", "optim.epochs=1"]
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        assert main(words) == 130
        out, told = capfd.readouterr()
        assert not out
        assert re.search(r"Interrupted at step (\d+) of \1\. To go on:", told), told
        [path] = (tmp_path / "out" / "trials").iterdir()
        trained = TrialFolder(path.parent, path.name).journal.read_bytes()
        assert main(words) == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["id"], found["outcome"]) == (path.name, "learned")
        assert found.keys() >= {"eval/gap", "eval/knn_top1", "eval/rank_ratio", "train/loss"}
        assert TrialFolder(path.parent, path.name).journal.read_bytes() == trained
        assert main(words) == 0
        assert json.loads(capfd.readouterr().out) == found
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_protocol_that_raises_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures without that one would look complete."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROTOCOLS)
    words = [*sweep_file(tmp_path, 'evaluate: ["mine.py:broken"]\nmetric: gap\n'), "--arm", "mse"]
    assert main([*words, "--seed", "0", "--set", "optim.epochs=1"]) == 2
    assert "error: mse seed 0: mine.py:broken: ZeroDivisionError" in capsys.readouterr().err


def test_an_arm_that_stands_on_a_winner_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be trained on a choice that nobody has made yet."""
    words = sweep_file(tmp_path)
    Path(words[0]).write_text(
        "name: tiny\ndesign: ladder\nstages:\n"
        "  - axes: {loss: [mse, cosine]}\n  - axes: {decoder.cues: [true, false]}\n"
    )
    assert main([*words, "--arm", "nothing", "--seed", "0"]) == 2
    arms = re.search(r"expected an arm of \S+ \((.*)\)", capsys.readouterr().err)
    assert arms is not None
    provisional = arms[1].split(", ")[-1]
    assert main([*words, "--arm", provisional, "--seed", "0"]) == 2
    assert "stands on the winner of an earlier stage" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
