"""Searches: keys in which each arm is tuned by itself before it is compared, as a sweep file's `tune:` says.

Every arm gets as many suggestions as any other, over those of the keys that it reads. They are judged on the
validation split, on seeds that no row of the table has; the best becomes the arm's own settings. Pure: who
suggests is asked elsewhere (`sweep/studies.py`).
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import Field, PositiveInt

from lmim.config import Config, Section
from lmim.errors import fail, nearest, show, word
from lmim.metrics import Better
from lmim.plan.settings import ARM, Schema, Setting, Settings
from lmim.trial.ending import Prune
from lmim.variants import Count

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Kind = Literal["log", "linear", "integer", "categorical"]
STARTUP = 5
"""Suggestions by chance before the first by TPE, and before any is pruned. Optuna's ten would be most of a
small search."""
SCALES: tuple[Kind, ...] = ("log", "linear", "integer", "categorical")


class Tune(Section):
    """What `tune:` takes."""

    keys: dict[str, Any]
    """Config key to where it is looked for: `{log: [0.0001, 0.01]}`, `{linear: [0, 1]}`, `{integer: [1, 8]}`,
    or `{categorical: [...]}`; each end is included."""
    trials: PositiveInt = 16
    """Suggestions tried for each arm. The first is the recipe's own values, where they lie in the ranges."""
    at_once: PositiveInt = 1
    """Suggestions of an arm that are tried side by side; each next lot knows what all before it came to."""
    seeds: list[Count] = Field(default_factory=lambda: [0])
    """What every suggestion is trained with, its mean being judged; none that the sweep's rows have."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Who suggests: tree-structured Parzen estimators (Bergstra et al. 2011), or chance."""
    prune: Literal["none", "median"] = "none"
    """What ends a suggestion early: `median` compares it after each quarter of its epochs, by 1-NN accuracy
    on validation data, with the median of those of its arm before it. What learns late loses by it."""


@dataclass(frozen=True)
class Range:
    """Where a key is looked for."""

    key: str
    kind: Kind
    values: tuple[Any, ...]
    """The ends, or the choices."""
    where: str

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        if self.kind == "categorical":
            return value in self.values
        low, high = self.values
        return isinstance(value, int | float) and not isinstance(value, bool) and bool(low <= value <= high)

    def setting(self, value: Any) -> Setting:
        """The key at a value, as if an arm of the file set it."""
        return Setting(self.key, value, self.where, ARM)


@dataclass(frozen=True)
class Search:
    """A sweep's `tune:`, read and checked."""

    ranges: tuple[Range, ...]
    trials: int
    at_once: int
    seeds: tuple[int, ...]
    sampler: str
    prune: str
    metric: str
    """What suggestions are judged by: the sweep's metric on the validation split."""
    better: Better

    def study(self, arm: str, config: Config) -> "Study | None":
        """The search of one arm; None where there is nothing to be tuned in it."""
        flat = config.flat()
        ranges = tuple(one for one in self.ranges if one.key in flat)
        return Study(arm, self, ranges, config) if ranges and config.optim.epochs else None


@dataclass(frozen=True)
class Made:
    """A suggestion as its study holds it."""

    params: Mapping[str, Any]
    """A value for each key."""
    reached: Mapping[int, float]
    """What a search prunes by, after which epoch."""


Suggestions = Mapping[str, Sequence[Made]]
"""A study, by its identity, to what was suggested in it, in order."""


@dataclass(frozen=True)
class Study:
    """The search of one arm."""

    arm: str
    search: Search
    ranges: tuple[Range, ...]
    """Of the keys that the arm reads."""
    config: Config
    """The arm before it is tuned."""

    @property
    def identity(self) -> str:
        """Twelve hex digits of the SHA-256 of what its suggestions hang on, unlike their number."""
        used = {
            "arm": self.config.arm,
            "ranges": [[one.key, one.kind, *one.values] for one in self.ranges],
            "search": {k: v for k, v in asdict(self.search).items() if k not in ("ranges", "trials")},
        }
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The arm's own values of the keys; None where one lies outside of its range."""
        flat = self.config.flat()
        own = {one.key: flat[one.key] for one in self.ranges}
        return own if all(one.holds(own[one.key]) for one in self.ranges) else None

    def prune(self, made: Sequence["Made"]) -> Prune | None:
        """What ends the suggestion after these early, by those of the lots before its own."""
        if self.search.prune == "none":
            return None
        before = made[: len(made) // self.search.at_once * self.search.at_once]
        epochs, every = self.config.optim.epochs, self.config.watch.every_epochs
        looks = {math.ceil(epochs * part / 4 / every) * every for part in (1, 2, 3)}
        reached = {
            at: [m.reached[at] for m in before if at in m.reached] for at in sorted(looks) if at < epochs
        }
        return Prune(looks=tuple((at, median(v) if len(v) >= STARTUP else None) for at, v in reached.items()))

    def settings(self, params: Mapping[str, Any]) -> Settings:
        """A suggestion as settings of the arm."""
        return {one.key: one.setting(params[one.key]) for one in self.ranges}


@dataclass(frozen=True)
class Tried:
    """A suggestion, and what came of it."""

    params: Mapping[str, Any]
    trials: tuple[str, ...]
    """Identities, one a seed; none where its values make no config."""
    over: bool
    value: float | None = None
    """The mean over its seeds; None where one of them ended without a finite value, or runs yet."""


@dataclass(frozen=True)
class Searched:
    """How far the search of an arm came."""

    study: Study
    tried: tuple[Tried, ...]

    @property
    def left(self) -> int:
        """How many suggestions are yet to be made."""
        return self.study.search.trials - len(self.tried)

    @property
    def over(self) -> bool:
        """Whether every suggestion was tried."""
        return not self.left and all(one.over for one in self.tried)

    @property
    def best(self) -> Tried | None:
        """The best so far; None where none has a value."""
        return best(self.tried, self.study.search.better)


class Valued(Protocol):
    """A suggestion with what it came to."""

    @property
    def value(self) -> float | None:
        """The mean over its seeds."""


S = TypeVar("S", bound=Valued)


def best(suggestions: Iterable[S], better: Better) -> S | None:
    """The best suggestion, of equals the first; None where none has a value."""
    able = [one for one in suggestions if one.value is not None]
    choose = min if better == "lower" else max
    return choose(able, key=lambda one: one.value or 0.0, default=None)


def distribution(kind: Kind, values: Sequence[Any]) -> "BaseDistribution":
    """A range as Optuna has it."""
    from optuna import distributions as given

    if kind == "categorical":
        return given.CategoricalDistribution(values)
    low, high = values
    if kind == "integer":
        return given.IntDistribution(low, high)
    return given.FloatDistribution(low, high, log=kind == "log")


def short(value: Any) -> str:
    """A suggested value for people.

    >>> short(0.00123456), short(3), short("mse")
    ('0.00123', '3', 'mse')
    """
    return f"{value:.3g}" if isinstance(value, float) else word(value)


def tried(params: Mapping[str, Any], trials: Sequence[str], results: Mapping[str, float | None]) -> Tried:
    """What the results so far say of a suggestion."""
    if not all(trial in results for trial in trials):
        return Tried(params, tuple(trials), over=False)
    values = [value for trial in trials if (value := results[trial]) is not None and math.isfinite(value)]
    whole = values and len(values) == len(trials)
    return Tried(params, tuple(trials), over=True, value=sum(values) / len(values) if whole else None)


def read_search(
    tune: Tune,
    schema: Schema,
    where: Callable[..., str],
    axes: Iterable[str],
    given: Settings,
    metric: tuple[str, Better],
    seeds: Iterable[int],
) -> Search:
    """A sweep's `tune:` with all that can be wrong with it.

    Args:
        tune: what the file says.
        schema: the config keys.
        where: `file:line` of a place in the file.
        axes: the keys in which the arms differ.
        given: what the command line set.
        metric: what suggestions are judged by, and which way is better.
        seeds: those of the sweep's rows.
    """
    ranges: dict[str, Range] = {}
    for name, said in tune.keys.items():
        line = where("tune", "keys", name)
        key = schema.key(name, line)
        if key in ranges:
            fail(line, f"duplicate key {key}: it is tuned already")
        if key in axes:
            fail(line, f"{key}: expected a key to tune, found an axis of this sweep")
        if key == "seed" or key.startswith("run."):
            wrong = "the seed" if key == "seed" else "orchestration"
            fail(line, f"{key}: expected a key that affects results, found {wrong}")
        if key in given:
            fail(given[key].where, f"{key}: is tuned by this sweep")
        ranges[key] = _range(key, said, schema, line)
    if not ranges:
        fail(where("tune", "keys"), "tune.keys: expected at least one key, found none")
    if not tune.seeds:
        fail(where("tune", "seeds"), "tune.seeds: expected at least one seed, found none")
    if both := sorted({*tune.seeds} & {*seeds}):
        fail(
            where("tune", "seeds"),
            f"tune.seeds: expected seeds that the table has not, as what selects is not reported; found "
            f"{', '.join(map(str, both))} in both",
        )
    options = tune.at_once, tuple(dict.fromkeys(tune.seeds)), tune.sampler, tune.prune
    return Search(tuple(ranges.values()), tune.trials, *options, *metric)


def _range(key: str, said: Any, schema: Schema, where: str) -> Range:
    """A range of which every end, or choice, is a value that its key may have."""
    example = "expected one of {log: [low, high]}, {linear: ...}, {integer: ...}, {categorical: [...]}"
    if not isinstance(said, dict) or len(said) != 1:
        fail(where, f"{key}: {example}, found {show(said)}")
    ((kind, values),) = said.items()
    if kind not in SCALES:
        fail(where, f"{key}: {example}, found {show(kind)}{nearest(kind, SCALES)}")
    if not isinstance(values, list) or len(values) < 2 or (kind != "categorical" and len(values) > 2):
        wanted = "two or more choices" if kind == "categorical" else "two ends, [low, high]"
        fail(where, f"{key}: expected {wanted}, found {show(values)}")
    for value in values:
        schema.checked(Setting(key, value, where, ARM))
    if kind == "categorical":
        if len({json.dumps(value) for value in values}) < len(values):
            fail(where, f"{key}: expected choices that differ, found {show(values)}")
        return Range(key, kind, tuple(values), where)
    low, high = values
    numbers = int if kind == "integer" else int | float
    if any(isinstance(end, bool) or not isinstance(end, numbers) for end in values):
        fail(where, f"{key}: expected {'whole ' * (kind == 'integer')}numbers, found {show(values)}")
    if not low < high:
        fail(where, f"{key}: expected low < high, found the empty range {show(values)}")
    if kind == "log" and low <= 0:
        fail(where, f"{key}: expected ends above 0 on a log scale, found {show(values)}")
    ends = (low, high) if kind == "integer" else (float(low), float(high))
    return Range(key, kind, ends, where)
