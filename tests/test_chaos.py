"""The chaos run finds what faults do to a sweep: nothing."""

from pathlib import Path

import pytest

from lmim import chaos
from lmim.config import Config
from lmim.trial.folder import TrialFolder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_under_faults() -> None:
    """A night of a cluster's own faults would cost trials, or leave figures that nobody else gets."""
    record = chaos.chaos(trials=10, seconds=45, seed=1)
    assert record["trials"] == 10
    assert record["faults"], "there were some"
    assert [record[name] for name in ("lost", "steps_twice", "different")] == [[], [], []]


def test_what_is_lost_or_done_twice_is_seen(tmp_path: Path) -> None:
    """Otherwise a chaos run says that all is well whatever happened."""
    calm, storm = tmp_path / "calm", tmp_path / "storm"
    for out in (calm, storm):
        for seed in range(3):
            config = Config.read({"seed": seed})
            folder = TrialFolder(out / "trials", config.identity)
            folder.create(config)
            folder.append(0, {"collapse/rank": 1.0})
            folder.append(1, {"train/loss": 1.0})
            folder.update(status="done", metrics={"train/loss": 1.0, "system/seconds": float(seed)})
    assert chaos.figures(calm) == chaos.figures(storm)
    assert chaos.repeated(storm) == []
    first, second, third = (TrialFolder(storm / "trials", name) for name in chaos.figures(calm))
    first.update(status="running")
    second.update(metrics={"train/loss": 1.5})
    third.append(1, {"train/loss": 1.0})
    assert chaos.figures(calm).keys() - chaos.figures(storm).keys() == {first.id}
    assert chaos.figures(storm)[second.id] == {"train/loss": 1.5}
    assert chaos.repeated(storm) == [third.id]
