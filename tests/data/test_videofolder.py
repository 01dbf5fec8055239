"""Folders of clips: frames or videos, what is read of them, and what is refused."""

import shutil
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lmim.config import Config
from lmim.data import Dataset, open_dataset, videofolder
from lmim.data.splits import Clips
from lmim.errors import UserError

LENGTHS = (9, 5)
"""Of the clips of the two classes."""


def pixels(level: int, number: int) -> NDArray[np.uint8]:
    """A frame: its red tells the class, its green the place in the clip, its left half is black."""
    frame = np.zeros((24, 48, 3), np.uint8)
    frame[:, 24:] = (level, 20 * number, 0)
    return frame


def write_frames(folder: Path, level: int, length: int) -> None:
    folder.mkdir(parents=True)
    for number in range(length):
        Image.fromarray(pixels(level, number)).save(folder / f"{number:03}.png")


def write_video(file: Path, level: int, length: int) -> None:
    av = pytest.importorskip("av", reason="videos are read with PyAV, an extra")
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 24, "yuv444p"
        for number in range(length):
            frame = av.VideoFrame.from_ndarray(pixels(level, number), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_clips(root: Path, videos: bool, clips: int = 5) -> Path:
    for split in ("train", "val"):
        for level, length, name in zip((60, 200), LENGTHS, ("dark", "light"), strict=True):
            for number in range(clips):
                at = root / split / name / f"{number}"
                if videos:
                    write_video(at.with_suffix(".mkv" if number == 1 else ".mp4"), level, length)
                else:
                    write_frames(at, level, length)
    return root


def opened(root: Path, frames: int = 5) -> Dataset:
    tree = {"name": "videofolder", "path": str(root), "image_size": 12, "frames": frames}
    return open_dataset(Config.read({"data": tree}).data)


@pytest.mark.parametrize("videos", [False, True])
def test_frames_are_spread_over_each_clip(tmp_path: Path, videos: bool) -> None:
    """Clips of other lengths would be cut off, or a view would be of another time than was drawn."""
    data = opened(write_clips(tmp_path, videos))
    assert (data.frames, data.channels, data.classes) == (5, 3, 2)
    assert (len(data.train), len(data.val), len(data.test)) == (9, 1, 10)
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5
    assert data.test.aspect.tolist() == [2] * 10
    indices, times = torch.tensor([1, 6]), torch.tensor([[0, 4, 2], [3, 3, 1]])
    boxes = torch.tensor([0.5, 0.0, 0.5, 1.0]).repeat(2, 3, 1)
    boxes[1, 1] = torch.tensor([0.0, 0.0, 0.5, 1.0])
    images, whole = cast(Clips, data.test).read_clips(indices, 12, boxes, times)
    assert images.shape == (2, 3, 3, 12, 12)
    assert whole.tolist() == [[[0, 0, 1, 1]] * 3] * 2
    shown = images[:, :, :, 6, 6].float()
    nine = [[60, 0, 0], [60, 160, 0], [60, 80, 0]]  # of nine frames every second one
    five = [[200, 60, 0], [0, 0, 0], [200, 20, 0]]
    assert shown.numpy() == pytest.approx(np.array([nine, five]), abs=8 if videos else 0)


@pytest.mark.parametrize("videos", [False, True])
def test_a_clip_is_judged_by_its_middle_frame(tmp_path: Path, videos: bool) -> None:
    """Evaluation would see a frame that nobody named."""
    data = opened(write_clips(tmp_path, videos, clips=2))
    images, _ = data.test.read(torch.tensor([0, 3]), 12)
    assert images.shape == (2, 3, 12, 12)
    shown = images[:, :, 6, 10].float().numpy()
    assert shown == pytest.approx(np.array([[60, 80, 0], [200, 40, 0]]), abs=8 if videos else 0)
    whole = torch.tensor([[0.5, 0, 0.5, 1]] * 2)
    assert data.test.read(torch.tensor([0, 3]), 12, whole)[0][:, 0].float().std((1, 2)).max() < 10


def test_every_frame_once_where_a_clip_is_short(tmp_path: Path) -> None:
    """A clip of fewer frames than are asked for would end a run."""
    data = opened(write_clips(tmp_path, videos=False, clips=2), frames=9)
    boxes = torch.tensor([0.5, 0.0, 0.5, 1.0]).repeat(1, 9, 1)
    images, _ = cast(Clips, data.test).read_clips(torch.tensor([3]), 12, boxes, torch.arange(9)[None])
    assert images[0, :, 1, 6, 6].tolist() == [0, 0, 20, 40, 40, 40, 60, 80, 80]
    one = opened(tmp_path, frames=1)
    assert one.frames == 1
    assert one.test.read(torch.tensor([0]), 12)[0].shape == (1, 3, 12, 12)


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    """A clip with a broken frame, or without any, would end a run in its third hour."""
    root = write_clips(tmp_path, videos=False, clips=8)
    broken, empty = root / "train" / "dark" / "3", root / "train" / "light" / "0"
    (broken / "004.png").write_bytes(b"no image")
    shutil.rmtree(empty)
    empty.mkdir()
    with pytest.warns(UserWarning, match="2 of 32 clips cannot be read and are skipped"):
        data = opened(root)
    assert data.skipped == ("train/dark/3", "train/light/0")
    assert len(data.train) + len(data.val) == 14
    for number in range(4, 8):
        (root / "train" / "dark" / f"{number}" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"6 of 32 clips cannot be read, more than 1%"):
        opened(root)


def test_a_video_cut_off_is_named(tmp_path: Path) -> None:
    """FFmpeg raises errors of its own; one that is not foreseen would end the first look at a big set."""
    root = write_clips(tmp_path, videos=True, clips=3)
    files = [root / "train" / "dark" / name for name in ("0.mp4", "1.mkv")]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="of 12 clips cannot be read"):
        data = opened(root)
    assert "train/dark/0.mp4" in data.skipped
    later = root / "val" / "light" / "0.mp4"
    later.write_bytes(b"")
    with pytest.raises(UserError, match=r"val/light/0\.mp4: cannot be read any more") as caught:
        data.test.read(torch.arange(6), 12)
    assert "\n" not in str(caught.value)


def test_no_video_can_crash_the_reader(tmp_path: Path) -> None:
    """As above, of every kind of damage."""
    source = tmp_path / "x.mp4"
    write_video(source, 60, 5)
    good, rng = np.frombuffer(source.read_bytes(), np.uint8), np.random.default_rng(0)
    for _ in range(60):
        bad = good.copy()
        where = rng.integers(0, len(bad), rng.integers(1, 40))
        bad[where] = rng.integers(0, 256, len(where))
        source.write_bytes(bad[: rng.integers(1, len(bad) + 1)].tobytes())
        assert videofolder._look(source)[0] >= 0


def test_a_flat_folder_has_a_test_held_out(tmp_path: Path) -> None:
    """The layout that most people have would fail, or be tested on what it was trained on."""
    for name, count in (("run", 10), ("walk", 5)):
        for number in range(count):
            write_frames(tmp_path / name / f"{number}", 10 * number, 2)
    data = opened(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (11, 1, 3)
    assert data.test.labels.tolist() == [0, 0, 1]


def test_the_version_follows_every_frame_and_not_the_place(tmp_path: Path) -> None:
    """A frame mended in the middle of a study would be averaged with what it was before."""
    root = write_clips(tmp_path / "a", videos=False, clips=2)
    version = opened(root).version
    shutil.copytree(root, tmp_path / "b")
    assert opened(tmp_path / "b").version == version
    frame = tmp_path / "b" / "val" / "light" / "1" / "002.png"
    Image.fromarray(pixels(201, 2)).save(frame)
    assert opened(tmp_path / "b").version != version
    frame.unlink()
    assert opened(tmp_path / "b").version != version


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV is an extra: its absence must say what to install, and frames must do without it."""
    for name in ("train", "val"):
        (tmp_path / name / "only").mkdir(parents=True)
        (tmp_path / name / "only" / "x.mp4").write_bytes(b"0")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"^data.name: .* pip install 'lmim\[video\]'$"):
        opened(tmp_path)
    assert len(opened(write_clips(tmp_path / "frames", videos=False, clips=2)).test) == 4


def test_a_folder_of_images_is_told_from_one_of_clips(tmp_path: Path) -> None:
    """Whoever mistakes the layout would train on nothing."""
    for split in ("train", "val"):
        write_frames(tmp_path / split / "only", 60, 3)
    with pytest.raises(UserError, match="no readable clip in any class folder"):
        opened(tmp_path)
