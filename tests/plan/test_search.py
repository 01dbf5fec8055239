"""`tune:`: what it takes, what it refuses, and what of a search is whose."""

import pytest

from lmim.plan.ablation import Sweep
from lmim.plan.search import STARTUP, Made, Searched, best, tried
from tests.plan.conftest import Folder

ARMS = "axes: {loss: [mse, patch_discrimination]}\nseeds: [3, 4]\n"
LR = "optim.base_lr: {log: [0.001, 0.01]}"


def tuned(keys: str, more: str = "", arms: str = ARMS) -> str:
    return f"{arms}tune:\n  keys: {{{keys}}}\n  trials: 3\n{more}"


def suggestions(sweep: Sweep, *values: dict[str, float]) -> dict[str, list[Made]]:
    return {search.study.identity: [Made(one, {}) for one in values] for search in sweep.searches}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("loss: {categorical: [mse, cosine]}", "loss: expected a key to tune, found an axis of this sweep"),
        ("optim.base_lr: {log: [0, 0.1]}", "optim.base_lr: expected greater than 0, found 0"),
        ("mask.similarity: {log: [0, 0.1]}", "expected ends above 0 on a log scale"),
        ("optim.base_lr: {log: [0.1, 0.1]}", "expected low < high, found the empty range"),
        ("optim.base_lr: {log: [0.1, 0.01]}", "expected low < high, found the empty range"),
        ("optim.base_lr: {log: [0.1]}", "expected two ends"),
        ("optim.base_lr: {lineer: [0.1, 1]}", "did you mean linear?"),
        ("optim.base_lr: [0.1, 1]", "optim.base_lr: expected one of {log: [low, high]}"),
        ("optim.base_lr: {log: [a, 1]}", "optim.base_lr: expected"),
        ("optim.base_lr: {linear: [-1, 1]}", "optim.base_lr: expected"),
        ("optim.base_lrs: {log: [0.1, 1]}", "did you mean optim.base_lr?"),
        ("encoder.depth: {linear: [1, 2.5]}", "encoder.depth: expected"),
        ("encoder.depth: {integer: [1, 2.5]}", "encoder.depth: expected"),
        ("encoder.depth: {categorical: [2, 2]}", "expected choices that differ"),
        ("encoder.heads: {categorical: [4, 5]}", "impossible combination"),
        ("run.cpus: {integer: [1, 2]}", "expected a key that affects results, found orchestration"),
        ("seed: {integer: [1, 2]}", "expected a key that affects results, found the seed"),
        ("decoder.cues: {categorical: [true, false]}, supervised.pool: {categorical: [a, b]}", "supervised"),
        ("", "tune.keys: expected at least one key, found none"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_a_line(folder: Folder, keys: str, said: str) -> None:
    """Else a search of hours ends at its first suggestion, or tunes what the sweep compares."""
    message = folder.error(tuned(keys))
    assert said in message
    assert message.startswith("sweep.yaml:")


@pytest.mark.parametrize(
    ("more", "arguments", "said"),
    [
        ("  seeds: [3]\n", {}, "tune.seeds: expected seeds that the table has not"),
        ("", {"seeds": [0]}, "tune.seeds: expected seeds that the table has not"),
        ("  seeds: []\n", {}, "tune.seeds: expected at least one seed"),
        ("  trials: 0\n", {}, "trials"),
        ("  sampler: cmaes\n", {}, "expected one of tpe, random"),
        ("metric: collapse/rank\n", {}, "metric: expected one of a protocol"),
        (
            "",
            {"sets": ["optim.base_lr=0.1"]},
            "--set optim.base_lr=0.1: optim.base_lr: is tuned by this sweep",
        ),
    ],
)
def test_what_a_search_selects_by_is_not_what_is_reported(
    folder: Folder, more: str, arguments: dict[str, list[str]], said: str
) -> None:
    """Else the seed, or the images, that chose a value would praise it too."""
    text = tuned(LR, more).replace("  trials: 3\n", "", 1 if "trials" in more else 0)
    assert said in folder.error(text, **arguments)


def test_a_ladder_is_not_tuned(folder: Folder) -> None:
    """Its stages select already: the two would select from one another."""
    stages = "design: ladder\nstages: [{axes: {loss: [mse, cosine]}}]\nseeds: [3]\n"
    assert "expected a design that selects nothing itself" in folder.error(tuned(LR, arms=stages))


def test_each_arm_is_searched_in_the_keys_that_it_reads(folder: Folder) -> None:
    """A temperature that mse does not read would spend its budget on nothing."""
    text = tuned(f"{LR}, loss.tau: {{log: [0.05, 1.0]}}", "baselines: [raw_pixels, pixel_mim]\n")
    sweep = folder.load(text)
    keys = {one.study.arm: [r.key for r in one.study.ranges] for one in sweep.searches}
    assert keys == {
        "mse": ["optim.base_lr"],
        "patch_discrimination": ["optim.base_lr", "loss.tau"],
        "pixel_mim": ["optim.base_lr"],
    }
    assert {trial.arm for trial in sweep.trials if not trial.provisional} == {"raw_pixels"}


def test_the_winner_is_trained_on_the_seeds_of_the_table(folder: Folder) -> None:
    """What was searched with is no row; what won is, with every seed, once every suggestion is over."""
    sweep = folder.load(tuned(LR))
    values = [{"optim.base_lr": value} for value in (0.001, 0.004, 0.01)]
    made = suggestions(sweep, *values)
    asked = sweep.replan({}, made)
    trials = {(t.arm, t.suggestion): t for t in asked.planned if t.suggestion is not None}
    assert {t.seed for t in trials.values()} == {0}
    assert [one.split for one in asked.judged_by(trials["mse", 0])] == ["val"]
    results: dict[str, float | None] = {}
    for (arm, number), trial in trials.items():
        results[trial.id] = None if number == 2 else [1.0, 2.0][number if arm == "mse" else 1 - number]
    first = trials["mse", 0].id
    waiting = asked.replan({key: value for key, value in results.items() if key != first}, made)
    assert {t.arm for t in waiting.planned if t.provisional} == {"mse"}
    done = asked.replan(results, made)
    rows = [t for t in done.planned if t.suggestion is None]
    assert not any(t.provisional for t in rows)
    rates = {(t.arm, t.seed): t.config.optim.base_lr for t in rows}
    assert rates == {
        ("mse", 3): 0.004,
        ("mse", 4): 0.004,
        ("patch_discrimination", 3): 0.001,
        ("patch_discrimination", 4): 0.001,
    }
    assert [one.split for one in done.judged_by(rows[0])] == ["test"] * 3


def test_no_winner_without_a_value(folder: Folder) -> None:
    """An arm of which every suggestion diverged must not pass with the recipe's values."""
    sweep = folder.load(tuned(LR))
    made = suggestions(sweep, *[{"optim.base_lr": value} for value in (0.001, 0.004, 0.01)])
    asked = sweep.replan({}, made)
    done = asked.replan({t.id: None for t in asked.planned if t.suggestion is not None}, made)
    assert done.undecided
    assert all(t.provisional for t in done.planned if t.suggestion is None)


def test_values_that_do_not_go_together_have_been_tried(folder: Folder) -> None:
    """A suggestion without a config must end neither the sweep nor the search."""
    text = tuned("encoder.width: {categorical: [64, 96]}, encoder.heads: {categorical: [4, 16]}")
    sweep = folder.load(text)
    made = suggestions(sweep, {"encoder.width": 96, "encoder.heads": 64})
    found = sweep.replan({}, made).searches[0].tried
    assert [one.over for one in found] == [True]
    assert found[0].trials == ()


def test_a_study_is_known_by_what_its_suggestions_hang_on(folder: Folder) -> None:
    """More suggestions go on with a search; other ranges, seeds or recipes begin another."""

    def identity(text: str) -> str:
        return folder.load(text).searches[0].study.identity

    first = identity(tuned(LR))
    assert identity(tuned(LR).replace("trials: 3", "trials: 9")) == first
    others = [
        tuned(LR.replace("0.01]", "0.02]")),
        tuned(LR, "  seeds: [1]\n"),
        tuned(LR, "  at_once: 2\n"),
        tuned(LR, "config: {optim.base_lr: 0.002}\n"),
        tuned(LR, "metric: nn_top1\n"),
    ]
    assert len({first, *map(identity, others)}) == 1 + len(others)


def test_the_best_is_the_first_of_equals() -> None:
    """Another choice among equals would hang on the order in which trials end."""
    found = [tried({"a": n}, [str(n)], {"0": 1.0, "1": 2.0, "2": 2.0, "3": None}) for n in range(4)]
    winner, loser = best(found, "higher"), best(found, "lower")
    assert winner is not None
    assert loser is not None
    assert (winner.params, loser.params) == ({"a": 1}, {"a": 0})


def test_a_mean_needs_every_seed() -> None:
    """A suggestion that diverged on one of its seeds must not win by the other."""
    assert tried({}, ["a", "b"], {"a": 3.0, "b": None}).value is None
    assert tried({}, ["a", "b"], {"a": 3.0, "b": 4.0}).value == 3.5
    assert not tried({}, ["a", "b"], {"a": 3.0}).over


def test_the_recipe_is_tried_first_where_it_lies_in_the_ranges(folder: Folder) -> None:
    """A tuned arm that is worse than the recipe on validation would be a search that hid it."""
    inside, outside = (
        folder.load(tuned(f"optim.base_lr: {{log: {ends}}}", "config: {optim.base_lr: 0.004}\n"))
        for ends in ("[0.001, 0.01]", "[0.01, 0.1]")
    )

    def recipes(sweep: Sweep) -> list[dict[str, float] | None]:
        found: list[Searched] = list(sweep.searches)
        return [search.study.recipe for search in found]

    assert recipes(inside) == [{"optim.base_lr": 0.004}] * 2
    assert recipes(outside) == [None, None]


def test_a_suggestion_is_pruned_by_the_lots_before_its_own(folder: Folder) -> None:
    """By one of its own lot, whether it is pruned would hang on which of them was faster."""
    text = tuned(LR, "  prune: median\n  at_once: 2\nconfig: {optim.epochs: 8}\n").replace(
        "trials: 3", "trials: 9"
    )
    (study, _) = (search.study for search in folder.load(text).searches)
    made = [Made({}, {2: float(n), 4: 10.0 * n} if n else {2: 0.0}) for n in range(8)]
    assert study.prune(made[:4]) == study.prune(made[:5])
    few, enough = study.prune(made[:STARTUP]), study.prune(made[:7])
    assert few is not None
    assert enough is not None
    assert few.looks == ((2, None), (4, None), (6, None))
    assert enough.looks == ((2, 2.5), (4, 30.0), (6, None)), "the fifth of them at 4 is one too few at 6"
