"""Verdicts against statistics worked by hand."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmim.analysis import claims, results
from tests.analysis.builders import ARMS, NN, PLAN, RUNS, plan_of, runs_of


def test_paired_claim_equals_ttest_rel() -> None:
    """A verdict that is not the paired t-test's would not be what the report says it is."""
    verdict = claims.judge_claim("patch_discrimination > mse", results.assemble(PLAN, RUNS))
    test = stats.ttest_rel(NN["patch_discrimination"], NN["mse"])
    bounds = test.confidence_interval(0.95)
    assert verdict.verdict == "supported"
    assert verdict.effect.mean == pytest.approx((7.3 + 7.5 + 7.5) / 3)
    assert (verdict.effect.low, verdict.effect.high) == pytest.approx((bounds.low, bounds.high))
    assert verdict.effect.p == pytest.approx(test.pvalue)


def test_a_claim_made_after_results_is_marked() -> None:
    """What was seen before it was claimed must not pass for a prediction, whichever sweep had trained it."""
    ends = {"mse": 20_000, "cosine": 30_000, "patch_discrimination": 40_000}
    runs = [replace(run, ended=ends.get(run.arm, 90_000) + run.seed) for run in RUNS]
    stated = {
        "patch_discrimination > mse on eval/knn_top1": 19.0,
        "mse > patch_discrimination on eval/knn_top1": 21.0,
        "mse > cosine on eval/knn_top1": 20.0,
    }
    found = results.assemble(PLAN | {"stated": stated}, runs)
    verdicts = {verdict.claim: verdict for verdict in claims.judge(found)}
    assert [claim for claim, verdict in verdicts.items() if verdict.late] == ["mse > patch_discrimination"]
    late = verdicts["mse > patch_discrimination"]
    assert late.words == "contradicted, post hoc"
    assert late.reason.startswith("stated after the first results of its arms were in; 3 pairs")
    assert set(late.arms) == {"mse", "patch_discrimination"}
    assert verdicts["mse collapsed"].words == "supported", "of an older record nobody knows"

    # what is excluded was a result nonetheless; one that failed was none
    runs = [replace(run, code="01d") if run.seed == 0 else replace(run, ended=99_000) for run in runs]
    (late,) = (v for v in claims.judge(results.assemble(PLAN | {"stated": stated}, runs)) if v.late)
    assert late.claim == "mse > patch_discrimination"
    runs = [replace(run, status="failed") if run.seed == 0 else run for run in runs]
    assert not any(v.late for v in claims.judge(results.assemble(PLAN | {"stated": stated}, runs)))


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("patch_discrimination > mse", "supported"),
        ("mse < patch_discrimination", "supported"),
        ("mse > patch_discrimination", "contradicted"),
        ("mse > cosine", "undecided"),
        ("mse collapsed", "supported"),
        ("mse not collapsed", "contradicted"),
        ("cosine not collapsed", "supported"),
        ("cosine collapsed", "contradicted"),
        ("random_encoder > mse", "undecided"),
        ("loss=patch_discrimination > loss=mse", "supported"),
        ("raw_pixels > patch_discrimination", "supported"),
        ("raw_pixels collapsed", "undecided"),
        ("nonsense > mse", "undecided"),
    ],
)
def test_verdicts(claim: str, expected: str) -> None:
    """Each kind of claim gets the verdict that its figures give, baselines included."""
    assert claims.judge_claim(claim, results.assemble(PLAN, RUNS)).verdict == expected


def test_one_seed_decides_nothing() -> None:
    """A single pair has no interval: calling it supported would be a guess."""
    plan = plan_of({arm: {"loss": arm} for arm in ARMS}, seeds=1)
    verdict = claims.judge_claim("patch_discrimination > mse", results.assemble(plan, runs_of(plan)))
    assert verdict.verdict == "undecided"
    assert "two values" in verdict.reason


def grid_of(seeds: int) -> tuple[dict[str, Any], list[results.Trial]]:
    """Plan and trials of gap x similarity; the gap helps by about one, most with similarity 0.1."""
    grid = {
        f"gap={g} similarity={s}": {"mask.gap": g, "mask.similarity": s} for g in (0, 1) for s in (0, 0.1)
    }
    plan = plan_of(grid, seeds)
    runs = []
    for t in plan["trials"]:
        axes = grid.get(t["arm"], {"mask.gap": 0, "mask.similarity": 0})
        effect = axes["mask.gap"] * (1 + 0.1 * t["seed"] + 30 * (axes["mask.similarity"] - 0.05))
        metrics = {
            "eval/knn_top1": 100 * axes["mask.similarity"] + effect,
            "eval/rank_ratio": 0.9 + effect / 100,
        }
        run = results.Trial(t["id"], t["arm"], t["seed"], t["id"], code="c0de", metrics=metrics)
        runs.append(run)
    return plan, runs


def test_terms_pair_over_the_remaining_axes() -> None:
    """`gap=1 > gap=0` compares within each similarity and seed; mixing them would drown the effect."""
    found = results.assemble(*grid_of(2))
    verdict = claims.judge_claim("gap=1 > mask.gap=0", found)
    assert verdict.effect.n == 2, "cells of one seed are no independent draws"
    assert verdict.effect.mean == pytest.approx(1.05)
    assert "2 seeds, each the mean over 2 cells" in verdict.reason
    assert verdict.verdict == "supported"
    whole = claims.judge_claim("gap=1 similarity=0.1 > gap=0 similarity=0.1", found)
    assert whole.effect.n == 2


def test_a_seed_that_lacks_cells_is_left_out() -> None:
    """One pair of a fifth seed must not turn over what four complete seeds say, by changing the question."""
    plan, runs = grid_of(5)
    claim = "gap=1 > gap=0"
    four = claims.judge_claim(claim, results.assemble(plan, [run for run in runs if run.seed < 4]))
    assert (four.verdict, four.effect.n) == ("supported", 4)
    lacking = [run for run in runs if run.seed < 4 or "similarity=0.1" not in run.arm]
    verdict = claims.judge_claim(claim, results.assemble(plan, lacking))
    assert (verdict.verdict, verdict.effect) == ("supported", four.effect)
    assert "4 seeds, each the mean over 2 cells" in verdict.reason
    assert "seed 4 left out: 1 of 2 cells" in verdict.reason
    ratio = claims.judge_claim("gap=1 not collapsed", results.assemble(plan, lacking))
    assert (ratio.verdict, ratio.effect.n) == ("supported", 4)
    assert "seed 4 left out: 1 of 2 cells" in ratio.reason


def test_what_keeps_its_spread_has_not_collapsed() -> None:
    """Features of few directions may tell images apart: a claim of collapse needs more than a low rank."""
    ratios = {"eval/rank_ratio": 0.2, "collapse/spread_ratio": 0.9}
    runs = [replace(run, metrics={k: v + run.seed / 100 for k, v in ratios.items()}) for run in RUNS]
    assert claims.judge_claim("mse collapsed", results.assemble(PLAN, runs)).verdict == "contradicted"
    runs = [
        replace(run, metrics={**run.metrics, "collapse/spread_ratio": 0.3 + run.seed / 100}) for run in runs
    ]
    verdict = claims.judge_claim("mse collapsed", results.assemble(PLAN, runs))
    assert verdict.verdict == "supported"
    assert "by rank, spread or neighbours, the largest, 0.31 is left" in verdict.reason


def test_diverged_trial_has_no_pair() -> None:
    """A diverged trial is no value to compare, and its gap is said."""
    runs = [*RUNS]
    runs[1] = replace(runs[1], outcome="diverged", metrics={"system/seconds": 36.0})
    found = results.assemble(PLAN, runs)
    verdict = claims.judge_claim("patch_discrimination > mse", found)
    assert verdict.effect.n == 2
    assert "1 trial without a finite value" in verdict.reason
    assert claims.judge_claim("mse < patch_discrimination", found).verdict == "supported"
    assert claims.judge_claim("mse > patch_discrimination", found).verdict == "contradicted"


def test_an_arm_does_not_win_by_the_seeds_that_it_survived() -> None:
    """An arm that diverges on one seed of three is not better, however good the other two are."""
    runs = [replace(r, metrics={}) if r.id == "patch_discrimination-1" else r for r in RUNS]
    found = results.assemble(PLAN, runs)
    for claim in ("patch_discrimination > mse", "mse > patch_discrimination", "mse < patch_discrimination"):
        verdict = claims.judge_claim(claim, found)
        assert verdict.verdict == "undecided"
        assert "by the seeds that did not diverge alone" in verdict.reason


def test_seeds_without_spread_decide_nothing() -> None:
    """Two may agree by chance, and an interval of no width would be certain of it."""
    runs = [replace(r, metrics={"eval/knn_top1": 9.0 if r.arm == "mse" else 8.0}) for r in RUNS]
    verdict = claims.judge_claim("mse > cosine", results.assemble(PLAN, runs))
    assert verdict.verdict == "undecided"
    assert "nothing of their spread" in verdict.reason


@pytest.mark.parametrize("level", [0.0, 1.1])
def test_seeds_that_only_rounding_parts_decide_nothing(level: float) -> None:
    """A difference of 0.1 + 0.2 - 0.3 is none: a verdict on it, at p = 6e-17, would be on the arithmetic."""
    values = {"mse": [level + v for v in (0.1 + 0.2, 0.7 + 0.1, 0.3 + 0.6)], "cosine": [0.3, 0.8, 0.9]}
    runs = [replace(r, metrics={"eval/knn_top1": values.get(r.arm, [0] * 3)[r.seed]}) for r in RUNS]
    verdict = claims.judge_claim("mse > cosine", results.assemble(PLAN, runs))
    assert verdict.verdict == "undecided"
    assert "nothing of their spread" in verdict.reason
    assert verdict.effect.p is None


def test_claim_on_another_metric() -> None:
    """`on nn_top1` must be judged by that metric, not by the sweep's."""
    verdict = claims.judge_claim("patch_discrimination > mse on nn_top1", results.assemble(PLAN, RUNS))
    assert verdict.metric == "eval/nn_top1"
    assert verdict.effect.mean == pytest.approx((7.3 + 7.5 + 7.5) / 6)


def test_holm_by_the_number_of_claims() -> None:
    """Of twenty claims without an effect one comes out: beside it must stand what is left of it."""
    found = claims.judge(results.assemble(PLAN, RUNS))
    p = [verdict.effect.p or 1.0 for verdict in found]
    order = sorted(p)
    assert found[0].holm == pytest.approx(4 * order[0])
    assert [v.corrected for v in found] == ["supported", "contradicted", "undecided", "supported"]
    one = claims.judge(results.assemble(PLAN | {"claims": ["mse > cosine"]}, RUNS))
    assert (one[0].holm, one[0].corrected) == (None, ""), "there is nothing to correct"


@given(st.lists(st.tuples(*[st.floats(-9, 9)] * 3), min_size=2, max_size=6))
def test_holm_only_takes_away(differences: list[tuple[float, ...]]) -> None:
    """A correction that decides what the claim alone does not would be none."""
    arms = {f"arm{index}": values for index, values in enumerate(differences)}
    said = [f"{arm} > mse" for arm in arms]
    plan = plan_of({arm: {} for arm in ("mse", *arms)}, claims=said, trials=[])
    runs = [
        results.Trial(f"{arm}-{seed}", arm, seed, code="c0de", metrics={"eval/knn_top1": value})
        for arm, values in {**arms, "mse": (0.0, 0.0, 0.0)}.items()
        for seed, value in enumerate(values)
    ]
    plan["trials"] = [{"id": run.id, "arm": run.arm, "seed": run.seed} for run in runs]
    for sequential in (False, True):
        for verdict in claims.judge(results.assemble(plan | {"sequential": sequential}, runs)):
            assert verdict.corrected in ("", claims.UNDECIDED, verdict.verdict)


def test_a_sweep_that_looks_again_has_the_interval_for_it() -> None:
    """Three seeds that were added until they agreed would pass for three that were fixed before."""
    found = results.assemble(PLAN | {"sequential": True}, RUNS)
    verdict = claims.judge_claim("patch_discrimination > mse", found)
    once = claims.judge_claim("patch_discrimination > mse", results.assemble(PLAN, RUNS))
    assert verdict.effect.sequential
    assert (verdict.verdict, verdict.effect.mean) == ("supported", once.effect.mean)
    assert once.effect.half is not None
    assert verdict.effect.half == pytest.approx(once.effect.half * 17.241 / 4.3027, rel=1e-3)
    verdict = claims.judge_claim("mse > cosine", found)
    assert verdict.reason == (
        "3 pairs of equal seed; the interval holds zero; more than 100 seeds would decide it at this effect, "
        "these 3 could have found one of 12"
    )
    two = [run for run in RUNS if run.seed < 2]
    verdict = claims.judge_claim(
        "patch_discrimination > mse", results.assemble(PLAN | {"sequential": True}, two)
    )
    assert verdict.verdict == "undecided"
    assert "an interval needs three values, there are 2; about 3 seeds would decide it" in verdict.reason
