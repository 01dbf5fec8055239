"""The trainer: what a run leaves behind, and that a kill costs nothing but time."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lmim.axes.collapse import TARGETS
from lmim.axes.decoder import DECODERS
from lmim.axes.loss import LOSSES
from lmim.config import Config, Optim, UserError, merge
from lmim.data import open_dataset
from lmim.train import Run, generator, learning_rate, parameter_groups, train
from lmim.trial import TrialFolder

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
from lmim.train import train
from lmim.trial import TrialFolder
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


def test_untrained_baselines_are_evaluated(tmp_path: Path) -> None:
    """The random encoder and raw pixels stand in the same table as the arms."""
    for changes in ({"optim__epochs": 0}, {"optim__epochs": 0, "objective": "raw_pixels"}):
        config = tiny(**changes)
        state = train(config, TrialFolder(tmp_path, config.identity))
        assert (state.status, state.outcome, state.steps) == ("done", None, 0)
        assert state.metrics["eval/knn_top1"] > 20  # ten classes: chance is 10


def test_a_missing_gpu_is_said_before_anything_runs(tmp_path: Path) -> None:
    """Without the check the user reads a CUDA traceback."""
    if torch.cuda.is_available():
        return
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
    indices = torch.arange(config.optim.batch_size)
    run.step([run.dataset.train.read(indices)])
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


def test_random_streams_do_not_meet() -> None:
    """Two purposes or steps that drew the same numbers would correlate masks with crops."""
    draws = [
        torch.rand(4, generator=generator(*key)).tolist()
        for key in [(0, "step", 0), (0, "step", 1), (1, "step", 0), (0, "order", 0)]
    ]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
