"""How a trial stands for a sweep: its state, and the evaluations that the sweep asks for."""

from pathlib import Path

import pytest

from lmim.config import Config
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import standing
from tests.trial.builders import record

NN, KNN = read_evaluations(["nn", "knn"])


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    config = Config.read({})
    made = TrialFolder(tmp_path, config.identity)
    made.create(config)
    return made


def test_running_is_what_a_process_holds(folder: TrialFolder) -> None:
    """A trial whose machine went down would count as running for ever."""
    assert standing(folder).status == "new"
    folder.update(status="running")
    assert standing(folder).status == "interrupted"
    with folder.lock():
        assert standing(folder).status == "running"


def test_a_trial_is_done_when_it_is_judged_by_all_that_is_asked(folder: TrialFolder) -> None:
    """A sweep would call itself complete without a column of its table, or train again to fill it."""
    folder.update(status="done", code="c1", metrics={"train/loss": 1.0})
    assert standing(folder).status == "done"
    assert standing(folder, [NN], "v1").status == "trained"
    with folder.lock():
        assert standing(folder, [NN], "v1").status == "running"
    record(folder, NN, 10.0, code="c2")
    assert standing(folder, [NN, KNN], "v1").status == "trained"
    assert standing(folder, [NN], "v2").status == "trained", "judged on other data"
    stands = standing(folder, [NN], "v1")
    assert (stands.status, stands.error) == ("done", None)
    assert stands.metrics == {"train/loss": 1.0, "eval/nn_top1": 10.0}
    assert stands.codes == {"c1", "c2"}


def test_a_view_that_an_encoder_does_not_have_is_not_waited_for(tmp_path: Path) -> None:
    """A baseline without a class token would stand as `trained` for ever, and be judged again and again."""
    config = Config.read({"objective": "raw_pixels"})
    pixels = TrialFolder(tmp_path, config.identity)
    pixels.create(config)
    pixels.update(status="done")
    asked = read_evaluations([{"nn": {"features": "cls"}}])
    assert standing(pixels, asked, "v1").status == "done"
    assert not pixels.missing(asked, "v1")


def test_a_protocol_that_failed_fails_the_trial_for_who_asks_for_it(folder: TrialFolder) -> None:
    """One broken protocol would hide behind the others, or spoil the sweeps that do not use it."""
    folder.update(status="done")
    record(folder, NN, 10.0)
    record(folder, KNN, None, error="knn: ValueError: no")
    stands = standing(folder, [NN, KNN], "v1")
    assert (stands.status, stands.error) == ("failed", "knn: ValueError: no")
    assert stands.metrics == {"eval/nn_top1": 10.0}
    assert standing(folder, [NN], "v1").status == "done"


def test_what_diverged_has_nothing_to_judge(folder: TrialFolder) -> None:
    """A diverged trial would be judged at every run, for ever."""
    folder.update(status="done", outcome="diverged")
    assert standing(folder, [NN], "v1").status == "done"


def test_a_failed_training_says_why(folder: TrialFolder) -> None:
    """The error of the training would be lost on the way to the user."""
    folder.update(status="failed", error="OutOfMemoryError")
    stands = standing(folder, [NN], "v1")
    assert (stands.status, stands.error) == ("failed", "OutOfMemoryError")
