"""A sweep's claims against its results: supported, contradicted or undecided."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from analysis.intervals import Interval, interval
from analysis.results import Arm, Results, Trial, full_name

COLLAPSED_BELOW = 0.5
"""Of the effective rank at initialisation: where a trial counts as collapsed."""
RANK_RATIO = "eval/rank_ratio"

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True)
class Verdict:
    """A claim with its evidence. `effect` is positive where the claim holds."""

    claim: str
    verdict: str
    metric: str
    effect: Interval
    """Paired difference in the claim's direction; for collapse, the distance of the rank ratio from 0.5."""
    reason: str


@dataclass(frozen=True)
class Side:
    """What one side of a claim selects."""

    text: str
    arms: tuple[Arm, ...]
    fixed: frozenset[str]
    """The axes that the text names; pairs are formed over the others."""
    whole: bool
    """The text is an arm's own name: nothing is left to pair over but the seed."""


def judge(results: Results) -> tuple[Verdict, ...]:
    """A verdict for each claim, in the file's order."""
    return tuple(judge_claim(text, results) for text in results.claims)


def judge_claim(text: str, results: Results) -> Verdict:
    """The verdict on one claim, from the trials that count.

    `A > B`, `A < B`: paired t-interval of the difference, over equal seeds and equal remaining axes.
    `A collapsed`, `A not collapsed`: t-interval of the rank ratio, against 0.5.
    """
    words = text.split()
    if words[-1:] == ["collapsed"]:
        return _judge_collapse(text, words, results)
    return _judge_order(text, results)


def _judge_order(text: str, results: Results) -> Verdict:
    comparison, metric = _metric_of(text, results)
    sign = ">" if ">" in comparison else "<"
    left, right = (select(part.strip(), results) for part in comparison.split(sign, 1))
    for side in (left, right):
        if not side.arms:
            return _undecided(text, metric, f"no arm of the plan is {side.text}")
    whole = left.whole or right.whole
    named = left.fixed | right.fixed
    pairs = [
        _cells(side, lambda arm: () if whole else _remaining(arm, named), results, metric)
        for side in ((left, right) if sign == ">" else (right, left))
    ]
    shared = sorted(pairs[0].keys() & pairs[1].keys())
    effect = interval(pairs[0][cell] - pairs[1][cell] for cell in shared)
    lost = _without(metric, left, right, results)
    unpaired = len(pairs[0].keys() ^ pairs[1].keys())
    notes = [f"paired over {effect.n} cells of equal seed" if effect.n else "no pair of equal seed"]
    if unpaired:
        notes.append(f"{unpaired} without partner")
    return _verdict(text, metric, effect, notes, lost)


def _judge_collapse(text: str, words: list[str], results: Results) -> Verdict:
    negated = words[-2:-1] == ["not"]
    side = select(" ".join(words[: -2 if negated else -1]), results)
    if not side.arms:
        return _undecided(text, RANK_RATIO, f"no arm of the plan is {side.text}")
    ratios = [t.metrics.get(RANK_RATIO, math.nan) for arm in side.arms for t in results.of(arm.name)]
    found = interval(ratios)
    effect = interval((r - COLLAPSED_BELOW) * (1 if negated else -1) for r in ratios)
    seen = "" if found.mean is None else f"rank is {found.mean:.2f} of that at initialisation"
    return _verdict(
        text, RANK_RATIO, effect, [seen] if seen else [], _without(RANK_RATIO, side, side, results)
    )


def _verdict(claim: str, metric: str, effect: Interval, notes: list[str], lost: int) -> Verdict:
    if lost:
        notes.append(f"{lost} trials have no finite value")
    if effect.low is None or effect.high is None:
        notes.append(f"an interval needs two values, there {'is' if effect.n == 1 else 'are'} {effect.n}")
        return Verdict(claim, UNDECIDED, metric, effect, "; ".join(notes))
    verdict = SUPPORTED if effect.low > 0 else CONTRADICTED if effect.high < 0 else UNDECIDED
    if verdict == UNDECIDED:
        notes.append("the interval holds zero" if metric != RANK_RATIO else "the interval holds 0.5")
    return Verdict(claim, verdict, metric, effect, "; ".join(notes))


def _undecided(claim: str, metric: str, reason: str) -> Verdict:
    return Verdict(claim, UNDECIDED, metric, Interval(0, None, None, None), reason)


def _metric_of(text: str, results: Results) -> tuple[str, str]:
    """A claim may end in `on METRIC`; without it the sweep's metric decides."""
    comparison, word, metric = text.rpartition(" on ")
    return (comparison, full_name(metric.strip())) if word else (text, results.metric)


def select(text: str, results: Results) -> Side:
    """The arms that a side means: an arm's name, or `key=value` terms, the key whole or its last part."""
    terms = [term.partition("=") for term in text.split()]
    if all(equals for _, equals, _ in terms):
        fixed: set[str] = set()
        arms = []
        for arm in results.arms:
            keys = [_key(key, arm.axes) for key, _, _ in terms]
            values = [value for _, _, value in terms]
            if [key and spelled(arm.axes[key]) for key in keys] == values:
                arms.append(arm)
                fixed.update(key for key in keys if key)
        if arms:
            return Side(text, tuple(arms), frozenset(fixed), whole=False)
    arms = [arm for arm in results.arms if arm.name == text]
    return Side(text, tuple(arms), frozenset(), whole=True)


def _key(term: str, axes: Mapping[str, Any]) -> str | None:
    if term in axes:
        return term
    leaves = [key for key in axes if key.rpartition(".")[2] == term]
    return leaves[0] if len(leaves) == 1 else None


def spelled(value: object) -> str:
    """A value as a sweep file writes it.

    >>> spelled(True), spelled(None), spelled(0.1), spelled("mse")
    ('true', 'null', '0.1', 'mse')
    """
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _remaining(arm: Arm, named: frozenset[str]) -> tuple[str, ...]:
    return tuple(f"{key}={spelled(arm.axes[key])}" for key in sorted(arm.axes) if key not in named)


def _cells(
    side: Side, cell: Callable[[Arm], tuple[str, ...]], results: Results, metric: str
) -> dict[tuple[tuple[str, ...], int], float]:
    """Cell and seed -> the value there; the mean where a side has several arms in one cell."""
    values: dict[tuple[tuple[str, ...], int], list[float]] = {}
    for arm, trial in _trials(side, results):
        value = trial.metrics.get(metric, math.nan)
        if math.isfinite(value):
            values.setdefault((cell(arm), trial.seed), []).append(value)
    return {key: fmean(found) for key, found in values.items()}


def _trials(side: Side, results: Results) -> Iterator[tuple[Arm, Trial]]:
    return ((arm, trial) for arm in side.arms for trial in results.of(arm.name))


def _without(metric: str, left: Side, right: Side, results: Results) -> int:
    """Trials of either side whose metric is missing or not finite: they are in no difference."""
    names = {arm.name for side in (left, right) for arm in side.arms}
    values = [t.metrics.get(metric, math.nan) for t in results.trials if t.arm in names]
    return sum(not math.isfinite(value) for value in values)
