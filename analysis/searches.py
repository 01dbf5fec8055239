"""What each arm's own search tried and found: as a table, and as a file of all suggestions."""

import csv
import io
import math

from lmim.analysis.results import Results
from lmim.plan.record import RecordedSearch
from lmim.plan.search import short

NONE = "-"


def tuned_keys(results: Results) -> list[str]:
    """The keys that some arm was tuned in."""
    return list(dict.fromkeys(key for search in results.searches for key in search.ranges))


def lines(results: Results) -> list[list[str]]:
    """Head and a row for each arm that was tuned: its suggestions, the best of them, what they cost."""
    keys = tuned_keys(results)
    metric = results.label(results.searches[0].metric)
    head = ["arm", "suggestions", f"best {metric}", "the recipe's own", *keys, "core-hours"]
    return [head, *(_line(results, search, keys) for search in results.searches)]


def _line(results: Results, search: RecordedSearch, keys: list[str]) -> list[str]:
    trials = {trial for one in search.suggestions for trial in one.trials} & results.searched.keys()
    best, recipe = search.best, search.suggestions[0] if search.recipe and search.suggestions else None
    return [
        search.arm,
        f"{len(search.suggestions)} of {search.budget}",
        *(NONE if one is None or one.value is None else f"{one.value:.2f}" for one in (best, recipe)),
        *(_found(search, key) if key in search.ranges else NONE for key in keys),
        f"{math.fsum(results.searched[one].core_seconds for one in trials) / 3600:.3f}",
    ]


def _found(search: RecordedSearch, key: str) -> str:
    """The best value of a key; a star where it is an end of its range: the best may lie beyond."""
    if search.best is None:
        return NONE
    value, (kind, values) = search.best.params[key], search.ranges[key]
    return short(value) + "*" * (kind != "categorical" and value in (values[0], values[-1]))


def note(results: Results) -> str:
    """What the columns are, and what the keys were looked for in."""
    ranges = {
        key: f"{key} {kind} {short(values[0])} to {short(values[-1])}"
        if kind != "categorical"
        else f"{key} among {', '.join(map(short, values))}"
        for search in results.searches
        for key, (kind, values) in search.ranges.items()
    }
    return (
        f"Search of each arm, on validation data and seeds that no row has: {'; '.join(ranges.values())}. "
        "The best suggestion is what the arm's row was trained with. *: at an end of the range."
    )


def to_csv(results: Results) -> str:
    """Every suggestion: a line with its values, and what it came to."""
    keys = tuned_keys(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metric = results.searches[0].metric if results.searches else "value"
    writer.writerow(["arm", "suggestion", *keys, metric, "trials"])
    for search in results.searches:
        for number, one in enumerate(search.suggestions, 1):
            value = "" if one.value is None else one.value
            writer.writerow(
                [search.arm, number, *(one.params.get(k, "") for k in keys), value, " ".join(one.trials)]
            )
    return text.getvalue()
