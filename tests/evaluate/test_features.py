"""The features that protocols share: whole, in order, of constant memory, and gone afterwards."""

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from lmim.evaluate.features import BATCH, Frozen, Labelled, chosen, freeze, sampled
from tests.evaluate.builders import DIGITS, flat, model


def digits() -> Frozen:
    return freeze(model(), ["test"])["test"]


def test_features_are_those_of_the_images_in_order() -> None:
    """A row shifted against its label would bring every protocol to chance."""
    frozen = digits()
    for split, part in ((DIGITS.train, frozen.train), (DIGITS.test, frozen.judged)):
        images, _ = split.read(torch.arange(len(split)), 8)
        expected = flat((images / 255 - DIGITS.mean[0]) / DIGITS.std[0])
        torch.testing.assert_close(part.features, expected)
        assert torch.equal(part.labels, split.labels)
        assert len(part) == len(split)
        batches = list(part.batches())
        assert [len(labels) for _, labels in batches[:-1]] == [BATCH] * (len(split) // BATCH)
        for got in (part.whole(), map(torch.cat, zip(*batches, strict=True))):
            features, labels = got
            assert torch.equal(features, part.features)
            assert torch.equal(labels, split.labels)


def test_a_protocol_cannot_spoil_the_features_of_the_next() -> None:
    """One that normalises in place would change the figures of all that are listed after it."""
    frozen = digits()
    before = frozen.train.features.clone()
    for features, labels in [*frozen.train.batches(), frozen.train.whole()]:
        features.zero_()
        labels.zero_()
    assert torch.equal(frozen.train.features, before)
    assert torch.equal(frozen.train.labels, DIGITS.train.labels)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes of every stopped trial would fill the disk, and nobody would know what they are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    calls: list[int] = []

    def stopping(x: Tensor) -> Tensor:
        calls.append(len(list(tmp_path.iterdir())))
        if len(calls) > 4:
            raise KeyboardInterrupt
        return flat(x)

    opened = psutil.Process().num_fds()
    with pytest.raises(KeyboardInterrupt):
        freeze(model(stopping), ["test"])
    assert digits().finite()
    assert calls == [0] * 5
    assert not list(tmp_path.iterdir())
    assert psutil.Process().num_fds() <= opened


@pytest.mark.parametrize("spoilt", ["train", "judged"])
def test_one_feature_that_is_not_finite_is_seen(spoilt: str) -> None:
    """The last image of either split alone would pass for an encoder that did not diverge."""
    frozen = digits()
    assert frozen.finite()
    getattr(frozen, spoilt).features[-1, -1] = torch.inf
    assert not frozen.finite()


def test_a_sample_is_whole_batches_and_the_same_each_time() -> None:
    """An image encoded among others may differ in its last digit, and a replay would see a difference."""
    frozen = digits()
    sample = frozen.sample()
    assert (len(sample.train), len(sample.judged), sample.classes) == (957, 256, 10)
    for part, whole, count in ((sample.train, frozen.train, 1000), (sample.judged, frozen.judged, 250)):
        rows = chosen(len(whole), count)
        assert torch.equal(part.features, whole.features[rows])
        assert torch.equal(part.labels, whole.labels[rows])
        for batch in torch.split(rows, BATCH):
            assert batch[0] % BATCH == 0
            assert torch.equal(batch, torch.arange(len(batch)) + batch[0])
    assert chosen(20000, 300)[::256].tolist() == chosen(20000, 512)[::256].tolist()


def test_the_images_of_a_sample_can_be_read_alone() -> None:
    """Else another version of the code could be compared only by encoding everything again."""
    alone, sample = freeze(model(dataset=sampled(DIGITS)), ["test"])["test"], digits().sample()
    assert torch.equal(alone.train.features, sample.train.features)
    assert torch.equal(alone.judged.labels, sample.judged.labels)
    again = alone.sample()
    assert torch.equal(again.judged.features, alone.judged.features)


def test_features_of_another_precision_are_kept_as_float32() -> None:
    """bfloat16 cannot be put in the file, and would make cosines of two digits."""
    frozen = freeze(model(lambda x: flat(x).bfloat16()), ["test"])["test"]
    assert frozen.train.features.dtype is torch.float32
    assert torch.equal(frozen.judged.features, digits().judged.features.bfloat16().float())


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory is told apart from mapped files")
def test_memory_does_not_grow_with_the_training_set() -> None:
    """ImageNet's training features alone would take gigabytes; 250 MB of features pass through here."""
    program = """
import threading, time, torch
from lmim.data import Dataset
from lmim.data.augment import WHOLE
from lmim.evaluate import judge
from lmim.trial.evaluation import read_evaluations
torch.set_num_threads(1)
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024
class Images:
    def __init__(self, count):
        self.labels, self.aspect = torch.arange(count) % 10, torch.ones(count)
    def __len__(self):
        return len(self.labels)
    def read(self, indices, side, boxes=None):
        return indices.view(-1, 1, 1, 1).to(torch.uint8).expand(-1, 1, 2, 2), WHOLE.expand(len(indices), 4)
seen = []
def watch():
    while True:
        seen.append(resident())
        time.sleep(0.02)
def encode(x):
    return torch.randn(len(x), 64)
given = dict(name="t", version="1", channels=1, classes=10, mean=(0.5,), std=(0.2,), flips=False)
data = Dataset(**given, train=Images(1_000_000), val=Images(1), test=Images(50))
small = Dataset(**given, train=Images(20_000), val=Images(1), test=Images(50))
list(judge(encode, small, 2, read_evaluations()))
threading.Thread(target=watch, daemon=True).start()
before = resident()
list(judge(encode, data, 2, read_evaluations()))
print(max(seen) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40


def test_labels_and_features_lie_on_the_device_that_was_asked_for() -> None:
    """A batch left on the host would stop the evaluation on the first GPU machine."""
    part = Labelled(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), "meta")
    for features, labels in [part.whole(), *part.batches()]:
        assert features.device.type == labels.device.type == "meta"
