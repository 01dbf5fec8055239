"""Seeds until each claim is decided: who gets them, when they end, and that a kill loses none."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lmim.analysis import intervals
from lmim.plan.ablation import Sweep, load
from lmim.plan.record import Record
from lmim.sweep import command, sequential
from lmim.sweep.standing import Plan
from lmim.trial.code import code_digest
from lmim.trial.folder import TrialFolder
from tests.sweep.running import TINY, arguments, folders, write
from tests.sweep.test_budget import plant
from tests.trial.builders import record

TODO = ("new", "interrupted", "running", "trained")
CLAIMS = "evaluate: [knn]\nclaims: [mse > cosine, smooth_l1 > cosine]\n"
LEVELS = {"mse": 80.0, "cosine": 20.0, "smooth_l1": 20.0, "norm_mse": 5.0}
ARMS = f"[{', '.join(LEVELS)}]"


def figure(arm: str, seed: int) -> float:
    """What a trial would have found: mse is 60 better than cosine, and smooth_l1 as good, by noise of 1."""
    return LEVELS[arm] + float(np.random.default_rng([seed, len(arm)]).standard_normal())


def finish(plan: Plan, only: Callable[[str], bool] = lambda arm: True) -> Plan:
    """Keep the plan as a round does, and leave what it lacks as trained and judged."""
    found = Record.of(plan.sweep)
    found.file(plan.root.parent).parent.mkdir(parents=True, exist_ok=True)
    found.file(plan.root.parent).write_text(found.model_dump_json())
    for job in plan.missing(TODO):
        trial, folder = job.trial, TrialFolder(plan.root, job.trial.id)
        folder.create(trial.config)
        if only(trial.arm):
            folder.update(status="done", outcome="learned", code=code_digest())
            given = {"data_version": trial.config.data.version, "code": code_digest()}
            record(folder, plan.sweep.evaluations[0], figure(trial.arm, trial.seed), **given)
    return Plan.read(plan.sweep, plan.root)


def begin(file: Path, most: int = 6, **asked: tuple[int, ...] | tuple[str, ...]) -> Plan:
    """How the command begins."""
    sweep: Sweep = load(file, sets=TINY, **asked)  # type: ignore[arg-type]
    return Plan.read(sequential.begin(sweep, file.parent, most), file.parent / "trials")


def to_the_end(plan: Plan, most: int = 6) -> tuple[Plan, str]:
    """Rounds until nothing more is asked for, and what was said."""
    said = io.StringIO()
    while True:
        plan = finish(plan)
        grown = sequential.more(plan, most, Console(file=said, width=400))
        if grown is plan:
            return plan, said.getvalue()
        plan = grown


def seeds(plan: Plan) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for trial in plan.sweep.planned:
        found.setdefault(trial.arm, []).append(trial.seed)
    return found


def test_seeds_go_to_open_claims_alone(tmp_path: Path) -> None:
    """Otherwise arms of which all is known are trained again and again, or an open claim stays so."""
    file = write(tmp_path, arms=ARMS, seeds="[3, 5]", more=CLAIMS)
    plan, said = to_the_end(begin(file, seeds=(3,)))
    # the call's, then the file's, then the numbers after; mse > cosine is decided by three
    assert seeds(plan) == {
        "mse": [3, 5, 6],
        "cosine": [3, 5, 6, 7, 8, 9],
        "smooth_l1": [3, 5, 6, 7, 8, 9],
        "norm_mse": [3],
    }
    lines = said.splitlines()
    assert len(lines) == 6, "one line a round"
    first = "not decided (by seeds): mse > cosine (1), smooth_l1 > cosine (1); next: seed 5 for mse, cosine,"
    assert lines[0].startswith(first)
    assert lines[3] == "not decided (by seeds): smooth_l1 > cosine (4); next: seed 8 for smooth_l1, cosine"
    assert lines[-1] == "not decided (by seeds): smooth_l1 > cosine (6); next: no more"
    assert [v.verdict for v in sequential.judged(plan)] == ["supported", "undecided"]


def test_a_second_call_finds_all_seeds_and_asks_for_none(tmp_path: Path) -> None:
    """Otherwise the same command trains on, or its report forgets the seeds that it had chosen."""
    file = write(tmp_path, arms=ARMS, seeds="[3, 5]", more=CLAIMS)
    plan, _ = to_the_end(begin(file, seeds=(3,)))
    again = begin(file, seeds=(3,))
    assert seeds(again) == seeds(plan)
    assert not again.missing(TODO)
    assert sequential.more(again, 6, Console(file=io.StringIO())) is again
    more, _ = to_the_end(begin(file, most=8, seeds=(3,)), most=8)
    assert len(seeds(more)["cosine"]) == 8
    assert seeds(more)["mse"] == seeds(plan)["mse"]


def test_a_kill_within_a_round_loses_nothing(tmp_path: Path) -> None:
    """Otherwise a trial that had ended is in no table, or its partner of the same seed is never run."""
    file = write(tmp_path, arms=ARMS, seeds="[3, 5]", more=CLAIMS)
    whole, _ = to_the_end(begin(file, seeds=(3,)))
    (tmp_path / "killed").mkdir()
    file = write(tmp_path / "killed", arms=ARMS, seeds="[3, 5]", more=CLAIMS)
    plan = finish(begin(file, seeds=(3,)))
    plan = sequential.more(plan, 6, Console(file=io.StringIO()))
    finish(plan, only=lambda arm: arm == "cosine")
    again = begin(file, seeds=(3,))
    assert seeds(again)["cosine"] == [3, 5]
    ended, _ = to_the_end(again)
    assert {arm: sorted(found) for arm, found in seeds(ended).items()} == seeds(whole)


def test_what_fails_is_not_tried_with_every_seed(tmp_path: Path) -> None:
    """Otherwise an arm that cannot run fails as often as there may be seeds."""
    file = write(tmp_path, arms=ARMS, seeds="[3]", more=CLAIMS)
    plan = finish(begin(file))
    for trial in plan.sweep.planned:
        if trial.arm == "smooth_l1":
            TrialFolder(plan.root, trial.id).update(status="failed", error="OutOfMemoryError: too large")
    plan = sequential.more(Plan.read(plan.sweep, plan.root), 6, Console(file=io.StringIO()))
    assert seeds(plan) == {"mse": [3, 4], "cosine": [3, 4], "smooth_l1": [3], "norm_mse": [3]}


def test_only_holds_for_what_is_added(tmp_path: Path) -> None:
    """Otherwise --only trains arms that it left out."""
    file = write(tmp_path, arms=ARMS, seeds="[3]", more=CLAIMS)
    plan = finish(begin(file, only=("mse", "cosine")))
    plan = sequential.more(plan, 6, Console(file=io.StringIO()))
    assert seeds(plan) == {"mse": [3, 4], "cosine": [3, 4], "smooth_l1": [3], "norm_mse": [3]}


def test_a_record_stays_sequential(tmp_path: Path) -> None:
    """Otherwise a call without the option gives seeds that were chosen by looking an interval of one look."""
    file = write(tmp_path, arms=ARMS, seeds="[3]", more=CLAIMS)
    before = Record.of(begin(file).sweep)
    plain = Record.of(load(file, sets=TINY))
    assert (before.sequential, plain.sequential) == (True, False)
    assert plain.since([before]).sequential
    assert not Record.of(load(file, sets=[*TINY, "optim.epochs=2"])).since([before]).sequential


def test_fewest_is_the_intervals_own() -> None:
    """Otherwise --max-seeds allows what can decide nothing."""
    reach = [intervals.critical(n, sequential=True) for n in range(2, 5)]
    assert [np.isfinite(one) for one in reach] == [n >= sequential.FEWEST for n in range(2, 5)]


@pytest.mark.parametrize(
    ("more", "words", "expected"),
    [
        ("", ["--until-decided"], "--until-decided: expected claims to decide, found none"),
        (CLAIMS, ["--max-seeds", "5"], "--max-seeds: expected with --until-decided alone"),
        (CLAIMS, ["--until-decided", "--max-seeds", "2"], "--max-seeds: expected at least 3, found 2"),
        (
            CLAIMS,
            ["--until-decided", "--max-seeds", "3", "--seeds", "0,1,2,3"],
            "--max-seeds: expected at least the 4 that the call begins with, found 3",
        ),
        (CLAIMS, ["--until-decided", "--only", "mse"], "--only: expected both sides of a claim"),
    ],
)
def test_bad_input_gets_one_line(
    more: str, words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a sweep starts that can decide nothing, or that looks at one interval many times."""
    file = write(tmp_path, arms=ARMS, more=more)
    load(file, sets=TINY)
    capsys.readouterr()
    assert command.main([*arguments(file), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/trials/*"))


def test_a_design_that_selects_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise each new seed is another ladder, with other winners."""
    file = tmp_path / "ladder.yaml"
    file.write_text(
        "name: ladder\ndesign: ladder\nmetric: knn_top1\nclaims: [loss=mse > loss=cosine]\n"
        "stages:\n  - axes: {loss: [mse, cosine]}\n"
    )
    assert command.main([*arguments(file), "--until-decided"]) == 2
    assert (
        f"{file}:2: --until-decided: expected nothing that selects, found design ladder"
        in capsys.readouterr().err
    )


def test_the_command_decides_and_then_rests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the option does not do its job: rounds of trials, verdicts of all looks, an end."""
    claims = "claims: [smooth_l1 not collapsed, mse > cosine]\nevaluate: [nn, knn]\n"
    file = write(tmp_path, arms="[mse, cosine, smooth_l1]", seeds="[3]", more=claims)
    words = arguments(file, "--serial", "--until-decided", "--max-seeds", "4")
    assert command.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "3 to do" in printed
    assert "more seeds follow where a claim stays open: at most 12 trials in all" in printed
    assert command.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = [row["arm"] for row in found["trials"]]
    assert [trained.count(arm) for arm in ("mse", "cosine", "smooth_l1")] == [4, 4, 3]
    verdicts = {one["claim"]: one for one in found["verdicts"]}
    assert [(one["verdict"], one["sequential"], one["n"]) for one in verdicts.values()] == [
        ("supported", True, 3),
        ("undecided", True, 4),
    ]
    assert verdicts["mse > cosine"]["after_holm"] == "undecided"

    before = {folder.id: folder.state() for folder in folders(file)}
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    assert "nothing is missing (11 done)" in printed
    assert "95 % confidence sequence, valid however often one looks" in printed
    assert "seeds would decide it at this effect" in printed
    assert {folder.id: folder.state() for folder in folders(file)} == before


@pytest.mark.slow
def test_a_budget_ends_the_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the one is overdrawn for want of a verdict, or the other forgets the seeds it asked for."""
    file = write(tmp_path, seeds="[3]", more="claims: [mse > cosine]\nevaluate: [knn]\n")
    words = arguments(file, "--serial", "--until-decided", "--max-seeds", "3")
    assert command.main(arguments(file, "--serial", "--only", "mse")) == 0
    plant(file, 3600.0)  # by which one more trial can be paid, and two cannot
    capsys.readouterr()
    assert command.main([*words, "--budget", "1.5coreh"]) == 3
    printed = capsys.readouterr().out
    assert "next: seed 4 for mse, cosine" in printed
    assert "Missing: 2 trials: mse (seed 4), cosine (seed 4); cost of what is missing: " in printed
    assert command.main(words) == 0
    assert "next: seed 5 for mse, cosine" in capsys.readouterr().out
    assert len(folders(file)) == 9 * 2 + 3 * 2
