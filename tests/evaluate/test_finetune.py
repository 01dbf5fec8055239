"""Fine-tuning: it begins with the trial's encoder, learns, and survives what a trial survives."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.errors import UserError
from lmim.evaluate.finetune import finetune
from lmim.loading import load_trial
from lmim.replay import replay
from lmim.train.loop import train
from lmim.trial.evaluation import Evaluation, read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.standing import standing
from tests.evaluate.builders import frozen, nothing
from tests.trial.leavings import series, weights

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 512},
    "encoder": {"patch_size": 2, "width": 16, "depth": 2, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 1, "batch_size": 64, "base_lr": 1e-2},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 3, "checkpoint_seconds": 0.0},
}


def tiny(**changes: Any) -> Config:
    return Config.read(merge(TINY, {key.replace("__", "."): value for key, value in changes.items()}))


def tuning(**settings: Any) -> tuple[Evaluation, ...]:
    return read_evaluations([{"finetune": {"epochs": 2, "batch_size": 32, "recipe": "plain"} | settings}])


def trained(root: Path, config: Config) -> TrialFolder:
    folder = TrialFolder(root, config.identity)
    assert train(config, folder).status == "done"
    return folder


def place(folder: TrialFolder) -> TrialFolder:
    """Where a trial is fine-tuned."""
    [path] = (path for path in (folder.path / "evaluations").iterdir() if path.is_dir())
    return TrialFolder(path.parent, path.name)


UNREAD = {"latent_mim": (), "pixel_mim": ("projector",), "supervised": ("projector", "decoder")}


@pytest.mark.parametrize("objective", UNREAD)
def test_it_begins_with_the_trials_encoder(objective: str, tmp_path: Path) -> None:
    """Other position codes, or fresh blocks, would make the figure one of no pretraining."""
    read = {key: value for key, value in TINY.items() if key not in UNREAD[objective]}
    config = Config.read(read | {"objective": objective})
    folder = trained(tmp_path, config)
    state = train(config, folder, tuning(base_lr=1e-12, epochs=1))
    assert state.status == "done"
    before, after = load_trial(folder.path), load_trial(place(folder).path)
    assert after.config.objective == "supervised"
    assert after.config.section("encoder") == config.section("encoder")
    head = weights(place(folder))["head.weight"]
    assert head.std().item() == pytest.approx(2e-5, rel=0.2), "MAE's"
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(after.encoder.features(images), before.encoder.features(images))


def test_it_learns_the_classes_and_replays(tmp_path: Path) -> None:
    """A classifier that is not trained, or an encoder that is frozen, would pass for fine-tuned."""
    config = tiny()
    folder = trained(tmp_path, config)
    before = folder.checkpoint.read_bytes(), folder.journal.read_bytes()
    asked = tuning(base_lr=0.05, epochs=12, batch_size=16, layer_decay=1.0)
    train(config, folder, asked)
    assert standing(folder, asked).status == "done"
    [result] = folder.results()
    assert result.error == ""
    [figure] = result.metrics.values()
    assert figure > 30
    assert (folder.checkpoint.read_bytes(), folder.journal.read_bytes()) == before
    tuned = load_trial(place(folder).path)
    images, _ = open_dataset(config.data).test.read(torch.arange(4), 8)
    with torch.no_grad():
        moved = tuned.encoder.features(images.float()) - load_trial(folder.path).encoder.features(
            images.float()
        )
    assert moved.abs().max() > 0.01
    assert replay(folder).difference == ""


def _until_killed(config: Config, folder: TrialFolder, asked: tuple[Evaluation, ...]) -> None:
    def stop() -> bool:
        if any(folder.path.glob("evaluations/*/journal.jsonl")) and place(folder).state().step >= 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train(config, folder, asked, stop=stop)


def test_a_killed_fine_tuning_goes_on_bit_identically(tmp_path: Path) -> None:
    """A preempted judgement of a day would begin anew, or end with another figure."""
    config, asked = tiny(), tuning(recipe="mae")
    whole, killed = (trained(tmp_path / name, config) for name in ("whole", "killed"))
    train(config, whole, asked)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmim.train.loop"])
    process = context.Process(target=_until_killed, args=(config, killed, asked))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not killed.results()
    assert train(config, killed, asked).status == "done"
    first, second = weights(place(whole)), weights(place(killed))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert series(place(whole)) == series(place(killed))
    assert [one.metrics for one in whole.results()] == [one.metrics for one in killed.results()]


def test_a_stopped_one_is_gone_on_with(tmp_path: Path) -> None:
    """Ctrl-C would wait for a hundred epochs, or lose them."""
    config, asked = tiny(), tuning()
    folder = trained(tmp_path, config)

    def stop() -> bool:
        return any(folder.path.glob("evaluations/*/journal.jsonl")) and place(folder).state().step >= 6

    train(config, folder, asked, stop=stop)
    assert not folder.results()
    assert standing(folder, asked).status == "trained"
    assert (state := place(folder).state()).status == "interrupted"
    assert 6 <= state.step < state.steps
    train(config, folder, asked)
    assert standing(folder, asked).status == "done"
    assert place(folder).state().rewinds > state.rewinds


def test_a_lost_checkpoint_is_begun_from_the_encoder(tmp_path: Path) -> None:
    """What was to be fine-tuned would be trained from scratch, under the same name."""
    config, asked = tiny(), tuning(base_lr=1e-12, epochs=1)
    folder = trained(tmp_path, config)
    train(config, folder, asked)
    [result] = folder.results()
    checkpoint = place(folder).checkpoint
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    for file in folder.path.glob("evaluations/*.json"):
        file.unlink()
    train(config, folder, asked)
    assert [one.metrics for one in folder.results()] == [result.metrics]
    kept = load_trial(folder.path).encoder.state_dict()
    assert torch.allclose(weights(place(folder))["encoder.embed.weight"], kept["encoder.embed.weight"])


def test_several_processes_agree_with_one(tmp_path: Path) -> None:
    """Each process but the first would begin with weights of its own."""
    one, two = tiny(optim__accumulate=2), tiny(optim__accumulate=2, run__processes=2)
    asked = tuning(batch_size=64, epochs=1)
    folders = [trained(tmp_path / name, one) for name in ("one", "two")]
    for config, folder in zip((one, two), folders, strict=True):
        assert train(config, folder, asked).status == "done"
        assert [result.error for result in folder.results()] == [""]
    first, second = (weights(place(folder)) for folder in folders)
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, second[key], rtol=1e-3, atol=1e-5)


def test_what_cannot_be_fine_tuned_is_said(tmp_path: Path) -> None:
    """A baseline of pixels would fail a sweep."""
    [asked] = tuning()
    assert not asked.applies(Config.read({"objective": "raw_pixels"}))
    assert asked.applies(tiny())
    with pytest.raises(UserError, match="needs a trial"):
        finetune(frozen(nothing(4), nothing(4), 2))
