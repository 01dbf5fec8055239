"""`python -m lmim.train FILE --arm ARM --seed N`: one trial in the foreground, without Ray."""

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

import lmim.survey  # noqa: F401  torch is here: what a plan asks needs no other process
from lmim.command import Parser, exit_code, out_folder
from lmim.config import Config
from lmim.errors import UserError, nearest
from lmim.plan import ablation
from lmim.tokenizer import ensure_for
from lmim.train.loop import choose_device, train
from lmim.trial.folder import ProcessKilled, TrialFolder
from lmim.trial.standing import standing

LINE_EVERY = 15.0
"""Seconds between two lines of progress where no terminal shows a bar."""


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m lmim.train FILE --arm ARM --seed N`: one trial in this process, without Ray.

    0: done, 2: wrong file or arguments, 130: interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    return exit_code(lambda: _command(words))


def _command(words: Sequence[str]) -> int:
    parser = Parser(prog="python -m lmim.train", description="Train one trial of a sweep.")
    parser.add_argument("file", help="the sweep file, such as ablations/loss.yaml")
    parser.add_argument("--arm", required=True, help="which arm, by the name that the sweep prints")
    parser.add_argument("--seed", type=int, required=True, help="a whole number from 0 on")
    parser.add_argument("--scale", help="a file of scales/, such as demo or gpu")
    sets = "lay a config key over the arm, as the sweep was given it; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help=sets)
    parser.add_argument("--out", type=out_folder, default=Path("results"), help="default: results")
    arguments = parser.parse_args(words)
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: expected a whole number from 0 on")
    sweep = ablation.load(arguments.file, arguments.scale, arguments.sets, seeds=[arguments.seed])
    trial = next((trial for trial in sweep.trials if trial.arm == arguments.arm), None)
    if trial is None:
        names = [arm.name for arm in sweep.arms]
        some = ", ".join(names[:8]) + (", ..." if names[8:] else "")
        near = nearest(arguments.arm, names)
        raise UserError(f"--arm {arguments.arm}: expected an arm of {sweep.path} ({some}){near}")
    if trial.provisional:
        raise UserError(
            f"--arm {trial.arm}: stands on the winner of an earlier stage, or of its own search, which "
            "python -m lmim.sweep finds, and trains then"
        )
    choose_device(trial.config)
    sweep.check_data([trial])
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
    folder = TrialFolder(arguments.out / "trials", trial.id)
    console.print(f"{trial.arm} seed {trial.seed} in {folder.path}", highlight=False, soft_wrap=True)
    try:
        _with_progress(trial.config, folder, sweep, console)
    except KeyboardInterrupt:  # the second Ctrl-C
        pass
    except ProcessKilled as killed:
        console.print(f"error: {killed}", style="red", highlight=False, soft_wrap=True)
    stands = standing(folder, sweep.evaluations, trial.config.data.version or "", sweep.ending)
    if stands.status not in ("done", "failed"):
        console.print(
            f"Interrupted at step {stands.state.step} of {stands.state.steps}. To go on:\n"
            f"  python -m lmim.train {shlex.join(words)}",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    if stands.error:
        raise UserError(f"{trial.arm} seed {trial.seed}: {stands.error}")
    print(json.dumps({"id": trial.id, "outcome": stands.state.outcome, **stands.metrics}))
    return 0


def _with_progress(config: Config, folder: TrialFolder, sweep: ablation.Sweep, console: Console) -> None:
    """Train with a line of images/s, loss and time left; a signal stops it at the next step."""
    asked: list[int] = []
    lined = time.monotonic()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        os.write(2, b"\nStopping: saves at the next step. Once more: leaves at once.\n")

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, stop)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[now]}",
        TimeRemainingColumn(),
    )
    bar = RichProgress(*columns, console=console)
    task = bar.add_task("step", total=None, now="")

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal lined
        if "train/loss" not in metrics:
            return
        now = f"loss {metrics['train/loss']:.4f}  {metrics['system/images_per_second']:.0f} images/s"
        state = folder.state()
        bar.update(task, completed=step, total=state.steps, now=now)
        if not console.is_terminal and time.monotonic() - lined >= LINE_EVERY:
            lined = time.monotonic()
            left = timedelta(seconds=round(state.eta_seconds or 0))
            line = f"{time.strftime('%H:%M:%S')} step {step}/{state.steps}  {now}  {left} left"
            console.print(line, highlight=False, soft_wrap=True)

    ensure_for(folder, config)
    with bar if console.is_terminal else contextlib.nullcontext():
        train(config, folder, sweep.evaluations, report, lambda: bool(asked), sweep.ending)


if __name__ == "__main__":
    sys.exit(main())
