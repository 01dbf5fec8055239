"""How a sweep stands: what is missing, what other code made, and which arm a ladder goes on with."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lmim.plan import cost
from lmim.plan.ablation import load
from lmim.sweep import command
from lmim.sweep.screen import summary
from lmim.sweep.standing import Plan, cost_of
from lmim.trial.code import code_digest
from lmim.trial.folder import Replay, TrialFolder
from tests.sweep.running import TINY, write
from tests.trial.builders import record

TODO = ("new", "interrupted", "running", "trained")


def finish(plan: Plan, figures: dict[str, dict[str, float]]) -> None:
    """Leave trials as trained and judged: arm to the figure of each split."""
    for trial in plan.sweep.planned:
        folder = TrialFolder(plan.root, trial.id)
        if trial.arm in figures and not trial.provisional:
            folder.create(trial.config)
            folder.update(status="done", outcome="learned", code=code_digest())
            for one in plan.sweep.evaluations:
                if one.split in figures[trial.arm]:
                    version = trial.config.data.version
                    figure = figures[trial.arm][one.split]
                    record(folder, one, figure, data_version=version, code=code_digest())


def test_a_ladder_selects_on_the_validation_split(tmp_path: Path) -> None:
    """Otherwise the winner is chosen by the figures that are reported, which then flatter it."""
    file = tmp_path / "ladder.yaml"
    file.write_text(
        "name: ladder\ndesign: ladder\nmetric: knn_top1\nevaluate: [nn, {knn: {k: 20}}]\n"
        "stages:\n  - axes: {loss: [mse, cosine]}\n  - axes: {mask.ratio: [0.5, 0.6]}\n"
    )
    plan = Plan.read(load(file, sets=TINY), tmp_path / "trials").settled()
    assert plan.sweep.selection == "val/knn_top1"
    assert [(one.name, one.split) for one in plan.sweep.evaluations] == [
        ("nn", "test"),
        ("knn", "test"),
        ("knn", "val"),
    ]
    assert {job.trial.arm for job in plan.missing(TODO)} == {"loss=mse", "loss=cosine"}
    finish(plan, {"loss=mse": {"test": 90.0}, "loss=cosine": {"test": 10.0}})
    plan = Plan.read(plan.sweep, plan.root).settled()
    assert {job.trial.arm for job in plan.missing(TODO)} == {"loss=mse", "loss=cosine"}, "no val"
    finish(plan, {"loss=mse": {"val": 20.0}, "loss=cosine": {"val": 30.0}})
    plan = Plan.read(plan.sweep, plan.root).settled()
    assert [stands.metrics["val/knn_top1"] for stands in plan.states.values() if stands.metrics] == [20, 30]
    missing = [job.trial for job in plan.missing(TODO)]
    assert len(missing) == 2
    assert {trial.config.section("loss").kind for trial in missing} == {"cosine"}


def test_only_other_code_is_compared_once_an_arm(tmp_path: Path) -> None:
    """Otherwise every start replays what is known, or old figures stand in the table unchecked."""
    file = write(tmp_path, seeds="[0, 1]", more="evaluate: [knn]\n")
    plan = Plan.read(load(file, sets=TINY), tmp_path / "trials")
    assert not plan.stale()
    finish(plan, {"mse": {"test": 10.0}, "cosine": {"test": 20.0}})
    assert not Plan.read(plan.sweep, plan.root).stale(), "today's code"
    for trial in plan.sweep.planned:
        if trial.arm == "mse":
            TrialFolder(plan.root, trial.id).update(code="0ld")
    plan = Plan.read(plan.sweep, plan.root)
    assert not plan.missing(TODO)
    (job,) = plan.stale()
    both = [trial.id for trial in plan.sweep.planned if trial.arm == "mse"]
    assert (job.trial.id, list(job.replay)) == (both[0], both)
    for one in both:
        TrialFolder(plan.root, one).record_replay(Replay(code=code_digest(), commit="c", of=both[0]))
    assert not Plan.read(plan.sweep, plan.root).stale()


def test_a_ladder_stands_on_no_trial_that_its_report_leaves_out(tmp_path: Path) -> None:
    """Otherwise a later stage trains on a winner that no table has, chosen by code that does not exist."""
    file = tmp_path / "ladder.yaml"
    file.write_text(
        "name: ladder\ndesign: ladder\nmetric: knn_top1\nevaluate: [{knn: {k: 20}}]\n"
        "stages:\n  - axes: {loss: [mse, cosine]}\n  - axes: {mask.ratio: [0.5, 0.6]}\n"
    )
    plan = Plan.read(load(file, sets=TINY), tmp_path / "trials")
    arms = {"loss=mse": {"val": 20.0, "test": 1.0}, "loss=cosine": {"val": 30.0, "test": 1.0}}
    finish(plan, arms)
    assert len(Plan.read(plan.sweep, plan.root).settled().missing(TODO)) == 2, "cosine has won"
    (best,) = (TrialFolder(plan.root, t.id) for t in plan.sweep.planned if t.arm == "loss=cosine")
    best.update(code="0ld")
    plan = Plan.read(plan.sweep, plan.root).settled()
    assert not plan.missing(TODO), "what was not yet compared has not won"
    assert [job.trial.id for job in plan.stale()] == [best.id]
    best.record_replay(Replay(code=code_digest(), commit="c", of=best.id, difference="step 1: loss"))
    plan = Plan.read(plan.sweep, plan.root).settled()
    assert (plan.missing(TODO), plan.stale()) == ([], []), "what differs has not won"
    best.record_replay(Replay(code=code_digest(), commit="c", of=best.id))
    missing = Plan.read(plan.sweep, plan.root).settled().missing(TODO)
    assert {job.trial.config.section("loss").kind for job in missing} == {"cosine"}


def test_the_status_says_what_is_in_no_table(tmp_path: Path) -> None:
    """Otherwise the command calls a sweep done of which an arm has no row."""
    file = write(tmp_path, seeds="[0, 1]", more="evaluate: [knn]\n")
    plan = Plan.read(load(file, sets=TINY), tmp_path / "trials")
    finish(plan, {"mse": {"test": 10.0}, "cosine": {"test": 20.0}})
    plan = Plan.read(plan.sweep, plan.root)
    assert summary(plan) == "4 done"
    assert [(row["excluded"], row["metrics"]) for row in plan.rows()][:1] == [("", {"eval/knn_top1": 10.0})]
    first = TrialFolder(plan.root, plan.sweep.planned[0].id)
    first.update(code="0ld")
    first.record_replay(Replay(code=code_digest(), commit="c", of=first.id, difference="step 1: loss"))
    plan = Plan.read(plan.sweep, plan.root)
    assert summary(plan) == "4 done; 1 of those done of other code and in no table"
    assert [row["excluded"] for row in plan.rows()] == ["step 1: loss", "", "", ""]
    printed = io.StringIO()
    assert command._exit_code(plan, Console(file=printed, width=200)) == 1
    assert "1 trials of mse" not in printed.getvalue()
    assert "1 trial of mse" in printed.getvalue()


def test_what_was_judged_on_other_data_is_to_be_judged(tmp_path: Path) -> None:
    """Otherwise figures of images that have changed stand in the table."""
    file = write(tmp_path, seeds="[0]", more="evaluate: [knn]\n")
    sweep = load(file, sets=TINY)
    plan = Plan.read(sweep, tmp_path / "trials")
    for trial in sweep.planned:
        folder = TrialFolder(plan.root, trial.id)
        folder.create(trial.config)
        folder.update(status="done")
        record(folder, sweep.evaluations[0], 10.0, data_version="of yesterday")
    plan = Plan.read(sweep, plan.root)
    assert [row["status"] for row in plan.rows()] == ["trained", "trained"]
    assert {job.trial.arm for job in plan.missing(TODO)} == {"mse", "cosine"}


def test_a_changed_protocol_leaves_training_and_the_others_in_their_tables(tmp_path: Path) -> None:
    """Else a mended protocol of one sweep would cost another, which never asks for it, all of its trials."""
    asked = load(write(tmp_path, more="evaluate: [nn, knn]\n"), sets=TINY)
    plan = Plan.read(asked, tmp_path / "trials")
    finish(plan, {"mse": {"test": 10.0}, "cosine": {"test": 20.0}})
    first = TrialFolder(plan.root, plan.sweep.planned[0].id)
    version = first.config().data.version
    for one in asked.evaluations:
        record(first, one, 10.0, data_version=version, code="0ld")
    first.update(code="0ld")
    judged = {"eval/nn_top1": "step 2: eval/nn_top1 is 1, was 2"}
    first.record_replay(Replay(code=code_digest(), commit="c", of=first.id, judged=judged))
    [nn] = [one.file(first.path, version or "") for one in asked.evaluations if one.name == "nn"]
    assert Plan.read(asked, plan.root).states[first.id].excluded == (
        f"step 2: eval/nn_top1 is 1, was 2 (judging alone: delete {nn.name} there to judge it anew)"
    )
    alone = load(write(tmp_path, name="alone", more="evaluate: [knn]\n"), sets=TINY)
    assert Plan.read(alone, plan.root).states[first.id].excluded == ""
    nn.unlink()
    assert Plan.read(asked, plan.root).states[first.id].status == "trained"
    again = next(one for one in asked.evaluations if one.name == "nn")
    record(first, again, 1.0, data_version=version, code=code_digest())
    assert Plan.read(asked, plan.root).states[first.id].excluded == "", "judged by today's code"
    first.record_replay(Replay(code=code_digest(), commit="c", of=first.id, difference="step 1: loss"))
    assert Plan.read(alone, plan.root).states[first.id].excluded == "step 1: loss"


def test_what_judges_finished_trials_is_priced(tmp_path: Path) -> None:
    """Otherwise hours of fine-tuning, added to trials that are done, are promised in a minute."""

    def planned(*protocols: str) -> Plan:
        file = write(tmp_path, more=f"evaluate: [{', '.join(protocols)}]\n")
        return Plan.read(load(file, sets=[*TINY, "optim.epochs=1"]), tmp_path / "trials")

    def priced(*protocols: str) -> float:
        found = cost_of(planned(*protocols), tmp_path, cost.Machine(cores=1, gpus=0))
        assert found is not None
        return found.core_hours * 3600

    finish(planned("knn"), {"mse": {"test": 10.0}, "cosine": {"test": 20.0}})
    for folder in (tmp_path / "trials").iterdir():
        TrialFolder(folder.parent, folder.name).update(epoch=1, seconds=2.0)
    assert priced("knn") == 0
    new, short, long = (
        priced("knn", one) for one in ("nn", "{finetune: {epochs: 300}}", "{finetune: {epochs: 600}}")
    )
    assert short - new >= 4 * 300 * 2 * cost.STEP_SECONDS, "four trials of 300 epochs of two steps"
    assert long - new == pytest.approx(2 * (short - new)), "an epoch costs what one of training does"
    plan = planned("knn", "{finetune: {epochs: 300}}")
    first = TrialFolder(plan.root, plan.sweep.planned[0].id)
    record(first, plan.sweep.evaluations[1], 30.0, data_version=first.config().data.version, seconds=1000.0)
    left = priced("knn", "{finetune: {epochs: 300}}")
    assert left == pytest.approx(3000 + 3 / 4 * new), "as long as the first took"
