"""Tokenizers: fitted once, shared by what is alike and by nothing else, and then part of the trial."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lmim import survey, tokenizer
from lmim.axes.collapse import KMeans, Tokens, read_ids
from lmim.axes.mask import patchify
from lmim.config import TOKENS, Config, merge
from lmim.data import open_dataset
from lmim.data.augment import crop, normalise
from lmim.errors import UserError
from lmim.loading import load_trial
from lmim.plan import tokenizers
from lmim.replay import replay
from lmim.tokenizer import ensure
from lmim.train.batches import batches
from lmim.train.loop import Run, train
from lmim.trial.evaluation import read_evaluations
from lmim.trial.folder import TrialFolder
from tests.plan.conftest import Folder
from tests.sweep.running import arguments, folders, reported, run
from tests.trial.leavings import series, weights

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 240},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "mask": {"similarity": 0.0},
    "loss": {"kind": "cross_entropy"},
    "optim": {"epochs": 3, "batch_size": 20, "accumulate": 2, "base_lr": 1e-2, "warmup_epochs": 0.5},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 2, "checkpoint_seconds": 0.0},
}
SMALL: dict[str, dict[str, Any]] = {"kmeans": {"codes": 8}, "fsq": {"levels": "3x2"}}
KNN = read_evaluations(["knn"])


def tiny(kind: str = "kmeans", **changes: Any) -> Config:
    target = {"collapse": {"kind": kind, **SMALL[kind]}}
    more = {key.replace("__", "."): value for key, value in changes.items()}
    found = Config.read(merge(merge(TINY, target), more))
    version = open_dataset(found.data).version
    return found.model_copy(update={"data": found.data.model_copy(update={"version": version})})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizer, "STEPS", 30)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of sweep files."""
    (tmp_path / "files").mkdir()
    return Folder(tmp_path / "files")


PLANTED = """
import numpy as np
from lmim.data.splits import from_arrays

def planted(data):
    \"\"\"Images of four patches, each one of five shades, with a little noise.\"\"\"
    random = np.random.default_rng(0)
    arrays = {}
    for split, images in (("train", 200), ("val", 50), ("test", 50)):
        shades = 50 * random.integers(0, 5, (images, 2, 2))
        noise = random.integers(0, 3, (images, 1, 8, 8))
        arrays[f"{split}_images"] = (shades.repeat(4, 1).repeat(4, 2)[:, None] + noise).astype(np.uint8)
        arrays[f"{split}_labels"] = np.zeros(images, np.int64)
    return from_arrays(data, "planted-1", arrays, classes=1, flips=False)
"""


def test_kmeans_finds_planted_clusters(cache: Path) -> None:
    """Tokens of noise cannot be learned, and in every ablation they would lose unfairly."""
    tree = merge(TINY, {"collapse": {"kind": "kmeans", "codes": 5}, "encoder.patch_size": 4})
    tree = merge(tree, {"data": {"name": "planted.py:planted", "train_images": None}, "mask.ratio": 0.5})
    config = Config.read(tree | {"sources": {"planted.py": PLANTED}})
    dataset = open_dataset(config.data, config.sources)
    [folder] = ensure([config])
    about = json.loads((folder / tokenizers.ABOUT).read_text())
    assert about["figures"]["used"] == about["figures"]["codes"] == 5
    assert about["figures"]["perplexity"] == pytest.approx(5, rel=0.1)
    assert about["figures"]["error"] < 1e-3
    target = tokenizer.target_of(config, dataset)
    assert isinstance(target, KMeans)
    target.prepare(config, dataset, resumed=False)
    shades = (torch.arange(5) * 50 + 1) / 255
    flat = ((shades - dataset.mean[0]) / dataset.std[0])[:, None].expand(-1, 16)
    assert sorted(target.ids(flat).tolist()) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(target.decode(target.ids(flat)), flat, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", SMALL)
def test_what_is_alike_shares_a_tokenizer_and_nothing_else_does(kind: str) -> None:
    """A seed with codes of its own is another arm; a shared one of other data is a wrong one."""
    one = tokenizers.place(tiny(kind), "v1")
    alike: list[dict[str, Any]] = [{"seed": 4}, {"optim__epochs": 9}, {"decoder": "self_attention"}]
    alike += [{"encoder__width": 32}, {"mask__ratio": 0.5}, {"data__crop_scale": 1.0}]
    for change in alike:
        assert tokenizers.place(tiny(kind, **change), "v1") == one, change
    assert tokenizers.place(tiny(kind), "v2") != one
    unlike: list[dict[str, Any]] = [{"data__train_images": 200}, {"encoder__patch_size": 4}]
    unlike += [{"data__image_size": 16, "encoder__patch_size": 2}]
    for change in unlike:
        assert tokenizers.place(tiny(kind, **change), "v1") != one, change


@pytest.mark.parametrize(
    ("kind", "change"), [("kmeans", {"collapse__codes": 9}), ("fsq", {"collapse__levels": "2x3"})]
)
def test_another_setting_is_another_tokenizer(kind: str, change: dict[str, Any]) -> None:
    """Two arms of an ablation of the codes would be one."""
    assert tokenizers.place(tiny(kind), "v1") != tokenizers.place(tiny(kind, **change), "v1")


def test_fsq_learns_its_patches_and_leaves_no_training_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of an autoencoder that has not learned are tokens of nothing."""
    monkeypatch.setattr(tokenizer, "STEPS", 300)
    [folder] = ensure([tiny("fsq", collapse__levels="5x5x5")])
    found = json.loads((folder / tokenizers.ABOUT).read_text())["figures"]
    assert found["error"] < 0.25
    assert found["used"] > 25
    assert not [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]


@pytest.mark.parametrize("levels", ["8", "8x1", "8 6 5", "x", ""])
def test_levels_that_make_no_code_are_refused(levels: str) -> None:
    """A traceback out of the model, for each trial, instead of a line that names the key."""
    if levels == "8":
        assert tiny("fsq", collapse__levels=levels).section("collapse").levels == "8"
        return
    with pytest.raises(ValueError, match=r"collapse\.levels: expected the levels of each part"):
        tiny("fsq", collapse__levels=levels)
    with pytest.raises(ValueError, match=r"fsq\.levels: expected the levels of each part"):
        Config.read({"objective": "fsq", "fsq": {"levels": levels}})


def test_another_code_is_another_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that is mended in the fit would live on in the cache."""
    before = tokenizers.place(tiny(), "v1")
    monkeypatch.setattr(tokenizers, "code_digest", lambda: "another")
    assert tokenizers.place(tiny(), "v1") != before


@pytest.mark.parametrize("kind", SMALL)
def test_a_fit_is_the_same_each_time(
    kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A trial that is replayed, or run on another machine of the kind, would have other targets."""
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("LMIM_CACHE", str(tmp_path / name))
        [folder] = ensure([tiny(kind), tiny(kind, seed=1)])
        found.append(load_file(folder / tokenizers.WEIGHTS))
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        assert torch.equal(tensor, found[1][key]), key


ENSURED = """
import sys
from pathlib import Path
from lmim import tokenizer
from lmim.config import Config
fit = tokenizer.FITS["kmeans"]
def counted(config, dataset):
    with Path(sys.argv[1]).open("a") as file:
        file.write("fitted ")
    return fit(config, dataset)
tokenizer.FITS["kmeans"] = counted
print(tokenizer.ensure([Config.read_json(sys.argv[2])])[0])
"""


def test_processes_that_start_together_fit_it_once(cache: Path, tmp_path: Path) -> None:
    """Eight trials on a machine would each fit it before their first step, or read half a file."""
    words = [sys.executable, "-c", ENSURED, str(tmp_path / "count"), tiny().model_dump_json()]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in started}
    assert printed == {f"{tokenizers.folder(tiny(), tiny().data.version)}\n"}
    assert (tmp_path / "count").read_text() == "fitted "


def test_what_is_not_fitted_names_the_command(cache: Path, tmp_path: Path) -> None:
    """Its reader would see a file that is missing somewhere in a cache."""
    with pytest.raises(
        UserError, match=r"kmeans codes=8 of digits.* is not fitted .*python -m lmim\.tokenizer"
    ):
        train(tiny(), TrialFolder(tmp_path, tiny().identity))


KILLED = """
import os, signal, sys
from pathlib import Path
from lmim.train.loop import train
from lmim.trial.folder import TrialFolder
folder = TrialFolder(Path(sys.argv[1]), sys.argv[2])
def report(step, metrics):
    if step >= 8:
        os.kill(os.getpid(), signal.SIGKILL)
train(folder.config(), folder, report=report)
"""


@pytest.mark.parametrize("kind", SMALL)
def test_a_killed_trial_goes_on_without_the_cache(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preempted trial that lands on another machine would get other targets for its second half."""
    config = tiny(kind)
    ensure([config])
    whole, killed = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "killed"))
    state = train(config, whole, KNN)
    assert (state.status, state.outcome) == ("done", "learned")
    killed.create(config)
    words = [sys.executable, "-c", KILLED, str(killed.root), killed.id]
    assert subprocess.run(words, timeout=120, check=False).returncode == -signal.SIGKILL
    assert killed.checkpoint.exists()
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path / "empty"))
    assert train(config, killed, KNN).status == "done"
    first, second = weights(whole), weights(killed)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert series(whole) == series(killed)
    assert load_trial(killed.path).encoder.features(torch.randn(2, 1, 8, 8)).shape == (2, 16)
    assert replay(killed).difference == ""  # which fits it anew


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_processes_share_a_step_without_changing_it(kind: str, cache: Path, tmp_path: Path) -> None:
    """Each process must have the tokenizer, or the number of GPUs is another axis of every ablation."""
    ensure([tiny(kind)])
    journals = []
    for processes in (1, 2):
        config = tiny(kind, run__processes=processes, optim__epochs=1)
        folder = TrialFolder(tmp_path / str(processes), config.identity)
        assert train(config, folder).status == "done"
        journals.append(series(folder))
    for ours, theirs in zip(*journals, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tokens_are_learned(kind: str, precision: str, cache: Path) -> None:
    """A decoder of the wrong width, or a loss of the wrong patches, would stay at chance."""
    config = tiny(kind, optim__epochs=10, optim__precision=precision)
    ensure([config])
    run = Run(config, open_dataset(config.data), torch.device("cpu"))
    losses = []
    for step in batches(run.dataset.train, config, run.objective, 0, run.steps):
        run.step(step)
        losses.append(run.training_metrics()["train/loss"])
    assert sum(losses[-6:]) < 0.93 * sum(losses[:6])
    [target] = [part for part in run.objective.modules() if isinstance(part, Tokens)]
    assert not [name for name, one in target.named_parameters() if one.requires_grad]


@pytest.mark.parametrize("kind", SMALL)
def test_a_plan_prices_it_before_it_is_fitted(kind: str, cache: Path) -> None:
    """`--dry-run` would fit a tokenizer to say what a trial costs, or fail."""
    assert survey.flops(tiny(kind), channels=1, classes=10)["step"] > 0
    assert not (cache / "tokenizers").exists()


HEAD = "name: tok\nquestion: does it run?\nmetric: knn_top1\naxes: {collapse.codes: [4, 8]}\nseeds: [0]\n"
BASE = "base: base.yaml\n"


def sweep_file(folder: Path) -> Path:
    (folder / "scales").mkdir()
    (folder / "scales" / "demo.yaml").write_text("{}\n")
    (folder / "base.yaml").write_text("collapse: kmeans\nloss: cross_entropy\nmask: {similarity: 0.0}\n")
    file = folder / "tok.yaml"
    file.write_text(HEAD + BASE)
    return file


def test_a_sweep_fits_what_its_trials_need(cache: Path, tmp_path: Path) -> None:
    """A second command before each sweep would be forgotten, and its trials all fail."""
    file = sweep_file(tmp_path)
    planned = run(arguments(file, "--dry-run"))
    assert planned.count("will be fitted first") == 2
    printed = run(arguments(file, "--serial"))
    assert printed.count("codes used, perplexity") == 2
    assert [folder.state().status for folder in folders(file)] == ["done"] * 2, printed
    assert (reported(file) / "report.html").is_file()
    assert len([*(cache / "tokenizers").glob("kmeans-*")]) == 2
    more = run(arguments(file, "--dry-run", "--seeds", "1"))
    assert more.count("is there") == 2


def test_the_command_prints_how_good_a_tokenizer_is(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its user would not see that all patches have one code."""
    words = [word for word in arguments(sweep_file(tmp_path)) if word != "--out"]
    del words[1]  # the folder of results, which it has not
    assert tokenizer.main(words) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "tokenizer kmeans codes=4 of digits, 8 px in patches of 2 px: 4 of 4 codes used, "
    )
    assert "perplexity" in second
    assert str(cache) in second
    assert tokenizer.main([words[0], "--set", "collapse.codes=1000000", *words[1:]]) == 2
    assert "collapse.codes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        ({"loss": "mse"}, "mse compares numbers, and collapse kmeans gives ids"),
        ({"collapse": "ema"}, "cross_entropy compares with ids, and the target is ema"),
        ({"mask.similarity": 0.1}, "0.1 constrains the predicted latents"),
        ({"objective": "pixel_mim"}, "cross_entropy compares with ids, and the target is pixels"),
    ],
)
def test_what_tokens_do_not_go_with_is_said_when_planned(change: dict[str, Any], blamed: str) -> None:
    """Every trial of the arm would fail at its first step, or minimise something without a meaning."""
    tree = merge(TINY, {"collapse": "kmeans"})
    tree = merge(tree, change)
    if "objective" in change:
        tree = {k: v for k, v in tree.items() if k not in ("collapse", "projector", "mask")}
    with pytest.raises(ValueError, match=blamed):
        Config.read(tree)


def test_every_token_target_is_held_to_this() -> None:
    """One that is not in `SMALL` would be held to nothing."""
    assert {*SMALL} == {*tokenizers.FITTED}
    assert {*SMALL} | {"ids"} == {*TOKENS}


# ---------------------------------------------------------------------------- ids computed elsewhere


def write_ids(folder: Path, table: NDArray[Any], patch_size: int = 2, codes: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "train.npy", table)
    (folder / "tokens.json").write_text(json.dumps({"patch_size": patch_size, "codes": codes}))
    return folder


def elsewhere(folder: Path, **changes: Any) -> Config:
    target = {"kind": "ids", "path": str(folder), "codes": 8}
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return Config.read(merge(merge(TINY, {"collapse": target, "data.crop_scale": 1.0}), more))


def own_ids(images: int = 240) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 8, (images, 16), dtype=np.uint8)


def test_each_image_gets_its_own_ids(tmp_path: Path) -> None:
    """Ids of another image, or of another patch, are noise that no figure tells from a hard task."""
    config = Config.read({**elsewhere(tmp_path).model_dump(), "collapse": {"kind": "kmeans", "codes": 8}})
    ensure([config])
    dataset = open_dataset(config.data)
    target = tokenizer.target_of(config, dataset)
    target.prepare(config, dataset, resumed=False)
    images, boxes = dataset.train.read(torch.arange(240), 8)
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    table = target.ids(patchify(normalise(crop(images, boxes, 8), mean, std), 2))
    theirs = elsewhere(write_ids(tmp_path / "ids", table.numpy()))
    found = []
    for one in (config, theirs):  # the same ids, by the tokenizer and from the folder
        run = Run(one, dataset, torch.device("cpu"))
        for step in batches(dataset.train, one, run.objective, 0, 4):
            run.step(step)
        found.append(run.training_metrics())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_ids_are_part_of_the_trial_and_where_they_lie_is_not(tmp_path: Path, folder: Folder) -> None:
    """Two tokenizers compared under one identity would be one arm; a moved folder would train all again."""
    places = [write_ids(tmp_path / name, own_ids() + add) for name, add in (("a", 0), ("b", 0), ("c", 1))]
    (places[2] / "tokens.json").write_text('{"patch_size": 2, "codes": 9}')
    ids = [
        folder.load(IDS.format(path=path, codes=codes)).trials[0].id
        for path, codes in zip(places, (8, 8, 9), strict=True)
    ]
    assert ids[0] == ids[1] != ids[2]
    config = folder.load(IDS.format(path=places[0], codes=8)).trials[0].config
    assert len(config.section("collapse").version) == 12
    assert Config.read_json(config.model_dump_json()) == config


IDS = """
config:
  data: {{name: digits, image_size: 8, train_images: 240, crop_scale: 1.0}}
  encoder: {{patch_size: 2, width: 16, heads: 2}}
  mask: {{similarity: 0.0}}
  collapse: {{kind: ids, path: {path}, codes: {codes}}}
axes: {{loss: [cross_entropy]}}
"""


def test_ids_that_do_not_fit_are_refused_when_planned(tmp_path: Path, folder: Folder) -> None:
    """Ids of other patches would be learned, and the arm reported as what it is not."""
    path = write_ids(tmp_path / "ids", own_ids())
    text = IDS.format(path=path, codes=8)
    said = "sweep.yaml:8: collapse.path: "
    assert folder.error(IDS.format(path="/nowhere", codes=8)).startswith(f"{said}expected a folder with ids")
    for change, wrong in (
        (("patch_size: 2", "patch_size: 4"), "ids of patches of 2 px, and encoder.patch_size is 4"),
        (("train_images: 240", "train_images: 200"), "ids of 240 images, and digits has 200 to train on"),
        (("codes: 8", "codes: 9"), "collapse.codes is 9, and the ids of collapse.path are of 8 codes"),
        (("crop_scale: 1.0", "crop_scale: 0.5"), "0.5 crops training views"),
        (("crop_scale: 1.0", "crop_scale: 1.0, flip: true"), "true mirrors training views"),
        (("similarity: 0.0", "similarity: 0.0, gap: 1"), "1 shifts patches in their cells"),
    ):
        told = folder.error(text.replace(*change))
        assert wrong in told
        assert told.startswith("sweep.yaml:")
    moved = text.replace("config:", "config:\n  objective: supervised_mim\n  supervised_mim: {mixup: 0.8}")
    assert "0.8 moves or mixes views" in folder.error(
        moved.replace("mask: {similarity: 0.0}", "mask: {gap: 0}")
    )
    for spoil, wrong in (
        (lambda: np.save(path / "train.npy", own_ids() + 1), "expected ids from 0 to 7"),
        (lambda: np.save(path / "train.npy", own_ids() / 2), "expected whole numbers"),
        (lambda: (path / "tokens.json").write_text('{"patch_size": 2}'), "cannot be read: KeyError: 'codes'"),
        (lambda: (path / "train.npy").unlink(), "train.npy, found none"),
    ):
        spoil()
        assert wrong in folder.error(text)


def test_a_trial_of_ids_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The ids are in no checkpoint: whoever goes on must read them again, and they must be the same."""
    config = elsewhere(write_ids(tmp_path / "ids", own_ids()))
    version = read_ids(str(tmp_path / "ids"))[1]
    collapse = config.section("collapse").model_copy(update={"version": version})
    config = config.model_copy(update={"collapse": collapse})
    whole, killed = (TrialFolder(tmp_path / name, config.identity) for name in ("whole", "killed"))
    assert train(config, whole).status == "done"
    killed.create(config)
    words = [sys.executable, "-c", KILLED, str(killed.root), killed.id]
    assert subprocess.run(words, timeout=120, check=False).returncode == -signal.SIGKILL
    assert train(config, killed).status == "done"
    first, second = weights(whole), weights(killed)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert survey.flops(config, channels=1, classes=10)["step"] > 0
    np.save(tmp_path / "ids" / "train.npy", own_ids()[::-1])
    with pytest.raises(UserError, match="run the sweep again"):
        train(config, TrialFolder(tmp_path / "later", config.identity))
