"""How MLflow's pages open on a sweep: a view of its trials by arm and seed, and the addresses that show it.

By themselves they open on language models, and then on one row, the parent, with the trials folded away and
no chart. MLflow keeps a view that somebody shares as a tag of the experiment, which an address names by its
key; here it is made for every sweep. A version that does not know the tag shows its own view instead.
"""

import json
import shlex
from collections.abc import Mapping

from lmim.errors import redacted
from lmim.metrics import RANK_RATIO, full_name
from lmim.plan.record import Record

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description, of a run or of an experiment; in Markdown."""
TRAINING = "workflowType=machine_learning"
"""Of an address: MLflow's pages on training, not on language models."""
SECTIONS = ("eval", "train", "collapse")
"""Of the charts: the parts of the metrics' names before the slash, the most telling first."""


def page(experiment: str, parent: str, tab: str = "") -> str:
    """The end of the address of a sweep's own page, after the server's; or of a tab of it.

    >>> page("1", "b2", "/artifacts")
    '#/experiments/1/runs/b2/artifacts?workflowType=machine_learning'
    """
    return f"#/experiments/{experiment}/runs/{parent}{tab}?{TRAINING}"


def links(experiment: str, parent: str) -> str:
    """Links to the views of a sweep's trials, in Markdown."""
    view = f"#/experiments/{experiment}/runs?{TRAINING}&viewStateShareKey={parent}"
    return f"[trials by arm and seed]({view}) · [charts by arm]({view}&compareRunsMode=CHART)"


def how_to_open(uri: str, experiment: str, parent: str) -> str:
    """What to type, or to open, to see the sweep there.

    >>> how_to_open("sqlite:////r/mlflow.db", "1", "b2")[:65]
    'mlflow ui --backend-store-uri sqlite:////r/mlflow.db, then open h'
    >>> how_to_open("https://me:secret@host/", "1", "b2")[:35]
    'https://host/#/experiments/1/runs/b'
    """
    shown = redacted(uri).rstrip("/")
    if uri.startswith("http"):
        return f"{shown}/{page(experiment, parent)}"
    start = f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
    return f"{start}, then open http://127.0.0.1:5000/{page(experiment, parent)}"


def experiment_tags(plan: Record, experiment: str, parent: str, present: Mapping[str, str]) -> dict[str, str]:
    """The view of a sweep's trials, and a line with its links in the experiment's description.

    `present` are the experiment's tags: what somebody wrote into its description stays.
    """
    described = present.get(NOTE, "")
    # the newest comes first, for MLflow folds away the others; it takes 20,000 characters
    if parent not in described and len(described) < 15_000:
        line = f"[**{plan.name} {plan.place}**]({page(experiment, parent)}): {links(experiment, parent)}"
        described = f"{line}\n\n{described}".strip()
    judged = [metric.name for one in plan.evaluations for metric in one.metrics.values()]
    found = list(dict.fromkeys([full_name(plan.metric), *judged, RANK_RATIO]))
    tags = [f"tags.`lmim.{name}`" for name in ("arm", "seed", "outcome")]
    # an arm's mean is over its rows, of which what a search tried is none
    rows = " AND tags.`lmim.suggestion` IS NULL" if plan.searches else ""
    view = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'{rows}",
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "selectedColumns": [*(f"metrics.`{name}`" for name in found), *tags],
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": "lmim.arm"}],
        },
        "runsHiddenMode": "SHOW_ALL",
        # MLflow adds a line for each other metric, to the section of its name; of what is measured once it
        # would draw a line of one point
        "compareRunCharts": [
            {"uuid": name, "type": "BAR", "metricKey": name, "metricSectionId": "eval"} for name in found
        ],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True} for name in SECTIONS
        ],
        "isAccordionReordered": True,
    }
    return {NOTE: described, f"mlflow.sharedViewState.{parent}": json.dumps(view)}
