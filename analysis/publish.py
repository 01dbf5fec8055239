"""The finished report in MLflow: its sweep's parent run says by itself what was asked, and what came out."""

import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lmim import pages
from lmim.analysis.claims import CONTRADICTED, SUPPORTED, UNDECIDED, Verdict
from lmim.analysis.results import Results, reading
from lmim.analysis.table import Row, escaped
from lmim.errors import UserError, count
from lmim.tracking import log_batches

log = logging.getLogger(__name__)

DIGEST = "lmim.report"
"""The tag that says which report a run has; it is written last."""
VERDICT = "lmim.verdict."
WORDS = (SUPPORTED, CONTRADICTED, UNDECIDED)
LONGEST = 7900  # MLflow takes 8000 characters


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
            points = _points(means(rows, verdicts), run.data.metrics)
            tags = told(verdicts) | {pages.NOTE: description(found, verdicts, folder)}
            for name in run.data.tags.keys() - tags.keys():
                if name.startswith(VERDICT):  # of a claim that the file makes no longer
                    client.delete_tag(found.parent, name)
            log_batches(client, found.parent, points, tags=tags)
            client.set_tag(found.parent, DIGEST, digest)
    except (UserError, OSError) as error:
        log.warning(f"the report is in {folder}, but not in MLflow: {error}")


def means(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Each arm's mean as a metric of the sweep, and how many claims came out in which way.

    Called mean/<metric>/<arm>: what is to be compared, the arms under one metric, then stands together in
    MLflow's lists, which are sorted; no name is a trial's own; and what MLflow takes in no name is replaced.
    """
    words = [verdict.verdict for verdict in verdicts]
    found = {f"claims/{word}": float(words.count(word)) for word in WORDS}
    for metric in rows[0].metrics if rows else ():
        for row in rows:
            name = f"mean/{metric}/{_accepted(row.arm)}"
            while name in found:  # two arms that differ in what was replaced
                name += "_"
            mean = row.metrics[metric].mean
            found[name] = math.nan if mean is None else mean
    return {name: value for name, value in found.items() if math.isfinite(value)}


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
        f"{VERDICT}{number:0{width}}": f"{verdict.words}: {verdict.claim}"
        for number, verdict in enumerate(verdicts, 1)
    }


def description(found: Results, verdicts: Sequence[Verdict], folder: Path) -> str:
    """The run's description: the question and the answer first, for MLflow folds away what follows."""
    summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))["summary"]
    question, _, table = (folder / "table.md").read_text(encoding="utf-8").partition("\n\n")
    counted = Counter(verdict.verdict for verdict in verdicts)
    answer = ", ".join(f"{counted[word]} {word}" for word in WORDS if counted[word])
    first = [f"{count(len(verdicts), 'claim')}: {answer}"] if verdicts else []
    whole = f"[report]({pages.page(found.experiment, found.parent, '/artifacts/report.html')})"
    first += [whole, pages.links(found.experiment, found.parent)]
    # no paragraphs of their own: MLflow shows two lines, and lets nobody click on the third
    text = "\n\n".join([f"{question}  \n{' · '.join(first)}", escaped(summary), table])
    return (
        text
        if len(text) <= LONGEST
        else text[:LONGEST].rpartition("\n")[0] + "\n\nThe rest is in the report."
    )


def _points(new: dict[str, float], old: dict[str, float]) -> list[tuple[str, float, int, int]]:
    """One point more for each that is not as it was; NaN where there is none any more, for none goes away.

    All at step 0: the newest point of the highest step is the value that MLflow shows.
    """
    gone = dict.fromkeys(old.keys() - new.keys(), math.nan)
    now = int(time.time() * 1000)
    return [
        (name, value, now, 0)
        for name, value in (new | gone).items()
        if repr(value) != repr(old.get(name))  # unlike ==, which tells NaN from itself
    ]
