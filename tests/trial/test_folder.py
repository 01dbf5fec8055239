"""A trial's folder survives kills at any byte, two owners, and other trials' files."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmim.config import Config
from lmim.errors import UserError
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import Busy, Replay, State, TrialFolder
from tests.trial.builders import record


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    config = Config.read({})
    made = TrialFolder(tmp_path / "trials", config.identity)
    made.create(config)
    return made


def test_config_is_kept_whole(folder: TrialFolder) -> None:
    """A resumed trial would train something else than it was asked to."""
    assert folder.config() == Config.read({})
    assert folder.config().identity == folder.id


def test_steering_may_change_but_identity_may_not(folder: TrialFolder) -> None:
    """A checkpoint would be continued under another config; or a changed `run` section be refused."""
    steered = Config.read({"run": {"threads": 3}})
    folder.create(steered)
    assert folder.config().run.threads == 3
    with pytest.raises(UserError, match=f"holds the trial {folder.id}"):
        folder.create(Config.read({"seed": 9}))
    assert folder.config() == steered


def test_the_users_own_code_is_kept(tmp_path: Path) -> None:
    """Who reads an old result could not say what its loss was; nor could it be replayed."""
    text = "def huber(prediction, target, *, scale: float = 1.0):\n    return 0\n"
    tree = {"loss": {"kind": "own/my.py:huber", "scale": 2.0}, "sources": {"own/my.py": text}}
    config = Config.read(tree)
    folder = TrialFolder(tmp_path, config.identity)
    folder.create(config)
    assert (folder.path / "sources" / "own" / "my.py").read_text() == text
    assert folder.config() == config
    assert folder.config().section("loss").scale == 2.0


def test_what_has_no_result_is_missing(folder: TrialFolder) -> None:
    """A sweep would judge what it has, or leave out what it lacks, or never try again what failed."""
    nn, knn = read_evaluations(["nn", "knn"])
    assert folder.missing([nn, knn], "v1") == [nn, knn]
    good, bad = record(folder, nn, 10.0), record(folder, knn, None, error="knn: ValueError: no")
    assert folder.missing([nn, knn], "v1") == []
    assert folder.missing([nn, knn], "v2") == [nn, knn]
    assert sorted(folder.results(), key=lambda one: one.protocol) == [bad, good]
    folder.forget_failures()
    assert folder.results() == [good]
    assert folder.missing([nn, knn], "v1") == [knn]
    folder.update(status="done", outcome="diverged")
    assert folder.missing([nn, knn], "v1") == []


def test_a_damaged_replay_is_made_again(folder: TrialFolder) -> None:
    """A torn file would end every later run of the sweep."""
    assert folder.replayed() is None
    found = Replay(code="c0de", commit="abc", of=folder.id, difference="step 1: train/loss is 1, was 2")
    folder.record_replay(found)
    assert folder.replayed() == found
    (folder.path / "replay.json").write_text("{")
    assert folder.replayed() is None


def test_missing_and_foreign_configs_are_named(tmp_path: Path) -> None:
    """The user would get a traceback instead of the file to look at."""
    folder = TrialFolder(tmp_path, "abc")
    with pytest.raises(UserError, match=r"abc/config\.json: no such trial"):
        folder.config()
    folder.path.mkdir()
    (folder.path / "config.json").write_text('{"sede": 1}')
    with pytest.raises(UserError, match=r"config of this version.*sede"):
        folder.config()


def test_a_fresh_folder_is_new(tmp_path: Path) -> None:
    """Planning would fail on trials that never ran."""
    assert TrialFolder(tmp_path, "never").state() == State()


def test_update_keeps_the_other_fields_and_beats(folder: TrialFolder) -> None:
    """Progress written by one part would wipe out what another wrote."""
    before = time.time()
    folder.update(status="running", step=3, metrics={"train/loss": math.nan, "train/lr": math.inf})
    state = folder.update(step=4)
    assert state == State.model_validate(folder.state().model_dump() | {"metrics": state.metrics})
    assert (state.status, state.step) == ("running", 4)
    assert state.heartbeat is not None
    assert before <= state.heartbeat <= time.time()
    metrics = folder.state().metrics
    assert math.isnan(metrics["train/loss"])
    assert metrics["train/lr"] == math.inf


def test_a_misspelt_field_is_refused(folder: TrialFolder) -> None:
    """A state would silently not be recorded."""
    with pytest.raises(ValueError, match="stauts"):
        folder.update(stauts="done")


@pytest.mark.parametrize("content", ["{", '{"status": "dnoe"}', "\x00\x01", "[1]"])
def test_a_damaged_state_names_its_file(folder: TrialFolder, content: str) -> None:
    """A torn state would count as a new trial and its results be overwritten."""
    (folder.path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json"):
        folder.state()


def test_a_crash_while_writing_leaves_the_old_state(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a power cut would destroy the record of a finished trial."""
    folder.update(status="done")

    def crash(_descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space"):
        folder.update(status="running")
    assert folder.state().status == "done"


def test_rows_come_back_with_nan_and_inf(folder: TrialFolder) -> None:
    """A diverged trial's journal could not be read, or not by a strict JSON reader."""
    folder.append(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1})
    assert "NaN" not in folder.journal.read_text()
    assert "Infinity" not in folder.journal.read_text()
    ((row,), _) = folder.rows()
    assert row.step == 0
    assert math.isnan(row.metrics["a"])
    assert (row.metrics["b"], row.metrics["c"], row.metrics["d"]) == (math.inf, -math.inf, 0.1)


def test_reading_goes_on_where_it_stopped_at_any_byte(folder: TrialFolder) -> None:
    """A reader beside the writer would lose or double a row that it caught half-written."""
    for step in range(4):
        folder.append(step, {"loss": step / 3})
    content = folder.journal.read_bytes()
    for cut in range(len(content) + 1):
        folder.journal.write_bytes(content[:cut])
        first, offset = folder.rows()
        folder.journal.write_bytes(content)
        rest, end = folder.rows(offset)
        assert [row.step for row in first + rest] == [0, 1, 2, 3]
        assert end == len(content)


def test_a_damaged_line_is_named(folder: TrialFolder) -> None:
    """Results would be built on half of a journal without a word."""
    folder.append(0, {"loss": 1.0})
    folder.journal.write_bytes(folder.journal.read_bytes() + b"\x00\x00\n")
    with pytest.raises(UserError, match=r"journal\.jsonl: damaged in line 2"):
        folder.rows()


def test_rewind_drops_what_comes_after_and_a_torn_line(folder: TrialFolder) -> None:
    """Steps trained again after a kill would stand in the journal twice."""
    for step in (0, 5, 10, 10, 15):
        folder.append(step, {"loss": 1.0})
    with folder.journal.open("ab") as file:
        file.write(b'{"step": 20, "ti')
    folder.rewind(10)
    assert [row.step for row in folder.rows()[0]] == [0, 5, 10, 10]
    folder.append(15, {"loss": 2.0})
    assert [row.step for row in folder.rows()[0]] == [0, 5, 10, 10, 15]
    assert folder.state().rewinds == 1
    journal = folder.journal.read_bytes()
    folder.rewind(15)
    assert folder.journal.read_bytes() == journal
    assert folder.state().rewinds == 2, "no telling whether an earlier cut was killed before it was counted"


def test_a_reader_notices_a_rewind(folder: TrialFolder) -> None:
    """A reader would go on in the middle of a line, or miss the rows written anew."""
    for step in range(5):
        folder.append(step, {"loss": 1.0})
    _, offset = folder.rows()
    folder.rewind(1)
    assert [row.step for row in folder.rows(offset)[0]] == [0, 1]
    folder.append(2, {"a name that is longer than before": 1.0})
    folder.append(3, {"a name that is longer than before": 1.0})
    folder.append(4, {"a name that is longer than before": 1.0})
    assert [row.step for row in folder.rows(offset)[0]] == [0, 1, 2, 3, 4]


def test_born_tells_a_resumed_trial_from_one_begun_anew(folder: TrialFolder) -> None:
    """Results of a trial that was run again would be mixed with those of the first run."""
    assert folder.born() is None
    folder.append(0, {"loss": 1.0})
    folder.append(1, {"loss": 1.0})
    born = folder.born()
    folder.rewind(0)
    assert folder.born() == born
    folder.rewind(-1)
    assert folder.born() is None
    folder.append(0, {"loss": 1.0})
    assert folder.born() not in (None, born)


def test_lock_keeps_a_second_owner_out(folder: TrialFolder) -> None:
    """Two sweeps would train the same trial into the same files."""
    assert not folder.locked()
    with folder.lock():
        assert folder.locked()
        with pytest.raises(Busy, match="run by process") as caught, folder.lock():
            pass
        assert str(os.getpid()) in str(caught.value)
    assert not folder.locked()
    with folder.lock():
        pass


def test_kill_9_frees_the_lock(folder: TrialFolder) -> None:
    """A killed trial could never be continued."""
    code = (
        "import sys, time; from pathlib import Path; from lmim.trial.folder import TrialFolder\n"
        "with TrialFolder(Path(sys.argv[1]), sys.argv[2]).lock():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.root), folder.id], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Busy) as caught, folder.lock():
            pass
        assert str(process.pid) in str(caught.value)
        os.kill(process.pid, signal.SIGKILL)
    with folder.lock():
        pass
