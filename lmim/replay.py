"""Do finished trials still count, though the code has changed? Compared by what it does, not by its name.

    python -m lmim.replay [ID ...] [--out results]

A replay takes one trial of an arm, trains its first steps again, computes what is scheduled for every row of
its journal, and judges its checkpoint on a sample. The same figures: the arm's trials of that code count,
whatever changed. Else they are left out, with the first figure that differs; where it is an evaluation's,
only of sweeps that ask for that evaluation.

On the processor that made them figures must be equal to the last digit. On a GPU, whose sums have no fixed
order, or on another machine, they may differ by `TOLERANCES`.
"""

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from lmim.command import Parser, exit_code, out_folder
from lmim.config import Config
from lmim.errors import UserError, cause, out_of_memory
from lmim.evaluate import Trained, image_features, judge, patch_features
from lmim.tokenizer import ensure
from lmim.train.loop import Run, choose_device, device_name, open_planned
from lmim.trial.code import code_digest, code_version
from lmim.trial.folder import Replay, Row, TrialFolder

TOLERANCES = {"train/": (2e-4, 0.0), "collapse/": (1e-2, 0.0), "eval/": (1e-2, 1.0), "val/": (1e-2, 1.0)}
"""Relative and absolute, for what rounding may change; a loss scaled by 1.001 is beyond the first."""
FIRST = 40
"""So many steps are trained again at most, if the journal has a row of them."""


class Difference(NamedTuple):
    """One figure that is another today."""

    text: str
    """`step 20: train/loss is 0.43351, was 0.43308`."""
    metrics: Collection[str] = ()
    """Those of the evaluation that it is of; none where training itself differs."""


def replay(folder: TrialFolder, alike: Sequence[TrialFolder] = ()) -> Replay:
    """Compare today's code with a finished trial; the verdict is remembered there and in those `alike`.

    Raises:
        UserError: there is not enough memory for it, which says nothing of the code.
    """
    state = folder.state()
    found = ""
    judged: dict[str, str] = {}
    try:
        for difference in differences(folder):
            if not difference.metrics:
                found = difference.text
                break
            judged = dict.fromkeys(difference.metrics, difference.text) | judged
    except Exception as error:  # noqa: BLE001  whatever the present code makes of it, that is the difference
        if out_of_memory(error):
            raise UserError(
                f"{folder.path}: out of memory while it was replayed; run again with fewer at a time "
                "(--max-concurrent), or where there is more"
            ) from None
        found = f"cannot be replayed ({cause(error)})"
    verdict = Replay(code=code_digest(), commit=code_version(), of=folder.id, difference=found, judged=judged)
    for one in (folder, *alike):
        if one.state().code == state.code:
            one.record_replay(verdict)
    return verdict


def differences(folder: TrialFolder) -> Iterator[Difference]:
    """What the present code does otherwise, in the order of training."""
    config, state = folder.config(), folder.state()
    later = (state.code or "").split("; then ")[1:]
    yield from (
        Difference(f"went on with code {code}, which left nothing to compare")
        for code in later
        if code != code_digest()
    )
    if config.identity != folder.id:
        why = f"its settings are those of trial {config.identity} today: a neutral value is another one"
        yield Difference(why)
    ensure([config])  # by today's code, as all else
    device = choose_device(config)
    torch.set_num_threads(config.run.threads)
    run = Run(config, open_planned(config), device)
    same = device.type == "cpu" and state.device == device_name(device) and config.run.processes == 1
    rows, _ = folder.rows()
    yield from _scheduled(run, rows)
    if config.run.processes == 1:
        yield from _first_steps(run, rows, same)
    yield from _judged(config, folder, run, rows, same)


def _scheduled(run: Run, rows: Sequence[Row]) -> Iterator[Difference]:
    """Learning rate, momentum and the like of every row, which are functions of config and step."""
    for row in rows:
        if "train/lr" in row.metrics:
            run.progress.step = row.step
            now = {f"train/{name}": value for name, value in run.schedule().items()}
            known = {name: value for name, value in row.metrics.items() if name in now}
            yield from _unlike(row.step, now, known, 1e-9)
    run.progress.step = 0


def _first_steps(run: Run, rows: Sequence[Row], same: bool) -> Iterator[Difference]:
    """The measures at initialisation, and the first rows of training."""
    measured = next((row for row in rows if row.step == 0), None)
    if measured is not None:
        yield from _unlike(0, run.collapse_metrics(), measured.metrics, 0.0 if same else None)
    trained = [row for row in rows if "train/loss" in row.metrics and row.step <= FIRST]
    last = max((row.step for row in trained), default=0)
    feed = run.feed(last)
    for row in trained:
        while run.progress.step < row.step:
            run.step(next(feed))
        yield from _unlike(row.step, run.training_metrics(), row.metrics, 0.0 if same else None)


def _judged(
    config: Config, folder: TrialFolder, run: Run, rows: Sequence[Row], same: bool
) -> Iterator[Difference]:
    """Collapse measures and every protocol, on the checkpoint."""
    if not folder.locked():
        folder.fetch()
    if not run.restore(folder.checkpoint) and (run.steps or config.imported):
        yield Difference("its checkpoint is gone")
        return
    last = [row for row in rows if "collapse/rank" in row.metrics][-1:]
    exact = 0.0 if same else None
    if last and last[0].step == run.progress.step:
        yield from _unlike(last[0].step, run.collapse_metrics(), last[0].metrics, exact)
    objective = run.objective.eval()
    logits = getattr(objective, "logits", None)
    done = []
    for result in (one for one in folder.results() if not one.error):
        if result.metrics.keys() == {metric.name for metric in result.evaluation.metrics.values()}:
            done.append(result)
        else:
            why = "its settings are those of another today: a neutral value is another one"
            yield Difference(f"{result.protocol}: {why}", result.metrics)
    for sample in (True, False):  # what was migrated has no figures of a sample, and is judged whole
        some = [result for result in done if bool(result.sample) == sample]
        evaluations = [result.evaluation for result in some]
        where = run.dataset, config.data.image_size
        encode, patches = (partial(view, objective) for view in (image_features, patch_features))
        trained = Trained(objective, config, folder.path, lambda: False)
        now = judge(encode, *where, evaluations, run.device, logits, patches, sample, trained)
        for evaluation, found in now:  # those of one view are judged together, whatever their order
            result = some[evaluations.index(evaluation)]
            if found.error:
                yield Difference(found.error, result.metrics)
            before = result.sample or result.metrics
            for difference in _unlike(run.steps, found.metrics, before, exact):
                yield difference._replace(metrics=result.metrics)


def _unlike(
    step: int, now: dict[str, float], before: dict[str, float], tolerance: float | None
) -> Iterator[Difference]:
    """The figures that both have and that differ; a tolerance of None is that of their kind."""
    for name in (name for name in before if name in now):
        kind = next((kind for kind in TOLERANCES if name.startswith(kind)), "train/")
        relative, absolute = TOLERANCES[kind] if tolerance is None else (tolerance, 0.0)
        new, old = now[name], before[name]
        equal = new == old or (math.isnan(new) and math.isnan(old))
        if not equal and not abs(new - old) <= max(relative * max(abs(new), abs(old)), absolute):
            yield Difference(f"step {step}: {name} is {new:.9g}, was {old:.9g}")


# ------------------------------------------------------------------------------------------ command


def main(argv: Sequence[str] | None = None) -> int:
    """0: all that was replayed gives the same figures, 1: some do not, 2: wrong arguments."""
    return exit_code(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m lmim.replay", description="Compare finished trials with the present code."
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="trials; default: one of each arm and code")
    parser.add_argument("--out", type=out_folder, default=Path("results"), help="default: results")
    options = parser.parse_args(argv)
    root = options.out / "trials"
    groups = groups_of([TrialFolder(root, name) for name in options.ids or _all(root)])
    if options.ids:
        groups = [[folder] for group in groups for folder in group]
    console = Console(width=None if sys.stdout.isatty() else 160)
    worst = 0
    for first, *others in groups:
        verdict = replay(first, others)
        differs = "; ".join(filter(None, dict.fromkeys([verdict.difference, *verdict.judged.values()])))
        worst = max(worst, bool(differs))
        word = f"differs: {differs}" if differs else "the same figures"
        trained = (first.state().commit or "unknown code").partition(",")[0]
        line = f"{first.id} of {trained} ({len(others)} alike): {word}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return worst


def _all(root: Path) -> list[str]:
    return (
        sorted(path.name for path in root.iterdir() if (path / "state.json").is_file())
        if root.is_dir()
        else []
    )


def groups_of(folders: Sequence[TrialFolder]) -> list[list[TrialFolder]]:
    """Finished trials by arm and by the code that trained them."""
    groups: dict[tuple[str, str | None], list[TrialFolder]] = {}
    for folder in folders:
        state = folder.state()
        if state.status == "done":
            groups.setdefault((folder.config().arm, state.code), []).append(folder)
    return list(groups.values())


if __name__ == "__main__":
    sys.exit(main())
