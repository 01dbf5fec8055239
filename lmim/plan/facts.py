"""What the data and the model say of themselves: `lmim.survey` is asked once, in a process of its own.

A process that has imported it, as `lmim.train` has, needs no other.

An answer about data is good until a file under `data.path`, the code that opens it or a library of it
changes; one about FLOPs until the code does.
"""

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from lmim.config import Config, Section
from lmim.errors import UserError
from lmim.files import cache_root, write_atomic
from lmim.trial.code import code_digest

LIBRARIES = ("numpy", "pillow", "matplotlib", "scikit-learn", "torchvision")
"""What an embedded dataset is made with."""


@dataclass(frozen=True)
class Data:
    """A dataset as a plan sees it."""

    version: str | None
    train: int
    val: int
    test: int
    channels: int
    classes: int
    error: str = ""
    """Why it cannot be opened here; version and sizes are then those of nothing."""
    skipped: int = 0
    """Files that cannot be read."""
    skipped_names: list[str] = field(default_factory=list)
    """The first of them."""
    frames: int = 1
    """Frames of every clip; 1 of images."""
    masks: bool = False
    """Whether it is told what each pixel shows."""


@dataclass(frozen=True)
class Ids:
    """A folder of ids of tokens as a plan sees it; see `axes/collapse.py`."""

    version: str = ""
    images: int = 0
    patches: int = 0
    codes: int = 0
    patch_size: int = 0
    error: str = ""
    """Why they cannot be read."""


class Flops(NamedTuple):
    """What one image costs."""

    step: float
    encode: float
    width: float
    """Channels of a feature."""
    kept: float = 0.0
    """No FLOPs: bytes that a step in float32 keeps for its backward pass, the weights aside."""
    seeks_every: float = 0.0
    """No FLOPs: after how many epochs, again and again, all training images are encoded; 0 is never."""


MODEL = ("axes", "encoder.py", "objectives", "quantise.py", "survey.py")
"""The code that FLOPs hang on."""
ABSENT = Data(None, 1_281_167, 10_000, 50_000, 3, 1000)
"""A dataset that is not on this machine is priced as if it were ImageNet-1k."""

AROUND = ("optim.", "watch.", "data.version", "data.train_images")
"""Keys that change no model."""

_known: dict[str, dict[str, Any]] = {}


def data_of(config: Config) -> Data:
    """What the config's dataset is; with an `error` where it cannot be opened."""
    return dataset_of(config.data, config.sources)


def dataset_of(data: Section, sources: Mapping[str, str]) -> Data:
    """What a dataset is, by a `data` section; with an `error` where it cannot be opened."""
    given = data.model_dump(mode="json", exclude={"version", "crop_scale", "flip"})
    own = {file: text for file, text in sources.items() if given["name"].startswith(f"{file}:")}
    return _data(json.dumps(given), json.dumps(own))


@functools.cache
def _data(given: str, sources: str) -> Data:
    tree = {"data": json.loads(given), "sources": json.loads(sources), "objective": "raw_pixels"}
    path = tree["data"]["path"]
    root = Path(path).expanduser() if path else None
    parts = [given, sources, *_versions(), _stamp(root) if root else ""]
    answer = _ask([(_key("data", parts), {"about": "data", "config": tree})])[0]
    if "error" in answer:
        return Data(**(vars(ABSENT) | {"error": answer["error"]}))
    return Data(**answer)


def ids_of(config: Config) -> Ids:
    """What the ids that the config names are; with an `error` where they cannot be read."""
    path = config.section("collapse").path
    parts = [_stamp(Path(path).expanduser()), code_digest("axes")]
    answer = _ask([(_key("ids", parts), {"about": "ids", "config": _bare(config)})])[0]
    return Ids(**{key: value for key, value in answer.items() if key != "user"})


def flops_of(configs: Sequence[Config]) -> list[Flops]:
    """FLOPs of each config, asked for all at once.

    Raises:
        UserError: a model cannot be built.
    """
    asked = []
    for config in configs:
        data = data_of(config)
        question = {"about": "flops", "channels": data.channels, "classes": data.classes}
        plain = config.model_copy(update={"seed": 0})
        learns = bool(config.optim.epochs)
        model = {key: value for key, value in plain.used().items() if not key.startswith(AROUND)}
        parts = [model, learns, data.channels, data.classes, code_digest(*MODEL)]
        asked.append((_key("flops", parts), question | {"config": _bare(plain)}))
    answers = _ask(asked)
    for config, answer in zip(configs, answers, strict=True):
        if "error" in answer:
            raise UserError(f"the model of {config.objective} cannot be built: {answer['error']}")
    return [Flops(**answer) for answer in answers]


def _bare(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    tree["data"]["version"] = None
    return tree


def _ask(questions: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The answers to questions, each under a key that says what it depends on."""
    folder = cache_root() / "survey"
    for key, _ in questions:
        file = folder / f"{key}.json"
        if key not in _known and file.is_file():
            _known[key] = json.loads(file.read_text(encoding="utf-8"))
    new = {key: question for key, question in questions if key not in _known}
    if new:
        asked = {"data": "at data", "flops": "at models, to count their FLOPs,", "ids": "at ids of tokens"}
        what = asked[next(iter(new.values()))["about"]]
        print(f"looking {what} for the first time ...", file=sys.stderr)
        for key, answer in zip(new, _survey([*new.values()]), strict=True):
            _known[key] = answer
            if "error" not in answer:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / f"{key}.json", json.dumps(answer))
    return [_known[key] for key, _ in questions]


def _survey(questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if (here := sys.modules.get("lmim.survey")) is not None:  # who has torch already answers by itself
        return [here.answer(question) for question in questions]
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "lmim.survey"],
        input=json.dumps(questions),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    if done.returncode:
        raise UserError(f"lmim.survey ended with {done.returncode}: see above")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@functools.cache
def _versions() -> list[str]:
    found = [code_digest("data")]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} none")
    return found


def _stamp(root: Path) -> str:
    """Of every file under a folder: name, size and time of its last change."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(files):
            with contextlib.suppress(OSError):  # a link that leads nowhere, as whoever opens it will say
                stat = os.stat(os.path.join(folder, name))
                digest.update(f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _key(kind: str, parts: Sequence[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
