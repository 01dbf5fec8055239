"""The trainer: what a run leaves behind, and that a kill costs nothing but time."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.claims import COLLAPSED_BELOW
from lmim.axes.collapse import TARGETS
from lmim.axes.decoder import DECODERS
from lmim.axes.loss import LOSSES
from lmim.config import Config, Optim, merge
from lmim.data import open_dataset
from lmim.data.batches import batches
from lmim.errors import UserError
from lmim.train.__main__ import main
from lmim.train.loop import COLLAPSED, Run, train
from lmim.train.schedules import learning_rate, parameter_groups
from lmim.trial.folder import TrialFolder

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 256},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 4, "batch_size": 32, "base_lr": 1e-2, "warmup_epochs": 0.5},
    "evaluate": {"probe_images": 64},
    "run": {"device": "cpu", "log_every": 3, "checkpoint_seconds": 0.0},
}


def tiny(**changes: Any) -> Config:
    return Config.model_validate(merge(TINY, {key.replace("__", "."): v for key, v in changes.items()}))


def weights(folder: TrialFolder) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(folder.checkpoint, weights_only=True)["objective"]
    return saved


SLOWLY = """
import sys, time
from pathlib import Path
from lmim.train.loop import train
from lmim.trial.folder import TrialFolder
folder = TrialFolder(Path(sys.argv[1]), sys.argv[2])
train(folder.config(), folder, lambda step, metrics: time.sleep(0.05))
"""


def test_a_killed_run_ends_with_bit_identical_weights(tmp_path: Path) -> None:
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

    def series(folder: TrialFolder) -> list[tuple[int, dict[str, float]]]:
        rows = folder.rows()[0]
        return [
            (row.step, {k: v for k, v in row.metrics.items() if not k.startswith("system/")}) for row in rows
        ]

    assert series(whole) == series(killed)


def test_a_stopped_run_says_so_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM save at the next step; the state tells the sweep to continue there."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    steps: list[int] = []
    state = train(config, folder, lambda step, _: steps.append(step), stop=lambda: bool(steps[-1:] >= [6]))
    assert state.status == "interrupted"
    assert 0 < state.step < state.steps
    assert train(config, folder).status == "done"


def test_a_trial_continued_by_other_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the second half's commit would vouch for the first, and the table would mix two programs."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    monkeypatch.setattr("lmim.train.loop.code_version", lambda: "aaa")
    assert train(config, folder, stop=lambda: True).commit == "aaa"
    assert train(config, folder, stop=lambda: True).commit == "aaa"
    monkeypatch.setattr("lmim.train.loop.code_version", lambda: "bbb")
    assert train(config, folder).commit == "aaa, then bbb"


@pytest.mark.parametrize("left", [0, 1000, -1], ids=["empty", "cut short", "other bytes"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, left: int) -> None:
    """A disk that lost the checkpoint's end must cost the trial's time, not block the sweep for ever."""
    config = tiny()
    folder = TrialFolder(tmp_path, config.identity)
    steps: list[int] = []
    train(config, folder, lambda step, _: steps.append(step), stop=lambda: bool(steps[-1:] >= [6]))
    content = folder.checkpoint.read_bytes()
    damaged = content[:left] if left >= 0 else b"not a checkpoint" * 100
    folder.checkpoint.write_bytes(damaged)
    state = train(config, folder)
    assert state.status == "done"
    assert folder.checkpoint.with_suffix(".damaged").read_bytes() == damaged
    trained = [row.step for row in folder.rows()[0] if "train/lr" in row.metrics]
    assert trained[0] == 3
    assert len(trained) == len(set(trained))
    assert trained[-1] == state.steps


def sweep_file(folder: Path) -> list[str]:
    """The command's first words for a small trial; everything goes under `folder`."""
    file = folder / "tiny.yaml"
    file.write_text("name: tiny\naxes: {loss: [mse, cosine]}\n")
    sets = ("data.name=digits", "data.image_size=8", "encoder.patch_size=2", "run.log_every=1")
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
    (line,) = (line for line in capsys.readouterr().err.splitlines() if " seed 0 in " not in line)
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


def test_seed_alone_decides_the_run(tmp_path: Path) -> None:
    """Same seed, same numbers; another seed, others."""
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = tiny(seed=seed, optim__epochs=1)
        folder = TrialFolder(tmp_path / name, config.identity)
        train(config, folder)
        runs.append(weights(folder))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    """An arm that blows up must end with that finding, not with a traceback."""
    config = tiny(optim__base_lr=1e30, loss="mse")
    state = train(config, TrialFolder(tmp_path, config.identity))
    assert (state.status, state.outcome) == ("done", "diverged")
    assert "eval/knn_top1" not in state.metrics


def test_a_collapse_is_a_result(tmp_path: Path) -> None:
    """The arm that collapses is the finding of its ablation, and the report must judge by the same bound."""
    config = tiny(collapse="joint", loss="mse", mask__similarity=0.0, optim__epochs=30, optim__base_lr=0.05)
    state = train(config, TrialFolder(tmp_path, config.identity))
    assert (state.status, state.outcome) == ("done", "collapsed")
    assert state.metrics["eval/rank_ratio"] < COLLAPSED == COLLAPSED_BELOW


def test_features_that_are_not_finite_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that turn NaN in the last step must not stand in the table as learned."""
    monkeypatch.setattr("lmim.train.loop.evaluate", lambda *_, **__: {"eval/knn_top1": float("nan")})
    config = tiny()
    state = train(config, TrialFolder(tmp_path, config.identity))
    assert state.outcome == "diverged"
    assert "eval/knn_top1" not in state.metrics


def test_an_evaluation_can_be_stopped(tmp_path: Path) -> None:
    """ImageNet's takes minutes, and Ctrl-C must not wait for them."""
    config = tiny(optim__epochs=1)
    folder = TrialFolder(tmp_path, config.identity)
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(folder.state().step == folder.state().steps)
        return asked[-1]

    assert train(config, folder, stop=stop).status == "interrupted"
    assert weights(folder)
    assert train(config, folder).status == "done"


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_losses_are_compared_in_float32(loss: str) -> None:
    """In bfloat16 some losses would be rounded and others not, and the ablation would compare that."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        config = tiny(loss=loss, optim__precision=precision)
        run = Run(config, open_dataset(config.data), torch.device("cpu"))
        ((batch,), *_) = batches(run.dataset, config, 0, run.steps)
        patches, view = run.views(batch)
        with run.autocast():
            output = run.forward(patches, view, 0.5)
        assert output.loss.dtype == torch.float32
        weight = dict(run.objective.named_parameters())["encoder.embed.weight"]
        gradients.append(torch.autograd.grad(output.loss, weight)[0])
    full, half = gradients
    assert (full - half).norm() < 0.1 * full.norm()


def test_untrained_baselines_are_evaluated(tmp_path: Path) -> None:
    """The random encoder and raw pixels stand in the same table as the arms."""
    for changes in ({"optim__epochs": 0}, {"optim__epochs": 0, "objective": "raw_pixels"}):
        config = tiny(**changes)
        state = train(config, TrialFolder(tmp_path, config.identity))
        assert (state.status, state.outcome, state.steps) == ("done", None, 0)
        assert state.metrics["eval/knn_top1"] > 20  # ten classes: chance is 10


def test_a_missing_gpu_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check the user reads a CUDA traceback."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        train(tiny(run__device="cuda"), TrialFolder(tmp_path, "x" * 12))


@pytest.mark.parametrize(
    "changes",
    [{"collapse": name} for name in TARGETS]
    + [{"loss": name} for name in LOSSES]
    + [{"decoder": name, "decoder__cues": cues} for name in DECODERS for cues in (True, False)]
    + [{"mask__gap": 1}, {"mask__similarity": 0.0}, {"projector__depth": 0}, {"projector__depth": 1}]
    + [{"collapse__target_sees": "all"}, {"optim__precision": "bfloat16"}],
    ids=str,
)
def test_every_option_trains(changes: dict[str, Any]) -> None:
    """Every cell of a grid must give a finite loss and move what it should, or the table has holes."""
    config = tiny(**changes)
    run = Run(config, open_dataset(config.data), torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in run.objective.named_parameters()}
    run.step(next(batches(run.dataset, config, 0, run.steps)))
    metrics = run.training_metrics()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    moved = {n for n, p in run.objective.named_parameters() if not torch.equal(p, before[n])}
    assert {"encoder.embed.weight", "encoder.blocks.0.mlp.fc1.weight", "decoder.embed.weight"} <= moved


def test_weight_decay_spares_biases_norms_and_embeddings() -> None:
    """METHOD: class and mask tokens do decay, the patch embedding and the decoder's input do not."""
    config = tiny()
    objective = Run(config, open_dataset(config.data), torch.device("cpu")).objective
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in parameter_groups(objective, 0.05))
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.blocks.0.attn.qkv.weight"} <= decayed
    assert {"encoder.embed.weight", "decoder.embed.weight", "encoder.norm.weight"} <= free
    assert not any("bias" in name for name in decayed)
    assert not any(name.startswith("target") for name in decayed | free)


def test_learning_rate_has_the_published_shape() -> None:
    """Peak = base_lr x effective batch / 256; both ends at min_lr_ratio of it."""
    optim = Optim(epochs=800, warmup_epochs=40, base_lr=1.5e-4, batch_size=256, accumulate=16)
    peak = 1.5e-4 * 16
    assert learning_rate(optim, 40) == pytest.approx(peak)
    assert learning_rate(optim, 0) == pytest.approx(peak / 4)
    assert learning_rate(optim, 800) == pytest.approx(peak / 4)
