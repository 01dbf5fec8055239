"""Seeds where a claim is open: one more for its arms, until all are decided.

Claims are looked at after every seed, so their interval is the confidence sequence, which allows it
(`analysis.intervals`). They are judged from the trials' folders, for MLflow may be away. Which seeds an arm
has is found again from the sweep's record and the folders: a kill loses none, and a second call finds nothing
to run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lmim.errors import fail
from lmim.metrics import full_name
from lmim.plan import ablation
from lmim.plan.record import kept, place
from lmim.sweep.screen import say
from lmim.sweep.standing import Plan

if TYPE_CHECKING:
    from lmim.analysis.claims import Verdict

MAX_SEEDS = 12
FEWEST = 3
"""Seeds that can decide a claim; a test holds it equal to the interval's, which takes SciPy to import."""

Pair = tuple[str, int]
"""An arm and a seed that it has."""


def begin(sweep: ablation.Sweep, out: Path, most: int) -> ablation.Sweep:
    """The sweep with the call's seeds, and those of its record that have begun.

    Raises:
        UserError: nothing of it can be decided so.
    """
    start = sweep.spec.wanted
    if not sweep.claims:
        fail(sweep.spec.sheet.where(), "--until-decided: expected claims to decide, found none")
    if sweep.selects or sweep.spec.design.by_seed:
        key = "tune" if sweep.spec.search else "design"
        named = key if sweep.spec.search else f"{key} {sweep.design}"
        fail(sweep.spec.sheet.where(key), f"--until-decided: expected nothing that selects, found {named}")
    if most < max(FEWEST, len(start)):
        needed = f"the {len(start)} that the call begins with" if len(start) > FEWEST else f"{FEWEST}"
        fail("--max-seeds", f"expected at least {needed}, found {most}")
    arms = [arm.name for arm in sweep.arms]
    found = _with(sweep, [(arm, seed) for seed in start for arm in arms])
    if not any(_runs(found, verdict) for verdict in judged(Plan.read(found, out / "trials"))):
        fail("--only", "expected both sides of a claim, for --until-decided, found none")
    here = place(sweep.scale, sweep.settings)
    recorded = {
        t.id: t.seed for record in kept(sweep.name, out) if record.place == here for t in record.trials
    }
    seeds = dict.fromkeys([*start, *recorded.values()])
    every = Plan.read(_with(sweep, [(arm, seed) for seed in seeds for arm in arms]), out / "trials")
    begun = {id for id in recorded if id in every.states and every.states[id].status != "new"}
    return _with(sweep, [(t.arm, t.seed) for t in every.sweep.planned if t.seed in start or t.id in begun])


def more(plan: Plan, most: int, console: Console) -> Plan:
    """The plan with another seed for the arms of each open claim; the same plan where there is none."""
    failed = {trial.arm for trial in plan.where("failed")}  # as it might with every seed
    have = plan.sweep.spec.pairs or frozenset()
    new: dict[Pair, None] = {}
    said = []
    for verdict in judged(plan):
        if not _open(verdict):
            continue
        said.append(f"{verdict.claim} ({verdict.effect.n})")
        if _runs(plan.sweep, verdict) and not failed & {*verdict.arms}:
            missing = (
                [(a, seed) for a in verdict.arms if (a, seed) not in have] for seed in _pool(plan.sweep, most)
            )
            new |= dict.fromkeys(next(filter(None, missing), []))
    if said:
        seeds: dict[int, list[str]] = {}
        for arm, seed in new:
            seeds.setdefault(seed, []).append(arm)
        told = [f"seed {seed} for {', '.join(arms)}" for seed, arms in sorted(seeds.items())]
        line = f"not decided (by seeds): {', '.join(said)}; next: {'; '.join(told) or 'no more'}"
        say(console, line)
    if not new:
        return plan
    return Plan.read(_with(plan.sweep, [*_pairs(plan.sweep), *new]), plan.root)


def at_most(plan: Plan, most: int) -> int:
    """How many trials there are once no claim may have more seeds."""
    arms = {arm for verdict in judged(plan) if _runs(plan.sweep, verdict) for arm in verdict.arms}
    return len({*_pairs(plan.sweep), *((arm, seed) for arm in arms for seed in _pool(plan.sweep, most))})


def judged(plan: Plan) -> "tuple[Verdict, ...]":
    """The verdicts on what the folders hold, as the report will have them from MLflow."""
    from lmim.analysis import claims, results  # SciPy takes a moment, and most sweeps have their seeds fixed

    sweep = plan.sweep
    counts = {id: one for id, one in plan.states.items() if one.status == "done" and not one.excluded}
    found = results.Results(
        name=sweep.name,
        scale=sweep.scale,
        settings=sweep.settings,
        question=sweep.question,
        metric=full_name(sweep.metric),
        design=sweep.design,
        seeds=sweep.seeds,
        claims=tuple(claim.text for claim in sweep.claims),
        arms=tuple(results.Arm(arm.name, arm.axes, arm.baseline) for arm in sweep.arms),
        trials=tuple(
            results.Trial(t.id, t.arm, t.seed, metrics=counts[t.id].metrics)
            for t in sweep.planned
            if t.id in counts
        ),
        excluded=(),
        digest="",
        sequential=True,
    )
    return claims.judge(found)


def _open(verdict: "Verdict") -> bool:
    """Whether more seeds may decide it; where the interval excludes zero, it is for trials that diverged."""
    p = verdict.effect.p
    return verdict.verdict == "undecided" and (p is None or p > 0.05)


def _runs(sweep: ablation.Sweep, verdict: "Verdict") -> bool:
    """Whether the call runs all arms that it is about."""
    return {*verdict.arms} <= {trial.arm for trial in sweep.trials}


def _pool(sweep: ablation.Sweep, most: int) -> Sequence[int]:
    """The seeds in the order of their use: those in use, the file's, the numbers after the largest."""
    known = list(dict.fromkeys([*sweep.spec.seeds, *sweep.spec.file.seeds]))
    after = max(known) + 1
    return [*known, *range(after, after + most)][: max(most, len(sweep.spec.seeds))]


def _pairs(sweep: ablation.Sweep) -> list[Pair]:
    return [(trial.arm, trial.seed) for trial in sweep.planned]


def _with(sweep: ablation.Sweep, pairs: Iterable[Pair]) -> ablation.Sweep:
    """The sweep with these trials alone."""
    pairs = list(pairs)
    seeds = tuple(dict.fromkeys(seed for _, seed in pairs))
    return ablation.expand(replace(sweep.spec, seeds=seeds, wanted=seeds, pairs=frozenset(pairs)))
