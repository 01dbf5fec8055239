"""The studies of a sweep's arms: Optuna suggests, and is told what came of it.

    <out>/studies/<identity>.log      Optuna's journal of one arm's search

The journal says what was suggested, the trials' folders what came of it. A suggestion hangs on those before
it and on nothing else, whoever trains them and in what order they end: the next lot is asked for when the
last is over. So a search that was killed goes on as if it never had been.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from lmim.errors import UserError, brief
from lmim.plan.search import STARTUP, Made, Searched, Study, Suggestions, Tried, distribution
from lmim.trial.folder import TrialFolder

if TYPE_CHECKING:
    import optuna


def suggested(studies: Iterable[Study], out: Path) -> Suggestions:
    """What was suggested so far."""
    return {
        one.identity: [Made(trial.params, trial.intermediate_values) for trial in _open(one, file).trials]
        for one in studies
        if (file := _file(one, out)).is_file()
    }


def advance(searches: Sequence[Searched], out: Path) -> bool:
    """Tell each study what came of its suggestions, and ask for the next where all are over.

    Returns:
        Whether anything was suggested.
    """
    folder = out / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands at one sweep must not both ask
        asked = [_advance(search, _open(search.study, _file(search.study, out)), out) for search in searches]
        return any(asked)
    finally:
        os.close(lock)


def _advance(search: Searched, study: "optuna.Study", out: Path) -> bool:
    made = study.trials
    if len(made) > len(search.tried):  # by another command meanwhile
        return True
    for trial, tried in zip(made, search.tried, strict=False):
        if tried.over and not trial.state.is_finished():
            _tell(study, trial, tried, out)
    if not all(one.over for one in search.tried):
        return False
    lot = min(search.study.search.at_once, search.left)
    for _ in range(lot):
        _ask(search.study, study)
    return lot > 0


def _tell(study: "optuna.Study", trial: "optuna.trial.FrozenTrial", tried: Tried, out: Path) -> None:
    """What a suggestion came to: a value, nothing, or its looks at validation data where it was pruned."""
    from optuna.trial import Trial, TrialState

    folders = [TrialFolder(out / "trials", one) for one in tried.trials]
    looks = [folder.looks() for folder in folders]
    for epoch in sorted(set[int]().union(*looks)):
        values = [found[epoch] for found in looks if epoch in found]
        Trial(study, trial._trial_id).report(fmean(values), epoch)
    state = TrialState.COMPLETE
    if tried.value is None:
        pruned = any(folder.state().outcome == "pruned" for folder in folders)
        state = TrialState.PRUNED if pruned else TrialState.FAIL
    study.tell(trial.number, tried.value, state)


def _ask(arm: Study, study: "optuna.Study") -> None:
    """Add one suggestion, as one line of the journal: a kill leaves it whole, or not at all."""
    import optuna

    made = study.trials
    distributions = {one.key: distribution(one.kind, one.values) for one in arm.ranges}
    params: Mapping[str, Any] | None = None if made else arm.recipe
    if params is None:
        # in memory, where asking takes several steps; of a sampler that begins anew after a restart each
        # suggestion has a seed of its own
        memory = optuna.create_study(sampler=_sampler(arm, len(made)), direction=_direction(arm))
        memory.add_trials(made)
        params = memory.ask(distributions).params
    running = optuna.trial.TrialState.RUNNING
    study.add_trial(optuna.create_trial(state=running, params=dict(params), distributions=distributions))


def _sampler(arm: Study, number: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import RandomSampler, TPESampler

    digest = hashlib.sha256(f"{arm.identity} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4])
    if arm.search.sampler == "random":
        return RandomSampler(seed)
    return TPESampler(n_startup_trials=STARTUP, seed=seed)


def _direction(arm: Study) -> Literal["minimize", "maximize"]:
    return "minimize" if arm.search.better == "lower" else "maximize"


def _file(study: Study, out: Path) -> Path:
    return out / "studies" / f"{study.identity}.log"


def _open(study: Study, file: Path) -> "optuna.Study":
    """An arm's study, made where there is none: what is there is only read.

    Raises:
        UserError: its journal is damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(file)))
        if not storage.get_all_studies():
            return optuna.create_study(storage=storage, direction=_direction(study))
        return optuna.load_study(study_name=None, storage=storage)
    except (ValueError, KeyError) as error:
        raise UserError(f"{file}: damaged ({brief(error)}); delete it to search again") from None
