"""The bench, run for real but short; what it writes is what the estimates read."""

import importlib.util
import json
import os
import sys
from concurrent.futures import Future
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import Block

from lmim import bench, variants
from lmim.errors import UserError
from lmim.plan import cost, facts
from lmim.sweep import crowd
from lmim.trial.folder import TrialFolder

pytestmark = pytest.mark.timeout(900)  # the first run draws data and builds every objective


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run."""
    out = tmp_path_factory.mktemp("quick") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        assert bench.main(["--quick", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def record(quick: Path) -> dict[str, Any]:
    """What it wrote."""
    read: dict[str, Any] = json.loads((quick / "bench.json").read_text())
    return read


def test_speeds_are_those_of_real_steps(record: dict[str, Any]) -> None:
    """Otherwise the figures are of something else than the trainer, or of nothing."""
    assert [(one["precision"], one["compile"]) for one in record["training"]] == [
        ("float32", False),
        ("bfloat16", False),
    ]
    for entry in record["training"]:
        speed = entry["images_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert entry["flops_per_second"] == pytest.approx(
            speed["median"] * entry["flops_per_image"], rel=0.01
        )
    flops = cost.works([config := bench.config_of("demo", "cpu")])[config.arm].step
    assert record["training"][0]["flops_per_image"] == pytest.approx(flops, rel=0.001)


def test_every_objective_is_timed(record: dict[str, Any]) -> None:
    """Otherwise nobody sees one become slow, nor what its arm costs beside the others."""
    untimed = {"raw_pixels", "fsq"}  # which learns nothing, and which is fitted before any trial
    assert {one["objective"] for one in record["objectives"]} == {*variants.choices("objective")} - untimed
    for entry in record["objectives"]:
        speed = entry["images_per_second"]["median"]
        assert entry["flops_per_second"] == pytest.approx(speed * entry["flops_per_image"], rel=0.01)
        assert entry["flops_per_second"] > 1e8


MODEL = """
import numpy as np
import torch
from timm.models.vision_transformer import Block


class MaskedAutoencoderViT(torch.nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, norm_layer, **rest):
        super().__init__()
        self.grid = np.arange(3, dtype=np.float)
        self.block = Block(embed_dim, num_heads, 4.0, qkv_bias=True, qk_scale=None, norm_layer=norm_layer)

    def forward(self, images, mask_ratio):
        return self.block(images.flatten(2)[:, :2, :192]).mean(), None, None
"""


def test_maes_own_model_is_timed_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a user's clone, written for older libraries, ends in a traceback, and no ratio is known."""
    with pytest.raises(UserError, match="expected a clone of"):
        bench.against_mae(tmp_path, 1, 0.0)
    (tmp_path / "models_mae.py").write_text(MODEL)
    monkeypatch.delitem(sys.modules, "models_mae", raising=False)
    found = bench.against_mae(tmp_path, 1, 0.0)
    ours, theirs = (found[f"{name}_images_per_second"]["median"] for name in ("ours", "theirs"))
    assert found["ratio"]["median"] == pytest.approx(ours / theirs)
    assert not hasattr(np, "float")
    assert Block.__init__ is timm.models.vision_transformer.Block.__init__


@pytest.mark.slow
def test_block_by_block_takes_less_memory() -> None:
    """Memory is the whole point of training block by block."""
    one, two, four = (entry["step_mib"] for entry in bench.block_memory("cpu"))
    assert four < two < 0.95 * one


def test_trials_at_once_are_added_up(record: dict[str, Any]) -> None:
    """Otherwise one cannot tell how many trials at once pay off, or what memory they need."""
    one, two = record["at_once"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["images_per_second_sum"] == pytest.approx(2 * two["images_per_second"]["median"], rel=0.01)
    assert one["evaluation_images"] == 2000
    assert 100 < two["peak_rss_mib"] < 4000


@pytest.mark.slow
def test_what_judging_takes_is_measured_of_real_protocols() -> None:
    """Otherwise the memory that ImageNet needs is that of a protocol that failed, or of another process."""
    found = bench.judging("cpu", train=600, judged=300, width=16)
    assert [one["error"] for one in found] == [None] * len(bench.OF_ALL_IMAGES)
    assert all(one["seconds"] > 0 for one in found)
    assert all(100 < one["peak_rss_mib"] < 8192 for one in found)


def test_a_dry_run_reads_what_the_bench_wrote(quick: Path) -> None:
    """Otherwise the bench was run for nothing: the estimate stands on another machine's record."""
    (name, record), *_ = cost.read_records(quick)
    assert (name, record["format"]) == ("results/bench.json", cost.FORMAT)
    config = bench.config_of("demo", "cpu")
    found = cost.estimate([cost.Missing(config, 10)], [], cost.Machine(1, 0), [(name, record)])
    assert found is not None
    speed = record["training"][0]["images_per_second"]["median"]
    assert found.wall_seconds == pytest.approx(10 * 156 * 128 / speed, rel=0.5)


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the bench ends in a traceback on a machine that has no C++ compiler."""

    def compile_fails(function: Any) -> Any:
        def forward(*_: Any) -> None:
            raise RuntimeError("no working compiler found")

        return forward

    monkeypatch.setattr(torch, "compile", compile_fails)
    (entry,) = bench.training("demo", "cpu", [("float32", True)], 1, 0.1)
    assert entry["images_per_second"] is None
    assert entry["unavailable"] == "RuntimeError"


def test_a_sweep_is_timed_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the efficiency is not that of the command which users wait for."""
    ran: list[list[str]] = []

    def command(words: list[str]) -> float:
        """In place of the command: two slots, four trials of ten seconds with judging, two in between."""
        root = Path(words[words.index("--out") + 1]) / "trials"
        for number, start in enumerate((100, 100, 112, 112) if not ran else ()):
            folder = TrialFolder(root, str(number))
            folder.update(status="done", started=start, finished=start + 8)
            judged = folder.path / "evaluations" / "nn-00000000.json"
            judged.parent.mkdir()
            judged.touch()
            os.utime(judged, (start + 10, start + 10))
        ran.append(words)
        return 25.0

    monkeypatch.setattr(bench, "_command", command)
    monkeypatch.setattr(bench, "open_dataset", lambda data: None)
    found = bench.sweep(workers=2, per_worker=2)
    assert ran[0] == ran[1]
    assert "0,1,2,3" in ran[0]
    assert found["efficiency"] == pytest.approx(40 / (2 * 25))
    assert found["efficiency_while_trials_run"] == pytest.approx(40 / (2 * 22))
    assert found["gap_between_trials_seconds"]["median"] == 2


def test_a_gpu_machine_without_ray_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a machine that only trains cannot be measured, or its GPU is not."""
    asked: list[tuple[Any, ...]] = []

    def part(*words: Any) -> list[Any]:
        asked.append(words[:3])
        return []

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "machine", lambda: {"gpu": "one", "cores": 8})
    monkeypatch.setattr(bench, "training", part)
    monkeypatch.setattr(bench, "at_once", part)
    monkeypatch.setattr(bench, "each_objective", part)
    monkeypatch.setattr(bench, "block_memory", part)
    monkeypatch.setattr(bench, "sweep", lambda *_: pytest.fail("Ray is not there"))
    assert bench.measure(quick=False, skip=[])["sweep"] is None
    assert ("demo", "cpu", 8) in asked
    assert ("gpu", "cuda", 4) in asked
    assert ("cuda",) in asked
    assert ("paper", "cuda", [("bfloat16", False), ("bfloat16", True)]) in asked


@pytest.mark.parametrize(("scale", "side"), [("gpu", 64), ("paper", 224)])
def test_noise_has_the_shape_of_each_scale(scale: str, side: int) -> None:
    """Otherwise the GPU's part of the bench, which few machines run, measures another model or fails."""
    config = bench.config_of(scale, "cpu")
    data = bench.noise(config, size := facts.data_of(config))
    images, boxes = data.train.read(torch.tensor([0, len(data.train) - 1]), side)
    assert images.shape == (2, data.channels, side, side)
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert len(data.train) == len(data.train.labels) == size.train
    assert len(data.test) == size.test


def test_more_trials_than_fit_are_told_from_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the bench dies where the GPU's memory ends, or hides a defect as a full memory."""

    class Pool:
        """Runs at once, in this process."""

        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, *_: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(errors.pop())
            return future

    monkeypatch.setattr(crowd, "ProcessPoolExecutor", Pool)
    errors: list[Exception] = [torch.OutOfMemoryError(), BrokenBarrierError()]
    full = bench.at_once("demo", "cpu", 2, 0.1, 10)
    assert (full["images_per_second"], full["unavailable"]) == (None, "out of memory")
    errors = [BrokenBarrierError(), RuntimeError("a defect")]
    with pytest.raises(RuntimeError, match="a defect"):
        bench.at_once("demo", "cpu", 2, 0.1, 10)
