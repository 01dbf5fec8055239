"""The finished report in MLflow: its sweep's parent run says by itself what was asked, and what came out."""

import json
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmim import pages
from lmim.analysis.claims import CONTRADICTED, SUPPORTED, UNDECIDED, Verdict
from lmim.analysis.results import Results, reading
from lmim.analysis.table import Row, escaped
from lmim.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

DIGEST = "lmim.report"
"""The tag that says which report a run has; it is written last."""
VERDICT = "lmim.verdict."
BATCH = 90  # MLflow takes 100 tags at once, and 1000 metrics


def publish(
    uri: str,
    found: Results,
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    folder: Path,
    files: Sequence[str],
    digest: str,
) -> None:
    """Put the report in `folder` on the sweep's run, where it is not there already.

    Never raises for a server that does not answer, or takes no files: the report on disk stands.
    """
    try:
        with reading(uri) as client:
            run = client.get_run(found.parent)
            if run.data.tags.get(DIGEST) == digest:
                return
            for name in files:
                client.log_artifact(found.parent, str(folder / name))
            _log_means(client, found.parent, means(rows, verdicts), run.data.metrics)
            links = pages.links(run.info.experiment_id, found.parent)
            tags = told(verdicts) | {pages.NOTE: description(folder, links)}
            for name in run.data.tags.keys() - tags.keys():
                if name.startswith(VERDICT):  # of a claim that the file makes no longer
                    client.delete_tag(found.parent, name)
            _log_tags(client, found.parent, tags)
            client.set_tag(found.parent, DIGEST, digest)
    except (UserError, OSError) as error:
        log.warning(f"the report is in {folder}, but not in MLflow: {error}")


def means(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Each arm's mean as a metric of the sweep, and how many claims came out in which way.

    Called mean/<metric>/<arm>: what is to be compared, the arms under one metric, then stands together in
    MLflow's lists, which are sorted; no name is a trial's own; and what MLflow takes in no name is replaced.
    """
    found: dict[str, float] = {}
    for row in rows:
        for metric, interval in row.metrics.items():
            name = f"mean/{metric}/{_accepted(row.arm)}"
            while name in found:  # two arms that differ in what was replaced
                name += "_"
            if interval.mean is not None:
                found[name] = interval.mean
    words = [verdict.verdict for verdict in verdicts]
    return found | {
        f"claims/{word}": float(words.count(word)) for word in (SUPPORTED, CONTRADICTED, UNDECIDED)
    }


def _accepted(arm: str) -> str:
    """An arm's name as part of a metric's.

    >>> _accepted("gap=1 losses.py:huber/2")
    'gap:1 losses.py:huber_2'
    """
    return re.sub(r"[^\w.\- :]", "_", arm.replace("=", ":"), flags=re.ASCII)[:150].strip(". ") or "_"


def told(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """A tag for each claim, in the file's order."""
    width = len(str(len(verdicts)))
    return {
        f"{VERDICT}{number:0{width}}": f"{verdict.verdict}: {verdict.claim}"
        for number, verdict in enumerate(verdicts, 1)
    }


def description(folder: Path, links: str) -> str:
    """The run's description: the question, the table and the verdicts, and what they stand on."""
    summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))["summary"]
    table = (folder / "table.md").read_text(encoding="utf-8")
    question, _, rest = table.partition("\n\n")
    return f"{question}\n\n{escaped(summary)}\n\n{rest}\nThe whole is report.html, under Artifacts. {links}\n"


def _log_means(client: "MlflowClient", run: str, new: dict[str, float], old: dict[str, float]) -> None:
    """One point more for each that is not as it was; NaN where there is none any more, for none goes away.

    All at step 0: the newest point of the highest step is the value that MLflow shows.
    """
    from mlflow.entities import Metric

    gone = dict.fromkeys(old.keys() - new.keys(), math.nan)
    now = int(time.time() * 1000)
    points = [
        Metric(name, value, now, 0)
        for name, value in (new | gone).items()
        if repr(value) != repr(old.get(name))  # unlike ==, which tells NaN from itself
    ]
    for start in range(0, len(points), BATCH):
        client.log_batch(run, metrics=points[start : start + BATCH])


def _log_tags(client: "MlflowClient", run: str, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    pairs = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(pairs), BATCH):
        client.log_batch(run, tags=pairs[start : start + BATCH])
