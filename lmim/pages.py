"""How MLflow's pages open on a sweep: a view of its trials by arm and seed, and the addresses that show it.

By themselves they open on language models, and then on one row, the parent, with the trials folded away and
no chart. MLflow keeps a view that somebody shares as a tag of the experiment, which an address names by its
key; here it is made for every sweep. A version that does not know the tag shows its own view instead.
"""

import json
from collections.abc import Mapping

from lmim.plan.record import Record

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description, of a run or of an experiment; in Markdown."""
SECTIONS = ("eval", "train", "collapse", "system")
"""Of the charts: the parts of the metrics' names before the slash, the most telling first."""


def addresses(experiment: str, parent: str) -> dict[str, str]:
    """Where a sweep's pages are: what each shows -> the end of its address, after the server's.

    >>> addresses("1", "b2")["the sweep"]
    '#/experiments/1/runs/b2?workflowType=machine_learning'
    """
    runs, training = f"#/experiments/{experiment}/runs", "workflowType=machine_learning"
    view = f"{runs}?{training}&viewStateShareKey={parent}"
    return {
        "the sweep": f"{runs}/{parent}?{training}",
        "trials by arm and seed": view,
        "charts by arm": f"{view}&compareRunsMode=CHART",
    }


def links(experiment: str, parent: str) -> str:
    """The same in Markdown.

    >>> links("1", "b2").split(" · ")[0]
    '[the sweep](#/experiments/1/runs/b2?workflowType=machine_learning)'
    """
    return " · ".join(f"[{text}]({end})" for text, end in addresses(experiment, parent).items())


def experiment_tags(plan: Record, experiment: str, parent: str, present: Mapping[str, str]) -> dict[str, str]:
    """The view of a sweep's trials, and a line with its links in the experiment's description.

    `present` are the experiment's tags: what somebody wrote into its description stays.
    """
    described = present.get(NOTE, "")
    if parent not in described:
        line = f"**{plan.name} {plan.place}**: {links(experiment, parent)}"
        described = f"{described}\n\n{line}".strip()
    judged = [metric.name for one in plan.evaluations for metric in one.metrics.values()]
    tags = [f"tags.`lmim.{name}`" for name in ("arm", "seed", "outcome")]
    view = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "selectedColumns": [*(f"metrics.`{name}`" for name in judged), *tags],
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": "lmim.arm"}],
        },
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [],  # MLflow adds one for each metric, to the section of its name
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True} for name in SECTIONS
        ],
        "isAccordionReordered": True,
    }
    return {NOTE: described, f"mlflow.sharedViewState.{parent}": json.dumps(view)}
