"""A sweep's claims against its results: supported, contradicted or undecided."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from statistics import fmean

from lmim.analysis.intervals import LEVEL, MANY, Interval, holm, interval, seeds_to_decide, smallest_effect
from lmim.analysis.results import Arm, Results, Trial
from lmim.errors import count, word
from lmim.metrics import COLLAPSED, full_name, kept
from lmim.plan.claims import parse_claim, selects, statement

ROUNDING = 1e-6
"""Of the values compared: float32 parts equal ones by less, and no seeds agree to it but by chance."""
KEPT = "kept"
"""What a claim of collapse is judged by: see `lmim.metrics.kept`."""
NOTHING = Interval(0, None, None, None)
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True)
class Verdict:
    """A claim with its evidence. `effect` is positive where the claim holds."""

    claim: str
    verdict: str
    metric: str
    effect: Interval
    """Paired difference in the claim's direction; for collapse, the distance from 0.5 of what is left."""
    reason: str
    late: bool = False
    """The claim was stated when a trial of its arms had ended already."""
    arms: tuple[str, ...] = ()
    """Whom it is about."""
    holm: float | None = None
    """The effect's p, corrected for the number of claims in the file; None where there is none to correct."""

    @property
    def corrected(self) -> str:
        """The verdict after Holm's correction; empty where there is nothing to correct."""
        if self.holm is None:
            return ""
        return self.verdict if self.holm <= 1 - LEVEL else UNDECIDED

    @property
    def words(self) -> str:
        """The verdict for people; what was said of results that were there is no prediction."""
        return f"{self.verdict}, post hoc" if self.late else self.verdict


@dataclass(frozen=True)
class Side:
    """What one side of a claim selects."""

    text: str
    arms: tuple[Arm, ...]
    named: frozenset[str]
    """The axes that its terms name; pairs are formed over the others."""
    whole: bool
    """It is an arm's own name: nothing is left to pair over but the seed."""


def judge(results: Results) -> tuple[Verdict, ...]:
    """A verdict for each claim, in the file's order, and beside it the one after Holm's correction."""
    found = [_about(judge_claim(text, results), results) for text in results.claims]
    # a claim that has no p yet is one of their number too
    corrected = holm([1.0 if one.effect.p is None else one.effect.p for one in found])
    several = sum(one.effect.p is not None for one in found) > 1
    return tuple(
        replace(one, holm=p) if several and one.effect.p is not None else one
        for one, p in zip(found, corrected, strict=True)
    )


def _about(verdict: Verdict, results: Results) -> Verdict:
    """The verdict with its arms; it says so where the claim came after one had a result, for any sweep."""
    try:
        claim, key = parse_claim(verdict.claim), statement(verdict.claim, results.metric)
    except ValueError:
        return verdict
    sides = [_side(part, results) for part in (claim.left, claim.right) if part is not None]
    verdict = replace(verdict, arms=tuple(arm.name for side in sides for arm in side.arms))
    first = min((results.first.get(arm, math.inf) for arm in verdict.arms), default=math.inf)
    if results.stated.get(key, 0.0) <= first:
        return verdict
    note = "stated after the first results of its arms were in"
    return replace(verdict, late=True, reason=f"{note}; {verdict.reason}")


def judge_claim(text: str, results: Results) -> Verdict:
    """The verdict on one claim, from the trials that count.

    `A > B`, `A < B`: interval over seeds of the difference, paired at equal remaining axes and averaged
    over them. `A collapsed`, `A not collapsed`: interval over seeds of what is left of the representation
    (`kept`), against 0.5. It is a confidence sequence where results decided how many seeds there are, else
    the t-interval. The cells of one seed share the order of their data, every draw of equal settings
    and, where their encoder and decoder are of one make, their first weights: they are no independent draws.
    (Another decoder has other first weights, the encoder's too: they come from one stream.)
    """
    try:
        claim = parse_claim(text)
    except ValueError as error:
        return Verdict(text, UNDECIDED, results.metric, NOTHING, str(error))
    metric = KEPT if claim.right is None else full_name(claim.metric or results.metric)
    sides = [_side(part, results) for part in (claim.left, claim.right) if part is not None]
    if missing := [side.text for side in sides if not side.arms]:
        return Verdict(text, UNDECIDED, metric, NOTHING, f"no arm of the plan is {missing[0]}")
    effect, notes = (_difference if claim.right else _distance)(claim.op, sides, results, metric)
    lost = [_lost(side, results, metric) for side in sides]
    if sum(lost):
        notes.append(f"{count(sum(lost), 'trial')} without a finite value")
    # more, less: an arm must not win by the seeds that it survived
    ahead, behind = (lost[0], lost[-1]) if claim.op != "<" else (lost[-1], lost[0])
    return _verdict(text, metric, effect, notes, ahead, behind)


def _value(trial: Trial, metric: str) -> float:
    return kept(trial.metrics) if metric == KEPT else trial.metrics.get(metric, math.nan)


def _lost(side: Side, results: Results, metric: str) -> int:
    """How many of a side's trials have no finite value: they diverged."""
    values = [_value(trial, metric) for arm in side.arms for trial in results.of(arm.name)]
    return sum(not math.isfinite(value) for value in values)


def _difference(op: str, sides: Sequence[Side], results: Results, metric: str) -> tuple[Interval, list[str]]:
    """The paired difference in the claim's direction."""
    named = frozenset().union(*(side.named for side in sides))
    whole = any(side.whole for side in sides)
    more, less = (
        _cells(side, named, whole, results, metric) for side in (sides if op == ">" else sides[::-1])
    )
    shared: dict[int, set[tuple[str, ...]]] = {}
    for rest, seed in more.keys() & less.keys():
        shared.setdefault(seed, set()).add(rest)
    seeds, left_out = _complete(shared)
    pairs = [[(more[rest, seed], less[rest, seed]) for rest in shared[seed]] for seed in seeds]
    effect = _interval(
        [fmean(one - other for one, other in seed) for seed in pairs],
        [value for seed in pairs for pair in seed for value in pair],
        results.sequential,
    )
    cells = len(pairs[0]) if pairs else 0
    notes = [f"{count(effect.n, 'pair')} of equal seed" if whole else _over(effect.n, cells), *left_out]
    # a ladder plans most of its cells without one
    left, right = ({_rest(arm, named, whole) for arm in side.arms} for side in sides)
    if alone := sum(rest in left & right for rest, _ in more.keys() ^ less.keys()):
        notes.append(f"{alone} without a partner")
    return effect, notes


def _over(seeds: int, cells: int) -> str:
    """
    >>> _over(3, 4)
    '3 seeds, each the mean over 4 cells of the other axes'
    """
    return f"{count(seeds, 'seed')}, each the mean over {count(cells, 'cell')} of the other axes"


def _complete(cells: Mapping[int, Set[object]]) -> tuple[list[int], list[str]]:
    """The seeds that have every cell that any has, and a note on each other.

    A mean over the cells that happen to be there would be of something else for each seed; and to drop what
    one seed lacks from all of them would let that seed change what the claim is about.
    """
    whole = set().union(*cells.values())
    lacking = {seed: len(found) for seed, found in sorted(cells.items()) if len(found) < len(whole)}
    notes = [f"seed {seed} left out: {n} of {count(len(whole), 'cell')}" for seed, n in lacking.items()]
    return sorted(cells.keys() - lacking), notes


def _interval(values: Sequence[float], compared: Sequence[float], sequential: bool) -> Interval:
    """The interval over seeds; values that only the rounding of what was `compared` parts are equal."""
    if values and max(values) - min(values) <= ROUNDING * max(map(abs, compared)):
        values = [fmean(values)] * len(values)
    return interval(values, sequential=sequential)


def _distance(op: str, sides: Sequence[Side], results: Results, metric: str) -> tuple[Interval, list[str]]:
    """How far what is left of the representation lies on the claim's side of 0.5."""
    sign = 1 if op == "not collapsed" else -1
    ratios: dict[int, dict[str, float]] = {}
    for trial in (trial for arm in sides[0].arms for trial in results.of(arm.name)):
        if math.isfinite(ratio := _value(trial, metric)):
            ratios.setdefault(trial.seed, {})[trial.arm] = ratio
    seeds, notes = _complete({seed: found.keys() for seed, found in ratios.items()})
    means = [fmean(ratios[seed].values()) for seed in seeds]
    if means:
        mean = f"by rank, spread or neighbours, the largest, {fmean(means):.2f} is left of what was before"
        notes.insert(0, f"{count(len(means), 'seed')}; {mean}")
    distances = [sign * (mean - COLLAPSED) for mean in means]
    return _interval(distances, [COLLAPSED, *means], results.sequential), notes


def _verdict(claim: str, metric: str, effect: Interval, notes: list[str], ahead: int, behind: int) -> Verdict:
    """`ahead` and `behind`: trials that the side which the claim favours, and the other, lost."""
    if effect.low is None or effect.high is None:
        fewest = "three" if effect.sequential else "two"
        notes.append(
            f"an interval needs {fewest} values, there {'is' if effect.n == 1 else 'are'} {effect.n}"
        )
        notes += [needed(effect)] * bool(effect.deviation)
        return Verdict(claim, UNDECIDED, metric, effect, "; ".join(notes))
    if effect.low == effect.high:  # as two seeds may by chance: no spread is not certainty
        notes.append("all seeds differ by the same, which tells nothing of their spread")
        return Verdict(claim, UNDECIDED, metric, effect, "; ".join(notes))
    verdict = SUPPORTED if effect.low > 0 else CONTRADICTED if effect.high < 0 else UNDECIDED
    if verdict == UNDECIDED:
        notes += ["the interval holds zero", needed(effect)]
    elif ahead if verdict == SUPPORTED else behind:
        notes.append(f"{verdict} by the seeds that did not diverge alone")
        verdict = UNDECIDED
    return Verdict(claim, verdict, metric, effect, "; ".join(notes))


def needed(effect: Interval) -> str:
    """How many seeds would decide a claim, and what these could have found.

    >>> needed(interval([-1.0, 2.0, 2.0]))
    'about 15 seeds would decide it at this effect, these 3 could have found one of 5.65'
    """
    seeds, found = seeds_to_decide(effect), smallest_effect(effect)
    about = f"more than {MANY}" if seeds is None else f"about {seeds}"
    most = "none" if found is None else f"one of {found:.3g}"
    return f"{about} seeds would decide it at this effect, these {effect.n} could have found {most}"


def _side(text: str, results: Results) -> Side:
    arms = tuple(arm for arm in results.arms if selects(text, arm.name, arm.axes))
    terms = {term.partition("=")[0].removesuffix(".kind") for term in text.split()}
    named = {key for arm in arms for key in arm.axes if {key, key.rpartition(".")[2]} & terms}
    return Side(text, arms, frozenset(named), whole=not all("=" in term for term in text.split()))


def _rest(arm: Arm, named: frozenset[str], whole: bool) -> tuple[str, ...]:
    """The axes that the claim does not name, with the arm's values."""
    return () if whole else tuple(f"{k}={word(v)}" for k, v in sorted(arm.axes.items()) if k not in named)


def _cells(
    side: Side, named: frozenset[str], whole: bool, results: Results, metric: str
) -> dict[tuple[tuple[str, ...], int], float]:
    """Remaining axes and seed -> the value there; the mean where a side has several arms in one cell."""
    values: dict[tuple[tuple[str, ...], int], list[float]] = {}
    for arm in side.arms:
        rest = _rest(arm, named, whole)
        for trial in results.of(arm.name):
            value = _value(trial, metric)
            if math.isfinite(value):
                values.setdefault((rest, trial.seed), []).append(value)
    return {key: fmean(found) for key, found in values.items()}
