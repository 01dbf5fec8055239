"""The trainer: what a run leaves behind, and that a kill costs nothing but time."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmim.axes.collapse import TARGETS
from lmim.axes.decoder import DECODERS
from lmim.axes.loss import LOSSES
from lmim.config import TOKENS, Config
from lmim.data import open_dataset
from lmim.errors import UserError
from lmim.metrics import COLLAPSED, kept
from lmim.train.batches import batches
from lmim.train.loop import Run, train
from lmim.trial.ending import Collapse, Ending, Prune
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import standing
from tests.objectives.subclasses import of_latent_mim
from tests.trial.leavings import series, weights

Tiny = Callable[..., Config]


KNN = read_evaluations(["knn"])


def judged(folder: TrialFolder) -> dict[str, float]:
    """What every evaluation of the trial found."""
    return {name: value for result in folder.results() for name, value in result.metrics.items()}


SLOWLY = """
import sys, time
from pathlib import Path
from lmim.train.loop import train
from lmim.trial.folder import TrialFolder
folder = TrialFolder(Path(sys.argv[1]), sys.argv[2])
train(folder.config(), folder, report=lambda step, metrics: time.sleep(0.05))
"""


def test_a_killed_run_ends_with_bit_identical_weights(tmp_path: Path, tiny: Tiny) -> None:
    """A preempted trial must not become another experiment; accumulation makes it hard on purpose."""
    config = tiny(optim__accumulate=2)
    whole = TrialFolder(tmp_path / "whole", config.identity)
    train(config, whole)
    killed = TrialFolder(tmp_path / "killed", config.identity)
    killed.create(config)
    for at_step in (4, 11):
        process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(killed.root), killed.id])
        deadline = time.monotonic() + 60
        while killed.state().step < at_step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None
        process.kill()
        process.wait()
        assert killed.state().status == "running"  # nobody could say goodbye
    assert train(config, killed).status == "done"
    first, second = weights(whole), weights(killed)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name

    assert series(whole) == series(killed)


def test_a_stopped_run_says_so_and_goes_on(tmp_path: Path, tiny: Tiny) -> None:
    """Ctrl-C and SIGTERM save at the next step; the state tells the sweep to continue there."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    steps: list[int] = []
    state = train(
        config, folder, report=lambda step, _: steps.append(step), stop=lambda: bool(steps[-1:] >= [6])
    )
    assert state.status == "interrupted"
    assert 0 < state.step < state.steps
    assert train(config, folder).status == "done"


def test_a_trial_continued_by_other_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    """Otherwise the second half's commit would vouch for the first, and the table would mix two programs."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    monkeypatch.setattr("lmim.train.loop.code_version", lambda: "aaa")
    assert train(config, folder, stop=lambda: True).commit == "aaa"
    assert train(config, folder, stop=lambda: True).commit == "aaa"
    monkeypatch.setattr("lmim.train.loop.code_version", lambda: "bbb")
    assert train(config, folder).commit == "aaa; then bbb"


def test_seed_alone_decides_the_run(tmp_path: Path, tiny: Tiny) -> None:
    """Same seed, same numbers; another seed, others."""
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = tiny(seed=seed, optim__epochs=1)
        folder = TrialFolder(tmp_path / name, config.identity)
        train(config, folder)
        runs.append(weights(folder))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_a_diverged_run_is_a_result(tmp_path: Path, tiny: Tiny) -> None:
    """An arm that blows up must end with that finding, not with a traceback."""
    config = tiny(optim__base_lr=1e30, loss="mse")
    folder = TrialFolder(tmp_path, config.identity)
    state = train(config, folder, KNN)
    assert (state.status, state.outcome) == ("done", "diverged")
    assert "eval/rank_ratio" not in state.metrics
    assert not judged(folder)
    assert standing(folder, KNN).status == "done"
    assert train(config, folder, KNN).finished == state.finished


def test_a_collapse_is_a_result(tmp_path: Path, tiny: Tiny) -> None:
    """The arm that collapses is the finding of its ablation, and the report must judge by the same bound."""
    config = tiny(
        collapse="joint",
        loss="mse",
        mask__similarity=0.0,
        optim__epochs=30,
        optim__base_lr=0.05,
        run__checkpoint_seconds=60.0,
    )
    state = train(config, TrialFolder(tmp_path, config.identity))
    assert (state.status, state.outcome) == ("done", "collapsed")
    assert state.metrics["eval/rank_ratio"] < COLLAPSED
    assert state.metrics["collapse/spread_ratio"] < COLLAPSED
    assert state.metrics["collapse/nn_gain"] < COLLAPSED
    # of these features neighbours still tell: a narrow cone about a common offset, not a collapse
    assert kept(state.metrics | {"collapse/nn_gain": 0.9}) > COLLAPSED


def test_hours_are_counted_by_what_a_trial_took_while_it_took_it(tmp_path: Path, tiny: Tiny) -> None:
    """Else a trial that went on with more cores is billed as if it had always had them, or never."""
    first = tiny(optim__epochs=2, run__checkpoint_seconds=0.0)
    folder = TrialFolder(tmp_path, first.identity)
    assert train(first, folder, stop=lambda: True).status == "interrupted"
    alone = torch.load(folder.checkpoint, weights_only=True)["progress"]["seconds"]
    state = train(tiny(optim__epochs=2, run__cpus=5), folder)
    more = state.metrics["system/seconds"] - alone
    assert more > 0
    assert state.metrics["system/core_seconds"] == pytest.approx(alone + 5 * more)
    assert "system/gpu_seconds" not in state.metrics


SPOILED = """\
    def patch_features(self, images):
        return super().patch_features(images)
    def scheduled(self, progress):
        return super().scheduled(progress) | {"progress": progress}
    def after_step(self, scheduled):
        super().after_step(scheduled)
        if scheduled["progress"] == 1:
            self.encoder.embed.weight.data /= 0
"""


def test_an_objective_without_a_loss_is_told_so(tmp_path: Path, tiny: Tiny) -> None:
    """Its author would read a KeyError out of the trainer."""
    source = of_latent_mim("Lossless", SPOILED)
    source += "    def forward(self, views, labels, own, scheduled):\n        return {'term': views.mean()}\n"
    config = tiny(objective="mine.py:Lossless", sources={"mine.py": source})
    with pytest.raises(UserError, match=r"mine\.py:Lossless: its forward gives term, and no loss"):
        train(config, TrialFolder(tmp_path, config.identity))


def test_features_that_are_not_finite_are_no_result(tmp_path: Path, tiny: Tiny) -> None:
    """Weights that turn NaN in the last step must not stand in the table as learned."""
    config = tiny(
        objective="mine.py:Spoiled", sources={"mine.py": of_latent_mim("Spoiled", SPOILED)}, optim__epochs=1
    )
    folder = TrialFolder(tmp_path, config.identity)
    state = train(config, folder, KNN)
    assert (state.status, state.outcome) == ("done", "diverged")
    assert math.isfinite(state.metrics["train/loss"])
    assert "eval/rank_ratio" not in state.metrics
    assert not judged(folder)


# ------------------------------------------------------------------------------------- its judgement


@pytest.mark.parametrize("place", ["features", "between protocols"])
def test_an_evaluation_can_be_stopped(tmp_path: Path, tiny: Tiny, place: str) -> None:
    """ImageNet's takes minutes, and Ctrl-C must not wait for them."""
    config, evaluations = tiny(optim__epochs=1), read_evaluations(["nn", "knn"])
    folder = TrialFolder(tmp_path, config.identity)

    def stop() -> bool:
        return folder.state().status == "done" and (place == "features" or bool(folder.results()))

    assert train(config, folder, evaluations, stop=stop).status == "done"
    assert len(folder.results()) == (place != "features")
    assert weights(folder)
    assert standing(folder, evaluations).status == "trained"
    train(config, folder, evaluations)
    assert standing(folder, evaluations).status == "done"
    assert judged(folder).keys() == {"eval/nn_top1", "eval/knn_top1"}


def test_a_protocol_that_is_stopped_has_not_failed(tmp_path: Path, tiny: Tiny) -> None:
    """A preempted trial would stand as failed by a protocol that encodes images itself."""
    config, evaluations = tiny(optim__epochs=1), read_evaluations(["invariance"])
    folder = TrialFolder(tmp_path, config.identity)
    train(config, folder)
    for last in range(1, 100):
        calls = 0

        def stop(last: int = last) -> bool:
            nonlocal calls
            calls += 1
            return calls >= last

        train(config, folder, evaluations, stop=stop)
        if folder.results():
            break
    assert last > 10
    assert [result.error for result in folder.results()] == [""]


def test_an_evaluation_that_is_added_later_trains_nothing(tmp_path: Path, tiny: Tiny) -> None:
    """A new protocol would cost every trial of a year again, or its figures would be of other weights."""
    config = tiny()
    folder, at_once = (TrialFolder(tmp_path / name, config.identity) for name in ("later", "at once"))
    both = read_evaluations(["knn", "nn"])

    def kept() -> list[object]:
        files = [folder.checkpoint, folder.journal, *folder.path.glob("evaluations/knn-*.json")]
        return [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] + [folder.state()]

    first = train(config, folder, KNN)
    before = kept()
    told: list[int] = []
    assert train(config, folder, both, report=lambda step, _: told.append(step)) == first
    assert kept() == before
    assert not told
    train(config, at_once, both)
    assert judged(folder) == judged(at_once)
    assert judged(folder).keys() == {"eval/knn_top1", "eval/nn_top1"}


PROTOCOL = """
import os, signal
METRICS = {"gap": {"label": "gap", "better": "higher"}}
def gap(frozen):
    if not os.path.exists("again"):
        open("again", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"gap": 1.0}
def broken(frozen):
    return {"gap": 1 / 0}
"""
JUDGED = """
import os, sys
from pathlib import Path
from lmim.train.loop import train
from lmim.trial.ending import Collapse, Ending, Prune
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
os.chdir(sys.argv[1])
folder = TrialFolder(Path("trials"), sys.argv[2])
train(folder.config(), folder, read_evaluations(["nn", "mine.py:gap", "knn"], {"mine.py": sys.argv[3]}))
"""


def test_a_trial_killed_while_it_is_judged_is_only_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    """A protocol that needs too much memory would cost the whole training, each time."""
    config = tiny(optim__epochs=1)
    folder = TrialFolder(tmp_path / "trials", config.identity)
    folder.create(config)
    evaluations = read_evaluations(["nn", "mine.py:gap", "knn"], {"mine.py": PROTOCOL})
    words = [sys.executable, "-c", JUDGED, str(tmp_path), folder.id, PROTOCOL]
    assert subprocess.run(words, timeout=120, check=False).returncode == -signal.SIGKILL
    assert (folder.state().status, standing(folder, evaluations).status) == ("done", "trained")
    assert judged(folder).keys() == {"eval/nn_top1"}
    kept = [folder.checkpoint.stat().st_mtime_ns, folder.journal.read_bytes(), folder.state()]
    monkeypatch.chdir(tmp_path)
    assert train(config, folder, evaluations) == kept[2]
    assert kept == [folder.checkpoint.stat().st_mtime_ns, folder.journal.read_bytes(), folder.state()]
    assert standing(folder, evaluations).status == "done"
    assert judged(folder).keys() == {"eval/nn_top1", "eval/gap", "eval/knn_top1"}


def test_a_protocol_that_raises_is_that_evaluations_error(tmp_path: Path, tiny: Tiny) -> None:
    """One mistake in a user's protocol would cost the training, or the figures of the others."""
    config = tiny(optim__epochs=1)
    folder = TrialFolder(tmp_path, config.identity)
    evaluations = read_evaluations(["mine.py:broken", "knn"], {"mine.py": PROTOCOL})
    state = train(config, folder, evaluations)
    assert (state.status, state.outcome, state.error) == ("done", "learned", None)
    wrong, right = (one for name in ("broken", "knn") for one in folder.results() if name in one.protocol)
    assert wrong.error == "mine.py:broken: ZeroDivisionError: division by zero (mine.py:10)"
    assert not wrong.metrics
    assert right.metrics["eval/knn_top1"] > 20
    stands = standing(folder, evaluations)
    assert (stands.status, stands.error) == ("failed", wrong.error)
    assert stands.metrics["eval/knn_top1"] == right.metrics["eval/knn_top1"]
    files = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*.*")}
    train(config, folder, evaluations)  # what failed is not tried again by itself
    assert files == {file: file.stat().st_mtime_ns for file in folder.path.rglob("*.*")}


def test_a_trial_without_its_checkpoint_cannot_be_judged(tmp_path: Path, tiny: Tiny) -> None:
    """Else a random encoder would be judged in its place."""
    config = tiny(optim__epochs=1)
    folder = TrialFolder(tmp_path, config.identity)
    train(config, folder)
    folder.checkpoint.unlink()
    with pytest.raises(UserError, match=r"checkpoint\.pt: is gone, so that knn cannot be judged; .* delete"):
        train(config, folder, KNN)
    assert not judged(folder)


@pytest.mark.parametrize("trained", [False, True])
def test_other_data_than_planned_are_refused(tmp_path: Path, tiny: Tiny, trained: bool) -> None:
    """A folder of images that changed under a sweep would give one column of two data sets."""
    config = tiny(optim__epochs=1)
    planned = {"data__version": open_dataset(config.data).version}
    same, other = tiny(**planned, optim__epochs=1), tiny(data__version="another", optim__epochs=1)
    folder = TrialFolder(tmp_path, other.identity)
    if trained:
        folder.create(other)
        folder.update(status="done", outcome="learned")
    before = folder.state()
    with pytest.raises(UserError, match=r"data\.version: digits was another when .* run the sweep again"):
        train(other, folder, KNN)
    assert folder.state() == before
    assert not judged(folder)
    assert train(same, TrialFolder(tmp_path, same.identity), KNN).status == "done"


@pytest.mark.parametrize("objective", ["latent_mim", "raw_pixels"])
def test_untrained_baselines_are_evaluated(tmp_path: Path, tiny: Tiny, objective: str) -> None:
    """The random encoder and raw pixels stand in the same table as the arms."""
    config = tiny(optim__epochs=0)
    if objective == "raw_pixels":
        tree = config.model_dump(include={"data", "optim", "run", "watch"})
        config = Config.read(tree | {"objective": objective, "encoder": {"patch_size": 2}})
    folder = TrialFolder(tmp_path, config.identity)
    state = train(config, folder, KNN)
    assert (state.status, state.outcome, state.steps) == ("done", None, 0)
    assert state.metrics["eval/rank_ratio"] == 1
    assert judged(folder)["eval/knn_top1"] > 20  # ten classes: chance is 10


def test_a_missing_gpu_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> None:
    """Without the check the user reads a CUDA traceback."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        train(tiny(run__device="cuda"), TrialFolder(tmp_path, "x" * 12))


@pytest.mark.parametrize(
    "changes",
    [{"collapse": name} for name in TARGETS if name not in TOKENS]
    + [{"loss": name} for name in LOSSES if name != "cross_entropy"]
    + [{"decoder": name, "decoder__cues": cues} for name in DECODERS for cues in (True, False)]
    + [{"mask__gap": 1}, {"mask__similarity": 0.0}, {"projector__depth": 0}, {"projector__depth": 1}]
    + [{"collapse__target_sees": "all"}, {"optim__precision": "bfloat16"}],
    ids=str,
)
def test_every_option_trains(changes: dict[str, Any], tiny: Tiny) -> None:
    """Every cell of a grid must give a finite loss and move what it should, or the table has holes."""
    config = tiny(**changes)
    run = Run(config, open_dataset(config.data), torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in run.objective.named_parameters()}
    run.step(next(batches(run.dataset.train, config, run.objective, 0, run.steps)))
    metrics = run.training_metrics()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    moved = {n for n, p in run.objective.named_parameters() if not torch.equal(p, before[n])}
    assert {"encoder.embed.weight", "encoder.blocks.0.mlp.fc1.weight", "decoder.embed.weight"} <= moved


ENDING = Ending(collapse=Collapse(patience=2))


def collapsing(tiny: Tiny, **changes: Any) -> Config:
    """A trial that has collapsed long before its end."""
    joint = {"collapse": "joint", "loss": "mse", "mask__similarity": 0.0, "optim__base_lr": 0.05}
    return tiny(**joint, **{"optim__epochs": 30, "run__checkpoint_seconds": 60.0, **changes})


def test_a_trial_that_was_ended_early_goes_on_to_the_same_weights(tmp_path: Path, tiny: Tiny) -> None:
    """Otherwise a sweep without the rule has another trial in its table than if the rule had never been."""
    config = collapsing(tiny)
    whole, early = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "early"))
    assert train(config, whole, KNN).ended == ""
    state = train(config, early, KNN, ending=ENDING)
    assert (state.status, state.outcome) == ("done", "collapsed")
    assert state.ended.startswith("collapsed: effective rank below 0.5")
    assert 0 < state.step < state.steps
    saved, spent = (state.metrics[f"system/{name}core_seconds"] for name in ("saved_", ""))
    assert saved == pytest.approx(spent * (state.steps / state.step - 1))
    (unfinished,) = early.results()
    assert standing(early, KNN, ending=ENDING).status == "done"
    assert train(config, early, KNN, ending=ENDING) == state, "by the rule it is done"
    stands = standing(early, KNN)
    assert stands.status == "interrupted", "to a sweep without the rule it is not"
    stricter = Ending(collapse=Collapse(rank=1e-3))
    assert standing(early, KNN, ending=stricter).status == "interrupted"

    state = train(config, early, KNN)
    assert (state.step, state.ended) == (state.steps, "")
    assert "system/saved_core_seconds" not in state.metrics
    assert series(early) == series(whole)
    first, second = weights(whole), weights(early)
    assert all(torch.equal(first[name], second[name]) for name in first)
    (result,) = early.results()
    assert result.date >= unfinished.date
    assert judged(early) == judged(whole)
    assert train(config, early, KNN, ending=ENDING).finished == state.finished, "more than the rule asks for"


def test_a_trial_ends_where_it_would_whatever_interrupts_it(tmp_path: Path, tiny: Tiny) -> None:
    """Otherwise a preempted trial has other steps behind it than its neighbours of the same arm."""
    config = collapsing(tiny)
    straight, stopped = (TrialFolder(tmp_path / name, config.identity) for name in ("straight", "stopped"))
    end = train(config, straight, ending=ENDING)
    for _ in range(end.step - 1):  # after every step
        assert train(config, stopped, stop=lambda: True, ending=ENDING).status == "interrupted"
    # without the rule up to the step at which it ends: a kill between the look and the decision
    assert train(config, stopped, stop=lambda: True).step == end.step
    found = train(config, stopped, ending=ENDING)
    assert (found.status, found.step, found.ended) == ("done", end.step, end.ended)
    assert series(straight) == series(stopped)


def test_an_evaluation_of_unfinished_training_is_dropped_even_by_a_kill(tmp_path: Path, tiny: Tiny) -> None:
    """Otherwise the figures of half a training pass for the finished trial's."""
    config = collapsing(tiny)
    folder = TrialFolder(tmp_path, config.identity)
    state = train(config, folder, KNN, ending=ENDING)
    kept, text = folder.journal.read_bytes(), (folder.path / "state.json").read_text()
    (folder.path / "figures").mkdir()
    folder.reopen()
    assert not (folder.path / "figures").exists(), "nor is a figure shown of it"
    assert (folder.results(), folder.state().ended, folder.state().outcome) == ([], "", None)
    assert folder.journal.read_bytes() == kept[: kept[:-1].rfind(b"\n") + 1], "but for the row of the end"
    (folder.path / "state.json").write_text(text)  # killed before the state was written
    assert standing(folder, KNN).status == "interrupted"
    folder.reopen()
    assert folder.state().step == state.step
    assert "eval/rank_ratio" not in folder.state().metrics


def test_a_pruned_trial_is_not_judged_and_goes_on_where_another_sweep_wants_it(
    tmp_path: Path, tiny: Tiny
) -> None:
    """Its search has seen enough of it; whose table it stands in needs all of it, to the last digit."""
    config = tiny(optim__epochs=4)
    whole, pruned = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "pruned"))
    train(config, whole, KNN)
    hopeless, hopeful = (Ending(prune=Prune(looks=((1, None), (2, m), (3, m)))) for m in (101.0, -1.0))
    state = train(config, pruned, KNN, ending=hopeless)
    assert (state.status, state.outcome, state.step) == ("done", "pruned", state.steps // 2)
    assert state.ended.startswith("pruned: 1-NN on validation data")
    assert pruned.results() == []
    assert sorted(pruned.looks()) == [1, 2]
    assert standing(pruned, KNN, ending=hopeless).status == "done"
    assert standing(pruned, KNN, ending=hopeful).status == "interrupted"

    state = train(config, pruned, KNN, ending=hopeful)
    assert (state.outcome, state.ended, state.step) == ("learned", "", state.steps)
    assert sorted(pruned.looks()) == [1, 2, 3]
    assert not any("saved" in name for name in state.metrics)
    first, second = weights(whole), weights(pruned)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert judged(pruned) == judged(whole)
