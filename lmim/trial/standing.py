"""How a trial stands: what its folder says, as one sweep sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmim.trial.code import code_digest
from lmim.trial.ending import Ending, goes_on
from lmim.trial.evaluation import Evaluation, Result, read_result
from lmim.trial.folder import UNJUDGED, State, TrialFolder

Status = Literal["new", "running", "interrupted", "trained", "done", "failed"]
"""As in a trial's state; `trained` is done, but not judged by all that the sweep asks for."""

NOT_COMPARED = "it was not yet replayed by today's code"


@dataclass(frozen=True)
class Standing:
    """How one trial stands for a sweep."""

    status: Status
    state: State
    metrics: Mapping[str, float]
    """The newest of training, and what the sweep's evaluations found."""
    error: str | None = None
    codes: frozenset[str] = frozenset()
    """What trained and judged it, by `code_digest`."""
    excluded: str = ""
    """Why it is in no table though it is done; empty where it counts."""


def standing(
    folder: TrialFolder,
    evaluations: Sequence[Evaluation] = (),
    version: str = "",
    ending: Ending | None = None,
) -> Standing:
    """How a trial stands; one that calls itself running though no process holds it was interrupted.

    So was one that ended early, where `ending` would not have ended it.
    """
    state = folder.state()
    codes = frozenset(filter(None, [state.code]))
    status: Status = state.status
    if status == "running" and not folder.locked():
        status = "interrupted"
    elif status == "done" and goes_on(state, folder, ending):
        status = "running" if folder.locked() else "interrupted"
    if status != "done":
        return Standing(status, state, state.metrics, state.error, codes)
    if state.outcome in UNJUDGED:
        return Standing(status, state, state.metrics, state.error, codes, _excluded(folder, codes, {}))
    found = {one.file(folder.path, version): one for one in evaluations}
    read = {file: read_result(file) for file in found}
    judged = {file: result for file, result in read.items() if result is not None}
    results = judged.values()
    absent = [one for file, one in found.items() if not file.is_file() and folder.is_judged_by(one)]
    metrics = dict(state.metrics)
    for result in results:
        metrics |= result.metrics
    codes |= {result.code for result in results}
    error = next((result.error for result in results if result.error), None)
    if absent:
        status = "running" if folder.locked() else "trained"
    elif error:
        status = "failed"
    return Standing(status, state, metrics, error, codes, _excluded(folder, codes, judged))


def _excluded(folder: TrialFolder, codes: frozenset[str], judged: Mapping[Path, Result]) -> str:
    """Whether today's code does what that of a finished trial did, as far as a replay has shown it.

    Of `judged`, what a sweep asks for: another one's evaluation, whose protocol has changed, is none of its
    concern.
    """
    if not codes - {code_digest()}:
        return ""
    found = folder.replayed()
    if found is None or found.code != code_digest():
        return NOT_COMPARED
    if found.difference:
        return found.difference
    for file, result in judged.items():
        for name in result.metrics.keys() & found.judged.keys():
            if result.code != found.code:
                return f"{found.judged[name]} (judging alone: delete {file.name} there to judge it anew)"
    return ""
