"""How a trial is judged, and what is remembered of it: one file an evaluation, in the trial's own folder.

    <out>/trials/<id>/evaluations/<protocol>-<identity>.json

An evaluation has an identity of its own, so that a protocol is added to old trials, or changed, without
training any again. Imports no torch.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, create_model

from lmim import variants
from lmim.config import Config, Data, Section
from lmim.errors import UserError, nearest, show, word
from lmim.files import write_atomic
from lmim.metrics import OWN, Better, Metric

DEFAULT = ("nn", "knn", "linear")
"""The protocols of a sweep file that names none."""

OF_DATA = ("masks", "clips")
GIVEN = ("logits", "backbone", *OF_DATA)
"""What a protocol may need: the `logits` of objectives that classify, for the judged images; an encoder of
images as their `backbone`; that the data which it opens have `masks`, or are `clips`."""

EVERY = {
    "layer": variants.Setting(
        Annotated[
            variants.Count | Literal["last4"], BeforeValidator(lambda layer: 0 if layer == -1 else layer)
        ],
        0,
        "The block of the encoder after which features are taken; 0, or -1, is the last, `last4` are four "
        "together.",
    ),
    "features": variants.Setting(
        Literal["own", "patch_mean", "cls", "patch_mean+cls"],
        "own",
        "What an image's feature is; `own` is the objective's: the patches' mean, or what it classifies.",
    ),
    "norm": variants.Setting(
        bool, False, "Whether features are taken after the encoder's final norm; `video` takes them there."
    ),
}
"""The settings of every protocol: how it sees the encoder."""

MICRO = 128
"""Images of a micro-batch of fine-tuning, at most."""

DATA, PATH = "data", "path"
"""The settings of a protocol that judges other data than the trial's: a dataset's name, and where it lies."""

FOLDERS = {"test": "eval", "val": "val"}
"""What a metric's name begins with: by the split that is judged."""


class EntryError(ValueError):
    """What is wrong with one entry of `evaluate`; `entry` is its number, from 0."""

    def __init__(self, entry: int, message: str) -> None:
        super().__init__(message)
        self.entry = entry


class Entry(Section):
    """What a protocol's METRICS say of one of them."""

    label: str
    unit: str = ""
    better: Better = None


@dataclass(frozen=True)
class Evaluation:
    """A protocol, its settings, and the split that it judges. Made by `read_evaluations`, which checks it."""

    protocol: str
    settings: dict[str, Any] = field(default_factory=dict)
    split: Literal["test", "val"] = "test"
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where the protocol or its data are the user's own: the files, and the text of each."""
    version: str = ""
    """What the data are that the protocol opens, if it opens any: filled in by the plan."""

    @property
    def name(self) -> str:
        """The protocol without the file that it stands in."""
        return self.protocol.rpartition(":")[2]

    @property
    def view(self) -> dict[str, Any]:
        """How it sees the encoder: those settings of every protocol that are not at their neutral value."""
        return {key: self.settings[key] for key in EVERY if key in self.settings}

    @property
    def layers(self) -> int:
        """How deep an encoder must be."""
        layer = self.settings.get("layer", 0)
        return 4 if layer == "last4" else int(layer)

    @property
    def opens(self) -> Data | None:
        """Data that it judges in place of the trial's, or beside them."""
        name = self.settings.get(DATA)
        return Data(name=name, path=self.settings.get(PATH) or None) if name else None

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not neutral, but for where data lie, as the version names them."""
        neutral = settings_of(self.protocol, self.sources)
        moved = {PATH} if DATA in neutral else set()
        given = {key: one.neutral for key, one in EVERY.items()} | self.settings
        return {k: v for k, v in given.items() if k not in moved and v != neutral[k].neutral}

    @property
    def metrics(self) -> dict[str, Metric]:
        """Its metrics, by the name that the protocol gives them."""
        changed = self.changed
        suffix = "".join(f".{key}{_after(value)}" for key, value in changed.items())
        said = [f"{key}={word(value)}" for key, value in changed.items()]
        said += ["validation"] if self.split == "val" else []
        return {
            name: Metric(
                f"{FOLDERS[self.split]}/{name}{suffix}",
                ", ".join([entry.label, *said]),
                entry.unit,
                entry.better,
            )
            for name, entry in _entries(self.protocol, self.sources).items()
        }

    @property
    def needs(self) -> tuple[str, ...]:
        """What there must be besides features, by the NEEDS of the protocol's file."""
        return tuple(_said(self.protocol, self.sources).get("NEEDS", ()))

    @property
    def reads_features(self) -> bool:
        """Whether it reads the features of the trial's own images: unless its file says FEATURES = False."""
        return _said(self.protocol, self.sources).get("FEATURES", True) is not False

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that an objective must have."""
        # what has no norm is seen without it by a protocol that sees all others after it
        asked = "features" in self.view or "norm" in self.view.keys() & self.changed.keys()
        tokens = ("tokens",) if asked else ()
        return (*(need for need in self.needs if need not in OF_DATA), *tokens)

    @property
    def seconds(self) -> float:
        """What it was measured to take of 24,000 images of 64 channels on one core, where its file says."""
        return float(_said(self.protocol, self.sources).get("SECONDS", 0.0))

    @property
    def epochs(self) -> int:
        """How many it trains."""
        return int(self.settings.get("epochs", 0)) if "backbone" in self.needs else 0

    def applies(self, config: Config) -> bool:
        """Whether the config's objective has what the protocol needs; another's trials it does not judge."""
        if not (wanted := self.methods):
            return True
        return variants.describe("objective", config.objective, config.sources).methods >= {*wanted}

    def identity(self, trial: str, data_version: str) -> str:
        """Eight hex digits of the SHA-256 of what the figures depend on, besides the package's own code."""
        used = {
            "trial": trial,
            "protocol": self.protocol,
            "settings": self.changed,
            "split": self.split,
            "data": self.version or data_version,
            "sources": {file: _digest(text) for file, text in self.sources.items()},
        }
        canonical = json.dumps(used, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    def file(self, folder: Path, data_version: str) -> Path:
        """Where the result is kept, in the trial's folder, which is named as the trial."""
        return folder / "evaluations" / f"{self.name}-{self.identity(folder.name, data_version)}.json"


def steps_of(batch_size: int, shared: int) -> dict[str, int]:
    """A step of fine-tuning of so many images in micro-batches, of which there are a multiple of `shared`.

    That is how many the trial's own steps have, which its processes divide among them.

    Raises:
        UserError: the images do not fill them evenly.

    >>> steps_of(1024, 1), steps_of(96, 2)
    ({'batch_size': 128, 'accumulate': 8}, {'batch_size': 48, 'accumulate': 2})
    """
    parts = shared * math.ceil(batch_size / (MICRO * shared))
    if batch_size % parts:
        raise UserError(
            f"finetune.batch_size: expected a multiple of {parts}, the micro-batches of at most {MICRO} "
            f"images that a step takes, found {batch_size}"
        )
    return {"batch_size": batch_size // parts, "accumulate": parts}


def protocol_of(entry: object) -> tuple[str, dict[str, Any]]:
    """The protocol that an entry names, and the settings that it gives, unchecked.

    >>> protocol_of("nn"), protocol_of({"knn": {"k": 5}})
    (('nn', {}), ('knn', {'k': 5}))
    """
    return named(entry, "a protocol", "knn: {k: 5}")


def named(entry: object, what: str, example: str) -> tuple[str, dict[str, Any]]:
    """The name that an entry of a list gives, alone or with settings, which are unchecked."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        [(name, settings)] = entry.items()
        if isinstance(name, str) and isinstance(settings, Mapping):
            return name, dict(settings)
    raise ValueError(f"expected {what}, or one with its settings such as {example}, found {entry!r}")


def read_evaluations(
    entries: Sequence[object] = DEFAULT, sources: Mapping[str, str] = {}
) -> tuple[Evaluation, ...]:
    """What a sweep file's `evaluate` says; `sources` holds the text of the user's own files.

    Raises:
        EntryError: an entry that is wrong, or whose metrics another one has.
    """
    found: list[Evaluation] = []
    owners = dict.fromkeys(OWN, "the trainer")
    for number, entry in enumerate(entries):
        try:
            one = _read(*protocol_of(entry), sources)
            if one in found:
                raise ValueError(f"duplicate {one.protocol}: expected once with the same settings")
            for metric in one.metrics.values():
                if metric.name in owners:
                    raise ValueError(
                        f"{one.protocol}: expected a metric of its own, found {metric.name}, "
                        f"which is that of {owners[metric.name]}"
                    )
                owners[metric.name] = one.protocol
        except ValueError as error:
            raise EntryError(number, str(error)) from None
        found.append(one)
    return tuple(found)


def settings_of(protocol: str, sources: Mapping[str, str]) -> Mapping[str, variants.Setting]:
    """The settings that an entry of `evaluate` may give: the protocol's own, then those of every protocol,
    which are neutral as the VIEW in the protocol's file says."""
    file = protocol.partition(":")[0]
    return _settings(protocol, file, sources.get(file))


@functools.cache  # asked for each trial of a sweep, and read from the source
def _settings(protocol: str, file: str, text: str | None) -> Mapping[str, variants.Setting]:
    sources = {} if text is None else {file: text}
    given = _said(protocol, sources).get("VIEW", {})
    if not isinstance(given, dict):
        raise ValueError(
            f'{protocol}: expected in its file such as VIEW = {{"norm": True}}, found {show(given)}'
        )
    seen = checked(f"{protocol}.VIEW", given, EVERY)
    own = variants.describe("evaluate", protocol, sources).settings
    return dict(own) | {key: replace(one, neutral=seen[key]) for key, one in EVERY.items()}


def _said(protocol: str, sources: Mapping[str, str]) -> Mapping[str, Any]:
    """What the protocol's file says of itself, by the names in capitals."""
    return variants.describe("evaluate", protocol, sources).constants


_digest = functools.cache(variants.digest)


class Settings(Section):
    """What an entry may set."""

    model_config = ConfigDict(use_attribute_docstrings=False)  # which pydantic would look for in our source


def checked(name: str, given: Mapping[str, Any], settings: Mapping[str, variants.Setting]) -> dict[str, Any]:
    """All settings of an entry, those that are not given at their neutral value.

    Raises:
        ValueError: one that there is not is given, or is of another kind.
    """
    for key in given:
        if key not in settings:
            raise ValueError(
                f"{name}: unknown setting {show(key)}; expected "
                f"{', '.join(settings) or 'none'}{nearest(key, settings)}"
            )
    fields: dict[str, Any] = {key: (one.type, one.neutral) for key, one in settings.items()}
    try:
        schema: type[Section] = create_model("Settings", __base__=Settings, **fields)
        read = schema.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        expected = first["msg"].removeprefix("Input should be ").replace("a valid integer", "an integer")
        key = ".".join([name, str(first["loc"][0])])
        raise ValueError(
            f"{key}: expected {expected.replace('valid ', '')}, found {show(first['input'])}"
        ) from None
    return read.model_dump()


def _read(protocol: str, given: Mapping[str, Any], sources: Mapping[str, str]) -> Evaluation:
    own = variants.own(protocol)
    try:
        settings = settings_of(protocol, sources)
    except ValueError as error:
        near = nearest(protocol, variants.choices("evaluate"))
        raise ValueError(str(error) if own else f"{error}, found {show(protocol)}{near}") from None
    read = checked(protocol, given, settings)
    given = {k: v for k, v in read.items() if k not in EVERY or v != EVERY[k].neutral}
    files = [ref.partition(":")[0] for ref in (protocol, given.get(DATA, "")) if variants.own(ref)]
    one = Evaluation(protocol, given, sources={file: sources[file] for file in files})
    if one.opens:
        try:
            variants.describe("data", one.opens.name, sources)
        except ValueError as error:
            near = nearest(one.opens.name, variants.choices("data"))
            raise ValueError(f"{protocol}.data: {error}, found {show(one.opens.name)}{near}") from None
    _entries(protocol, one.sources)
    if unknown := [need for need in one.needs if need not in GIVEN]:
        raise ValueError(f"{protocol}: expected NEEDS of {', '.join(GIVEN)}, found {show(unknown[0])}")
    return one


def _entries(protocol: str, sources: Mapping[str, str]) -> dict[str, Entry]:
    """What the METRICS of a protocol's file say."""
    said = _said(protocol, sources).get("METRICS", {})
    try:
        entries = TypeAdapter(dict[str, Entry]).validate_python(said, strict=True)
        if entries and all(re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) for name in entries):
            return entries
    except ValidationError:
        pass
    raise ValueError(
        f"{protocol}: expected in its file a literal such as "
        f'METRICS = {{"gap": {{"label": "gap", "unit": "%", "better": "higher"}}}}, found {said or "none"}'
    )


def _after(value: object) -> str:
    """A setting's value as it stands in a metric's name, of which MLflow allows few characters.

    >>> _after(5), _after(0.1), _after("cosine"), _after("a b@c")
    ('5', '0.1', '-cosine', '-a-b-c')
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return word(value) if number else "-" + re.sub(r"[^A-Za-z0-9_.-]", "-", word(value))


# ------------------------------------------------------------------------------ what is kept


class Result(BaseModel):
    """What one evaluation found, and what it was found with."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    protocol: str
    settings: dict[str, Any]
    split: Literal["test", "val"]
    sources: dict[str, str] = {}
    """The user's own protocol, as it was."""
    version: str = ""
    """Of the data that the protocol opened, if it did."""
    data_version: str
    metrics: dict[str, float]
    """By their full names."""
    error: str = ""
    """Why there are none."""
    sample: dict[str, float]
    """The same on a few images, to compare another version of the code with."""
    seconds: float
    code: str
    """By `code_digest`."""
    commit: str
    torch: str
    timm: str
    device: str
    date: str

    @property
    def evaluation(self) -> Evaluation:
        """What was asked for."""
        return Evaluation(self.protocol, self.settings, self.split, self.sources, self.version)


def write_result(file: Path, result: Result) -> None:
    """Put a result on disk, as a whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, result.model_dump_json(indent=2) + "\n")


def read_result(file: Path) -> Result | None:
    """The result that a file holds; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return Result.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(
            f"{file}: damaged or of another version; delete it and run again to judge anew"
        ) from None
