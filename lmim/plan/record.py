"""What a sweep set out to do, as it is kept: <out>/<name>/<place>/plan.json, and the same in MLflow."""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lmim.errors import UserError, fail
from lmim.metrics import Better, Metric, known
from lmim.plan import cost, facts
from lmim.plan.ablation import Arm, Sweep
from lmim.plan.claims import statement
from lmim.plan.search import Kind, Searched, best, short
from lmim.trial.code import code_digest, code_version
from lmim.trial.ending import Ending
from lmim.trial.evaluation import Evaluation
from lmim.trial.figure import Figure

LONGEST = 80
"""Characters of a place: a folder's name, and a tag's value."""


def place(scale: str, settings: Mapping[str, str]) -> str:
    """Where a sweep's results stand: its scale, and what --set changed of the results.

    How a trial runs and where its data lie change none. What would be long, or no name of a folder, is cut
    and told apart by a digest.

    >>> place("demo", {}), place("demo", {"run.cpus": "2", "optim.epochs": "1"})
    ('demo', 'demo+optim.epochs=1')
    >>> place("demo", {"loss": "../mine.py:l1"})
    'demo+loss=..-mine.py-l1-f403f3d2'
    """
    changed = {key: value for key, value in settings.items() if key.partition(".")[0] != "run"}
    changed.pop("data.path", None)
    whole = "+".join([scale, *(f"{key}={value}" for key, value in sorted(changed.items()))])
    name = re.sub(r"[^A-Za-z0-9_.=+-]", "-", whole)
    if name == whole and len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


class RecordedTrial(BaseModel):
    """A trial as the report needs it; its config lies in its folder."""

    model_config = ConfigDict(frozen=True)

    id: str
    arm: str
    seed: int
    data_version: str = ""
    suggestion: int | None = None
    """Of a search: which; such a trial is no row of the table."""
    ending: Ending | None = None
    """What may end it early where that is its own."""


class RecordedSuggestion(BaseModel):
    """What a search tried."""

    model_config = ConfigDict(frozen=True)

    params: dict[str, Any]
    trials: tuple[str, ...]
    value: float | None = None
    """The sweep's metric on the validation split, a mean over seeds; none where it failed, or is not over."""


class RecordedSearch(BaseModel):
    """The search of an arm: what it looked for where, and what it found."""

    model_config = ConfigDict(frozen=True)

    arm: str
    ranges: dict[str, tuple[Kind, tuple[Any, ...]]]
    """Key to the kind of its range, and its ends or choices."""
    budget: int
    """How many suggestions it makes."""
    metric: str
    better: Better
    suggestions: tuple[RecordedSuggestion, ...] = ()
    recipe: bool = False
    """Whether the first suggestion is the recipe's own."""
    study: str = ""
    """Its journal: <out>/studies/<study>.log, which Optuna opens."""

    @property
    def best(self) -> RecordedSuggestion | None:
        """The best so far; None where none has a value."""
        return best(self.suggestions, self.better)

    def __str__(self) -> str:
        """How far it came, and what it found."""
        far = f"{self.arm}: {len(self.suggestions)} of {self.budget} suggestions"
        found = self.best
        if found is None or found.value is None:
            return far
        values = ", ".join(f"{key} {short(value)}" for key, value in found.params.items())
        recipe = self.suggestions[0].value if self.recipe else None
        own = "" if recipe is None else f" (the recipe's own: {recipe:.2f})"
        return f"{far}; best {self.metric} {found.value:.2f} with {values}{own}"

    @classmethod
    def of(cls, search: Searched) -> "RecordedSearch":
        """How far a search came."""
        study = search.study
        return cls(
            arm=study.arm,
            ranges={one.key: (one.kind, one.values) for one in study.ranges},
            budget=study.search.trials,
            metric=study.search.metric,
            better=study.search.better,
            suggestions=tuple(
                RecordedSuggestion(params=dict(one.params), trials=one.trials, value=one.value)
                for one in search.tried
            ),
            recipe=study.recipe is not None,
            study=study.identity,
        )


class Other(BaseModel):
    """Somebody's encoder that was judged as the sweep's trials are, by `python -m lmim.evaluate --sweep`."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    """As its row of the table is called."""
    encoder: str
    """What the command was given."""
    metrics: dict[str, float]
    image_size: int
    data_version: str
    beside: str
    """The data of the trials that it stands beside; the same at another size may be another version."""
    seconds: float
    code: str
    commit: str
    torch: str
    timm: str
    device: str
    judged: float
    """When, in Unix seconds."""


class Record(BaseModel):
    """What a sweep set out to do."""

    model_config = ConfigDict(frozen=True)

    name: str
    scale: str
    settings: dict[str, str] = {}
    """What --set laid over every arm: such results must not pass for the scale's own."""
    path: str = ""
    """The sweep file; empty in an older record."""
    question: str
    metric: str
    design: str
    seeds: tuple[int, ...]
    claims: tuple[str, ...]
    stated: dict[str, float] = {}
    """When each claim was first stated, in Unix seconds, whether it is made still or not.

    The key is the claim's words with its metric (`statement`): one that is reworded, or means another metric
    because the sweep's has changed, is another claim. An older record does not tell the time of its claims;
    they stay without one, and pass for stated in time, as nothing shows the contrary.
    """
    arms: tuple[Arm, ...]
    trials: tuple[RecordedTrial, ...]
    evaluations: tuple[Evaluation, ...] = ()
    selecting: tuple[Evaluation, ...] = ()
    """How the trials of searches are judged."""
    searches: tuple[RecordedSearch, ...] = ()
    figures: tuple[Figure, ...] = ()
    """What the report shows besides the table's own figures."""
    ending: Ending | None = None
    metrics: dict[str, Metric] = {}
    """How each metric is called, in what it is measured, and which way is better."""
    notes: tuple[str, ...] = ()
    """Which arms are one, which images cannot be read, and what results had chosen by the last round."""
    classes: int = 0
    """Of the data; 0 where they cannot be opened, or those of the arms differ in it."""
    flops: dict[str, float] = {}
    """Arm to what one training of it takes; without those that train nothing, or were not counted."""
    sequential: bool = False
    """Whether results decided how many seeds there are (--until-decided), in this call or an earlier one."""
    code: str = ""
    """The code that results are compared with, by `code_digest`."""
    commit: str = ""
    others: tuple[Other, ...] = ()
    """Rows of encoders that the sweep did not train."""

    @classmethod
    def of(cls, sweep: Sweep) -> "Record":
        """The plan of a loaded sweep file: all of it, whichever of its trials run now."""
        return cls(
            name=sweep.name,
            scale=sweep.scale,
            settings=sweep.settings,
            path=str(sweep.path.resolve()),
            question=sweep.question,
            metric=sweep.metric,
            design=sweep.design,
            seeds=tuple(sweep.seeds),
            claims=tuple(claim.text for claim in sweep.claims),
            stated={statement(claim.text, sweep.metric): time.time() for claim in sweep.claims},
            arms=sweep.arms,
            trials=tuple(
                RecordedTrial(
                    id=t.id,
                    arm=t.arm,
                    seed=t.seed,
                    data_version=t.config.data.version or "",
                    suggestion=t.suggestion,
                    ending=t.ending,
                )
                for t in sweep.planned
            ),
            evaluations=sweep.evaluations,
            selecting=sweep.spec.selecting,
            searches=tuple(map(RecordedSearch.of, sweep.searches)),
            metrics=known([*sweep.evaluations, *sweep.spec.selecting]),
            figures=sweep.figures,
            ending=sweep.ending,
            notes=(*sweep.notes, *sweep.choices),
            classes=_classes(sweep),
            flops=_flops(sweep),
            sequential=sweep.sequential,
            code=code_digest(),
            commit=code_version(),
        )

    def judged_by(self, trial: RecordedTrial) -> tuple[Evaluation, ...]:
        """How a trial is judged."""
        return self.evaluations if trial.suggestion is None else self.selecting

    @property
    def place(self) -> str:
        """The folder under the sweep's name, and the tag of its parent run in MLflow."""
        return place(self.scale, self.settings)

    def file(self, out: Path) -> Path:
        """Where the plan is kept."""
        return out / self.name / self.place / "plan.json"

    def since(self, earlier: Iterable["Record"]) -> "Record":
        """This record, with what of earlier ones stays true.

        Each claim has the earliest time at which any of them says that it was stated. Where results once
        decided how many seeds there are, the seeds of a later call are not chosen freely of them either. And
        others' encoders keep their rows.
        """
        records = [self, *earlier]
        first: dict[str, float] = {}
        for record in records:
            first |= {key: min(at, first.get(key, at)) for key, at in record.stated.items()}
        said = [(record, statement(text, record.metric)) for record in records for text in record.claims]
        unknown = {key for record, key in said if key not in record.stated}
        stated = {key: at for key, at in first.items() if key not in unknown}
        here = [record for record in records if record.place == self.place]
        sequential = any(record.sequential for record in here)
        others = {one.name: one for record in reversed(here) for one in record.others}
        kept = {"stated": stated, "sequential": sequential, "others": tuple(others.values())}
        return self.model_copy(update=kept)


def kept(name: str, out: Path) -> list[Record]:
    """The records of a sweep, at every scale and with all settings; one that is damaged is no record."""
    found = []
    for file in sorted((out / name).glob("*/plan.json")):
        with contextlib.suppress(ValueError):
            found.append(Record.model_validate_json(file.read_bytes()))
    return found


def check_file(sweep: Sweep, out: Path) -> None:
    """Whether the results under the sweep's name are this file's.

    A file that was moved, copied as it is, or given another name since, has left its name to this one.

    Raises:
        UserError: they are another file's, which is still there.
    """
    text = sweep.path.read_text(encoding="utf-8")
    for other in {Path(record.path) for record in kept(sweep.name, out) if record.path}:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            written = other.read_text(encoding="utf-8")
            named = re.search(rf"^name:\s*[\"']?{re.escape(sweep.name)}\b(?!-)", written, re.MULTILINE)
            if named and written != text and not other.samefile(sweep.path):
                fail(
                    sweep.spec.sheet.where("name"),
                    f"name: {out / sweep.name} holds the results of {other}, which is named {sweep.name} "
                    "too: give one of them another name, or this one another --out",
                )


def _flops(sweep: Sweep) -> dict[str, float]:
    rows = [trial for trial in sweep.planned if trial.suggestion is None]
    configs = {trial.arm: trial.config for trial in rows if trial.config.optim.epochs}
    if len(configs) > cost.MODELS:  # of more, some would be reckoned by the others
        return {}
    try:
        works = cost.works(configs.values())
    except UserError:  # a model that cannot be built, as its trial will say
        return {}
    found = {arm: works[config.arm].epoch * config.optim.epochs for arm, config in configs.items()}
    return {arm: flops for arm, flops in found.items() if flops}


def _classes(sweep: Sweep) -> int:
    found = [facts.data_of(config) for config in {t.config.arm: t.config for t in sweep.planned}.values()]
    counts = {0 if data.error else data.classes for data in found}
    return counts.pop() if len(counts) == 1 else 0
