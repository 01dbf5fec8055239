"""Which figures are drawn of trials, and what is kept of a trial for them: one file a figure, in its folder.

    <out>/trials/<id>/figures/<figure>-<identity>-<code>.npz

A figure is in no identity of a trial: it is drawn of trials that are there. Imports no torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmim import variants
from lmim.config import Data
from lmim.errors import nearest, show
from lmim.trial.code import code_digest
from lmim.trial.evaluation import DATA, PATH, EntryError, checked, named

OF_SWEEP: dict[str, dict[str, variants.Setting]] = {
    "heatmap": {
        "x": variants.Setting(str, "", "The key across; its first numeric axis where it is not given."),
        "y": variants.Setting(str, "", "The key upwards; the sweep's next numeric axis."),
        "metric": variants.Setting(str, "", "What the cells show; the sweep's metric."),
    },
    "corruptions": {
        "to": variants.Setting(str, "", "The arm whose errors are 1; the sweep's first."),
    },
}
"""The figures that are drawn of a sweep's table alone, with their settings."""
MEANINGS = {
    "heatmap": "A metric over two numeric axes of the sweep, a panel for each value of the others.",
    "corruptions": "Each arm's error under each corruption of `robustness`, over a named arm's.",
}


@dataclass(frozen=True)
class Figure:
    """A figure and its settings. Made by `read_figures`, which checks it."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where the data that it opens are the user's own: the files, and the text of each."""
    version: str = ""
    """What the data are that it opens, if it opens any: filled in by the plan."""

    @property
    def of_sweep(self) -> bool:
        """Whether it is drawn of the sweep's table, and needs nothing of a trial's encoder."""
        return self.name in OF_SWEEP

    @property
    def opens(self) -> Data | None:
        """Data that it shows in place of the trial's."""
        name = self.settings.get(DATA)
        return Data(name=name, path=self.settings.get(PATH) or None) if name else None

    @property
    def needs(self) -> tuple[str, ...]:
        """What those data must have, by the NEEDS of the figure's file."""
        return tuple(variants.describe("figure", self.name, {}).constants.get("NEEDS", ()))

    def stem(self, trial: str, data_version: str) -> str:
        """The figure, and eight hex digits of what it is drawn of."""
        moved = {PATH} if self.version else set()
        used = {
            "trial": trial,
            "settings": {key: value for key, value in self.settings.items() if key not in moved},
            "data": self.version or data_version,
            "sources": {file: variants.digest(text) for file, text in self.sources.items()},
        }
        canonical = json.dumps(used, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def file(self, folder: Path, data_version: str) -> Path:
        """Where today's code keeps what it draws of a trial, whose folder is named as the trial."""
        return folder / "figures" / f"{self.stem(folder.name, data_version)}-{code_digest('figures')}.npz"

    def kept(self, folder: Path, data_version: str) -> Path | None:
        """The newest that is there, by whichever code."""
        found = (folder / "figures").glob(f"{self.stem(folder.name, data_version)}-*.npz")
        return max(found, key=lambda file: file.stat().st_mtime, default=None)


def names() -> tuple[str, ...]:
    """Every figure that a sweep file can ask for."""
    return (*variants.choices("figure"), *OF_SWEEP)


def settings_of(name: str) -> Mapping[str, variants.Setting]:
    """The settings that an entry of `figures` may give."""
    return OF_SWEEP[name] if name in OF_SWEEP else variants.describe("figure", name, {}).settings


def meaning(name: str) -> str:
    """What a figure shows."""
    return MEANINGS.get(name) or variants.describe("figure", name, {}).meaning


def named_figure(entry: object) -> tuple[str, dict[str, Any]]:
    """The figure that an entry names, and the settings that it gives, unchecked.

    >>> named_figure({"attention": {"images": 2}})
    ('attention', {'images': 2})
    """
    return named(entry, "a figure", "attention: {images: 2}")


def read_figures(entries: Sequence[object], sources: Mapping[str, str] = {}) -> tuple[Figure, ...]:
    """What a sweep file's `figures` says; `sources` holds the text of the user's own files of data.

    Raises:
        EntryError: an entry that is wrong.
    """
    found: list[Figure] = []
    for number, entry in enumerate(entries):
        try:
            one = _read(*named_figure(entry), sources)
            if one in found:
                raise ValueError(f"duplicate {one.name}: expected once with the same settings")
        except ValueError as error:
            raise EntryError(number, str(error)) from None
        found.append(one)
    return tuple(found)


def _read(name: str, given: Mapping[str, Any], sources: Mapping[str, str]) -> Figure:
    if name not in names():
        raise ValueError(f"expected one of {', '.join(names())}, found {show(name)}{nearest(name, names())}")
    settings = checked(name, given, settings_of(name))
    ref = str(settings.get(DATA) or "")
    if ref:
        try:
            variants.describe("data", ref, sources)
        except ValueError as error:
            near = nearest(ref, variants.choices("data"))
            raise ValueError(f"{name}.data: {error}, found {show(ref)}{near}") from None
    own = [ref.partition(":")[0]] if variants.own(ref) else []
    return Figure(name, settings, {file: sources[file] for file in own})
