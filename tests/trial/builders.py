"""Results of evaluations as the trainer leaves them, without training."""

from typing import Any

from lmim.trial.evaluation import Evaluation, Result, write_result
from lmim.trial.folder import TrialFolder


def record(folder: TrialFolder, evaluation: Evaluation, figure: float | None, **fields: Any) -> Result:
    """Give every metric of an evaluation a figure; None and an `error` for one that failed."""
    metrics = {} if figure is None else {one.name: figure for one in evaluation.metrics.values()}
    given = {"data_version": "v1", "code": "c0de", "commit": "abc1234", "error": "", "seconds": 1.0} | fields
    told = {"torch": "2", "timm": "1", "device": "cpu", "date": "2026-01-01T00:00:00Z"}
    result = Result(**vars(evaluation), metrics=metrics, sample=metrics, **given, **told)
    write_result(evaluation.file(folder.path, result.data_version), result)
    return result
