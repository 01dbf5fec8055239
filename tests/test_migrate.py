"""Trials that an older version trained are results still."""

import json
import shutil
from pathlib import Path

import pytest

from lmim import migrate
from lmim.replay import replay
from lmim.trial.folder import TrialFolder

OLDER = Path(__file__).parent / "fixtures" / "older"
"""Two trials as version 249325208a left them: one trained, one only evaluated."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A results folder of that version."""
    shutil.copytree(OLDER, tmp_path / "trials")
    return tmp_path


def test_older_trials_are_read_and_nothing_is_lost(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else an update of lmim would cost its users all that they have trained."""
    assert migrate.main(["--out", str(out)]) == 0
    assert "2 of 2 older trials migrated" in capsys.readouterr().out
    assert {path.name for path in (out / "trials-old").iterdir()} == {path.name for path in OLDER.iterdir()}
    for path in (out / "trials").iterdir():
        folder = TrialFolder(out / "trials", path.name)
        assert folder.config().identity == folder.id
        state = folder.state()
        before = next(
            old
            for old in (json.loads((p / "state.json").read_text()) for p in OLDER.iterdir())
            if old["metrics"]["system/seconds"] == state.metrics["system/seconds"]
        )
        results = {name: value for one in folder.results() for name, value in one.metrics.items()}
        # of 5 neighbours, which is not the neutral number
        results["eval/knn_top1"] = results.pop("eval/knn_top1.k5")
        assert state.metrics | results == before["metrics"]
        assert (state.commit, state.steps) == (before["commit"], before["steps"])
        assert not any("eval/knn_top1" in row.metrics for row in folder.rows()[0])
    assert migrate.main(["--out", str(out)]) == 0
    assert "0 of 0" in capsys.readouterr().out, "twice is as good as once"


def test_what_was_migrated_can_be_replayed(out: Path) -> None:
    """Else old figures could only be believed, or thrown away: today's code must give the same ones."""
    migrate.main(["--out", str(out)])
    for path in (out / "trials").iterdir():
        # the fixture was made on another machine, perhaps: rounding is allowed for
        assert replay(TrialFolder(out / "trials", path.name)).difference == ""


def test_a_damaged_folder_is_left_as_it_is(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else one torn file would stop the migration of all others, or be lost in it."""
    first = sorted((out / "trials").iterdir())[0]
    (first / "state.json").write_text("{")
    assert migrate.main(["--out", str(out)]) == 1
    assert f"left as it is: {first}" in capsys.readouterr().err
    assert first.is_dir()
    assert len(list((out / "trials-old").iterdir())) == 1
