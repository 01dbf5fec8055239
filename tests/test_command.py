"""Bad input, from the command line: exit code 2, and one line: what is wrong, where, and what is right."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmim import bench, migrate, replay, tracking
from lmim.analysis import report
from lmim.plan.record import Record
from lmim.sweep import command
from lmim.train import __main__ as train_command

HEAD = "name: x\n"
GOOD = "name: x\naxes: {loss: [mse, cosine]}\n"
EMPTY_GRID = "expected at least one value, found an empty grid"

FILES: list[tuple[str | bytes, str, str]] = [
    (HEAD + "axes: {loss: [mse\nseeds: [0]\n", "", "x.yaml:3: does not parse as YAML"),
    (HEAD + "axes:\n\tloss: [mse]\n", "", r"x.yaml:3: .*'\\t'"),
    (GOOD + "seeds: [0]\nseeds: [1]\n", "", "x.yaml:4: duplicate key seeds, first on line 3"),
    (GOOD + "sedes: [0]\n", "", "x.yaml:3: unknown key sedes; .*did you mean seeds?"),
    (HEAD + "axes: {loss.tua: [1]}\n", "", "x.yaml:2: unknown key loss.tua; did you mean loss.tau?"),
    (HEAD + "design: ladder\nstages:\n  - axs: {loss: [mse]}\n", "", "x.yaml:4: .*axs; .*did you mean axes?"),
    (GOOD + "seeds: [0, one]\n", "", "x.yaml:3: seeds.1: expected an integer, found one"),
    (HEAD + "axes: [loss]\n", "", "x.yaml:2: axes: expected a mapping, found a list"),
    (HEAD + "axes: {loss: [mse, cosin]}\n", "", "x.yaml:2: loss: expected one of .*did you mean cosine?"),
    (HEAD + "axes: {mask.ratio: [0.99]}\n", "", "x.yaml:2: mask.ratio: impossible combination"),
    (HEAD + "axes: {encoder.heads: [7]}\n", "", "x.yaml:2: encoder.heads: impossible combination"),
    (HEAD + "axes: {data.image_size: [21]}\n", "", "x.yaml:2: data.image_size: impossible combination"),
    (GOOD + "claims: [msee > cosine]\n", "", "x.yaml:3: claims.0: .*found msee; did you mean mse?"),
    (HEAD + "axes: {loss: []}\n", "", f"x.yaml:2: loss: {EMPTY_GRID}"),
    (HEAD + "axes: {}\n", "", "x.yaml:2: axes: expected at least one axis, found an empty grid"),
    (GOOD + "seeds: []\n", "", "x.yaml:3: seeds: expected at least one seed, found an empty grid"),
    (
        HEAD + f"axes: {{loss.tau: {[*range(1, 10_002)]}}}\n",
        "",
        "x.yaml:2: .*10,000 trials, found 10,001.*--yes",
    ),
    (
        "name: ../../x\naxes: {loss: [mse]}\n",
        "",
        "x.yaml:1: name: expected at most 64 letters.*found ../../x",
    ),
    ("name: a@b\naxes: {loss: [mse]}\n", "", "x.yaml:1: name: expected at most 64 letters"),
    (b"\x80\x81" * 99, "", "x.yaml: expected UTF-8 text, found byte 0x80"),
    ("", "", "x.yaml:1: expected a mapping .*found nothing"),
    (GOOD, "--only msee", "--only msee: .*did you mean mse?"),
    (GOOD, "--set loss.tau", "--set loss.tau: expected key=value"),
    (GOOD, "--set loss.tau=abc", "--set loss.tau=abc: loss.tau: expected a number, found abc"),
    (GOOD, "--set run.device=cuda", "--set run.device=cuda: run.device: .*0 are found"),
    (GOOD, "--scale gpu --set data.name=digits", r"scales/gpu.yaml:\d+: run.device: .*0 are found"),
    (GOOD, "--scale paper", r"scales/paper.yaml:\d+: data.path: .*not a folder: give the folder that holds"),
    (GOOD, "--scale paper --set data.path=/nope", "--set data.path=/nope: data.path: /nope is not a folder"),
    (GOOD, "--set data.name=imagefolder", "x.yaml: data.path: imagefolder lies on disk: give the folder"),
    (GOOD, "--out x.yaml", "--out: expected a folder, found the file x.yaml"),
    (GOOD, "--address 127.0.0.1:1", "--address 127.0.0.1:1: no Ray cluster answers there"),
]


def one_line(text: str, expected: str) -> None:
    text = re.sub(r"^looking at data .* \.\.\.\n", "", text)  # said while one waits for it, once
    assert text.count("\n") == 1, text
    assert re.match(f"error: .*{expected}", text), text


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.mark.parametrize(("content", "more", "expected"), FILES, ids=[row[2] for row in FILES])
def test_bad_input_gets_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, more: str, expected: str
) -> None:
    """A mistake must not end in a traceback, nor in a message that leaves one searching."""
    (folder / "x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert command.main(["x.yaml", *more.split()]) == 2
    one_line(capsys.readouterr().err, expected)
    assert not list(folder.glob("results/trials/*/state.json"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xx.yaml", "xx.yaml: expected a YAML file, found no such file; did you mean x.yaml?"),
        (".", ".: expected a YAML file, found a folder"),
    ],
)
def test_what_is_no_file(folder: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    """A slip in the path must show the file that was meant."""
    (folder / "x.yaml").write_text(GOOD)
    assert command.main([name]) == 2
    one_line(capsys.readouterr().err, re.escape(expected))


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode()])
def test_other_editors_files_are_read(folder: Path, content: bytes) -> None:
    """A byte order mark or Windows' line ends are no mistake."""
    (folder / "x.yaml").write_bytes(content)
    assert command.main(["x.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\0" * 3000])
def test_a_damaged_database_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    """MLflow and SQLAlchemy would print pages."""
    (folder / "results/x/demo").mkdir(parents=True)
    database = folder / "results/mlflow.db"
    database.write_bytes(content)
    plan = Record(
        **{"name": "x", "scale": "demo", "question": "", "metric": "m", "design": "grid"},
        **{"seeds": (), "claims": (), "arms": (), "trials": ()},
    )
    plan.file(folder / "results").write_text(plan.model_dump_json())
    assert tracking.main(["sync"]) == 2
    one_line(capsys.readouterr().err, f"{database}: file is not a database; move it away")
    assert report.main(["x"]) == 2
    one_line(capsys.readouterr().err, f"{database}: .*not a database")


def test_a_server_that_is_not_there_costs_no_training(folder: Path) -> None:
    """Hours of training must not be lost to a wrong URI, nor wait for it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, but nobody listens
        (folder / "x.yaml").write_text(GOOD)
        sets = ("data.name=digits", "data.image_size=8", "encoder.patch_size=2", "optim.epochs=0")
        words = ["--only", "mse", "--serial", "--tracking-uri", uri]
        words += [word for pair in sets for word in ("--set", pair)]
        found = run("lmim.sweep", "x.yaml", *words)
    assert found.returncode == 2
    warning, error = found.stderr.splitlines()[-2:]
    assert len(found.stderr.splitlines()) <= 3
    assert warning.startswith(f"MLflow at {uri} takes nothing ([Errno 111] Connection refused)")
    assert error.startswith(f"error: {uri}: cannot be read ([Errno 111] Connection refused)")
    assert f"1 done, kept in {folder / 'results'}" in error
    (state,) = folder.glob("results/trials/*/state.json")
    assert '"done"' in state.read_text()


@pytest.mark.parametrize(
    ("module", "more"), [("lmim.sweep", "x.yaml"), ("lmim.train", "x.yaml --arm msee --seed 0")]
)
def test_the_commands_themselves_exit_with_2(folder: Path, module: str, more: str) -> None:
    """A script sees the exit code of the process alone."""
    (folder / "x.yaml").write_text(GOOD if "--arm" in more else HEAD)
    found = run(module, *more.split())
    assert found.returncode == 2
    one_line(found.stderr, "")
    assert not found.stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    "command_line",
    [command.main, train_command.main, report.main, tracking.main, replay.main, migrate.main, bench.main],
    ids=lambda main: main.__module__,
)
def test_every_option_of_every_command_says_what_it_does(
    command_line: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise --help lists a name, and one reads the source to know what it is for."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        command_line(["sync"] * (command_line == tracking.main) + ["--help"])
    printed = re.sub(r"\n {20,}", "  ", capsys.readouterr().out.partition("\n\n")[2])
    listed = re.findall(r"^  ([^\s{].*)$", printed, re.MULTILINE)
    assert len(listed) > 1
    assert not [line for line in listed if not re.search(r"\S {2,}\S", line)]
