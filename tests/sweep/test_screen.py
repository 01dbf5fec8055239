"""What people see of a sweep."""

import io
from pathlib import Path

from rich.console import Console

from lmim.plan.ablation import load
from lmim.sweep.screen import show_plan, summary
from lmim.sweep.standing import Plan, machine_of
from lmim.trial.folder import TrialFolder
from tests.sweep.running import TINY, write

STAGES = "design: ladder\nstages:\n  - axes: {loss: [mse, cosine]}\n  - axes: {decoder.cues: [true, false]}\n"


def test_what_waits_for_a_winner_is_not_called_done(tmp_path: Path) -> None:
    """Otherwise a plan says "4 done, 2 to do", and then trains what it called done with another loss."""
    file = write(tmp_path)
    file.write_text(file.read_text().partition("axes:")[0] + STAGES + "seeds: [0, 1]\n")
    sweep = load(file, sets=TINY)
    out = tmp_path / "out"
    (stand_in, *_) = (trial for trial in sweep.trials if trial.provisional)
    folder = TrialFolder(out / "trials", stand_in.id)
    folder.create(stand_in.config)
    folder.update(status="done", outcome="diverged")
    plan = Plan.read(sweep, out / "trials")
    assert summary(plan) == "4 to do, 2 waiting for a winner"
    console = Console(file=io.StringIO(), width=80)
    show_plan(plan, out, console, machine_of(None))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert printed.count("no winner yet") == 2
    assert "stage 1 (loss): not decided yet\nstage 2 (decoder.cues): not decided yet\n" in printed
