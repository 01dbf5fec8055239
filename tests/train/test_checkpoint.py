"""Where a trial goes on: the old checkpoint or the new one, and nothing that could harm."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmim.config import Config
from lmim.data import open_dataset
from lmim.errors import UserError
from lmim.train import checkpoint
from lmim.train.loop import Run, train
from lmim.trial.folder import TrialFolder
from tests.trial.leavings import series, weights

Tiny = Callable[..., Config]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    """A trial that goes on with other weights, or another step, is another experiment."""
    file = tmp_path / "checkpoint.pt"
    assert checkpoint.load_or_set_aside(file) is None
    state = {"weights": {"w": torch.randn(3)}, "step": 7, "seconds": 0.1, "names": ["loss"]}
    checkpoint.save(file, {"step": 6})
    checkpoint.save(file, state)
    for loaded in (checkpoint.load(file), checkpoint.load_or_set_aside(file)):
        assert loaded is not None
        assert torch.equal(loaded.pop("weights")["w"], state["weights"]["w"])  # type: ignore[index]
        assert loaded == {key: value for key, value in state.items() if key != "weights"}
    assert {*tmp_path.iterdir()} == {file, checkpoint.before(file)}
    checkpoint.save(file, state, last=True)
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("place", [0.02, 0.5, 0.9])
def test_a_flipped_bit_is_not_gone_on_with(
    tmp_path: Path, place: float, caplog: pytest.LogCaptureFixture
) -> None:
    """torch reads it without a word: the trial would go on from weights that nobody trained."""
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"weights": torch.zeros(1000), "step": 6})
    checkpoint.save(file, {"weights": torch.ones(1000), "step": 7})
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 16
    file.write_bytes(content)
    found = checkpoint.load_or_set_aside(file)
    assert found is not None
    assert found["step"] == 6
    assert "gone on with the one before" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.damaged"}
    (tmp_path / ".checkpoint.pt.99999").write_bytes(b"what a killed process left")
    assert checkpoint.load_or_set_aside(file) is not None
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint.damaged"}


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_full_disk_costs_no_checkpoint(tmp_path: Path) -> None:
    """What was trained would be lost with the first disk that fills up, and the disk stay full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=True)
    try:
        file = disk / "checkpoint.pt"
        checkpoint.save(file, {"weights": torch.ones(20_000), "step": 6})
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                checkpoint.save(file, {"weights": torch.ones(80_000), "step": 7})
        assert checkpoint.load(file)["step"] == 6
        assert {path.name for path in disk.iterdir()} <= {file.name, checkpoint.before(file).name}
        checkpoint.save(file, {"weights": torch.ones(20_000), "step": 7})
        assert checkpoint.load(file)["step"] == 7
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """Else an error at the wrong moment costs all that was trained."""
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"step": 6})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(file, {"step": 7, "cannot": lambda: None})
    assert checkpoint.load(file) == {"step": 6}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("left", [0, 1, 100, 5_000, 10_000, 20_000])
def test_a_checkpoint_that_was_cut_short_is_set_aside(tmp_path: Path, left: int) -> None:
    """A full disk leaves part of a file: the trial must begin anew, and not end in a traceback."""
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {"weights": {str(n): torch.zeros(256) for n in range(20)}})
    assert file.stat().st_size > 20_000
    os.truncate(file, left)
    assert checkpoint.load_or_set_aside(file) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.damaged"]


def test_a_checkpoint_that_may_not_be_read_is_no_damaged_one(tmp_path: Path) -> None:
    """Else a trial whose disk is away for a moment begins anew."""
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(IsADirectoryError):
        checkpoint.load_or_set_aside(tmp_path / "checkpoint.pt")


class Harmful:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('was run')",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders of trials are shared, and a stranger's must not run anything here."""
    file = tmp_path / "checkpoint.pt"
    torch.save({"step": Harmful()}, file)
    assert checkpoint.load_or_set_aside(file) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.damaged"]
    assert "checkpoint.pt cannot be read" in caplog.text


def test_a_checkpoint_of_another_trial_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    """A file that was copied to the wrong folder would make one arm's figures another's."""
    runs = [Run(c, open_dataset(c.data), torch.device("cpu")) for c in (tiny(), tiny(seed=1))]
    runs[0].save(tmp_path / "checkpoint.pt")
    assert runs[0].restore(tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=f"of trial {runs[0].config.identity}, not {runs[1].config.identity}"):
        runs[1].restore(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("left", [0, 1000, -1], ids=["empty", "cut short", "other bytes"])
def test_a_trial_without_a_good_checkpoint_begins_anew(tmp_path: Path, tiny: Tiny, left: int) -> None:
    """A disk that lost the checkpoint's end must cost the trial's time, not block the sweep for ever."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    steps: list[int] = []
    train(config, folder, report=lambda step, _: steps.append(step), stop=lambda: bool(steps[-1:] >= [6]))
    content = folder.checkpoint.read_bytes()
    damaged = content[:left] if left >= 0 else b"not a checkpoint" * 100
    folder.checkpoint.write_bytes(damaged)
    checkpoint.before(folder.checkpoint).unlink()
    state = train(config, folder)
    assert state.status == "done"
    assert folder.checkpoint.with_suffix(".damaged").read_bytes() == damaged
    trained = [row.step for row in folder.rows()[0] if "train/lr" in row.metrics]
    assert trained[0] == 3
    assert len(trained) == len(set(trained))
    assert trained[-1] == state.steps


def test_a_trial_with_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path: Path, tiny: Tiny) -> None:
    """One flipped bit would cost days; or the trial would end as another one than its arm's others."""
    config = tiny()
    whole, hurt = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "hurt"))
    train(config, whole)
    steps: list[int] = []
    train(config, hurt, report=lambda step, _: steps.append(step), stop=lambda: bool(steps[-1:] >= [6]))
    content = bytearray(hurt.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    hurt.checkpoint.write_bytes(content)
    assert train(config, hurt).status == "done"
    first, second = weights(whole), weights(hurt)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert series(whole) == series(hurt)
    assert not checkpoint.before(hurt.checkpoint).exists()
