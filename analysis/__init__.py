"""From MLflow to tables, figures, verdicts and a report. Reads MLflow alone and imports no trainer."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load"]


def load(
    name: str, scale: str | None = None, out: str | Path = "results", uri: str | None = None
) -> "pd.DataFrame":
    """A sweep's trials that count, a row each: trial, arm, baseline, seed, axes, outcome, metrics.

    `scale` is `demo`, or with settings `demo+optim.epochs=1`; None is what ran last. `uri` is MLflow's.
    """
    import pandas as pd

    from lmim.analysis import results
    from lmim.tracking import default_uri

    found = results.read(name, scale, uri or default_uri(Path(out)))
    arms = {arm.name: arm for arm in found.arms}
    keys = dict.fromkeys(key for arm in found.arms for key in arm.axes)
    measured = sorted({key for trial in found.trials for key in trial.metrics})
    rows = [
        {"trial": t.id, "arm": t.arm, "baseline": arms[t.arm].baseline, "seed": t.seed}
        | {key: arms[t.arm].axes.get(key) for key in keys}
        | {"outcome": t.outcome}
        | {key: t.metrics.get(key) for key in measured}
        for t in found.trials
    ]
    return pd.DataFrame(rows, columns=["trial", "arm", "baseline", "seed", *keys, "outcome", *measured])
